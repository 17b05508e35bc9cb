"""Quantities of a word problem: which numbers its question states, what words stand for, how a new value is written."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from analysis.arithmetic import find_numbers

CONSTANTS: dict[str, tuple[str, ...]] = {
    r"weeks?|weekly": ("7", "52", "4"),
    r"weekends?": ("2",),
    r"weekdays?": ("5",),
    r"days?|daily": ("7", "24", "30", "365"),
    r"hours?|hourly": ("24", "60"),
    r"minutes?|seconds?": ("60", "3600"),
    r"months?|monthly": ("12", "30", "4"),
    r"years?|yearly|annual|annually": ("12", "52", "365"),
    r"decades?": ("10",),
    r"fortnights?": ("14", "2"),
    r"century|centuries|percent|percentage|cents?|penny|pennies|cm|centimeters?|meters?|[$%]": ("100",),
    r"dimes?": ("10", "100"),
    r"nickels?": ("5", "100"),
    r"quarters?|quarterly": ("4", "1/4", "25", "3"),
    r"dozens?": ("12",),
    r"foot|feet|inch|inches": ("12",),
    r"yards?": ("3", "36"),
    r"pounds?|ounces?|oz": ("16",),
    r"gallons?|quarts?|pints?": ("4", "2", "8", "16"),
    r"k[gm]|kilo\w*|grams?|lit(?:er|re)s?|ml|tons?": ("1000", "2000"),
    r"half|halves|halved|halfway": ("2", "1/2"),
    r"twice|doubled?|doubles|doubling|both|pairs?|couples?|twins?|either|each other|second|alternate|another": ("2",),
    r"thrice|tripled?|triples|triplets?": ("3",),
    r"quadrupled?|quadruples": ("4",),
    r"squares?": ("4",),
    r"rectang\w*|perimeters?": ("2", "4"),
    r"triang\w*": ("2", "3"),
}
"""What a word in question or chain can stand for in the arithmetic, beside the number 1."""

_CARDINALS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_CARDINALS += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORD_VALUES = {word: i for i, word in enumerate(_CARDINALS)} | {word: 20 + 10 * i for i, word in enumerate(_TENS)}
_WORD_VALUES |= {f"{tens}-{_CARDINALS[unit]}": _WORD_VALUES[tens] + unit for tens in _TENS for unit in range(1, 10)}
_VALUE_WORDS = {value: word for word, value in _WORD_VALUES.items()}
# "one" is mostly a pronoun, "zero" is never changed.
_WORD = re.compile(
    r"(?<![\w-])(?:" + "|".join(sorted(set(_WORD_VALUES) - {"zero", "one"}, key=len, reverse=True)) + r")\b", re.I
)
_ORDINALS = {"second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9}
_ORDINALS |= {"tenth": 10, "eleventh": 11, "twelfth": 12}
_ORDINAL = re.compile(r"\b(?:(\d+)(?:st|nd|rd|th)|(" + "|".join(_ORDINALS) + r")s?)\b", re.I)
_SHARE = re.compile(
    r"\s*[-\s](?:half|halves|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?)\b", re.I
)
_SCALE = re.compile(r"\s*(hundred|thousand|million|billion|dozen|k\b)", re.I)
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "dozen": 12, "k": 1000}
_LABEL = re.compile(
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|[Dd]ay|[Ww]eek|[Mm]onth|[Yy]ear|[Gg]rade|[Ll]evel|[Nn]umber|[Rr]oom|[Cc]hapter|[Rr]oute|[Tt]eam|[Gg]ame|[Ss]tep)\s+$"
)
_FRACTION = re.compile(r"(?<![\d/])(\d+)\s*/\s*(\d+)(?![\d/])")
# "5 days a week" can become 7 days, not 8.
_LIMITS = {
    re.compile(
        rf"[\s-]*(?:\w+ )?{part}s?\s+(?:of |in |out of )?(?:a|an|per|each|every|the|one)\s+{whole}\b", re.I
    ): most
    for part, whole, most in (
        ("day", "week", 7),
        ("day", "month", 28),
        ("hour", "day", 24),
        ("minute", "hour", 60),
        ("second", "minute", 60),
        ("month", "year", 12),
        ("week", "month", 4),
        ("week", "year", 52),
    )
}
_NEAR = 60
"""So many values are tried for one number."""


@dataclass(frozen=True)
class Source:
    """A number of a question, as written from character `start` on.

    A number of the chain can come from it as `a · value + b`, for each `(a, b)` of `readings`: with a percentage, its
    hundredth too, and what is left of the whole. `limit` is how large it may become: 7 for the days of a week.
    """

    start: int
    text: str
    value: Fraction
    changeable: bool
    readings: tuple[tuple[Fraction, Fraction], ...]
    limit: int | None = None


def find_sources(question: str, ordinals: set[int]) -> Iterator[Source]:
    """The numbers of a question, in digits and in words; changeable where another value leaves the question sensible.

    Not changeable are 0 and 1, fractions, times of day, years, labels ("day 5"), shares ("three fourths"), counts of
    what is named one by one, and the `ordinals`: with a "third day" told, there must be three.
    """
    taken: set[int] = set()
    for match in _FRACTION.finditer(question):
        top, bottom = Fraction(match[1]), Fraction(match[2])
        ratio = top / bottom if bottom else Fraction(0)
        taken.update(range(*match.span()))
        yield Source(match.start(), match.group(), ratio, False, _fixed(ratio, top, bottom, 1 - ratio, bottom - top))
    for number in find_numbers(question):
        if number.start in taken:
            continue
        text, before, after = question[number.start : number.end], question[: number.start], question[number.end :]
        value = number.value
        readings = [(Fraction(1), Fraction(0))]
        if re.match(r"\s*(?:%|percent)", after):
            hundredth = Fraction(1, 100)
            readings += [(hundredth, Fraction(b)) for b in (0, 1)]
            readings += [(-hundredth, Fraction(1)), (Fraction(-1), Fraction(100)), (Fraction(1), Fraction(100))]
        if re.match(r"[\s-]*(?:cents?\b|¢)", after):
            readings.append((Fraction(1, 100), Fraction(0)))
        if scale := _SCALE.match(after):
            readings.append((Fraction(_SCALES[scale[1].lower()]), Fraction(0)))
        fixed = (
            re.match(r"(?:st|nd|rd|th)\b|:\d|/", after)
            or re.search(r"(?:\d:|[#/])$", before)
            or _LABEL.search(before)
            or _SHARE.match(after)
            or (re.fullmatch(r"(?:19|20)\d\d", text) and not before.endswith("$"))
        )
        changeable = not fixed and value not in ordinals and (value >= 2 or value.denominator > 1)
        changeable = changeable and not _counts_a_list(value, before, after)
        yield Source(number.start, text, value, changeable, tuple(readings), _limit(after))
    for match in _WORD.finditer(question):
        before, after = question[: match.start()], question[match.end() :]
        value = Fraction(_WORD_VALUES[match.group().lower()])
        share, scale = _SHARE.match(after), _SCALE.match(after)
        readings = [(Fraction(1), Fraction(0))]
        if scale:
            readings.append((Fraction(_SCALES[scale[1].lower()]), Fraction(0)))
        if share:
            parts = Fraction(_parts(share.group()))
            readings += _fixed(parts, value / parts, 1 - value / parts, parts - value)
        changeable = not (share or scale or re.match(r"-\w", after) or value in ordinals)
        changeable = changeable and not _counts_a_list(value, before, after)
        yield Source(match.start(), match.group(), value, changeable, tuple(readings), _limit(after))


def _limit(after: str) -> int | None:
    """How large a number may be that is followed by this: the days of a week, the hours of a day, 100 percent."""
    if re.match(r"\s*(?:%|percent)", after):
        return 100
    return next((most for pattern, most in _LIMITS.items() if pattern.match(after)), None)


def _fixed(*values: Fraction) -> tuple[tuple[Fraction, Fraction], ...]:
    return tuple((Fraction(0), value) for value in values)


def _parts(share: str) -> int:
    """Into how many parts a share word divides: 4 for "fourths" and "quarters"."""
    word = share.strip(" -\n").lower()
    if word.startswith("hal"):
        return 2
    return 4 if word.startswith("quarter") else _ORDINALS[word.removesuffix("s")]


def _counts_a_list(value: Fraction, before: str, after: str) -> bool:
    """Whether a small number counts things that the text names one by one, or has named: "all three", "2 cats: …"."""
    if value > 10:
        return False
    named = re.match(r"[^.?!\d]{0,60}(?::|\b(?:one|the first|another)\b)", after)
    return bool(named or re.search(r"\b(?:all|other|these|those|the|both|of)\s+$", before, re.I))


def find_ordinals(text: str) -> set[int]:
    """The numbers of which a text names the ordinal, as "third" or "3rd"."""
    return {int(match[1]) if match[1] else _ORDINALS[match[2].lower()] for match in _ORDINAL.finditer(text)}


def constants_of(text: str) -> frozenset[Fraction]:
    """What the words of a text can stand for: `CONSTANTS`, 3 and 1/3 for "third", and always 1."""
    values = {Fraction(1)}
    for words, meant in CONSTANTS.items():
        if re.search(rf"(?<![A-Za-z])(?:{words})(?![A-Za-z])", text, re.I):
            values.update(map(Fraction, meant))
    for match in _ORDINAL.finditer(text):
        if match[2]:
            values.update((Fraction(_ORDINALS[match[2].lower()]), Fraction(1, _ORDINALS[match[2].lower()])))
    return frozenset(values)


def find_mentions(segment: str) -> Iterator[tuple[int, int, Fraction]]:
    """The numbers of a step in digits and in words, but no ordinals and no number that lists the step itself."""
    listed = re.match(r"\s*\(?\d+[.):]\s", segment)
    for number in find_numbers(segment):
        ordinal = re.match(r"(?:st|nd|rd|th)\b", segment[number.end :])
        if not ordinal and not (listed and number.start < listed.end()):
            yield number.start, number.end, number.value
    for match in _WORD.finditer(segment):
        yield match.start(), match.end(), Fraction(_WORD_VALUES[match.group().lower()])


def nearby(source: Source, rng: random.Random) -> Iterator[Fraction]:
    """Values with as many digits as the source's, half to twice as large; the equally round and near first."""
    places = len(source.text.partition(".")[2])
    scaled = int(source.value * 10**places)
    unit = max((u for u in _round_units(scaled) if scaled % u == 0), default=1)
    low, high = max(2, math.ceil(scaled / 2), 10 ** (len(str(scaled)) - 1)), min(2 * scaled, 10 ** len(str(scaled)) - 1)
    for step in dict.fromkeys((unit, 1)):
        near = sorted(
            (m for j in range(1, _NEAR // 2) for m in (scaled - j * step, scaled + j * step) if low <= m <= high),
            key=lambda m: (abs(m - scaled) > 5 * step, rng.random()),
        )
        yield from (Fraction(m, 10**places) for m in near)


def _round_units(scaled: int) -> Iterator[int]:
    for zeros in range(len(str(scaled))):
        yield from (unit for unit in (10**zeros, 5 * 10**zeros) if unit < scaled)


def same_kind(old: Fraction, new: Fraction) -> bool:
    """Whether a new value is of the old one's kind: whole or not, one or not, below one or not.

    The sign is held where the value is written: `write_like` puts no minus where there was none.
    """
    return (old.denominator == 1) == (new.denominator == 1) and (old == 1) == (new == 1) and (old < 1) == (new < 1)


def write_like(value: Fraction, template: str) -> str | None:
    """The value as the template is written: in words or digits, with its decimals and commas; None if it cannot be."""
    if template[0].isalpha():
        word = _VALUE_WORDS.get(value.numerator) if value.denominator == 1 else None
        return word.capitalize() if word and template[0].isupper() else word
    sign, digits = ("-", template[1:]) if template[0] in "-−–" else ("", template)
    whole, point, decimals = digits.partition(".")
    scaled = abs(value) * 10 ** len(decimals)
    if "/" in template or scaled.denominator != 1 or (value < 0) != bool(sign) or (len(whole) > 1 and whole[0] == "0"):
        return None
    padded = str(scaled.numerator).rjust(len(decimals) + 1, "0")
    new_whole, new_decimals = padded[: len(padded) - len(decimals)], padded[len(padded) - len(decimals) :]
    if decimals.endswith("0") != new_decimals.endswith("0") or (not whole and new_whole != "0"):
        return None
    if "," in whole:
        new_whole = f"{int(new_whole):,}"
    return sign + (new_whole if whole else "") + point + new_decimals


def with_edits(text: str, edits: Sequence[tuple[int, int, str]]) -> str | None:
    """The text with edits made; None if "a" or "an" would stand before a number that asks for the other."""
    for start, end, new in sorted(edits, reverse=True):
        if re.search(r"\ban? $", text[:start], re.I) and _vowel(text[start:end]) != _vowel(new):
            return None
        text = text[:start] + new + text[end:]
    return text


def _vowel(number: str) -> bool:
    return bool(re.match(r"8|11(?!\d)|18(?!\d)|eight|eleven", number, re.I))
