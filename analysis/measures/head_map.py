"""Heads: which attention heads carry the partner's answer, screened by gradients and confirmed by exact patches.

A cell is a head of a layer and a part of the text: question, chain, each step, and the answer marker, where heads bring
in what the answer is predicted from. There are too many cells to patch them all, so all are estimated from gradients
(`analysis.attribution`), the highest ranked are patched exactly, and so is a random sample of the rest, which says how
much the screen has missed.

The effect is that of `LP(y') − LP(y)` at the first token in which the two answers differ, in nats, of prompts in which
it changes by at least `MIN_LOGIT_TOTAL` between the two runs; a cell's share is its sum over prompts against the sum of
those changes. It locates; the routes quantify.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis import kv_cache, patching, sites, statistics
from analysis.attribution import STEPS, Network, attribute
from analysis.authored import Authored
from analysis.cells import MIN_OPTION_MASS, Excluded
from analysis.errors import InputError
from analysis.measures.aligned import MIN_LOGIT_TOTAL, Aligned, Places, align, batches, in_order
from analysis.measures.protocol import Measure, Measured, Settings, Size
from analysis.measures.session import Session
from analysis.statistics import clopper_pearson

SITE = "z"
MARKER = "marker"
COLUMNS = (
    *("id", "author", "layer", "head", "part", "step", "n_positions"),
    *("chosen", "plain", "integrated", "effect", "total"),
)
TOP, SAMPLE = "top", "sample"
TOP_CELLS, SAMPLED_SHARE, MIN_SAMPLE = 24, 0.05, 24
MISSED = 0.1
"""A cell that was ranked low and has at least this share of the effect was missed."""


@dataclass(frozen=True)
class _Job:
    """An aligned prompt, both texts up to where the two answers part, and the two tokens that follow there."""

    aligned: Aligned
    ids: tuple[int, ...]
    donor_ids: tuple[int, ...]
    tokens: tuple[int, int]

    def parts(self) -> list[tuple[str, int, Places]]:
        """Those of the aligned prompt, and the marker; each with its tokens in this longer text."""
        places = np.arange(len(self.ids))
        inner = [(part, step, np.isin(places, np.flatnonzero(at))) for part, step, at in self.aligned.parts()]
        # What the answers have in common is read behind the marker, and is patched with it.
        return [*inner, (MARKER, 0, places >= self.aligned.own.marker[0])]


_Key = tuple[int, int, str, int]
"""Layer, head, part and step."""


def head_map(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """A row for each prompt and cell.

    Columns: `plain` and `integrated`, the estimates; `effect`, exact, where the cell was `chosen` (`top` or `sample`),
    else NaN; `total`; all in nats. Cells are ranked by the larger of the two estimates, taken over all prompts, and
    chosen for all of them alike. In the last block nothing but the marker is read, so it alone has cells there.

    Raises:
        InputError: if a hook does not fire once in a pass, or the architecture has no heads at a place known here.
    """
    jobs, excluded = align(session, prompts, settings)
    kept: list[_Job] = []
    for job, found in zip(jobs, _jobs(session, jobs), strict=True):
        if isinstance(found, _Job):
            kept.append(found)
        else:
            excluded.append(Excluded(job.prompt.id, found, job.prompt.author))
    by_aligned = {id(job.aligned): job for job in kept}
    groups = [
        [by_aligned[id(a)] for a in part] for part in batches([j.aligned for j in kept], session.batch_tokens // 4)
    ]
    stage = session.stage(f"{session.name}: heads, screened", len(kept))
    rows: list[dict[str, Any]] = []
    for group in groups:
        rows += _screened(session, group)
        stage(len(group))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    if table.empty:
        return Measured(table, excluded)
    chosen = choose(table, settings.seed)
    stage = session.stage(f"{session.name}: heads, confirmed", len(kept))
    exact: dict[tuple[str, str, _Key], float] = {}
    for group in groups:
        exact |= _confirmed(session, group, chosen)
        stage(len(group))
    keys = list(zip(table["layer"], table["head"], table["part"], table["step"], strict=True))
    table["chosen"] = [chosen.get(key, "") for key in keys]
    table["effect"] = [exact.get(key, np.nan) for key in zip(table["id"], table["author"], keys, strict=True)]
    return Measured(in_order(table, jobs), excluded)


def _jobs(session: Session, jobs: Sequence[Aligned]) -> list[_Job | str]:
    """Each prompt's job, or why it has none."""
    found: dict[int, _Job | str] = {}
    for batch in batches(jobs, session.batch_tokens):
        options = [job.options for job in batch]
        own = _answers(session, [job.ids for job in batch], options)
        donor = _answers(session, [job.donor_ids for job in batch], options)
        parted: list[_Job] = []
        for job, ours, theirs in zip(batch, own, donor, strict=True):
            y, other = int(ours.argmax()), int(theirs.argmax())
            if float(np.exp(theirs).sum()) < MIN_OPTION_MASS:
                found[id(job)] = f"the options hold less than {MIN_OPTION_MASS} of the partner's answer"
            elif y == other:
                found[id(job)] = "the partner's run gives the same answer"
            else:
                here, there = job.options[y], job.options[other]
                common = next(at for at, (a, b) in enumerate(zip(here, there, strict=False)) if a != b)
                tail, tokens = here[:common], (here[common], there[common])
                parted.append(_Job(job, (*job.ids, *tail), (*job.donor_ids, *tail), tokens))
        if not parted:
            continue
        # The denominator is the change at this one token: that of whole answers may be large where this is not.
        pairs = [[(token,) for token in made.tokens] for made in parted]
        own = _answers(session, [made.ids for made in parted], pairs)
        donor = _answers(session, [made.donor_ids for made in parted], pairs)
        for made, ours, theirs in zip(parted, own, donor, strict=True):
            enough = theirs[1] - theirs[0] - ours[1] + ours[0] >= MIN_LOGIT_TOTAL
            reason = f"the partner's answer is not at least {MIN_LOGIT_TOTAL:g} nats nearer in its own run"
            found[id(made.aligned)] = made if enough else reason
    return [found[id(job)] for job in jobs]


def _answers(
    session: Session, texts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]
) -> list[Float[np.ndarray, " option"]]:
    return patching.read_texts(session.reader.model, texts, options).own


def _network(
    model: Any, name: str, ids: Tensor, real: Tensor, last: Tensor, tokens: Tensor, names: Sequence[str]
) -> Network:
    """The logit difference of the two tokens behind each text, from the first block's input."""
    rows = torch.arange(len(ids), device=ids.device)

    def network(stream: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        kept: dict[str, Tensor] = {}

        def keep(hook: str) -> sites.Edit:
            # Put back where it was, so that what is kept is what the network goes on from.
            def put_back(value: Tensor) -> Tensor:
                kept[hook] = value
                return value

            return put_back

        edits = {hook: keep(hook) for hook in names}
        edits[sites.hook_name("resid_pre", 0)] = lambda _: stream
        with sites.written(model, edits) as fired, kv_cache.logits_only_at(model, last):
            logits = model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits[:, 0].float()
        for hook, times in fired.items():
            if times != 1:
                raise InputError(
                    f"model {name}: hook {hook!r} fired {times} times in one pass, expected once; no heads can be "
                    "reported"
                )
        return logits[rows, tokens[:, 1]] - logits[rows, tokens[:, 0]], kept

    return network


def _screened(session: Session, jobs: Sequence[_Job]) -> list[dict[str, Any]]:
    model = session.reader.model
    ids, real = kv_cache.pad_right([job.ids for job in jobs], model.device)
    donor_ids, _ = kv_cache.pad_right([job.donor_ids for job in jobs], model.device)
    last = real.sum(1) - 1
    tokens = torch.tensor([job.tokens for job in jobs], device=model.device)
    names = sites.hook_names(model, [SITE])
    first = sites.hook_name("resid_pre", 0)
    streams = []
    for text in (ids, donor_ids):
        with torch.no_grad(), sites.recorded(model, [first]) as found:
            model.base_model(input_ids=text, attention_mask=real.long(), use_cache=False)
        streams.append(found[first])
    network = _network(model, session.name, ids, real, last, tokens, names)
    with torch.no_grad():
        totals = (network(streams[1])[0] - network(streams[0])[0]).tolist()
    estimated = attribute(network, streams[0], streams[1])
    rows = []
    for layer, name in enumerate(names):
        # [row, token, head]
        by = {which: getattr(estimated, which)[name].float().sum(-1).cpu().numpy() for which in ("plain", "integrated")}
        for row, job in enumerate(jobs):
            for part, step, where in job.parts():
                # After the last block only the last token is read.
                if layer == len(names) - 1 and part != MARKER:
                    continue
                sums = {which: values[row, : len(where)][where].sum(0) for which, values in by.items()}
                for head in range(len(sums["plain"])):
                    rows.append(
                        {
                            "id": job.aligned.prompt.id,
                            "author": job.aligned.prompt.author,
                            "layer": layer,
                            "head": head,
                            "part": part,
                            "step": step,
                            "n_positions": int(where.sum()),
                            "chosen": "",
                            **{which: float(values[head]) for which, values in sums.items()},
                            "effect": np.nan,
                            "total": totals[row],
                        }
                    )
    return rows


def choose(table: pd.DataFrame, seed: int) -> dict[_Key, str]:
    """Which cells are patched exactly: the `TOP_CELLS` highest ranked, and of the rest a random `SAMPLED_SHARE`, at
    least `MIN_SAMPLE`.

    A cell's rank is the larger of its two estimates' sizes, each summed over prompts.
    """
    # Sorted, so that ties do not hang on the order of the prompts.
    sums = table.groupby(["layer", "head", "part", "step"])[["plain", "integrated"]].sum()
    scores = sums.abs().max(axis=1).sort_values(ascending=False, kind="stable")
    keys = [(int(layer), int(head), str(part), int(step)) for layer, head, part, step in scores.index]
    top, rest = keys[:TOP_CELLS], keys[TOP_CELLS:]
    size = min(len(rest), max(MIN_SAMPLE, math.ceil(SAMPLED_SHARE * len(rest))))
    sample = random.Random(f"{seed}:heads").sample(sorted(rest), size)
    return dict.fromkeys(top, TOP) | dict.fromkeys(sample, SAMPLE)


def _confirmed(session: Session, jobs: Sequence[_Job], chosen: dict[_Key, str]) -> dict[tuple[str, str, _Key], float]:
    """The exact effect of each chosen cell, by prompt and author."""
    model = session.reader.model
    hooks = sorted({sites.hook_name(SITE, layer) for layer, *_ in chosen})
    options = [[(token,) for token in job.tokens] for job in jobs]
    ours = patching.read_texts(model, [job.ids for job in jobs], options, hooks)
    theirs = patching.read_texts(model, [job.donor_ids for job in jobs], options, hooks)
    asked: list[tuple[int, _Key]] = []
    cells: list[patching.Cell] = []
    for row, job in enumerate(jobs):
        places_of = {(part, step): np.flatnonzero(where) for part, step, where in job.parts()}
        for layer, head, part, step in chosen:
            places = places_of.get((part, step))
            if places is None or not len(places):
                continue
            hook = sites.hook_name(SITE, layer)
            at = torch.from_numpy(places).to(model.device)
            values = ours.recorded[hook][row, at].clone()
            values[:, head] = theirs.recorded[hook][row, at, head]
            asked.append((row, (layer, head, part, step)))
            cells.append(patching.Cell(row, hook, places, values))
    found = patching.patched(model, session.name, ours, cells, session.batch_tokens)
    return {
        (jobs[row].aligned.prompt.id, jobs[row].aligned.prompt.author, key): float(
            scores[1] - scores[0] - ours.own[row][1] + ours.own[row][0]
        )
        for (row, key), scores in zip(asked, found, strict=True)
    }


def summarise(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """The confirmed cells' shares, with intervals, and what the screen is worth.

    `screen` holds the number of cells, of those `confirmed` at the top and `sampled` of the rest; `missed`, how many of
    the sample have a share of at least `MISSED`; `bound`, the share of all low-ranked cells that may (the upper end of
    the one-sided 95% Clopper-Pearson interval: `1 − .05^(1/n)` where none has); of the sample the `largest` share; and
    over all confirmed cells the largest error and the rank correlation of both estimates.
    """
    keys = ["layer", "head", "part", "step"]
    exact = table[table["chosen"] != ""].dropna(subset=["effect"])
    cells = []
    key: Any
    for key, rows in exact.groupby(keys, sort=False):
        layer, head, part, step = key
        total = float(rows["total"].sum())
        share = statistics.ratio(rows["effect"].to_numpy(dtype=float), rows["total"].to_numpy(dtype=float))
        cells.append(
            {
                "layer": int(layer),
                "head": int(head),
                "part": part,
                "step": int(step),
                "chosen": str(rows["chosen"].iloc[0]),
                "share": share.to_dict(),
                **{which: float(rows[which].sum()) / total for which in ("plain", "integrated")},
            }
        )
    cells.sort(key=lambda cell: -abs(cell["share"]["estimate"]))
    sampled = [cell for cell in cells if cell["chosen"] == SAMPLE]
    missed = sum(abs(cell["share"]["estimate"]) >= MISSED for cell in sampled)
    shares = pd.Series([cell["share"]["estimate"] for cell in cells], dtype=float)
    estimates = {which: pd.Series([cell[which] for cell in cells], dtype=float) for which in ("plain", "integrated")}
    return {
        "cells": cells,
        "prompts": int(table["id"].nunique()),
        "screen": {
            "cells": int(table.groupby(keys).ngroups),
            "confirmed": len(cells) - len(sampled),
            "sampled": len(sampled),
            "missed": missed,
            "bound": clopper_pearson(missed, len(sampled), level=0.9).high if sampled else 0.0,
            "largest": max((abs(cell["share"]["estimate"]) for cell in sampled), default=0.0),
            "error": {which: float((found - shares).abs().max()) for which, found in estimates.items()},
            "correlation": {which: _rank_correlation(found, shares) for which, found in estimates.items()},
        },
    }


def _rank_correlation(a: pd.Series, b: pd.Series) -> float | None:
    """None where one of them is constant: then there are no ranks."""
    return float(a.corr(b, method="spearman")) if a.nunique() > 1 and b.nunique() > 1 else None


def tokens_read(size: Size) -> float:
    """About how many tokens one prompt takes: the runs, the gradients (a backward pass is two forward ones), and the
    confirmed cells from where they start; a model has about as many heads as layers."""
    cells = size.layers**2 * (3 + size.steps)
    confirmed = min(cells, TOP_CELLS + max(MIN_SAMPLE, SAMPLED_SHARE * cells))
    return (10 + 3 * (STEPS + 1)) * size.text + confirmed * size.text / 4


MEASURE = Measure(
    name="head_map",
    title="Which attention heads carry the answer?",
    run=head_map,
    authors="headline",
    needs_partner=True,
    summarise=summarise,
    descriptive=True,
    capped=True,
    tokens=tokens_read,
)
