"""Traces: a question with its chain split into steps, as token ids with a token span for every part.

A text is tokenised once and whole; the spans come from the tokenizer's offset mapping. Tokenising a prefix again would
shift boundaries wherever tokens merge across them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
        step_ends: for each step, the token of its last visible character, before what separates it from the next;
            None if that token belongs to the next step.
        marker: the answer marker, without white space at its end.
        answer: the answer's tokens, white space before it and the stop included; empty when the trace has no answer.
    """

    text: str
    ids: tuple[int, ...]
    question: Span
    steps: tuple[Span, ...]
    step_ends: tuple[int | None, ...]
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
        """Everything before the first step.

        Raises:
            InputError: if the chat template refuses the turns, or nothing opens the tag that `answer_start` closes.
        """
        text = self.format.question.replace("{question}", question)
        if self.format.chat:
            text = self._chat(text)
        text += self._start(text)
        tags = self.format.tags
        if tags is not None and tags.opening not in text:
            raise InputError(
                f"trace format: 'answer_start' closes {tags.closing}, but neither the chat template nor 'chain_start' "
                f"opens {tags.opening}; put it in 'chain_start'"
            )
        return text

    def encode(
        self, question: str, steps: Sequence[str], answer: str | None = None, gaps: Sequence[str] | None = None
    ) -> Trace:
        """The trace of a question with these steps, up to the answer marker or, given an answer, through its stop.

        Args:
            question, steps: as in prompts.
            answer: None for a trace that ends with the marker.
            gaps: what follows each step, as in `Case.gaps`; None for the format's separator between steps.

        Raises:
            InputError: if question or chain hold the text of a special token, or if the tokenizer's offsets do not run
                forward, so that no span could be trusted.
        """
        n_steps = len(steps)
        if gaps is None:
            gaps = [self.format.step_separator] * (n_steps - 1) + [""] * min(n_steps, 1)
        chain = [step + gap for step, gap in zip(steps, gaps, strict=True)]
        self._refuse_special(question, *chain)
        pieces = [self.question_text(question), *chain]
        # White space between marker and answer is scored with the answer: tokenizers merge it with some answers and
        # not with others.
        marker = self.format.answer_start.rstrip()
        pieces.append(marker)
        if answer is not None:
            pieces += [self.format.answer_start[len(marker) :] + answer, self.format.stop]
        text = "".join(pieces)
        starts = list(accumulate(map(len, pieces), initial=0))[:-1]
        ids, owners, places = self._tokens(text, starts, n_steps)
        bounds = _bounds(owners, len(pieces))
        end = bounds[-1][1]
        lasts = [start + len(step.rstrip()) - 1 for start, step in zip(starts[1:], steps, strict=False)]
        return Trace(
            text=text,
            ids=tuple(ids[:end]),
            question=bounds[0],
            steps=tuple(bounds[1 : 1 + n_steps]),
            step_ends=tuple(_holding(last, places, span) for last, span in zip(lasts, bounds[1:], strict=False)),
            marker=bounds[1 + n_steps],
            answer=(bounds[1 + n_steps][1], end),
        )

    def encode_answers(
        self, question: str, steps: Sequence[str], answers: Sequence[str], gaps: Sequence[str] | None = None
    ) -> list[Trace]:
        """The trace of each answer, as `encode` gives it; the spans that they share are found once."""
        first = self.encode(question, steps, answers[0], gaps)
        head = first.text[: len(first.text) - len(answers[0]) - len(self.format.stop)]
        before = first.ids[: first.answer[0]]
        traces = [first]
        for answer in answers[1:]:
            text = head + answer + self.format.stop
            ids = self._ids(text)
            if ids[: len(before)] == before:
                traces.append(replace(first, text=text, ids=ids, answer=(len(before), len(ids))))
            else:  # this answer merges with the text before it
                traces.append(self.encode(question, steps, answer, gaps))
        return traces

    def encode_question(self, question: str) -> list[int]:
        """Token ids of what a model is given to write a chain: everything before the first step.

        Spaces at the end of `chain_start` are left for the model to write: most tokenizers join them to the next word.

        Raises:
            InputError: as `encode`.
        """
        self._refuse_special(question)
        text = self.question_text(question)
        spaces = len(self.format.chain_start) - len(self.format.chain_start.rstrip(" "))
        if text.endswith(self.format.chain_start):
            text = text[: len(text) - spaces]
        return list(self._ids(text))

    def special_token_in(self, *texts: str) -> str | None:
        """The first special token whose text stands in one of the texts, where it would be read as that token."""
        found = (self._special.search(text) for text in texts) if self._special else ()
        return next((match[0] for match in found if match), None)

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        tokens = self.tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        names = sorted((token.content for token in tokens if token.special), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    def _refuse_special(self, *texts: str) -> None:
        token = self.special_token_in(*texts)
        if token is not None:
            text = next(text for text in texts if token in text)
            at = text.index(token)
            near = text[max(0, at - 40) : at + len(token) + 40]
            raise InputError(
                f"text …{near!r}… holds {token!r}, which the tokenizer reads as its special token and not as text; "
                "take it out of the question or chain"
            )

    def _chat(self, text: str) -> str:
        turns = [{"role": "user", "content": text}]
        if self.format.system is not None:
            turns.insert(0, {"role": "system", "content": self.format.system})
        try:
            rendered = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template may raise anything
            reason = str(error).strip().splitlines() or [type(error).__name__]
            given = "a system and a user turn" if self.format.system is not None else "a user turn alone"
            raise InputError(
                f"chat template: refuses {given} ({reason[0]}); set 'system' in the trace format, or leave it out, as "
                "the template wants"
            ) from None
        return str(rendered)

    def _start(self, text: str) -> str:
        """What of `chain_start` is still to be written: some chat templates open the chain (`<think>`) themselves."""
        start = self.format.chain_start
        if not (self.format.chat and start.strip() and text.rstrip().endswith(start.strip())):
            return start
        return "" if text[-1].isspace() else start[len(start.rstrip()) :]

    def _encoding(self, text: str) -> Any:
        """The tokenizer's encoding of a whole text, with its own special tokens where the text has none.

        A chat template writes all special tokens as text, as `apply_chat_template(tokenize=True)` takes for granted;
        and a wrapper that begins with the BOS token's text is not given a second one.
        """
        bos = self.tokenizer.bos_token
        written = self.format.chat or bool(bos and text.startswith(bos))
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=not written)

    def _ids(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`, without special tokens that the tokenizer appends."""
        encoding = self._encoding(text)
        end = len(encoding.ids)
        while end > 1 and encoding.special_tokens_mask[end - 1] and encoding.offsets[end - 1] == (0, 0):
            end -= 1
        return tuple(encoding.ids[:end])

    def _tokens(self, text: str, starts: list[int], n_steps: int) -> tuple[list[int], list[int], list[Span]]:
        """Token ids of `text`, the region that owns each (0 question, 1…T steps, then marker, answer, stop), and the
        characters of each.

        A token belongs to the region of its last character, unless it runs out of the chain and shows something of it:
        then it belongs to the last step that it shows, so that nothing of the chain is counted as marker.
        """
        encoding = self._encoding(text)
        ids: list[int] = []
        owners: list[int] = []
        places: list[Span] = []
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
            places.append((start, end))
        return ids, owners, places


def _holding(character: int, places: Sequence[Span], span: Span) -> int | None:
    """The last token of a span that holds this character."""
    held = (token for token in range(*span) if places[token][0] <= character < places[token][1])
    return max(held, default=None)


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
