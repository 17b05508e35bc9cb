"""The accuracy trap: accuracy and the claims of the chain may improve while the chain tells less of the answer.

Source: after Wu et al. 2025 (arXiv 2506.02126): accuracy and knowledge index rose as information gain fell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from analysis.runs import BASE
from figures import marks
from figures.style import BLUE, GREY, ORANGE, PAGE_WIDTH, Look, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.runs import Run

ROW_HEIGHT = 0.32
OWN, BY_BASE = Look(BLUE, "o", "-"), Look(ORANGE, "s", "-")
PANELS = (
    ("accuracy_and_calibration", "written_right", "accuracy", "share of right answers"),
    ("knowledge_index", "index", "knowledge index", "share of checkable steps true"),
    ("information_gain", "total", "information gain", "nats"),
)


@styled
def accuracy_trap_figure(run: Run) -> Figure:
    """Accuracy, knowledge index and information gain of every model's own chains, with 95% intervals, a row a model.

    Each model reads the chains that it wrote. Information gain is shown as the base reads the same chains, too: what
    of a change lies in the text, and what in its reader. The base's own values go through all rows as a line.
    """
    figure = Figure(figsize=(PAGE_WIDTH, 1.0), layout=ConstrainedLayoutEngine(wspace=0.04))
    panels = figure.subplots(1, 3, sharey=True)
    drawn: list[Mapping[str, Any]] = []
    for axes, (measure, quantity, title, unit) in zip(panels, PANELS, strict=True):
        found = _rows(axes, run, measure, quantity)
        axes.set_title(title)
        axes.set_xlabel(f"{unit}\n({marks.n_prompts(each['n'] for each in found)})")
        drawn += found
    for axes in panels[:2]:
        axes.set_xlim(-0.04, 1.04)
        axes.set_xticks([0, 0.5, 1])
    panels[2].xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_yticks(range(len(run.readers)), [marks.label(run, name) for name in run.readers])
    panels[0].set_ylim(len(run.readers) - 0.4, -0.6)
    handles = [
        marks.handle(OWN, "own chain, read by its author"),
        marks.handle(BY_BASE, "own chain, read by the base"),
        marks.handle(Look(GREY, "", "-"), "the base"),
    ]
    dagger = any(marks.hidden(run, name) for name in run.readers)
    height = marks.legend(figure, [*handles, *marks.remarks(any(map(marks.few, drawn)), dagger)])
    figure.set_size_inches(PAGE_WIDTH, 0.85 + height + ROW_HEIGHT * len(run.readers))
    return figure


def _rows(axes: Axes, run: Run, measure: str, quantity: str) -> list[Mapping[str, Any]]:
    """Draws one panel; returns what was drawn."""
    drawn: list[Mapping[str, Any]] = []
    axes.tick_params(axis="y", length=0)
    for position, name in enumerate(run.readers):
        twice = measure == "information_gain" and name != BASE
        own = marks.estimate_of(run, measure, name, name, quantity)
        if isinstance(own, str):
            marks.instead(axes, 0.03, position - 0.13 * twice, own, transform=axes.get_yaxis_transform())
        else:
            marks.dot(axes, own, position - 0.13 * twice, OWN)
            drawn.append(own)
            if name == BASE:
                axes.axvline(own["estimate"], color=GREY, linewidth=0.6, zorder=0)
        text = marks.estimate_of(run, measure, BASE, name, quantity) if twice else marks.NO_VALUE
        if not isinstance(text, str):
            marks.dot(axes, text, position + 0.13, BY_BASE)
            drawn.append(text)
    return drawn
