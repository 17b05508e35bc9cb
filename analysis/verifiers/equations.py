"""Claims of arithmetic: the equations of a step, true in ordinary arithmetic or modulo a number."""

from __future__ import annotations

import re
from dataclasses import dataclass

from analysis.arithmetic import Equation, find_equations
from analysis.errors import InputError

# Single letters straight before a number, with nothing but words before them in their clause: a label and a name, as in
# "i b 2 * 3 = 6". The equation reader takes a letter there for a variable. An x may be a times sign; "a" and "I" are
# words.
_NAMES = re.compile(r"(?:^|[\n;:,.])[A-Za-z'’ \t]*?(?<!\S)((?:(?![aIxX][ \t])[A-Za-z][ \t]+)+)(?=\d)")
# Only before a number that ends a clause: "12 - 5 is 4 less than 11" does not claim that 12 - 5 is 4.
_IS = re.compile(r"(?<=[\d)%])[ \t](is|equals)[ \t](?=[$€£]?-?[\d,]*\.?\d+%?\s*(?:$|[.,;](?!\d)))")


def find_claims(step: str) -> tuple[Equation, ...]:
    """The equations of a step, as `find_equations` gives them, read a little more widely; positions are the step's.

    A label and a one-letter name before an expression are passed over (`iii c 5 - 1 = 4` claims that 5 - 1 is 4), and
    `is` or `equals` before a number that ends a clause is an equals sign (`2 * 3 is 6`).
    """
    unnamed = _NAMES.sub(lambda match: match[0][: -len(match[1])] + " " * len(match[1]), step)
    return find_equations(_IS.sub(lambda match: f" {'=':{len(match[1])}} ", unnamed))


@dataclass(frozen=True)
class Arithmetic:
    """Verifies equations, one claim each: true if the result is the value, exactly or rounded (`Equation.holds`).

    A calculator annotation and the plain text that it repeats are one claim, false if either is false.

    With a `modulus` m, a claim is true if value and result are congruent modulo m. The result need not lie in
    0 … m − 1: `8 + 9 = 17` and `8 + 9 = 7` are both true modulo 10. Values are those of ordinary arithmetic, so
    division is not that of residues; where value or result is not a whole number the claim is not checkable.

    Raises:
        InputError: if the modulus is below 2.
    """

    modulus: int | None = None

    def __post_init__(self) -> None:
        if self.modulus is not None and self.modulus < 2:
            raise InputError(f"verifier 'arithmetic:{self.modulus}': expected a modulus of 2 or more")

    def __call__(self, step: str, question: str) -> list[bool | None]:
        """One entry an equation, in order; None for a division by zero and the like, and for units that differ."""
        return [self._judge(equation) for equation in find_claims(step)]

    def _judge(self, equation: Equation) -> bool | None:
        if equation.surface is not None and self._holds(equation.surface) is False:
            return False
        return self._holds(equation)

    def _holds(self, equation: Equation) -> bool | None:
        if self.modulus is None:
            return equation.holds
        value, claimed = equation.value(), equation.result.value
        if value is None or value.denominator != 1 or claimed.denominator != 1:
            return None
        if (value - claimed) % self.modulus == 0:
            return True
        return None if equation.holds is None else False
