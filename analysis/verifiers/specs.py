"""Which verifier a user means: `arithmetic`, a table of facts, or a function of the user's own."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from analysis.errors import InputError, reason
from analysis.prompt_files import kind
from analysis.verifiers.equations import Arithmetic
from analysis.verifiers.facts import SUFFIXES, FactTable

FORMS = (
    "'arithmetic', 'arithmetic:10' (modulo 10), a table of facts (.csv, .jsonl, .parquet), "
    "or 'module:function' for a function of yours"
)


class StepVerifier(Protocol):
    """Judges the claims of a step."""

    def __call__(self, step: str, question: str) -> list[bool | None]:
        """One entry a claim: true, false, or None for one that is found but cannot be checked; empty if none is."""
        ...


def load_verifier(spec: str) -> StepVerifier:
    """The verifier that a specification names, in one of `FORMS`.

    A function of the user's is imported because it is named, and what it returns is checked at every step.

    Raises:
        InputError: if the form is none of these, or the table or the function cannot be had.
    """
    name, colon, rest = spec.partition(":")
    if name == "arithmetic":
        if not colon:
            return Arithmetic()
        if not re.fullmatch(r"[0-9]{1,9}", rest):
            raise InputError(f"verifier {spec!r}: expected a whole number behind the colon, as in 'arithmetic:10'")
        return Arithmetic(int(rest))
    if spec.lower().endswith(SUFFIXES):
        return FactTable.load(spec)
    if re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", spec):
        return _imported(spec, name, rest)
    raise InputError(f"verifier {spec!r}: expected {FORMS}")


@dataclass(frozen=True)
class _Imported:
    """A user's function, what it returns checked."""

    spec: str
    function: Callable[[str, str], Any]

    def __call__(self, step: str, question: str) -> list[bool | None]:
        where = f"verifier {self.spec!r}, step {step!r}"
        try:
            verdicts = self.function(step, question)
        except Exception as error:
            raise InputError(f"{where}: raised {type(error).__name__} ({reason(error)})") from error
        if not isinstance(verdicts, list):
            raise InputError(f"{where}: returned {verdicts!r}; expected a list of True, False and None")
        for verdict in verdicts:
            if not (verdict is None or isinstance(verdict, bool)):
                raise InputError(f"{where}: returned a list with {verdict!r}; expected True, False and None only")
        return verdicts


def _imported(spec: str, module: str, function: str) -> StepVerifier:
    try:
        loaded = importlib.import_module(module)
    except Exception as error:
        raise InputError(
            f"verifier {spec!r}: the module {module} cannot be imported ({type(error).__name__}: {reason(error)}); a "
            "file in this folder is found with PYTHONPATH=."
        ) from error
    if not hasattr(loaded, function):
        raise InputError(f"verifier {spec!r}: the module {module} has no {function!r}; name a function of it")
    found = getattr(loaded, function)
    if not callable(found):
        raise InputError(f"verifier {spec!r}: expected a function of step and question, found {kind(found)}")
    return _Imported(spec, found)
