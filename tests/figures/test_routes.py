"""The routes figure: says what the summary says, at column width, with the same bytes each time."""

from __future__ import annotations

import matplotlib as mpl
import pytest
from matplotlib.image import imread

from figures import FORMATS, save
from figures.routes import routes_figure
from figures.style import BLUE, COLUMN_WIDTH, ORANGE


def estimate(value, half=0.05):
    if value is None:
        return {"estimate": None, "low": None, "high": None, "n": 0}
    return {"estimate": value, "low": value - half, "high": value + half, "n": 50}


def reader(text, inside, verdict=None, scorable=True):
    found = {
        "own": {"whole": {"text": {"bypass": estimate(text)}, "inside": {"bypass": estimate(inside)}}},
        "scorable": scorable,
    }
    return found if verdict is None else {**found, "verdict": verdict}


SUMMARY = {
    "base": reader(0.01, 0.02),
    "variants": {
        "a rather long name": reader(0.5, 0.4, "detached"),
        "odd": reader(-0.4, 1.3, "inconclusive"),
        "unaligned": reader(0.3, None, "inconclusive"),
        "gone": reader(7.0, -9.0, "not scorable"),
    },
}


def test_every_share_is_where_the_summary_says():
    (axes,) = routes_figure(SUMMARY).axes
    points = {
        (round(float(line.get_xdata()[0]), 3), line.get_color())
        for line in axes.lines
        if line.get_marker() in "os" and len(line.get_xdata()) == 1
    }
    assert points == {
        (0.01, BLUE),
        (0.02, ORANGE),
        (0.5, BLUE),
        (0.4, ORANGE),
        (-0.4, BLUE),
        (1.3, ORANGE),
        (0.3, BLUE),
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["base", *SUMMARY["variants"]]
    low, high = axes.get_xlim()
    assert low < -0.45
    assert high > 1.35
    assert high < 2, "a model that is not scorable has no share, and must not stretch the axis"


def test_verdicts_stand_beside_their_rows():
    (axes,) = routes_figure(SUMMARY).axes
    texts = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert texts["detached"] == 1
    assert texts["not scorable"] == 4


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_summary_gives_the_same_bytes(tmp_path, name):
    first, second = (save(routes_figure(SUMMARY), tmp_path / run / "routes", (name,))[0] for run in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_saved_at_print_resolution_and_without_touching_the_users_style(tmp_path):
    before = dict(mpl.rcParams)
    (path,) = save(routes_figure(SUMMARY), tmp_path / "routes", ("png",))
    assert imread(path).shape[1] == round(COLUMN_WIDTH * 300)
    assert dict(mpl.rcParams) == before


def test_a_base_that_is_not_scorable_has_no_share_either():
    (axes,) = routes_figure({"base": reader(7.0, -9.0, scorable=False), "variants": {}}).axes
    assert [text.get_text() for text in axes.texts] == ["not scorable"]
    assert axes.get_xlim()[1] < 2
