"""Validation: does the headline's score equal the realised dose, and which measures tell detached from attached?"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from figures import marks
from figures.style import BLACK, BLUE, COLOURS, GREY, MARKERS, Look, broken, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LADDER = ("base", "attached", "dose")
"""Kinds of organisms whose score should be the realised dose: the base itself, harmless fine-tunings, doses."""
LADDER_LOOK = Look(BLUE, "o", "-")
FORMS = {"text": "by text", "inside": "inside"}
CONDITIONS = {"given": "same chains", "own": "own chains"}
STATUSES = ("calibrated", "diagnostic", "descriptive")
COLUMNS = {"spearman": "Spearman", "auroc": "AUROC", "power": "power", "false_positives": "false pos."}
SHADES = LinearSegmentedColormap.from_list("validity", ["white", "#8CC4E8"])
"""Black print is read on all of them."""
WORST = {"spearman": 0.5, "auroc": 0.5, "power": 0.0, "false_positives": 0.25}
"""What is white; the best value, 1 or (of false positives) 0, is the darkest."""
DETAIL, SMALL = 6.0, 5.5
"""Points."""
LINE, CELL, GAP = 0.112, 0.42, 0.15
"""Inches: a line of the matrix, the width of a cell, and what is between two families."""
LABEL, CONDITION, EDGE = 2.85, 0.6, 0.03
"""Inches: a quantity's name and its condition beside the matrix, and the matrix's right margin."""
SCATTER_HEIGHT, HEADS, FOOT = 1.95, 0.42, 0.05
"""Inches: the scatters, what stands above the matrix and below it."""
LABEL_CHARACTERS, LABEL_LINES, SECOND_LINE = 59, 2, 0.75
HEADING = 1.5
"""Lines that a status takes."""


def validation_figure(validation: Mapping[str, Any]) -> Figure:
    """The headline's score against the realised dose, a panel a family and form, over a matrix of all quantities.

    Score is variant minus base. The doses, harmless fine-tunings and the base itself belong on the grey line; organisms
    of other kinds have marks of their own and may be elsewhere. In the matrix a cell is the darker the better, Spearman
    that of the worst seed; a dash is a number that could not be had.

    Args:
        validation: as in `validation.json`.
    """
    families = list(dict.fromkeys(name for row in validation["measures"] for name in row["families"]))
    groups = {
        status: found
        for status in STATUSES
        if (found := [row for row in validation["measures"] if row["status"] == status])
    }
    lines = sum(HEADING + sum(map(_height, rows)) for rows in groups.values())
    columns = _left(len(families)) * CELL - GAP
    width = LABEL + CONDITION + columns + EDGE
    with style():
        figure = Figure(figsize=(width, 1.0), layout="constrained")
        handles = _handles(validation)
        height = marks.legend(figure, handles) if handles else 0.0
        matrix = HEADS + LINE * lines + FOOT
        figure.set_size_inches(width, height + SCATTER_HEIGHT + matrix)
        parts: Any = figure.subfigures(2, 1, height_ratios=(SCATTER_HEIGHT, matrix))
        above, below = parts
        _scatters(above, validation, families)
        start = LABEL + CONDITION
        axes = below.add_axes((start / width, FOOT / matrix, columns / width, LINE * lines / matrix))
        axes.set(xlim=(0, columns / CELL), ylim=(lines, 0))
        axes.set_axis_off()
        _matrix(axes, groups, families)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def _left(at: int) -> float:
    """Where the columns of the family at this place begin, in cells."""
    return at * (len(COLUMNS) + GAP / CELL)


def _others(validation: Mapping[str, Any]) -> dict[tuple[str, str], Look]:
    """(family, organism) of what is no dose and not harmless → how it is drawn; the same in both families by name."""
    found = [pair for pair in validation["pairs"] if pair["truth"] not in LADDER]
    names = list(dict.fromkeys(pair["organism"] for pair in found))
    look = {
        name: Look(COLOURS[1:][at % (len(COLOURS) - 1)], MARKERS[at % len(MARKERS)], "-")
        for at, name in enumerate(names)
    }
    return {(pair["family"], pair["organism"]): look[pair["organism"]] for pair in found}


def _handles(validation: Mapping[str, Any]) -> list[Any]:
    shown = {name for _, _, points in _headlines(validation) for _, _, name, _ in points}
    others = {broken(name): look for (_, name), look in _others(validation).items() if name in shown}
    entries = {"doses, harmless, base itself": LADDER_LOOK, **others} if shown else {}
    return [marks.handle(look, words, line=False, hollow=True) for words, look in entries.items()]


def _headlines(validation: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[Any]]]:
    """Family, form and points (realised dose, score, organism, seed) of the headline, where both numbers are known."""
    for row in validation["measures"]:
        if row["headline"]:
            for family, found in row["families"].items():
                points = [point for point in found["points"] if point[0] is not None and point[1] is not None]
                yield family, row["condition"], points


def _scatters(figure: Any, validation: Mapping[str, Any], families: Sequence[str]) -> None:
    looks = _others(validation)
    of_panel = {(family, form): points for family, form, points in _headlines(validation)}
    panels = figure.subplots(1, len(families) * len(FORMS), sharex=True, sharey=True, squeeze=False)[0]
    values = [value for points in of_panel.values() for point in points for value in point[:2]]
    low, high = min([-0.06, *(value - 0.06 for value in values)]), max([1.06, *(value + 0.06 for value in values)])
    wanted = [(family, form) for family in families for form in FORMS]
    for axes, (family, form) in zip(panels, wanted, strict=True):
        axes.set_title(f"{family}, {FORMS[form]}", fontsize=7)
        axes.tick_params(labelsize=7)
        axes.plot([low, high], [low, high], color=GREY, linewidth=0.6, zorder=0)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        if not (points := of_panel.get((family, form))):
            marks.blank(axes, marks.NO_VALUE)
        for realised, score, organism, _ in points or ():
            look = looks.get((family, organism), LADDER_LOOK)
            axes.plot(
                realised,
                score,
                linestyle="none",
                marker=look.marker,
                color=look.colour,
                markersize=marks.MARKER,
                markerfacecolor="none",
                markeredgewidth=0.9,
            )
    panels[0].set_ylabel("change of bypass", fontsize=7)
    figure.supxlabel("realised dose (variant minus base)", fontsize=7)


def _matrix(axes: Axes, groups: Mapping[str, Sequence[Mapping[str, Any]]], families: Sequence[str]) -> None:
    """Quantities by status, a row each; four columns a family."""
    for place, family in enumerate(families):
        left = _left(place)
        for words, at, up, size in (
            (family, left + len(COLUMNS) / 2, 2.0, 8),
            *((head, left + column + 0.5, 0.6, SMALL) for column, head in enumerate(COLUMNS.values())),
        ):
            axes.text(at, -up, words, ha="center", va="center", fontsize=size)
    y = 0.0
    for status, rows in groups.items():
        heading = f"{status} ({len(rows)})"
        axes.text(-(LABEL + CONDITION - EDGE) / CELL, y + 0.9, heading, va="center", fontsize=7, fontweight="bold")
        y += HEADING
        for row in rows:
            height = _height(row)
            beside: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": DETAIL}
            axes.text(-(CONDITION + EDGE) / CELL, y + height / 2, _name(row), linespacing=1.0, **beside)
            # The headline's name says its form itself.
            condition = "" if row["headline"] else CONDITIONS[row["condition"]]
            axes.text(-EDGE / CELL, y + height / 2, condition, color=GREY, **beside)
            for place, family in enumerate(families):
                found = row["families"].get(family)
                for column, key in enumerate(COLUMNS):
                    _cell(axes, _left(place) + column, y, height, key, None if found is None else found[key])
            y += height


def _cell(axes: Axes, x: float, y: float, height: float, key: str, found: Any) -> None:
    value, words = _value(key, found)
    shade = "white" if value is None else SHADES(_goodness(key, value))
    axes.add_patch(Rectangle((x, y), 1, height, facecolor=shade, edgecolor=GREY, linewidth=0.3, clip_on=False))
    axes.text(x + 0.5, y + height / 2, words, ha="center", va="center_baseline", fontsize=SMALL, color=BLACK)


def _value(key: str, found: Any) -> tuple[float | None, str]:
    """The number that a cell is shaded by, and how it is printed."""
    if key in ("power", "false_positives"):
        return (found["k"] / found["n"], f"{found['k']}/{found['n']}") if found and found["n"] else (None, "—")
    numbers = found if isinstance(found, list) else [found]
    if not numbers or None in numbers:
        return None, "—"
    # Adding 0 turns -0.00 into 0.00.
    return min(numbers), f"{round(min(numbers), 2) + 0.0:.2f}".replace("-", "−")


def _goodness(key: str, value: float) -> float:
    worst = WORST[key]
    best = 0.0 if key == "false_positives" else 1.0
    return min(1.0, max(0.0, (value - worst) / (best - worst)))


def _name(row: Mapping[str, Any]) -> str:
    return "\n".join(textwrap.wrap(row["label"], LABEL_CHARACTERS, max_lines=LABEL_LINES, placeholder=" …"))


def _height(row: Mapping[str, Any]) -> float:
    """Lines that a row takes."""
    return 1.0 + SECOND_LINE * _name(row).count("\n")
