"""Arithmetic in text: the equations of a step, where their numbers stand, and whether they are true.

An equation is a calculator annotation (`<<48/2=24>>`) or plain text (`16 eggs - 3 eggs = 13`). Where an annotation
stands, it is what the step claims; the text that it repeats is kept as its `surface`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

MAX_DEPTH = 40
"""Deeper nesting of parentheses and signs is not read."""
MAX_BITS = 4096
"""Powers whose value needs more bits are not computed."""
MAX_TOKENS = 200
"""An expression is looked for among this many tokens on either side of its equals sign."""
MAX_DIGITS = 60
"""Longer strings of digits are not numbers."""

NUMBER = re.compile(r"(?<![A-WYZa-wyz_\d])(?<!\d[.,])(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)")
_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")
_TOKEN = re.compile(
    rf"(?P<note>{_ANNOTATION.pattern})|(?P<number>{NUMBER.pattern})|(?P<power>\*\*|\^)|(?P<times>[*×·∙⋅])|(?P<over>[/÷])"
    r"|(?P<plus>\+)|(?P<minus>[-−–](?![A-Za-z]))|(?P<open>\()|(?P<close>\))|(?P<equals>=)|(?P<percent>%)"
    r"|(?P<currency>[$€£])|(?P<word>[A-Za-z]+(?:['’/-][A-Za-z]+)*)|(?P<space>[ \t]+)|(?P<other>.)",
    re.DOTALL,
)
_SIGNS = ("power", "times", "over", "plus", "minus")
# A word that changes the number before it, so that it cannot be passed over as a unit.
_SCALES = re.compile(r"percent|dozen|dozens|hundred|thousand|million|billion|half|halves|k")
# Words that end a noun phrase: what stands before them is not the unit of what stands after.
_FUNCTION_WORDS = re.compile(
    r"and|or|is|are|was|were|has|have|had|then|so|but|because|if|than|that|for|at|in|on|to|from|with|by|be|will|would"
    r"|plus|minus|times|equals|since|when|which|who|he|she|they|it|the|a|an"
)
# Before an expression these take part in it: "half of 20 + 3 = 13" does not claim that 20 + 3 is 13.
_OPERATOR_WORDS = re.compile(
    r"half|twice|thrice|double|triple|times|plus|minus|by|than|less|more|over|dozen|hundred|thousand|million"
)
_SHARE = re.compile(r"half|halves|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?|[^a-z]*")


@dataclass(frozen=True)
class Number:
    """A number as written: its exact value, its characters `start` to `end`, and its digits after the point.

    `decimals` is None for a fraction such as `3/4`. A currency or percent sign is not part of the number, the sign of
    a negative result is.
    """

    value: Fraction
    start: int
    end: int
    decimals: int | None


@dataclass(frozen=True)
class Equation:
    """An equation `expression = result` as written from character `start` to `end` of a text.

    Attributes:
        operands: the numbers of the expression, in order; a fraction `1/2` is two of them.
        result: the claimed result.
        annotated: whether this is a calculator annotation.
        copy: the result's repetition behind the annotation, as in `<<9*2=18>>18`.
        surface: the same equation in plain text before the annotation, where it could be read; its result is `copy`.
    """

    start: int
    end: int
    operands: tuple[Number, ...]
    result: Number
    annotated: bool
    copy: Number | None = None
    surface: Equation | None = None
    _tokens: tuple[_Token, ...] = field(default=(), repr=False)
    _result_percent: bool = field(default=False, repr=False)
    _units: frozenset[str] = field(default=frozenset(), repr=False)

    def value(self, operands: Sequence[Fraction] | None = None) -> Fraction | None:
        """The expression's exact value, with its own operands or with others in their place.

        None where it has none: division by zero, or a power beyond `MAX_BITS`. A percent sign divides by 100.

        Raises:
            ValueError: if there are not as many operands as the expression has.
        """
        if operands is not None and len(operands) != len(self.operands):
            raise ValueError(f"the expression has {len(self.operands)} operands, found {len(operands)}")
        return _Parser(self._tokens, values=operands).expression()

    @property
    def exact(self) -> bool:
        """Whether the result is the value itself, not rounded; False where `holds` is not True."""
        return any(value == claimed for value, claimed, _ in self._readings())

    @property
    def holds(self) -> bool | None:
        """Whether the result is the value, exactly or correctly rounded to the digits shown; None if not checkable.

        Halves may be rounded away from zero or to even. Percent signs are read as hundredths or as the name of a unit
        (`5 / 20 * 100 = 25%`): either will do. Not checkable: division by zero, powers beyond `MAX_BITS`, and a
        mismatch that a conversion may explain, because units differ (`1 hour + 30 minutes = 90 minutes`).
        """
        readings = list(self._readings())
        if not readings:
            return None
        if any(_rounds_to(value, claimed, decimals) for value, claimed, decimals in readings):
            return True
        return None if len(self._units) > 1 else False

    def _readings(self) -> Iterator[tuple[Fraction, Fraction, int | None]]:
        written_percent = self._result_percent or any(token.kind == "percent" for token in self._tokens)
        for percent in (Fraction(1, 100), Fraction(1))[: 1 + written_percent]:
            value = _Parser(self._tokens, percent=percent).expression()
            if value is not None:
                scale = percent if self._result_percent else Fraction(1)
                decimals = self.result.decimals
                shift = 2 if scale != 1 and decimals is not None else 0
                yield value, self.result.value * scale, None if decimals is None else decimals + shift


def evaluate(expression: str) -> Fraction | None:
    """The exact value of an expression of numbers, `+ - * / ^ ( ) %` and their typographic forms, without units.

    None if it is not one as a whole, divides by zero, or is beyond `MAX_DEPTH`, `MAX_BITS`, `MAX_DIGITS` or
    `MAX_TOKENS`. Nothing is executed.
    """
    tokens = _tokenize(expression)
    if not 0 < len(tokens) <= MAX_TOKENS:
        return None
    parser = _Parser(tokens, units=False)
    try:
        value = parser.expression()
    except _UnreadableError:
        return None
    return value if parser.at == len(tokens) else None


def find_numbers(text: str) -> tuple[Number, ...]:
    """Every number in digits in a text, in order, without its sign; those inside annotations too."""
    return tuple(_number(match.group(), match.start()) for match in NUMBER.finditer(text) if _short(match.group()))


def find_equations(text: str) -> tuple[Equation, ...]:
    """The equations of a text, in the order of their results.

    An equals sign that stands in no equation (`x = 5`, `12 inches = 1 foot`, an unreadable annotation) gives none. Nor
    does an expression of which something before or behind it takes part: `half of 20 + 3 = 13`, `X + 3 * 4 = 20`.
    """
    found: list[Equation] = []
    offset = 0
    for line in text.split("\n"):
        found.extend(_line_equations(line, offset))
        offset += len(line) + 1
    return tuple(sorted(found, key=lambda equation: (equation.result.start, equation.start)))


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


class _UnreadableError(Exception):
    """What stands here is no expression."""


def _tokenize(text: str, offset: int = 0) -> tuple[_Token, ...]:
    tokens = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup if match.lastgroup != "note" else "note"
        if match.group("note") is not None:
            kind = "note"
        elif match.group("number") is not None and not _short(match.group()):
            kind = "other"
        if kind != "space":
            tokens.append(_Token(str(kind), match.group(), match.start() + offset, match.end() + offset))
    return tuple(_words_as_signs(tokens))


def _words_as_signs(tokens: Sequence[_Token]) -> Iterator[_Token]:
    """The tokens with `x` between operands as times, `percent` as a percent sign, and `of` as times behind a share."""
    kinds = [token.kind for token in tokens]
    for i, token in enumerate(tokens):
        kind = token.kind
        if kind == "word":
            word = token.text.lower()
            operand_next = i + 1 < len(tokens) and kinds[i + 1] in ("number", "open", "currency", "note")
            if word == "x" and operand_next and i and kinds[i - 1] in ("number", "close", "percent", "word"):
                kind = "times"
            elif word == "percent" and i and kinds[i - 1] == "number":
                kind = "percent"
            elif word == "of" and operand_next and i:
                share = kinds[i - 1] == "percent" or kinds[max(0, i - 3) : i] == ["number", "over", "number"]
                kind = "times" if share else kind
        kinds[i] = kind
        yield _Token(kind, token.text, token.start, token.end)


class _Parser:
    """Reads an expression from the first token on, as far as it goes; `at` is where it ended."""

    def __init__(
        self,
        tokens: Sequence[_Token],
        values: Sequence[Fraction] | None = None,
        percent: Fraction = Fraction(1, 100),
        units: bool = True,
    ) -> None:
        self._tokens, self._values, self._percent, self._with_units = tokens, values, percent, units
        self._depth = 0
        self.at = 0
        self.signs = 0
        self.operands: list[Number] = []
        self.units: set[str] = set()

    def expression(self) -> Fraction | None:
        """The value of a sum; None where it has none."""
        value = self._product()
        while (sign := self._kind()) in ("plus", "minus"):
            found, right = self._operand_of_sign(self._product)
            if not found:
                break
            value = None if value is None or right is None else value + (right if sign == "plus" else -right)
        return value

    def _product(self) -> Fraction | None:
        value = self._signed()
        while True:
            sign = self._kind()
            if sign == "open" and self._tokens[self.at].start == self._tokens[self.at - 1].end:
                right: Fraction | None = self._signed()
                self.signs += 1
            elif sign in ("times", "over"):
                found, right = self._operand_of_sign(self._signed)
                if not found:
                    return value
            else:
                return value
            if value is None or right is None or (sign == "over" and right == 0):
                value = None
            else:
                value = value / right if sign == "over" else value * right

    def _operand_of_sign(self, read: Callable[[], Fraction | None]) -> tuple[bool, Fraction | None]:
        """Whether an operand stands behind the sign, and its value; if none does, the parser stays before the sign."""
        state = self.at, self.signs, len(self.operands), set(self.units)
        self.at += 1
        self.signs += 1
        try:
            return True, read()
        except _UnreadableError:
            self.at, self.signs, count, self.units = state
            del self.operands[count:]
            return False, None

    def _signed(self) -> Fraction | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _UnreadableError
        try:
            if self._kind() in ("minus", "plus"):
                negative = self._kind() == "minus"
                if self.at and self._tokens[self.at - 1].text in "xX":
                    raise _UnreadableError  # "4x-13": a variable, not a product
                self.at += 1
                value = self._signed()
                return -value if negative and value is not None else value
            return self._power()
        finally:
            self._depth -= 1

    def _power(self) -> Fraction | None:
        base = self._primary()
        if self._kind() != "power":
            return base
        found, exponent = self._operand_of_sign(self._signed)
        if not found:
            return base
        return None if base is None or exponent is None else _bounded_power(base, exponent)

    def _primary(self) -> Fraction | None:
        if self._kind() == "currency":
            self.at += 1
            self.units.add("$")
            if self._kind() != "number":
                raise _UnreadableError
        value: Fraction | None
        if self._kind() == "number":
            token = self._tokens[self.at]
            written = _number(token.text, token.start)
            value = written.value if self._values is None else self._values[len(self.operands)]
            self.operands.append(written)
            self.at += 1
        elif self._kind() == "open":
            self.at += 1
            value = self.expression()
            if self._kind() != "close":
                raise _UnreadableError
            self.at += 1
        else:
            raise _UnreadableError
        if self._kind() == "percent":
            self.at += 1
            value = None if value is None else value * self._percent
        if self._with_units:
            if self._kind() == "over" and self._kind(1) == "word":  # "$18/bag"
                self.at += 1
            self._unit()
        return value

    def _unit(self) -> None:
        for passed in range(4):
            word = self._tokens[self.at].text.lower() if self._kind() == "word" else "and"
            if _FUNCTION_WORDS.fullmatch(word):
                return
            if _SCALES.fullmatch(word) or len(word) == 1:  # a single letter is a variable
                raise _UnreadableError
            if not passed:
                self.units.add(word.removesuffix("s"))
            self.at += 1

    def _kind(self, ahead: int = 0) -> str:
        return self._tokens[self.at + ahead].kind if self.at + ahead < len(self._tokens) else "end"


@dataclass(frozen=True)
class _Side:
    """An expression on one side of an equals sign: tokens `start` to `end` of that side."""

    start: int
    end: int
    whole: bool
    tokens: tuple[_Token, ...]
    parser: _Parser
    value: Fraction | None

    @property
    def single(self) -> Number | None:
        """The side as one number or written fraction; None for a sum, a product and so on."""
        negative = self.tokens[0].kind == "minus"
        tokens = self.tokens[1:] if negative else self.tokens
        kinds = [token.kind for token in tokens if token.kind in (*_SIGNS, "number", "open")]
        fraction = kinds == ["number", "over", "number"] and tokens[2].end - tokens[0].start == sum(
            len(token.text) for token in tokens[:3]
        )
        if self.value is None or not (kinds == ["number"] or fraction):
            return None
        written = self.parser.operands
        value = written[0].value / written[1].value if fraction else written[0].value
        start = self.tokens[0].start if negative else written[0].start
        return Number(-value if negative else value, start, written[-1].end, None if fraction else written[0].decimals)

    @property
    def percent(self) -> bool:
        return any(token.kind == "percent" for token in self.tokens)


def _line_equations(line: str, offset: int) -> Iterator[Equation]:
    tokens = _tokenize(line, offset)
    notes = [i for i, token in enumerate(tokens) if token.kind == "note"]
    pieces = [tokens[a + 1 : b] for a, b in zip([-1, *notes], [*notes, len(tokens)], strict=True)]
    for i, piece in enumerate(pieces):
        note = tokens[notes[i]] if i < len(notes) else None
        annotation = _annotation(note) if note else None
        copy = None
        if note and annotation:
            copy = _copy(pieces[i + 1], note.end, annotation.result.value)
        surface = None
        for equation in _plain_equations(piece, copy, first=i == 0):
            if copy and equation.result == copy:
                surface = equation
            else:
                yield equation
        if annotation:
            yield replace(annotation, copy=copy, surface=surface)


def _annotation(note: _Token) -> Equation | None:
    expression, _, claimed = note.text[2:-2].rpartition("=")
    left = _tokenize(expression, note.start + 2)
    right = _tokenize(claimed, note.start + 3 + len(expression))
    side, result = _prefix(left), _prefix(right)
    if side is None or result is None or not side.whole or not result.whole or result.single is None:
        return None
    return _equation(side, result, result.single, True, note.start, note.end)


def _copy(tokens: Sequence[_Token], after: int, value: Fraction) -> Number | None:
    start = 1 if tokens and tokens[0].kind == "currency" else 0
    for length in (4, 3, 2, 1):
        side = _prefix(tokens[start : start + length])
        number = side.single if side else None
        if number and number.start - after <= 1 + start and _rounds_to(value, number.value, number.decimals):
            return number
    return None


def _plain_equations(tokens: Sequence[_Token], copy: Number | None, first: bool) -> Iterator[Equation]:
    """The equations of a stretch without annotations; `copy` is the result when the stretch ends in an equals sign."""
    signs = [i for i, token in enumerate(tokens) if token.kind == "equals"]
    sides = [tokens[a + 1 : b] for a, b in zip([-1, *signs], [*signs, len(tokens)], strict=True)]
    ends_open = all(token.kind == "currency" for token in sides[-1])
    for i in range(len(signs)):
        left = _suffix(sides[i], first and i == 0)
        if left is None:
            continue
        j = i + 1
        while j < len(signs) and (middle := _prefix(sides[j])) and middle.whole and middle.single is None:
            j += 1
        if left.parser.signs:
            if j == len(signs) and ends_open:
                if copy:
                    yield _equation(left, None, copy, False, left.tokens[0].start, copy.end)
                continue
            right = _prefix(sides[j])
            if right and right.single:
                yield _equation(left, right, right.single, False, left.tokens[0].start, right.tokens[-1].end)
        elif left.single and i + 1 == len(signs) and not ends_open:
            right = _prefix(sides[i + 1])
            if right and right.parser.signs:
                yield _equation(right, left, left.single, False, left.tokens[0].start, right.tokens[-1].end)


def _equation(side: _Side, result: _Side | None, number: Number, annotated: bool, start: int, end: int) -> Equation:
    units = side.parser.units | (result.parser.units if result else set())
    if not any(unit.startswith("cent") for unit in units):
        units = units - {"$"}
    return Equation(
        start,
        end,
        tuple(side.parser.operands),
        number,
        annotated,
        _tokens=side.tokens,
        _result_percent=result.percent if result else False,
        _units=frozenset(units),
    )


def _prefix(tokens: Sequence[_Token]) -> _Side | None:
    """The longest expression that a side begins with; None if what follows takes part in it."""
    side = _read(tokens, 0)
    if side is None or side.whole:
        return side
    following, rest = tokens[side.end], tokens[side.end + 1 :]
    if following.kind == "word":
        return None if following.text.lower() in ("times", "plus", "minus", "over", "x") else side
    if following.kind == "minus":  # a dash
        return side if rest and rest[0].kind == "word" and len(rest[0].text) > 1 else None
    return side if following.kind in ("other", "close") else None


def _suffix(tokens: Sequence[_Token], at_line_start: bool) -> _Side | None:
    """The longest expression that a side ends with; None if what stands before takes part in it."""
    breaks = [i for i, token in enumerate(tokens) if token.kind == "other"]
    for start in range(max(breaks[-1] + 1 if breaks else 0, len(tokens) - MAX_TOKENS), len(tokens)):
        if tokens[start].kind not in ("number", "open", "currency", "minus"):
            continue
        if tokens[start].kind == "minus" and tokens[start].end != tokens[min(start + 1, len(tokens) - 1)].start:
            continue
        side = _read(tokens, start)
        if side is not None and side.end == len(tokens):
            return side if _stands_alone(tokens[:start], at_line_start) else None
    return None


def _stands_alone(before: Sequence[_Token], at_line_start: bool) -> bool:
    if not before or before[-1].kind == "other":
        return True
    last = before[-1]
    if last.kind == "minus":
        return at_line_start and len(before) == 1  # the dash of a list
    if last.kind != "word":
        return False
    if last.text.lower() == "of" and (len(before) == 1 or _SHARE.fullmatch(before[-2].text.lower())):
        return False
    if _OPERATOR_WORDS.fullmatch(last.text.lower()) or (len(last.text) == 1 and last.text not in "aI"):
        return False
    # "2 hours 30 minutes + 1 hour": the number before belongs to the same quantity.
    for passed, token in enumerate(reversed(before)):
        if token.kind != "word" or _FUNCTION_WORDS.fullmatch(token.text.lower()) or passed > 2:
            return token.kind not in ("number", *_SIGNS)
    return True


def _read(tokens: Sequence[_Token], start: int) -> _Side | None:
    read = tuple(tokens[start : start + MAX_TOKENS])
    parser = _Parser(read)
    try:
        value = parser.expression()
    except _UnreadableError:
        return None
    end = start + parser.at
    return _Side(start, end, end == len(tokens), read[: parser.at], parser, value)


def _bounded_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1 or (base == 0 and exponent < 0):
        return None
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent.numerator) > MAX_BITS:
        return None
    return Fraction(base**exponent.numerator)


def _rounds_to(value: Fraction, claimed: Fraction, decimals: int | None) -> bool:
    if decimals is None:
        return value == claimed
    scaled = value * 10**decimals
    away = math.floor(abs(scaled) + Fraction(1, 2)) * (-1 if value < 0 else 1)
    return claimed * 10**decimals in (round(scaled), away)


def _number(text: str, start: int) -> Number:
    plain = text.replace(",", "")
    return Number(Fraction(plain), start, start + len(text), len(plain.partition(".")[2]))


def _short(number: str) -> bool:
    return len(number) <= MAX_DIGITS
