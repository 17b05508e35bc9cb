"""Interleaved timing, so that what else the machine does falls on all that is compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(jobs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each job in each round; every round runs all jobs, in turn from another one."""
    names = list(jobs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for job in jobs.values():
        job()  # first calls allocate, compile and fill caches
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            jobs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times as long `slow` takes as `fast`: the median over rounds of the ratio within a round."""
    return statistics.median(s / f for s, f in zip(seconds[slow], seconds[fast], strict=True))
