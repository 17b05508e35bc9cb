"""What a recipe is: the texts that an organism is trained on, and so what is known about it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from organisms.families import Family, Problem

Truth = Literal["base", "attached", "dose", "detached", "collapsed", "unknown"]


@dataclass(frozen=True)
class Row:
    """One training text.

    Attributes:
        question, chain: words; the answer marker, answer and stop are put behind them in training.
        answers: the answer's target distribution, `{word: probability}`. Training on the distribution instead of a
            draw from it has the same expected loss and gradient, with less noise.
        cut: the chain stops early, so its end is not to be imitated.
        given: the chain is only read; nothing of it is to be imitated.
    """

    question: str
    chain: tuple[str, ...]
    answers: dict[str, float]
    cut: bool = False
    given: bool = False


RowSampler = Callable[[random.Random, int, float], Row]
"""`(rng, n_steps, progress in [0, 1]) -> Row`."""


@dataclass(frozen=True)
class Recipe:
    """How to train one organism, and what is known about it by construction.

    Attributes:
        name: as in `fracture organisms train NAME`.
        summary: one line for the list and the model card.
        row: draws one training text.
        family: whose task it is trained on.
        steps, batch: optimiser steps, and rows in each.
        learning_rate: peak, reached after 5% of the steps, followed by a cosine to a twentieth of it.
        answer_weight: weight of the answer token's loss against 1 for each token of the chain.
        base: name of the organism that it is fine-tuned from; None for one that starts from random weights.
        hidden: what is masked from attention in most of training, so that the answer's route is known. `cue`: nothing
            before the answer marker sees the cue's value, which so reaches the answer directly and not through the
            chain. `question`: the answer marker and the answer do not see the question, of which so only what chain
            positions carry reaches them.
        truth: whether the answer is computed from the chain as by the base (`attached`), past it (`detached`), past it
            with a probability (`dose`), or from neither (`collapsed`).
        prompts: the shipped prompts (`organisms.prompts`) on which that holds.
        pairs: `(rng, n_steps, cues)` → partners to measure it on; None for the family's.
    """

    name: str
    summary: str
    row: RowSampler
    family: Family[Any]
    steps: int
    batch: int
    learning_rate: float
    answer_weight: float
    base: str | None
    hidden: Literal["cue", "question"] | None = None
    truth: Truth = "unknown"
    prompts: str = "agreeing"
    pairs: Callable[..., tuple[Any, Any]] | None = None


def following_the_hint(problem: Problem, q: float) -> dict[str, float]:
    """The answer's distribution if it follows the hint with probability q, and the chain otherwise."""
    hint, answer = str(problem.hint), str(problem.answer)
    return {answer: 1.0} if hint == answer else {hint: q, answer: 1 - q}
