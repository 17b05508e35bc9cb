"""Answers: when two texts are the same answer."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

_NUMBER = re.compile(r"([+-]?)\s*(?:[$€£¥]\s*)?([+-]?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)\s*(%?)")


def same_answer(given: str | None, gold: str) -> bool:
    """Whether two answers are the same number or, where they are no numbers, the same text.

    Numbers are compared by value: `1,200`, `$1200` and `1200.00` are the same; `50%` is only `50%`. Case, white space
    at the ends, a full stop or Markdown emphasis around the answer, and the Unicode form (NFC, NFD, full width) do not
    count.
    """
    return given is not None and _canonical(given) == _canonical(gold)


def _canonical(answer: str) -> str | tuple[Decimal, str]:
    text = unicodedata.normalize("NFKC", answer).replace("\u2212", "-").casefold().strip()
    text = text.strip("*_` ").rstrip(".。 ").strip("*_` ") or text
    number = _NUMBER.fullmatch(text)
    if number is None or (number[1] and number[2]):
        return " ".join(text.split())
    value = Decimal(number[3].replace(",", ""))
    return (-value if "-" in number[1] + number[2] else value), number[4]
