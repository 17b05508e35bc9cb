"""Answers: when two texts are the same answer."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_NUMBER = re.compile(
    r"([+-]?)\s*(?:(?P<currency>[$€£¥])\s*)?([+-]?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)\s*(%?)"
)


def same_answer(given: str | None, gold: str) -> bool:
    """Whether two answers are the same number or, where they are no numbers, the same text.

    Numbers are compared by value: `1,200`, `$1200` and `1200.00` are the same; `50%` is only `50%`. Case, white space
    at the ends, a full stop or Markdown emphasis around the answer, and the Unicode form (NFC, NFD, full width) do not
    count; `$5` is 5 and not `€5`.
    """
    if given is None:
        return False
    ours, theirs = _canonical(given), _canonical(gold)
    if isinstance(ours, str) or isinstance(theirs, str):
        return ours == theirs
    # A currency that one of them leaves out is the other's; two currencies are two answers.
    return ours[:2] == theirs[:2] and (ours[2] == theirs[2] or "" in (ours[2], theirs[2]))


def _canonical(answer: str) -> str | tuple[Decimal, str, str]:
    # Not NFKC: it makes 102 of 10².
    text = unicodedata.normalize("NFC", answer.translate(_FULL_WIDTH)).replace("\u2212", "-").casefold().strip()
    text = text.strip("*_` ").rstrip(".。 ").strip("*_` ") or text
    number = _NUMBER.fullmatch(text)
    if number is None or (number[1] and number[3]):
        return " ".join(text.split())
    value = Decimal(number[4].replace(",", ""))
    return (-value if "-" in number[1] + number[3] else value), number[5], number["currency"] or ""
