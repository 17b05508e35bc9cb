"""The figure of per-step scores: its lines are means over prompts at their own steps, whatever else a table holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from figures.step_scores import PANELS, step_scores_figure
from figures.style import looks
from tests.figures import drawn

NAMES = ("base", "sham", "sft")


def colour(name):
    return looks(NAMES)[name].colour


@pytest.mark.parametrize("panel", [0, 1])
def test_chains_of_one_length_are_drawn_by_step_with_t_intervals_over_prompts(make_run, panel):
    run = make_run(steps=(4,))
    measure, value = list(PANELS)[panel]
    axes = step_scores_figure(run).axes[panel]
    table = run.table(measure).query("condition == 'mistake'")
    for name in run.readers:
        x, y = drawn.curve(axes, colour(name))
        _, low, high = drawn.band(axes, colour(name))
        assert x.tolist() == [1, 2, 3, 4]
        for step in (1, 2, 3, 4):
            values = table.loc[(table["reader"] == name) & (table["step"] == step), value].to_numpy()
            assert len(values) == 24
            ends = stats.t.interval(0.95, 23, loc=values.mean(), scale=stats.sem(values))
            assert y[step - 1] == pytest.approx(values.mean())
            np.testing.assert_allclose([low[step - 1], high[step - 1]], ends)
    assert step_scores_figure(run).axes[1].get_xlabel() == "step (n = 24)"


def test_chains_of_several_lengths_are_drawn_by_share_straight_between_steps_and_not_beyond_them(make_run):
    run = make_run(steps=(2, 5), prompts=40)
    axes = step_scores_figure(run).axes[0]
    table = run.table("true_thinking").query("condition == 'mistake' and reader == 'sft'")
    by_id = {name: rows.sort_values("step")["tts"].to_numpy() for name, rows in table.groupby("id")}
    two, five = ([scores for scores in by_id.values() if len(scores) == n] for n in (2, 5))
    assert (len(two), len(five)) == (20, 20)
    x, y = drawn.curve(axes, colour("sft"))
    # The first step of five ends at .2; those of two have none before .5.
    assert x[0] == pytest.approx(0.2)
    assert y[np.isclose(x, 0.2)] == pytest.approx(np.mean([scores[0] for scores in five]))
    # .3 is half-way between the first two steps of five, .6 the third step of five and a fifth past the first of two.
    assert y[np.isclose(x, 0.3)] == pytest.approx(np.mean([(scores[0] + scores[1]) / 2 for scores in five]))
    between = [0.8 * scores[0] + 0.2 * scores[1] for scores in two] + [scores[2] for scores in five]
    assert y[np.isclose(x, 0.6)] == pytest.approx(np.mean(between))
    assert y[np.isclose(x, 1.0)] == pytest.approx(np.mean([scores[-1] for scores in by_id.values()]))
    assert step_scores_figure(run).axes[1].get_xlabel() == "share of the chain up to the step (n = 40)"


def test_where_few_prompts_have_a_score_there_is_no_line(make_run):
    """Five prompts of 40 have five steps: before the first step of the others, at .5, too few have any."""
    run = make_run(steps=(2, 2, 2, 2, 2, 2, 2, 5), prompts=40)
    x, _ = drawn.curve(step_scores_figure(run).axes[1], colour("base"))
    assert x[0] == pytest.approx(0.5)


def test_a_step_without_a_score_is_bridged_and_other_rows_do_not_enter(make_run):
    def edit(summary, tables):
        for measure, value in PANELS:
            rows = tables[measure]
            others = [rows.assign(author="sft", **{value: 99.0}), rows.assign(condition="paraphrase", **{value: -99.0})]
            rows.loc[rows["step"] == 2, value] = np.nan
            tables[measure] = pd.concat([rows, *others], ignore_index=True)

    run = make_run(steps=(3,), edit=edit)
    for axes, (measure, value) in zip(step_scores_figure(run).axes, PANELS, strict=True):
        own = run.table(measure).query("condition == 'mistake' and author == 'gold' and reader == 'base'")
        first, last = (own.loc[own["step"] == step, value].mean() for step in (1, 3))
        _, y = drawn.curve(axes, colour("base"))
        np.testing.assert_allclose(y, [first, (first + last) / 2, last])


def test_a_model_that_is_not_scorable_has_no_line_and_says_so(make_run):
    figure = step_scores_figure(make_run(steps=(4,), not_scorable=("sham",)))
    for axes in figure.axes:
        colours = {line.get_color() for line in axes.lines}
        assert colour("sham") not in colours
        assert {colour("base"), colour("sft")} <= colours
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "sham\n(not scorable)", "sft"]


def test_a_model_that_one_panel_alone_does_not_show_is_named_there(make_run):
    def edit(summary, tables):
        summary["measures"]["logit_decay"]["readers"]["sft"]["gold"] = {}

    figure = step_scores_figure(make_run(steps=(4,), edit=edit))
    above, below = figure.axes
    assert [text.get_text() for text in (*above.texts, *below.texts)] == ["sft: no value"]
    assert not above.texts
    assert colour("sft") not in {line.get_color() for line in below.lines}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "sham", "sft"]


def test_where_no_model_is_scorable_the_panels_say_so(make_run):
    figure = step_scores_figure(make_run(empty=True))
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["not scorable"] * 2


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"steps": (1,)},
        {"prompts": 3},
        {"prompts": 1, "steps": (6,)},
        {"variants": ("a_rather_long_name_of_a_variant", "b"), "not_scorable": ("b",)},
    ],
)
def test_nothing_leaves_the_page_or_lies_on_another(make_run, made):
    figure = step_scores_figure(make_run(**made))
    assert drawn.outside(figure) == []
    assert drawn.overlapping(figure) == []


def test_a_single_scored_step_is_a_point_at_its_own_place(make_run):
    """3/5 is not the twelfth of twenty steps from 0 to 1, to the last bit."""

    def edit(summary, tables):
        for measure, value in PANELS:
            rows = tables[measure]
            rows.loc[(rows["step"] != 3) & (rows["n_steps"] == 5), value] = np.nan

    run = make_run(steps=(5, 5, 5, 2), prompts=40, edit=edit)
    x, y = drawn.curve(step_scores_figure(run).axes[0], colour("sft"))
    scores = run.table("true_thinking").query("condition == 'mistake' and reader == 'sft'")
    five = scores.loc[(scores["n_steps"] == 5) & (scores["step"] == 3), "tts"].tolist()
    two = scores[scores["n_steps"] == 2].pivot(index="id", columns="step", values="tts")
    assert len(five) == 30
    assert y[np.isclose(x, 0.6)] == pytest.approx(np.mean([*five, *(0.8 * two[1] + 0.2 * two[2])]))
    assert x.tolist() == [0.6]
