"""Tables beside the residual map: what other ways of intervening say, and which heads carry the answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from analysis.measures.head_map import MISSED
from analysis.measures.interventions import ACTS, METHODS
from analysis.runs import Run
from figures.marks import hidden
from fracture.report.numbers import MISSING, centre_of, limits_of, number, too_small
from fracture.report.tables import TOO_SMALL, Cell, Group, Row, Table
from fracture.verdict import NOT_SCORABLE

PARTS = ("chain", "question")
SITES = {"resid_post": "stream", "attn_out": "attention output", "mlp_out": "MLP output"}
NOT_ROBUST = "not robust"
LARGEST = 8
"""So many of a model's cells are listed."""
ESTIMATES = ("plain", "integrated")


def intervention_tables(run: Run) -> Iterator[Table]:
    """The shares of chain and of question by every method, for every model, site and layer."""
    for part in PARTS:
        groups = []
        for name in run.readers:
            found = [share for share in _found(run, "interventions", name).get("shares", ()) if share["part"] == part]
            rows = [
                Row(f"{SITES[share['site']]}, layer {share['layer']}", _shares(share, hidden(run, name)))
                for share in found
            ]
            if rows:
                groups.append(Group(name, rows))
        yield Table(
            f"Four ways of intervening on the {part}",
            "Noising: the partner's activations in the own run, as a share of the total effect; denoising: the own "
            "ones in the partner's run, and what is lost of its effect; mean and zero ablation: what is lost of the "
            "own answer's probability. An ablation may act where the others do not, as it takes away what prompt and "
            f"partner have in common. {NOT_ROBUST.capitalize()}: of noising and denoising one acts (above "
            f"{ACTS:g} in size) and the other does not, or their signs differ, or the mean ablation does nothing where "
            "noising acts; then no number is given. That is so as well where chain and question each lead to the same "
            "answer, so that ablating one of them changes nothing. 95% intervals in brackets.",
            METHODS,
            groups,
            corner="written at",
        )


def agreement(run: Run, name: str) -> str:
    """In words, whether the other interventions say what the residual map does at its first layer."""
    found = [share for share in _found(run, "interventions", name).get("shares", ()) if share["site"] == "resid_post"]
    if hidden(run, name) or not found:
        return NOT_SCORABLE if found else MISSING
    first = min(share["layer"] for share in found)
    odd = [share["part"] for share in found if share["layer"] == first and not share["robust"]]
    return f"{NOT_ROBUST}: {', '.join(odd)}" if odd else "agree"


def head_tables(run: Run) -> Iterator[Table]:
    """The cells with the largest exact shares, and what the screen that chose them is worth."""
    found = {name: details for name in run.readers if (details := _found(run, "head_map", name))}
    yield Table(
        "The heads that carry most",
        f"At most {LARGEST} of the cells that were patched exactly, by the size of their share: of the change of the "
        "logit difference between the two answers, what comes about when this head's output is the partner's at these "
        "tokens. Beside it what the gradients had estimated. Shares of heads need not sum to 1. 95% intervals in "
        "brackets.",
        ["exact share", "plain estimate", "integrated estimate", "patched as"],
        [
            Group(name, [Row(_where(cell), _cell(cell, hidden(run, name))) for cell in details["cells"][:LARGEST]])
            for name, details in found.items()
        ],
        corner="head",
    )
    yield Table(
        "What the screen of the heads is worth",
        "All cells are estimated from gradients, which bounds nothing: the highest ranked were patched exactly, and so "
        f"was a random sample of the rest. Missed is a sampled cell with a share of at least {MISSED:g} in size; at "
        "most so many of all cells that were ranked low have one, at 95%. Errors are the largest, over all "
        "patched cells, of plain and integrated estimates; the rank correlations are theirs with the exact shares.",
        [
            *("prompts", "cells", "patched as top", "sampled", "missed", "missed at most", "largest share sampled"),
            *(f"{what}, {which}" for what in ("largest error", "rank correlation") for which in ESTIMATES),
        ],
        [Group("", [Row(name, _screen(details, hidden(run, name))) for name, details in found.items()])],
    )


def _found(run: Run, measure: str, name: str) -> Mapping[str, Any]:
    """A measure's further results for one model; nothing where there are none."""
    if measure not in run.measures:
        return {}
    reader = run.summary["measures"][measure]["readers"].get(name, {}).get(run.headline, {})
    details: Mapping[str, Any] = reader.get("details", {})
    return details


def _shares(found: Mapping[str, Any], noise: bool) -> list[Cell]:
    """A cell for each method; words in all of them where no number is to be given."""
    if noise or not found["robust"]:
        return [Cell(NOT_SCORABLE if noise else NOT_ROBUST, kind="words")] * len(METHODS)
    return [_estimate(found["shares"][method]) for method in METHODS]


def _estimate(found: Mapping[str, Any]) -> Cell:
    if found["estimate"] is None:
        return Cell(MISSING)
    return Cell(centre_of(found), limits_of(found), flag=TOO_SMALL if too_small(found) else "")


def _where(cell: Mapping[str, Any]) -> str:
    part = f"step {cell['step']}" if cell["step"] else cell["part"]
    return f"layer {cell['layer']}, head {cell['head']}, {part}"


def _cell(cell: Mapping[str, Any], noise: bool) -> list[Cell]:
    if noise:
        return [Cell(NOT_SCORABLE, kind="words"), *[Cell(MISSING)] * 3]
    estimates = [Cell(number(cell[which])) for which in ESTIMATES]
    return [_estimate(cell["share"]), *estimates, Cell(cell["chosen"], kind="words")]


def _screen(details: Mapping[str, Any], noise: bool) -> list[Cell]:
    screen = details["screen"]
    counts = [details["prompts"], *(screen[key] for key in ("cells", "confirmed", "sampled"))]
    if noise:
        return [*(Cell(str(count)) for count in counts), Cell(NOT_SCORABLE, kind="words"), *[Cell(MISSING)] * 6]
    values = [screen[what][which] for what in ("error", "correlation") for which in ESTIMATES]
    return [
        *(Cell(str(count)) for count in (*counts, screen["missed"])),
        # Rounded up: a bound must not be printed as less than it is.
        Cell(f"{math.ceil(1000 * screen['bound']) / 10:.1f}%"),
        *(Cell(number(value)) for value in (screen["largest"], *values)),
    ]
