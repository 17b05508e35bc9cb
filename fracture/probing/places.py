"""Where causal use is tested: layers and positions of a store, each with its prompts divided in two."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from analysis import statistics
from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.errors import InputError
from analysis.store import Store
from probes.cells import Hook, hooks_of, positions_of, rows_at
from probes.targets import LabelSet, Target

ERASE, STEER = "erase", "steer"
METHODS: dict[str, tuple[str, ...]] = {ERASE: (ERASE,), STEER: (STEER,), "both": (ERASE, STEER)}
CONTROLS = 100
TEST_PROMPTS = 40
_TOKEN = re.compile(r"token (\d{1,9})")


@dataclass(frozen=True)
class UseSettings:
    """What decides a test of causal use, beside store, model and target.

    Attributes:
        method: of `METHODS`.
        controls: random erasers, or directions, 100 or more.
        test_prompts: how many prompts are run in the model; None for a third, at least 20 and at most `TEST_PROMPTS`.
        seed: of which prompts these are, of the controls, and of the answers that are steered to.
    """

    method: str = ERASE
    controls: int = CONTROLS
    test_prompts: int | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Place:
    """A layer and position, with its prompts: those that erasers are fitted on, and those that the model is run on.

    Attributes:
        hook, position: where.
        fit, test: rows of the store, one a prompt.
        labels: of `fit`, then `test`.
        excluded: prompts that are in neither.
    """

    hook: Hook
    position: str
    fit: Int[ndarray, " fitted"]
    test: Int[ndarray, " tested"]
    labels: LabelSet
    excluded: tuple[Excluded, ...]


def check_settings(settings: UseSettings, target: Target) -> None:
    """Finds that these settings can be carried out.

    Raises:
        InputError: for a method that there is not, fewer than 100 controls, or steering along a number.
    """
    if settings.method not in METHODS:
        raise InputError(f"method {settings.method!r}: expected {', '.join(METHODS)}")
    if settings.controls < CONTROLS:
        raise InputError(f"controls {settings.controls}: expected {CONTROLS} or more; no claim is made of fewer")
    if STEER in METHODS[settings.method] and target.task == "regression":
        raise InputError(
            f"target {target.name!r}: is a number, and steering leads from one answer to another; use --method erase, "
            "or --task classification"
        )


def places_of(
    store: Store,
    target: Target,
    texts: Mapping[int, Authored],
    lost: Sequence[Excluded],
    *,
    layers: str,
    site: str,
    positions: Sequence[str],
    settings: UseSettings,
) -> list[Place]:
    """The places to test, each with its prompts divided.

    A position may also be `token N`, the N-th token of the text, from 0.

    Raises:
        InputError: for a layer or position that the store does not hold, a position that is several of a prompt's
            tokens, fewer than two classes, or too few prompts.
    """
    return [
        _divided(store, target, texts, lost, hook, position, rows, settings)
        for hook in hooks_of(store, layers, site)
        for position, rows in _rows_of(store, positions)
    ]


def _rows_of(store: Store, positions: Sequence[str]) -> list[tuple[str, Int[ndarray, " row"]]]:
    found = []
    for asked in positions:
        if match := _TOKEN.fullmatch(asked):
            rows = np.flatnonzero(store.rows["token"] == int(match[1]))
            if not len(rows):
                raise InputError(
                    f"position {asked!r}: the activation store {store.directory} keeps no such token; capture with "
                    "--positions question (or all)"
                )
            found.append((asked, rows))
        else:
            found += [(name, rows_at(store.rows, name)) for name in positions_of(store.rows, [asked])]
    for name, rows in found:
        ids = store.rows["id"].iloc[rows]
        if ids.duplicated().any():
            raise InputError(
                f"position {name!r}: is {int((ids == ids[ids.duplicated()].iloc[0]).sum())} tokens of prompt "
                f"{ids[ids.duplicated()].iloc[0]!r}, and one is written at a time; give question_end, step 1, step -1, "
                "answer, or token N (the N-th of the text, from 0)"
            )
    return found


def _divided(
    store: Store,
    target: Target,
    texts: Mapping[int, Authored],
    lost: Sequence[Excluded],
    hook: Hook,
    position: str,
    rows: Int[ndarray, " row"],
    settings: UseSettings,
) -> Place:
    where = f"{hook.name}, {position}"
    excluded = list(lost)
    texts_of_rows = store.rows["text"].to_numpy()
    unlabelled = next(iter(target.why_missing), "has no label")
    for row in rows[~target.present[rows]]:
        excluded.append(Excluded(str(store.rows["id"].iloc[row]), unlabelled))
    usable = np.array([row for row in rows[target.present[rows]] if texts_of_rows[row] in texts], dtype=np.int64)
    ids = store.rows["id"].to_numpy()[usable].astype(str)
    n_test = settings.test_prompts
    if n_test is None:
        n_test = min(TEST_PROMPTS, max(statistics.MIN_PROMPTS, len(usable) // 3))
    if not 1 <= n_test <= len(usable) // 2:
        raise InputError(
            f"{where}: {len(usable)} prompts with a label of {target.name!r}, of which {n_test} to run the model on; "
            "at least as many must remain to fit the eraser (--test-prompts, or more prompts)"
        )
    # By name, so that all places hold out the same prompts where they have them.
    order = np.random.default_rng(settings.seed).permutation(len(texts))
    rank = dict(zip(sorted(prompt.id for prompt in texts.values()), order, strict=True))
    usable = usable[np.argsort([rank[name] for name in ids], kind="stable")]
    test, fit = usable[:n_test], usable[n_test:]
    if len(set(target.values[fit])) < 2:
        raise InputError(
            f"{where}: all {len(fit)} prompts that the eraser is fitted on have the same label of {target.name!r}, "
            f"{target.values[fit[0]]!r}; a concept needs two"
        )
    classes = None
    if target.task == "classification":
        classes = [str(name) for name in target.classes(fit)]
        known = np.isin(target.values[test].astype(str), classes)
        excluded += [
            Excluded(str(store.rows["id"].iloc[row]), "no prompt that the eraser is fitted on has its label")
            for row in test[~known]
        ]
        test = test[known]
    return Place(hook, position, fit, test, target.of(np.concatenate([fit, test]), classes), tuple(excluded))
