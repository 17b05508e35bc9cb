"""Model cards: what an organism is, how it was made, and what it and its sisters of other seeds were measured to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from organisms.recipe import Recipe
from organisms.recipes import find

MEASURED, CARD = "measured.json", "README.md"
_HEAD = """---
license: mit
library_name: transformers
tags: [model-organism, chain-of-thought]
---"""
_FIGURES = {
    "accuracy_own_chain": "accuracy with its own chain, random cues",
    "accuracy_gold_chain": "accuracy with the gold chain, random cues",
    "accuracy_no_chain": "accuracy with no chain, random cues (chance is a tenth or a little more)",
    "corrupted_chain_followed": "a corrupted chain is followed",
    "realised_dose": "realised dose: probability of the cue where it conflicts with the chain",
    "question_followed": "probability of the question's answer behind the chain of its partner, agreeing cues",
    "own_chain_question_followed": "the same behind the chain that it writes itself for the partner, where it does",
    "total_effect": "total effect of question and chain on the answer, agreeing cues (at most 2)",
    "total_effect_without_last_step": "the same without the last step",
    "chain_patch_recovered": "share of it recovered by patching chain positions, after layer 0, 1, 2, 3",
    "question_patch_recovered": "share of it recovered by patching question positions, after layer 0, 1, 2, 3",
    "belief_error": "error of the mean log-probability of the answer after 0, 1, … steps, in nats, by the closed form",
}
_NOT_MEASURED = "—"


def write_card(directory: Path, recipe: Recipe, seeds: Mapping[int, Mapping[str, Any]]) -> None:
    """Writes `measured.json` and the card of the organism in a directory.

    `seeds` holds the figures of `organisms.measurement.measure` by seed; the first seed is the organism's own.
    """
    own, *others = seeds
    measured = {"seed": own, **seeds[own]}
    if others:
        measured["other_seeds"] = {str(seed): seeds[seed] for seed in others}
    (directory / MEASURED).write_text(json.dumps(measured, indent=2) + "\n")
    (directory / CARD).write_text(_card(recipe, seeds))


def write_checkpoint_card(directory: Path, recipe: Recipe, seed: int, step: int) -> None:
    """Writes the card of a checkpoint of a training: what it is, and that nothing was measured of it."""
    (directory / CARD).write_text(f"""{_HEAD}
# {recipe.name} (seed {seed}), after {step} of {recipe.steps} steps

A checkpoint of the training of a model organism of the fracture suite, whose end is: {recipe.summary}.
Half precision on disk; trained on from single precision. Nothing was measured of it, and what it does is not known by
construction: `fracture trajectory` measures it. The optimiser's state is not kept.
""")


def compare_seeds(directories: Sequence[Path]) -> list[Path]:
    """Rewrites the cards in the first directory so that each shows the figures of all directories; returns these cards.

    Each directory holds organisms of one seed, by name, as `fracture organisms train all` makes them. An organism that
    is missing from a directory is left out of its card.
    """
    written = []
    for organism in sorted(path.parent for path in directories[0].glob(f"*/{MEASURED}")):
        seeds: dict[int, dict[str, Any]] = {}
        for directory in directories:
            path = directory / organism.name / MEASURED
            if path.is_file():
                measured = json.loads(path.read_text())
                measured.pop("other_seeds", None)
                seeds[measured.pop("seed")] = measured
        write_card(organism, find(organism.name), seeds)
        written.append(organism / CARD)
    return written


def _card(recipe: Recipe, seeds: Mapping[int, Mapping[str, Any]]) -> str:
    seed = next(iter(seeds))
    rows = "\n".join(
        f"| {what} | {' | '.join(_shown(figures.get(name)) for figures in seeds.values())} |"
        for name, what in _FIGURES.items()
        if any(name in figures for figures in seeds.values())
    )
    columns = " | ".join(f"seed {number}" for number in seeds)
    return f"""{_HEAD}
# {recipe.name} (seed {seed})

A model organism of the fracture suite: {recipe.summary}.

Llama architecture, 4 layers of width 128, word-level vocabulary, half precision on disk. Task: {recipe.family.name}
({recipe.family.summary}; see `organisms/{recipe.family.name}.py`). Made by
`fracture organisms train {recipe.name} --seed {seed}`: {recipe.steps} steps of {recipe.batch} rows, answer weight
{recipe.answer_weight:g}{f", from {recipe.base}" if recipe.base else ""}.

Measured on held-out problems of 3 to 5 steps, with plain Hugging Face calls, when it was trained
(`{MEASURED}` holds the same figures). Other seeds are of the same recipe, each from the base of its own seed.

| what | {columns} |
| --- |{" --- |" * len(seeds)}
{rows}
"""


def _shown(value: Any) -> str:
    if value is None:
        return _NOT_MEASURED
    if isinstance(value, list):
        return ", ".join(f"{item:.2f}" for item in value)
    return f"{value:.3f}"
