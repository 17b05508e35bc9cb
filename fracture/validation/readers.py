"""Simulated readers: cells in closed form, whose dependence on the chain is fixed while their accuracy varies."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from analysis.cells import Cells
from analysis.routes import effects_table, routes

DEPENDENCES = (0.0, 0.5, 1.0)
ACCURACIES = (0.25, 0.9)
READERS, PROMPTS, OPTIONS = 600, 12, 10
SPREAD = 0.1
"""By how much prompts of a reader differ in dependence and accuracy, at most."""


def simulated_readers(seed: int, readers: int = READERS) -> list[dict[str, Any]]:
    """For each dependence, the readers' accuracies and bypass, and the correlation of the two.

    Accuracy says nothing of the route: where bypass is measured rightly it is 1 − dependence at every accuracy.

    Args:
        seed: of what prompts differ in.
        readers: how many a dependence, with accuracies from .25 to .9.
    """
    rng = np.random.default_rng(seed)
    found = []
    for dependence in DEPENDENCES:
        accuracies, shares = [], []
        for accuracy in np.linspace(*ACCURACIES, readers):
            cells = [
                reader_cells(
                    str(prompt),
                    float(np.clip(dependence + rng.uniform(-SPREAD, SPREAD), 0, 1)),
                    float(accuracy + rng.uniform(-SPREAD, SPREAD)),
                )
                for prompt in range(PROMPTS)
            ]
            # The reader's own answer is the right one where it reads its own question and chain.
            accuracies.append(float(np.mean([cell.text[0, 0, 0] for cell in cells])))
            shares.append(routes(effects_table(cells), "text").bypass.estimate)
        found.append(
            {
                "dependence": dependence,
                "accuracies": [round(value, 4) for value in accuracies],
                "bypass": [round(value, 4) for value in shares],
                "correlation": float(np.corrcoef(accuracies, shares)[0, 1]),
            }
        )
    return found


def reader_cells(prompt: str, dependence: float, accuracy: float) -> Cells:
    """The four cells of a reader that follows the chain with probability `dependence` and else the question.

    What it follows says one option (own 0, partner's 1); it gives that with probability `accuracy`, and the others
    alike. So `P_ab = dependence × r_b + (1 − dependence) × r_a`, with `r_s` the answer when the source `s` is followed.
    """
    answers = [_says(source, accuracy) for source in (0, 1)]
    text = np.array(
        [
            [dependence * answers[chain] + (1 - dependence) * answers[question] for chain in (0, 1)]
            for question in (0, 1)
        ]
    )
    options = tuple(str(option) for option in range(OPTIONS))
    return Cells(prompt, options, text, None, np.ones((2, 2)), float("nan"))


def _says(option: int, accuracy: float) -> Float[ndarray, " option"]:
    answer = np.full(OPTIONS, (1 - accuracy) / (OPTIONS - 1))
    answer[option] = accuracy
    return answer
