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

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis import patching, sites, statistics
from analysis.authored import Authored
from analysis.cells import CHECK_TOLERANCE, HALF_TOLERANCE, MIN_OPTION_MASS, Excluded
from analysis.errors import InputError
from analysis.measures.aligned import (
    CHAIN,
    CONTROL,
    ONE_BLOCK,
    QUESTION,
    Aligned,
    align,
    batches,
    cell,
    effects,
    in_order,
    read_before,
)
from analysis.measures.protocol import Measure, Measured, Quantity, Settings, Size
from analysis.measures.session import Session

SITE = "resid_post"
COLUMNS = (
    *("id", "author", "layer", "part", "step", "n_steps", "n_positions"),
    *("effect", "total", "logit_effect", "logit_total"),
)
OUTLIER_SHARE, OUTLIER_MEAN, OUTLIER_RANGE = 0.1, 0.8, (0.0, 1.5)


def patch_map(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt, layer and set of positions.

    Sets: `question`, `chain`, each `step` (numbered from 1), and `control`: as many positions as a step has on average,
    drawn from question and chain. Patching all positions must give the donor's own answer, and patching a run with
    itself must change nothing: both are checked for every prompt at one layer, and how often hooks fired at all.

    Columns: `n_positions` patched; `effect` and `total` in squared probability, `logit_effect` and `logit_total` in
    nats. The logit form is NaN where `logit_total` is below `aligned.MIN_LOGIT_TOTAL`.

    Raises:
        InputError: if one of the checks fails.
    """
    jobs, excluded = align(session, prompts, settings)
    if len(sites.blocks(session.reader.model)) == 1:
        excluded += [Excluded(job.prompt.id, ONE_BLOCK, job.prompt.author) for job in jobs]
        jobs = []
    stage = session.stage(f"{session.name}: residual map", len(jobs))
    rows: list[dict[str, Any]] = []
    for batch in batches(jobs, session.batch_tokens):
        found, unheld = _measure(session, batch, settings)
        rows += found
        excluded += unheld
        stage(len(batch))
    return Measured(in_order(pd.DataFrame(rows, columns=list(COLUMNS)), jobs), excluded)


def _measure(session: Session, jobs: list[Aligned], settings: Settings) -> tuple[list[dict[str, Any]], list[Excluded]]:
    """The rows of these prompts, and those whose options hold too little of the partner's answer."""
    model = session.reader.model
    # After the last block a position is read by nothing but its own logits.
    layers = settings.patch_layers or tuple(range(len(sites.blocks(model)) - 1))
    names = [sites.hook_name(SITE, layer) for layer in layers]
    options = [job.options for job in jobs]
    ours = patching.read_texts(model, [job.ids for job in jobs], options, names)
    theirs = patching.read_texts(model, [job.donor_ids for job in jobs], options, names)
    _check(session, jobs, ours, theirs, names[len(names) // 2])
    parts = [[*job.parts(), job.control(settings.seed)] for job in jobs]
    cells = [cell(row, name, theirs, where) for name in names for row, of in enumerate(parts) for _, _, where in of]
    patched = iter(patching.patched(model, session.name, ours, cells, session.batch_tokens))
    held = [float(np.exp(logprobs).sum()) >= MIN_OPTION_MASS for logprobs in theirs.own]
    rows: list[dict[str, Any]] = []
    for layer in layers:
        for row, job in enumerate(jobs):
            for part, step, where in parts[row]:
                found = effects(ours.own[row], theirs.own[row], next(patched))
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
                rows.append(key | found)
    reason = f"the options hold less than {MIN_OPTION_MASS} of the partner's answer"
    lost = [job.prompt for job, enough in zip(jobs, held, strict=True) if not enough]
    return rows, [Excluded(prompt.id, reason, prompt.author) for prompt in lost]


def _check(session: Session, jobs: Sequence[Aligned], ours: patching.Texts, theirs: patching.Texts, hook: str) -> None:
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
        cells = [cell(row, hook, texts, np.ones(len(job.ids), dtype=bool)) for row, job in enumerate(jobs)]
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
    over the whole grid. `logit_scored` counts prompts with a logit form. `distribution` says for each layer how the
    chain's share, in logit differences, is spread over these prompts: mean, quantiles, and the share `outside` of 0 to
    1.5. `outliers` is True where in some layer the mean is high and more than a tenth is outside: then a mean hides
    what there is.
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
    distribution = [_spread(int(layer), chain[chain["layer"] == layer]) for layer in sorted(chain["layer"].unique())]
    return {
        "cells": cells,
        "prompts": int(table["id"].nunique()),
        "logit_scored": int(chain["id"].nunique()),
        "distribution": distribution,
        "outliers": any(layer["mean"] >= OUTLIER_MEAN and layer["outside"] > OUTLIER_SHARE for layer in distribution),
    }


def _spread(layer: int, rows: pd.DataFrame) -> dict[str, Any]:
    """How one layer's shares are spread over prompts."""
    shares = (rows["logit_effect"] / rows["logit_total"]).to_numpy(dtype=float)
    low, high = OUTLIER_RANGE
    return {
        "layer": layer,
        "mean": float(shares.mean()),
        **{f"q{percent:02}": float(np.percentile(shares, percent)) for percent in (5, 50, 95)},
        "outside": float(((shares < low) | (shares > high)).mean()),
    }


def _after_first_layer(part: str, words: str, detached: Literal[-1, 0, 1]) -> Quantity:
    label = f"residual patch of {words}, after the first layer"
    return Quantity(part, label, "share", "effect", "total", {"part": part, "layer": 0}, detached)


def compare(base: pd.DataFrame, variant: pd.DataFrame) -> dict[str, Any]:
    """Whether the first layer has read the answer in one of them, so that shares behind it cannot be compared."""
    return read_before(*(rows[rows["layer"] == 0] for rows in (base, variant)))


def tokens_read(size: Size) -> float:
    """About how many tokens one prompt takes: both runs, the checks, and each set of positions from its start on, in
    the layers above: half of them on average."""
    behind = size.chain + size.marker
    cells = size.text + 2 * behind + size.question / 2 + size.later
    return 3 * size.text + (size.layers - 1) / 2 * cells


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
    compare=compare,
    descriptive=True,
    capped=True,
    tokens=tokens_read,
)
