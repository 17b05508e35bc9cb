"""The comparison of base and variant by a dictionary: what differs, what it fires on, and whether it carries bypass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.authored import Authored
from analysis.capture import Text, capture
from analysis.errors import InputError
from analysis.measures.protocol import Settings
from analysis.measures.routes import ANOTHER_PROMPT
from analysis.models import BASE, ModelPair, Reader, random_twin, shuffled_twin
from analysis.runs import Run
from analysis.sites import parse_hook_name
from analysis.store import Store
from analysis.verifiers import load_verifier
from fracture.features.dictionaries import BOTH, Activations, Stage, pair_of, rows_for
from sae.agreement import Agreement, matched
from sae.causal import DRAWS, Check, causal_check, modes
from sae.dictionary import Dictionary
from sae.differences import ARTEFACT, BASE_ONLY, DEAD, VARIANT_ONLY, compare, scaled_decoder
from sae.firing import Firing, by_place, firing
from sae.latents import answer_effects, answer_tokens, contexts_of, differences, logit_gradients, unit_norms
from sae.maps import drawn, latent_map, step_states
from sae.rows import Rows, selected, stacked, training_rows
from sae.trainer import TrainSettings
from sae.twins import beside

TWINS = {"random-init": random_twin, "shuffled": shuffled_twin}
ABLATED, RESTORED, EXCHANGED = "variant-only ablated", "base-only restored", "both kinds exchanged"
"""Edits of the variant: what only it writes is taken out; what only the base writes is put in; both."""
MOST_ABLATED, MOST_EXCHANGED = "most changed ablated", "most changed exchanged"
"""Edits of the latents of any class whose writing differs most: taken out; what the base writes put in their place."""
DIFFERENT, ABLATED_DIFFERENT = "differing", "differing ablated"
"""Of a dictionary that is no crosscoder: the class of the latents that fire otherwise most, and their edit."""
MOST = 32
"""So many of the latents that changed most are shown, and of a dictionary without classes edited."""
MOST_SHARE = 0.2
"""Of a crosscoder's latents that are not dead so many, those that changed most, are edited together."""
ANSWERS = 20
PROMPTS = 40


@dataclass(frozen=True)
class CompareSettings:
    """How a comparison is made.

    Attributes:
        prompts: how many prompts with partners the causal check measures.
        draws: random sets of latents an edit.
        twins: whether models that learned nothing stand beside the dictionary.
        causal: whether latents are edited in the variant.
        maps: whether UMAP and PCA maps are made.
        seed: of all that is drawn.
        batch_tokens: how many tokens a forward pass may hold.
    """

    prompts: int = PROMPTS
    draws: int = DRAWS
    twins: bool = True
    causal: bool = True
    maps: bool = True
    seed: int = 0
    batch_tokens: int = 16384

    def __post_init__(self) -> None:
        if self.causal and self.draws < DRAWS:
            raise InputError(f"draws {self.draws}: expected {DRAWS} or more random sets")
        if self.prompts < 1:
            raise InputError(f"prompts {self.prompts}: expected 1 or more")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was found of a variant.

    Attributes:
        dictionary: of the first seed: the latents are its own.
        variant: its name.
        latents: a line a latent: `class` and what decides it (`sae.differences`), `seeds` that have it, `named`.
        agreement: of the seeds; None for one.
        places: how each latent fires at each place (`sae.firing.by_place`).
        differences: how firing and writing differ by part of the text (`sae.latents.differences`).
        contexts: of the latents that are shown, what they fire on.
        answers: of these, what they write to the answers' logits.
        twins: the same figures of models that learned nothing; None without.
        check: the causal check; None without.
        unchecked: why there is none; empty if there is one.
        steps, plane: maps of step states and of latents, each with the shares of variance of its PCA; None without.
    """

    dictionary: Dictionary
    variant: str
    latents: pd.DataFrame
    agreement: Agreement | None
    places: pd.DataFrame
    differences: pd.DataFrame
    contexts: pd.DataFrame
    answers: pd.DataFrame
    twins: pd.DataFrame | None
    check: Check | None
    unchecked: str
    steps: tuple[pd.DataFrame, tuple[float, float]] | None
    plane: tuple[pd.DataFrame, tuple[float, float]] | None


def compare_models(
    source: Activations,
    dictionaries: Sequence[Dictionary],
    variant: str,
    directory: Path,
    settings: CompareSettings,
    stage: Stage,
) -> Comparison:
    """The comparison of a study's base and one variant by a dictionary; those of further seeds say what is found again.

    Args:
        source: of a run.
        dictionaries: of several seeds, the first one's latents are compared.
        variant: its name.
        directory: where twins are kept.
        settings: what is made.
        stage: shows progress.

    Raises:
        InputError: if the run lacks what the dictionary reads, or its models are gone.
    """
    run, first = source.run, dictionaries[0]
    if run is None:
        raise InputError("compare: needs a study's run, whose prompts and models are read again; give its directory")
    crosscoder = len(first.models) > 1
    if variant not in (first.models[1:] if crosscoder else run.variants):
        known = ", ".join(first.models[1:] if crosscoder else run.variants)
        raise InputError(f"--variant {variant!r}: the dictionary and run have {known}")
    names = first.models if crosscoder else (BASE, variant)
    rows = training_rows({name: source.stores[name] for name in names}, first.hook)
    pair = pair_of(run)
    reader = pair.open(variant)
    read = firing(first, rows, progress=stage("where latents fire: rows", len(rows)))
    found = differences(read, unit_norms(first, rows), BASE, variant)
    latents, agreement = _latents(dictionaries, rows, read, found, variant, stage)
    shown = _shown(latents)
    top = read.top[read.top["latent"].isin(shown)]
    contexts = contexts_of(top, rows.table, source.stores[BASE].texts, reader.encoder.tokenizer)
    check = _check(run, pair, reader, first, latents, settings, stage) if settings.causal else "it was not asked for"
    return Comparison(
        first,
        variant,
        latents,
        agreement,
        by_place(read),
        found,
        contexts,
        _answers(source, run, reader, first, shown, variant),
        _twins(source, run, pair, first, rows, directory, settings, stage) if settings.twins else None,
        check if isinstance(check, Check) else None,
        check if isinstance(check, str) else "",
        _steps(source, rows, variant, run, settings) if settings.maps else None,
        _plane(first, latents, settings.seed) if settings.maps else None,
    )


def _latents(
    dictionaries: Sequence[Dictionary], rows: Rows, read: Firing, found: pd.DataFrame, variant: str, stage: Stage
) -> tuple[pd.DataFrame, Agreement | None]:
    """A line a latent of the first dictionary, and how far the seeds agree."""
    first = dictionaries[0]
    if len(first.models) > 1:
        table = compare(first, rows, progress=stage("comparing latents: rows", len(rows)))
        table = table[table["variant"] == variant].reset_index(drop=True)
        table["power_difference"] = _difference(table)
    else:
        table = _without_classes(first, rows, read, found, variant)
    table["seeds"], table["named"] = 1, False
    if len(dictionaries) == 1:
        return table, None
    alive = [_alive(dictionary, rows) for dictionary in dictionaries]
    agreement = matched([scaled_decoder(dictionary) for dictionary in dictionaries], alive)
    ours = agreement.latents[agreement.latents["seed"] == 0].set_index("latent")
    table["seeds"] = table["latent"].map(ours["seeds"]).fillna(0).astype(int)
    table["named"] = table["latent"].map(ours["named"]).astype("boolean").fillna(False).astype(bool)
    return table, agreement


def _difference(latents: pd.DataFrame) -> pd.Series[float]:
    """The mean over rows of the squared norm by which what a latent writes differs between the two models."""
    base, variant = latents["norm_base"], latents["norm_variant"]
    apart = base**2 + variant**2 - 2 * latents["cosine"].fillna(0) * base * variant
    larger = latents[["norm_base", "norm_variant"]].max(axis=1)
    found: pd.Series[float] = latents[["power_base", "power_variant"]].max(axis=1) / larger**2 * apart
    return found


def _without_classes(
    dictionary: Dictionary, rows: Rows, read: Firing, found: pd.DataFrame, variant: str
) -> pd.DataFrame:
    """Of one model's dictionary: how often each latent fires in base and variant, and whether that differs."""
    n = dictionary.n_latents
    table = pd.DataFrame({"variant": variant, "latent": np.arange(n)})
    for label, name in (("base", BASE), ("variant", variant)):
        reading = read.reading(name)
        table[f"density_{label}"] = np.asarray(read.fires[reading].sum(axis=0)).ravel() / len(rows)
    table["density"] = (table["density_base"] + table["density_variant"]) / 2
    units = unit_norms(dictionary, rows)[variant]
    total = np.asarray(read.total[read.reading(variant)].sum(axis=0)).ravel() / len(rows)
    table["power_variant"] = (total * units) ** 2
    lines = found[(found["p_adjusted"] < 0.05)].copy()
    lines["size"] = lines["difference"].abs()
    largest = lines.groupby("latent")["size"].max()
    chosen = set(largest.sort_values(ascending=False).index[:MOST])
    table["class"] = np.where(table["density"] == 0, DEAD, "shared")
    table.loc[table["latent"].isin(chosen), "class"] = DIFFERENT
    return table


def _alive(dictionary: Dictionary, rows: Rows) -> np.ndarray:
    of_model = rows if len(dictionary.models) > 1 else selected(rows, [rows.models[0]])
    counts = np.zeros(dictionary.n_latents, dtype=np.int64)
    for _, x in of_model.chunks(np.arange(len(of_model)), 4096):
        counts += (dictionary.encode(x) > 0).sum(0).cpu().numpy()
    return counts > 0


def _shown(latents: pd.DataFrame) -> list[int]:
    """The latents that a person is shown: those of one model, then those that changed most, named ones first."""
    if "power_difference" not in latents:
        differ = latents[latents["class"] == DIFFERENT].sort_values("named", ascending=False, kind="stable")
        return [int(latent) for latent in differ["latent"]]
    alive = latents[latents["class"] != DEAD].assign(own=lambda t: t["class"].isin([BASE_ONLY, VARIANT_ONLY]))
    order = alive.sort_values(["own", "power_difference"], ascending=[False, False], kind="stable")
    kept = order.head(max(MOST, int(order["own"].sum())))
    return [int(latent) for latent in kept.sort_values(["own", "named"], ascending=False, kind="stable")["latent"]]


def _answers(
    source: Activations, run: Run, reader: Reader, dictionary: Dictionary, shown: Sequence[int], variant: str
) -> pd.DataFrame:
    """What the shown latents write into the variant's logits of the answers."""
    store = source.stores[variant]
    last = max((name for name in store.hooks if ".hook_resid_post" in name), key=lambda name: parse_hook_name(name)[1])
    rows = np.flatnonzero((store.rows["part"] == "marker") & store.rows["end"])
    gold = store.texts["gold"].value_counts() if store.texts is not None else pd.Series(dtype=int)
    prompts = {prompt.id: prompt for prompt in run.authored()}
    empty = pd.DataFrame(columns=["latent", "rank", "answer", "effect", "low", "high", "n_prompts"])
    if len(gold) < 2 or not len(rows) or not len(shown):
        return empty
    case = next(iter(prompts.values())).case
    tokens = answer_tokens(reader, case.question, case.steps or (), [str(name) for name in gold.index[:ANSWERS]])
    if len(tokens) < 2:
        return empty
    gradients = logit_gradients(reader, store.read(last, rows).flatten(1).float(), list(tokens))
    place = dictionary.models.index(variant) if variant in dictionary.models else 0
    directions = dictionary.decoder[list(shown), place].double().cpu().numpy()
    return answer_effects(
        directions,
        gradients,
        list(store.rows["id"].iloc[rows]),
        list(tokens.values()),
        np.array(shown, dtype=np.int64),
    )


def _twins(
    source: Activations,
    run: Run,
    pair: ModelPair,
    dictionary: Dictionary,
    rows: Rows,
    directory: Path,
    settings: CompareSettings,
    stage: Stage,
) -> pd.DataFrame:
    """The dictionary's figures beside those of the same settings on models that learned nothing."""
    chosen = TrainSettings(**dictionary.card["settings"]) if "settings" in dictionary.card else None
    if chosen is None:
        raise InputError("twins: a published dictionary's settings are not known; use --no-twins")
    models, ours = _trained_on(dictionary, rows)
    seen = {}
    for kind, twin_of in TWINS.items():
        stores = {}
        for name in models:
            twin, where = twin_of(pair.open(name), settings.seed), directory / "twins" / kind / name
            stores[name] = _captured(twin, source.stores[name], run, where, stage)
        twins = Activations(stores, None, directory)
        seen[kind] = rows_for(twins, models, dictionary.hook, chosen.architecture)
    where = directory / "twins" / f"seed_{chosen.seed}"
    told = lambda name: stage(f"training on the {name} twin: rows", chosen.rows)  # noqa: E731
    return beside(dictionary, ours, seen, chosen, where, told)


def _trained_on(dictionary: Dictionary, rows: Rows) -> tuple[tuple[str, ...], Rows]:
    """The models whose activations a dictionary was trained on, and these of the rows."""
    if len(dictionary.models) > 1:
        return dictionary.models, rows
    (name,) = dictionary.models
    if name == BOTH:
        return rows.models, stacked(rows)
    return (name,), selected(rows, [name])


def _captured(reader: Reader, store: Store, run: Run, directory: Path, stage: Stage) -> Store:
    """Activations of a twin of the texts of a store, at its hooks and positions."""
    known = store.manifest.settings
    sites = list(dict.fromkeys(parse_hook_name(name)[0] for name in known["hooks"]))
    prompts = {prompt.id: prompt for prompt in run.authored()}
    texts = [
        Text(p.id, p.author, reader.encoder.encode(p.case.question, p.steps, p.case.answer, p.case.gaps))
        for p in (prompts[name] for name in dict.fromkeys(store.rows["id"]) if name in prompts)
    ]
    told = stage(f"{reader.name}'s twin in {directory.parent.name}: texts", len(texts))
    return capture(
        reader,
        texts,
        directory,
        site_names=sites,
        positions=known["positions"],
        batch_tokens=known["batch_tokens"],
        progress=told,
    )


def _check(
    run: Run,
    pair: ModelPair,
    reader: Reader,
    dictionary: Dictionary,
    latents: pd.DataFrame,
    settings: CompareSettings,
    stage: Stage,
) -> Check | str:
    """The causal check of the latents that differ, or why there is none: all else that was found stands without it."""
    by_class = {kind: rows["latent"].tolist() for kind, rows in latents.groupby("class")}
    ours, theirs = by_class.get(VARIANT_ONLY, []), by_class.get(BASE_ONLY, [])
    if len(dictionary.models) > 1:
        alive = latents[latents["class"] != DEAD]
        changed = alive.nlargest(int(MOST_SHARE * len(alive)), "power_difference")["latent"].tolist()
        edits = modes(
            {
                ABLATED: (ours, "ablate"),
                RESTORED: (theirs, "restore"),
                # With latents of one kind only it would be that kind's edit again.
                EXCHANGED: ([*ours, *theirs] if ours and theirs else [], "restore"),
                MOST_ABLATED: (changed, "ablate"),
                MOST_EXCHANGED: (changed, "restore"),
            }
        )
    else:
        edits = modes({ABLATED_DIFFERENT: (by_class.get(DIFFERENT, []), "ablate")})
    if not edits:
        return "no latent differs"
    scored = [p for p in run.authored() if p.partner is not None and (p.tier or 0) < ANOTHER_PROMPT]
    prompts: list[Authored] = scored[: settings.prompts]
    study = run.summary["study"]
    n = 1 + len(edits) * (1 + settings.draws)
    try:
        return causal_check(
            pair,
            reader,
            dictionary,
            edits,
            _similar(latents),
            prompts,
            Settings(
                verifier=load_verifier(study["verifier"]),
                seed=settings.seed,
                patch_prompts=study["patch_prompts"] or None,
            ),
            draws=settings.draws,
            batch_tokens=settings.batch_tokens,
            progress=stage("editing latents: measures", n),
        )
    except InputError as error:
        return str(error)


def _similar(latents: pd.DataFrame) -> np.ndarray:
    """What random latents are matched in: log firing rate, and log power of what is written into the model where that
    is more. Artefacts and dead latents stand in for none."""
    power = latents[[name for name in ("power_base", "power_variant") if name in latents]].max(axis=1)
    with np.errstate(divide="ignore"):
        found: np.ndarray = np.log(np.column_stack([latents["density"], power]))
    found[latents["class"].isin([DEAD, ARTEFACT]).to_numpy() | ~np.isfinite(found).all(1)] = np.nan
    return found


def _steps(
    source: Activations, rows: Rows, variant: str, run: Run, settings: CompareSettings
) -> tuple[pd.DataFrame, tuple[float, float]] | None:
    """The map of the states at step ends, of base and variant together; None if there are too few."""
    ends = np.flatnonzero((rows.table["part"] == "step") & rows.table["end"])
    texts = source.stores[BASE].texts
    if texts is None or len(ends) < 32:
        return None
    chosen = ends[drawn(rows.table["id"].iloc[ends], most=1000, seed=settings.seed)]
    verifier = load_verifier(run.summary["study"]["verifier"])
    read = selected(rows, [BASE, variant]).read(chosen).double().numpy()
    table = rows.table.iloc[chosen]
    both = pd.concat([table.assign(model=name) for name in (BASE, variant)], ignore_index=True)
    return step_states(np.concatenate([read[:, 0], read[:, 1]]), both, texts, verifier=verifier, seed=settings.seed)


def _plane(dictionary: Dictionary, latents: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, tuple[float, float]] | None:
    """The map of the latents that are not dead, by what they write; None if there are too few."""
    alive = latents[latents["class"] != DEAD]
    decoder = scaled_decoder(dictionary).flatten(1).numpy()[alive["latent"].to_numpy()]
    if len(alive) < 32:
        return None
    columns: Mapping[str, Any] = {name: alive[name].to_numpy() for name in alive if name in _PLANE_COLUMNS}
    return latent_map(decoder, columns, seed=seed)


_PLANE_COLUMNS = ("latent", "class", "relative_norm", "density", "named")
