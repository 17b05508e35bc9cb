"""The lines of tables of fracture, entanglement and redundancy: what each is of, and how it is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from analysis.statistics import Estimate
from fracture.probing.training import Source
from probes.cells import ALL_ROWS, Hook
from probes.entanglement import interference, redundancy
from probes.fracture_score import DRAWS, fracture_score
from probes.grid import GridSettings
from probes.targets import Target

FRACTURE, ENTANGLEMENT, REDUNDANCY = "fracture", "entanglement", "redundancy"
SCORES = (FRACTURE, ENTANGLEMENT, REDUNDANCY)


@dataclass(frozen=True)
class ScoreSettings:
    """What is scored, and where.

    Attributes:
        scores: of `SCORES`; None for all that targets and positions allow.
        layers, site, positions: as in `probes.cells`; the positions are fracture's contexts, unless `column` is given.
        column: a column of the rows whose values are fracture's contexts, at each position.
        recentre: whether fracture takes out the offsets between contexts.
        draws: of fracture's null.
    """

    scores: tuple[str, ...] | None = None
    layers: str = "all"
    site: str | None = None
    positions: tuple[str, ...] | None = None
    column: str | None = None
    recentre: bool = False
    draws: int = DRAWS


@dataclass(frozen=True)
class Cell:
    """What one line is of; `compute` gives its numbers, and what stands behind them."""

    score: str
    keys: Mapping[str, Any]
    compute: Callable[[], tuple[dict[str, Any], dict[str, Any]]]


def cells_of(
    score: str,
    source: Source,
    targets: Sequence[Target],
    hook: Hook,
    positions: Sequence[str],
    settings: ScoreSettings,
    probing: GridSettings,
) -> Iterator[Cell]:
    """The lines of a score of one model at one hook."""
    place = {"model": source.label, "hook": hook.name, "site": hook.site, "layer": hook.layer}
    if score == ENTANGLEMENT:
        names = ", ".join(target.name for target in targets)
        for position in positions:
            compute: Any = partial(_entanglement, source, targets, hook.name, position, probing)
            yield Cell(score, {**place, "target": names, "position": position}, compute)
        return
    for target in targets:
        if score == REDUNDANCY:
            for position in positions:
                compute = partial(_redundancy, source, target, hook.name, position, probing)
                yield Cell(score, {**place, "target": target.name, "position": position}, compute)
        elif settings.column is None:
            compute = partial(_fracture, source, target, hook.name, positions, None, settings, probing)
            yield Cell(score, {**place, "target": target.name, "position": ", ".join(positions)}, compute)
        else:
            for position in positions:
                compute = partial(_fracture, source, target, hook.name, None, position, settings, probing)
                yield Cell(score, {**place, "target": target.name, "position": position}, compute)


def _fracture(
    source: Source,
    target: Target,
    hook: str,
    contexts: Sequence[str] | None,
    position: str | None,
    settings: ScoreSettings,
    probing: GridSettings,
) -> tuple[dict[str, Any], dict[str, Any]]:
    found = fracture_score(
        source.store,
        target,
        hook,
        contexts,
        column=None if position is None else settings.column,
        position=position or ALL_ROWS,
        recentre=settings.recentre,
        settings=probing,
        draws=settings.draws,
    )
    numbers = {
        **_columns("", found.fracture),
        "null_mean": found.null_mean,
        "null_high": found.null_high,
        "p": found.p,
        **_columns("within", found.within),
        "metric": found.metric,
        "n_prompts": found.fracture.n,
        "reason": found.reason,
    }
    lost = found.excluded[found.excluded["id"].isna()]
    return numbers, {
        "matrix": found.matrix,
        "null": found.null.tolist(),
        "contexts_left_out": dict(zip(lost["context"], lost["reason"], strict=True)),
        "rows_left_out": int(found.excluded["id"].notna().sum()),
    }


def _entanglement(
    source: Source, targets: Sequence[Target], hook: str, position: str, probing: GridSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    found = interference(source.store, targets, hook, position, settings=replace(probing, kind="ridge"))
    numbers = {
        **_columns("", found.entanglement),
        "association": found.association,
        "n_prompts": found.entanglement.n,
        "reason": found.reason,
    }
    return numbers, {"pairs": found.pairs, "concepts": found.concepts, "rows_left_out": dict(found.excluded)}


def _redundancy(
    source: Source, target: Target, hook: str, position: str, probing: GridSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    found = redundancy(source.store, target, hook, position, settings=replace(probing, kind="ridge"))
    start = found.table.iloc[0]
    numbers = {
        "rounds": math.nan if found.rounds is None else found.rounds,
        "dimensions": found.dimensions,
        "score": start["score"],
        "chance": start["chance"],
        **{f"above{end}": start[name] for end, name in (("", "above"), ("_low", "low"), ("_high", "high"))},
        **_columns("leace", found.leace),
        "metric": found.metric,
        "n_prompts": found.leace.n,
        "reason": f"still read after {len(found.table) - 1} rounds" if found.rounds is None else None,
    }
    return numbers, {"rounds_table": found.table, "rows_left_out": dict(found.excluded)}


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    keys = (name, f"{name}_low", f"{name}_high") if name else ("estimate", "low", "high")
    return dict(zip(keys, (estimate.estimate, estimate.low, estimate.high), strict=True))
