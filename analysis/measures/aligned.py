"""Aligned prompts: those whose partner's tokens stand at the same positions, and what is patched in them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy import ndarray

from analysis import patching
from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.measures.protocol import Settings
from analysis.measures.routes import ANOTHER_PROMPT, NO_COUNTERFACTUAL, NO_PARTNER
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS
from analysis.routes import MIN_TOTAL_EFFECT
from analysis.traces import Trace

QUESTION, CHAIN, STEP, CONTROL = "question", "chain", "step", "control"
MIN_LOGIT_TOTAL = 1.0
"""A smaller difference between the two runs' logit differences divides by noise; such a prompt has no logit form."""

MIN_HELD = 0.5
"""Where question and chain together hold less of the effect behind the first layer, the answer was read within it."""
ONE_BLOCK = "the model has a single block, behind which nothing reads what is written"

Places = Bool[ndarray, " token"]


def spread(n: int, most: int) -> tuple[int, ...]:
    """At most so many of the layers 0 to n − 1, evenly spread, both ends among them."""
    return tuple(sorted(set(np.linspace(0, n - 1, min(most, n)).round().astype(int).tolist())))


@dataclass(frozen=True)
class Aligned:
    """A prompt whose partner's tokens stand at the same positions.

    Attributes:
        prompt: the prompt.
        own, donor: its text and its partner's.
        options: token ids of what is scored behind both, each with its stop.
    """

    prompt: Authored
    own: Trace
    donor: Trace
    options: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The own text up to the answer."""
        return self.own.ids[: self.own.marker[1]]

    @property
    def donor_ids(self) -> tuple[int, ...]:
        """The partner's text up to the answer."""
        return self.donor.ids[: self.donor.marker[1]]

    def span(self, start: int, end: int) -> Places:
        """The tokens of the text from `start` up to `end`."""
        places = np.arange(len(self.ids))
        return np.asarray((places >= start) & (places < end))

    def parts(self) -> list[tuple[str, int, Places]]:
        """Question, chain, and each step with its number from 1; the number is 0 elsewhere."""
        return [
            (QUESTION, 0, self.span(*self.own.question)),
            (CHAIN, 0, self.span(*self.own.chain)),
            *((STEP, number, self.span(*span)) for number, span in enumerate(self.own.steps, start=1)),
        ]

    def control(self, seed: int) -> tuple[str, int, Places]:
        """As many random tokens of question and chain as a step has on average."""
        end = self.own.chain[1]
        size = max(1, round((end - self.own.chain[0]) / len(self.own.steps)))
        rng = random.Random(f"{seed}:{self.prompt.id}:positions")
        return CONTROL, 0, np.isin(np.arange(len(self.ids)), rng.sample(range(end), min(size, end)))


def align(session: Session, prompts: Sequence[Authored], settings: Settings) -> tuple[list[Aligned], list[Excluded]]:
    """The prompts that can be patched, at most `settings.patch_prompts`, and why the others cannot."""
    excluded: list[Excluded] = []
    found: list[Aligned] = []
    for prompt, options in zip(prompts, session.options(prompts), strict=True):
        job = options.reason if isinstance(options, Excluded) else _aligned(session, prompt, options)
        if isinstance(job, str):
            excluded.append(Excluded(prompt.id, job, prompt.author))
        elif settings.patch_prompts is None or len(found) < settings.patch_prompts:
            found.append(job)
        else:
            reason = f"beyond the first {settings.patch_prompts} prompts, which the map is made from"
            excluded.append(Excluded(prompt.id, reason, prompt.author))
    return found, excluded


def uncontrasted(prompt: Authored) -> str | None:
    """Why a prompt has no counterfactual chain to be patched with; None if it has one."""
    if prompt.partner is None or not prompt.partner.has_chain:
        return NO_PARTNER
    if prompt.tier == ANOTHER_PROMPT:
        return NO_COUNTERFACTUAL
    return None if prompt.steps and prompt.partner.steps else NO_STEPS


def _aligned(session: Session, prompt: Authored, options: Sequence[str]) -> Aligned | str:
    if (reason := uncontrasted(prompt)) is not None:
        return reason
    assert prompt.partner is not None
    if len(options) < 2:
        return "fewer than two different answers to choose from"
    encoder = session.reader.encoder
    own, partner = (
        encoder.encode_answers(case.question, case.steps or (), options, case.gaps)
        for case in (prompt.case, prompt.partner)
    )
    first, donor = own[0], partner[0]
    if (first.question, first.steps, first.marker) != (donor.question, donor.steps, donor.marker):
        return "the partner's steps do not stand at the same token positions"
    if any(trace.ids[: trace.answer[0]] != first.ids[: first.answer[0]] for trace in own):
        return "the answer marker's tokens depend on the answer that follows"
    return Aligned(prompt, first, donor, tuple(trace.ids[trace.answer[0] :] for trace in own))


def batches(jobs: Sequence[Aligned], batch_tokens: int) -> Iterator[list[Aligned]]:
    """Prompts of similar length together; what is batched depends on the inputs alone."""
    batch: list[Aligned] = []
    for job in sorted(jobs, key=lambda job: len(job.ids)):
        if batch and 2 * (len(batch) + 1) * len(job.ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def in_order(table: pd.DataFrame, jobs: Sequence[Aligned]) -> pd.DataFrame:
    """The rows by prompt, in the order of these, whatever was batched with what; a prompt's own rows as they are."""
    place = {(job.prompt.id, job.prompt.author): at for at, job in enumerate(jobs)}
    keys = [place[key] for key in zip(table["id"], table["author"], strict=True)]
    return table.iloc[np.argsort(keys, kind="stable")].reset_index(drop=True)


def cell(row: int, hook: str, of: patching.Texts, where: Places) -> patching.Cell:
    """The run of a text in which what others had at a hook and the marked tokens replaces its own."""
    places = np.flatnonzero(where)
    stood = of.recorded[hook][row]
    return patching.Cell(row, hook, places, stood[torch.from_numpy(places).to(stood.device)])


def effects(own: ndarray, donor: ndarray, patched: ndarray) -> dict[str, float]:
    """Both forms of a patch's effect, from log-probabilities of the options.

    `effect = ⟨P_patched − P00, P11 − P00⟩` and `total = ‖P11 − P00‖²` in squared probability; `logit_effect` and
    `logit_total`, of `LP(y') − LP(y)` in nats, NaN where the total is below `MIN_LOGIT_TOTAL`.
    """
    p_own, p_donor, p_patched = (among(logprobs) for logprobs in (own, donor, patched))
    total = p_donor - p_own
    here, there = int(own.argmax()), int(donor.argmax())
    differences = [float(logprobs[there] - logprobs[here]) for logprobs in (own, donor, patched)]
    logit_total = differences[1] - differences[0]
    scored = here != there and logit_total >= MIN_LOGIT_TOTAL
    return {
        "effect": float((p_patched - p_own) @ total),
        "total": float(total @ total),
        "logit_effect": differences[2] - differences[0] if scored else np.nan,
        "logit_total": logit_total if scored else np.nan,
    }


def read_before(base: pd.DataFrame, variant: pd.DataFrame) -> dict[str, Any]:
    """Whether one of two readers has read the answer within the first layer.

    Then question and chain hold little of the effect behind it, and a change of their shares is none of the route.

    Args:
        base, variant: rows of partner's streams written behind the first layer, with `part`, `effect` and `total`.
    """
    return {"read_before": any(held_after_first(rows) < MIN_HELD for rows in (base, variant))}


def held_after_first(rows: pd.DataFrame) -> float:
    """The share of the effect that question and chain together still carry over behind the first layer."""
    totals = rows.loc[rows["part"] == CHAIN, "total"]
    held = rows.loc[rows["part"].isin([QUESTION, CHAIN]), "effect"].sum()
    # Of readers with hardly an effect nothing is read anywhere; that is said elsewhere.
    return float(held / totals.sum()) if totals.mean() >= MIN_TOTAL_EFFECT else 1.0


def among(logprobs: Float[ndarray, " option"]) -> Float[ndarray, " option"]:
    """Probabilities over the options."""
    weights = np.exp(logprobs - logprobs.max())
    return np.asarray(weights / weights.sum())
