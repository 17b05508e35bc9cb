"""What a cluster is: all rows of one prompt.

One prompt gives many rows (steps, layers, seeds); they are not independent, and an interval over rows is too short.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy import ndarray

from analysis.errors import InputError

NO_VALUE = "no row of it has a value"


@dataclass(frozen=True)
class Clusters:
    """One value a prompt, in the order in which prompts first appear in the rows.

    Attributes:
        ids: the prompts that have a value.
        means: the mean over each prompt's rows; NaN in a cell for which this prompt has no row with a value.
        rows: the number of rows behind each mean.
        without: the prompts that have none.
        dropped: number of values that were NaN and were left out.
    """

    ids: tuple[Hashable, ...]
    means: Float[ndarray, " prompt *cell"]
    rows: Int[ndarray, " prompt *cell"]
    without: tuple[Hashable, ...] = ()
    dropped: int = 0

    @property
    def excluded(self) -> dict[str, int]:
        """Reason → number of prompts that have no value."""
        return {NO_VALUE: len(self.without)} if self.without else {}


def by_prompt(
    values: Float[ndarray, " row *cell"],
    prompts: Sequence[Hashable] | ndarray,
    missing: Literal["refuse", "drop"] = "refuse",
) -> Clusters:
    """The mean of each prompt's rows: the one definition of a cluster, for every statistic.

    Args:
        values: one number a row, or a grid of cells a row, such as layer × step.
        prompts: the prompt's id for each row.
        missing: whether a NaN is an error, or left out and counted.

    Raises:
        InputError: if the lengths differ, an id is missing, or a value is infinite, or NaN without `missing="drop"`.
    """
    values = np.asarray(values, dtype=float)
    # A list, and not an array, of ids: NumPy would turn [1, "1"] into one id.
    labels = pd.Series(list(prompts), dtype=object)
    if values.ndim == 0 or len(values) != len(labels):
        raise InputError(
            f"statistics: {len(labels)} prompt ids came with values of shape {values.shape}; give one id for each row"
        )
    codes, ids = pd.factorize(labels)
    if (codes < 0).any():
        at = int(np.flatnonzero(codes < 0)[0])
        raise InputError(
            f"statistics: {int((codes < 0).sum())} rows have no prompt id (the first is row {at}); without it they "
            "cannot be grouped, so give each row its prompt's id"
        )
    absent = np.isnan(values)
    if np.isinf(values).any():
        raise InputError(f"statistics: {int(np.isinf(values).sum())} values are infinite; find out where they overflow")
    if missing == "refuse" and absent.any():
        raise InputError(
            f"statistics: {int(absent.sum())} of {absent.size} values are NaN; leave them out and count them with "
            'missing="drop", if a prompt may lack them'
        )
    shape = (len(ids), *values.shape[1:])
    sums, rows = np.zeros(shape), np.zeros(shape, dtype=int)
    np.add.at(sums, codes, np.where(absent, 0.0, values))
    np.add.at(rows, codes, ~absent)
    means = np.full(shape, np.nan)
    np.divide(sums, rows, out=means, where=rows > 0)
    kept = np.asarray(rows.any(axis=tuple(range(1, rows.ndim))))
    return Clusters(
        ids=tuple(ids[kept]),
        means=means[kept],
        rows=rows[kept],
        without=tuple(ids[~kept]),
        dropped=int(absent.sum()),
    )


def prompt_values(
    values: Float[ndarray, " prompt"] | Clusters, excluded: Mapping[str, int] | None = None
) -> tuple[Float[ndarray, " prompt"], dict[str, int]]:
    """One finite value a prompt, and reason → number of prompts excluded (those of `Clusters` and those given).

    Raises:
        InputError: if there is not exactly one finite number a prompt.
    """
    counts = dict(values.excluded) if isinstance(values, Clusters) else {}
    for reason, number in (excluded or {}).items():
        counts[reason] = counts.get(reason, 0) + int(number)
    array = np.asarray(values.means if isinstance(values, Clusters) else values, dtype=float)
    if array.ndim != 1:
        raise InputError(f"statistics: expected one value a prompt, found shape {array.shape}; use by_prompt")
    if not np.isfinite(array).all():
        raise InputError(
            f"statistics: {int((~np.isfinite(array)).sum())} of {len(array)} prompts have no finite value; leave "
            "them out and say so in `excluded`"
        )
    return array, counts


def paired_values(
    first: Float[ndarray, " prompt"] | Clusters,
    second: Float[ndarray, " prompt"] | Clusters,
    excluded: Mapping[str, int] | None = None,
) -> tuple[Float[ndarray, " prompt"], Float[ndarray, " prompt"], dict[str, int]]:
    """Two values of each prompt, and reason → number of prompts excluded.

    Arrays are paired by place; `Clusters` by id, in the order of the first, and prompts of which one or both have no
    value are excluded and counted.

    Raises:
        InputError: if arrays differ in length, only one of the two has ids, or a value is not finite.
    """
    if isinstance(first, Clusters) != isinstance(second, Clusters):
        raise InputError(
            "statistics: only one of two paired sets of values has prompt ids; give both through by_prompt"
        )
    if isinstance(first, Clusters) and isinstance(second, Clusters):
        place = {label: at for at, label in enumerate(second.ids)}
        common = [(at, place[label]) for at, label in enumerate(first.ids) if label in place]
        named = {*first.ids, *second.ids, *first.without, *second.without}
        counts = dict(excluded or {})
        for reason, lost in (
            ("only in the first of the pair", len(first.ids) - len(common)),
            ("only in the second of the pair", len(second.ids) - len(common)),
            (NO_VALUE, len(named - {*first.ids, *second.ids})),
        ):
            if lost:
                counts[reason] = counts.get(reason, 0) + lost
        left, _ = prompt_values(first.means[[at for at, _ in common]])
        right, _ = prompt_values(second.means[[at for _, at in common]])
        return left, right, counts
    left, counts = prompt_values(first, excluded)
    right, _ = prompt_values(second)
    if len(left) != len(right):
        raise InputError(
            f"statistics: paired values need the same prompts in the same order, found {len(left)} and {len(right)}"
        )
    return left, right, counts
