"""Per-step scores: how much the answer hangs on each step, by true-thinking score and by logit-difference decay."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from analysis import statistics
from analysis.statistics import MIN_PROMPTS
from figures import marks
from figures.style import COLUMN_WIDTH, GREY, looks, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.runs import Run

SHARES: Float[ndarray, " share"] = np.linspace(0, 1, 21).round(9)
PANELS = {
    ("true_thinking", "tts"): "true-thinking score\n(probability)",
    ("logit_decay", "nldd"): "logit-difference\ndecay (%)",
}
PANEL_HEIGHT = 1.3


@styled
def step_scores_figure(run: Run) -> Figure:
    """Both scores along the chain, a line a model, on the chains that all models read.

    By step where all chains have as many. Else by the share of the chain up to the step: each prompt's line runs
    straight between its own steps, and not beyond its first and last. Lines are means over prompts and bands their 95%
    intervals by Student's t, where 20 prompts have a score, or half of them. A model that is too often wrong, or has no
    score, has no line, and the legend or the panel says so.
    """
    tables = {measure: _steps(run, measure) for measure, _ in PANELS}
    lengths = sorted({int(n) for table in tables.values() for n in table["n_steps"].unique()})
    at = (np.arange(1, lengths[0] + 1) / lengths[0]).round(9) if len(lengths) == 1 else SHARES
    x = np.arange(1.0, len(at) + 1) if len(lengths) == 1 else SHARES
    look = looks(run.readers)
    found = {
        (measure, name): marks.estimate_of(run, measure, name, run.headline, value)
        for measure, value in PANELS
        for name in run.readers
    }
    missing = {
        name: "; ".join(dict.fromkeys(reasons))
        for name in run.readers
        if len(reasons := [f for m, _ in PANELS if isinstance(f := found[m, name], str)]) == len(PANELS)
    }
    figure = Figure(figsize=(COLUMN_WIDTH, 1.0), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    counts: list[int] = []
    small = False
    for axes, ((measure, value), title) in zip(panels, PANELS.items(), strict=True):
        absent = {}
        for name in run.readers:
            reason = found[measure, name]
            if isinstance(reason, str):
                absent[name] = reason
                continue
            rows = tables[measure][tables[measure]["reader"] == name]
            points = _means(rows, value, at)
            marks.curve(axes, x[list(points)], list(points.values()), look[name])
            counts.append(rows.loc[rows[value].notna(), "id"].nunique())
            small |= any(point.too_small for point in points.values())
        _say(axes, absent, missing, len(run.readers))
        axes.axhline(0, color=GREY, linewidth=0.5, zorder=0)
        axes.set_ylabel(title)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    panels[1].set_xlim(x[0] - 0.03 * (x[-1] - x[0] + 1), x[-1] + 0.03 * (x[-1] - x[0] + 1))
    panels[1].xaxis.set_major_locator(MaxNLocator(6, integer=len(lengths) == 1))
    what = "step" if len(lengths) == 1 else "share of the chain up to the step"
    panels[1].set_xlabel(f"{what} ({marks.n_prompts(counts)})")
    height = marks.legend(figure, marks.entries(run, look, missing, small))
    figure.set_size_inches(COLUMN_WIDTH, 0.7 + height + 2 * PANEL_HEIGHT)
    return figure


def _steps(run: Run, measure: str) -> pd.DataFrame:
    table = run.table(measure)
    return table[(table["author"] == run.headline) & (table["condition"] == "mistake")]


def _means(rows: pd.DataFrame, value: str, at: Float[ndarray, " place"]) -> dict[int, statistics.Estimate]:
    """Index of a place along the chain → the mean of one model there, of those that enough prompts have."""
    lines = along_chain(rows, value, at)
    enough = max(1, min(MIN_PROMPTS, math.ceil(len(lines) / 2)))
    known = [column[~np.isnan(column)] for column in lines.T]
    return {place: statistics.mean(values) for place, values in enumerate(known) if len(values) >= enough}


def along_chain(rows: pd.DataFrame, value: str, at: Float[ndarray, " place"]) -> Float[ndarray, "prompt place"]:
    """One model's scores along each prompt's chain; NaN before its first step that has one, and behind its last.

    Args:
        rows: a prompt and step each, with `step` from 1 and `n_steps`.
        value: column; a step without a value is none.
        at: shares of the chain, rounded to nine decimals, so that 3/5 is found at .6.
    """
    having = rows[rows[value].notna()].sort_values("step")
    lines = [
        np.interp(at, (each["step"] / each["n_steps"]).round(9), each[value], left=np.nan, right=np.nan)
        for _, each in having.groupby("id", sort=False)
    ]
    return np.array(lines).reshape(-1, len(at))


def _say(axes: Axes, absent: dict[str, str], missing: dict[str, str], n_readers: int) -> None:
    """Says in a panel which models it does not show, of those that the other one does."""
    if len(absent) == n_readers:
        marks.blank(axes, ", ".join(dict.fromkeys(absent.values())))
        axes.set_yticks([])
        return
    words = "\n".join(f"{name}: {reason}" for name, reason in absent.items() if name not in missing)
    if words:
        marks.instead(axes, 0.98, 0.9, words, transform=axes.transAxes, ha="right")
