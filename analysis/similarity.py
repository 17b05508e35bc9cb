"""How alike two models' activations on the same rows are: CKA without bias, Procrustes, principal angles, norms.

CKA is the cosine of two matrices of inner products between rows, of which only such pairs count as are independent if
there is nothing. With one row a prompt these are pairs of two different rows (`debiased_cka`). With several, rows share
their prompt: take its mean from them, and count pairs of two different prompts (`prompt_centred_cka`). Debiasing by
rows is then wrong, also without the means. Means over 100 draws of independent data, 30 prompts, 64 features:

    rows a prompt                                              10      3      2
    normal rows           debiased by rows, means removed     .023   .258   .513
                          contrasts instead of rows           .000  -.002  -.003
                          `prompt_centred_cka`                .000  -.002  -.003
    autocorrelated (.8)   debiased by rows, means removed     .259   .320   .512
                          contrasts instead of rows           .239   .123  -.004
                          `prompt_centred_cka`                .000  -.002  -.004

(Contrasts: a prompt's k rows in an orthonormal basis of what its mean leaves. They are k - 1 independent rows if the k
were independent, which tokens of one chain are not.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import linalg

from analysis.errors import InputError
from analysis.statistics import DRAWS, by_prompt, permutation_p

MAX_NORM_SENSITIVITY = 0.05
"""A CKA that changes by more than this without its largest rows is a statement about those rows."""

# Up to so many rows the null keeps whole Gram matrices (128 MiB each); beyond, it goes through the features.
_GRAM_ROWS = 4096
# Numbers of one array that a block of Gram rows may hold: 32 MiB.
_BLOCK = 2**22
# Spread below this share of the rows' size is rounding.
_ROUNDING = 1e-12
# What a sum loses by cancelling down to this share of its terms leaves it exact to 1e-11.
_CANCELLED = 1e-4
# A squared length, of rows of unit size, that is rounding.
_VANISHED = 1e-20


@dataclass(frozen=True)
class PromptCentred:
    """Rows minus their prompt's mean, those of one prompt together, prompts in the order in which they first appear.

    Attributes:
        rows: the differences; a prompt's keep their order.
        index: which of the given rows each one is.
        labels: the number of each one's prompt, from 0 up.
        alone: prompts that were left out, because one row minus its own mean says nothing.
    """

    rows: Float[ndarray, "kept p"]
    index: Int[ndarray, " kept"]
    labels: Int[ndarray, " kept"]
    alone: int


@dataclass(frozen=True)
class CkaNull:
    """A CKA among those of broken pairs.

    Attributes:
        cka: of the pairs as they are; NaN where it is undefined, and then so are p, mean and high.
        p: the share of pairings, the true one included, that reach it.
        mean: of the null.
        high: the null's 95th percentile.
        draws: pairings behind the null.
        n: prompts, or rows if no prompts were given.
        moved: of these, those that can be paired with another.
        excluded: reason → number of prompts left out.
    """

    cka: float
    p: float
    mean: float
    high: float
    draws: int
    n: int
    moved: int
    excluded: Mapping[str, int]


class _Sides(NamedTuple):
    """Both representations centred and at Frobenius norm 1, and the prompts of their rows (None: one row a prompt)."""

    x: Float[ndarray, "kept p"]
    y: Float[ndarray, "kept q"]
    labels: Int[ndarray, " kept"] | None
    origin: Int[ndarray, " kept"]
    alone: int


def debiased_cka(x: Float[ndarray, "row p"], y: Float[ndarray, "row q"]) -> float:
    """The debiased linear CKA of two representations of the same rows, which must be independent: one row a prompt.

    1 for rows equal up to rotation, translation and one factor; 0 on average for independent representations, thus
    below 0 about half of the time; always in [-1, 1]. NaN if the rows of one do not vary, or are all equally far apart.
    Widths may differ. Time is of order `row · (p + q) · min(row, p + q)`, memory that of both in float64.

    Raises:
        InputError: if there are fewer than 4 rows, shapes do not fit, or a number is not finite.

    Source: HSIC₁ of Song et al. 2012 in the CKA of Kornblith et al. 2019, as Nguyen, Raghu & Kornblith 2021, eq. 3;
    computed as the cosine of U-centred matrices, Székely & Rizzo 2014.
    """
    return _cka(_sides(x, y, None))


def prompt_centred(x: Float[ndarray, "row p"], prompts: Sequence[Hashable] | ndarray) -> PromptCentred:
    """The rows minus their prompt's mean, in float64.

    They are for estimators that count pairs of different prompts: within one, rows that sum to 0 are dependent.

    Raises:
        InputError: as `by_prompt`, or if there are not two prompts of two rows.
    """
    rows = _matrix(x, "x")
    clusters = by_prompt(rows, prompts)
    place = {prompt: at for at, prompt in enumerate(clusters.ids)}
    codes = np.array([place[prompt] for prompt in prompts], dtype=int)
    sizes = np.bincount(codes, minlength=len(place))
    kept = np.flatnonzero(sizes > 1)
    if len(kept) < 2:
        raise InputError(
            f"similarity: {len(kept)} of {len(sizes)} prompts have two rows or more, and what is left without prompt "
            "means needs two such prompts; give more rows a prompt, or compare one row a prompt with debiased_cka"
        )
    index = np.argsort(codes, kind="stable")
    index = index[sizes[codes[index]] > 1]
    centred = _no_rounding(rows[index] - clusters.means[codes[index]], rows)
    return PromptCentred(centred, index, np.searchsorted(kept, codes[index]), len(sizes) - len(kept))


def prompt_centred_cka(
    x: Float[ndarray, "row p"], y: Float[ndarray, "row q"], prompts: Sequence[Hashable] | ndarray
) -> float:
    """The CKA of what rows have beyond their prompt's mean: over pairs of rows of two different prompts.

    `Σ K L / √(Σ K² Σ L²)` with K and L the inner products of centred rows. Only prompts must be independent; the rows
    of one may depend on each other in any way. Range and invariances are those of `debiased_cka`; NaN if the rows of
    one do not vary within prompts. Prompts of one row are left out (`prompt_centred` and `cka_null` count them).

    Raises:
        InputError: as `prompt_centred`, or if shapes do not fit.

    Source: ours; the U-statistic of HSIC with linear kernels and known means, over independent groups of rows.
    """
    return _cka(_sides(x, y, prompts))


def cka_null(
    x: Float[ndarray, "row p"],
    y: Float[ndarray, "row q"],
    prompts: Sequence[Hashable] | ndarray | None = None,
    *,
    seed: int,
    draws: int = DRAWS,
) -> CkaNull:
    """The CKA (`prompt_centred_cka`; without prompts `debiased_cka`) against its null from permuted pairs.

    Prompts are permuted, never the rows of one, which are no more exchangeable than the words of a sentence (permuting
    them rejects 29% of true nulls at 5%, with rows autocorrelated by .8). A prompt takes the rows, in their order, of
    another with as many rows; exact if prompts with equally many rows are exchangeable, such as independent draws from
    one population. What the i-th rows of all prompts share stays paired: it is part of the null, whose mean is then
    above 0. A prompt whose number of rows no other has stays paired too, and makes p larger: give all equally many.

    Each draw takes `row²` steps up to 4,096 rows or as many as the wider of both has columns, else `row · p · q`.

    Raises:
        InputError: as these two, or if no two prompts have equally many rows.
    """
    sides = _sides(x, y, prompts)
    starts = np.arange(len(sides.x)) if sides.labels is None else _starts(sides.labels)
    sizes = np.diff(starts, append=len(sides.x))
    groups = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    moved = sum(len(group) for group in groups if len(group) > 1)
    if not moved or draws < 1:
        raise InputError(
            f"similarity: a null of permuted pairs needs two prompts with equally many rows, and a draw; found "
            f"{len(sizes)} prompts with {len(groups)} numbers of rows, and {draws} draws"
        )
    both, first, second = _products(*sides[:3])
    cka, size = _cosine(both, first, second), math.sqrt(first * second)
    null = np.full(draws, math.nan)
    if not math.isnan(cka):
        generator, rows, source = np.random.default_rng(seed), np.arange(len(sides.x)), np.empty_like(starts)
        broken = _broken(sides, size)
        for draw in range(draws):
            for group in groups:
                source[group] = generator.permutation(group)
            null[draw] = broken(rows + np.repeat(starts[source] - starts, sizes)) / size
    p = math.nan if math.isnan(cka) else permutation_p(cka, null)
    excluded = {"one row only": sides.alone} if sides.alone else {}
    return CkaNull(cka, p, float(null.mean()), float(np.quantile(null, 0.95)), draws, len(sizes), moved, excluded)


def norm_sensitivity(
    x: Float[ndarray, "row p"],
    y: Float[ndarray, "row q"],
    prompts: Sequence[Hashable] | ndarray | None = None,
    share: float = 0.01,
) -> float:
    """The change of the CKA when the rows with the largest norms are left out: without them, minus with all.

    Left out are `share` of the rows, rounded up, by the larger of a row's two norms, each relative to all of x or of y.
    Norms are those that enter the CKA: after centring (by prompt if prompts are given), so that the result has its
    invariances. More than `MAX_NORM_SENSITIVITY` in size is to be flagged.

    Raises:
        InputError: as `cka_null`'s two, for all rows and for those that are left; if share is not in (0, 1).
    """
    if not 0 < share < 1:
        raise InputError(f"similarity: the share of rows to leave out must be between 0 and 1, found {share:g}")
    sides = _sides(x, y, prompts)
    norms = np.maximum((sides.x**2).sum(axis=1), (sides.y**2).sum(axis=1))
    # Taking 1e-9 off keeps .07 of 100 rows from becoming 8 by rounding.
    kept = np.sort(sides.origin[np.argsort(-norms, kind="stable")[math.ceil(share * len(norms) - 1e-9) :]])
    ids = None if prompts is None else [prompts[at] for at in kept]
    return _cka(_sides(np.asarray(x)[kept], np.asarray(y)[kept], ids)) - _cka(sides)


def procrustes_distance(x: Float[ndarray, "row p"], y: Float[ndarray, "row q"]) -> float:
    """The orthogonal Procrustes distance `√(1 - ‖XᵀY‖₊)` of two representations of the same rows, in [0, 1].

    X and Y are centred and scaled to Frobenius norm 1, and ‖·‖₊ is the nuclear norm. It is `min ‖X - Y Q‖ / √2` over
    rotations and reflections Q, the narrower one filled up with zero columns: a metric, 0 for rows equal up to
    rotation, translation and one factor. Its square is half of Ding et al.'s distance at norm 1, and one minus it is
    the cosine of Williams et al.'s angle. It is not debiased: with fewer rows than columns independent ones come out
    close to each other (.18 at 100 rows and 768 columns). NaN if the rows of one do not vary.

    Raises:
        InputError: if there are fewer than 2 rows, shapes do not fit, or a number is not finite.

    Source: Schönemann 1966; Ding, Denain & Steinhardt 2021, sec. 2; Williams et al. 2021, sec. 2.
    """
    wide, narrow = sorted(map(_centred, _pair(x, y, 2)), key=lambda rows: -rows.shape[1])
    if not (wide.any() and narrow.any()):
        return math.nan
    # Coordinates in the rows' own span, where there are fewer rows than columns: a rotation, and fewer numbers.
    wide, narrow = (np.transpose(np.linalg.qr(m.T, mode="r")) if m.shape[1] > len(m) else m for m in (wide, narrow))
    u, _, vt = np.linalg.svd(narrow.T @ wide, full_matrices=False)
    # The distance itself, and not 1 minus the nuclear norm: near 0 the difference would keep half of the digits.
    return float(np.linalg.norm(wide - narrow @ (u @ vt))) / math.sqrt(2)


def principal_angles(x: Float[ndarray, "row p"], y: Float[ndarray, "row p"], rank: int) -> Float[ndarray, " rank"]:
    """The principal angles, in radians and ascending, between the spaces of the first `rank` principal components.

    Both are spaces of features, so x and y must have the same coordinates: a base and its variant do, two models
    trained apart do not. NaN if the rows of one vary in fewer directions than `rank`. Where its components `rank` and
    `rank + 1` have almost the same variance the space is arbitrary, and the last angles are large without a cause.

    Raises:
        InputError: if the widths differ, or rank is not between 1 and the smaller of rows - 1 and columns.

    Source: Björck & Golub 1973; computed as Knyazev & Argentati 2002.
    """
    left, right = _pair(x, y, 2)
    most = min(len(left) - 1, left.shape[1])
    if left.shape[1] != right.shape[1] or not 1 <= rank <= most:
        raise InputError(
            f"similarity: principal angles of rank {rank} between widths {left.shape[1]} and {right.shape[1]}; "
            f"expected equal widths and a rank between 1 and {most} (from {len(left)} rows)"
        )
    spaces = []
    for rows in (_centred(left), _centred(right)):
        # The triangle has the same right singular vectors as the tall matrix.
        square = np.linalg.qr(rows, mode="r") if len(rows) > rows.shape[1] else rows
        _, values, vt = np.linalg.svd(square, full_matrices=False)
        if values[rank - 1] <= _ROUNDING:
            return np.full(rank, math.nan)
        spaces.append(vt[:rank].T)
    return np.asarray(linalg.subspace_angles(*spaces)[::-1], dtype=float)


def norm_ratio(x: Float[ndarray, "row p"], y: Float[ndarray, "row q"]) -> float:
    """The mean Euclidean norm of y's rows over that of x's; NaN if all of x is 0.

    Raises:
        InputError: if there is no row, shapes do not fit, or a number is not finite.
    """
    left, right = (float(np.linalg.norm(rows, axis=1).mean()) for rows in _pair(x, y, 1))
    return right / left if left else math.nan


def _matrix(x: ndarray, name: str) -> Float[ndarray, "row p"]:
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0 or not np.isfinite(rows).all():
        raise InputError(
            f"similarity: {name} has shape {rows.shape} and {int((~np.isfinite(rows)).sum())} numbers that are not "
            "finite; expected rows × features, all finite"
        )
    return rows


def _pair(x: ndarray, y: ndarray, least: int) -> tuple[Float[ndarray, "row p"], Float[ndarray, "row q"]]:
    left, right = _matrix(x, "x"), _matrix(y, "y")
    if len(left) != len(right) or len(left) < least:
        raise InputError(
            f"similarity: x has {len(left)} rows and y {len(right)}; expected the same rows in both, at least {least}"
        )
    return left, right


def _no_rounding(centred: Float[ndarray, "kept p"], rows: Float[ndarray, "row p"]) -> Float[ndarray, "kept p"]:
    """The centred rows; zeros if they are no more than what rounding left of rows that do not vary."""
    return centred if np.linalg.norm(centred) > _ROUNDING * np.linalg.norm(rows) else np.zeros_like(centred)


def _unit(rows: Float[ndarray, "row p"]) -> Float[ndarray, "row p"]:
    size = np.linalg.norm(rows)
    return rows / size if size else rows


def _centred(rows: Float[ndarray, "row p"]) -> Float[ndarray, "row p"]:
    return _unit(_no_rounding(rows - rows.mean(axis=0), rows))


def _sides(x: ndarray, y: ndarray, prompts: Sequence[Hashable] | ndarray | None) -> _Sides:
    if prompts is None:
        left, right = _pair(x, y, 4)
        return _Sides(_centred(left), _centred(right), None, np.arange(len(left)), 0)
    left, right = _pair(x, y, 1)
    one, other = prompt_centred(left, prompts), prompt_centred(right, prompts)
    return _Sides(_unit(one.rows), _unit(other.rows), one.labels, one.index, one.alone)


def _starts(labels: Int[ndarray, " row"]) -> Int[ndarray, " prompt"]:
    return np.flatnonzero(np.diff(labels, prepend=-1))


def _cka(sides: _Sides) -> float:
    return _cosine(*_products(*sides[:3]))


def _cosine(both: float, first: float, second: float) -> float:
    return both / math.sqrt(first * second) if min(first, second) > _VANISHED else math.nan


def _products(x: ndarray, y: ndarray, labels: ndarray | None) -> tuple[float, float, float]:
    """The inner products x·y, x·x and y·y of the matrices of which CKA is the cosine.

    Through features where rows are many. The sums over all pairs then cancel against those over pairs that do not
    count, and where one row outweighs the rest too little is left of them: such data take the slow way.
    """
    if len(x) > max(x.shape[1], y.shape[1]):
        (first, all_first), (second, all_second) = _by_features(x, x, labels), _by_features(y, y, labels)
        if first > _CANCELLED * all_first and second > _CANCELLED * all_second:
            return _by_features(x, y, labels)[0], first, second
    both = first = second = 0.0
    step = max(1, _BLOCK // len(x))
    for start in range(0, len(x), step):
        left, right = (_gram(side, slice(start, start + step), labels) for side in (x, y))
        both += float(np.vdot(left, right))
        first += float(np.vdot(left, left))
        second += float(np.vdot(right, right))
    return both, first, second


def _gram(x: ndarray, rows: slice, labels: ndarray | None) -> Float[ndarray, "block row"]:
    """Rows of the matrix of inner products: 0 within a prompt; without prompts U-centred, with 0 on the diagonal."""
    gram: ndarray = x[rows] @ x.T
    if labels is not None:
        gram[labels[rows, None] == labels] = 0.0
        return gram
    # The rows sum to 0, so that row i of the Gram matrix without its diagonal sums to minus the squared norm.
    n, squares = len(x), np.einsum("ij,ij->i", x, x)
    gram += (squares[rows, None] + squares) / (n - 2) - squares.sum() / ((n - 1) * (n - 2))
    at = np.arange(len(gram))
    gram[at, at + rows.indices(n)[0]] = 0.0
    return gram


def _by_features(x: ndarray, y: ndarray, labels: ndarray | None) -> tuple[float, float]:
    """The inner product of both matrices of `_gram`, as `‖xᵀy‖²` minus what does not count; and `‖xᵀy‖²`."""
    whole = float(np.sum((x.T @ y) ** 2))
    if labels is None:
        n, left, right = len(x), np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
        own = n / (n - 2) * float(left @ right) - float(left.sum() * right.sum()) / ((n - 1) * (n - 2))
    else:
        blocks = zip(*(np.split(side, _starts(labels)[1:]) for side in (x, y)), strict=True)
        own = sum(float(np.vdot(a @ a.T, b @ b.T)) for a, b in blocks)
    return whole - own, whole


def _broken(sides: _Sides, size: float) -> Callable[[ndarray], float]:
    """The inner product of both matrices as a function of the order of y's rows."""
    x, y, labels, _, _ = sides
    if len(x) <= max(_GRAM_ROWS, x.shape[1], y.shape[1]):
        left, right = (_gram(side, slice(None), labels) for side in (x, y))
        return lambda order: float(np.vdot(left, right[np.ix_(order, order)]))
    # Sums of order 1 are exact to about 1e-15, and the null to that over its denominator.
    if size < 1e-9:
        raise InputError(
            f"similarity: among {len(x)} rows a few outweigh all others so far that the null cannot be computed; "
            "leave out those with the largest norms (norm_sensitivity says what they do)"
        )
    return lambda order: _by_features(x, y[order], labels)[0]
