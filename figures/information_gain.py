"""Information gain: what each step of the chain tells of the gold answer, and the whole chain against its controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import statistics
from figures import marks
from figures.style import COLUMN_WIDTH, GREY, Look, looks, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.runs import Run
    from analysis.statistics import Estimate

CONDITIONS = {
    "total": "the chain",
    "masked": "its answer\nmasked",
    "foreign": "another\nprompt's chain",
    "filler": "filler",
    "question": "the question\nagain",
}
PROFILE_HEIGHT = 1.45
MAX_TICKS = 6


@styled
def information_gain_figure(run: Run) -> Figure:
    """The gain of every step, and of the chain against its controls, in nats, on the chains that all models read.

    Above: the mean gain of step i over the prompts that have it, a line a model with Student's t intervals over
    prompts as bands; as far as 20 prompts, or half of them, have the step. Below: the whole chain's gain and that of
    what stands in its place, with 95% intervals.
    """
    look = looks(run.readers)
    lanes = len(CONDITIONS) * (0.2 + 0.062 * len(run.readers))
    figure = Figure(figsize=(COLUMN_WIDTH, 1.0), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(PROFILE_HEIGHT, lanes))
    small = _profile(above, run, look)
    drawn = _controls(below, run, look)
    totals = {name: marks.estimate_of(run, "information_gain", name, run.headline, "total") for name in run.readers}
    missing = {name: found for name, found in totals.items() if isinstance(found, str)}
    height = marks.legend(figure, marks.entries(run, look, missing, small or any(map(marks.few, drawn))))
    figure.set_size_inches(COLUMN_WIDTH, 1.35 + height + PROFILE_HEIGHT + lanes)
    return figure


def _profile(axes: Axes, run: Run, look: Mapping[str, Look]) -> bool:
    """Draws the steps; returns whether some rest on too few prompts."""
    table = run.table("information_gain")
    table = table[(table["author"] == run.headline) & (table["condition"] == "step") & table["gain"].notna()]
    last = marks.common_steps(table)
    axes.set_ylabel("gain of the step (nats)")
    axes.set_xlabel("step, and the number of prompts that have it")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if not last:
        marks.blank(axes, marks.NO_VALUE)
        axes.set_yticks([])
        return False
    means = {name: _means(table[table["reader"] == name], last) for name in run.readers}
    axes.axhline(0, color=GREY, linewidth=0.5, zorder=0)
    for name, points in means.items():
        if points:
            marks.curve(axes, np.array(list(points), dtype=float), list(points.values()), look[name])
    shown = range(1, last + 1, -(-last // MAX_TICKS))
    counts = [marks.n_prompts(points[step].n for points in means.values() if step in points) for step in shown]
    axes.set_xticks(shown, [f"{step}\n{n.removeprefix('n = ')}" for step, n in zip(shown, counts, strict=True)])
    axes.set_xlim(0.7, last + 0.3)
    return any(point.too_small for points in means.values() for point in points.values())


def _means(rows: pd.DataFrame, last: int) -> dict[int, Estimate]:
    """Step → the mean gain of one model."""
    gains = {step: rows.loc[rows["step"] == step, "gain"].to_numpy(dtype=float) for step in range(1, last + 1)}
    return {step: statistics.mean(values) for step, values in gains.items() if len(values)}


def _controls(axes: Axes, run: Run, look: Mapping[str, Look]) -> list[Mapping[str, Any]]:
    """Draws the totals; returns what was drawn."""
    drawn: list[Mapping[str, Any]] = []
    shifts = np.linspace(-0.5, 0.5, len(run.readers) + 2)[1:-1]
    for position, quantity in enumerate(CONDITIONS):
        lane = [marks.estimate_of(run, "information_gain", name, run.headline, quantity) for name in run.readers]
        for name, found, shift in zip(run.readers, lane, shifts, strict=True):
            if not isinstance(found, str):
                marks.dot(axes, found, position + shift, look[name], marks.MARKER - 0.5)
                drawn.append(found)
        if all(isinstance(found, str) for found in lane):
            marks.instead(axes, 0.03, position, marks.NO_VALUE, transform=axes.get_yaxis_transform())
        if position:
            axes.axhline(position - 0.5, color=GREY, linewidth=0.3, zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.5, zorder=0)
    axes.set_yticks(range(len(CONDITIONS)), CONDITIONS.values(), fontsize=7)
    axes.set_ylim(len(CONDITIONS) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"information gain (nats; {marks.n_prompts(each['n'] for each in drawn)})")
    return drawn
