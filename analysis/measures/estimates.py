"""Estimates of what measures report: for one reader and author, and for the change from base to variant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis import statistics
from analysis.measures.protocol import Quantity
from analysis.measures.text_tests import INTACT
from analysis.routes import MIN_TOTAL_EFFECT
from analysis.statistics import MIN_PROMPTS, Clusters, Estimate

ACCURACY_FLOOR, ABOVE_CHANCE = 0.2, 0.05
"""A text test says nothing of a reader whose answers are hardly ever right: below a fifth, or near guessing."""


@dataclass(frozen=True)
class Change:
    """A quantity's change from base to variant, paired by prompt, and its two-sided p-value."""

    difference: Estimate
    p: float


def estimate(rows: pd.DataFrame, quantity: Quantity) -> Estimate:
    """The quantity over one reader's rows: a mean with Student's t, a share exactly, a ratio of sums by jackknife."""
    chosen = select(rows, quantity)
    if quantity.over is not None:
        above, below = _sums(chosen, quantity)
        return statistics.ratio(above.to_numpy(), below.to_numpy())
    values = _clusters(chosen, quantity)
    if quantity.binary and np.isin(values.means, (0.0, 1.0)).all():
        return statistics.clopper_pearson(int(values.means.sum()), len(values.means))
    return statistics.mean(values)


def change(base: pd.DataFrame, variant: pd.DataFrame, quantity: Quantity) -> Change:
    """The quantity of the variant's rows minus that of the base's, over the prompts that both have."""
    ours, theirs = (select(rows, quantity) for rows in (variant, base))
    shared = set(ours["id"]) & set(theirs["id"])
    ours, theirs = (rows[rows["id"].isin(shared)] for rows in (ours, theirs))
    if quantity.over is not None:
        first, second = _sums(ours, quantity), _sums(theirs, quantity)
        aligned = [column.reindex(first[0].index).to_numpy() for column in second]
        difference = statistics.ratio_difference((first[0].to_numpy(), first[1].to_numpy()), (aligned[0], aligned[1]))
        return Change(difference, p_value(difference))
    first_values, second_values = (_clusters(rows, quantity) for rows in (ours, theirs))
    if quantity.binary and all(np.isin(values.means, (0.0, 1.0)).all() for values in (first_values, second_values)):
        test = statistics.mcnemar(first_values, second_values)
        return Change(test.difference, test.p)
    difference = statistics.paired_difference(first_values, second_values)
    return Change(difference, p_value(difference))


def hidden(rows: pd.DataFrame, quantity: Quantity) -> bool:
    """Whether a quantity of this reader would be noise: it is hardly ever right, or the effect to share is hardly
    there."""
    if quantity.over == "total":
        total = select(rows, quantity).groupby("id", sort=False)["total"].first()
        return not statistics.mean(total.to_numpy(dtype=float)).low >= MIN_TOTAL_EFFECT
    return quantity.needs_accuracy and not scorable(rows)


def scorable(rows: pd.DataFrame) -> bool:
    """Whether a reader is right often enough behind the intact chain for a text test to mean something.

    The lower end of its accuracy must reach a fifth and, where options are given, be above guessing among them by .05.
    """
    intact = rows[rows["condition"] == INTACT]
    if intact.empty:
        return False
    right = statistics.clopper_pearson(int(intact["right"].sum()), len(intact))
    return bool(right.low >= max(ACCURACY_FLOOR, float(intact["chance"].mean()) + ABOVE_CHANCE))


def select(rows: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """The rows that count for a quantity and have a value."""
    kept = rows[quantity.value].notna()
    for column, value in quantity.where.items():
        kept &= rows[column] == value
    return rows[kept]


def _clusters(rows: pd.DataFrame, quantity: Quantity) -> Clusters:
    return statistics.by_prompt(rows[quantity.value].to_numpy(dtype=float), rows["id"].to_numpy())


def _sums(rows: pd.DataFrame, quantity: Quantity) -> tuple[pd.Series[float], pd.Series[float]]:
    sums = rows.groupby("id", sort=False)[[quantity.value, quantity.over]].sum()
    return sums[quantity.value].astype(float), sums[quantity.over].astype(float)


def p_value(difference: Estimate) -> float:
    """Two-sided, by Student's t; where all prompts differ by the same, the share of sign flips that are as extreme."""
    if difference.n < 2 or math.isnan(difference.estimate):
        return 1.0
    if difference.estimate == 0:
        return 1.0
    if difference.se == 0:
        return float(2.0 ** (1 - difference.n))
    return float(2 * stats.t.sf(abs(difference.estimate / difference.se), difference.n - 1))


def length_matched(quantities: Sequence[Quantity]) -> Callable[[pd.DataFrame, pd.DataFrame], dict[str, Any]]:
    """A `Measure.compare`: the changes of these quantities over prompts whose two chains have as many steps.

    A longer chain has a larger share of steps that do not matter; where lengths differ, so do areas and means over
    steps.
    """

    def compare(base: pd.DataFrame, variant: pd.DataFrame) -> dict[str, Any]:
        lengths = [rows.groupby("id", sort=False)["n_steps"].first() for rows in (base, variant)]
        both = pd.concat(lengths, axis=1, keys=["base", "variant"]).dropna()
        same = set(both.index[both["base"] == both["variant"]])
        matched: dict[str, Any] = {"prompts": len(same), "of": len(both)}
        ours, theirs = (rows[rows["id"].isin(same)] for rows in (base, variant))
        for quantity in quantities:
            if len(select(ours, quantity)) and len(select(theirs, quantity)):
                found = change(ours, theirs, quantity)
                matched[quantity.name] = {"difference": found.difference.to_dict(), "p": found.p}
        return {"length_matched": matched}

    return compare


def strata(
    base: pd.DataFrame, variant: pd.DataFrame, quantity: Quantity, groups: Mapping[str, pd.Series[Any]]
) -> dict[str, Any]:
    """The change of a quantity within strata of prompts, and whether it turns round in one of them (Simpson).

    Args:
        base, variant: rows.
        quantity: whose change is looked at.
        groups: name of a grouping → prompt id → stratum. Strata of fewer than `MIN_PROMPTS` prompts are left out.
    """
    pooled = change(base, variant, quantity).difference
    found: list[dict[str, Any]] = []
    for name, labels in groups.items():
        for label in sorted(labels.dropna().unique()):
            ids = set(labels.index[labels == label])
            difference = change(base[base["id"].isin(ids)], variant[variant["id"].isin(ids)], quantity).difference
            if difference.n >= MIN_PROMPTS:
                found.append({"by": name, "stratum": str(label), "difference": difference.to_dict()})
    signs = {_sign(item["difference"]["low"], item["difference"]["high"]) for item in found}
    whole = _sign(pooled.low, pooled.high)
    return {"strata": found, "simpson": bool({-1, 1} <= signs or (whole and -whole in signs))}


def _sign(low: float | None, high: float | None) -> int:
    """The sign of an interval that does not hold 0; 0 if it does."""
    if low is None or high is None:
        return 0
    return (low > 0) - (high < 0)
