"""Interventions: does another way of intervening say the same as the residual map, and do steps mediate the answer?

Question and chain are replaced in four ways. `noising` writes the partner's activation into the own run, as the map
does; `denoising` writes the own activation into the partner's run, and asks what is lost of the partner's answer;
`mean` writes the mean over the prompts' own activations there, and `zero` nothing at all, and both ask what is lost of
the own answer. Ablating takes away what prompt and partner have in common as well (which register is asked for), so an
ablation that acts where noising does not is no contradiction; one that does nothing where noising acts is.

The corrected chain mediation index compares a step's patch with patches of as many tokens of the question:
`CMI = max(0, Δ_step − Δ_question)/(Δ_step + Δ_question)`, Δ the drop of `LP(y)`, 0 where it rises.

Source: Zhang and Nanda 2024 (arXiv 2309.16042) on directions and corruptions; Heimersheim and Nanda 2024 (arXiv
2404.15255). The published mediation index had the answer in both prompts, and its controls off the question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis import kv_cache, patching, sites, statistics
from analysis.authored import Authored
from analysis.cells import MIN_OPTION_MASS, Excluded
from analysis.measures.aligned import (
    CHAIN,
    ONE_BLOCK,
    QUESTION,
    STEP,
    Aligned,
    Places,
    align,
    among,
    batches,
    cell,
    in_order,
    read_before,
    spread,
)
from analysis.measures.protocol import Measure, Measured, Quantity, Settings, Size
from analysis.measures.session import Session
from analysis.statistics import Estimate

NOISING, DENOISING, MEAN, ZERO = "noising", "denoising", "mean", "zero"
METHODS = (NOISING, DENOISING, MEAN, ZERO)
SITES = ("resid_post", "attn_out", "mlp_out")
MAX_LAYERS = 4
COLUMNS = (
    *("id", "author", "site", "layer", "method", "part", "step"),
    *("effect", "total", "drop", "mediated", "mediation"),
)
MIN_MEDIATION = 0.1
"""Nats; below it step and question together do hardly anything, and which does more means nothing."""
ACTS = 0.1
"""A share whose size is clearly above this is an effect, one that is clearly below it is none."""


@dataclass(frozen=True)
class _Place:
    """What is replaced: the tokens of a part of one text, by which method; for the mediation index also a step."""

    row: int
    method: str
    part: str
    step: int
    where: Places


def interventions(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """A row for each prompt, site, layer, method, and for question and chain; at the first layer's stream also steps.

    Sites are the stream behind a block, and what attention and MLP write; layers, at most `MAX_LAYERS`, the first and
    the last but one among them.

    Columns: `effect` and `total`: for noising `⟨P − P00, P11 − P00⟩` and `‖P11 − P00‖²`; for denoising
    `⟨P11 − P, P11 − P00⟩` and the same total; for mean and zero the drop of the own answer's probability, and that
    probability. `drop`, in nats, of `LP` of the answer that the undisturbed run gives. In rows of steps `mediated` and
    `mediation` are the index's numerator and denominator, NaN where that is below `MIN_MEDIATION`, or where the
    question has fewer tokens than the step.
    """
    jobs, excluded = align(session, prompts, settings)
    model = session.reader.model
    layers = spread(len(sites.blocks(model)) - 1, MAX_LAYERS)
    if not layers:
        excluded += [Excluded(job.prompt.id, ONE_BLOCK, job.prompt.author) for job in jobs]
        return Measured(pd.DataFrame(columns=list(COLUMNS)), excluded)
    hooks = [sites.hook_name(site, layer) for site in SITES for layer in layers]
    groups = list(batches(jobs, session.batch_tokens))
    means = _means(model, groups, hooks)
    stage = session.stage(f"{session.name}: other interventions", len(jobs))
    rows: list[dict[str, Any]] = []
    for batch in groups:
        found, unheld = _measure(session, batch, hooks, means, settings.seed)
        rows += found
        excluded += unheld
        stage(len(batch))
    return Measured(in_order(pd.DataFrame(rows, columns=list(COLUMNS)), jobs), excluded)


def _means(
    model: Any, groups: Sequence[Sequence[Aligned]], hooks: Sequence[str]
) -> dict[tuple[str, str], Float[Tensor, " width"]]:
    """The mean activation over all prompts' tokens of question and of chain, by hook and part."""
    sums: dict[tuple[str, str], Tensor] = {}
    n: dict[str, int] = {}
    for batch in groups:
        with sites.recorded(model, hooks) as found:
            kv_cache.read(model, [job.ids for job in batch])
        for part, place in ((QUESTION, 0), (CHAIN, 1)):
            spans = [(job.own.question, job.own.chain)[place] for job in batch]
            n[part] = n.get(part, 0) + sum(end - start for start, end in spans)
            for hook in hooks:
                added = torch.stack(
                    [found[hook][row, start:end].double().sum(0) for row, (start, end) in enumerate(spans)]
                ).sum(0)
                sums[hook, part] = sums[hook, part] + added if (hook, part) in sums else added
    return {(hook, part): total / n[part] for (hook, part), total in sums.items()}


def _measure(
    session: Session,
    jobs: Sequence[Aligned],
    hooks: Sequence[str],
    means: dict[tuple[str, str], Float[Tensor, " width"]],
    seed: int,
) -> tuple[list[dict[str, Any]], list[Excluded]]:
    model, options = session.reader.model, [job.options for job in jobs]
    ours = patching.read_texts(model, [job.ids for job in jobs], options, hooks)
    theirs = patching.read_texts(model, [job.donor_ids for job in jobs], options, hooks)
    held = [float(np.exp(logprobs).sum()) >= MIN_OPTION_MASS for logprobs in theirs.own]
    asked: list[tuple[str, _Place]] = [
        (hook, place) for hook in hooks for row, job in enumerate(jobs) for place in _places(row, job)
    ]
    first = sites.hook_name(SITES[0], sites.parse_hook_name(hooks[0])[1])
    asked += [(first, place) for row, job in enumerate(jobs) for place in _steps(row, job, seed)]

    def made(hook: str, place: _Place) -> patching.Cell:
        if place.method in (NOISING, DENOISING):
            return cell(place.row, hook, theirs if place.method == NOISING else ours, place.where)
        places = np.flatnonzero(place.where)
        like = ours.recorded[hook][place.row, places[0]]
        value = means[hook, place.part].to(like) if place.method == MEAN else torch.zeros_like(like)
        return patching.Cell(place.row, hook, places, value.expand(len(places), *value.shape))

    scored: dict[int, np.ndarray] = {}
    for texts, into in ((ours, False), (theirs, True)):
        chosen = [at for at, (_, place) in enumerate(asked) if (place.method == DENOISING) == into]
        cells = [made(*asked[at]) for at in chosen]
        results = patching.patched(model, session.name, texts, cells, session.batch_tokens)
        scored |= dict(zip(chosen, results, strict=True))
    rows: list[dict[str, Any]] = []
    drops: dict[tuple[int, int, str], float] = {}
    for at, (hook, place) in enumerate(asked):
        if not held[place.row]:
            continue
        found = _effect(place.method, ours.own[place.row], theirs.own[place.row], scored[at])
        if place.step:
            drops[place.row, place.step, place.part] = found["drop"]
            continue
        site, layer = sites.parse_hook_name(hook)
        key = {"site": site, "layer": layer, "method": place.method, "part": place.part, "step": 0}
        rows.append(_named(jobs[place.row]) | key | found)
    layer = sites.parse_hook_name(first)[1]
    for (row, step, part), drop in drops.items():
        if part == STEP:
            key = {"site": SITES[0], "layer": layer, "method": NOISING, "part": STEP, "step": step, "drop": drop}
            rows.append(_named(jobs[row]) | key | mediation(drop, drops.get((row, step, QUESTION), np.nan)))
    reason = f"the options hold less than {MIN_OPTION_MASS} of the partner's answer"
    lost = [
        Excluded(job.prompt.id, reason, job.prompt.author) for job, enough in zip(jobs, held, strict=True) if not enough
    ]
    return rows, lost


def _named(job: Aligned) -> dict[str, Any]:
    return {"id": job.prompt.id, "author": job.prompt.author}


def _places(row: int, job: Aligned) -> Iterator[_Place]:
    for part, step, where in job.parts():
        if part != STEP and where.any():
            yield from (_Place(row, method, part, step, where) for method in METHODS)


def _steps(row: int, job: Aligned, seed: int) -> Iterator[_Place]:
    """Every step, and as many consecutive tokens of the question, drawn for each step, without its first token."""
    begin, end = job.own.question
    for part, step, where in job.parts():
        if part == STEP:
            yield _Place(row, NOISING, STEP, step, where)
            size, first = int(where.sum()), max(begin, 1)
            if size <= end - first:
                rng = random.Random(f"{seed}:{job.prompt.id}:{step}:question span")
                start = rng.randint(first, end - size)
                yield _Place(row, NOISING, QUESTION, step, job.span(start, start + size))


def _effect(method: str, own: np.ndarray, donor: np.ndarray, patched: np.ndarray) -> dict[str, float]:
    p_own, p_donor, p = among(own), among(donor), among(patched)
    before, total = (donor if method == DENOISING else own), p_donor - p_own
    answer = int(before.argmax())
    drop = float(before[answer] - patched[answer])
    if method in (MEAN, ZERO):
        return {"effect": float(p_own[answer] - p[answer]), "total": float(p_own[answer]), "drop": drop}
    moved = p_donor - p if method == DENOISING else p - p_own
    return {"effect": float(moved @ total), "total": float(total @ total), "drop": drop}


def mediation(step: float, question: float) -> dict[str, float]:
    """Numerator and denominator of the chain mediation index, from two drops of `LP(y)` in nats."""
    step, question = max(step, 0.0), max(question, 0.0) if np.isfinite(question) else np.nan
    total = step + question
    if not total >= MIN_MEDIATION:
        return {"mediated": np.nan, "mediation": np.nan}
    return {"mediated": max(0.0, step - question), "mediation": total}


def summarise(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """For each site, layer and part the share by every method, with its interval, and whether they agree."""
    found = []
    rows = table[table["part"] != STEP]
    key: Any
    for key, group in rows.groupby(["site", "layer", "part"], sort=False):
        site, layer, part = key
        shares = {
            str(method): statistics.ratio(of["effect"].to_numpy(dtype=float), of["total"].to_numpy(dtype=float))
            for method, of in group.groupby("method", sort=False)
        }
        found.append(
            {
                "site": site,
                "layer": int(layer),
                "part": part,
                "shares": {method: share.to_dict() for method, share in shares.items()},
                "robust": agree(shares),
            }
        )
    return {"shares": found, "prompts": int(table["id"].nunique())}


def compare(base: pd.DataFrame, variant: pd.DataFrame) -> dict[str, Any]:
    """Whether the first layer has read the answer in one of them, so that patches behind it cannot be compared."""
    return read_before(*(_behind_first(rows) for rows in (base, variant)))


def _behind_first(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[
        (rows["site"] == SITES[0]) & (rows["layer"] == 0) & (rows["method"] == NOISING) & (rows["part"] != STEP)
    ]


def agree(shares: dict[str, Estimate]) -> bool:
    """Whether the methods say the same: noising and denoising both act or both do not, with one sign, and a mean
    ablation acts where noising does, and does not turn it round."""
    noising, denoising, mean = (_acts(shares[method]) for method in (NOISING, DENOISING, MEAN))
    if {noising, denoising} == {True, False} or (noising is True and mean is False):
        return False
    if noising is False:
        # The sign of nothing says nothing, and an ablation may act alone.
        return denoising is False or not _opposite(shares[NOISING], shares[DENOISING])
    return not any(_opposite(shares[NOISING], shares[other]) for other in (DENOISING, MEAN))


def _acts(share: Estimate) -> bool | None:
    """Whether a share is surely an effect, of either sign, or surely none; None where it may be either."""
    if share.low > ACTS or share.high < -ACTS:
        return True
    return False if share.low > -ACTS and share.high < ACTS else None


def _opposite(one: Estimate, other: Estimate) -> bool:
    return max(one.low, other.low) > 0 > min(one.high, other.high)


def tokens_read(size: Size) -> float:
    """About how many tokens one prompt takes: three readings, and every part behind its start, by each method."""
    layers = len(spread(max(1, size.layers - 1), MAX_LAYERS))
    behind = size.text + size.chain + size.marker
    return 3 * size.text + len(SITES) * layers * len(METHODS) * behind / 2 + size.later + size.steps * size.text


MEASURE = Measure(
    name="interventions",
    title="Do other interventions say the same as the map, and do steps mediate the answer?",
    run=interventions,
    authors="headline",
    needs_partner=True,
    quantities=(
        Quantity("cmi", "chain mediation index of the steps", "share", "mediated", "mediation", {"part": STEP}, -1),
        Quantity(
            "drop", "drop of LP(y) when a step is the partner's", "nats", "drop", where={"part": STEP}, detached=-1
        ),
    ),
    summarise=summarise,
    compare=compare,
    capped=True,
    tokens=tokens_read,
)
