"""The drift figure: each point is a row of the table, and the grey area the highest null of any variant."""

from __future__ import annotations

import numpy as np
import pytest

from figures.drift import drift_figure
from figures.style import GREY, looks
from tests.figures import drawn

POSITIONS = ("question_end", "step_ends", "answer")


def test_lines_are_the_tables_rows(make_run):
    run = make_run(("sham", "sft", "rl"), layers=5)
    panels = np.reshape(drift_figure(run).axes, (3, 2))
    values = {(row["reader"], row["position"], row["layer"]): row for row in run.table("drift").to_dict("records")}
    for position, row in zip(POSITIONS, panels, strict=True):
        for axes, quantity in zip(row, ("cka", "procrustes"), strict=True):
            for name in run.variants:
                x, y = drawn.curve(axes, looks(run.readers)[name].colour)
                assert x.tolist() == list(range(5))
                assert y.tolist() == [values[name, position, layer][quantity] for layer in range(5)]


def test_the_null_is_the_highest_of_the_variants_layer_by_layer(make_run):
    run = make_run(("sham", "sft", "rl"), layers=4)
    panels = np.reshape(drift_figure(run).axes, (3, 2))
    for position, axes in zip(POSITIONS, panels[:, 0], strict=True):
        table = run.table("drift")
        rows = table[table["position"] == position]
        vertices = next(item for item in axes.collections).get_paths()[0].vertices
        for layer in range(4):
            inside = vertices[(vertices[:, 0] > layer - 0.6) & (vertices[:, 0] < layer + 0.6), 1]
            assert rows.loc[rows["layer"] == layer, "null_high"].max() in inside
        assert vertices[:, 1].max() == rows["null_high"].max()
    assert not panels[0, 1].collections, "the Procrustes distance has no null"


def test_a_hollow_marker_is_a_cka_that_few_rows_decide(make_run):
    def edit(summary, tables):
        tables["drift"]["norm_sensitivity"] = 0.0
        chosen = (tables["drift"]["reader"] == "sft") & (tables["drift"]["layer"] == 1)
        tables["drift"].loc[chosen & (tables["drift"]["position"] == "answer"), "norm_sensitivity"] = -0.06

    run = make_run(edit=edit)
    figure = drift_figure(run)
    panels = np.reshape(figure.axes, (3, 2))
    hollow = [
        (at, line.get_color(), line.get_xdata().tolist(), line.get_ydata().tolist())
        for at, axes in enumerate(panels.flat)
        for line in axes.lines
        if line.get_markerfacecolor() == "white"
    ]
    cka = run.table("drift").query("reader == 'sft' and layer == 1 and position == 'answer'")["cka"].tolist()
    assert hollow == [(4, looks(run.readers)["sft"].colour, [1], cka)]
    assert "1% of rows decide" in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(
    ("sites", "shown"),
    [(("attn_out", "resid_post"), "resid_post"), (("attn_out", "mlp_out"), "attn_out")],
)
def test_of_several_sites_one_is_shown_and_named(make_run, sites, shown):
    run = make_run(sites=sites)
    figure = drift_figure(run)
    assert figure.get_supxlabel() == f"layer ({shown}; n = 24)"
    rows = run.table("drift").query("site == @shown and reader == 'sft' and position == 'answer'")
    _, y = drawn.curve(np.reshape(figure.axes, (3, 2))[2, 0], looks(run.readers)["sft"].colour)
    assert y.tolist() == rows["cka"].tolist()


def test_what_was_not_kept_or_has_no_value_says_so(make_run):
    def edit(summary, tables):
        rows = tables["drift"]
        rows.loc[rows["position"] == "answer", ["cka", "null_high"]] = np.nan
        tables["drift"] = rows[(rows["position"] != "step_ends") & (rows["reader"] != "sham")]

    figure = drift_figure(make_run(edit=edit))
    said = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert said == [[], [], ["not kept"], ["not kept"], ["no value"], []]
    assert "sham\n(no value)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_grey_is_in_the_legend_only_where_there_is_a_null(make_run):
    words = "up to the 95th percentile\nof permuted prompts"
    for run, there in ((make_run(), True), (make_run(empty=True), False)):
        found = {text.get_text() for text in drift_figure(run).legends[0].get_texts()}
        assert (words in found) == there
    assert GREY not in {look.colour for look in looks(tuple("abcdefghi")).values()}
