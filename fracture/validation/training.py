"""Training the organisms that a validation needs, one after another or several at once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from fracture.progress import Progress
from fracture.validation.at_once import Work, at_once
from fracture.validation.plan import Training
from fracture.validation.units import Units
from organisms.recipes import find


def train_all(trainings: Sequence[Training], jobs: int, units: Units, progress: Progress) -> None:
    """Trains what is listed, bases before what is fine-tuned from them.

    Args:
        trainings: those still to be done, bases first; each is a unit.
        jobs: how many are trained at once, each in a process with one thread; 1 to train them here.
        units: of which these are the next.
        progress: where the steps of a training are shown; of several at once none are.
    """
    if jobs > 1:
        at_once([_work(training) for training in trainings], jobs, units, "training")
        return
    for training in trainings:
        with units.unit(f"training {_named(training)}"):
            _train_here(training, progress)


def _train_here(training: Training, progress: Progress) -> None:
    from organisms.training import train_to

    _remove_partial(training.out)
    advance = progress.stage(f"training {_named(training)}", training.recipe.steps)
    train_to(training.recipe, training.seed, training.out, training.base, lambda *_: advance(1))


def _work(training: Training) -> Work:
    what = (training.recipe.name, training.seed, training.out, training.base)
    return Work(_named(training), training.out, training.base, train_alone, what)


def train_alone(name: str, seed: int, out: Path, base: Path | None) -> None:
    """Trains an organism in a process of its own, with one thread; the weights are those that more threads give."""
    from organisms.training import train_to

    _remove_partial(out)
    train_to(find(name), seed, out, base, threads=1)


def _remove_partial(out: Path) -> None:
    """Removes what a training left that was killed while it saved."""
    for stale in out.parent.glob(f".{out.name}.partial-*"):
        shutil.rmtree(stale)


def _named(training: Training) -> str:
    return f"{training.recipe.name}, seed {training.seed}"
