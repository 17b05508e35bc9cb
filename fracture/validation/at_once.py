"""Work done in several processes at once, with one thread each."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from fracture.validation.units import Units


@dataclass(frozen=True)
class Work:
    """A piece of work for a process of its own.

    Attributes:
        name: how it is called when it is done.
        makes: what it makes.
        needs: what another piece makes that must be there first.
        call: a function of a module, with its arguments.
    """

    name: str
    makes: Path
    needs: Path | None
    call: Callable[..., None]
    arguments: tuple[Any, ...]


def at_once(works: Sequence[Work], jobs: int, units: Units, what: str) -> None:
    """Does what is listed, a piece begun as soon as what it needs is there.

    Args:
        works: in the order in which they are begun; each is a unit, in this order.
        jobs: how many are done at once.
        units: of which these are the next.
        what: how the work is called while it is done.

    Raises:
        InputError: if a process is killed from outside; else whatever a piece of work raises.
    """
    first = units.next
    # Not forked: a process whose torch has computed something cannot be.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _end_with, (os.getpid(),)) as pool:
        running: dict[Future[None], int] = {}
        waiting = list(range(len(works)))
        last = ""
        for _ in works:
            missing = {works[at].makes for at in (*waiting, *running.values())}
            for at in [at for at in waiting if works[at].needs not in missing]:
                waiting.remove(at)
                running[pool.submit(_alone, works[at].call, works[at].arguments)] = at
            with units.unit(f"{what}, {jobs} at once{last}") as done:
                ended = next(as_completed(running))
                try:
                    ended.result()
                except BrokenProcessPool:
                    raise InputError(
                        f"--jobs {jobs}: a process was killed while it worked (out of memory?); give the same command "
                        "again, to go on with fewer jobs"
                    ) from None
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                at = running.pop(ended)
                done(first + at)
            last = f"; {works[at].name} is done"


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, all is computed with one thread: how sums are split among threads decides their last bits."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def _alone(call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with one_thread():
        call(*arguments)


def _end_with(parent: int) -> None:
    """Lets this process end when its parent has; else it would work on, beside one that goes on with the work."""
    from transformers.utils import logging

    logging.disable_progress_bar()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
