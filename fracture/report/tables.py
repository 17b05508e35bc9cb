"""The tables of a report: what every measure found for every model, on whose chains, ready to be printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.authored import GOLD
from analysis.measures.protocol import Measure, Quantity
from analysis.models import BASE
from analysis.runs import Run
from figures.marks import hidden
from fracture.report.numbers import MISSING, centre_of, interval, limits_of, p_value, too_small
from fracture.verdict import NOT_SCORABLE

TOO_SMALL = "n too small"
CHAINS = {
    "given": "On the {whose} chains",
    "own": "Each on its own chains",
    "base": "On the base's chains",
    "text": "The model's chains, read by the base",
}
"""Whose chains the rows of a group are about."""


@dataclass(frozen=True)
class Cell:
    """What stands in a cell: a number or words, its interval, its change from the base, a flag, and how it is set."""

    main: str
    interval: str = ""
    change: str = ""
    flag: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """A row: its head, and a cell for each column."""

    head: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Group:
    """Rows under a common heading, which may be empty."""

    head: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """A table: what it shows, how to read it, the head of its first column, those of the others, and its rows."""

    title: str
    note: str
    columns: Sequence[str]
    groups: Sequence[Group]
    corner: str = "model"


def measure_table(run: Run, measure: Measure) -> Table:
    """The quantities of a measure for every model, by whose chains were read, with what changed from the base."""
    found = run.summary["measures"][measure.name]
    # What no model has, as an order of options where none are listed, has no column.
    asked = [
        quantity
        for quantity in measure.quantities
        if any(quantity.name in numbers for authors in found["readers"].values() for numbers in authors.values())
    ]
    groups = []
    for kind, (reader_of, author_of) in chains(run).items():
        rows = []
        for name in run.readers:
            numbers = found["readers"].get(reader_of(name), {}).get(author_of(name))
            if numbers:
                changes = found["changes"].get(name, {}).get(kind, {})
                rows.append(_row(name, asked, numbers, changes, hidden(run, reader_of(name))))
        # A row of the base alone repeats another group's.
        if len(rows) > (kind in ("base", "text")):
            groups.append(Group(CHAINS[kind].format(whose=whose(run)), rows))
    note = "95% intervals in brackets"
    if any(cell.change for group in groups for row in group.rows for cell in row.cells):
        note += "; Δ is variant minus base over the prompts that both have, with its two-sided p"
    title = f"Quantities of {measure.name.replace('_', ' ')}"
    return Table(title, f"{note}.", ["n", *(heading(measure.name, q) for q in asked)], groups)


def whose(run: Run) -> str:
    """Whose chains all models read: `gold`, or `base's`."""
    return run.headline if run.headline == GOLD else f"{run.headline}'s"


def heading(measure: str, quantity: Quantity) -> str:
    """A quantity as the head of a column of its own measure's table."""
    label = quantity.label.removeprefix(f"{measure.replace('_', ' ')}: ")
    return f"{label} ({quantity.unit})"


def cell_of(found: Any, quantity: Quantity, noise: bool, changed: Any = None) -> Cell:
    """A quantity of one model: an estimate, with its change from the base; or why there is none.

    Args:
        found: an estimate of the summary, the words in its place, or None.
        quantity: whose it is.
        noise: whether the model is not scorable: then shares of its total effect mean nothing.
        changed: `{difference, p}`, the words in its place, or None.
    """
    if noise and is_share_of_effect(quantity) and found is not None:
        found = NOT_SCORABLE
    if isinstance(found, str):
        return Cell(found, kind="words")
    if found is None or found["estimate"] is None:
        return Cell(MISSING)
    return Cell(centre_of(found, quantity.unit), limits_of(found, quantity.unit), change_of(changed, quantity.unit))


def change_of(changed: Any, unit: str) -> str:
    """`Δ +0.48 [0.19, 0.78], p = 0.002`; empty if there is no change to speak of. A line breaks before p alone."""
    if isinstance(changed, str):
        return f"Δ {changed}"
    if changed is None or changed["difference"]["estimate"] is None:
        return ""
    parts = [f"Δ {interval(changed['difference'], unit, signed=True)}", p_value(changed["p"])]
    return ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts if part)


def is_share_of_effect(quantity: Quantity) -> bool:
    """Whether a quantity is a share of the total effect, which is noise where that is hardly above 0."""
    return quantity.over == "total"


def chains(run: Run) -> dict[str, tuple[Callable[[str], str], Callable[[str], str]]]:
    """Kind of chains, as in `CHAINS` → which model reads, and which author wrote, in the row of a model."""

    def itself(name: str) -> str:
        return name

    def base(name: str) -> str:
        return BASE

    kinds = {"given": (itself, lambda name: run.headline), "own": (itself, itself)}
    if run.headline != BASE:
        kinds["base"] = (itself, base)
    return {**kinds, "text": (base, itself)}


def _row(
    name: str, asked: Sequence[Quantity], numbers: Mapping[str, Any], changes: Mapping[str, Any], noise: bool
) -> Row:
    cells = [cell_of(numbers.get(q.name), q, noise, changes.get(q.name)) for q in asked]
    estimates = [found for q in asked if isinstance(found := numbers.get(q.name), Mapping) and found["n"]]
    counts = sorted({found["n"] for found in estimates})
    shown = f"{counts[0]}–{counts[-1]}" if len(counts) > 1 else str(counts[0]) if counts else MISSING
    flag = TOO_SMALL if any(too_small(found) for found in estimates) else ""
    return Row(name, [Cell(shown, flag=flag), *cells])
