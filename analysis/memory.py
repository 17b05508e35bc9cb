"""Memory: work that does not fit is done in smaller parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from analysis.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def shrinking(run: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], what: str) -> list[Result]:
    """`run(items)`, or, where memory does not suffice, the same of the two halves, and so on.

    Args:
        run: gives a result for each item, which does not depend on the others.
        items: at least one.
        what: a single item's run, in words, for the error.

    Raises:
        InputError: if memory does not suffice for one item.
    """
    try:
        return run(items)
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = str(error)
    except RuntimeError as error:
        # PyTorch's allocator for the CPU raises nothing more special.
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        reason = str(error)
    # Outside the handler, so that the failed attempt's tensors are no longer held by its traceback.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(items) == 1:
        raise InputError(
            f"{what} does not fit into memory ({reason.splitlines()[0]}); use a smaller dtype, shorter texts, or a "
            "device with more memory"
        )
    half = len(items) // 2
    return [*shrinking(run, items[:half], what), *shrinking(run, items[half:], what)]
