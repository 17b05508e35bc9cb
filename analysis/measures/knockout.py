"""Attention knockout: what does the answer lose when it cannot attend to a step?

The answer marker's tokens and the answer's, at all layers, attend to nothing of one part of the text: a step, the whole
chain, or the question. Positions stay as they are, and what earlier tokens have read there they keep: a later step
still holds what it took from an earlier one. So this finds what the answer reads directly, and not what it rests on.

The parts are the trace's: a step holds what separates it from the next, and the question is everything before the
chain, a chat template's own words and `chain_start` included. Always visible are the text's first token, on which
attention rests where it looks for nothing, and the marker.

Without the whole chain, or the last step, what stands next to the marker is gone, the text has lost its form, and a
model may say something that is no answer at all; that is a drop of the answer's log-probability as well. Its
probability among the options leaves that out, and is what counts as evidence.

Source: attention knockout of Geva et al. 2023 (arXiv 2304.14767), at all layers and on the parts of a trace.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy.special import softmax

from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.errors import InputError
from analysis.masking import Mask, Text, masked_logprobs
from analysis.measures.estimates import length_matched
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS
from analysis.traces import Span, Trace

STEP, CHAIN, QUESTION = "step", "chain", "question"
VALUES = ("drop", "p_drop", "tv", "same")
COLUMNS = (
    *("id", "author", "part", "step", "n_steps", "start", "n_positions", "control_start", "logprob"),
    *(*VALUES, *(f"{value}_control" for value in VALUES), "beyond", "p_beyond"),
)
NOTHING: Span = (0, 0)
NO_QUESTION = "its question has no token beside the text's first, which is never hidden"


@dataclass(frozen=True)
class Readable:
    """A prompt whose answer can be masked: its text as a trace, and the token ids of its options."""

    prompt: Authored
    trace: Trace
    options: tuple[tuple[int, ...], ...]

    @property
    def question(self) -> Span:
        """What is hidden of the question: all but the first token."""
        return 1, self.trace.question[1]

    def from_marker(self, hidden: Span) -> Mask:
        """The mask through which marker and answer are read."""
        return Mask(self.trace.marker[0], hidden)

    def anywhere(self, part: str, size: int, seed: int) -> Span:
        """A random span of so many tokens before the marker, the first token not among them."""
        start = self._rng(seed, part).randint(1, self.trace.chain[1] - size)
        return start, start + size

    def beside(self, step: int, seed: int) -> Span | None:
        """A random span of as many tokens as step `step` (from 1) has, none of them the step's or the first token.

        It is drawn from those nearest to the step in distance from the marker, twice as many as the step has tokens;
        None where there is no room for one.
        """
        first, last = self.trace.steps[step - 1]
        size = last - first
        starts = [at for at in range(1, self.trace.chain[1] - size + 1) if at + size <= first or at >= last]
        nearest = sorted(starts, key=lambda at: (abs(at - first), at))[: 2 * size]
        if not nearest:
            return None
        start = self._rng(seed, f"{STEP} {step}").choice(nearest)
        return start, start + size

    def _rng(self, seed: int, part: str) -> random.Random:
        return random.Random(f"{seed}:{self.prompt.id}:{part}:knockout")


def readable(session: Session, prompts: Sequence[Authored]) -> tuple[list[Readable], list[Excluded]]:
    """The prompts whose answer can be masked, and why the others' cannot."""
    kept: list[Readable] = []
    excluded: list[Excluded] = []
    for prompt, options in zip(prompts, session.options(prompts), strict=True):
        if isinstance(options, Excluded):
            excluded.append(Excluded(prompt.id, options.reason, prompt.author))
            continue
        if not prompt.steps:
            excluded.append(Excluded(prompt.id, NO_STEPS, prompt.author))
            continue
        case = prompt.case
        traces = session.reader.encoder.encode_answers(case.question, prompt.steps, options, case.gaps)
        if traces[0].question[1] < 2:
            excluded.append(Excluded(prompt.id, NO_QUESTION, prompt.author))
            continue
        kept.append(Readable(prompt, traces[0], tuple(trace.ids[trace.answer[0] :] for trace in traces)))
    return kept, excluded


def masked(
    session: Session, kept: Sequence[Readable], masks: Sequence[Sequence[Mask]], what: str
) -> list[Float[ndarray, "mask option"]]:
    """`LP(option | masked text)` in nats for each prompt and mask; texts that two authors have in common are read once.

    Raises:
        InputError: if one of them is not finite.
    """
    asked = [
        Text(item.trace.ids[: item.trace.answer[0]], item.options, tuple(mine))
        for item, mine in zip(kept, masks, strict=True)
    ]
    distinct = list(dict.fromkeys(asked))
    stage = session.stage(f"{session.name}: {what}", len(distinct))
    scored = masked_logprobs(session.reader.model, distinct, session.batch_tokens, stage)
    found = dict(zip(distinct, scored, strict=True))
    for item, text in zip(kept, asked, strict=True):
        if not np.isfinite(found[text]).all():
            raise InputError(
                f"model {session.name}: the answer's probabilities are not finite at prompt {item.prompt.id!r}, behind "
                f"its text or a masked one; its weights or its precision ({session.reader.model.dtype}) overflow"
            )
    return [found[text] for text in asked]


def with_rest(logprobs: Float[ndarray, " option"]) -> Float[ndarray, " outcome"]:
    """The probabilities of the options and, last, of anything else."""
    among = np.exp(logprobs)
    return np.append(among, max(0.0, 1.0 - among.sum()))


def attention_knockout(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt, author and part: each `step` (numbered from 1), the whole `chain`, and the `question`.

    Columns: `start` and `n_positions`, the tokens that are hidden; `logprob`, `LP(y)` behind the intact text in nats,
    where `y` is the reader's own answer, the most probable option behind it; `drop`, by how much `LP(y)` falls when the
    part is hidden; `p_drop`, the same for the probability of `y` among the options; `tv`, the total variation between
    both distributions over the options and anything else; `same`, whether `y` stays the most probable option.

    The same in `…_control` with as many tokens hidden from `control_start` on: for a step beside it, so mostly tokens
    of its neighbours (`Readable.beside`; NaN where there is no room), for chain and question anywhere, also in the
    part itself. `beyond` and `p_beyond` are `drop` and `p_drop` minus their controls: about 0 where all steps count
    alike.

    A step without a token of its own, as it merges with the next, is no row.
    """
    kept, excluded = readable(session, prompts)
    parts = [_parts(item, settings.seed) for item in kept]
    masks = [
        [item.from_marker(span) for span in (NOTHING, *_spans(found))] for item, found in zip(kept, parts, strict=True)
    ]
    rows: list[dict[str, Any]] = []
    for item, found, logprobs in zip(kept, parts, masked(session, kept, masks, "attention knockout"), strict=True):
        intact, behind = logprobs[0], iter(logprobs[1:])
        for part in found:
            effect = _effect(intact, next(behind))
            control = dict.fromkeys(effect, np.nan) if part.control is None else _effect(intact, next(behind))
            low, high = part.span
            row = {"id": item.prompt.id, "author": item.prompt.author, "part": part.name, "step": part.step}
            row |= {"n_steps": len(item.trace.steps), "start": low, "n_positions": high - low}
            row |= {"control_start": part.control[0] if part.control else np.nan, "logprob": float(intact.max())}
            row |= {**effect, **{f"{name}_control": value for name, value in control.items()}}
            row |= {"beyond": effect["drop"] - control["drop"], "p_beyond": effect["p_drop"] - control["p_drop"]}
            rows.append(row)
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


@dataclass(frozen=True)
class _Part:
    """What is hidden, and what is hidden instead of it; `step` is 0 for chain and question."""

    name: str
    step: int
    span: Span
    control: Span | None


def _parts(item: Readable, seed: int) -> list[_Part]:
    steps = [
        _Part(STEP, number, span, item.beside(number, seed))
        for number, span in enumerate(item.trace.steps, start=1)
        if span[0] < span[1]
    ]
    whole = [
        _Part(name, 0, span, item.anywhere(name, span[1] - span[0], seed))
        for name, span in ((CHAIN, item.trace.chain), (QUESTION, item.question))
    ]
    return [*steps, *whole]


def _spans(parts: Sequence[_Part]) -> Iterator[Span]:
    """What is hidden, in the order in which it is read: each part, and its control behind it."""
    for part in parts:
        yield part.span
        if part.control is not None:
            yield part.control


def _effect(intact: Float[ndarray, " option"], masked: Float[ndarray, " option"]) -> dict[str, float]:
    own = int(intact.argmax())
    among = [softmax(logprobs)[own] for logprobs in (intact, masked)]
    return {
        "drop": float(intact[own] - masked[own]),
        "p_drop": float(among[0] - among[1]),
        "tv": float(np.abs(with_rest(intact) - with_rest(masked)).sum() / 2),
        "same": float(masked.argmax() == own),
    }


def _whole(part: str, words: str, detached: Literal[-1, 1]) -> tuple[Quantity, ...]:
    where, label = {"part": part}, f"{words} hidden: drop of the answer's"
    control = f"a random span as long as {words} hidden: drop of the answer's log-probability"
    # Where chain and question lead to the same answer, one of them does; that the question is not missed says nothing.
    mute = detached > 0
    return (
        Quantity(part, f"{label} log-probability", "nats", "drop", None, where),
        Quantity(
            f"{part}_p",
            f"{label} probability among options",
            "probability",
            "p_drop",
            where=where,
            detached=detached,
            mute_if_unchanged=mute,
        ),
        Quantity(f"{part}_control", control, "nats", "drop_control", None, where),
    )


def _step(suffix: str, of: str, unit: str, value: str, detached: Literal[-1, 0] = 0) -> Quantity:
    label = f"a step hidden: drop of the answer's {of}, less that with a span beside it hidden"
    return Quantity(f"{STEP}{suffix}", label, unit, value, None, {"part": STEP}, detached)


TESTED = (
    *_whole(CHAIN, "the chain", -1),
    *_whole(QUESTION, "the question", 1),
    _step("", "log-probability", "nats", "beyond"),
    _step("_p", "probability among options", "probability", "p_beyond", -1),
)

MEASURE = Measure(
    name="attention_knockout",
    title="What does the answer lose when it cannot attend to a step?",
    run=attention_knockout,
    quantities=TESTED,
    compare=length_matched(TESTED),
    tokens=lambda size: size.text + (2 * size.steps + 4) * size.marker,
)
