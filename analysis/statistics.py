"""Statistics over prompts: the prompt is the unit of resampling, everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

MIN_PROMPTS = 20
"""Below this many prompts the intervals were not seen to hold, and no verdict is given ("n too small")."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval: `estimate`, `low`, `high` at `level`, over `n` prompts, with standard error `se`.

    With no prompt there is no estimate, and with one no interval: those fields are NaN.
    """

    estimate: float
    low: float
    high: float
    n: int
    se: float
    level: float = 0.95

    def at(self, level: float) -> Estimate:
        """The same estimate with an interval of another level."""
        return _t_interval(self.estimate, self.se, self.n, level)

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain numbers for JSON; NaN becomes None."""
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }


def mean(values: Float[ndarray, " prompt"], level: float = 0.95) -> Estimate:
    """The mean over prompts with Student's t interval."""
    n = len(values)
    if n == 0:
        return _t_interval(math.nan, math.nan, 0, level)
    se = float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return _t_interval(float(np.mean(values)), se, n, level)


def ratio(
    numerator: Float[ndarray, " prompt"], denominator: Float[ndarray, " prompt"], level: float = 0.95
) -> Estimate:
    """The ratio of sums over prompts, `Σ numerator / Σ denominator`, with a jackknife-t interval.

    The jackknife leaves out one prompt at a time.

    Source: Tukey's jackknife for a ratio estimator; see Efron & Tibshirani, An Introduction to the Bootstrap, ch. 11.
    """
    return _jackknife(_ratio_of_sums(numerator, denominator), _leave_one_out(numerator, denominator), level)


def ratio_difference(
    first: tuple[Float[ndarray, " prompt"], Float[ndarray, " prompt"]],
    second: tuple[Float[ndarray, " prompt"], Float[ndarray, " prompt"]],
    level: float = 0.95,
) -> Estimate:
    """`first` minus `second`, each a ratio of sums over the same prompts in the same order, paired by prompt."""
    if len(first[0]) != len(second[0]):
        raise ValueError(f"paired ratios need the same prompts, found {len(first[0])} and {len(second[0])}")
    return _jackknife(
        _ratio_of_sums(*first) - _ratio_of_sums(*second),
        _leave_one_out(*first) - _leave_one_out(*second),
        level,
    )


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


def _ratio_of_sums(numerator: ndarray, denominator: ndarray) -> float:
    total = float(np.sum(denominator))
    return float(np.sum(numerator)) / total if total else math.nan


def _leave_one_out(numerator: ndarray, denominator: ndarray) -> ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((np.sum(numerator) - numerator) / (np.sum(denominator) - denominator))


def _jackknife(estimate: float, left_out: ndarray, level: float) -> Estimate:
    n = len(left_out)
    if n < 2:
        return _t_interval(estimate, math.nan, n, level)
    se = math.sqrt((n - 1) / n * float(np.sum((left_out - np.mean(left_out)) ** 2)))
    return _t_interval(estimate, se, n, level)


def _t_interval(estimate: float, se: float, n: int, level: float) -> Estimate:
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * se if n > 1 else math.nan
    return Estimate(estimate, estimate - half, estimate + half, n, se, level)
