"""Positions: which tokens of a trace are kept, and what is known about each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analysis.errors import InputError
from analysis.traces import Span, Trace

POSITIONS: dict[str, str] = {
    "question_end": "last token before the chain",
    "step_ends": "last token of each step's own words, before what separates it from the next",
    "answer": "last token before the answer: the answer is predicted from here",
    "question": "every token of the question",
    "chain": "every token of the chain",
    "marker": "every token of the answer marker",
    "answer_tokens": "every token of the answer, its stop included",
    "all": "every token",
}
_ENDS = {"question_end": "question", "step_ends": "step", "answer": "marker"}
_PARTS = {"question": "question", "chain": "step", "marker": "marker", "answer_tokens": "answer"}
ROW_COLUMNS = ("id", "author", "text", "part", "step", "end", "token", "token_id")


def check_positions(positions: Sequence[str]) -> tuple[str, ...]:
    """The positions, each once, in the order of `POSITIONS`.

    Raises:
        InputError: for an unknown one, or none.
    """
    for position in positions:
        if position not in POSITIONS:
            known = "; ".join(f"{name} ({what})" for name, what in POSITIONS.items())
            raise InputError(f"position {position!r}: unknown; known are {known}")
    if not positions:
        raise InputError(f"no position given; known are {', '.join(POSITIONS)}")
    return tuple(position for position in POSITIONS if position in positions)


def token_rows(trace: Trace, positions: Sequence[str]) -> list[dict[str, Any]]:
    """One row a kept token of the trace, in the order of the text; a token that two positions name is one row.

    Each row holds `part` (question, step, marker or answer), `step` (from 1; 0 outside the chain), `end` (whether it
    is the last token of its part, or of its step's own words), `token` (its place in the text, from 0) and `token_id`.
    A step whose last token belongs to the next one has no end.
    """
    steps = enumerate(zip(trace.steps, trace.step_ends, strict=True), start=1)
    parts: list[tuple[str, int, Span, int | None]] = [
        ("question", 0, trace.question, trace.question[1] - 1),
        *(("step", number, span, last) for number, (span, last) in steps),
        ("marker", 0, trace.marker, trace.marker[1] - 1),
        ("answer", 0, trace.answer, trace.answer[1] - 1),
    ]
    whole = set(_PARTS.values()) if "all" in positions else {_PARTS.get(position) for position in positions}
    ends = {_ENDS.get(position) for position in positions}
    rows = []
    for part, step, (start, stop), last in parts:
        kept: Iterable[int] = ()
        if part in whole:
            kept = range(start, stop)
        elif part in ends and last is not None and start <= last < stop:
            kept = (last,)
        rows += [
            {"part": part, "step": step, "end": token == last, "token": token, "token_id": trace.ids[token]}
            for token in kept
        ]
    return rows


def at(rows: pd.DataFrame, position: str) -> pd.Series[bool]:
    """Which rows of a store's table are at this position of `POSITIONS`."""
    check_positions([position])
    part, end = rows["part"], rows["end"]
    if position in _ENDS:
        return (part == _ENDS[position]) & end
    return part == _PARTS[position] if position in _PARTS else part.notna()
