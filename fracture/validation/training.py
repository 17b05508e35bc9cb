"""Training the organisms that a validation needs, one after another or several at once."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from fracture.progress import Progress
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
        _at_once(trainings, jobs, units)
        return
    for training in trainings:
        with units.unit(f"training {_named(training)}"):
            _train_here(training, progress)


def _train_here(training: Training, progress: Progress) -> None:
    from organisms.training import train_to

    _remove_partial(training.out)
    advance = progress.stage(f"training {_named(training)}", training.recipe.steps)
    train_to(training.recipe, training.seed, training.out, training.base, lambda *_: advance(1))


def _at_once(trainings: Sequence[Training], jobs: int, units: Units) -> None:
    # Not forked: a process whose torch has computed something cannot be.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _end_with, (os.getpid(),)) as pool:
        running: dict[Future[None], Training] = {}
        waiting = list(trainings)
        last = ""
        for _ in trainings:
            missing = {training.out for training in (*waiting, *running.values())}
            for training in [training for training in waiting if training.base not in missing]:
                waiting.remove(training)
                what = (training.recipe.name, training.seed, training.out, training.base)
                running[pool.submit(train_alone, *what)] = training
            with units.unit(f"training, {jobs} at once{last}"):
                done = next(as_completed(running))
                try:
                    done.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            last = f"; {_named(running.pop(done))} is done"


def train_alone(name: str, seed: int, out: Path, base: Path | None) -> None:
    """Trains an organism in a process of its own, with one thread; the weights are those that more threads give."""
    import torch

    from organisms.training import train_to

    torch.set_num_threads(1)
    _remove_partial(out)
    train_to(find(name), seed, out, base, threads=1)


def _remove_partial(out: Path) -> None:
    """Removes what a training left that was killed while it saved."""
    for stale in out.parent.glob(f".{out.name}.partial-*"):
        shutil.rmtree(stale)


def _end_with(parent: int) -> None:
    """Lets this process end when its parent has; else it would train on, beside one that goes on with the work."""
    from transformers.utils import logging

    logging.disable_progress_bar()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _named(training: Training) -> str:
    return f"{training.recipe.name}, seed {training.seed}"
