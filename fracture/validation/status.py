"""What a validation asks of a quantity, and the status that follows: calibrated, diagnostic or descriptive."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis import statistics
from fracture.validity import CALIBRATED, DESCRIPTIVE, DIAGNOSTIC

CRITERIA: dict[str, Any] = {
    "attached_at_most": 0.05,
    "detached_from": 0.2,
    "spearman_from": 0.95,
    "auroc_from": 0.95,
    "slope": [0.8, 1.2],
    "intercept_within": 0.1,
    "largest_error": 0.15,
    "false_positives_at_most": 0.05,
    "power_from": 0.9,
    "reader_correlation_within": 0.1,
    "profile_error_within": 0.1,
}
"""What a status and the acceptance ask for; the first two are realised doses."""
NOT_MEASURED = "not measured"
Counts = Mapping[str, Any]
"""`{k, n, low, high}`: a count, and the exact 95% interval of the share."""


def counts(k: int, n: int) -> dict[str, Any]:
    """A count with the exact 95% interval of its share (Clopper-Pearson); without one thing counted, no interval."""
    share = statistics.clopper_pearson(k, n)
    low, high = (None if math.isnan(end) else end for end in (share.low, share.high))
    return {"k": k, "n": n, "low": low, "high": high}


def judged(families: Mapping[str, Mapping[str, Any]], nulls: Sequence[Counts]) -> tuple[str, list[str]]:
    """A quantity's status, and why it is no better, in words."""
    with_data = {name: found for name, found in families.items() if found["points"]}
    if not with_data:
        return DESCRIPTIVE, [NOT_MEASURED]
    failed, off = [], []
    for name, found in with_data.items():
        failed += [f"{words} in {name}" for words in _failures(found)]
        off += [f"{words} in {name}" for words in _miscalibrated(found)]
    failed += [f"{shown(null)} null pairs called detached" for null in nulls if too_many(null)]
    if failed:
        return DESCRIPTIVE, failed
    return (DIAGNOSTIC, off) if off else (CALIBRATED, [])


def _failures(found: Mapping[str, Any]) -> list[str]:
    words = []
    if found["auroc"] is None:
        words.append("no AUROC: no attached or no detached pair with a number")
    elif found["auroc"] < CRITERIA["auroc_from"]:
        words.append(f"AUROC {found['auroc']:.2f}")
    if not found["spearman"] or None in found["spearman"]:
        words.append("no rank correlation with the dose: too few doses with a number, or no change at all")
    lowest = min((value for value in found["spearman"] if value is not None), default=1.0)
    if lowest < CRITERIA["spearman_from"]:
        words.append(f"Spearman {lowest:.2f}")
    if too_many(found["false_positives"]):
        words.append(f"{shown(found['false_positives'])} attached pairs called detached")
    return words


def _miscalibrated(found: Mapping[str, Any]) -> list[str]:
    slope, intercept, error = (found[name] for name in ("slope", "intercept", "largest_error"))
    if slope is None:
        return ["no slope: too few doses with a number"]
    words = []
    if not CRITERIA["slope"][0] <= slope <= CRITERIA["slope"][1]:
        words.append(f"slope {slope:.2f}")
    if abs(intercept) > CRITERIA["intercept_within"]:
        words.append(f"intercept {intercept:.2f}")
    if error > CRITERIA["largest_error"]:
        words.append(f"largest error {error:.2f}")
    return words


def too_many(found: Counts) -> bool:
    """Whether more were called detached than may be."""
    return bool(found["k"] > CRITERIA["false_positives_at_most"] * found["n"])


def shown(found: Counts) -> str:
    """A count in words."""
    return f"{found['k']} of {found['n']}"
