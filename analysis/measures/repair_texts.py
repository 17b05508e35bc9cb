"""The texts of cross-model patching: each prompt's four, as two models read them, and who stands in for whom."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from analysis.authored import Authored
from analysis.cells import CELLS, Contrast, Excluded, find_options, unreadable
from analysis.measures.aligned import uncontrasted
from analysis.measures.protocol import Settings
from analysis.measures.session import Session
from analysis.models import Reader
from analysis.options import distinct_answers
from analysis.prompts import Case
from analysis.traces import Span, Trace


@dataclass(frozen=True)
class Text:
    """One text up to the answer, as one model's tokens.

    Attributes:
        ids: its token ids.
        options: token ids of the answers that are scored behind it, each with its stop.
        chain: the tokens of the chain.
        steps: those of each step.
    """

    ids: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    chain: Span
    steps: tuple[Span, ...]


@dataclass(frozen=True)
class Job:
    """A prompt whose four texts, in the order of `analysis.cells.CELLS`, two models read; their chains are the same
    tokens.

    Attributes:
        prompt: with its partner.
        ours: the texts in the model's own format.
        theirs: the same in the base's.
    """

    prompt: Authored
    ours: tuple[Text, ...]
    theirs: tuple[Text, ...]

    @property
    def longest(self) -> int:
        """The number of tokens of the longest text."""
        return max(len(text.ids) for text in (*self.ours, *self.theirs))


def find_jobs(
    session: Session, base: Reader, prompts: Sequence[Authored], settings: Settings
) -> tuple[list[Job], list[Excluded]]:
    """The prompts that both models can read, as many as `settings.patch_prompts`, and why the others are not there.

    Where no options are given, they are what either model finds likely in one of the four cells.
    """
    jobs: list[Job] = []
    excluded: list[Excluded] = []
    waiting: list[tuple[Authored, Contrast]] = []
    for prompt in prompts:
        if (reason := uncontrasted(prompt)) is not None:
            excluded.append(Excluded(prompt.id, reason, prompt.author))
            continue
        assert prompt.partner is not None
        waiting.append((prompt, Contrast(prompt.id, prompt.case, prompt.partner, prompt.options)))
    most = len(waiting) if settings.patch_prompts is None else settings.patch_prompts
    while waiting and len(jobs) < most:
        # Answers are looked for behind no more prompts than are needed.
        part, waiting = waiting[: most - len(jobs)], waiting[most - len(jobs) :]
        options = _options(session, base, [contrast for _, contrast in part])
        for (prompt, contrast), known in zip(part, options, strict=True):
            job = _job(session.reader, base, prompt, contrast, known)
            if isinstance(job, Job):
                jobs.append(job)
            else:
                excluded.append(Excluded(prompt.id, job, prompt.author))
    reason = f"beyond the first {most} prompts, which are patched across models"
    return jobs, excluded + [Excluded(prompt.id, reason, prompt.author) for prompt, _ in waiting]


def _options(session: Session, base: Reader, contrasts: Sequence[Contrast]) -> list[tuple[str, ...]]:
    open_ = [contrast for contrast in contrasts if not contrast.options]
    found = [find_options(reader, open_, session.batch_tokens) for reader in (session.reader, base)]
    both = {
        contrast.id: distinct_answers(session.reader, contrast.own, (*ours, *theirs))
        for contrast, ours, theirs in zip(open_, *found, strict=True)
    }
    return [contrast.options or both[contrast.id] for contrast in contrasts]


def _job(reader: Reader, base: Reader, prompt: Authored, contrast: Contrast, options: tuple[str, ...]) -> Job | str:
    if len(options) < 2:
        return "fewer than two different answers to choose from"
    special = reader.encoder.special_token_in(contrast.own.answer, contrast.partner.answer, *options)
    if special is not None:
        return f"an answer holds the text of the special token {special!r}"
    cases = (contrast.own, contrast.partner)
    ours, theirs = (
        [_traces(of, cases[question], cases[chain], options) for question, chain in CELLS] for of in (reader, base)
    )
    for of, traces in ((reader, ours), (base, theirs)):
        reason = unreadable(of, traces, options)
        if reason is None and any(text[0].chain[0] == text[0].chain[1] for text in traces):
            reason = "its chain has no token of its own"
        if reason is not None:
            return reason if of is reader else f"{of.name}: {reason}"
    if any(_chain(own[0]) != _chain(other[0]) for own, other in zip(ours, theirs, strict=True)):
        return "its chain is not the same tokens for the base and this model"
    return Job(prompt, tuple(map(_text, ours)), tuple(map(_text, theirs)))


def _traces(reader: Reader, question: Case, chain: Case, options: Sequence[str]) -> list[Trace]:
    return reader.encoder.encode_answers(question.question, chain.steps or (), options, chain.gaps)


def _chain(trace: Trace) -> tuple[int, ...]:
    return trace.ids[slice(*trace.chain)]


def _text(traces: Sequence[Trace]) -> Text:
    first = traces[0]
    options = tuple(trace.ids[trace.answer[0] :] for trace in traces)
    return Text(first.ids[: first.answer[0]], options, first.chain, first.steps)


def halves(jobs: Sequence[Job], seed: int) -> dict[str, int]:
    """Prompt → 0 or 1, drawn by seed; what is fitted on one half is written into the other."""
    ids = sorted({job.prompt.id for job in jobs})
    random.Random(f"{seed}:halves").shuffle(ids)
    return {identifier: at % 2 for at, identifier in enumerate(ids)}


def circles(jobs: Sequence[Job], seed: int) -> list[list[Job]]:
    """The prompts in pairs (one of three, if their number is odd) whose steps are of the most similar lengths.

    Each stands in for the one before it in its circle; a single prompt has nobody.
    """

    def shape(job: Job) -> tuple[object, ...]:
        lengths = [tuple(end - start for start, end in text.steps) for text in (job.ours[0], job.ours[-1])]
        # Ties are drawn, so that neighbours in the file are not neighbours here.
        return len(lengths[0]), lengths, random.Random(f"{seed}:{job.prompt.id}:circle").random()

    ordered = sorted(jobs, key=shape)
    found = [ordered[start : start + 2] for start in range(0, len(ordered), 2)]
    if len(found) > 1 and len(found[-1]) == 1:
        found[-2:] = [found[-2] + found[-1]]
    return found


def batches(found: Sequence[list[Job]], tokens: int) -> Iterator[list[list[Job]]]:
    """Circles of similar length together, so that little is padding; `tokens` is how many their texts may hold."""
    batch: list[list[Job]] = []
    rows = 0
    for circle in sorted(found, key=lambda circle: max(job.longest for job in circle)):
        longest, more = max(job.longest for job in circle), len(CELLS) * len(circle)
        if batch and (rows + more) * longest > tokens:
            yield batch
            batch, rows = [], 0
        batch.append(circle)
        rows += more
    if batch:
        yield batch


def counterparts(text: Text, other: Text) -> tuple[Int[ndarray, " token"], Int[ndarray, " token"]]:
    """Places in two texts that are the same token of the same step, as far as the other has one."""
    pairs = [
        (start + at, there + at)
        for (start, end), (there, there_end) in zip(text.steps, other.steps, strict=False)
        for at in range(min(end - start, there_end - there))
    ]
    here, there_places = (np.array([pair[which] for pair in pairs], dtype=int) for which in (0, 1))
    return here, there_places
