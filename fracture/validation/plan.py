"""What a validation trains and studies: organisms by family, seed, base and prompt set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import organisms
from analysis.errors import InputError
from analysis.statistics import MIN_PROMPTS
from fracture import catalogue
from organisms.recipe import Recipe, Truth
from organisms.recipes import RECIPES, find

SELF = "self"
VERIFIERS = {"registers": "arithmetic:10", "elimination": "organisms.elimination:verify"}
"""Family → what checks the claims of its chains."""
FAMILIES = tuple(VERIFIERS)
SHAMS = "shams"


@dataclass(frozen=True)
class ValidationConfig:
    """Everything that decides a validation's results, and where it is put.

    Attributes:
        out: directory to make, or to go on with.
        mode: `quick`: the shipped organisms of seed 0; `full`: every recipe at every seed, and many shams.
        prompts, patch_prompts: of every study.
        seeds, doses: of a full validation; seed 0 is the shipped organisms where they are shipped.
        shams: how many harmless fine-tunings of the seed-0 bases a full validation has, over all kinds and families.
        families: whose organisms.
        measures: by name; None for the whole catalogue.
    """

    out: Path
    mode: Literal["quick", "full"] = "quick"
    prompts: int = 40
    patch_prompts: int = 24
    seeds: tuple[int, ...] = (0, 1, 2)
    doses: tuple[float, ...] = (0, 0.1, 0.25, 0.4, 0.5, 0.75, 1)
    shams: int = 40
    families: tuple[str, ...] = FAMILIES
    measures: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                raise InputError(f"--family {name!r}: unknown; expected {' or '.join(FAMILIES)}")
        for name in self.measures or ():
            if name not in catalogue.NAMES:
                raise InputError(f"--measures {name!r}: unknown; known are {', '.join(catalogue.NAMES)}")
        if self.prompts < MIN_PROMPTS:
            raise InputError(
                f"--prompts {self.prompts}: expected at least {MIN_PROMPTS}; below, no verdict is given on anything"
            )
        if self.patch_prompts < 0:
            raise InputError(f"--patch-prompts {self.patch_prompts}: expected a number of prompts, or 0 for all")
        if self.shams < 0:
            raise InputError(f"--shams {self.shams}: expected 0 or a positive number")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"--seeds {_listed(self.seeds)}: expected different numbers, 0 or positive")
        if not all(0 <= dose <= 1 for dose in self.doses) or len(set(self.doses)) < len(self.doses):
            raise InputError(f"--doses {_listed(self.doses)}: expected different numbers between 0 and 1")

    def deciding(self) -> dict[str, Any]:
        """The settings that decide results beside the mode, as plain values, named as the command's options."""
        return {
            "prompts": self.prompts,
            "patch_prompts": self.patch_prompts,
            "seeds": sorted(self.seeds) if self.mode == "full" else None,
            "doses": sorted(self.doses) if self.mode == "full" else None,
            "shams": self.shams if self.mode == "full" else None,
            "family": None if set(self.families) == set(FAMILIES) else self.families[0],
            "measures": None if self.measures is None else [n for n in catalogue.NAMES if n in self.measures],
        }


@dataclass(frozen=True)
class Variant:
    """A model of a panel beside its base.

    Attributes:
        name: in the study.
        organism: the recipe's name, or `self`, for the base read as its own variant.
        truth: what is known of it by construction.
        directory: where it is.
        seed: of its training.
    """

    name: str
    organism: str
    truth: Truth
    directory: Path
    seed: int


@dataclass(frozen=True)
class Panel:
    """A study: the variants of one base that are read on one prompt set; `seed` is that of the base's training."""

    name: str
    family: str
    seed: int
    base: Path
    prompts: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Training:
    """An organism to be trained: where to, and from which base."""

    recipe: Recipe
    seed: int
    out: Path
    base: Path | None


def is_sham(recipe: Recipe) -> bool:
    """Whether it is a harmless fine-tuning made to be one."""
    return recipe.truth == "attached" and "sham" in recipe.name


def is_shipped(name: str, seed: int) -> bool:
    """Whether the organism of that seed comes with the suite."""
    return seed == 0 and name in organisms.SHIPPED


def panels(config: ValidationConfig) -> list[Panel]:
    """The studies of a validation, in order."""
    found: list[Panel] = []
    for family in FAMILIES:
        if family not in config.families:
            continue
        for seed in sorted(config.seeds) if config.mode == "full" else [0]:
            for base in _bases(family):
                if config.mode == "quick" and base.name not in organisms.SHIPPED:
                    continue
                found += _of_base(config, base, seed)
        if config.mode == "full" and (shams := [sham for sham in _shams(config) if sham[0].family.name == family]):
            base = _bases(family)[0]
            variants = tuple(
                Variant(f"{recipe.name}_seed_{seed}", recipe.name, recipe.truth, _sham(config, recipe.name, seed), seed)
                for recipe, seed in shams
            )
            name = f"{family}-seed_0-{SHAMS}"
            found.append(Panel(name, family, 0, _place(config, base.name, 0), base.prompts, variants))
    return found


def trainings(config: ValidationConfig) -> list[Training]:
    """What a validation must train that is not shipped, bases before what is fine-tuned from them."""
    if config.mode == "quick":
        return []
    wanted: dict[Path, Training] = {}
    for seed in sorted({0, *config.seeds} if config.shams else config.seeds):
        for family in config.families:
            bases = _bases(family)
            names = [base.name for base in bases]
            if seed in config.seeds:
                names += [recipe.name for base in bases for recipe in _organisms(config, base)]
            for name in names:
                if not is_shipped(name, seed):
                    recipe = find(name)
                    base = _place(config, recipe.base, seed) if recipe.base else None
                    out = _place(config, name, seed)
                    wanted[out] = Training(recipe, seed, out, base)
    for recipe, seed in _shams(config):
        if not is_shipped(recipe.name, seed):
            out = _sham(config, recipe.name, seed)
            wanted[out] = Training(recipe, seed, out, _place(config, str(recipe.base), 0))
    return list(wanted.values())


def _of_base(config: ValidationConfig, base: Recipe, seed: int) -> Iterator[Panel]:
    """The panels of one base: one for each prompt set, its own first, in which it is its own variant."""
    of_set: dict[str, list[Variant]] = {base.prompts: [_itself(config, base, seed)]}
    for recipe in _organisms(config, base):
        place = _place(config, recipe.name, seed)
        of_set.setdefault(recipe.prompts, []).append(Variant(recipe.name, recipe.name, recipe.truth, place, seed))
    for prompts, variants in of_set.items():
        name = f"{base.family.name}-seed_{seed}-{base.name}-{prompts}"
        yield Panel(name, base.family.name, seed, _place(config, base.name, seed), prompts, tuple(variants))


def _itself(config: ValidationConfig, base: Recipe, seed: int) -> Variant:
    # A family's second base is its own variant by another name, so that no two pairs have the same.
    name = SELF if base == _bases(base.family.name)[0] else f"{base.name}_{SELF}"
    return Variant(name, SELF, "base", _place(config, base.name, seed), seed)


def _bases(family: str) -> list[Recipe]:
    return [recipe for recipe in RECIPES.values() if recipe.family.name == family and recipe.base is None]


def _organisms(config: ValidationConfig, base: Recipe) -> list[Recipe]:
    """What is fine-tuned from a base: all that is shipped; or (full) all but shams, with the doses asked for."""
    if config.mode == "quick":
        return [find(name) for name in organisms.SHIPPED if find(name).base == base.name]
    prefix = next((name.partition("dose_")[0] for name in RECIPES if _is_dose_of(name, base)), None)
    doses = [] if prefix is None else [find(f"{prefix}dose_{dose:g}") for dose in sorted(config.doses)]
    others = [r for r in RECIPES.values() if r.base == base.name and not is_sham(r) and not _is_dose_of(r.name, base)]
    return [*doses, *others]


def _is_dose_of(name: str, base: Recipe) -> bool:
    return is_dose(name) and RECIPES[name].base == base.name


def is_dose(name: str) -> bool:
    """Whether an organism is one of a ladder of doses."""
    return name.startswith(("dose_", "elimination_dose_"))


def _shams(config: ValidationConfig) -> list[tuple[Recipe, int]]:
    """The shams of a full validation: every kind at seed 0, then every kind at seed 1, until there are enough."""
    kinds = [recipe for recipe in RECIPES.values() if is_sham(recipe) and recipe.family.name in config.families]
    return [(kinds[at % len(kinds)], at // len(kinds)) for at in range(config.shams)]


def _place(config: ValidationConfig, name: str, seed: int) -> Path:
    """Where the organism of a seed is, fine-tuned from the base of that seed."""
    return organisms.checkpoint(name) if is_shipped(name, seed) else config.out / "organisms" / f"seed_{seed}" / name


def _sham(config: ValidationConfig, name: str, seed: int) -> Path:
    """Where a sham is that was fine-tuned with a seed from the base of seed 0."""
    if is_shipped(name, seed):
        return organisms.checkpoint(name)
    return config.out / "organisms" / SHAMS / f"seed_{seed}" / name


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
