"""The one exception that means "your input", as opposed to "our bug"."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used: says what, where, what was expected, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """
