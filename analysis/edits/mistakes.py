"""Mistakes: a step changed by rule so that what it says is no longer so."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from analysis.edits.names import find_names
from analysis.quantities import find_mentions, with_edits, write_like
from analysis.verifiers import find_claims

Rule = Literal["number", "operator", "negation", "entity"]
_MOST = 50
"""A number is offset by up to this many units of its last digit."""

# A sign between two operands, not a hyphen, a bullet or a rate such as miles/hour. Operands are numbers, brackets and
# single letters, or any word with a space after it.
_SIGN = re.compile(
    r"(?:(?<=[\d)%])|(?<=[\w)%]\s)|(?<=(?<![A-Za-z])[A-Za-z]))[-−–+*/×÷·](?=\s?[$€£]?(?:[\d(]|\.\d|[A-Za-z]\b))"
    r"|(?<=\d)[xX](?=\d)|(?<=\d\s)[xX](?=\s\d)"
)
_OPPOSITE_SIGNS = {"+": "-", "-": "+", "−": "+", "–": "+", "*": "/", "/": "*", "×": "÷", "÷": "×", "·": "/"}
_OPPOSITE_SIGNS |= {"x": "/", "X": "/"}
_PLAIN_SIGNS = str.maketrans("−–×·xX÷", "--****/")
_OPPOSITES = (
    ("more", "less"),
    ("greater", "smaller"),
    ("before", "after"),
    ("increase", "decrease"),
    ("increases", "decreases"),
    ("increased", "decreased"),
    ("increasing", "decreasing"),
    ("higher", "lower"),
    ("above", "below"),
    ("longer", "shorter"),
    ("older", "younger"),
    ("earlier", "later"),
    ("faster", "slower"),
    ("most", "least"),
    ("plus", "minus"),
    ("add", "subtract"),
    ("adds", "subtracts"),
    ("added", "subtracted"),
    ("adding", "subtracting"),
    ("maximum", "minimum"),
    ("first", "last"),
)
_OPPOSITE_WORDS = {"fewer": "more", "larger": "smaller", "bigger": "smaller", "taller": "shorter"}
_OPPOSITE_WORDS |= dict(_OPPOSITES) | {other: one for one, other in _OPPOSITES}
_COMPARISON = re.compile(rf"\b(?:(?P<article>an?)\s+)?(?P<word>{'|'.join(_OPPOSITE_WORDS)})\b", re.IGNORECASE)
# "can" and "will" are nouns behind an article or a number.
_VERB = re.compile(
    r"\b(?:(?P<verb>(?:is|are|was|were|has|have|had|could|would|does|do|did|should|must"
    r"|(?<!\ba\s)(?<!\bthe\s)(?<!\d\s)(?:can|will)))(?P<not>n['’]t\b|\s+not\b)?"
    r"|(?P<irregular>cannot|can['’]t|won['’]t))\b(?!['’])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mistake:
    """A step with a mistake in it, and the rule that made it."""

    text: str
    rule: Rule


def mistake(step: str, context: str, rng: random.Random, accept: Callable[[str], bool]) -> Mistake | None:
    """The step with one mistake, by the first rule that gives a text which `accept` admits; None if none does.

    The rules, in this order (after Lanham et al. 2023, whose mistakes a model wrote):

    - `number`: the result of the last equation, or the last number where there is none, becomes a value nearby in the
      same written form, with as many digits; small offsets first. In a calculator annotation the copy behind it and the
      plain text change with it. No value is taken with which the equation would hold.
    - `operator`: a sign or a word of comparison becomes its opposite; a sign in an annotation changes in the plain
      text, too, where that has the same signs, and an equation that it is in must not hold afterwards.
    - `negation`: "not" is put behind a verb such as "is", or taken away from it.
    - `entity`: a name becomes another name of the context, wherever it stands in the step.

    The same state of `rng` gives the same mistake.

    Args:
        step: one step of a chain.
        context: question and chain, where other names are found.
        rng: draws among the proposals of a rule.
        accept: whether a text can be used. Ordinary arithmetic is what makes an equation hold here; a caller with
            another (modulo 10) refuses texts that are true in that.
    """
    rules: tuple[tuple[Rule, Iterator[str]], ...] = (
        ("number", _other_numbers(step, rng)),
        ("operator", _opposites(step, rng)),
        ("negation", _negations(step, rng)),
        ("entity", _other_names(step, context, rng)),
    )
    for rule, proposals in rules:
        for text in proposals:
            if text != step and accept(text):
                return Mistake(text, rule)
    return None


def _other_numbers(step: str, rng: random.Random) -> Iterator[str]:
    claims = find_claims(step)
    if claims:
        numbers = (claims[-1].result, claims[-1].copy)
        places = [(number.start, number.end, number.value) for number in numbers if number]
    else:
        places = sorted(find_mentions(step))[-1:]
    if not places:
        return
    unit = max(_unit(step[start:end]) for start, end, _ in places)
    near = [offset for size in (1, 2, 3) for offset in (size, -size)]
    rng.shuffle(near)
    far = [offset for size in range(4, _MOST + 1) for offset in rng.sample((size, -size), 2)]
    for offset in (*near, *far):
        edits = [(start, end, _written(value + offset * unit, step[start:end])) for start, end, value in places]
        text = with_edits(step, [(start, end, new) for start, end, new in edits if new is not None])
        if text is not None and all(new is not None for _, _, new in edits) and not _holds(text, places[0][0]):
            yield text


def _unit(written: str) -> Fraction:
    """The value of one unit of the last digit: 1/4 for 3/4."""
    _, slash, bottom = written.partition("/")
    return 1 / Fraction(bottom.replace(",", "")) if slash else Fraction(1, 10 ** len(written.partition(".")[2]))


def _written(value: Fraction, template: str) -> str | None:
    """The value as the template is written, with its sign and as many digits; None if it cannot be."""
    minus = template[: len(template) - len(template.lstrip("-−– "))]
    if bool(minus) != (value < 0):
        return None
    top, slash, bottom = template[len(minus) :].partition("/")
    new = write_like(abs(value) * (Fraction(bottom.replace(",", "")) if slash else 1), top)
    if new is None or (slash and value == 0) or (len(new) != len(top) and not top[0].isalpha()):
        return None
    return minus + new + slash + bottom


def _holds(text: str, at: int) -> bool:
    """Whether an equation of the text holds that has its result, or a part, at a character."""
    claims = [claim for claim in find_claims(text) if claim.start <= at < claim.end or claim.result.start == at]
    return any(one.holds is True for claim in claims for one in (claim, claim.surface) if one)


def _opposites(step: str, rng: random.Random) -> Iterator[str]:
    signs = [match.start() for match in _SIGN.finditer(step)]
    groups = [[at] for at in signs]
    for claim in find_claims(step):
        noted = [at for at in signs if claim.start <= at < claim.end]
        shown = [at for at in signs if claim.surface and claim.surface.start <= at < claim.start]
        if claim.annotated and _signs(step, noted) == _signs(step, shown):
            groups = [group for group in groups if group[0] not in (*noted, *shown)]
            groups += [list(pair) for pair in zip(noted, shown, strict=True)]
    edits = [[(at, at + 1, _OPPOSITE_SIGNS[step[at]]) for at in group] for group in groups]
    edits += [[_opposite(match)] for match in _COMPARISON.finditer(step)]
    for chosen in rng.sample(edits, len(edits)):
        text = with_edits(step, chosen)
        if text is not None and not any(_holds(text, start) for start, _, _ in chosen):
            yield text


def _signs(step: str, at: list[int]) -> str:
    return "".join(step[i] for i in at).translate(_PLAIN_SIGNS)


def _opposite(match: re.Match[str]) -> tuple[int, int, str]:
    word, article = match["word"], match["article"]
    new = _OPPOSITE_WORDS[word.lower()]
    new = new.capitalize() if word[0].isupper() else new
    if article:
        between = match[0][len(article) : -len(word)]
        new = article[0] + ("n" if new[0] in "aeio" else "") + between + new
    return match.start(), match.end(), new


def _negations(step: str, rng: random.Random) -> Iterator[str]:
    edits = []
    for match in _VERB.finditer(step):
        if match["irregular"]:
            new = match[0][:1] + ("an" if match[0][0] in "cC" else "ill")
        elif match["not"]:
            new = match["verb"]
        else:
            new = match[0] + ("not" if match[0].lower() == "can" else " not")
        edits.append((match.start(), match.end(), new))
    for start, end, new in rng.sample(edits, len(edits)):
        yield step[:start] + new + step[end:]


def _other_names(step: str, context: str, rng: random.Random) -> Iterator[str]:
    known = find_names(context, context)
    own = find_names(step, f"{context}\n{step}")
    for name in rng.sample(own, len(own)):
        others = [other for other in known if other.kind == name.kind and other.text.lower() != name.text.lower()]
        others = rng.sample(others, len(others))
        for other in sorted(others, key=lambda other: other in own):
            yield re.sub(rf"(?<!\w){re.escape(name.text)}(?!\w)", other.text, step)
