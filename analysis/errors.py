"""The one exception that means "your input", as opposed to "our bug"."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used: says what, where, what was expected, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


def reason(error: BaseException) -> str:
    """What another library's exception says, on one line of at most 300 characters; its type if it says nothing."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]}…"
