"""Permutation tests: p-values from data made equal under the null by construction, never 0.

A sign flip turns a whole prompt: under the null that a prompt's effect (a paired difference, an effect against its own
control) is as likely to be −x as x, every pattern of signs was as likely as the one seen. The null is symmetry about 0,
not only a mean of 0: for effects that cannot be negative a sign-flip test says nothing.

Source: Nichols & Holmes 2002 (max-statistic); Phipson & Smyth 2010 ((b + 1)/(m + 1)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from analysis.errors import InputError
from analysis.statistics.bootstrap import CHUNK, DRAWS
from analysis.statistics.clusters import Clusters, prompt_values

# Equal statistics that are summed in another order differ by rounding; such ties count as reached.
_Alternative = Literal["greater", "less", "two-sided"]
_TIE = 1e-9


@dataclass(frozen=True)
class SignFlips:
    """Sign-flip tests of every cell of a grid.

    Attributes:
        mean: mean effect over the prompts that have the cell; NaN if none has.
        t: its Student t; NaN below two prompts, 0 where every effect is 0, infinite where all others are equal.
        n: prompts that have the cell.
        p: family-wise: the share of flips whose largest statistic of all cells reaches this cell's.
        p_cell: of this cell alone, for a family that is declared and corrected elsewhere.
        flips: sign patterns behind the p-values, the one that was seen included.
        exact: whether these are all patterns there are.
    """

    mean: Float[ndarray, "*cell"]
    t: Float[ndarray, "*cell"]
    n: Int[ndarray, "*cell"]
    p: Float[ndarray, "*cell"]
    p_cell: Float[ndarray, "*cell"]
    flips: int
    exact: bool


def sign_flip_max(values: Float[ndarray, " prompt *cell"] | Clusters, *, seed: int, draws: int = DRAWS) -> SignFlips:
    """Two-sided sign-flip tests of a grid's cells, corrected for their number by the max-statistic.

    The statistic is studentised, or the noisiest cell would set the bar for all: a cell with ten times the spread has
    ten times the mean by chance. It is `|Σx| / √Σx²`, whose order within a cell is that of |t|, and with equally many
    prompts in all cells max |t| gives the same p-values. With fewer prompts in some (NaN: this prompt has no such step)
    it differs from |t| in being at most √n: all signs equal make |t| infinite, which two prompts do in half of the
    flips, and would leave no cell of the grid a chance. A cell with few prompts thus cannot be significant in a large
    family, and does not stand in the way of the others. The signs are those of prompts, one for all of its cells, so
    that cells keep their dependence.

    Args:
        values: one effect a prompt and cell; NaN where a prompt lacks the cell.
        seed: of the signs.
        draws: random patterns; if no more patterns exist than this, all are enumerated instead.

    Raises:
        InputError: if there is no prompt, or a value is infinite.
    """
    array = np.asarray(values.means if isinstance(values, Clusters) else values, dtype=float)
    if array.ndim == 0 or array.size == 0 or np.isinf(array).any() or draws < 1:
        raise InputError(
            "statistics: a sign-flip test needs at least one prompt, one cell and one draw, and no infinite value; "
            f"found shape {array.shape}, {int(np.isinf(array).sum())} infinite values, {draws} draws"
        )
    shape = array.shape[1:]
    flat = array.reshape(len(array), -1)
    n = (~np.isnan(flat)).sum(axis=0)
    effects = np.where(np.isnan(flat), 0.0, flat)
    # Scaled by the largest effect first, so that squares of tiny effects do not vanish.
    size = np.abs(effects).max(axis=0)
    effects = np.divide(effects, size, out=np.zeros_like(effects), where=size > 0)
    root = np.sqrt((effects**2).sum(axis=0))
    effects = np.divide(effects, root, out=np.zeros_like(effects), where=root > 0)
    seen = np.abs(effects.sum(axis=0))
    family, alone = np.zeros(len(seen), dtype=int), np.zeros(len(seen), dtype=int)
    bar = seen * (1 - _TIE)
    exact = 2 ** len(flat) <= draws
    flips = 0
    for signs in _sign_patterns(len(flat), flat.shape[1], draws, seed, exact):
        drawn = np.abs(signs @ effects)
        alone += (drawn >= bar).sum(axis=0)
        # For each cell the number of maxima that reach its bar, by one sort instead of a table of all pairs.
        maxima = np.sort(drawn.max(axis=1))
        family += len(maxima) - np.searchsorted(maxima, bar, side="left")
        flips += len(signs)
    # All patterns include the one that was seen; random ones do not, and it is counted with them.
    seen_apart = 0 if exact else 1
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(n > 0, np.nansum(flat, axis=0) / n, np.nan)
        rest = np.maximum(n - seen**2, 0.0)
        t = np.where(n > 1, np.sign(means) * np.where(seen > 0, seen * np.sqrt((n - 1) / rest), 0.0), np.nan)
    return SignFlips(
        mean=means.reshape(shape),
        t=t.reshape(shape),
        n=n.reshape(shape),
        p=((family + seen_apart) / (flips + seen_apart)).reshape(shape),
        p_cell=((alone + seen_apart) / (flips + seen_apart)).reshape(shape),
        flips=flips + seen_apart,
        exact=exact,
    )


def sign_flip(values: Float[ndarray, " prompt"] | Clusters, *, seed: int, draws: int = DRAWS) -> float:
    """The two-sided sign-flip p-value of a mean over prompts, against effects symmetric about 0.

    Raises:
        InputError: if there is no prompt, or a value is not finite.
    """
    array, _ = prompt_values(values)
    return float(sign_flip_max(array[:, None], seed=seed, draws=draws).p[0])


def permutation_p(
    observed: float,
    null: Float[ndarray, " draw"],
    alternative: _Alternative = "greater",
) -> float:
    """The p-value `(b + 1)/(m + 1)` of a statistic among `m` values drawn under the null, `b` of them as extreme.

    Two-sided, extreme means as far from 0: centre a statistic whose null is elsewhere.

    Raises:
        InputError: if there is no null value, or one is NaN, or the alternative is none of the three.
    """
    null = np.asarray(null, dtype=float)
    if null.ndim != 1 or not len(null) or np.isnan(null).any() or np.isnan(observed):
        raise InputError(
            f"statistics: a permutation p-value needs null values and no NaN; found {observed} against shape "
            f"{null.shape} with {int(np.isnan(null).sum())} NaN"
        )
    if alternative not in get_args(_Alternative):
        raise InputError(f"statistics: alternative {alternative!r}: expected {', '.join(get_args(_Alternative))}")
    if alternative == "less":
        observed, null = -observed, -null
    elif alternative == "two-sided":
        observed, null = abs(observed), np.abs(null)
    slack = _TIE * abs(observed) if np.isfinite(observed) else 0.0
    return float((np.count_nonzero(null >= observed - slack) + 1) / (len(null) + 1))


def _sign_patterns(n: int, n_cells: int, draws: int, seed: int, exact: bool) -> Iterator[Float[ndarray, "draw prompt"]]:
    """Patterns of ±1 in chunks: all `2ⁿ`, or random ones."""
    rows = max(1, CHUNK // max(n, n_cells))
    generator = np.random.default_rng(seed)
    total = 2**n if exact else draws
    for start in range(0, total, rows):
        end = min(start + rows, total)
        if exact:
            negative = (np.arange(start, end)[:, None] >> np.arange(n)) & 1 == 1
        else:
            # Doubles and not bits: the stream is then the same however it is cut into chunks.
            negative = generator.random((end - start, n)) < 0.5
        yield np.where(negative, -1.0, 1.0)
