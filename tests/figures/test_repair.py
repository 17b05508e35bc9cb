"""The repair figure: points, bars and lines are the summary's, and what is not there is said."""

from __future__ import annotations

import pytest

from figures.repair import NO_EFFECT, UNDISTURBED, WRITTEN, repair_figure
from tests.figures import drawn


def _cells(run, name):
    return run.summary["measures"]["repair"]["readers"][name]["gold"]["details"]["cells"]


def _bars(axes, colour):
    return [
        (float(line.get_xdata()[0]), *map(float, line.get_ydata()))
        for line in axes.lines
        if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1] and line.get_color() == colour
    ]


def test_every_point_and_bar_is_the_summarys_at_its_layer(make_run):
    run = make_run(layers=4)
    figure = repair_figure(run)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(run.variants)
    for name, axes in zip(run.variants, figure.axes, strict=True):
        for condition, (look, _) in WRITTEN.items():
            expected = [cell for cell in _cells(run, name) if cell["condition"] == condition]
            points, bars = drawn.points(axes, look.colour), _bars(axes, look.colour)
            assert len(points) == len(expected) == 3
            for cell, (x, y), (at, low, high) in zip(expected, sorted(points), sorted(bars), strict=True):
                assert abs(x - cell["layer"]) < 0.5
                assert y == pytest.approx(cell["bypass"]["estimate"])
                assert (at, low, high) == pytest.approx((x, cell["bypass"]["low"], cell["bypass"]["high"]))
        lines = [line for line in axes.lines if line.get_color() in {look.colour for look, _ in UNDISTURBED.values()}]
        undisturbed = [cell["bypass"]["estimate"] for cell in _cells(run, name) if cell["condition"] in UNDISTURBED]
        assert [float(line.get_ydata()[0]) for line in lines] == pytest.approx(undisturbed)
    first, second = (sorted(drawn.points(axes)) for axes in figure.axes)
    assert first != second
    assert [x for x, _ in first] == [x for x, _ in second]
    assert len({round(x, 6) for x, _ in first}) == len(first), "no point hides another"


def test_the_layer_that_is_reported_is_shaded_and_layers_have_their_own_numbers(make_run):
    def edit(summary, tables):
        for name in ("sham", "sft"):
            details = summary["measures"]["repair"]["readers"][name]["gold"]["details"]
            details["layers"], details["fixed"] = [0, 9, 17], 9
            for cell in details["cells"]:
                if cell["layer"] > 0:
                    cell["layer"] = details["layers"][cell["layer"]]

    figure = repair_figure(make_run(layers=4, edit=edit))
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "9", "17"]
        shaded = [patch for patch in axes.patches if patch.get_facecolor()[:3] == pytest.approx((0.949,) * 3, abs=0.01)]
        (box,) = [patch.get_extents().transformed(axes.transData.inverted()) for patch in shaded]
        assert (box.x0, box.x1) == pytest.approx((0.5, 1.5))


def test_where_hardly_any_effect_is_left_there_is_a_cross_and_no_bypass(make_run):
    def edit(summary, tables):
        for cell in summary["measures"]["repair"]["readers"]["sft"]["gold"]["details"]["cells"]:
            if cell["condition"] == "random" and cell["layer"] == 1:
                cell["bypass"] = None

    plain, edited = (repair_figure(make_run(edit=e)) for e in (lambda *_: None, edit))
    assert len(drawn.points(plain.axes[1], WRITTEN["random"][0].colour)) == 2
    assert len(drawn.points(edited.axes[1], WRITTEN["random"][0].colour)) == 1
    crosses = [line for line in edited.axes[1].lines if line.get_marker() == NO_EFFECT.marker]
    assert [float(line.get_ydata()[0]) for line in crosses] == [edited.axes[1].get_ylim()[0]]
    words = [[text for text, *_ in drawn.texts(figure)] for figure in (plain, edited)]
    assert "hardly any effect left" not in words[0]
    assert "hardly any effect left" in words[1]


def test_a_variant_without_numbers_says_why(make_run):
    def edit(summary, tables):
        summary["measures"]["repair"]["readers"]["sham"] = {}

    figure = repair_figure(make_run(("sham", "sft"), not_scorable=["sft"], edit=edit))
    words = [text for text, *_ in drawn.texts(figure)]
    assert "no prompt was patched" in words
    assert "not scorable" in words
    assert not any(drawn.points(axes) for axes in figure.axes)


def test_what_has_no_rows_has_no_entry_in_the_legend(make_run):
    def edit(summary, tables):
        for name in ("sham", "sft"):
            details = summary["measures"]["repair"]["readers"][name]["gold"]["details"]
            details["cells"] = [cell for cell in details["cells"] if cell["condition"] != "length"]

    words = [text for text, *_ in drawn.texts(repair_figure(make_run(edit=edit)))]
    assert "shorter chains (placebo)" not in words
    assert "random (control)" in words


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_many_variants_and_wide_intervals_stay_readable(make_run, n):
    def edit(summary, tables):
        cells = summary["measures"]["repair"]["readers"]["a-variant-with-a-long-name-0"]["gold"]["details"]["cells"]
        cells[2]["bypass"] |= {"estimate": 1.4, "low": -30.0, "high": 40.0}

    run = make_run([f"a-variant-with-a-long-name-{at}" for at in range(n)], layers=5, prompts=12, edit=edit)
    figure = repair_figure(run)
    assert not drawn.outside(figure)
    assert not drawn.overlapping(figure)
    low, high = figure.axes[0].get_ylim()
    assert -0.5 < low < 0
    assert 1.4 < high < 2
    assert "fewer than 20 prompts" in [text for text, *_ in drawn.texts(figure)]
