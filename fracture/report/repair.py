"""Tables of cross-model patching: what every edit does at every layer, of which the quantities name one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from analysis.measures.repair import MIN_GAP
from analysis.models import BASE
from analysis.routes import MIN_TOTAL_EFFECT
from analysis.runs import Run
from figures.marks import hidden
from fracture.report.numbers import MISSING, centre_of, limits_of, number, too_small
from fracture.report.tables import TOO_SMALL, Cell, Group, Row, Table
from fracture.verdict import NOT_SCORABLE

CONDITIONS = {
    "unedited": "nothing written",
    "base_itself": "the base, nothing written",
    "base": "the base's states",
    "affine": "the base's states, mapped",
    "mean_difference": "mean difference to the base added",
    "random": "random, as long (control)",
    "other_prompt": "another prompt's (control)",
    "length": "steered to shorter chains (placebo)",
    "reverse": "the variant's states in the base",
}
"""What is written, in the order of the rows."""
_NO_LAYER = -1


def repair_tables(run: Run) -> Iterator[Table]:
    """Bypass and the share repaired, and what the edits leave of the effect and of the base's answers."""
    found = {}
    for name in run.variants:
        details = run.summary["measures"]["repair"]["readers"].get(name, {}).get(run.headline, {}).get("details")
        if details:
            found[name] = details
    layers = sorted({layer for details in found.values() for layer in details["layers"]})
    columns = ["no layer", *(f"after layer {layer}" for layer in layers)]

    def groups(cell_of: Callable[[Mapping[str, Any]], Cell], noise: Cell) -> list[Group]:
        made = []
        for name, details in found.items():
            unreadable = hidden(run, name) or hidden(run, BASE)
            cells = {(cell["condition"], cell["layer"]): cell for cell in details["cells"]}
            rows = [
                Row(
                    words,
                    [
                        (noise if unreadable else cell_of(cells[condition, layer]))
                        if (condition, layer) in cells
                        else Cell("")
                        for layer in (_NO_LAYER, *layers)
                    ],
                )
                for condition, words in CONDITIONS.items()
                if any(condition == of for of, _ in cells)
            ]
            made.append(Group(name, rows))
        return made

    yield Table(
        "Bypass with states written into the chain, at every layer",
        "Bypass by text of the edited model's own four cells; with the share that is repaired of what the variant has "
        f"more than the base, where that is surely above {MIN_GAP:g}. A share is not scorable where the total effect's "
        f"lower bound is below {MIN_TOTAL_EFFECT:g}. No layer was picked. 95% intervals in brackets.",
        columns,
        groups(_bypass, Cell(NOT_SCORABLE, kind="words")),
        corner="written into the chain",
    )
    yield Table(
        "What these edits leave",
        "The probability that the edited model's answers share with the base's, on average over the four texts: where "
        "the chain is followed again and this stays small, the answers are others than the base's. Below it the mean "
        "total effect (at most 2), and how large the change is relative to the states.",
        columns,
        groups(_rest, Cell(MISSING)),
        corner="written into the chain",
    )


def _bypass(cell: Mapping[str, Any]) -> Cell:
    bypass, repaired = cell["bypass"], cell["repaired"]
    if bypass is None or bypass["estimate"] is None:
        return Cell(NOT_SCORABLE, kind="words")
    share = ""
    if repaired is not None and repaired["estimate"] is not None:
        share = f"repaired {centre_of(repaired)} {limits_of(repaired)}".replace(" ", "\N{NO-BREAK SPACE}")
    return Cell(centre_of(bypass), limits_of(bypass), share, TOO_SMALL if too_small(bypass) else "")


def _rest(cell: Mapping[str, Any]) -> Cell:
    change = "" if cell["layer"] == _NO_LAYER else f", change {number(cell['size'])}"
    return Cell(number(cell["agreement"]), change=f"effect {centre_of(cell['total'])}{change}")
