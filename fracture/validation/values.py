"""What a quantity says of a base and a variant prompt by prompt: for nulls, which draw prompts, and diagnosticity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from analysis import statistics
from analysis.measures.estimates import Change, p_value, select
from analysis.measures.protocol import Quantity
from analysis.measures.routes import ANOTHER_PROMPT, WHOLE
from analysis.models import BASE
from analysis.routes import INSIDE_EFFECTS, TEXT_EFFECTS
from analysis.runs import Run
from fracture import catalogue
from fracture.evidence import CONDITIONS

Key = tuple[str, str, str]
"""Measure, quantity, condition."""
GIVEN = "given"
"""The condition in which all models read the same chains."""


@dataclass(frozen=True)
class Values:
    """One quantity of a base and a variant on the same prompts.

    Attributes:
        quantity: which.
        ids: the prompts.
        base, variant: one value a prompt; for a ratio of sums `[prompt, 2]`, numerator and denominator.
    """

    quantity: Quantity
    ids: tuple[str, ...]
    base: Float[ndarray, " prompt *part"]
    variant: Float[ndarray, " prompt *part"]

    def drawn(self, places: Int[ndarray, " draw"]) -> Values:
        """The prompts at these places, as often as they come."""
        ids = tuple(self.ids[place] for place in places)
        return replace(self, ids=ids, base=self.base[places], variant=self.variant[places])

    def exchanged(self, which: Bool[ndarray, " prompt"]) -> Values:
        """Base and variant exchanged on these prompts."""
        mask = which if self.base.ndim == 1 else which[:, None]
        return replace(
            self, base=np.where(mask, self.variant, self.base), variant=np.where(mask, self.base, self.variant)
        )

    @property
    def level(self) -> float:
        """The base's own value over all prompts; NaN without a prompt."""
        if not self.ids:
            return float("nan")
        if self.quantity.over is None:
            return float(self.base.mean())
        return statistics.ratio(self.base[:, 0], self.base[:, 1]).estimate

    def change(self) -> Change:
        """As `analysis.measures.estimates.change` of the rows that these values are of."""
        if self.quantity.over is not None:
            parts = [(side[:, 0], side[:, 1]) for side in (self.variant, self.base)]
            difference = statistics.ratio_difference(parts[0], parts[1])
            return Change(difference, p_value(difference))
        if self.quantity.binary and all(np.isin(side, (0.0, 1.0)).all() for side in (self.base, self.variant)):
            test = statistics.mcnemar(self.variant, self.base)
            return Change(test.difference, test.p)
        difference = statistics.paired_difference(self.variant, self.base)
        return Change(difference, p_value(difference))

    def by_prompt(self) -> dict[str, float]:
        """Prompt → variant minus base; prompts whose own ratio has no positive denominator are left out."""
        if self.quantity.over is None:
            return dict(zip(self.ids, (self.variant - self.base).tolist(), strict=True))
        there = (self.base[:, 1] > 0) & (self.variant[:, 1] > 0)
        ours, theirs = (side[there, 0] / side[there, 1] for side in (self.variant, self.base))
        return dict(zip(np.array(self.ids, dtype=object)[there].tolist(), (ours - theirs).tolist(), strict=True))


def read_values(
    base_run: Run, variant: str, variant_run: Run | None = None, only: Sequence[Key] | None = None
) -> dict[Key, Values]:
    """Every diagnostic quantity of a variant that has a number in the summary, prompt by prompt.

    Args:
        base_run: whose base is read.
        variant: the variant's name.
        variant_run: whose variant is read, if that is another study's of the same prompts.
        only: these alone; None for all.
    """
    variant_run = variant_run or base_run
    found: dict[Key, Values] = {}
    for name, keys in _by_measure(numbers(variant_run, variant), only):
        measure = catalogue.measure(name)
        tables = [run.table(name) for run in (base_run, variant_run)]
        quantities = {quantity.name: quantity for quantity in measure.quantities}
        for _, quantity, condition in keys:
            authors = (base_run.headline, variant_run.headline) if condition == GIVEN else (BASE, variant)
            rows = [
                table[(table["reader"] == reader) & (table["author"] == author)]
                for table, reader, author in zip(tables, (BASE, variant), authors, strict=True)
            ]
            values = paired(rows[0], rows[1], quantities[quantity])
            if values.ids:
                found[name, quantity, condition] = values
    return found


def bypass_values(run: Run, variant: str, form: str) -> Values:
    """Bypass in one form, prompt by prompt: what does not run through the chain, and the total effect."""
    table = run.table(catalogue.HEADLINE)
    total, chain, _ = TEXT_EFFECTS if form == "text" else INSIDE_EFFECTS
    counted = table[(table["chain"] == WHOLE) & (table["tier"] < ANOTHER_PROMPT) & table[total].notna()]
    counted = counted.assign(past=counted[total] - counted[chain])
    base, theirs = (counted[counted["reader"] == reader] for reader in (BASE, variant))
    return paired(base, theirs, Quantity("bypass", f"bypass, {form}", "share", "past", over=total, detached=1))


def numbers(run: Run, variant: str) -> list[Key]:
    """The diagnostic quantities of which the summary has a change for the variant, and not words in its place."""
    found = []
    for name, measure in run.summary["measures"].items():
        for condition, changes in measure["changes"].get(variant, {}).items():
            for quantity in catalogue.measure(name).quantities:
                if condition in CONDITIONS and quantity.detached and isinstance(changes.get(quantity.name), Mapping):
                    found.append((name, quantity.name, condition))
    return found


def paired(base: pd.DataFrame, variant: pd.DataFrame, quantity: Quantity) -> Values:
    """A quantity on the prompts that both tables have a value for, in the variant's order."""
    ours, theirs = (select(rows, quantity) for rows in (variant, base))
    shared = set(ours["id"]) & set(theirs["id"])
    groups = [rows[rows["id"].isin(shared)].groupby("id", sort=False) for rows in (ours, theirs)]
    # A share's parts are summed over a prompt's rows, all else is averaged, as in `analysis.measures.estimates`.
    over = quantity.over
    sides = [group[quantity.value].mean() if over is None else group[[quantity.value, over]].sum() for group in groups]
    ids = sides[0].index
    variant_values, base_values = (side.loc[ids].to_numpy(dtype=float) for side in sides)
    return Values(quantity, tuple(map(str, ids)), base_values, variant_values)


def diagnosticity(
    attached: Sequence[Mapping[str, float]], detached: Sequence[Mapping[str, float]]
) -> tuple[float, int] | None:
    """The share of (attached, detached, prompt) on which the detached model scores higher, ties ½, and their number.

    Args:
        attached, detached: prompt → score, of each pair of that kind; higher is more detached. A prompt counts where
            both have it.

    Source: Chan et al. 2022, A Comparative Study of Faithfulness Metrics for Model Interpretability Methods,
    arXiv 2204.05514: how often a metric prefers the more faithful of two; here the models that are known to be so.
    """
    won, compared = 0.0, 0
    for one in attached:
        for other in detached:
            shared = [prompt for prompt in one if prompt in other]
            left, right = (np.array([scores[prompt] for prompt in shared]) for scores in (one, other))
            won += float((right > left).sum() + 0.5 * (right == left).sum())
            compared += len(shared)
    return (won / compared, compared) if compared else None


def _by_measure(keys: Sequence[Key], only: Sequence[Key] | None) -> Iterator[tuple[str, list[Key]]]:
    kept = [key for key in keys if only is None or key in only]
    for name in dict.fromkeys(key[0] for key in kept):
        yield name, [key for key in kept if key[0] == name]
