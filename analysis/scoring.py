"""Scoring: the log-probability of each answer behind each of many texts that share most of what they say.

Texts of one prompt (its chain cut short, one step changed, another question in front) are read as branches of the first
of them: what a text shares with it, token for token, is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from analysis import kv_cache
from analysis.cells import Excluded, unreadable
from analysis.errors import InputError
from analysis.models import Reader
from analysis.options import option_logprobs
from analysis.prompts import Case


@dataclass(frozen=True)
class Contexts:
    """The texts of one prompt behind which the same answers are scored.

    Attributes:
        id: the prompt's.
        answers: what is scored, each with the format's stop.
        cases: question and steps of each text; their own answers are not read.
    """

    id: str
    answers: tuple[str, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class _Job:
    """A prompt's texts as token ids up to the answer, each distinct one once, and the ids of every answer."""

    prefixes: tuple[tuple[int, ...], ...]
    which: tuple[int, ...]
    answers: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def size(self) -> int:
        return max(map(len, self.prefixes)) * len(self.prefixes)


def answer_logprobs(
    reader: Reader,
    contexts: Sequence[Contexts],
    batch_tokens: int = 16384,
    progress: Callable[[int], None] | None = None,
) -> list[Float[ndarray, "text answer"] | Excluded]:
    """For each prompt `LP(answer | text)` in nats: the sum over the answer's tokens and its stop, and nothing else.

    Args:
        reader: the model.
        contexts: the prompts, each with at least one text and one answer; neighbours change no result beyond rounding.
        batch_tokens: how many tokens one forward pass may hold, cached ones included.
        progress: called with the number of prompts done since the last call.

    Raises:
        InputError: for a text that holds a special token's text, or probabilities that are not finite.
    """
    results: dict[int, Float[ndarray, "text answer"] | Excluded] = {}
    jobs: list[tuple[int, _Job]] = []
    for index, prompt in enumerate(contexts):
        job = _job(reader, prompt)
        if isinstance(job, Excluded):
            results[index] = job
        else:
            jobs.append((index, job))
    if progress:
        progress(len(results))
    for batch in _batches(jobs, batch_tokens):
        scored = _score(reader, [job for _, job in batch], batch_tokens)
        for (index, job), found in zip(batch, scored, strict=True):
            if not np.isfinite(found).all():
                raise InputError(
                    f"model {reader.name}: the answer's probabilities are not finite at prompt "
                    f"{contexts[index].id!r}; its weights or its precision ({reader.model.dtype}) overflow"
                )
            results[index] = found[list(job.which)]
        if progress:
            progress(len(batch))
    return [results[index] for index in range(len(contexts))]


def _job(reader: Reader, prompt: Contexts) -> _Job | Excluded:
    special = reader.encoder.special_token_in(*prompt.answers)
    if special is not None:
        return Excluded(prompt.id, f"an answer holds the text of the special token {special!r}")
    traces = [
        reader.encoder.encode_answers(case.question, case.steps or (), prompt.answers, case.gaps)
        for case in prompt.cases
    ]
    reason = unreadable(reader, traces, prompt.answers)
    if reason is not None:
        return Excluded(prompt.id, reason)
    prefixes = [text[0].ids[: text[0].answer[0]] for text in traces]
    distinct = list(dict.fromkeys(prefixes))
    first = {ids: at for at, ids in reversed(list(enumerate(prefixes)))}
    return _Job(
        tuple(distinct),
        tuple(distinct.index(ids) for ids in prefixes),
        tuple(tuple(trace.ids[trace.answer[0] :] for trace in traces[first[ids]]) for ids in distinct),
    )


def _batches(jobs: list[tuple[int, _Job]], batch_tokens: int) -> Iterator[list[tuple[int, _Job]]]:
    """Prompts of similar length together; what is batched depends on the inputs alone."""
    batch: list[tuple[int, _Job]] = []
    held = 0
    for item in sorted(jobs, key=lambda job: max(map(len, job[1].prefixes))):
        if batch and held + item[1].size > batch_tokens:
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += item[1].size
    if batch:
        yield batch


def _score(reader: Reader, jobs: list[_Job], batch_tokens: int) -> list[Float[ndarray, "text answer"]]:
    """For each job, the log-probabilities behind its distinct texts."""
    trunk, last = kv_cache.read(reader.model, [job.prefixes[0] for job in jobs])
    found = [[scores] for scores in option_logprobs(reader.model, trunk, last, [job.answers[0] for job in jobs])]
    # Branches with as much of their own to read go together: a batch is as wide as its widest row.
    branches = sorted(
        (
            (len(ids) - shared, row, at, shared)
            for row, job in enumerate(jobs)
            for at, ids in enumerate(job.prefixes)
            if at > 0 and (shared := _shared(job.prefixes[0], ids)) is not None
        )
    )
    scores: dict[tuple[int, int], torch.Tensor] = {}
    slots = trunk.visible.shape[1]
    start = 0
    while start < len(branches):
        end = start + 1
        while end < len(branches) and (slots + branches[end][0]) * (end + 1 - start) <= batch_tokens:
            end += 1
        part = branches[start:end]
        rows, cuts = (torch.tensor([branch[i] for branch in part], device=trunk.length.device) for i in (1, 3))
        read, after = kv_cache.advance(
            reader.model, trunk.rows(rows).until(cuts), [jobs[row].prefixes[at][cut:] for _, row, at, cut in part]
        )
        answers = [jobs[row].answers[at] for _, row, at, _ in part]
        for (_, row, at, _), logprobs in zip(part, option_logprobs(reader.model, read, after, answers), strict=True):
            scores[row, at] = logprobs
        start = end
    for row, job in enumerate(jobs):
        found[row] += [scores[row, at] for at in range(1, len(job.prefixes))]
    return [torch.stack(rows).cpu().numpy() for rows in found]


def _shared(trunk: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens a branch has in common with the trunk from the start; at least its last is left to be read."""
    common = next((at for at, pair in enumerate(zip(trunk, ids, strict=False)) if pair[0] != pair[1]), None)
    return min(len(trunk), len(ids) - 1) if common is None else common
