"""The residual map: where, in layers and steps, the partner's answer can be carried over by the residual stream.

The donor is the partner's run `(Q', c')`, at the same token positions. For each layer and set of positions the
recipient's `resid_post` there is replaced by the donor's, and everything after it is computed anew: exact, by
`analysis.patching`. After the last block a position is read by nothing else, so that layer is left out.

The effect is taken as in the routes, `⟨P_patched − P00, P11 − P00⟩` against `TE = ‖P11 − P00‖²`, and as the change of
the logit difference `LP(y') − LP(y)`. Of an answer of several tokens, those after the first are read behind the
recipient's own text in the layers below the patch. This map locates; the routes quantify.

Source: Vig et al. 2020 (arXiv 2004.12265), Meng et al. 2022 (arXiv 2202.05262), on step positions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy import ndarray

from analysis import patching, sites, statistics
from analysis.authored import Authored
from analysis.cells import CHECK_TOLERANCE, HALF_TOLERANCE, MIN_OPTION_MASS, Excluded
from analysis.errors import InputError
from analysis.measures.protocol import Measure, Measured, Quantity, Settings, Size
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS
from analysis.traces import Trace

SITE = "resid_post"
QUESTION, CHAIN, STEP, CONTROL = "question", "chain", "step", "control"
COLUMNS = (
    *("id", "author", "layer", "part", "step", "n_steps", "n_positions"),
    *("effect", "total", "logit_effect", "logit_total"),
)
ANOTHER_PROMPT = 3
MIN_LOGIT_TOTAL = 1.0
"""A smaller difference between the two runs' logit differences divides by noise; such a prompt has no logit form."""
OUTLIER_SHARE, OUTLIER_MEAN, OUTLIER_RANGE = 0.1, 0.8, (0.0, 1.5)


@dataclass(frozen=True)
class _Job:
    """A prompt whose partner's tokens stand at the same positions, and the positions that are patched."""

    prompt: Authored
    own: Trace
    donor: Trace
    options: tuple[tuple[int, ...], ...]
    parts: tuple[tuple[str, int, Bool[ndarray, " token"]], ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.own.ids[: self.own.marker[1]]

    @property
    def donor_ids(self) -> tuple[int, ...]:
        return self.donor.ids[: self.donor.marker[1]]


def patch_map(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt, layer and set of positions.

    Sets: `question`, `chain`, each `step` (numbered from 1), and `control`: as many positions as a step has on average,
    drawn from question and chain. Patching all positions must give the donor's own answer, and patching a run with
    itself must change nothing: both are checked for every prompt at one layer, and how often hooks fired at all.

    Columns: `n_positions` patched; `effect` and `total` in squared probability, `logit_effect` and `logit_total` in
    nats. The logit form is NaN where `logit_total` is below `MIN_LOGIT_TOTAL`.

    Raises:
        InputError: if one of the checks fails.
    """
    excluded: list[Excluded] = []
    jobs: list[_Job] = []
    for prompt, options in zip(prompts, session.options(prompts), strict=True):
        job = options.reason if isinstance(options, Excluded) else _job(session, prompt, options, settings.seed)
        if isinstance(job, str):
            excluded.append(Excluded(prompt.id, job, prompt.author))
        elif settings.patch_prompts is None or len(jobs) < settings.patch_prompts:
            jobs.append(job)
        else:
            reason = f"beyond the first {settings.patch_prompts} prompts, which the map is made from"
            excluded.append(Excluded(prompt.id, reason, prompt.author))
    stage = session.stage(f"{session.name}: residual map", len(jobs))
    rows: list[dict[str, Any]] = []
    for batch in _batches(jobs, session.batch_tokens):
        found, unheld = _measure(session, batch, settings.patch_layers)
        rows += found
        excluded += unheld
        stage(len(batch))
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def _job(session: Session, prompt: Authored, options: Sequence[str], seed: int) -> _Job | str:
    if prompt.partner is None or not prompt.partner.has_chain:
        return "no counterfactual partner"
    if prompt.tier == ANOTHER_PROMPT:
        return "its partner is merely another prompt"
    if not prompt.steps or not prompt.partner.steps:
        return NO_STEPS
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
    end = first.marker[1]
    rng = random.Random(f"{seed}:{prompt.id}:positions")
    size = max(1, round((first.chain[1] - first.chain[0]) / len(first.steps)))
    parts = [
        (QUESTION, 0, _span(end, *first.question)),
        (CHAIN, 0, _span(end, *first.chain)),
        *((STEP, number, _span(end, *span)) for number, span in enumerate(first.steps, start=1)),
        (CONTROL, 0, np.isin(np.arange(end), rng.sample(range(first.chain[1]), min(size, first.chain[1])))),
    ]
    return _Job(prompt, first, donor, tuple(trace.ids[trace.answer[0] :] for trace in own), tuple(parts))


def _span(length: int, start: int, end: int) -> Bool[ndarray, " token"]:
    places = np.arange(length)
    return np.asarray((places >= start) & (places < end))


def _batches(jobs: Sequence[_Job], batch_tokens: int) -> Iterator[list[_Job]]:
    """Prompts of similar length together; what is batched depends on the inputs alone."""
    batch: list[_Job] = []
    rows = 0
    for job in sorted(jobs, key=lambda job: len(job.ids)):
        if batch and (rows + len(job.parts) + 2) * len(job.ids) > batch_tokens:
            yield batch
            batch, rows = [], 0
        batch.append(job)
        rows += len(job.parts) + 2
    if batch:
        yield batch


def _measure(
    session: Session, jobs: list[_Job], chosen: tuple[int, ...] | None
) -> tuple[list[dict[str, Any]], list[Excluded]]:
    """The rows of these prompts, and those whose options hold too little of the partner's answer."""
    model = session.reader.model
    # After the last block a position is read by nothing but its own logits.
    layers = chosen or tuple(range(len(sites.blocks(model)) - 1))
    names = [sites.hook_name(SITE, layer) for layer in layers]
    options = [job.options for job in jobs]
    ours = patching.read_texts(model, [job.ids for job in jobs], options, names)
    theirs = patching.read_texts(model, [job.donor_ids for job in jobs], options, names)
    _check(session, jobs, ours, theirs, names[len(names) // 2])
    cells = [
        _cell(row, name, theirs, where) for name in names for row, job in enumerate(jobs) for _, _, where in job.parts
    ]
    patched = iter(patching.patched(model, session.name, ours, cells, session.batch_tokens))
    held = [float(np.exp(logprobs).sum()) >= MIN_OPTION_MASS for logprobs in theirs.own]
    rows: list[dict[str, Any]] = []
    for layer in layers:
        for row, job in enumerate(jobs):
            for part, step, where in job.parts:
                effects = _effects(ours.own[row], theirs.own[row], next(patched))
                if not held[row]:
                    continue
                key = {
                    "id": job.prompt.id,
                    "author": job.prompt.author,
                    "layer": layer,
                    "part": part,
                    "step": step,
                    "n_steps": len(job.own.steps),
                    "n_positions": int(where.sum()),
                }
                rows.append(key | effects)
    reason = f"the options hold less than {MIN_OPTION_MASS} of the partner's answer"
    lost = [job.prompt for job, enough in zip(jobs, held, strict=True) if not enough]
    return rows, [Excluded(prompt.id, reason, prompt.author) for prompt in lost]


def _effects(own: ndarray, donor: ndarray, patched: ndarray) -> dict[str, float]:
    """Both forms, from log-probabilities of the options."""
    p_own, p_donor, p_patched = (_among(logprobs) for logprobs in (own, donor, patched))
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


def _among(logprobs: Float[ndarray, " option"]) -> Float[ndarray, " option"]:
    weights = np.exp(logprobs - logprobs.max())
    return np.asarray(weights / weights.sum())


def _cell(row: int, hook: str, of: patching.Texts, where: Bool[ndarray, " token"]) -> patching.Cell:
    """The run of a text in which the stream that others had at the marked tokens replaces its own."""
    places = np.flatnonzero(where)
    stream = of.recorded[hook][row]
    return patching.Cell(row, hook, places, stream[torch.from_numpy(places).to(stream.device)])


def _check(session: Session, jobs: Sequence[_Job], ours: patching.Texts, theirs: patching.Texts, hook: str) -> None:
    """Finds that the donor's stream everywhere gives the donor's next token, and the own stream the own.

    Later tokens of an answer are read behind the recipient's text in the layers below, and need not be the donor's.
    """
    model = session.reader.model
    tolerance = CHECK_TOLERANCE.get(model.dtype, HALF_TOLERANCE)
    firsts = [tuple(dict.fromkeys(option[:1] for option in job.options)) for job in jobs]
    read = replace(ours, options=tuple(firsts))
    for texts, what in (
        (theirs, "the partner's stream everywhere gives another answer than the partner's own run"),
        (ours, "its own stream written back changes its answer"),
    ):
        cells = [_cell(row, hook, texts, np.ones(len(job.ids), dtype=bool)) for row, job in enumerate(jobs)]
        patched = patching.patched(model, session.name, read, cells, session.batch_tokens)
        for row, (job, logprobs) in enumerate(zip(jobs, patched, strict=True)):
            expected = texts.last[row].softmax(-1)[[token for (token,) in firsts[row]]].cpu().numpy()
            error = float(np.abs(np.exp(logprobs) - expected).max())
            if not error <= tolerance:
                raise InputError(
                    f"model {session.name}, prompt {job.prompt.id!r}, {hook}: {what}, by {error:.2g} (allowed "
                    f"{tolerance:g}); no residual map can be reported for this architecture"
                )


def summarise(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """The map of one reader and author: a share with its interval for every layer and set of positions.

    `cells` holds for each `layer`, `part` and `step` the share `Σ effect / Σ total` and the sign-flip p-value corrected
    over the whole grid. `logit_scored` counts prompts with a logit form. `outliers` is True where the mean of the
    chain's share is high while more than a tenth of the prompts are below 0 or above 1.5: then a mean hides what there
    is.
    """
    keys = ["layer", "part", "step"]
    wide = table.pivot_table(index="id", columns=keys, values="effect", sort=False)
    flips = statistics.sign_flip_max(wide.to_numpy(dtype=float), seed=seed)
    cells = []
    for column, key in enumerate(wide.columns):
        layer, part, step = tuple(key)
        rows = table[(table["layer"] == layer) & (table["part"] == part) & (table["step"] == step)]
        share = statistics.ratio(rows["effect"].to_numpy(dtype=float), rows["total"].to_numpy(dtype=float))
        cells.append(
            {
                "layer": int(layer),
                "part": part,
                "step": int(step),
                "share": share.to_dict(),
                "p": float(flips.p[column]),
            }
        )
    chain = table[(table["part"] == CHAIN) & table["logit_total"].notna()]
    shares = chain["logit_effect"] / chain["logit_total"]
    low, high = OUTLIER_RANGE
    outside = float(((shares < low) | (shares > high)).mean()) if len(shares) else 0.0
    return {
        "cells": cells,
        "prompts": int(table["id"].nunique()),
        "logit_scored": int(chain["id"].nunique()),
        "outliers": bool(len(shares) and shares.mean() >= OUTLIER_MEAN and outside > OUTLIER_SHARE),
    }


def _after_first_layer(part: str, words: str, detached: Literal[-1, 0, 1]) -> Quantity:
    label = f"residual patch of {words}, after the first layer"
    return Quantity(part, label, "share", "effect", "total", {"part": part, "layer": 0}, detached)


def tokens_read(size: Size) -> float:
    """About how many tokens one prompt takes: both runs, the checks, and each set of positions from its start on."""
    behind = size.chain + size.marker
    return 4 * size.text + (size.layers - 1) * (size.text + 2 * behind + size.question / 2 + size.later)


MEASURE = Measure(
    name="patch_map",
    title="Where, in layers and steps, does the answer travel?",
    run=patch_map,
    authors="headline",
    needs_partner=True,
    quantities=(
        # After the first layer, for all models alike: the layer with the largest effect would be chosen by its noise.
        _after_first_layer(CHAIN, "the chain", -1),
        _after_first_layer(QUESTION, "the question", 1),
        _after_first_layer(CONTROL, "random positions", 0),
    ),
    summarise=summarise,
    descriptive=True,
    tokens=tokens_read,
)
