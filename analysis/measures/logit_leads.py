"""By how much the correct next token leads all others behind each of a prompt's texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from analysis import kv_cache
from analysis.errors import InputError
from analysis.measures.session import Session


@dataclass(frozen=True)
class Job:
    """A prompt's texts up to the answer as token ids, the intact one first, and the tokens correct behind each."""

    texts: tuple[tuple[int, ...], ...]
    correct: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Tokens that a batch holds for it."""
        return max(map(len, self.texts)) * len(self.texts)


def leads(session: Session, jobs: Sequence[Job]) -> list[tuple[Float[ndarray, " text"], float]]:
    """For each job, by how many logits the correct tokens lead behind each text, and the standard deviation of the
    logits over the vocabulary behind the first.

    Raises:
        InputError: for logits that are not finite.
    """
    stage = session.stage(f"{session.name}: logit-difference decay", len(jobs))
    results: dict[Job, tuple[Float[ndarray, " text"], float]] = {}
    for batch in _batches(jobs, session.batch_tokens):
        for job, found in zip(batch, _read(session, batch), strict=True):
            if not np.isfinite([*found[0], found[1]]).all():
                raise InputError(
                    f"model {session.name}: its logits behind the answer marker are not finite; its weights or its "
                    f"precision ({session.reader.model.dtype}) overflow"
                )
            results[job] = found
        stage(len(batch))
    return [results[job] for job in jobs]


def _batches(jobs: Sequence[Job], batch_tokens: int) -> Iterator[list[Job]]:
    """Jobs of similar length together; what is batched depends on the inputs alone."""
    batch: list[Job] = []
    for job in sorted(jobs, key=lambda job: len(job.texts[0])):
        if batch and sum(other.size for other in batch) + job.size > batch_tokens:
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _read(session: Session, jobs: Sequence[Job]) -> list[tuple[Float[ndarray, " text"], float]]:
    """As `leads`. Texts are read as branches of their job's first, behind what they share with it."""
    model = session.reader.model
    trunk, last = kv_cache.read(model, [job.texts[0] for job in jobs])
    found = {(row, 0): _lead(last[row], job.correct[0]) for row, job in enumerate(jobs)}
    spreads = last.double().std(dim=1).tolist()
    branches = sorted(
        (len(ids) - shared, row, at, shared)
        for row, job in enumerate(jobs)
        for at, ids in enumerate(job.texts)
        if ids != job.texts[0]
        for shared in [_shared(job.texts[0], ids)]
    )
    start = 0
    while start < len(branches):
        end = start + 1
        while (
            end < len(branches)
            and (trunk.visible.shape[1] + branches[end][0]) * (end + 1 - start) <= session.batch_tokens
        ):
            end += 1
        part = branches[start:end]
        rows, cuts = (torch.tensor([branch[i] for branch in part], device=trunk.length.device) for i in (1, 3))
        own = [jobs[row].texts[at][shared:] for _, row, at, shared in part]
        _, last = kv_cache.advance(model, trunk.rows(rows).until(cuts), own)
        found |= {(row, at): _lead(last[i], jobs[row].correct[at]) for i, (_, row, at, _) in enumerate(part)}
        start = end
    return [
        (np.array([found.get((row, at), found[row, 0]) for at in range(len(job.texts))]), spreads[row])
        for row, job in enumerate(jobs)
    ]


def _shared(trunk: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens a branch has in common with the trunk from the start; at least its last is left to be read."""
    common = next((at for at, pair in enumerate(zip(trunk, ids, strict=False)) if pair[0] != pair[1]), len(ids))
    return min(common, len(trunk), len(ids) - 1)


def _lead(logits: Float[Tensor, " vocab"], correct: Sequence[int]) -> float:
    """By how much the largest of the correct tokens' logits is above the largest of all others'."""
    wrong = torch.ones_like(logits, dtype=torch.bool)
    wrong[list(correct)] = False
    return float(logits[~wrong].double().max() - logits[wrong].double().max())
