"""Two one-sided tests: whether an estimate is shown to be as good as 0, which a large p-value never shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from analysis.errors import InputError
from analysis.statistics.estimates import Estimate


@dataclass(frozen=True)
class Equivalence:
    """Whether an estimate lies within ±`margin`, beyond chance.

    Attributes:
        equivalent: whether `interval` lies within ±margin, ends included; the same as p ≤ (1 − level)/2.
        p: the larger p-value of the two tests, against at most −margin and at least margin; 1 without an interval.
        interval: the estimate at the level of the tests, 90% for two tests at 5%.
        margin: what counts as a difference.
    """

    equivalent: bool
    p: float
    interval: Estimate
    margin: float


def equivalence(estimate: Estimate, margin: float, level: float = 0.90) -> Equivalence:
    """The two one-sided t tests of an estimate against ±`margin`.

    Raises:
        InputError: if the margin is not above 0, or the estimate's interval is not Student's t.

    Source: Schuirmann 1987.
    """
    if not margin > 0:
        raise InputError(f"statistics: equivalence needs a margin above 0, found {margin:g}")
    if estimate.method != "t":
        raise InputError(
            f"statistics: equivalence is tested by Student's t, and this estimate's interval is {estimate.method}; "
            "compare its 90% limits with the margin instead"
        )
    interval = estimate.at(level)
    if estimate.n < 2 or math.isnan(estimate.se) or math.isnan(estimate.estimate):
        return Equivalence(False, 1.0, interval, margin)
    room = margin - abs(estimate.estimate)
    distance = room / estimate.se if estimate.se else math.copysign(math.inf, room)
    p = float(stats.t.sf(distance, estimate.n - 1))
    return Equivalence(-margin <= interval.low and interval.high <= margin, p, interval, margin)
