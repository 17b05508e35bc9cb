"""Costs of fine-tuning around the chain: what a model still does, or does no more, beside being right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from analysis.runs import BASE
from figures import marks
from figures.style import BLUE, GREY, PAGE_HEIGHT, PAGE_WIDTH, Look, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.runs import Run

ROW_HEIGHT, COLUMNS = 0.32, 4
SMALLEST = 6.5
OWN = Look(BLUE, "o", "-")
SHARE = "share"


class Cost(NamedTuple):
    """A panel: a quantity of a measure, its title, its unit, and whether it is read on each model's own chains."""

    measure: str
    quantity: str
    title: str
    unit: str = SHARE
    own: bool = True


COSTS = (
    Cost("abstention", "unanswerable", "abstains:\nunanswerable"),
    Cost("abstention", "answerable", "abstains:\nanswerable"),
    Cost("format_adherence", "passed", "format kept"),
    Cost("rule_shift", "right_shifted", "right under\na changed rule"),
    Cost("rule_shift", "old_answer", "old answer under\na changed rule"),
    Cost("chain_length", "n_steps", "length of chain", "steps"),
    Cost("thought_switches", "switches", "switches of thought", "a chain"),
    Cost("thought_switches", "underthinking", "underthinking\nof wrong answers"),
    Cost("partial_input", "right_full", "right, no chain:\nwhole question", own=False),
    Cost("partial_input", "right_cue", "right, no chain:\ncue alone", own=False),
    Cost("partial_input", "right_options", "right, no chain:\noptions alone", own=False),
)


@styled
def costs_figure(run: Run) -> Figure:
    """A panel for every cost that some model has a number of, a row a model, with 95% intervals.

    Each model is looked at on the texts that it wrote itself, on partial questions without a chain. The base's value
    goes through all rows as a line; where only part of a question is read, a dotted line is what guessing gives.
    """
    found = {cost: {name: _estimate(run, cost, name) for name in run.readers} for cost in COSTS}
    measured = [cost for cost in COSTS if any(not isinstance(each, str) for each in found[cost].values())]
    rows = max(1, math.ceil(len(measured) / COLUMNS))
    figure = Figure(figsize=(PAGE_WIDTH, 1.0), layout=ConstrainedLayoutEngine(wspace=0.04))
    panels = figure.subplots(rows, COLUMNS if measured else 1, sharey=True, squeeze=False)
    for axes in panels.flat[len(measured) :]:
        axes.set_axis_off()
    if not measured:
        marks.blank(panels[0, 0], marks.NO_VALUE)
    drawn: list[Mapping[str, Any]] = []
    for axes, cost in zip(panels.flat, measured, strict=False):
        drawn += _panel(axes, run, cost, found[cost])
    for axes in panels[:, 0]:
        axes.set_yticks(range(len(run.readers)), [marks.label(run, name) for name in run.readers])
        axes.set_ylim(len(run.readers) - 0.4, -0.6)
    handles = [marks.handle(OWN, "model"), marks.handle(Look(GREY, "", "-"), "the base")]
    if any(not cost.own for cost in measured):
        handles.append(marks.handle(Look(GREY, "", ":"), "by guessing"))
    dagger = any(marks.hidden(run, name) for name in run.readers)
    height = marks.legend(figure, [*handles, *marks.remarks(any(map(marks.few, drawn)), dagger)])
    needed = 0.15 + height + rows * (0.85 + ROW_HEIGHT * len(run.readers))
    if needed > PAGE_HEIGHT:
        # Names of two lines would lie on one another in rows so close.
        for axes in panels[:, 0]:
            axes.tick_params(axis="y", labelsize=SMALLEST)
    figure.set_size_inches(PAGE_WIDTH, min(PAGE_HEIGHT, needed))
    return figure


def _estimate(run: Run, cost: Cost, name: str) -> dict[str, Any] | str:
    return marks.estimate_of(run, cost.measure, name, name if cost.own else run.headline, cost.quantity)


def _panel(axes: Axes, run: Run, cost: Cost, found: Mapping[str, dict[str, Any] | str]) -> list[Mapping[str, Any]]:
    """Draws one cost; returns what was drawn."""
    drawn: list[Mapping[str, Any]] = []
    axes.tick_params(axis="y", length=0)
    for position, (name, each) in enumerate(found.items()):
        if isinstance(each, str):
            marks.instead(axes, 0.03, position, each, transform=axes.get_yaxis_transform())
            continue
        marks.dot(axes, each, position, OWN)
        drawn.append(each)
        if name == BASE:
            axes.axvline(each["estimate"], color=GREY, linewidth=0.6, zorder=0)
    chance = marks.NO_VALUE if cost.own else marks.estimate_of(run, cost.measure, BASE, run.headline, "chance")
    if not isinstance(chance, str):
        axes.axvline(chance["estimate"], color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_title(cost.title)
    axes.set_xlabel(f"{cost.unit} ({marks.n_prompts(each['n'] for each in drawn)})")
    if cost.unit == SHARE:
        axes.set_xlim(-0.04, 1.04)
        axes.set_xticks([0, 0.5, 1])
    else:
        ends = [each[end] for each in drawn for end in ("estimate", "low", "high") if each[end] is not None]
        low, high = min([0.0, *ends]), max([1.0, *ends])
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        axes.xaxis.set_major_locator(MaxNLocator(3))
    return drawn
