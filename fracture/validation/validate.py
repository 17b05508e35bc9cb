"""Validation: the suite's measures asked of models whose fracture is known, and of nulls; makes `validation.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import organisms
from analysis.errors import InputError
from analysis.files import locked, plain, write_whole
from analysis.runs import Run
from fracture import catalogue
from fracture.config import StudyConfig
from fracture.progress import Progress
from fracture.study import run_study
from fracture.validation.acceptance import acceptance
from fracture.validation.at_once import Work, at_once, one_thread
from fracture.validation.nulls import OTHER_BATCH_TOKENS, permuted_labels, rounded_copy, self_pairs
from fracture.validation.pairs import Pair, pairs_of, question_followed
from fracture.validation.plan import (
    SELF,
    VERIFIERS,
    Panel,
    ValidationConfig,
    Variant,
    is_dose,
    is_sham,
    is_shipped,
    panels,
    trainings,
)
from fracture.validation.readers import simulated_readers
from fracture.validation.scores import HEADLINE, rows
from fracture.validation.status import CRITERIA
from fracture.validation.training import train_all
from fracture.validation.units import Units
from fracture.validity import FILE, extract, key_of
from organisms.recipes import find

VALIDATION, SETTINGS = "validation.json", "settings.json"
SCHEMA_VERSION = 1
DRAWS = {"quick": 50, "full": 200}
"""How many prompt sets are drawn for each pair of a null experiment."""
NULL_SEED = 0
COPY = "copy"


def validate(
    config: ValidationConfig,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """The validation, made or gone on with, as it is in `validation.json`.

    What is trained and studied stays in the directory; a call that was stopped is gone on with, and ends with the same
    `validation.json` as an undisturbed one.

    Args:
        config: the settings.
        progress: where the stages of trainings and studies are shown; None to show nothing.
        say: is given a line before each unit of work.
        jobs: how many organisms are trained, and studies made, at once; their number changes no result.

    Raises:
        InputError: if the directory holds something else, or an organism cannot be used.
    """
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: expected a number of processes at once, 1 or more")
    progress = progress or Progress()
    _check(config)
    begun(config)
    with locked(config.out, "validation"):
        to_train = [training for training in trainings(config) if not (training.out / "config.json").is_file()]
        planned = panels(config)
        copies = [_copy_of(config, panel) for panel in planned if _has_null(panel)]
        # The longest first, so that of several at once none is begun when the others are done.
        asked = sorted((*planned, *copies), key=lambda panel: -len(panel.variants))
        units = Units(
            [
                *(("trainings", training.recipe.steps) for training in to_train),
                *(("studies", _left_to_read(config, panel)) for panel in asked),
                *[("null experiments", 1)] * 3,
            ],
            say,
        )
        train_all(to_train, jobs, units, progress)
        runs = _studies(config, asked, jobs, units, progress)
        pairs = [pair for panel in planned for pair in pairs_of(panel, runs[panel.name])]
        validation = result(config, pairs, _nulls(config, pairs, copies, runs, units, progress))
        data = json.dumps(validation, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(config.out / VALIDATION, data.encode())
        write_whole(config.out / FILE, (json.dumps(extract(validation), indent=1) + "\n").encode())
    return validation


def result(config: ValidationConfig, pairs: Sequence[Pair], nulls: Mapping[str, Any]) -> dict[str, Any]:
    """`validation.json` from finished studies and null experiments; docs/validation.md describes it."""
    told = []
    for kind in ("self_pairs", "permuted_labels"):
        verdicts = {key_of(*key): nulls[kind]["detached"] for key in HEADLINE}
        told.append({**nulls[kind]["findings"], **verdicts})
    measured = rows(pairs, told)
    content: dict[str, Any] = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "mode": config.mode,
            "settings": config.deciding(),
            "criteria": CRITERIA,
            "pairs": [pair.to_dict() for pair in pairs],
            "measures": measured,
            "nulls": nulls,
            "acceptance": acceptance(pairs, measured, nulls),
        }
    )
    return content


def begun(config: ValidationConfig) -> None:
    """Makes the directory, or finds that it holds this validation.

    Raises:
        InputError: if it holds something else, or a validation with other settings.
    """
    settings = {"mode": config.mode, **config.deciding()}
    path = config.out / SETTINGS
    if not path.is_file():
        # What a call left that was killed while it wrote the first file is no other's.
        if config.out.exists() and (
            not config.out.is_dir() or any(other.name != f".{SETTINGS}.partial" for other in config.out.iterdir())
        ):
            raise InputError(f"--out {config.out}: is not the directory of a validation; choose another")
        config.out.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(settings, indent=1) + "\n").encode())
        return
    try:
        there = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise InputError(f"--out {config.out}: {SETTINGS} is damaged; choose another directory") from None
    differing = [
        f"{name} {settings.get(name)}, there {there.get(name)}"
        for name in dict.fromkeys((*settings, *there))
        if settings.get(name) != there.get(name)
    ]
    if differing:
        raise InputError(f"--out {config.out}: holds another validation ({'; '.join(differing)}); choose another")


def _check(config: ValidationConfig) -> None:
    """Finds that the truth of every organism is known that is not still to be trained."""
    to_train = {training.out for training in trainings(config)}
    for panel in panels(config):
        for place in (panel.base, *(variant.directory for variant in panel.variants)):
            if place not in to_train or place.exists():
                question_followed(place)


def _studies(
    config: ValidationConfig, asked: Sequence[Panel], jobs: int, units: Units, progress: Progress
) -> dict[str, Run]:
    """Panel → its finished study, made with one thread, so that its bits are those of one made beside others."""
    if jobs > 1:
        works = [Work(f"study {p.name}", _directory(config, p), None, _study_alone, (config, p)) for p in asked]
        at_once(works, jobs, units, "studies")
        return {panel.name: Run.open(_directory(config, panel)) for panel in asked}
    runs = {}
    for panel in asked:
        with units.unit(f"study {panel.name}: {len(panel.variants) + 1} models"), one_thread():
            runs[panel.name] = _study(config, panel, progress)
    return runs


def _study_alone(config: ValidationConfig, panel: Panel) -> None:
    _study(config, panel, Progress())


def _directory(config: ValidationConfig, panel: Panel) -> Path:
    return config.out / "studies" / panel.name


def _left_to_read(config: ValidationConfig, panel: Panel) -> int:
    """How many models a study still reads, for the time that is left: all, or none of one that is finished."""
    return 0 if (_directory(config, panel) / "summary.json").is_file() else len(panel.variants) + 1


def _study(config: ValidationConfig, panel: Panel, progress: Progress) -> Run:
    copied = panel.variants[0].name == COPY
    if copied and not panel.variants[0].directory.exists():
        rounded_copy(panel.base, panel.variants[0].directory)
    return run_study(
        StudyConfig(
            base=str(panel.base),
            variants={variant.name: str(variant.directory) for variant in panel.variants},
            prompts=str(organisms.prompts(panel.prompts)),
            out=str(_directory(config, panel)),
            measures=catalogue.NAMES if config.measures is None else config.measures,
            max_prompts=config.prompts,
            patch_prompts=config.patch_prompts,
            verifier=VERIFIERS[panel.family],
            batch_tokens=OTHER_BATCH_TOKENS if copied else StudyConfig.batch_tokens,
        ),
        progress,
    )


def _has_null(panel: Panel) -> bool:
    """Whether the null experiments are made with this panel: that of a family's first base, at seed 0."""
    return panel.seed == 0 and panel.variants[0].name == SELF


def _copy_of(config: ValidationConfig, panel: Panel) -> Panel:
    """The study of a panel's base beside its own copy, on the same prompts."""
    place = config.out / "organisms" / f"{panel.name}-{COPY}"
    copy = Variant(COPY, SELF, "base", place, panel.seed)
    return replace(panel, name=f"{panel.name}-{COPY}", variants=(copy,))


def _is_permuted(pair: Pair) -> bool:
    """Whether labels are permuted in it: the shipped shams and the extreme doses."""
    if pair.seed != 0 or not is_shipped(pair.organism, pair.training_seed):
        return False
    return is_sham(find(pair.organism)) or (is_dose(pair.organism) and pair.organism.endswith(("dose_0", "dose_1")))


def _nulls(
    config: ValidationConfig,
    pairs: Sequence[Pair],
    copies: Sequence[Panel],
    runs: Mapping[str, Run],
    units: Units,
    progress: Progress,
) -> dict[str, Any]:
    draws = DRAWS[config.mode]
    # The base is read in its panel's study, and its copy in that of the copy.
    copied = {f"{p.family}/seed_{p.seed}/{COPY}": (runs[p.name.removesuffix(f"-{COPY}")], runs[p.name]) for p in copies}
    permuted = {pair.id: (pair.run, pair.variant) for pair in pairs if _is_permuted(pair)}
    found: dict[str, Any] = {"draws": draws}
    with units.unit(f"null experiment: bases against their copies ({len(copied)} × {draws} prompt sets)"):
        stage = progress.stage("prompt sets", draws * len(copied))
        found["self_pairs"] = self_pairs({i: (*both, COPY) for i, both in copied.items()}, draws, NULL_SEED, stage)
    with units.unit(f"null experiment: permuted labels ({len(permuted)} pairs × {draws})"):
        stage = progress.stage("permutations", draws * len(permuted))
        found["permuted_labels"] = permuted_labels(permuted, draws, NULL_SEED, stage)
    with units.unit("null experiment: simulated readers"):
        found["readers"] = simulated_readers(NULL_SEED)
    return found
