"""The trajectory figure: every number at its step, nothing where there is none, the verdicts as they are."""

from __future__ import annotations

import pytest

import figures
from analysis.errors import InputError
from figures import trajectory
from figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION
from figures.trajectory import checkpoints, trajectory_figure
from fracture import verdict
from tests.figures import drawn
from tests.figures.conftest import around

STEPS = {"ckpt-100": 100, "ckpt-9": 9, "ckpt-50": 50, "ckpt-200": 200}
NAMES = ("base", "ckpt-9", "ckpt-50", "ckpt-100", "ckpt-200")
X = [0, 9, 50, 100, 200]
NUMBERS = {
    "bypass_text": [0.02, 0.03, 0.4, 0.9, 1.0],
    "bypass_inside": [0.01, -0.02, 0.5, 0.8, 0.95],
    "information_gain": [2.0, 1.5, 1.0, 0.5, 0.25],
    "information_gain_own": [2.1, 1.6, 1.1, 0.6, 0.35],
    "accuracy": [0.9, 0.91, 0.92, 0.93, 0.94],
    "accuracy_own": [0.8, 0.81, 0.82, 0.83, 0.84],
}
PLACES = {
    "bypass_text": (0, BLUE),
    "bypass_inside": (0, ORANGE),
    "information_gain": (1, GREEN),
    "information_gain_own": (1, PURPLE),
    "accuracy": (2, GREEN),
    "accuracy_own": (2, PURPLE),
}
VERDICTS = {"ckpt-9": "attached", "ckpt-50": "detached", "ckpt-100": "inconclusive", "ckpt-200": "detached"}


@pytest.fixture
def make(make_run):
    """`make(n=…, lost=…, **options)`: a run with the numbers above; `lost`: `(quantity, name) → what stands there`."""

    def make(n=50, lost=None, **options):
        def edit(summary, tables):
            measures = summary["measures"]
            for at, name in enumerate(NAMES):
                reader = summary["base"] if name == "base" else summary["variants"][name]

                def number(quantity, at=at, name=name):
                    return (lost or {}).get((quantity, name), around(NUMBERS[quantity][at], n))

                for form in ("text", "inside"):
                    reader["own"]["whole"][form]["bypass"] = number(f"bypass_{form}")
                if name != "base" and reader["verdict"] != "not scorable":
                    reader["verdict"] = VERDICTS[name]
                measures["information_gain"]["readers"][name] |= {
                    "gold": {"total": number("information_gain")},
                    name: {"total": number("information_gain_own")},
                }
                measures["accuracy_and_calibration"]["readers"][name] = {
                    "gold": {"right": number("accuracy"), "written_right": around(0.1, n)},
                    name: {"written_right": number("accuracy_own"), "right": around(0.1, n)},
                }

        # The order of the settings is not that of the steps.
        measures = figures.NEEDS["trajectory"]
        return make_run(list(STEPS), checkpoints=STEPS, measures=measures, edit=edit, **options)

    return make


def test_every_number_is_at_its_step_with_its_interval(make):
    panels = trajectory_figure(make()).axes
    for quantity, (panel, colour) in PLACES.items():
        x, y = drawn.curve(panels[panel], colour)
        assert (list(x), list(y)) == (X, NUMBERS[quantity]), quantity
        x, low, high = drawn.band(panels[panel], colour)
        assert list(x) == X
        assert list(high - low) == pytest.approx([0.1] * 5), quantity


def test_the_margin_is_above_the_bases_bypass_by_text_and_triangles_are_at_detached_checkpoints(make):
    bypass, gain, accuracy = trajectory_figure(make()).axes
    (line,) = [line for line in bypass.lines if line.get_linestyle() == "--" and line.get_color() == GREY]
    assert list(line.get_ydata()) == pytest.approx([0.12, 0.12])
    (triangles,) = [line for line in bypass.lines if line.get_color() == VERMILION]
    assert list(triangles.get_xdata()) == [50, 200]
    assert not [line for axes in (gain, accuracy) for line in axes.lines if line.get_color() == VERMILION]
    assert trajectory.DETACHED == verdict.DETACHED


def test_no_line_passes_a_checkpoint_that_is_not_scorable(make):
    figure = trajectory_figure(make(not_scorable=("ckpt-50",)))
    bypass, gain, accuracy = figure.axes
    for colour in (BLUE, ORANGE):
        pieces = [list(line.get_xdata()) for line in bypass.lines if line.get_color() == colour]
        assert [0, 9] in pieces
        assert [100, 200] in pieces
        assert not any(50 in piece for piece in pieces)
    assert crosses(bypass) == [50]
    # What it gains and how often it is right can be said.
    assert crosses(gain) == crosses(accuracy) == []
    assert list(drawn.curve(gain, GREEN)[0]) == X
    (triangles,) = [line for line in bypass.lines if line.get_color() == VERMILION]
    assert list(triangles.get_xdata()) == [200]
    assert "not scorable" in legend(figure)
    assert "not scorable" not in legend(trajectory_figure(make()))


def test_a_base_that_is_not_scorable_sets_no_margin(make):
    figure = trajectory_figure(make(not_scorable=NAMES))
    bypass = figure.axes[0]
    assert crosses(bypass) == X
    assert [text.get_text() for text in bypass.texts] == ["no value"]
    assert not [line for line in bypass.lines if line.get_linestyle() == "--"]
    assert "the base by text + margin" not in legend(figure)


def test_what_has_no_value_is_a_gap_without_a_cross(make):
    lost = {("bypass_inside", "ckpt-100"): around(None, 0), ("information_gain", "ckpt-9"): "not scorable"}
    bypass, gain, _ = trajectory_figure(make(lost=lost)).axes
    assert {tuple(line.get_xdata()) for line in bypass.lines if line.get_color() == ORANGE} >= {(0, 9, 50), (200,)}
    assert list(drawn.curve(bypass, BLUE)[0]) == X
    assert crosses(bypass) == []
    assert crosses(gain) == [9]


def test_points_hold_the_changes_on_which_verdicts_rest_and_the_base_has_none(make):
    points = checkpoints(make(not_scorable=("ckpt-200",)))
    assert [(point.name, point.step) for point in points] == list(zip(NAMES, X, strict=True))
    assert [point.verdict for point in points] == [None, "attached", "detached", "inconclusive", "not scorable"]
    assert "change_text" not in points[0].found
    assert points[1].found["change_text"]["estimate"] == 0.3
    assert {points[-1].found[f"{what}_{form}"] for what in ("bypass", "change") for form in ("text", "inside")} == {
        "not scorable"
    }


def test_too_few_prompts_are_hollow_and_one_has_no_interval(make):
    for n, said in ((19, True), (20, False)):
        figure = trajectory_figure(make(n=n))
        assert ("fewer than 20 prompts" in legend(figure)) == said
        faces = {
            line.get_markerfacecolor()
            for line in figure.axes[0].lines
            if line.get_marker() == "o" and len(line.get_xdata())
        }
        assert faces == ({"white"} if said else {BLUE})
        assert f"(n = {n})" in figure.axes[2].get_xlabel()
    trajectory_figure(make(n=1))


def test_texts_keep_apart_and_within(make):
    for options in ({}, {"not_scorable": ("ckpt-50",), "n": 3}, {"not_scorable": NAMES}):
        figure = trajectory_figure(make(**options))
        assert drawn.outside(figure) == []
        assert drawn.overlapping(figure) == []


def test_it_is_of_trajectories_only(make_run):
    plain = make_run(checkpoints={})
    assert "trajectory" not in figures.available(plain)
    with pytest.raises(
        InputError, match=r"figure 'trajectory' is of checkpoints.*`fracture trajectory` makes such a run"
    ):
        figures.draw("trajectory", plain)
    assert "trajectory" in figures.available(make_run())


def crosses(axes):
    return [step for line in axes.lines if line.get_marker() == "x" for step in line.get_xdata()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]
