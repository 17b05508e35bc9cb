"""Repair: do the base's states, written into the variant at the chain's positions, make the answer depend on it again?

If they do, the capability was bypassed, and not destroyed. The four texts of the routes (question and chain each own or
the partner's) are read by the variant with states written at all tokens of the chain after one block, and everything
behind them is computed anew; bypass is that of this edited reader's own four cells. What is written:

- `base`: the base's states at the same tokens of the same text, as they are;
- `affine`: the same in the variant's coordinates, by a map that is fitted on the other half of the prompts: whether raw
  states do nothing for their coordinates alone. It is made to give what the variant's own states are, so it may leave
  out what these have lost, or turn what the base says into something else;
- `mean_difference`: the variant's own plus the mean of base minus variant over the other half;
- controls: `random`, the own plus a random vector as long as base minus variant at each token; `other_prompt`, the
  variant's own of another prompt, at the same token of the same step;
- `length`, a placebo: the own plus the mean of short chains minus that of long ones, which must not move bypass;
- `reverse`: the variant's states, as they are, in the base.

Marker and answer read what is written in all later blocks; what they read in earlier ones, and of the question, is as
it was. An answer that they take from the question is not undone by any of this, so bypass that stays does not say that
the capability is gone. Bypass that falls, where the controls' does not, says that answers depend on the chain again;
that they are the base's answers, `agreement` says.

Source: cross-model activation patching (Prakash et al. 2024, arXiv 2402.14811), with bypass as the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray

from analysis import sites, statistics
from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.measures.aligned import ONE_BLOCK, spread
from analysis.measures.protocol import Measure, Measured, Quantity, Settings, Size
from analysis.measures.repair_runs import DRAWS, Patches
from analysis.measures.repair_states import (
    AFFINE,
    BASE_ITSELF,
    LENGTH,
    MEAN,
    NO_LAYER,
    OTHER,
    RANDOM,
    RAW,
    REVERSE,
    UNEDITED,
)
from analysis.measures.repair_texts import batches, circles, find_jobs, halves
from analysis.measures.session import Session
from analysis.models import BASE
from analysis.routes import MIN_TOTAL_EFFECT
from analysis.statistics import Estimate

COLUMNS = (
    *("id", "author", "condition", "layer", "fixed", "n_positions", "size"),
    *("total", "past", "direct", "agreement", "mass"),
)
MAX_LAYERS = 4
BATCH_SHARE = 4
"""Texts of two models, and all that is written into them, are held at once: so many times fewer tokens a batch."""
MIN_GAP = 0.1
"""No share is repaired of a difference of bypass between variant and base that is not surely above the verdict's
margin."""


@torch.inference_mode()
def repair(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt, condition and layer, and two without a layer (-1): `unedited`, and `base_itself`, the base
    undisturbed.

    At most `MAX_LAYERS` layers are taken, evenly spread over all but the last, unless settings name them; `fixed` marks
    the one that is reported as a number. To the options "anything else" is added, so that an edit after which none of
    them is answered shows as no effect.

    Columns: `n_positions`, tokens written in the four texts together; `size`, the root mean square of the change,
    relative to that of the states that are changed; `total`, `past` (what does not run through the chain) and `direct`
    in squared probability, as in `analysis.routes.effects`; `agreement`, the probability that is shared with the base's
    answers to the same four texts (1: the same distributions), on average; `mass`, the least that the options hold.

    The base itself has no rows. That own states written back change nothing is checked for every prompt and layer.

    Args:
        session: the variant's.
        prompts: with partners; the chains of one author.
        settings: `seed`, `patch_prompts` and `patch_layers` count.

    Raises:
        InputError: if own states written back change an answer, or a probability is not finite.
    """
    if session.name == BASE:
        return Measured(pd.DataFrame(columns=list(COLUMNS)))
    base = session.open_base()
    unlike = _unlike(base.model, session.reader.model)
    if unlike is not None:
        excluded = [Excluded(prompt.id, unlike, prompt.author) for prompt in prompts]
        return Measured(pd.DataFrame(columns=list(COLUMNS)), excluded)
    layers = sorted(set(settings.patch_layers or spread(len(sites.blocks(base.model)) - 1, MAX_LAYERS)))
    jobs, excluded = find_jobs(session, base, prompts, settings)
    patches = Patches(session, base, layers, halves(jobs, settings.seed), settings.seed)
    patches.learn(jobs)
    stage = session.stage(f"{session.name}: the base's states written into it", len(jobs))
    rows: list[dict[str, Any]] = []
    for batch in batches(circles(jobs, settings.seed), session.batch_tokens // BATCH_SHARE):
        found, unheld = patches.measure(batch)
        rows += found
        excluded += unheld
        stage(sum(map(len, batch)))
    fixed = fixed_layer(layers)
    rows = [row | {"fixed": row["layer"] == fixed} for row in rows]
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def fixed_layer(layers: Sequence[int]) -> int:
    """The one of these layers that is reported as a number, whatever is found: of four the second, of fewer the first.

    After the first of many blocks hardly anything has been computed yet. The organisms, which have four, were looked at
    for the rule: another prompt's states change their answers after the first block, and after no later one.
    """
    return layers[(len(layers) - 1) // 3]


def _unlike(base: Any, variant: Any) -> str | None:
    shapes = [(len(sites.blocks(model)), model.config.get_text_config().hidden_size) for model in (base, variant)]
    if shapes[0] != shapes[1]:
        described = " and ".join(f"{layers} layers of width {width}" for layers, width in shapes)
        return f"base and variant have states of different shape ({described})"
    return ONE_BLOCK if shapes[0][0] < 2 else None


class _Sums(NamedTuple):
    """What does not run through the chain, and all of the effect; one value a prompt."""

    past: Float[ndarray, " prompt"]
    total: Float[ndarray, " prompt"]

    def acts(self) -> bool:
        return statistics.mean(self.total).low >= MIN_TOTAL_EFFECT

    def bypass(self) -> tuple[float, Float[ndarray, " prompt"]]:
        """The ratio of sums, and that without each prompt in turn."""
        past, total = self.past.sum(), self.total.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(past / total), (past - self.past) / (total - self.total)


def summarise(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Every condition and layer of one variant, over the prompts that have it.

    `layers`, `fixed` (the layer that is reported as a number), `prompts`, `gap` (bypass of the variant minus bypass of
    the base) and `cells`: each a `condition` and `layer` (-1 for the two undisturbed readers) with the mean `total`
    effect, `bypass`, its `change` from the undisturbed reader's (of `reverse`: the base's), paired by prompt, and
    `repaired`, the share `(bypass of the variant − bypass of the edited variant) / gap`; and the mean `size` of the
    edit, the mean `agreement` with the base and the least `mass` of the options. A share is None where the mean total
    effect's lower bound is below `MIN_TOTAL_EFFECT`, and `repaired` also where the gap's is not above `MIN_GAP`.
    Intervals are jackknife-t over prompts. No layer is picked: they are all there.
    """
    layered = table[table["layer"] != NO_LAYER]
    keys = table[["condition", "layer"]].drop_duplicates().itertuples(index=False, name=None)
    cells = [_cell(table, str(condition), int(layer)) for condition, layer in keys]
    variant, base = (_sums(table, condition, NO_LAYER) for condition in (UNEDITED, BASE_ITSELF))
    readable = variant.acts() and base.acts()
    return {
        "layers": sorted(int(layer) for layer in layered["layer"].unique()),
        "fixed": next((int(layer) for layer in layered.loc[layered["fixed"], "layer"]), None),
        "prompts": int(table["id"].nunique()),
        "gap": statistics.ratio_difference(variant, base).to_dict() if readable else None,
        "cells": cells,
    }


def _sums(table: pd.DataFrame, condition: str, layer: int, ids: pd.Index[Any] | None = None) -> _Sums:
    rows = table[(table["condition"] == condition) & (table["layer"] == layer)].set_index("id")
    rows = rows if ids is None else rows.loc[ids]
    return _Sums(rows["past"].to_numpy(dtype=float), rows["total"].to_numpy(dtype=float))


def _cell(table: pd.DataFrame, condition: str, layer: int) -> dict[str, Any]:
    rows = table[(table["condition"] == condition) & (table["layer"] == layer)]
    ids = pd.Index(rows["id"])
    edited = _sums(table, condition, layer, ids)
    variant, base = (_sums(table, undisturbed, NO_LAYER, ids) for undisturbed in (UNEDITED, BASE_ITSELF))
    before = base if condition in (REVERSE, BASE_ITSELF) else variant
    change = repaired = None
    if layer != NO_LAYER and edited.acts() and before.acts():
        change = statistics.ratio_difference(edited, before)
        if condition != REVERSE:
            repaired = _repaired(variant, edited, base)
    return {
        "condition": condition,
        "layer": layer,
        "total": statistics.mean(edited.total).to_dict(),
        "bypass": statistics.ratio(*edited).to_dict() if edited.acts() else None,
        "change": change and change.to_dict(),
        "repaired": repaired and repaired.to_dict(),
        "size": float(rows["size"].mean()),
        "agreement": float(rows["agreement"].mean()),
        "mass": float(rows["mass"].min()),
    }


def _repaired(variant: _Sums, edited: _Sums, base: _Sums) -> Estimate | None:
    if not (base.acts() and statistics.ratio_difference(variant, base).low > MIN_GAP):
        return None
    whole, without = zip(*(sums.bypass() for sums in (variant, edited, base)), strict=True)
    return statistics.jackknife(
        (whole[0] - whole[1]) / (whole[0] - whole[2]), (without[0] - without[1]) / (without[0] - without[2])
    )


def _at_fixed_layer(condition: str, label: str) -> Quantity:
    return Quantity(condition, label, "share", "past", "total", {"condition": condition, "fixed": True})


def tokens_read(size: Size) -> float:
    """About how many tokens one prompt takes: four texts by two models, twice, and what follows all that is written."""
    conditions = len((RAW, AFFINE, MEAN, LENGTH, OTHER, REVERSE, "own")) + DRAWS
    layers = min(MAX_LAYERS, size.layers - 1)
    # Half of the blocks, on average, are above the one that is written after.
    return 16 * size.text + 4 * conditions * layers * (size.chain + size.marker) / 2


MEASURE = Measure(
    name="repair",
    title="Does the variant use its chain again with the base's states in it?",
    run=repair,
    authors="headline",
    needs_partner=True,
    quantities=(
        Quantity(UNEDITED, "bypass, nothing written", "share", "past", "total", {"condition": UNEDITED}),
        _at_fixed_layer(RAW, "bypass with the base's states in the chain"),
        _at_fixed_layer(AFFINE, "bypass with the base's states, mapped"),
        _at_fixed_layer(MEAN, "bypass with the mean difference to the base added"),
        _at_fixed_layer(RANDOM, "bypass with random vectors as long added (control)"),
        _at_fixed_layer(OTHER, "bypass with own states of another prompt (control)"),
        _at_fixed_layer(LENGTH, "bypass steered to shorter chains (placebo)"),
        _at_fixed_layer(REVERSE, "bypass of the base with the variant's states in the chain"),
    ),
    summarise=summarise,
    descriptive=True,
    beside_base=True,
    capped=True,
    tokens=tokens_read,
)
