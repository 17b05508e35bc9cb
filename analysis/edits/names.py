"""Names in a text, told by their capitals."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_DAYS = frozenset(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"))
_MONTHS = frozenset(
    ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November")
) | {"December"}
# Capitalised by mistake within a sentence, these are no names.
_FUNCTION_WORDS = frozenset(("He", "She", "It", "They", "We", "You", "His", "Her", "Their", "The", "This", "That"))
_FUNCTION_WORDS |= {
    "And",
    "But",
    "So",
    "If",
    "Then",
    "There",
    "When",
    "In",
    "On",
    "At",
    "For",
    "To",
    "Of",
    "Let",
    "Now",
}
_WORD = re.compile(r"(?<![\w-])[^\W\d_]+(?:[-'’](?=[A-Z])[^\W\d_]+)*(?![\w-])")
# Quotes and brackets may open a sentence, a title's full stop ends none.
_SENTENCE_START = re.compile(r"(?:^|[.!?:\n])[\s\"'“‘(*\[-]*$")
_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St)\.\s*$")


@dataclass(frozen=True, order=True)
class Name:
    """A name, and what it names: the days and the months are kinds of their own."""

    text: str
    kind: Literal["day", "month", "other"]


def find_names(text: str, evidence: str) -> list[Name]:
    """The names of a text, each once, in alphabetical order.

    A name is a run of capitalised words, of two letters or more. A word that opens a sentence is one only if it is
    capitalised within a sentence of `evidence`.
    """
    known = {word for words, opens in _runs(evidence) for word in words[opens:]}
    found = set()
    for words, opens in _runs(text):
        name = " ".join(words if not opens or words[0] in known else words[1:])
        if name:
            found.add(Name(name, "day" if name in _DAYS else "month" if name in _MONTHS else "other"))
    return sorted(found)


def _runs(text: str) -> list[tuple[list[str], bool]]:
    """Runs of capitalised words with one space between them, and whether a sentence starts with each."""
    runs: list[tuple[list[str], bool]] = []
    end = -1
    for match in _WORD.finditer(text):
        word, before = match[0], text[: match.start()]
        if len(word) < 2 or not word[0].isupper() or word in _FUNCTION_WORDS:
            continue
        if end >= 0 and text[end : match.start()] == " ":
            runs[-1][0].append(word)
        else:
            runs.append(([word], bool(_SENTENCE_START.search(before)) and not _TITLE.search(before)))
        end = match.end()
    return runs
