"""Null experiments: what verdict and evidence say where there is nothing to find, over prompts drawn many times."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int
from numpy import ndarray

from analysis.measures.routes import ANOTHER_PROMPT, WHOLE
from analysis.models import BASE
from analysis.runs import Run
from fracture import catalogue
from fracture.evidence import FOR, weigh
from fracture.validation.pairs import quantities_of, readable
from fracture.validation.status import counts
from fracture.validation.values import GIVEN, Key, Values, read_values
from fracture.validity import EMPTY, key_of
from fracture.verdict import DETACHED, Verdict, compared, judge

VERDICT_MEASURES = (catalogue.HEADLINE, catalogue.OWN_HEADLINE)
OTHER_BATCH_TOKENS = 1024
"""Of the study that reads the copy of the base: so few that its batches hold other prompts than the base's did."""


@dataclass(frozen=True)
class Drawn:
    """A base and a variant prompt by prompt, as one draw of prompts has them.

    Attributes:
        effects: the headline's measures → rows of base and variant, of the same prompts in the same order.
        values: every diagnostic quantity that has a number.
    """

    effects: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]
    values: Mapping[Key, Values]

    @classmethod
    def of(cls, base_run: Run, variant: str, variant_run: Run | None = None) -> Drawn:
        """All prompts of a study's base and variant; the variant may be of another study on the same prompts."""
        effects = {}
        for measure in VERDICT_MEASURES:
            sides = []
            for run, reader in ((base_run, BASE), (variant_run or base_run, variant)):
                table = run.table(measure)
                counted = (table["reader"] == reader) & (table["tier"] < ANOTHER_PROMPT)
                if measure == catalogue.HEADLINE:
                    counted &= table["chain"] == WHOLE
                sides.append(table[counted].set_index("id", drop=False))
            shared = [prompt for prompt in sides[0].index if prompt in sides[1].index]
            base, theirs = (side.loc[shared].reset_index(drop=True) for side in sides)
            effects[measure] = base, theirs
        return cls(effects, read_values(base_run, variant, variant_run))

    @property
    def ids(self) -> list[str]:
        """All prompts of which anything is known."""
        named = [str(prompt) for base, _ in self.effects.values() for prompt in base["id"]]
        named += [prompt for values in self.values.values() for prompt in values.ids]
        return list(dict.fromkeys(named))

    def resampled(self, draws: Int[ndarray, " prompt"]) -> Drawn:
        """The prompts as often as `draws` has their place in `ids`; each time as a prompt of its own."""
        times = np.bincount(draws, minlength=len(self.ids))
        often = dict(zip(self.ids, times.tolist(), strict=True))
        effects = {}
        for measure, sides in self.effects.items():
            places = _repeated([str(prompt) for prompt in sides[0]["id"]], often)
            ids = [str(at) for at in range(len(places))]
            base, variant = (side.iloc[places].assign(id=ids).reset_index(drop=True) for side in sides)
            effects[measure] = base, variant
        values = {key: found.drawn(_repeated(found.ids, often)) for key, found in self.values.items()}
        return Drawn(effects, values)

    def exchanged(self, which: Bool[ndarray, " prompt"]) -> Drawn:
        """Base and variant exchanged on the prompts whose place in `ids` is marked."""
        marked = dict(zip(self.ids, which.tolist(), strict=True))
        effects = {}
        for measure, (ours, theirs) in self.effects.items():
            mask = np.array([marked[str(prompt)] for prompt in ours["id"]], dtype=bool)
            base, variant = ours.copy(), theirs.copy()
            base.loc[mask], variant.loc[mask] = theirs.loc[mask], ours.loc[mask]
            effects[measure] = base, variant
        values = {
            key: found.exchanged(np.array([marked[prompt] for prompt in found.ids], dtype=bool))
            for key, found in self.values.items()
        }
        return Drawn(effects, values)

    def verdict(self, margin: float) -> Verdict:
        """The verdict on these prompts."""
        given, own = (compared(*self.effects[measure]) for measure in VERDICT_MEASURES)
        return judge(given, own, margin)

    def stances(self, margin: float, is_readable: bool) -> dict[Key, str]:
        """What every quantity says on these prompts, weighed as a study weighs it."""
        measures: dict[str, Any] = {}
        for (name, quantity, condition), values in self.values.items():
            found = measures.setdefault(name, {"readers": {BASE: {}}, "changes": {"variant": {}}})
            author = BASE if condition != GIVEN else GIVEN
            level = values.level
            found["readers"][BASE].setdefault(author, {})[quantity] = {"estimate": None if np.isnan(level) else level}
            changed = values.change()
            found["changes"]["variant"].setdefault(condition, {})[quantity] = {
                "difference": changed.difference.to_dict(),
                "p": changed.p,
            }
        weighed = weigh(measures, quantities_of(measures), "variant", margin, is_readable, validity=EMPTY)
        return {(finding.measure, finding.quantity, finding.condition): finding.stance for finding in weighed}


@dataclass
class Tally:
    """How often, over the draws of some pairs, the verdict was `detached` and a finding spoke for detachment."""

    detached: dict[str, list[int]] = field(default_factory=dict)
    findings: dict[Key, list[int]] = field(default_factory=dict)

    def add(self, pair: str, drawn: Drawn, margin: float, is_readable: bool) -> None:
        """Counts one draw."""
        _count(self.detached, pair, drawn.verdict(margin).label == DETACHED)
        for key, stance in drawn.stances(margin, is_readable).items():
            _count(self.findings, key, stance == FOR)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: counts with exact intervals, of the verdict in all and by pair, and of findings."""
        k, n = (sum(found[at] for found in self.detached.values()) for at in (0, 1))
        return {
            "detached": counts(k, n),
            "pairs": {pair: counts(*found) for pair, found in self.detached.items()},
            "findings": {key_of(*key): counts(*found) for key, found in self.findings.items()},
        }


def self_pairs(
    studied: Mapping[str, tuple[Run, Run, str]], draws: int, seed: int, advance: Callable[[int], None]
) -> dict[str, Any]:
    """How often a base is told from its own copy, over prompt sets drawn with replacement.

    Args:
        studied: pair → the study of the base; that of the copy, at another batch size; the copy's name in it.
        draws: how many prompt sets each.
        seed: of the draws.
        advance: called with the number of draws done since the last call.
    """
    tally = Tally()
    for pair, (base_run, copy_run, copy) in studied.items():
        whole = Drawn.of(base_run, copy, copy_run)
        rng = _rng("self", pair, seed)
        for _ in range(draws):
            drawn = whole.resampled(rng.integers(len(whole.ids), size=len(whole.ids)))
            tally.add(pair, drawn, _margin(copy_run), readable(copy_run.summary["variants"][copy]))
            advance(1)
    return tally.to_dict()


def permuted_labels(
    studied: Mapping[str, tuple[Run, str]], draws: int, seed: int, advance: Callable[[int], None]
) -> dict[str, Any]:
    """How often base and variant are told apart when each prompt's rows are exchanged with probability ½.

    Whatever the variant is, the two then differ by nothing but chance.

    Args:
        studied: pair → its study and the variant's name.
        draws, seed, advance: as for `self_pairs`.
    """
    tally = Tally()
    for pair, (run, variant) in studied.items():
        whole = Drawn.of(run, variant)
        rng = _rng("permuted", pair, seed)
        for _ in range(draws):
            drawn = whole.exchanged(rng.random(len(whole.ids)) < 0.5)
            tally.add(pair, drawn, _margin(run), readable(run.summary["variants"][variant]))
            advance(1)
    return tally.to_dict()


def rounded_copy(base: Path, out: Path) -> None:
    """Makes a copy of a model with weights rounded to bfloat16 (and stored as they were), all of it or nothing."""
    import torch
    from safetensors.torch import load_file, save_file

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(base, partial)
    for path in partial.glob("*.safetensors"):
        weights = {name: weight.to(torch.bfloat16).to(weight.dtype) for name, weight in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    partial.rename(out)


def _repeated(ids: Sequence[str], often: Mapping[str, int]) -> ndarray:
    return np.repeat(np.arange(len(ids)), [often[prompt] for prompt in ids])


def _count(found: dict[Any, list[int]], key: Any, hit: bool) -> None:
    counted = found.setdefault(key, [0, 0])
    counted[0] += hit
    counted[1] += 1


def _rng(*words: object) -> np.random.Generator:
    """A generator of its own for each pair, so that another pair more changes nothing for this one."""
    return np.random.default_rng(list("/".join(map(str, words)).encode()))


def _margin(run: Run) -> float:
    return float(run.summary["study"]["margin"])
