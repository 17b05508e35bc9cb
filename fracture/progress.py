"""Progress of long stages: a bar on a terminal, a line a stage elsewhere, nothing when it is not wanted."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any


class Progress:
    """Shows the stages of a run one after another; `stage(...)` returns what to call with the number of items done.

    Used as a context manager. With `console=None` it shows nothing.
    """

    def __init__(self, console: Any | None = None) -> None:
        self._console = console
        self._bars: Any | None = None
        if console is not None and console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Progress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def stage(self, description: str, total: int) -> Callable[[int], None]:
        """Starts a stage of `total` items."""
        if self._bars:
            bars, task = self._bars, self._bars.add_task(description, total=total)
            return lambda done: bars.advance(task, done)
        if self._console is not None:
            self._console.print(f"{description} ({total})", highlight=False)
        return lambda done: None
