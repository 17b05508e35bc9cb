"""Steps: a chain's text cut at separators, lines or sentences, with everything between the steps kept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Cut = tuple[int, int]

_LINE_BREAKS = r"[\n\r\v\f\x85\u2028\u2029]+"


@dataclass(frozen=True)
class Segments:
    """A chain as steps and gaps: `s_1 + g_1 + … + s_T + g_T` is its text, without white space at its two ends.

    Attributes:
        steps: without white space at their ends, none of them blank.
        gaps: what follows each step: a separator and white space; after the last step mostly nothing.
    """

    steps: tuple[str, ...]
    gaps: tuple[str, ...]


def at_matches(chain: str, pattern: str) -> Segments:
    """The chain cut wherever a regular expression matches; what it matches belongs to the step before.

    A match of no width, such as `(?=Step \\d)`, cuts without taking anything away from the steps.
    """
    text = chain.strip()
    return _segments(text, (match.span() for match in re.finditer(pattern, text)))


def by_line(chain: str) -> Segments:
    """The chain cut at its line breaks, of whatever kind."""
    return at_matches(chain, _LINE_BREAKS)


def by_sentence(chain: str) -> Segments:
    """The chain cut at its line breaks and after each sentence, by rules for English and for CJK full stops.

    Not cut at decimals, abbreviations, initials, ellipses, enumerators (`1.` at a sentence's start) and inside
    calculator annotations (`<<16-3-4=9>>`). In doubt it is not cut: two sentences in one step are the lesser harm.
    """
    text = chain.strip()
    cuts: list[Cut] = []
    at = 0
    for line in re.finditer(_LINE_BREAKS + "|$", text):
        cuts += [(at + end, at + end) for end in _sentence_ends(text[at : line.start()])]
        cuts.append(line.span())
        at = line.end()
    return _segments(text, cuts)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space and characters without width, such as U+200B or a byte order mark."""
    return all(character.isspace() or unicodedata.category(character) == "Cf" for character in text)


def _segments(text: str, cuts: Iterable[Cut]) -> Segments:
    spans: list[Cut] = []
    at = 0
    for start, end in (*cuts, (len(text), len(text))):
        piece = text[at:start]
        if not is_blank(piece):
            spans.append((at + len(piece) - len(piece.lstrip()), at + len(piece.rstrip())))
        at = end
    if not spans:
        return Segments((), ())
    spans[0] = (0, spans[0][1])  # a separator before the first step has no step before it
    following = [start for start, _ in spans[1:]] + [len(text)]
    steps = tuple(text[start:end] for start, end in spans)
    return Segments(steps, tuple(text[end:start] for (_, end), start in zip(spans, following, strict=True)))


_WIDE = "。！？｡"
_CLOSERS = r"""(?:["'”’»)\]}*_`」』）】》〉]|\\[\])]|\$(?=\s|$))*"""
_STOP = re.compile(rf"(?P<stop>[.!?…؟۔।॥]+|[{_WIDE}]+)(?P<closers>{_CLOSERS})")
_ANNOTATION = re.compile(r"<<[^<>]*>>")

# A number or letter that opens a sentence is its label: "1.", "(a).", "**2.", "Step 3.", "1.2."
_LABEL = re.compile(
    r"[\s>*_#•\-]*\(?(?:(?:step|part|case|question|problem|example|rule|day|phase|section|figure|table|equation|stage|"
    r"point|item|option|choice|line|method|fact)\s+)?(?:\d{1,3}(?:\.\d{1,3})*|[a-z]|[ivx]{1,4})",
    re.IGNORECASE,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Never the end of a sentence.
_ABBREVIATIONS = _words(
    "Mr Mrs Ms Mx Dr Prof Sgt Capt Col Gen Lt Rev Hon Sen Gov Messrs Mme Mlle "
    "e.g i.e eg ie vs approx cf viz resp ca incl excl"
)
# Not the end before a number: "No. 5", "pp. 3".
_BEFORE_NUMBERS = _words(
    "no nos No Nos fig figs Fig Figs eq eqs Eq Eqs vol Vol pp p ch Ch sec Sec art Art ex Ex "
    "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
)
# The end only before a capital: units and the like.
_BEFORE_SMALL = _words(
    "etc al a.m p.m A.M P.M am pm oz lb lbs ft in yd yds mi sq cu gal pt qt tbsp tsp hr hrs min mins sec secs wk wks "
    "mo yr yrs cm mm km kg mg ml avg max est temp qty ea dept ave"
)
# The end only before a word that opens sentences: "Smith Jr. bought" and "in the U.S. Army", but "in the U.S. He".
_IN_NAMES = _words("Jr Sr Inc Ltd Co Corp Bros St Ave Blvd Rd Mt Ft Ph.D Esq")
_OPENERS = _words(
    "A After All Also An And As At Because Before But By Each Finally First For From Given He Hence Her Here His How "
    "However I If In It Its Let Next Not Now On Once One Or Our Second She Similarly Since So Subtract Add Multiply "
    "Divide That The Their Then There Therefore These They This Those Thus To Together We What When Which While Who "
    "Why With You Your"
)
# After these a single capital is a choice and not a name's initial: "the answer is B. Tom …"
_CHOOSING = _words("is option choice answer be are point vitamin plan team group")


def _sentence_ends(line: str) -> Iterator[int]:
    """Where a sentence ends inside a line, its closing quotes and brackets included; not the line's own end."""
    annotations = [match.span() for match in _ANNOTATION.finditer(line)]
    begin = 0
    for match in _STOP.finditer(line):
        if not line[match.end() :].strip() or any(start < match.start() < end for start, end in annotations):
            continue
        if _is_end(line[begin : match.start()], match["stop"], match["closers"], line[match.end() :]):
            yield match.end()
            begin = match.end()


def _is_end(before: str, stop: str, closers: str, after: str) -> bool:
    following = after.lstrip()
    if stop[0] in _WIDE:
        # 「…。」と言った: the quotation is a part of the sentence.
        return not (closers and following.startswith(("と", "って", "，", "、", "：")))
    if not after[0].isspace() or ".." in stop or "…" in stop or is_blank(before):
        return False
    if following[0] in ",;:=+/%^&|~)]}×÷":
        return False
    if "!" in stop and following[0] in "-–*<>" and following[1:2].isspace():
        return False  # a factorial
    first = next((character for character in following if character.isalnum()), "")
    if set(stop) != {"."}:
        return not (closers and first.islower())  # "Is it?" he asked.
    return not _LABEL.fullmatch(before) and _is_full_stop(before, closers, following, first)


def _is_full_stop(before: str, closers: str, following: str, first: str) -> bool:
    """Whether a single full stop with white space after it ends a sentence, judged by the words around it."""
    words = before.split()
    word = words[-1].lstrip("\"'“‘([{*_$<>") if words and not before[-1].isspace() else ""
    next_word = re.match(r"\W*(\w*)", following)
    opens = next_word is not None and next_word[1] in _OPENERS
    if word in _ABBREVIATIONS or word.lower() in ("e.g", "i.e"):
        return False
    if word in _BEFORE_NUMBERS:
        return not first.isdigit()
    if word in _BEFORE_SMALL:
        return first.isupper() or not first.isascii()
    if word in _IN_NAMES or re.fullmatch(r"[A-Z](?:\.[A-Z])*", word):
        chosen = len(words) > 1 and words[-2].lower() in _CHOOSING and not re.match(r"[A-Z]\.", following)
        return opens or (chosen and not first.islower())
    return not (closers and first.islower())
