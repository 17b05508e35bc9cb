"""The tables of interventions and heads: numbers of the run at their places, and words where there is none to give."""

from __future__ import annotations

import itertools

import pytest

from tests.fracture.report_pages import QUICK, made, page

MEASURES = (*QUICK, "patch_map", "interventions", "head_map")
METHODS = ("noising", "denoising", "mean", "zero")
WAYS = "Four ways of intervening on the {part}"
HEADS, SCREEN, MAP = (
    "The heads that carry most",
    "What the screen of the heads is worth",
    "What the residual map rests on",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made(tmp_path_factory.mktemp("plain"), measures=MEASURES)


@pytest.fixture(scope="module")
def html(run):
    return page(run)


@pytest.fixture(scope="module")
def contradicted(tmp_path_factory):
    """Methods contradict each other for `half` at the chain's first stream, and for `sham` everywhere but there."""

    def edit(summary, tables):
        readers = summary["measures"]["interventions"]["readers"]
        for share in readers["half"]["gold"]["details"]["shares"]:
            share["robust"] = (share["site"], share["layer"], share["part"]) != ("resid_post", 0, "chain")
        for share in readers["sham"]["gold"]["details"]["shares"]:
            share["robust"] = (share["site"], share["layer"]) == ("resid_post", 0)
        screen = summary["measures"]["head_map"]["readers"]["sham"]["gold"]["details"]["screen"]
        screen["bound"] = 1 - 0.05 ** (1 / 900)

    return page(made(tmp_path_factory.mktemp("contradicted"), edit, measures=MEASURES))


def first(cell: str) -> float:
    """The number that a cell begins with."""
    return float(cell.split()[0].replace("−", "-"))


def ratio(rows, value="effect"):
    return rows[value].sum() / rows["total"].sum()


@pytest.mark.parametrize("part", ["chain", "question"])
def test_shares_stand_by_site_layer_and_method_for_every_model(run, html, part):
    by_cell = run.table("interventions").groupby(["reader", "site", "layer", "part", "method"])
    sites = {"resid_post": "stream", "attn_out": "attention output", "mlp_out": "MLP output"}
    for name, site, layer, method in itertools.product(("base", "sham", "half"), sites, (0, 1), METHODS):
        cell = html.cell(WAYS.format(part=part), name, f"{sites[site]}, layer {layer}", method)
        assert first(cell) == pytest.approx(ratio(by_cell.get_group((name, site, layer, part, method))), abs=0.0051)
        assert "[" in cell
    # Not all the same, or a mixed-up table would pass.
    assert first(html.cell(WAYS.format(part="chain"), "half", "stream, layer 0", "mean")) == pytest.approx(
        0.5, abs=0.02
    )
    assert first(html.cell(WAYS.format(part="chain"), "sham", "stream, layer 0", "mean")) == pytest.approx(1, abs=0.02)


def test_where_methods_contradict_no_number_is_given(contradicted):
    cells = [contradicted.cell(WAYS.format(part="chain"), "half", "stream, layer 0", method) for method in METHODS]
    assert cells == ["not robust"] * 4
    for name, layer, part in (("half", 1, "chain"), ("half", 0, "question"), ("sham", 0, "chain")):
        first(contradicted.cell(WAYS.format(part=part), name, f"stream, layer {layer}", "noising"))
    assert contradicted.cell(WAYS.format(part="question"), "sham", "MLP output, layer 0", "zero") == "not robust"


def test_the_map_counts_contradictions_of_its_own_site_and_first_layer_alone(contradicted):
    assert [contradicted.cell(MAP, "", name, "other interventions") for name in ("base", "sham", "half")] == [
        "agree",
        "agree",
        "not robust: chain",
    ]


def test_a_run_without_interventions_has_no_word_of_them_in_the_map(tmp_path):
    html = page(made(tmp_path, measures=(*QUICK, "patch_map")))
    assert html.tables[MAP][0] == ["model", "prompts", "with a logit form", "share over prompts", "outliers"]
    assert "denoising" not in html.text


def test_a_model_that_reads_nothing_has_no_shares(html):
    for method in METHODS:
        assert html.cell(WAYS.format(part="chain"), "gone", "stream, layer 0", method) == "not scorable"
    assert html.cell(MAP, "", "gone", "other interventions") == "not scorable"
    assert html.cell(SCREEN, "", "gone", "missed") == "not scorable"
    assert html.cell(HEADS, "gone", "layer 0, head 2, marker", "exact share") == "not scorable"


def test_the_largest_cells_stand_first_with_their_estimates(run, html):
    for name in ("base", "half"):
        rows = run.table("head_map").query("reader == @name and chosen != ''")
        exact = {key: ratio(of) for key, of in rows.groupby(["layer", "head", "part"])}
        order = sorted(exact, key=lambda key: -abs(exact[key]))
        heads = [cells[0] for cells in html.tables[HEADS]]
        start = heads.index(name) + 1
        shown = heads[start : start + len(exact)]
        assert shown[0] == "layer 0, head 1, marker" == "layer {}, head {}, {}".format(*order[0])
        carries = rows.query("layer == 0 and head == 1")
        cells = [html.cell(HEADS, name, shown[0], column) for column in html.tables[HEADS][0][1:]]
        assert first(cells[0]) == pytest.approx(ratio(carries), abs=0.0051)
        assert first(cells[1]) == pytest.approx(ratio(carries, "plain"), abs=0.0051)
        assert first(cells[2]) == pytest.approx(ratio(carries, "integrated"), abs=0.0051)
        assert cells[3] == "top"
        assert html.cell(HEADS, name, "layer 1, head 2, marker", "patched as") == "sample"


def test_what_the_screen_is_worth_is_counted(run, html):
    def cell(column: str, name: str = "half") -> str:
        return html.cell(SCREEN, "", name, column)

    # Three heads, question, chain and marker in layer 0 and the marker in layer 1; head 0 of layer 0 has three parts.
    assert [cell(c) for c in ("prompts", "cells", "patched as top", "sampled", "missed")] == ["24", "12", "4", "2", "2"]
    # Of two sampled, both with .1: nothing is bounded.
    assert cell("missed at most") == "100.0%"
    assert first(cell("largest share sampled")) == pytest.approx(0.1)
    rows = run.table("head_map").query("reader == 'half' and chosen != ''")
    errors = [abs(ratio(of, "plain") - ratio(of)) for _, of in rows.groupby(["layer", "head", "part"])]
    assert first(cell("largest error, plain")) == pytest.approx(max(errors), abs=0.0051)
    assert first(cell("rank correlation, integrated")) == pytest.approx(1)


def test_a_bound_is_never_printed_as_less_than_it_is(contradicted):
    """Of .33% the nearest tenth is less."""
    assert 0.0033 < 1 - 0.05 ** (1 / 900) < 0.0034
    assert contradicted.cell(SCREEN, "", "sham", "missed at most") == "0.4%"


def test_too_few_prompts_are_called_so(tmp_path):
    html = page(made(tmp_path, prompts=6, measures=MEASURES))
    assert "n too small" in html.cell(WAYS.format(part="chain"), "half", "stream, layer 0", "noising")
    assert "n too small" in html.cell(HEADS, "half", "layer 0, head 1, marker", "exact share")
