"""Paraphrases: a step in other words, with the same numbers, the same equations and the same meaning."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from analysis.quantities import find_mentions, with_edits, write_like
from analysis.verifiers import find_claims

Rewriting = Literal["opener", "numerals", "equals"]
_LARGEST = 20
"""Whole numbers up to this one are written in words; larger ones are rarely seen so."""

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_LABEL = re.compile(r"\s*(?:(?:[-*•>]|\(?\d{1,3}[.):]|[Ss]tep\s+\d+[.:)])\s+)?")
_OPENING = re.compile(
    r"(?:so|then|now|therefore|thus|hence|next|first|firstly|second|secondly|third|last|lastly|finally|and|but|or|also"
    r"|however|afterwards?|because|step)\b",
    re.IGNORECASE,
)
_NUMBER_WORD = (
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty)"
)
# Words that are written small within a sentence; any other might be a name.
_DECAPITALISED = re.compile(
    r"(?:An?(?=\s+(?!is\b|was\b|has\b|had\b|will\b|equals\b|and\b|or\b)[a-z])|(?:The|He|She|It|We|You|They|His|Her|Its|Our|Your|Their|My|This|That|These|Those|There|Each|Every"
    r"|Both|All|If|In|On|At|By|For|From|To|With|Of|After|Before|When|While|During|Since|As|Let|Another)\b"
    rf"|(?i:{_NUMBER_WORD})\b)"
)
# "two hundred and five", "twenty one", "three fourths", "five and a half", "two-way": no number by themselves.
_SCALE = r"(?:hundred|thousand|million|billion|dozen)"
_SHARE = r"(?:half|halves|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?)"
_COMPOUND_BEFORE = re.compile(rf"(?:\b(?:{_NUMBER_WORD}|point)\s+|\b{_SCALE}(?:\s+and)?\s+|[-/])$", re.IGNORECASE)
_COMPOUND_AFTER = re.compile(
    rf"[-/]|\s+(?:{_NUMBER_WORD}|{_SCALE}|{_SHARE}|and\s+(?:an?\s+|one\s+)?{_SHARE}|point|per\s?cent)\b", re.IGNORECASE
)
# Digits that take part in arithmetic, in a decimal, a fraction, a time, a price or a name stay digits.
_DIGITS_BEFORE = re.compile(r"(?:^|[\s(\"“'])$")
_DIGITS_AFTER = re.compile(r"(?:$|\s|[.,;:!?)\"”'](?:\s|$|[\"”')]))")
_TAKES_PART_BEFORE = re.compile(r"(?:[-−–+*/×÷·=<>^~≈$€£#%\d]|(?<!['’])\b[B-HJ-Zb-z])\s*$")
_TAKES_PART_AFTER = re.compile(r"\s*(?:[-−–+*/×÷·=<>^~≈%€£$¢\d(]|(?:[B-HJ-Zb-z]|a\.m|p\.m|am|pm)\b)")


@dataclass(frozen=True)
class Paraphrase:
    """A step in other words, and the rules that were applied, in order."""

    text: str
    rules: tuple[Rewriting, ...]


def paraphrase(step: str, rng: random.Random | None, accept: Callable[[str], bool]) -> Paraphrase | None:
    """The step rewritten by as many rules as give a text which `accept` admits; None if none does.

    The rules, applied one after the other:

    - `opener`: "So", "Then" or "Now" in front, unless the step has a word of that kind; small where the step begins so.
    - `numerals`: whole numbers up to 20 in words; where there are none in digits, words in digits. Numbers in
      equations and annotations stay, so do decimals, fractions, ordinals, percentages, prices and times.
    - `equals`: "is" or "equals" for the equals signs of equations in plain text.

    No number changes its value, no equation its numbers. Without `rng` the first wording that is accepted is taken.
    """
    text, applied = step, []
    rules: tuple[tuple[Rewriting, Callable[[str, random.Random | None], Iterator[str]]], ...] = (
        ("opener", _opened),
        ("numerals", _renumbered),
        ("equals", _in_words),
    )
    for rule, propose in rules:
        new = next((new for new in propose(text, rng) if new != text and accept(new)), None)
        if new is not None:
            text = new
            applied.append(rule)
    return Paraphrase(text, tuple(applied)) if applied else None


def _opened(step: str, rng: random.Random | None) -> Iterator[str]:
    label = _LABEL.match(step)
    start = label.end() if label else 0
    body = step[start:]
    if not body or _OPENING.match(body):
        return
    words = _shuffled(("So", "Then", "Now"), rng)
    if _DECAPITALISED.match(body):
        body = body[0].lower() + body[1:]
    openers = [] if body[0].islower() and step[start] == body[0] else words
    if not step[start].isupper():
        openers = [*openers, *(word.lower() for word in words)]
    for word in openers:
        text = f"{step[:start]}{word} {body}"
        if _equations(text) == _equations(step):
            yield text


def _renumbered(step: str, rng: random.Random | None) -> Iterator[str]:
    del rng
    fixed = {at for match in _ANNOTATION.finditer(step) for at in range(*match.span())}
    for claim in find_claims(step):
        for one in (claim, claim.surface):
            fixed.update(range(one.start, one.end) if one else ())
        fixed.update(range(claim.copy.start, claim.copy.end) if claim.copy else ())
    mentions = [mention for mention in find_mentions(step) if mention[0] not in fixed and mention[2] <= _LARGEST]
    in_digits = [edit for mention in mentions if (edit := _word_for(step, *mention))]
    in_words = [edit for mention in mentions if (edit := _digits_for(step, *mention))]
    edits = in_digits or in_words
    for chosen in (edits, *([edit] for edit in edits if len(edits) > 1)):
        text = with_edits(step, chosen)
        if text is not None and _equations(text) == _equations(step):
            yield text


def _word_for(step: str, start: int, end: int, value: Fraction) -> tuple[int, int, str] | None:
    before, after = step[:start], step[end:]
    if step[start:end] != str(value) or not _DIGITS_BEFORE.search(before) or not _DIGITS_AFTER.match(after):
        return None
    if _TAKES_PART_BEFORE.search(before) or _TAKES_PART_AFTER.match(after) or _is_compound(before, after):
        return None
    opens = not before.strip() or before.rstrip()[-1] in ".!?"
    word = write_like(value, "Two" if opens else "two")
    return (start, end, word) if word else None


def _digits_for(step: str, start: int, end: int, value: Fraction) -> tuple[int, int, str] | None:
    before, after, word = step[:start], step[end:], step[start:end]
    if not word[0].isalpha() or _is_compound(before, after):
        return None
    opens = not before.strip() or before.rstrip()[-1] in ".!?"
    name = word[0].isupper() and not opens
    return None if name else (start, end, str(value))


def _is_compound(before: str, after: str) -> bool:
    return bool(_COMPOUND_BEFORE.search(before) or _COMPOUND_AFTER.match(after))


def _in_words(step: str, rng: random.Random | None) -> Iterator[str]:
    notes = {at for match in _ANNOTATION.finditer(step) for at in range(*match.span())}
    signs: set[int] = set()
    for claim in find_claims(step):
        plain = claim.surface if claim.annotated else claim
        if plain:
            signs.update(at for at in range(plain.start, plain.end) if step[at] == "=" and at not in notes)
    for word in _shuffled(("is", "equals"), rng):
        edits = [(at, at + 1, _spaced(step, at, word)) for at in signs]
        text = with_edits(step, edits)
        # "1.5 quarts = 4 * 1.5 = 6": with the second sign gone, the first would claim that 1.5 is 4.
        if text is not None and not Counter(_equations(text)) - Counter(_equations(step)):
            yield text


def _spaced(step: str, at: int, word: str) -> str:
    return f"{'' if step[at - 1].isspace() else ' '}{word}{'' if step[at + 1 : at + 2].isspace() else ' '}"


def _equations(text: str) -> list[tuple[Fraction | None, ...]]:
    """The numbers of all equations that are found in a text."""
    return [(*(number.value for number in claim.operands), claim.result.value) for claim in find_claims(text)]


def _shuffled(words: Sequence[str], rng: random.Random | None) -> list[str]:
    return list(words) if rng is None else rng.sample(words, len(words))
