"""Correction over a declared family of tests."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np

from analysis.errors import InputError

Name = TypeVar("Name", bound=Hashable)


def benjamini_hochberg(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """The adjusted p-value of each test of the family, in the order given.

    Those at most q are the findings among which the expected share of false ones is at most q. The family is all tests
    that could have been reported (layers × positions × measures), and is declared by giving all of them.

    Raises:
        InputError: if a p-value is NaN or not in [0, 1].

    Source: Benjamini & Hochberg 1995, for tests that are independent or positively dependent.
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise InputError(
                f"statistics: the p-value of {name!r} is {p}, not a number in [0, 1]; a test that could not be done "
                "does not belong to the family, or has p = 1"
            )
    raw = np.array(list(p_values.values()), dtype=float)
    order = np.argsort(raw, kind="stable")
    scaled = raw[order] * len(raw) / np.arange(1, len(raw) + 1)
    adjusted = np.empty(len(raw))
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return dict(zip(p_values, np.minimum(adjusted, 1.0).tolist(), strict=True))
