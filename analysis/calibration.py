"""Whether a model is right as often as it says: calibration error, reliability, Brier score, entropy.

All functions take one value a prompt. The expected calibration error is biased upward: noise in a bin never cancels. A
perfectly calibrated reader whose confidence is spread evenly shows .17 at 50 prompts and .09 at 200. It is therefore
reported with what such a reader would show (`calibration_error`), and has no interval. Bootstraps over prompts do not
give one: nominal 95% intervals of the usual kinds (percentile, basic, shifted by the bias) held the truth in 0% to 53%
of 300 simulations for calibrated readers at 50 to 1,000 prompts, and in 0% to 92% for confidence too high by .05.

To compare two models, or for an interval, take what is a mean over prompts: `brier`, or confidence minus right (by how
much the model is too confident overall), with `statistics.mean` and `statistics.paired_difference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy import special

from analysis.errors import InputError
from analysis.statistics import DRAWS, clopper_pearson, permutation_p
from analysis.statistics.bootstrap import CHUNK

BINS = 15
"""Default number of bins, that of Guo et al. 2017."""

Scheme = Literal["width", "mass"]
"""Bins of equal width in confidence, or with equally many prompts."""

# Softmax in float32 sums to 1 within this.
_SUM = 1e-5


@dataclass(frozen=True)
class CalibrationError:
    """An expected calibration error, and what a perfectly calibrated reader with the same confidences would show.

    Attributes:
        ece: as observed.
        expected: the mean for that reader, at this number of prompts; the truth for it is 0.
        high: its 95th percentile for that reader.
        p: of the observed one against that reader.
        n: number of prompts.
        bins: number of bins with a prompt.
    """

    ece: float
    expected: float
    high: float
    p: float
    n: int
    bins: int


def expected_calibration_error(
    confidence: Float[ndarray, " prompt"],
    right: Float[ndarray, " prompt"] | Bool[ndarray, " prompt"],
    bins: int = BINS,
    scheme: Scheme = "width",
) -> float:
    """The expected calibration error, in [0, 1]: `Σ_b n_b/n |accuracy_b - mean confidence_b|`; NaN without a prompt.

    Bins are closed on the right: of equal width, bin b of M holds (b-1)/M < confidence ≤ b/M, and the first holds 0
    too. Of equal mass, they end at every (n/M)-th confidence; prompts of one confidence always share a bin, so that
    the order of prompts does not matter, and there are then fewer bins.

    Args:
        confidence: the probability of the answer that the model gave.
        right: whether that answer is right: 1 or 0.
        bins: how many.
        scheme: equal width or equal mass.

    Raises:
        InputError: if a confidence is not in [0, 1], a `right` is not 0 or 1, lengths differ, or bins is below 1.

    Source: Guo et al. 2017, eq. 3 (equal width); Nguyen & O'Connor 2015 (equal mass).
    """
    confidence, right = _answers(confidence, right)
    order, starts = _binned(confidence, bins, scheme)
    return float(_errors((right - confidence)[None], order, starts)[0])


def calibration_null(
    confidence: Float[ndarray, " prompt"],
    bins: int = BINS,
    scheme: Scheme = "width",
    *,
    seed: int,
    draws: int = DRAWS,
) -> Float[ndarray, " draw"]:
    """The calibration errors that a perfectly calibrated reader with these confidences would show.

    In each draw every answer is right with the probability that is its confidence, independently.

    Raises:
        InputError: as `expected_calibration_error`.

    Source: consistency resampling, Bröcker & Smith 2007; Vaicenavicius et al. 2019, sec. 5.
    """
    confidence, _ = _answers(confidence, np.zeros(len(confidence)))
    order, starts = _binned(confidence, bins, scheme)
    generator = np.random.default_rng(seed)
    null = np.empty(draws)
    rows = max(1, CHUNK // max(1, len(confidence)))
    for start in range(0, draws, rows):
        chunk = null[start : start + rows]
        right = generator.random((len(chunk), len(confidence))) < confidence
        chunk[:] = _errors(right - confidence, order, starts)
    return null


def calibration_error(
    confidence: Float[ndarray, " prompt"],
    right: Float[ndarray, " prompt"] | Bool[ndarray, " prompt"],
    bins: int = BINS,
    scheme: Scheme = "width",
    *,
    seed: int,
    draws: int = DRAWS,
) -> CalibrationError:
    """The expected calibration error with its value, its 95th percentile and p under perfect calibration.

    A large p does not show calibration; with few prompts even a large error is no surprise. All but n and bins are NaN
    without a prompt.

    Raises:
        InputError: as `expected_calibration_error`, or if there is no draw.
    """
    ece = expected_calibration_error(confidence, right, bins, scheme)
    if math.isnan(ece):
        return CalibrationError(ece, math.nan, math.nan, math.nan, 0, 0)
    null = calibration_null(confidence, bins, scheme, seed=seed, draws=draws)
    p = permutation_p(ece, null)
    n, filled = len(confidence), len(_binned(np.asarray(confidence, dtype=float), bins, scheme)[1])
    return CalibrationError(ece, float(null.mean()), float(np.quantile(null, 0.95)), p, n, filled)


def reliability(
    confidence: Float[ndarray, " prompt"],
    right: Float[ndarray, " prompt"] | Bool[ndarray, " prompt"],
    bins: int = BINS,
    scheme: Scheme = "width",
    level: float = 0.95,
) -> pd.DataFrame:
    """The reliability diagram as a table: a row for each bin that has a prompt, by confidence.

    Columns: `n`, `confidence` (mean), `accuracy`, and `low` and `high`, the exact (Clopper-Pearson) interval of the
    accuracy. The bins are those of `expected_calibration_error`.

    Raises:
        InputError: as `expected_calibration_error`, or if level is not in (0, 1).

    Source: Guo et al. 2017, eq. 1 and 2.
    """
    confidence, right = _answers(confidence, right)
    order, starts = _binned(confidence, bins, scheme)
    rows = []
    for members in np.split(order, starts[1:]) if len(order) else []:
        share = clopper_pearson(int(right[members].sum()), len(members), level)
        rows.append((len(members), float(confidence[members].mean()), share.estimate, share.low, share.high))
    return pd.DataFrame(rows, columns=["n", "confidence", "accuracy", "low", "high"])


def brier(
    probabilities: Float[ndarray, "prompt option"] | Sequence[Float[ndarray, " option"]],
    right_index: Int[ndarray, " prompt"] | Sequence[int],
) -> Float[ndarray, " prompt"]:
    """Each prompt's Brier score over all options, `Σ_k (p_k - [k is right])²`: 0 is best, 2 is worst.

    Of two options it is twice the binary score. The number of options may differ between prompts.

    Raises:
        InputError: if a prompt's probabilities are negative or do not sum to 1, or the right one is not among them.

    Source: Brier 1950, eq. 2.
    """
    options = _distributions(probabilities)
    places = np.asarray(right_index)
    if len(places) != len(options):
        raise InputError(f"calibration: {len(options)} prompts have probabilities and {len(places)} a right option")
    scores = np.empty(len(options))
    for prompt, (p, place) in enumerate(zip(options, places, strict=True)):
        if int(place) != place or not 0 <= place < len(p):
            raise InputError(
                f"calibration: the right option of prompt {prompt} is {place}, among {len(p)} options; expected its "
                "place from 0 up (leave out prompts whose right answer is not an option, and count them)"
            )
        scores[prompt] = np.sum((p - np.eye(len(p))[int(place)]) ** 2)
    return scores


def entropy(
    probabilities: Float[ndarray, "prompt option"] | Sequence[Float[ndarray, " option"]],
) -> Float[ndarray, " prompt"]:
    """The entropy of each prompt's answer distribution, in nats: 0 when certain, log(options) when even.

    Raises:
        InputError: if a prompt's probabilities are negative or do not sum to 1.
    """
    return np.array([special.entr(p).sum() for p in _distributions(probabilities)], dtype=float)


def _answers(confidence: ndarray, right: ndarray) -> tuple[Float[ndarray, " prompt"], Float[ndarray, " prompt"]]:
    said, came = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    if said.ndim != 1 or said.shape != came.shape:
        raise InputError(
            f"calibration: confidence has shape {said.shape} and right {came.shape}; expected one value a prompt each"
        )
    outside = said[~((said >= 0) & (said <= 1))]
    if len(outside):
        raise InputError(
            f"calibration: {len(outside)} of {len(said)} confidences are not in [0, 1] (the first is {outside[0]:g}); "
            "give probabilities, not log-probabilities"
        )
    if not np.isin(came, (0, 1)).all():
        raise InputError("calibration: right must be 1 or 0 for each prompt; leave out prompts without an answer")
    return said, came


def _binned(
    confidence: Float[ndarray, " prompt"], bins: int, scheme: Scheme
) -> tuple[Int[ndarray, " prompt"], Int[ndarray, " bin"]]:
    """The prompts in order of their bins, and where in that order each bin that has a prompt begins."""
    if scheme not in get_args(Scheme) or bins < 1:
        raise InputError(
            f"calibration: {bins} bins of equal {scheme!r}; expected at least 1 of {', '.join(get_args(Scheme))}"
        )
    order = np.argsort(confidence, kind="stable")
    ordered, n = confidence[order], len(confidence)
    if scheme == "width":
        ends = np.arange(1, bins) / bins
    else:
        ends = ordered[[-(-n * part // bins) - 1 for part in range(1, bins)] if n else []]
    places = np.searchsorted(ends, ordered, side="left")
    return order, np.flatnonzero(np.diff(places, prepend=-1))


def _errors(
    excess: Float[ndarray, "draw prompt"], order: Int[ndarray, " prompt"], starts: Int[ndarray, " bin"]
) -> Float[ndarray, " draw"]:
    """`Σ_b |Σ_{i in b} (right - confidence)| / n`, which is the sum over bins of share times gap."""
    if not len(order):
        return np.full(len(excess), math.nan)
    sums = np.add.reduceat(excess[:, order], starts, axis=1)
    return np.asarray(np.abs(sums).sum(axis=1) / len(order))


def _distributions(probabilities: ndarray | Sequence[ndarray]) -> list[Float[ndarray, " option"]]:
    options = [np.asarray(p, dtype=float) for p in probabilities]
    for prompt, p in enumerate(options):
        if p.ndim != 1 or not (p >= 0).all() or not abs(p.sum() - 1) <= _SUM:
            raise InputError(
                f"calibration: the probabilities of prompt {prompt} have shape {p.shape}, sum {p.sum():.6g} and least "
                f"{p.min(initial=math.inf):g}; expected one number of 0 or more for each option, with sum 1"
            )
    return options
