"""Responses: a model's whole text told apart into chain and answer by a trace format's markers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from analysis.answers import same_answer
from analysis.prompts import Case
from analysis.trace_format import TraceFormat


@dataclass(frozen=True)
class Response:
    """A text as chain and answer.

    Attributes:
        chain: the text before the answer marker, or between the tags of a format that has them; otherwise as it was.
        answer: the text between marker and stop; None if there is no marker, or nothing after it.
        finished: whether the stop came.
    """

    chain: str
    answer: str | None
    finished: bool


def read_response(text: str, trace_format: TraceFormat) -> Response:
    """Chain and answer of a text that a model is still writing, or has written: the first marker counts.

    In a format whose chain stands between tags (`<think>`, `</think>`) the chain ends at the closing tag, and the
    answer is looked for behind it; what else stands there belongs to neither. While the tag is open nothing is
    finished; a text that never closes it has an answer only if it ends in one (`…\\nAnswer: 12`).
    """
    tags = trace_format.tags
    if tags is None:
        match = _marker(trace_format.answer_start).search(text)
        if match is None:
            return Response(text, None, False)
        return _answered(text[: match.start()], text[match.end() :], trace_format.stop)
    text = _without_opening(text, tags.opening)
    chain, closing, rest = text.partition(tags.closing)
    if not closing:
        chain, answer = _final_answer(text, tags.marker, trace_format.stop)
        return Response(chain, answer, False)
    if not tags.marker:
        return _answered(chain, rest, trace_format.stop)
    match = _marker(tags.marker).search(rest)
    if match is None:
        return Response(chain, None, False)
    return _answered(chain, rest[match.end() :], trace_format.stop)


def segmented(case: Case, trace_format: TraceFormat) -> Case:
    """The case with its steps and gaps, split as the format says; unchanged if its steps were given.

    A chain's text loses what the format writes itself: the tags, and a marker with an answer at its end. A response
    without an answer marker is all chain, and the case says so (`answered`).
    """
    if case.steps is not None:
        return case
    answered = True
    if case.response is not None:
        chain, answer = _whole_response(case.response, trace_format)
        answered = answer is not None
    else:
        chain = _given_chain(case.chain or "", trace_format, case.answer)
    segments = trace_format.segment(chain)
    return replace(case, steps=segments.steps, gaps=segments.gaps, chain=None, response=None, answered=answered)


def _whole_response(text: str, trace_format: TraceFormat) -> tuple[str, str | None]:
    """Chain and answer of a finished text: of several markers the last counts if nothing but an answer follows it."""
    if trace_format.tags is None:
        chain, answer = _final_answer(text, trace_format.answer_start, trace_format.stop)
        if answer is not None:
            return chain, answer
    response = read_response(text, trace_format)
    return response.chain, response.answer


def _given_chain(text: str, trace_format: TraceFormat, gold: str) -> str:
    tags = trace_format.tags
    if tags is not None:
        text = _without_opening(text, tags.opening).partition(tags.closing)[0]
    chain, answer = _final_answer(text, tags.marker if tags else trace_format.answer_start, trace_format.stop)
    # What follows a marker in a given chain is its answer only if it is the answer that was given.
    return chain if same_answer(answer, gold) else text


def _final_answer(text: str, marker: str, stop: str) -> tuple[str, str | None]:
    """The text before the last marker and the answer, if one line at most follows; else the whole text and None."""
    matches = list(_marker(marker).finditer(text)) if marker.strip() else []
    if not matches:
        return text, None
    answer = text[matches[-1].end() :].strip().removesuffix(stop.strip()).strip()
    if re.search(r"[\n\r]", answer):
        return text, None
    return text[: matches[-1].start()], answer or None


def _answered(chain: str, rest: str, stop: str) -> Response:
    # A stop such as "\n" may also be white space before the answer, which does not end it.
    start = len(rest) - len(rest.lstrip())
    end = rest.find(stop, start)
    answer = (rest[:end] if end >= 0 else rest).strip()
    return Response(chain, answer or None, end >= 0)


def _without_opening(text: str, opening: str) -> str:
    """The text behind the tag that opens the chain, if one stands at the start of a line; else all of it."""
    match = re.search(rf"(?:\A\ufeff?|[\n\r])\s*{re.escape(opening)}", text)
    text = text[match.end() :] if match else text
    while text.lstrip().startswith(opening):
        text = text.lstrip().removeprefix(opening)
    return text


def _marker(marker: str) -> re.Pattern[str]:
    """The marker with any white space where it has some, and not as the end of a longer word."""
    words = marker.split()
    if not words:
        return re.compile(re.escape(marker))
    return re.compile((r"(?<!\w)" if words[0][0].isalnum() else "") + r"\s+".join(map(re.escape, words)))
