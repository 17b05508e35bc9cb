"""Dictionaries of a study: training sparse autoencoders and crosscoders on its activations, or on stores by themselves.

A run keeps them under `sae/NAME/`: `seed_0/`, `seed_1/`, … of the same settings, `twins/` with the activations and the
dictionaries of models that learned nothing, and `compare/`, what `fracture.feature_comparison` finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.errors import InputError
from analysis.models import BASE, ModelPair
from analysis.runs import ACTIVATIONS, FEATURES, SUMMARY, Run
from analysis.sites import hook_name, parse_hook_name
from analysis.store import MANIFEST, Store
from fracture.probing.training import file_name
from sae.dictionary import Dictionary
from sae.rows import Rows, stacked, training_rows
from sae.trainer import CROSSCODERS, TrainSettings
from sae.training import train

BOTH = "both"
SEEDS = 3
EPOCHS, FEWEST = 20, 400_000
"""Rows are trained on so often, or until so many have been, whichever is more."""
Stage = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True)
class Activations:
    """Where activations come from: the stores of one or more models, the base's first, and the run, if it is one.

    Attributes:
        stores: model → store.
        run: the study's; None for stores by themselves.
        out: where dictionaries go.
    """

    stores: Mapping[str, Store]
    run: Run | None
    out: Path


def open_activations(path: Path, others: Mapping[str, Path]) -> Activations:
    """The activations at a path: all of a finished study's models, or a store, with others beside it.

    Args:
        path: run directory or activation store.
        others: name → store of the same texts read by another model; for a store only.

    Raises:
        InputError: if it is neither, or the study kept no activations.
    """
    if (path / MANIFEST).is_file():
        stores = {BASE: Store.open(path), **{name: Store.open(where) for name, where in others.items()}}
        return Activations(stores, None, path.with_name(f"{path.name}-{FEATURES}"))
    if not (path / SUMMARY).is_file():
        raise InputError(
            f"{path}: is neither the run directory of a finished study ({SUMMARY}) nor an activation store ({MANIFEST})"
        )
    if others:
        raise InputError(f"--other: {path} is a study's run, which has its variants' activations itself")
    run = Run.open(path)
    if not (path / ACTIVATIONS).is_dir():
        measures = ",".join((*run.measures, "readout"))
        raise InputError(
            f"run {path}: kept no activations; run the study again with `fracture study --measures {measures} "
            "--positions all`, in another --out, or make stores with `fracture capture … --positions all`"
        )
    return Activations({name: Store.open(path / ACTIVATIONS / name) for name in run.readers}, run, path / FEATURES)


def hook_of(source: Activations, layer: int | None, site: str) -> str:
    """The hook that is meant: of a layer, by default the middle one of those that the stores hold.

    Raises:
        InputError: if the stores do not hold it.
    """
    store = next(iter(source.stores.values()))
    held = [name for name in store.hooks if _parsed(name)[0] == site]
    layers = sorted(_parsed(name)[1] for name in held)
    if not layers:
        raise InputError(f"site {site!r}: not in {store.directory}; it holds {', '.join(store.hooks)}")
    chosen = layers[(len(layers) - 1) // 2] if layer is None else layer
    if chosen not in layers:
        raise InputError(
            f"--layer {chosen}: {store.directory} holds the layers {', '.join(map(str, layers))} of {site}"
        )
    return hook_name(site, chosen)


def chosen_models(source: Activations, model: str | None, architecture: str) -> tuple[str, ...]:
    """The models that are meant: `base`, a variant, `both` (with the only variant), or names with commas.

    Raises:
        InputError: if that is not clear, or one is not there.
    """
    names = list(source.stores)
    variants = names[1:]
    if model in (None, BOTH):
        if model is None and architecture not in CROSSCODERS:
            return (names[0],)
        if len(variants) != 1:
            what = f"there are {len(variants)} variants" if variants else "there is one model only"
            hint = f"; name two, such as --model {BASE},{variants[0]}" if variants else "; give --other NAME=STORE"
            raise InputError(f"--model: {what}{hint}")
        return (names[0], variants[0])
    asked = tuple(part.strip() for part in str(model).split(",") if part.strip())
    if unknown := [name for name in asked if name not in names]:
        raise InputError(f"--model {unknown[0]!r}: there are {', '.join(names)}")
    if architecture in CROSSCODERS and len(asked) < 2:
        raise InputError(
            f"--model {model}: a crosscoder is of two models or more; name them, such as {BASE},{asked[0]}"
        )
    return tuple(sorted(set(asked), key=names.index))


def rows_for(source: Activations, models: Sequence[str], hook: str, architecture: str) -> Rows:
    """The rows that a dictionary of these models is trained on: side by side for crosscoders, else one below the
    other."""
    rows = training_rows({name: source.stores[name] for name in models}, hook)
    return rows if architecture in CROSSCODERS or len(models) == 1 else stacked(rows, BOTH)


def defaults(
    rows: Rows, architecture: str, latents: int | None, k: int | None, n_rows: int | None, seed: int
) -> TrainSettings:
    """The settings of a training, with what is not given chosen by the rows.

    Eight latents a dimension, as far as there are eight rows a latent; of them one in 32 fires, 4 to 32.
    """
    n = len(rows.training)
    chosen = latents or max(16, min(8 * rows.width, n // 8))
    fires = k or max(1, min(chosen, max(4, min(32, chosen // 32))))
    seen = n_rows or max(EPOCHS * n, FEWEST)
    batch = min(2048, max(64, n // 4))
    return TrainSettings(architecture=architecture, latents=chosen, k=fires, rows=seen, batch=batch, seed=seed)


def train_dictionaries(
    source: Activations,
    models: Sequence[str],
    hook: str,
    settings: TrainSettings,
    seeds: int,
    stage: Stage,
    out: Path | None = None,
) -> tuple[Path, list[Dictionary]]:
    """Dictionaries of several seeds, trained or found where they go, and their directory.

    Raises:
        InputError: as `sae.training.train`.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: expected 1 or more (3, to say which latents are found again)")
    rows = rows_for(source, models, hook, settings.architecture)
    directory = out or source.out / file_name(f"{settings.architecture}.{'-'.join(models)}.{hook}")
    found = []
    for seed in range(settings.seed, settings.seed + seeds):
        told = stage(f"training {settings.architecture} of {', '.join(models)}, seed {seed}: rows", settings.rows)
        found.append(train(rows, replace(settings, seed=seed), directory / f"seed_{seed}", told))
    return directory, found


def seeds_of(directory: Path) -> list[Dictionary]:
    """The dictionaries of all seeds in a directory that `train_dictionaries` made, or the one that it is.

    Raises:
        InputError: if there is none.
    """
    found = sorted(directory.glob("seed_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    if not found:
        raise InputError(f"{directory}: holds no dictionaries; make some with `fracture sae train`")
    return [Dictionary.load(path) for path in found]


def pair_of(run: Run) -> ModelPair:
    """The models of a study, which must be those that it had.

    Raises:
        InputError: if one is gone, or another than it was.
    """
    study = run.summary["study"]
    pair = ModelPair.load(
        study["base"],
        study["variants"],
        format=study["format"],
        dtype=study["dtype"],
        device=study["device"],
        trust_remote_code=study["trust_remote_code"],
    )
    for model in pair.sources():
        if model.digest() != run.provenance["inputs"][f"model {model.name}"]:
            raise InputError(
                f"model {model.name}: {model.directory} is not what the study {run.directory} had (its SHA-256 "
                "differs); restore it, or run the study again"
            )
    return pair


def _parsed(name: str) -> tuple[str, int]:
    try:
        return parse_hook_name(name)
    except InputError:
        return "", -1


def the_dictionaries(source: Activations) -> Path:
    """The only directory of trained dictionaries of a run.

    Raises:
        InputError: if there are several, or none.
    """
    found = sorted({path.parent for path in source.out.glob("*/seed_*")})
    if len(found) != 1:
        known = (
            f"there are {', '.join(path.name for path in found)}; name one" if found else "there are none; make some"
        )
        where = source.out if source.run is None else source.run.directory
        raise InputError(f"{source.out}: {known} with {'--dictionary' if found else f'`fracture sae train {where}`'}")
    return found[0]


def published(source: Activations, name: str, layer: int | None, site: str) -> tuple[Path, list[Dictionary]]:
    """A published dictionary of one model, for a hook of these activations, and where its comparison goes.

    Raises:
        InputError: as `Dictionary.published`.
    """
    import math

    hook = hook_of(source, layer, site)
    width = math.prod(next(iter(source.stores.values())).manifest.hooks[hook])
    return source.out / file_name(f"published.{name}.{hook}"), [Dictionary.published(name, hook, width)]
