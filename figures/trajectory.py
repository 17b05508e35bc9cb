"""The trajectory: bypass, information gain and accuracy over the steps of a fine-tuning, from the base at step 0."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.runs import BASE
from analysis.statistics import Estimate
from figures import marks
from figures.style import BLUE, COLUMN_WIDTH, GREEN, GREY, ORANGE, PURPLE, VERMILION, Look, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.runs import Run

DETACHED = "detached"
PANEL_HEIGHT = 1.25
TEXT, INSIDE = Look(BLUE, "o", "-"), Look(ORANGE, "s", "--")
SAME, OWN = Look(GREEN, "^", "-"), Look(PURPLE, "D", "--")
MARGIN, VERDICT, ABSENT = Look(GREY, "", "--"), Look(VERMILION, "v", "none"), Look(GREY, "x", "none")
PANELS: Mapping[str, Mapping[str, Look]] = {
    "bypass": {"bypass_text": TEXT, "bypass_inside": INSIDE},
    "information gain (nats)": {"information_gain": SAME, "information_gain_own": OWN},
    "accuracy": {"accuracy": SAME, "accuracy_own": OWN},
}
"""Label of an axis → the quantities of `Checkpoint.found` that it shows, and how."""


@dataclass(frozen=True)
class Checkpoint:
    """A point of a trajectory.

    Attributes:
        name, step: which model, after how many steps of fine-tuning.
        verdict: that of the study; None for the base, which all verdicts compare with.
        found: quantity → its estimate as in `summary.json`, or in words why there is none. `total_effect` is by text,
            in squared probability, and decides whether shares of it can be scored; `bypass_*` are the model's own;
            `change_*`, on which the verdict rests, are its differences from the base, paired by prompt;
            `information_gain` and `accuracy` are on the chains that all models read, `*_own` on the model's own.
    """

    name: str
    step: int
    verdict: str | None
    found: Mapping[str, Mapping[str, Any] | str]


def checkpoints(run: Run) -> list[Checkpoint]:
    """The base and the checkpoints of a trajectory, in the order of their steps."""
    return [
        Checkpoint(name, step, run.verdicts.get(name), _found(run, name))
        for name, step in {BASE: 0, **run.checkpoints}.items()
    ]


def _found(run: Run, name: str) -> dict[str, Mapping[str, Any] | str]:
    found: dict[str, Mapping[str, Any] | str] = {}
    reader = run.summary["base"] if name == BASE else run.summary["variants"][name]
    hidden = marks.hidden(run, name)
    found["total_effect"] = _words(False, reader["own"]["whole"]["text"]["total"])
    for form in ("text", "inside"):
        found[f"bypass_{form}"] = _words(hidden, reader["own"]["whole"][form]["bypass"])
        if name != BASE:
            found[f"change_{form}"] = _words(hidden, reader["bypass"][form]["difference"])
    for key, author in (("", run.headline), ("_own", name)):
        right = "written_right" if key else "right"
        found[f"information_gain{key}"] = marks.estimate_of(run, "information_gain", name, author, "total")
        found[f"accuracy{key}"] = marks.estimate_of(run, "accuracy_and_calibration", name, author, right)
    return found


def _words(hidden: bool, found: Mapping[str, Any]) -> Mapping[str, Any] | str:
    if hidden:
        return marks.NOT_SCORABLE
    return marks.NO_VALUE if found["estimate"] is None else found


@styled
def trajectory_figure(run: Run) -> Figure:
    """Bypass by text and inside, information gain and accuracy against the step of fine-tuning, with 95% intervals.

    The base is step 0. Above the dashed line bypass by text is more than the verdict's margin higher than the base's;
    a triangle above the panel stands at every checkpoint whose verdict is `detached`. Where there is no number no line
    passes, and a cross stands at the checkpoints that are not scorable.
    """
    points = checkpoints(run)
    figure = Figure(figsize=(COLUMN_WIDTH, 1.0), layout="constrained")
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    drawn: list[Mapping[str, Any]] = []
    for axes, (label, shown) in zip(panels, PANELS.items(), strict=True):
        found = _panel(axes, points, shown)
        axes.set_ylabel(label)
        if found and not label.endswith("(nats)"):
            axes.set_ylim(min(-0.08, axes.get_ylim()[0]), max(1.08, axes.get_ylim()[1]))
            axes.set_yticks([0, 0.5, 1])
        drawn += found
    margin = _verdicts(panels[0], points, run.summary["study"]["margin"])
    last = points[-1].step
    panels[-1].set_xlim(-0.03 * last, 1.03 * last)
    panels[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels[-1].set_xticks([point.step for point in points], minor=True)
    panels[-1].set_xlabel(f"step of fine-tuning; 0 is the base ({marks.n_prompts(each['n'] for each in drawn)})")
    height = marks.legend(figure, list(_entries(points, drawn, margin)))
    figure.set_size_inches(COLUMN_WIDTH, 0.55 + height + PANEL_HEIGHT * len(PANELS))
    return figure


def _panel(axes: Axes, points: Sequence[Checkpoint], shown: Mapping[str, Look]) -> list[Mapping[str, Any]]:
    """Draws quantities over the steps; returns what was drawn."""
    drawn: list[Mapping[str, Any]] = []
    for quantity, look in shown.items():
        for piece in _pieces(points, quantity):
            found: list[Any] = [point.found[quantity] for point in piece]
            steps = np.array([point.step for point in piece], dtype=float)
            marks.curve(axes, steps, [_estimate(each) for each in found], look)
            drawn += found
    gone = [point.step for point in points if marks.NOT_SCORABLE in [point.found[quantity] for quantity in shown]]
    _signs(axes, gone, 0.04, ABSENT)
    if drawn:
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.axhline(0, color=GREY, linewidth=0.5, zorder=0)
    else:
        marks.blank(axes, marks.NO_VALUE)
        axes.set_yticks([])
    return drawn


def _signs(axes: Axes, steps: Sequence[int], height: float, look: Look) -> None:
    """Sets a sign at each step, at a height given as a share of the panel's."""
    # An empty line that is not clipped leaves the layout without a size.
    if steps:
        how = {"color": look.colour, "marker": look.marker, "markersize": marks.MARKER - 0.5, "linestyle": look.line}
        axes.plot(steps, [height] * len(steps), clip_on=False, transform=axes.get_xaxis_transform(), **how)


def _pieces(points: Sequence[Checkpoint], quantity: str) -> Iterator[list[Checkpoint]]:
    """Checkpoints that follow each other and have the quantity: a line through another would say that it has one."""
    for missing, piece in itertools.groupby(points, lambda point: isinstance(point.found[quantity], str)):
        if not missing:
            yield list(piece)


def _verdicts(axes: Axes, points: Sequence[Checkpoint], margin: float) -> bool:
    """Draws the verdict's margin, and where it is `detached`; returns whether the base has a bypass to draw it from."""
    _signs(axes, [point.step for point in points if point.verdict == DETACHED], 1.06, VERDICT)
    base = points[0].found["bypass_text"]
    if isinstance(base, str):
        return False
    axes.axhline(base["estimate"] + margin, color=MARGIN.colour, linestyle=MARGIN.line, linewidth=0.8)
    return True


def _entries(points: Sequence[Checkpoint], drawn: Sequence[Mapping[str, Any]], margin: bool) -> Iterator[Any]:
    """The legend's entries: the lines, then what signs mean, where there are any."""
    for look, words in ((TEXT, "by text"), (INSIDE, "inside"), (SAME, "same chains for all"), (OWN, "own chains")):
        yield marks.handle(look, words)
    if margin:
        yield marks.handle(MARGIN, "the base by text + margin")
    if any(point.verdict == DETACHED for point in points):
        yield marks.handle(VERDICT, "verdict: detached")
    if any(marks.NOT_SCORABLE in point.found.values() for point in points):
        yield marks.handle(ABSENT, marks.NOT_SCORABLE)
    yield from marks.remarks(any(map(marks.few, drawn)))


def _estimate(found: Mapping[str, Any]) -> Estimate:
    low, high, se = (math.nan if found[key] is None else found[key] for key in ("low", "high", "se"))
    return Estimate(found["estimate"], low, high, found["n"], se)
