"""One style for all figures: column width, colour-blind safe, embedded fonts; the same for every user."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.runs import Run

COLUMN_WIDTH, PAGE_WIDTH, PAGE_HEIGHT = 3.5, 7.0, 9.3
"""Inches: one column of a two-column paper, both columns, and what fits on a page above a caption."""

# Okabe & Ito (2008), distinguishable with all common forms of colour blindness; wine and olive are Tol's (2021).
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
PURPLE, SKY, BLACK, WINE, OLIVE = "#CC79A7", "#56B4E9", "#000000", "#882255", "#999933"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, WINE, OLIVE)
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")
LINES: tuple[Any, ...] = ("--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))

LINE_OF_NAME = 16
"""Characters; a longer name is broken, or three inches and a half would hold little but the name."""

RC: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.unicode_minus": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.hashsalt": "fracture",
    "svg.fonttype": "none",
}


class Look(NamedTuple):
    """How a model is drawn; each of the three alone tells it from the others, or nearly so."""

    colour: str
    marker: str
    line: Any


def looks(readers: Sequence[str]) -> dict[str, Look]:
    """Every model's look; the first, the base, is black and solid."""
    found = {readers[0]: Look(BLACK, "o", "-")}
    for at, name in enumerate(readers[1:]):
        line = LINES[(at + at // len(COLOURS)) % len(LINES)]
        found[name] = Look(COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)], line)
    return found


def broken(name: str) -> str:
    """A model's name on lines of about `LINE_OF_NAME` characters, broken behind one of `_-.` where that is possible."""
    if len(name) <= LINE_OF_NAME:
        return name
    if len(name) > 2 * LINE_OF_NAME:
        return f"{name[:LINE_OF_NAME]}\n{broken(name[LINE_OF_NAME:])}"
    middle = math.ceil(len(name) / 2)
    near = [at for at in range(1, len(name)) if max(at, len(name) - at) <= LINE_OF_NAME + 3]
    behind = [at for at in near if name[at - 1] in "_-."]
    cut = min(behind, key=lambda at: ("_-.".index(name[at - 1]), abs(at - middle)), default=middle)
    return f"{name[:cut]}\n{name[cut:]}"


@contextmanager
def style() -> Iterator[None]:
    """Within, matplotlib draws in this style, whatever the user's own settings are."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def styled(draw: Callable[[Run], Figure]) -> Callable[[Run], Figure]:
    """The function drawing in this style, its figure laid out for good, so that every format shows the same."""

    @functools.wraps(draw)
    def drawn(run: Run) -> Figure:
        with style():
            figure = draw(run)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        return figure

    return drawn
