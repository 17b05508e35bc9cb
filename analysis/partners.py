"""Counterfactual partners: the same problem with one number changed, or another prompt.

Tier 1 is a partner given with the prompt. Tier 2 changes one number of the question and carries it through the
equations of the chain to the answer. Tier 3 is any other prompt, for description only.

How a number finds its source. A number of the chain comes from a number of the question (also as a percentage's
hundredth or complement), from the result of an equation before it, or from a constant. Constants are 1, what a unit or
word in the texts stands for (`week` 7, `dozen` 12, `twice` 2: `quantities.CONSTANTS`), and the parts of a written
fraction. All sources with the number's value are kept. A change is made only if all of them agree on the number's new
value, so an ambiguity that matters refuses the change, and one that does not matter refuses nothing.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, get_args

from analysis.answers import same_answer
from analysis.arithmetic import Equation, find_equations, find_numbers
from analysis.errors import InputError
from analysis.prompts import Case, Prompt
from analysis.quantities import (
    Source,
    constants_of,
    find_mentions,
    find_ordinals,
    find_sources,
    nearby,
    same_kind,
    with_edits,
    write_like,
)

Tier = Literal[1, 2, 3]
TIER_NAMES: dict[Tier, str] = {1: "given", 2: "changed number", 3: "another prompt"}
Reason = Literal[
    "unanswerable",
    "no chain",
    "no equation",
    "false equation",
    "unchecked equation",
    "untraced operand",
    "untraced mention",
    "untraced answer",
    "no number to change",
    "ambiguous source",
    "unread equality",
    "no fitting value",
    "no other prompt",
]
"""Why a prompt has no partner.

`unanswerable`: the prompt says so. `no chain`: the case has neither steps nor chain. `no equation`: none was found in
it. `false equation`, `unchecked equation`: one is false, or cannot be checked. `untraced operand`, `untraced mention`,
`untraced answer`: an operand of an equation, another number of the chain, the answer has no source. Then, when every
number of the question was tried, the furthest that one came: `no number to change`: none is used in the chain and safe
to change. `ambiguous source`: sources of some number disagree. `unread equality`: a number would change beside an
equals sign that is in no equation. `no fitting value`: no value nearby keeps all results of their kind (whole,
positive, exact) and changes the answer to one that is allowed. `no other prompt`: tier 3 found none.
"""

_CHOICE = re.compile(
    r"\b(?:\w{3,}est|most|least|best|worst|maximum|minimum|winner|loser|better|whichever|enough|unless|until)\b|[<>≤≥]",
    re.I,
)


@dataclass(frozen=True)
class Partner:
    """A propagated partner: its case, and the number of the question that was changed, as it was and is written.

    `start` is the number's first character in the question, in both cases.
    """

    case: Case
    old: str
    new: str
    start: int


@dataclass(frozen=True)
class NoPartner:
    """No partner, and why."""

    reason: Reason


@dataclass(frozen=True)
class PartneredPrompt:
    """A prompt with its partner in place.

    Attributes:
        prompt: the prompt; its `partner` is None when it has none.
        tier: 1 given, 2 propagated, 3 another prompt; None without a partner.
        reason: why there is no partner of tier 2, when it was looked for and not found; with `tier` None, why none.
    """

    prompt: Prompt
    tier: Tier | None
    reason: Reason | None = None


def assign_partners(
    prompts: Sequence[Prompt], seed: int = 0, tiers: Sequence[Tier] = (1, 2)
) -> tuple[PartneredPrompt, ...]:
    """Every prompt with the partner of the lowest tier among `tiers` that gives one, in the order of the prompts.

    The same prompts, seed and tiers give the same partners; in tier 2 a prompt's partner depends on no other prompt.

    Raises:
        InputError: if a tier is none of 1, 2 and 3.
    """
    if not set(tiers) <= set(get_args(Tier)):
        raise InputError(f"tiers {tuple(tiers)}: expected some of 1 (given), 2 (propagated) and 3 (another prompt)")
    others = OtherPrompts(prompts) if 3 in tiers else None
    return tuple(_assign(prompt, seed, tiers, others) for prompt in prompts)


def propagate(prompt: Prompt, seed: int = 0) -> Partner | NoPartner:
    """The prompt's partner of tier 2: one number of the question changed, and everything that depends on it.

    Numbers are tried in an order drawn from `seed` and the prompt's id, small whole numbers last, because they often
    count what a text goes on to list; so are values, round and near ones first. A partner is returned only if every
    equation of its chain checks true, its answer is another (and among the prompt's options, where it has any), and
    setting the number back gives the original text.
    """
    traced = _trace(prompt.case)
    if not isinstance(traced, _Trace):
        return NoPartner(traced)
    rng = random.Random(f"{seed}:{prompt.id}")
    sources = [source for source in traced.sources if source.changeable]
    rng.shuffle(sources)
    sources.sort(key=lambda source: source.value < 10 and source.value.denominator == 1)
    furthest: Reason = "no number to change"
    for source in sources:
        for value in nearby(source, rng):
            case = traced.change(source, value)
            if not isinstance(case, Case):
                furthest = max(furthest, case, key=get_args(Reason).index)
                if case != "no fitting value":
                    break  # the same for every value
            elif not prompt.options or case.answer in prompt.options:
                return Partner(case, source.text, write_like(value, source.text) or "", source.start)
            else:
                furthest = "no fitting value"
    return NoPartner(furthest)


def change_number(case: Case, start: int, value: Fraction | int) -> Case | NoPartner:
    """The case with the number at character `start` of its question set to `value`, carried through to the answer.

    Raises:
        ValueError: if no number that can be changed starts there.
    """
    traced = _trace(case)
    if not isinstance(traced, _Trace):
        return NoPartner(traced)
    source = next((source for source in traced.sources if source.start == start and source.changeable), None)
    if source is None:
        raise ValueError(f"no number that can be changed starts at character {start} of {case.question!r}")
    changed = traced.change(source, Fraction(value))
    return changed if isinstance(changed, Case) else NoPartner(changed)


@dataclass(frozen=True)
class _Origin:
    """Where a value can come from: `a ·` a source `+ b`, a result (a = 1, b = 0), or neither: a constant."""

    source: int | None = None
    result: int | None = None
    a: Fraction = Fraction(1)
    b: Fraction = Fraction(0)


@dataclass(frozen=True)
class _Place:
    """A number of the chain: characters `start` to `end` of a segment, its value, and all that it can come from."""

    segment: int
    start: int
    end: int
    value: Fraction
    origins: tuple[_Origin, ...]


@dataclass(frozen=True)
class _Result:
    """An equation and the origins of its operands."""

    equation: Equation
    operands: tuple[_Place, ...]


@dataclass(frozen=True)
class _Trace:
    """A case whose every number has been traced."""

    case: Case
    segments: tuple[str, ...]
    sources: tuple[Source, ...]
    results: tuple[_Result, ...]
    places: tuple[_Place, ...]
    answer: _Place
    unread: frozenset[int]
    chooses: bool

    def change(self, source: Source, value: Fraction) -> Case | Reason:
        """The case with the source's number set to a value, or why there is none."""
        case = self._changed(source, value)
        if not isinstance(case, Case):
            return case
        # The new texts are read afresh: every equation must hold, and setting the number back must lead back.
        back = _trace(case)
        if not isinstance(back, _Trace) or [_exact(one) for one in back.results] != [
            _exact(one) for one in self.results
        ]:
            return "no fitting value"
        again = next((other for other in back.sources if other.start == source.start and other.changeable), None)
        if again is None or back._changed(again, source.value) != self.case:
            return "no fitting value"
        return case

    def _changed(self, source: Source, value: Fraction) -> Case | Reason:
        index = self.sources.index(source)
        uses = sum(
            any(origin.source == index for origin in place.origins)
            for result in self.results
            for place in result.operands
        )
        if not uses:
            return "no number to change"
        if any(
            sum(any(origin.source == index for origin in place.origins) for place in result.operands) > 1
            for result in self.results
        ):
            return "ambiguous source"  # "8 spiders … 8 * 8 legs": one of the two is not this number
        if source.value < 5 and source.value.denominator == 1 and uses > 1:
            return "ambiguous source"  # so small a number may also be a count of what the text lists
        if source.limit is not None and source.value <= source.limit < value:
            return "no fitting value"
        text = write_like(value, source.text)
        if text is None or not same_kind(source.value, value):
            return "no fitting value"
        results = self._new_results(index, value)
        if not isinstance(results, list):
            return results
        if self._reordered(index, value, results):
            return "no fitting value"
        question = with_edits(self.case.question, [(source.start, source.start + len(source.text), text)])
        edits: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
        for place in (*self.places, self.answer):
            new = self._new_value(place, index, value, results)
            if new is None:
                return "ambiguous source"
            if new == place.value:
                continue
            if place.segment in self.unread:
                return "unread equality"
            segment = self.case.answer if place is self.answer else self.segments[place.segment]
            written = write_like(new, segment[place.start : place.end])
            if written is None:
                return "no fitting value"
            edits[place.segment].append((place.start, place.end, written))
        if self.answer.segment not in edits or question is None:
            return "no fitting value"
        segments = [with_edits(segment, edits[i]) for i, segment in enumerate(self.segments)]
        answer = with_edits(self.case.answer, edits[self.answer.segment])
        if answer is None or None in segments:
            return "no fitting value"
        texts = tuple(segment for segment in segments if segment is not None)
        if self.case.steps is not None:
            return replace(self.case, question=question, answer=answer, steps=texts)
        return replace(self.case, question=question, answer=answer, chain="\n".join(texts))

    def _new_results(self, source: int, value: Fraction) -> list[Fraction] | Reason:
        results: list[Fraction] = []
        for result in self.results:
            old = [place.value for place in result.operands]
            new = [self._new_value(place, source, value, results) for place in result.operands]
            equation = result.equation
            if None in new:
                return "ambiguous source"
            if new == old:
                results.append(equation.result.value)
                continue
            if not equation.surface and len(old) == 1:
                return "unread equality"  # "x = <<9=9>>9": what gave the 9 is not known
            before, after = equation.value(), equation.value([operand for operand in new if operand is not None])
            if before is None or after is None:
                return "no fitting value"
            claimed = equation.result.value
            # "20 / 80 = 25%" claims a hundredfold; a rounded result is not carried on, its rounding being a choice.
            scale = next((scale for scale in (1, 100) if before * scale == claimed), None)
            if scale is None or not same_kind(claimed, after * scale):
                return "no fitting value"
            results.append(after * scale)
        return results

    def _reordered(self, source: int, value: Fraction, results: Sequence[Fraction]) -> bool:
        """Whether a condition or a choice may come out otherwise ("10% off from 5 pieces on", "buys the cheapest").

        It may if the changed number passes another one of the question or, where the texts choose or compare, if two
        results change places.
        """
        old = self.sources[source].value
        others = [other.value for i, other in enumerate(self.sources) if i != source]
        if any((old < other) != (value < other) and old != other for other in others):
            return True
        if not self.chooses:
            return False
        before = [result.equation.result.value for result in self.results]
        return any(
            (before[i] < before[j]) != (results[i] < results[j])
            for i in range(len(results))
            for j in range(len(results))
        )

    def _new_value(self, place: _Place, source: int, value: Fraction, results: Sequence[Fraction]) -> Fraction | None:
        """The value that all origins of a place give it; None if they disagree."""
        values = set()
        for origin in place.origins:
            if origin.result is not None:
                values.add(results[origin.result])
            elif origin.source == source:
                values.add(origin.a * value + origin.b)
            else:
                values.add(place.value)
        return values.pop() if len(values) == 1 else None


def _trace(case: Case) -> _Trace | Reason:
    if case.steps is None and case.chain is None:
        return "no chain"
    segments = case.steps if case.steps is not None else tuple((case.chain or "").split("\n"))
    equations = [find_equations(segment) for segment in segments]
    if not any(equations):
        return "no equation"
    verdicts = [one.holds for line in equations for whole in line for one in (whole, whole.surface) if one]
    if not all(verdicts):
        return "false equation" if False in verdicts else "unchecked equation"
    text = "\n".join((case.question, *segments))
    ordinals = find_ordinals(text)
    sources = tuple(find_sources(case.question, ordinals))

    from_source: dict[Fraction, list[_Origin]] = defaultdict(list)
    for i, source in enumerate(sources):
        for a, b in source.readings:
            from_source[a * source.value + b].append(_Origin(source=i, a=a, b=b))
    for value in constants_of(text):
        from_source[value].append(_Origin())
    results: list[_Result] = []
    places: list[_Place] = []

    def origins(value: Fraction, known: int) -> tuple[_Origin, ...]:
        given = [_Origin(result=i) for i in range(known) if results[i].equation.result.value == value]
        return (*from_source.get(value, ()), *given)

    for i, (segment, found) in enumerate(zip(segments, equations, strict=True)):
        placed: set[int] = set()
        for equation in found:
            surface = equation.surface.operands if equation.surface else ()
            operands = [
                _Place(i, number.start, number.end, number.value, origins(number.value, len(results)))
                for number in (*equation.operands, *surface)
            ]
            if not all(place.origins for place in operands):
                return "untraced operand"
            bound = (_Origin(result=len(results)),)
            claims = [
                _Place(i, number.start, number.end, number.value, bound)
                for number in (equation.result, equation.copy)
                if number
            ]
            results.append(_Result(equation, tuple(operands[: len(equation.operands)])))
            for place in (*operands, *claims):
                if place.start not in placed:
                    places.append(place)
                    placed.update(range(place.start, place.end))
        for start, end, value in find_mentions(segment):
            if start not in placed:
                place = _Place(i, start, end, value, origins(value, len(results)))
                if not place.origins and not (segment[start].isalpha() and value <= 4):
                    return "untraced mention"
                places.append(place if place.origins else replace(place, origins=(_Origin(),)))
    answer = _answer(case.answer, results, len(segments))
    if answer is None:
        return "untraced answer"
    unread = frozenset(i for i, segment in enumerate(segments) if _unread_equality(segment, equations[i]))
    chooses = bool(_CHOICE.search(re.sub("<<[^<>]*>>", "", text)))
    return _Trace(case, segments, sources, tuple(results), tuple(places), answer, unread, chooses)


def _answer(answer: str, results: Sequence[_Result], segment: int) -> _Place | None:
    """The answer's place: it comes from the last equation if that gives it, else from every one that does."""
    numbers = find_numbers(answer)
    if len(numbers) != 1 or re.search(r"[A-Za-z/-]", answer):
        return None
    value = numbers[0].value
    giving = [i for i, result in enumerate(results) if result.equation.result.value == value]
    if giving and giving[-1] == len(results) - 1:
        giving = giving[-1:]
    origins = tuple(_Origin(result=i) for i in giving)
    return _Place(segment, numbers[0].start, numbers[0].end, value, origins) if giving else None


def _unread_equality(segment: str, equations: Sequence[Equation]) -> bool:
    """Whether an equals sign of a step stands in no equation and is more than a label's ("Total cost = 5 * 4 = 20")."""
    spans = [(one.start, one.end) for whole in equations for one in (whole, whole.surface) if one]
    for match in re.finditer("=", segment):
        if not any(start <= match.start() < end for start, end in spans):
            since = max((end for _, end in spans if end <= match.start()), default=0)
            if not re.fullmatch(r"[^\d+*/()=]*[A-Za-z]{2,}['’\s]*", segment[since : match.start()]):
                return True
    return False


def _exact(result: _Result) -> tuple[bool, ...]:
    """Whether the equation, and its surface where it has one, are exact: rounding would hide a result that is not."""
    return tuple(one.exact for one in (result.equation, result.equation.surface) if one)


def _assign(prompt: Prompt, seed: int, tiers: Sequence[Tier], others: OtherPrompts | None) -> PartneredPrompt:
    if prompt.partner is not None and 1 in tiers:
        return PartneredPrompt(prompt, 1)
    if not prompt.case.asked.answerable:
        return PartneredPrompt(replace(prompt, partner=None), None, "unanswerable")
    reason: Reason | None = None
    if 2 in tiers:
        found = propagate(prompt, seed)
        if isinstance(found, Partner):
            return PartneredPrompt(replace(prompt, partner=found.case), 2)
        reason = found.reason
    if others is not None:
        other = others.draw(prompt, seed)
        if other is not None:
            return PartneredPrompt(replace(prompt, partner=other.case), 3, reason)
    return PartneredPrompt(
        replace(prompt, partner=None), None, reason if others is None else reason or "no other prompt"
    )


class OtherPrompts:
    """All prompts by the length of their chains, from which another one's case is drawn."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._by_length: dict[int, list[Prompt]] = defaultdict(list)
        for prompt in (each for each in prompts if each.case.asked.answerable):
            self._by_length[_length(prompt.case)].append(prompt)

    def draw(self, prompt: Prompt, seed: int) -> Prompt | None:
        """A prompt with another question and answer, its chain as nearly as long as can be; None if there is none."""
        rng = random.Random(f"{seed}:{prompt.id}:other")
        length = _length(prompt.case)
        with_chain = [other for other in self._by_length if (other < 0) == (length < 0)]
        for near in sorted(with_chain, key=lambda other: (abs(other - length), other)):
            fitting = [
                other
                for other in self._by_length[near]
                if other.id != prompt.id
                and other.case.question != prompt.case.question
                and not same_answer(other.case.answer, prompt.case.answer)
                and (not prompt.options or other.case.answer in prompt.options)
            ]
            if fitting:
                return rng.choice(fitting)
        return None


def _length(case: Case) -> int:
    """The number of steps: of lines, in a chain that is not split; -1 without a chain."""
    if case.steps is not None:
        return len(case.steps)
    return -1 if case.chain is None else sum(bool(line.strip()) for line in case.chain.split("\n"))
