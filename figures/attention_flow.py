"""Attention flow: what the answer loses when it cannot attend to a step, to the question or to the chain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from analysis import statistics
from analysis.statistics import MIN_PROMPTS
from figures import marks
from figures.style import BLACK, GREY, PAGE_WIDTH, Look, looks, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.runs import Run

PLACES: Float[ndarray, " place"] = np.linspace(0, 1, 21)
CURVES = {"p_drop": "a step hidden", "p_drop_control": "as many tokens\nbeside it"}
FLOWS = {
    "direct": "direct",
    "question_control": "like\nquestion",
    "necessity": "necessity",
    "necessity_among": "among\noptions",
    "chain_control": "like\nchain",
    "leakage": "leakage",
}
PANEL_HEIGHT = 1.9
GROUP = 0.8
"""The width of a group of bars, of the room it has."""


@styled
def attention_flow_figure(run: Run) -> Figure:
    """Left: by how much the probability of each model's own answer among the options drops when marker and answer
    cannot attend to a step, or to as many tokens beside it. Right: masked flow, bars with 95% intervals.

    On the chains that all models read. Each prompt's curve runs through its own steps, linear between them, the first
    at 0 and the last at 1; chains of a single step have no curve. Lines are means over prompts and bands their 95%
    intervals by Student's t. Among options is necessity over the options alone. Grey names are of controls: a random
    span as long as the question or the chain. No divergence is above log 2, the dotted line.
    """
    look = looks(run.readers)
    figure = Figure(figsize=(PAGE_WIDTH, 1.0), layout="constrained")
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1, 2.5))
    steps = figure.add_subplot(grid[0])
    panels = dict(zip(CURVES, (steps, figure.add_subplot(grid[1], sharey=steps)), strict=True))
    bars = figure.add_subplot(grid[2])
    counts, curves_few = _curves(panels, run, look)
    missing, bars_few = _bars(bars, run, look)
    steps.set_ylabel("drop of the answer's probability\namong the options")
    panels["p_drop_control"].tick_params(labelleft=False)
    for (value, title), axes in zip(CURVES.items(), panels.values(), strict=True):
        axes.set_title(title)
        axes.set_xlim(-0.04, 1.04)
        axes.set_xticks([0, 1], ["first\nstep", "last\nstep"])
        axes.axhline(0, color=GREY, linewidth=0.5, zorder=0)
        if not counts[value]:
            marks.blank(axes, "no chain of\ntwo steps" if len(run.table("attention_knockout")) else marks.NO_VALUE)
            axes.set_yticks([])
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
    steps.set_xlabel(f"place in the chain ({marks.n_prompts(counts['p_drop'])})")
    height = marks.legend(figure, marks.entries(run, look, missing, curves_few or bars_few))
    figure.set_size_inches(PAGE_WIDTH, 0.85 + height + PANEL_HEIGHT)
    return figure


def _curves(panels: Mapping[str, Axes], run: Run, look: Mapping[str, Look]) -> tuple[dict[str, list[int]], bool]:
    """Draws the lines; returns how many prompts are in those of each panel, and whether these are too few for one."""
    table = run.table("attention_knockout")
    table = table[(table["author"] == run.headline) & (table["part"] == "step")]
    counts: dict[str, list[int]] = {value: [] for value in panels}
    for value, axes in panels.items():
        for name in run.readers:
            curves = along_chain(table[table["reader"] == name], value)
            if len(curves):
                marks.curve(axes, PLACES, [statistics.mean(column) for column in curves.T], look[name])
                counts[value].append(len(curves))
    return counts, any(n < MIN_PROMPTS for found in counts.values() for n in found)


def along_chain(rows: pd.DataFrame, value: str) -> Float[ndarray, "prompt place"]:
    """One model's curves, each prompt's interpolated between its steps, at `PLACES` from its first step to its last.

    Args:
        rows: those of steps; prompts with fewer than two steps that have a value are left out.
        value: column.
    """
    rows = rows[rows[value].notna() & (rows["n_steps"] > 1)].sort_values("step", kind="stable")
    places = rows.assign(place=(rows["step"] - 1) / (rows["n_steps"] - 1).clip(lower=1))
    curves = [
        np.interp(PLACES, each["place"], each[value]) for _, each in places.groupby("id", sort=False) if len(each) > 1
    ]
    return np.array(curves, dtype=float).reshape(-1, len(PLACES))


def _bars(axes: Axes, run: Run, look: Mapping[str, Look]) -> tuple[dict[str, str], bool]:
    """Draws the bars; returns the models that have none with the reason, and whether some are of too few prompts."""
    missing: dict[str, str] = {}
    few, counts = False, []
    width = GROUP / len(run.readers)
    for at, name in enumerate(run.readers):
        for group, flow in enumerate(FLOWS):
            found = marks.estimate_of(run, "masked_flow", name, run.headline, flow)
            if isinstance(found, str):
                missing[name] = found
                continue
            _bar(axes, found, group + (at + 0.5) * width - GROUP / 2, width, look[name])
            counts.append(found["n"])
            few |= marks.few(found)
    axes.set_xticks(range(len(FLOWS)), list(FLOWS.values()))
    for flow, label in zip(FLOWS, axes.get_xticklabels(), strict=True):
        label.set_color(GREY if flow.endswith("_control") else BLACK)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, len(FLOWS) - 0.4)
    axes.set_ylim(0, 1.05 * math.log(2))
    axes.axhline(math.log(2), color=GREY, linewidth=0.7, linestyle=":", zorder=0)
    axes.set_ylabel("Jensen-Shannon\ndivergence (nats)")
    axes.set_title("masked flow")
    axes.set_xlabel(f"mean over prompts ({marks.n_prompts(counts)})")
    if not counts:
        marks.blank(axes, ", ".join(dict.fromkeys(missing.values())))
    return missing, few


def _bar(axes: Axes, estimate: Mapping[str, Any], at: float, width: float, look: Look) -> None:
    face = "white" if marks.few(estimate) else look.colour
    axes.bar(at, estimate["estimate"], 0.85 * width, facecolor=face, edgecolor=look.colour, linewidth=0.7)
    low, high = (estimate["estimate"] if estimate[end] is None else estimate[end] for end in ("low", "high"))
    axes.plot([at, at], [low, high], color=GREY if look.colour == BLACK else BLACK, linewidth=0.9)
