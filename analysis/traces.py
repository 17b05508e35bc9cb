"""Traces: a question with its chain split into steps, as token ids with a token span for every part.

A text is tokenised once and whole; the spans come from the tokenizer's offset mapping. Tokenising a prefix again would
shift boundaries wherever tokens merge across them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from analysis.errors import InputError
from analysis.trace_format import TraceFormat

Span = tuple[int, int]


@dataclass(frozen=True)
class Trace:
    """One text as one model's tokens; all spans are half-open token ranges.

    Attributes:
        text: the whole text.
        ids: its token ids, leading special tokens included, automatically appended ones (such as EOS) not.
        question: from the first token up to the chain, the format's `chain_start` included.
        steps: one span a step; together they cover every token of the chain, each exactly once.
        marker: the answer marker, without white space at its end.
        answer: the answer's tokens, white space before it and the stop included; empty when the trace has no answer.
    """

    text: str
    ids: tuple[int, ...]
    question: Span
    steps: tuple[Span, ...]
    marker: Span
    answer: Span

    @property
    def chain(self) -> Span:
        """The span of all steps."""
        return self.question[1], self.marker[0]


@dataclass(frozen=True)
class TraceEncoder:
    """Writes traces in one format and tokenises them with one tokenizer (a `PreTrainedTokenizerFast`)."""

    tokenizer: Any
    format: TraceFormat

    def question_text(self, question: str) -> str:
        """Everything before the first step."""
        text = self.format.question.replace("{question}", question)
        if self.format.chat:
            turn = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return text + self.format.chain_start

    def encode(self, question: str, steps: Sequence[str], answer: str | None = None) -> Trace:
        """The trace of a question with these steps, up to the answer marker or, given an answer, through its stop.

        Raises:
            InputError: if the tokenizer's offsets do not run forward, so that no span could be trusted.
        """
        pieces = [self.question_text(question)]
        pieces += [step + self.format.step_separator for step in steps[:-1]]
        pieces += list(steps[-1:])
        n_steps = len(steps)
        # White space between marker and answer is scored with the answer: tokenizers merge it with some answers and
        # not with others.
        marker = self.format.answer_start.rstrip()
        pieces.append(marker)
        if answer is not None:
            pieces += [self.format.answer_start[len(marker) :] + answer, self.format.stop]
        text = "".join(pieces)
        starts = list(accumulate(map(len, pieces), initial=0))[:-1]
        ids, owners = self._tokens(text, starts, n_steps)
        bounds = _bounds(owners, len(pieces))
        end = bounds[-1][1]
        return Trace(
            text=text,
            ids=tuple(ids[:end]),
            question=bounds[0],
            steps=tuple(bounds[1 : 1 + n_steps]),
            marker=bounds[1 + n_steps],
            answer=(bounds[1 + n_steps][1], end),
        )

    def encode_answers(self, question: str, steps: Sequence[str], answers: Sequence[str]) -> list[Trace]:
        """The trace of each answer, as `encode` gives it; the spans that they share are found once."""
        first = self.encode(question, steps, answers[0])
        head = first.text[: len(first.text) - len(answers[0]) - len(self.format.stop)]
        before = first.ids[: first.answer[0]]
        traces = [first]
        for answer in answers[1:]:
            text = head + answer + self.format.stop
            ids = self._ids(text)
            if ids[: len(before)] == before:
                traces.append(replace(first, text=text, ids=ids, answer=(len(before), len(ids))))
            else:  # this answer merges with the text before it
                traces.append(self.encode(question, steps, answer))
        return traces

    def encode_question(self, question: str) -> list[int]:
        """Token ids of everything before the first step: what a model is given to write a chain."""
        return list(self._ids(self.question_text(question)))

    def _ids(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`, without special tokens that the tokenizer appends."""
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=not self.format.chat)
        end = len(encoding.ids)
        while end > 1 and encoding.special_tokens_mask[end - 1] and encoding.offsets[end - 1] == (0, 0):
            end -= 1
        return tuple(encoding.ids[:end])

    def _tokens(self, text: str, starts: list[int], n_steps: int) -> tuple[list[int], list[int]]:
        """Token ids of `text` and the region that owns each (0 question, 1…T steps, then marker, answer, stop).

        A token belongs to the region of its last character, unless it runs out of the chain and shows something of it:
        then it belongs to the last step that it shows, so that nothing of the chain is counted as marker.
        """
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=not self.format.chat)
        ids: list[int] = []
        owners: list[int] = []
        current = 0
        for token, (start, end), special in zip(
            encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True
        ):
            if end > start:
                # bisect_right: a region without characters, such as an empty marker, owns nothing.
                owner = bisect_right(starts, end - 1) - 1
                if owner > n_steps and start < starts[n_steps + 1]:
                    visible = [at for at in range(start, starts[n_steps + 1]) if not text[at].isspace()]
                    step = bisect_right(starts, visible[-1]) - 1 if visible else 0
                    owner = step if step >= 1 else owner
                if owner < current:
                    raise InputError(
                        f"tokenizer: the character offsets run backwards at token {len(ids)} of {text[:80]!r}…, so "
                        "steps cannot be located; use a tokenizer.json whose offsets follow the text"
                    )
                current = owner
            elif special and ids and start == 0:
                continue  # appended by the tokenizer itself (EOS): not part of the text
            ids.append(token)
            owners.append(current)
        return ids, owners


def _bounds(owners: Sequence[int], n_regions: int) -> list[Span]:
    """The token span of each region; a region without a token of its own gets an empty span in its place."""
    bounds = []
    at = 0
    for region in range(n_regions):
        start = at
        while at < len(owners) and owners[at] == region:
            at += 1
        bounds.append((start, at))
    return bounds
