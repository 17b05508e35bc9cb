"""Fracture, entanglement and redundancy of representation, model beside model, over the same prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.errors import InputError
from analysis.files import parquet_bytes, plain, write_whole
from analysis.store import MANIFEST, sha256
from fracture.probing.score_cells import ENTANGLEMENT, FRACTURE, SCORES, ScoreSettings, cells_of
from fracture.probing.training import Source
from probes.cells import hooks_of, positions_of
from probes.grid import GridSettings
from probes.targets import Target

INTERFERENCE, JSON = "interference", "scores.json"

Stage = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True)
class Scores:
    """The tables, a line a model and cell, in the order of the text; what stands behind each line, for JSON; and how
    many prompts were left out because not all models have a label of them, by target."""

    tables: Mapping[str, pd.DataFrame]
    details: Sequence[Mapping[str, Any]]
    left_out: Mapping[str, int]


def score_models(
    sources: Sequence[Source],
    targets: Sequence[Sequence[Target]],
    settings: ScoreSettings,
    probing: GridSettings,
    stage: Stage,
) -> Scores:
    """The scores of each model, at each layer and position.

    A cell that cannot be scored has the reason in its line.

    Args:
        sources: one or more models' activations, of the same texts.
        targets: for each of them the concepts.
        settings: what is scored.
        probing: kind of probe (of fracture), folds, seed, device.
        stage: of progress.

    Raises:
        InputError: for a layer, position or score that there is not, models without a prompt in common, or if no cell
            can be scored.
    """
    if len({source.label for source in sources}) < len(sources):
        raise InputError("probe scores: two stores have the same name; give directories of different names")
    if settings.draws < 1:
        raise InputError(f"draws {settings.draws}: expected 1 or more; the null is made of them")
    first = sources[0].store
    positions = positions_of(first.rows, settings.positions)
    chosen = _chosen(settings, len(targets[0]), len(positions))
    hooks = hooks_of(first, settings.layers, settings.site)
    for source in sources[1:]:
        if lacking := [hook.name for hook in hooks if hook.name not in source.store.hooks]:
            raise InputError(
                f"activation store {source.store.directory}: holds no hook {lacking[0]!r}, as {first.directory} does"
            )
    targets, left_out = _in_common(sources, targets)
    cells = [
        cell
        for score in chosen
        for hook in hooks
        for source, concepts in zip(sources, targets, strict=True)
        for cell in cells_of(score, source, concepts, hook, positions, settings, probing)
    ]
    done = stage("scoring representations", len(cells))
    lines: dict[str, list[dict[str, Any]]] = {score: [] for score in chosen}
    pairs: list[pd.DataFrame] = []
    details = []
    for cell in cells:
        try:
            numbers, behind = cell.compute()
        except InputError as error:
            numbers, behind = {"reason": str(error)}, {}
        lines[cell.score].append({**cell.keys, **numbers})
        if "pairs" in behind:
            pairs.append(behind["pairs"].assign(**cell.keys))
        plain = {
            key: value.to_dict("records") if isinstance(value, pd.DataFrame) else value for key, value in behind.items()
        }
        details.append({"score": cell.score, **cell.keys, **numbers, **plain})
        done(1)
    if all("estimate" not in line and "rounds" not in line for part in lines.values() for line in part):
        raise InputError(f"probe scores: no cell can be scored ({next(iter(details))['reason']})")
    tables = {score: _adjusted(pd.DataFrame(part)) for score, part in lines.items()}
    if pairs:
        keys = [name for name in tables[ENTANGLEMENT] if name in ("model", "hook", "site", "layer", "position")]
        table = pd.concat(pairs, ignore_index=True)
        tables[INTERFERENCE] = table[[*keys, *(name for name in table if name not in (*keys, "target"))]]
    return Scores(tables, details, left_out)


def write(
    directory: Path, scores: Scores, sources: Sequence[Source], settings: ScoreSettings, probing: GridSettings
) -> None:
    """Writes each table as Parquet, and all with what stands behind them as JSON.

    Raises:
        InputError: if no directory can be made there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output {directory}: no directory can be made there ({error.strerror})") from None
    for name, table in scores.tables.items():
        write_whole(directory / f"{name}.parquet", parquet_bytes(table))
    document = {
        "stores": {source.label: sha256(source.store.directory / MANIFEST) for source in sources},
        "settings": {
            **asdict(settings),
            **{name: getattr(probing, name) for name in ("kind", "folds", "seed", "device")},
        },
        "left_out": dict(scores.left_out),
        "lines": scores.details,
    }
    text = json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(directory / JSON, (text + "\n").encode())


def _chosen(settings: ScoreSettings, n_targets: int, n_positions: int) -> list[str]:
    """The scores that are asked for, or all that can be had."""
    lacking = {
        FRACTURE: "two positions, or --column" if n_positions < 2 and settings.column is None else None,
        ENTANGLEMENT: "two targets" if n_targets < 2 else None,
    }
    for score in settings.scores or ():
        if score not in SCORES:
            raise InputError(f"score {score!r}: expected {', '.join(SCORES)}")
        if lacking.get(score):
            raise InputError(f"score {score!r}: needs {lacking[score]}; give them, or leave it out of --scores")
    return [score for score in settings.scores or SCORES if not lacking.get(score)]


def _in_common(
    sources: Sequence[Source], targets: Sequence[Sequence[Target]]
) -> tuple[list[list[Target]], dict[str, int]]:
    """The targets without the prompts that not every model has a label of: scores grow with the number of prompts."""
    masked: list[list[Target]] = [[] for _ in sources]
    left_out = {}
    for concept in zip(*targets, strict=True):
        if len({target.task for target in concept}) > 1:
            raise InputError(
                f"target {concept[0].name!r}: is classes in one model and numbers in another, which have no score in "
                "common; say which with --task"
            )
        rows = [source.store.rows["id"].astype(str) for source in sources]
        ids = [set(names[target.present]) for names, target in zip(rows, concept, strict=True)]
        shared = set.intersection(*ids)
        if not shared:
            raise InputError(
                f"target {concept[0].name!r}: the stores {', '.join(str(s.store.directory) for s in sources)} have no "
                "prompt with a label in common; capture the same prompts"
            )
        if lost := len(set.union(*ids) - shared):
            left_out[concept[0].name] = lost
        for part, names, target in zip(masked, rows, concept, strict=True):
            there = names.isin(shared).to_numpy()
            nothing = np.nan if target.task == "regression" else None
            part.append(replace(target, values=np.where(there, target.values, nothing)))
    return masked, left_out


def _adjusted(table: pd.DataFrame) -> pd.DataFrame:
    """The table with p-values adjusted over its lines, where it has any."""
    if "p" not in table:
        return table
    tested = table["p"].dropna()
    adjusted = statistics.benjamini_hochberg(tested.to_dict())
    column = pd.Series(adjusted, dtype=float).reindex(table.index)
    table.insert(list(table).index("p") + 1, "p_adjusted", column)
    return table
