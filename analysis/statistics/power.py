"""How many prompts a question needs: power of the equivalence test and of a lower bound, to plan and to advise."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import stats

from analysis.statistics.estimates import MIN_PROMPTS


def equivalence_power(sd: float, n: int, margin: float, level: float = 0.90) -> float:
    """Power of two one-sided tests to find a true difference of 0 within ±`margin`, at per-prompt deviation `sd`."""
    if n < 2:
        return 0.0
    if sd == 0:
        return 1.0
    se = sd / math.sqrt(n)
    reach = margin / se - stats.t.ppf(0.5 + level / 2, n - 1)
    return float(max(0.0, 2 * stats.norm.cdf(reach) - 1))


def prompts_for_equivalence(sd: float, margin: float, power: float = 0.8, level: float = 0.90) -> int:
    """The number of prompts at which a true difference of 0 is found within ±`margin` with this power."""
    return _smallest(lambda n: equivalence_power(sd, n, margin, level) >= power)


def prompts_for_lower_bound(
    estimate: float, sd: float, bound: float, power: float = 0.8, level: float = 0.95
) -> int | None:
    """The number of prompts at which the interval of a true `estimate` lies above `bound` with this power.

    None if the estimate is not above the bound: more prompts would not put it there.
    """
    if estimate <= bound:
        return None

    def enough(n: int) -> bool:
        if sd == 0:
            return True
        reach = (estimate - bound) / (sd / math.sqrt(n)) - stats.t.ppf(0.5 + level / 2, n - 1)
        return bool(stats.norm.cdf(reach) >= power)

    return _smallest(enough)


def _smallest(enough: Callable[[int], bool]) -> int:
    low, high = MIN_PROMPTS, MIN_PROMPTS
    while not enough(high):
        low, high = high, high * 2
        if high > 10**9:
            return high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high
