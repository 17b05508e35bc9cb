"""Neutral texts of an exact length in tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

UNITS = (" ...", " .", "...", ".", " …")
"""What a filler repeats, in order of preference."""
_PER_TOKEN = 4
"""A unit is repeated up to this many times for each token that is wanted: tokenizers merge dots."""
_TAIL = 8
"""So many of a second unit are tried behind so many lengths of a first."""


def filler(n_tokens: int, count: Callable[[str], int], units: Sequence[str] = UNITS) -> str | None:
    """A text of exactly `n_tokens` tokens, without white space at its ends; None if none was found.

    One unit repeated is tried before one unit followed by another, units in their order. One text is counted where each
    repetition is a token; at most 1,600 and 20 for each token wanted, with five units.

    Args:
        n_tokens: the tokens of the step that it stands for.
        count: how many tokens a text has in the step's place; negative if it cannot be used there, as with an unknown
            token.
        units: texts to repeat.
    """
    heads: list[tuple[str, int]] = []
    for unit in units:
        for text, length in _repeated(unit, n_tokens, count):
            if length == n_tokens:
                return text
            if 0 < length < n_tokens:
                heads.append((text, length))
    # The longest first: they leave the least to the second unit.
    for head, _ in sorted(heads, key=lambda one: -one[1])[: _TAIL * len(units)]:
        for unit in units:
            for times in range(1, _TAIL + 1):
                text = (head + unit * times).strip()
                if count(text) == n_tokens:
                    return text
    return None


def _repeated(unit: str, n_tokens: int, count: Callable[[str], int]) -> Iterator[tuple[str, int]]:
    """The unit repeated, and its length: as often as tokens are wanted, then from once on until it is too long."""
    for times in (n_tokens, *range(1, _PER_TOKEN * n_tokens + 1)):
        text = (unit * times).strip()
        length = count(text) if text else -1
        if length < 0:
            return
        yield text, length
        if times != n_tokens and length > n_tokens + _TAIL:
            return
