"""What remains of a long validation, said one line a unit of work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class Units:
    """The units of work of a validation, in order, each of a kind and a size.

    The time of a unit is taken to grow with its size, as seen of others of its kind in this call. One of size 0
    was done before.
    """

    def __init__(
        self,
        units: Sequence[tuple[str, float]],
        say: Callable[[str], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._left, self._total = dict(enumerate(units)), len(units)
        self._say, self._clock = say, clock
        self._seen: dict[str, tuple[float, float]] = {}

    @property
    def next(self) -> int:
        """The place of the first that is not done."""
        return next(iter(self._left))

    @contextmanager
    def unit(self, what: str) -> Iterator[Callable[[int], None]]:
        """Says what is done now and how much is left, and takes its time.

        Gives what to call with the place of the unit that was done, where it is not the next in order.
        """
        if self._say:
            self._say(f"[{self._total - len(self._left) + 1} of {self._total}] {what}{self._remaining()}")
        started = self._clock()
        places = [self.next]
        yield places.append
        kind, size = self._left.pop(places[-1])
        if size:
            seconds, sizes = self._seen.get(kind, (0.0, 0.0))
            self._seen[kind] = seconds + self._clock() - started, sizes + size

    def _remaining(self) -> str:
        """The time that what is not done may take, with the kinds of which none was seen."""
        left = self._left.values()
        known = sum(self._seen[kind][0] / self._seen[kind][1] * size for kind, size in left if kind in self._seen)
        if not known:
            return ""
        unseen = list(dict.fromkeys(kind for kind, size in left if size and kind not in self._seen))
        beside = f", without {' and '.join(unseen)}" if unseen else ""
        return f" (about {_duration(known)} left{beside})"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
