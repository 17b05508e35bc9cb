"""Probes from the command line: over a study's activations, or over a store that a user brings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import InputError
from analysis.files import parquet_bytes, plain, write_whole
from analysis.models import BASE
from analysis.runs import ACTIVATIONS, PROBES, SUMMARY, TWIN, Run
from analysis.sealed import CARD
from analysis.store import MANIFEST, Store, sha256
from analysis.store_import import read_labels
from analysis.verifiers import load_verifier
from probes.estimators import raw_weights, weights
from probes.fitting import KINDS, Estimated, Kind
from probes.folds import assign_folds
from probes.grid import CellFit, Grid, GridSettings, fit_grid
from probes.saved import ProbeSet, SavedProbe
from probes.scores import score_outputs
from probes.targets import Target, find_target
from probes.transfer import transfer

TABLE, EXCLUDED, HEAT_MAP, TRAINED_ON = "table.parquet", "excluded.parquet", "heat_map.png", "trained_on.parquet"
TRANSFER_TABLE, TRANSFER_MAP = "transfer.parquet", "transfer.png"


@dataclass(frozen=True)
class Source:
    """Activations of one model: of a study's run, or a store by itself."""

    path: Path
    store: Store
    model: str | None
    twin: Store | None
    verifier: str

    @property
    def out(self) -> Path:
        """Where probes go by default: into the run, or beside the store."""
        return self.path / PROBES if self.model else self.path.with_name(f"{self.path.name}-{PROBES}")

    @property
    def label(self) -> str:
        """How files and titles name it."""
        return self.model or self.path.name


def open_source(path: Path, model: str | None, twin: Path | None) -> Source:
    """The activations at a path: those of one model of a finished study (the base by default), or a store.

    Raises:
        InputError: if it is neither, has no such model, or its study kept no activations.
    """
    given = None if twin is None else Store.open(twin)
    if (path / MANIFEST).is_file():
        if model is not None:
            raise InputError(f"--model {model!r}: {path} is one activation store; --model picks one of a study's run")
        return Source(path, Store.open(path), None, given, "arithmetic")
    if not (path / SUMMARY).is_file():
        raise InputError(
            f"{path}: is neither the run directory of a finished study ({SUMMARY}) nor an activation store ({MANIFEST})"
        )
    run = Run.open(path)
    name = model or BASE
    if name not in run.readers:
        raise InputError(f"--model {name!r}: the run {path} has {', '.join(run.readers)}")
    directory = path / ACTIVATIONS / name
    if not directory.is_dir():
        raise InputError(
            f"run {path}: kept no activations; run the study again with the measure probes or drift, in another --out, "
            "or make a store with `fracture capture`"
        )
    if given is None and (path / TWIN).is_dir():
        given = Store.open(path / TWIN)
    return Source(path, Store.open(directory), name, given, str(run.summary["study"]["verifier"]))


def target_of(source: Source, name: str, task: str, labels: Path | None) -> Target:
    """The target for a source's rows; see `probes.targets.find_target`."""
    table = None if labels is None else read_labels(labels)
    return find_target(source.store, name, task=task, labels=table, verifier=load_verifier(source.verifier))


def train(
    source: Source,
    target: Target,
    *,
    layers: str,
    site: str | None,
    positions: Sequence[str] | None,
    settings: GridSettings,
    out: Path | None,
    progress: Callable[[str, int], Callable[[int], None]],
) -> tuple[Grid, Path]:
    """Trains a grid of probes and writes it: the probes with their card, the table, and a heat map.

    Raises:
        InputError: as `fit_grid`; or if something else is at `out`.
    """
    from figures.probe_maps import heat_map
    from probes.cells import hooks_of, positions_of

    check_kind(settings.kind)
    directory = out or source.out / file_name(f"{target.name}.{settings.kind}.{source.label}")
    if directory.exists() and not (
        directory.is_dir() and ((directory / CARD).is_file() or not any(directory.iterdir()))
    ):
        raise InputError(f"output {directory}: is there, and holds no probes; give another directory")
    cells = len(hooks_of(source.store, layers, site)) * len(positions_of(source.store.rows, positions))
    grid = fit_grid(
        source.store,
        target,
        layers=layers,
        site=site,
        positions=positions,
        settings=settings,
        twin=source.twin,
        progress=progress(f"probing {target.name} in {source.label}", cells),
    )
    probe_set(source, target, grid, settings).save(directory)
    ids = sorted({str(name) for name in grid.folds})
    write_whole(directory / TABLE, parquet_bytes(grid.table))
    write_whole(directory / EXCLUDED, parquet_bytes(grid.excluded.astype("string")))
    write_whole(directory / TRAINED_ON, parquet_bytes(pd.DataFrame({"id": ids}, dtype="string")))
    write_figure(directory / HEAT_MAP, heat_map(grid.table, f"{target.name} in {source.label}"))
    return grid, directory


def probe_set(source: Source, target: Target, grid: Grid, settings: GridSettings) -> ProbeSet:
    """The probes of a grid that were trained on all rows, with a card that says how."""
    known = source.store.manifest.settings
    card: dict[str, Any] = {
        "target": target.name,
        "meaning": target.meaning,
        "metric": grid.metric,
        "trained_in": source.label,
        "settings": {**vars(settings)},
        "n_prompts": len(grid.folds),
        "store": sha256(source.store.directory / MANIFEST),
        "twin": None if source.twin is None else sha256(source.twin.directory / MANIFEST),
        **{name: known[name] for name in ("model", "random_init", "shuffled") if name in known},
        "versions": {name: metadata.version(name) for name in ("fracture-suite", "scikit-learn", "torch", "numpy")},
        "scores": [
            {key: plain(line[key]) for key in ("hook", "position", "score", "low", "high", "n_prompts", "finding")}
            for _, line in grid.table.iterrows()
        ],
    }
    return ProbeSet(card, tuple(_saved(cell, settings.kind) for cell in grid.cells))


def evaluate(
    source: Source, probes: ProbeSet, target: Target, trained_on: Sequence[str], include_trained: bool, any_model: bool
) -> tuple[pd.DataFrame, int]:
    """Saved probes on a store's rows, one line a cell with its score and interval; and how many prompts were left out.

    Prompts that the probes were trained on are left out, unless they are asked for.

    Raises:
        InputError: if nothing is left, or the probes know none of the labels.
    """
    store = source.store
    found = probes.apply(store, any_model)
    seen = set() if include_trained else set(trained_on)
    labelled = found[target.present[found["row"]]]
    kept = labelled[~labelled["id"].astype(str).isin(seen)]
    n_left = labelled["id"].nunique() - kept["id"].nunique()
    if not len(kept):
        if not n_left:
            raise InputError(f"probes: no row of {store.directory} at the probes' positions has a label")
        raise InputError(
            f"probes: all {n_left} labelled prompts of {store.directory} are prompts that the probes were trained on, "
            "so a score would say nothing of new ones; give other prompts, use `fracture probes transfer` for another "
            "model on the same prompts, or --include-trained"
        )
    lines = []
    for probe in probes.probes:
        rows = kept.loc[(kept["hook"] == probe.hook) & (kept["position"] == probe.position), "row"].to_numpy()
        if len(rows):
            lines.append(_evaluated(store, probe, target, rows))
    return pd.DataFrame(lines), n_left


def transferred(
    base: Source,
    variant: Source,
    targets: tuple[Target, Target],
    *,
    layers: str,
    site: str | None,
    positions: Sequence[str] | None,
    settings: GridSettings,
    margin: float,
    out: Path | None,
    progress: Callable[[str, int], Callable[[int], None]],
) -> tuple[pd.DataFrame, Path]:
    """The transfer table of two models, written with its map."""
    from figures.transfer import outcome_map
    from probes.cells import hooks_of, positions_of

    check_kind(settings.kind)
    cells = len(hooks_of(base.store, layers, site)) * len(positions_of(base.store.rows, positions))
    what = f"{targets[0].name}, {base.label} to {variant.label}"
    table = transfer(
        base.store,
        variant.store,
        *targets,
        layers=layers,
        site=site,
        positions=positions,
        settings=settings,
        margin=margin,
        progress=progress(f"transfer of {what}", cells),
    )
    name = f"{targets[0].name}.{settings.kind}.{base.label}-to-{variant.label}"
    directory = out or base.out / file_name(name)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / TRANSFER_TABLE, parquet_bytes(table))
    write_figure(directory / TRANSFER_MAP, outcome_map(table, what))
    return table, directory


def list_probes(path: Path) -> list[tuple[Path, ProbeSet]]:
    """The probe sets below a directory.

    Raises:
        InputError: if there is none.
    """
    found = [(card.parent, ProbeSet.load(card.parent)) for card in sorted(path.rglob(CARD))]
    if not found:
        raise InputError(f"{path}: holds no probes; make some with `fracture probes train`")
    return found


def trained_prompts(directory: Path) -> list[str]:
    """The prompts that a saved probe set was trained on.

    Raises:
        InputError: if they are not known, so that a score could be of rows that were trained on.
    """
    path = directory / TRAINED_ON
    if not path.is_file():
        raise InputError(
            f"probe set {directory}: {TRAINED_ON} is missing, so it is not known which prompts it was trained on; "
            "train the probes again"
        )
    return [str(name) for name in pd.read_parquet(path)["id"]]


def check_kind(kind: str) -> Kind:
    """The kind itself.

    Raises:
        InputError: for one that there is not.
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}: expected {', '.join(KINDS)}")
    return kind


def file_name(text: str) -> str:
    """A text as part of a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def write_figure(path: Path, figure: Any) -> None:
    """Writes a figure as PNG."""
    import figures

    write_whole(path, figures.to_bytes(figure, "png"))


def _saved(cell: CellFit, kind: Kind) -> SavedProbe:
    if isinstance(cell.full, Estimated):
        tensors, width = weights(cell.full.estimator), int(cell.full.estimator.n_features_in_)
    else:
        tensors, width = raw_weights(cell.full), len(cell.full.mean)
    classes: Any = cell.labels.classes
    task: Any = "regression" if classes is None else "classification"
    return SavedProbe(kind, task, classes, cell.hook.name, cell.position, width, tensors)


def _evaluated(store: Store, probe: SavedProbe, target: Target, rows: np.ndarray) -> dict[str, Any]:
    if (probe.task == "regression") != (target.task == "regression"):
        raise InputError(f"target {target.name!r}: is a {target.task}, and the probes are of a {probe.task}")
    if probe.classes is not None:
        strange = sorted(set(target.values[rows]) - set(probe.classes))
        if len(strange) == len(set(target.values[rows])):
            raise InputError(
                f"target {target.name!r}: none of its labels ({', '.join(map(str, strange[:5]))}) is one of the "
                f"probes' ({', '.join(map(str, probe.classes[:5]))})"
            )
        rows = rows[~np.isin(target.values[rows], strange)]
    labels = target.of(rows, None if probe.classes is None else [str(name) for name in probe.classes])
    outputs = probe.outputs(store.read(probe.hook, rows).flatten(1))
    prompts = pd.factorize(store.rows["id"].to_numpy()[rows])[0]
    metric: Any = "r2" if probe.classes is None else ("auc" if len(probe.classes) == 2 else "accuracy")
    # One probe for all rows: one fold for the AUC, and two halves so that R² has a mean to compare with.
    folds = np.zeros(len(rows), dtype=np.int64)
    if metric == "r2":
        halves = assign_folds(list(prompts), [None] * len(prompts), 2, 0)
        folds = np.array([halves[name] for name in prompts])
    score = score_outputs(metric, labels, outputs, folds, prompts).interval()
    counts = None if probe.classes is None else np.bincount(labels.values)
    return {
        "hook": probe.hook,
        "position": probe.position,
        "n_prompts": int(prompts.max()) + 1,
        "n_rows": len(rows),
        "metric": metric,
        "score": score.estimate,
        "low": score.low,
        "high": score.high,
        "majority_rate": None if counts is None else float(counts.max() / len(rows)),
    }


def describe(directory: Path, probes: ProbeSet) -> str:
    """One probe set in a line or two."""
    card = probes.card
    best = max(card["scores"], key=lambda line: -np.inf if line["score"] is None else line["score"])
    sound = sum(line["finding"] == "decodable" for line in card["scores"])
    return (
        f"{directory}\n  {card['target']} ({probes.probes[0].kind}) in {card['trained_in']}: {len(probes.probes)} "
        f"probes, {card['n_prompts']} prompts; best {card['metric']} {best['score']:.2f} at {best['hook']}, "
        f"{best['position']}; {sound} beyond every control"
    )
