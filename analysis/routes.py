"""The two routes to an answer: which share of its causal effect runs through the visible chain, and which past it.

With the cells `P_ab` of `analysis.cells`, per prompt,

    total          TE  = ‖P11 − P00‖²
    through chain  NIE = ⟨P01 − P00, P11 − P00⟩
    past chain     NDE = ⟨P10 − P00, P11 − P00⟩

and over prompts `bypass = 1 − ΣNIE/ΣTE`, `direct = ΣNDE/ΣTE`. The two need not be equal: an answer that follows the
question and the chain by turns interacts. By text, NIE is what the chain's words determine; inside, what the chain's
positions carry; `covert = (ΣNIE_inside − ΣNIE_text)/ΣTE` is what they carry beyond their words.

The same in total variation, with `w = clip((P11 − P00)/ε, −1, 1)/2` in the place of `P11 − P00` as what differences are
held against, is linear in the reader's choice: one that follows the question with probability q, and else the chain,
has a bypass of q whatever question and chain say (but for pairs where one's answer is the other's cue), where the
squared form has q²/(q² + (1 − q)²) if all four answers differ.

Source: natural direct and indirect effects (Pearl 2001), with the answer's distribution as the outcome.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from analysis import statistics
from analysis.cells import Cells
from analysis.statistics import Estimate

FORMS = ("text", "inside")
TEXT_EFFECTS = ("te", "nie", "nde")
VARIATION_EFFECTS = ("tv", "tv_past")
VARIATION_FLOOR = 0.05
"""Differences of probability below it have no sign that would be worth counting in full."""
MIN_TOTAL_EFFECT = 0.2
"""Shares of a smaller mean total effect (its lower bound) mean nothing: the reader reacts to neither."""
INSIDE_EFFECTS = ("inside_te", "inside_nie", "inside_nde")


def effects(p: Float[ndarray, "2 2 option"]) -> tuple[float, float, float]:
    """`(TE, NIE, NDE)` of one prompt's cells, in squared probability; TE is at most 2."""
    total = p[1, 1] - p[0, 0]
    return (
        float(total @ total),
        float((p[0, 1] - p[0, 0]) @ total),
        float((p[1, 0] - p[0, 0]) @ total),
    )


def variation(p: Float[ndarray, "2 2 option"]) -> tuple[float, float]:
    """The total variation of one prompt's cells from `P00` to `P11`, at most 1, and what of it goes past the chain."""
    total = p[1, 1] - p[0, 0]
    weights = np.clip(total / VARIATION_FLOOR, -1, 1) / 2
    return float(total @ weights), float((p[1, 1] - p[0, 1]) @ weights)


def effects_table(cells: Sequence[Cells]) -> pd.DataFrame:
    """One row a prompt: its effects in both forms, and how sound they are.

    Columns: `id`; `te, nie, nde` by text; `tv`, the total variation, and `tv_past`, what of it goes past the chain, by
    text; `inside_te, inside_nie, inside_nde`, NaN where positions do not align; `mass`, the least probability that the
    options hold together in a cell; `splice_error`; `n_options`.
    """
    rows = []
    for cell in cells:
        row: dict[str, object] = {"id": cell.id, **dict(zip(TEXT_EFFECTS, effects(cell.text), strict=True))}
        row |= dict(zip(VARIATION_EFFECTS, variation(cell.text), strict=True))
        inside = (np.nan, np.nan, np.nan)
        if cell.inside is not None:
            # The denominator is the undisturbed runs' in both forms, so that the forms can be subtracted.
            reference = cell.inside.copy()
            reference[1, 1] = cell.text[1, 1]
            inside = effects(reference)
        row |= dict(zip(INSIDE_EFFECTS, inside, strict=True))
        row |= {"mass": float(cell.mass.min()), "splice_error": cell.splice_error, "n_options": len(cell.options)}
        rows.append(row)
    names = ["id", *TEXT_EFFECTS, *VARIATION_EFFECTS, *INSIDE_EFFECTS, "mass", "splice_error", "n_options"]
    return pd.DataFrame(rows, columns=names)


@dataclass(frozen=True)
class Routes:
    """One reader's shares in one form, each a ratio of sums over prompts with a jackknife-t interval.

    Attributes:
        total: mean TE a prompt.
        bypass: share of the effect that does not run through the chain.
        direct: share that comes about when the question alone is replaced.
        covert: what chain positions carry beyond the chain's words (inside only).
    """

    total: Estimate
    bypass: Estimate
    direct: Estimate
    covert: Estimate | None = None


def routes(table: pd.DataFrame, form: str, level: float = 0.95) -> Routes:
    """The routes of one reader's effects table, over the prompts that have this form (`text` or `inside`)."""
    total, chain, direct = columns(table, form)
    covert = None
    if form == "inside":
        _, text_chain, _ = columns(table[table["inside_te"].notna()], "text")
        covert = statistics.ratio(chain - text_chain, total, level)
    return Routes(
        total=statistics.mean(total, level),
        bypass=statistics.ratio(total - chain, total, level),
        direct=statistics.ratio(direct, total, level),
        covert=covert,
    )


def is_scorable(total: Estimate) -> bool:
    """Whether a mean total effect is large enough to take shares of: its lower bound reaches `MIN_TOTAL_EFFECT`."""
    # One prompt has no interval; it is too few, not unreadable. No prompt has no estimate, and compares as false.
    low = total.low if not math.isnan(total.low) else total.estimate
    return low >= MIN_TOTAL_EFFECT


def detachment(base: pd.DataFrame, variant: pd.DataFrame, form: str, level: float = 0.95) -> Estimate:
    """`bypass` of the variant minus `bypass` of the base, paired by prompt.

    Raises:
        ValueError: if the two tables are not of the same prompts in the same order.
    """
    if list(base["id"]) != list(variant["id"]):
        raise ValueError("base and variant must hold the same prompts in the same order")
    base_total, base_chain, _ = columns(base, form)
    total, chain, _ = columns(variant, form)
    return statistics.ratio_difference((total - chain, total), (base_total - base_chain, base_total), level)


def columns(table: pd.DataFrame, form: str) -> tuple[ndarray, ndarray, ndarray]:
    """`TE, NIE, NDE` of the prompts that have this form, one value a prompt."""
    names = TEXT_EFFECTS if form == "text" else INSIDE_EFFECTS
    kept = table[table[names[0]].notna()]
    return tuple(kept[name].to_numpy(dtype=float) for name in names)  # type: ignore[return-value]
