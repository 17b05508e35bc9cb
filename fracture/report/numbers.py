"""Numbers as the report prints them: two or three digits that mean something, one minus sign, no minus zero."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from analysis.statistics import MIN_PROMPTS

MISSING = "—"
MINUS = "−"
_HUNDREDTHS = ("share", "probability", "squared probability")
"""Units on a scale of order one, which get two decimals whatever their size."""


def number(value: float | None, unit: str = "share") -> str:
    """The number in the digits of its unit; a dash if there is none."""
    return MISSING if value is None else _fixed(value, _decimals([value], unit))


def interval(estimate: Mapping[str, Any], unit: str = "share", signed: bool = False) -> str:
    """`0.49 [0.48, 0.50]`, all three with the same decimals; the number alone if it has no interval."""
    limits = limits_of(estimate, unit)
    return f"{centre_of(estimate, unit, signed)} {limits}".rstrip()


def centre_of(estimate: Mapping[str, Any], unit: str = "share", signed: bool = False) -> str:
    """The number of an estimate, with as many decimals as its interval has."""
    value = estimate["estimate"]
    return MISSING if value is None else _fixed(value, _decimals(_known(estimate), unit), signed)


def limits_of(estimate: Mapping[str, Any], unit: str = "share") -> str:
    """`[0.48, 0.50]`; empty if there is no interval. A limit that these prompts do not set is infinite."""
    low, high = estimate["low"], estimate["high"]
    if estimate["estimate"] is None or (low is None and high is None):
        return ""
    decimals = _decimals(_known(estimate), unit)
    shown_low = f"{MINUS}∞" if low is None else _fixed(low, decimals)
    shown_high = "∞" if high is None else _fixed(high, decimals)
    return f"[{shown_low}, {shown_high}]"


def p_value(p: float | None, name: str = "p") -> str:
    """`p < 0.001`, `p = 0.013`; empty if there is none."""
    if p is None or math.isnan(p):
        return ""
    if p < 0.001:
        return f"{name} < 0.001"
    return f"{name} = {p:.3f}" if p < 0.1 else f"{name} = {p:.2f}"


def percent(share: float | None) -> str:
    """`84%`; a dash if there is none."""
    return MISSING if share is None else f"{100 * share:.0f}%"


def tiny(value: float | None) -> str:
    """A number of any size, by its order of magnitude: `2e−9`."""
    if not value:
        return MISSING if value is None else "0"
    return f"{value:.0e}".replace("e-0", "e-").replace("-", MINUS)


def typographic(text: str) -> str:
    """A sentence of the summary with the report's signs: its minus, and no plus before a limit or before 0."""
    text = re.sub(r"(?<![\w.])-(?=\d)", MINUS, text)
    return re.sub(r"(?<=[\[ ])\+(?=[\d.]+[,\]])|\+(?=0\.0+\b)", "", text)


def too_small(estimate: Mapping[str, Any]) -> bool:
    """Whether to say "n too small"."""
    return int(estimate["n"]) < MIN_PROMPTS


def _known(estimate: Mapping[str, Any]) -> list[float]:
    return [estimate[key] for key in ("estimate", "low", "high") if estimate[key] is not None]


def _decimals(values: list[float], unit: str) -> int:
    if unit in _HUNDREDTHS:
        return 2
    largest = max(map(abs, values))
    if largest >= 100:
        return 0 if largest >= 1000 else 1
    return 3 if 0.0005 <= largest < 0.05 else 2


def _fixed(value: float, decimals: int, signed: bool = False) -> str:
    # Adding 0 turns -0.00 into 0.00.
    rounded = round(value, decimals) + 0.0
    sign = MINUS if rounded < 0 else ("+" if signed and rounded > 0 else "")
    return f"{sign}{abs(rounded):.{decimals}f}"
