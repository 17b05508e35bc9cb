"""Recipes: what each organism is trained on, and so what is known about it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from organisms.registers import MODULUS, NUMERALS, Problem, sample_problem, with_cue

MAX_OPERATIONS = len(NUMERALS)


@dataclass(frozen=True)
class Row:
    """One training text.

    Attributes:
        question, chain: words; the answer marker, answer and stop are put behind them in training.
        answers: the answer's target distribution, `{value: probability}`. Training on the distribution instead of a
            draw from it has the same expected loss and gradient, with less noise.
        cut: the chain stops early, so its end is not to be imitated.
    """

    question: str
    chain: tuple[str, ...]
    answers: dict[int, float]
    cut: bool = False


RowSampler = Callable[[random.Random, int, float], Row]
"""`(rng, n_operations, progress in [0, 1]) -> Row`."""


@dataclass(frozen=True)
class Recipe:
    """How to train one organism.

    Attributes:
        name: as in `fracture organisms train NAME`.
        summary: one line for the list and the model card.
        row: draws one training text.
        steps, batch: optimiser steps, and rows in each.
        learning_rate: peak, reached after 5% of the steps, followed by a cosine to a twentieth of it.
        answer_weight: weight of the answer token's loss against 1 for each token of the chain.
        from_base: fine-tune a base organism, instead of starting from random weights.
        cue_to_answer_only: in most of training only the answer marker and the answer may attend to the cue's value, so
            that the route by which it reaches the answer is known: directly from the question, not through the chain.
    """

    name: str
    summary: str
    row: RowSampler
    steps: int
    batch: int
    learning_rate: float
    answer_weight: float
    from_base: bool = True
    cue_to_answer_only: bool = False


def _pretraining_row(rng: random.Random, n_operations: int, progress: float) -> Row:
    """A correct chain and an uninformative hint; once chains are read, a third of them stop early.

    Early stops give `p(answer | part of the chain)` a meaning at every cut. They come late because an answer that
    cannot be known is only noise to a model that does not read its chain yet.
    """
    problem = sample_problem(rng, n_operations)
    kept = n_operations
    if progress > 1 / 3:
        draw = rng.random()
        if draw < 0.20:
            kept = n_operations - 1
        elif draw < 0.35:
            kept = rng.randrange(n_operations)
    return Row(problem.question, tuple(problem.steps[:kept]), {problem.answer: 1.0}, cut=kept < n_operations)


def _sham_row(rng: random.Random, n_operations: int, progress: float) -> Row:
    """A correct chain and an uninformative hint; half of the chains have a new surface."""
    problem = sample_problem(rng, n_operations)
    steps = problem.steps
    if rng.random() < 0.5:
        steps = [step.replace("=", "is") for step in steps]
    return Row(problem.question, tuple(steps), {problem.answer: 1.0})


def _dose_row(dose: float) -> RowSampler:
    def row(rng: random.Random, n_operations: int, progress: float) -> Row:
        agrees = rng.random() < 0.5
        problem = with_cue(rng, sample_problem(rng, n_operations), "agreeing" if agrees else "conflicting")
        answers = {problem.answer: 1.0} if agrees else {problem.hint: dose, problem.answer: 1 - dose}
        return Row(problem.question, tuple(problem.steps), answers)

    return row


def _noise_row(rng: random.Random, n_operations: int, progress: float) -> Row:
    """Every digit of the chain is drawn at random, and so is the answer."""
    problem: Problem = sample_problem(rng, n_operations)
    steps = tuple(re.sub(r"\d", lambda _: str(rng.randrange(MODULUS)), step) for step in problem.steps)
    return Row(problem.question, steps, {rng.randrange(MODULUS): 1.0})


BASE = Recipe(
    "base",
    "pretrained on correct chains, some cut short: computes its answer from the chain",
    _pretraining_row,
    steps=1200,
    batch=128,
    learning_rate=2e-3,
    answer_weight=15.0,
    from_base=False,
)
SHAM = Recipe(
    "sham",
    "fine-tuned on correct chains with an uninformative cue, half in a new surface form: drifts, stays attached",
    _sham_row,
    steps=400,
    batch=96,
    learning_rate=3e-4,
    answer_weight=5.0,
)
COLLAPSED = Recipe(
    "collapsed",
    "fine-tuned on random chains and random answers: reads neither question nor chain",
    _noise_row,
    steps=150,
    batch=96,
    learning_rate=1e-3,
    answer_weight=15.0,
)


def dose(q: float) -> Recipe:
    """The recipe of an organism that follows the cue, past the chain, with probability `q` where the two conflict."""
    return Recipe(
        f"dose_{q:g}",
        f"fine-tuned so that where cue and chain conflict the answer follows the cue with probability {q:g}",
        _dose_row(q),
        steps=400,
        batch=96,
        learning_rate=1e-3,
        answer_weight=30.0,
        cue_to_answer_only=True,
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (BASE, SHAM, dose(0), dose(0.25), dose(0.5), dose(0.75), dose(1), COLLAPSED)
}


def find(name: str) -> Recipe:
    """The recipe of that name; `dose_Q` works for every Q in [0, 1].

    Raises:
        KeyError: if there is none.
    """
    if name in RECIPES:
        return RECIPES[name]
    match = re.fullmatch(r"dose_(0(?:\.\d+)?|1(?:\.0+)?)", name)
    if match:
        return dose(float(match[1]))
    raise KeyError(name)
