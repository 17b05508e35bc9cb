from __future__ import annotations

import ast
import json
import operator
import re
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from analysis.arithmetic import Equation, evaluate, find_equations, find_numbers
from tests.conftest import DataFile

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def oracle(expression: str) -> Fraction:
    """The expression's value by Python's own grammar; literals are read from the source, so decimals stay exact."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand) if isinstance(node.op, ast.USub) else value(node.operand)
        return Fraction(str(ast.get_source_segment(stripped, node)))

    # Python reads a leading zero as an octal attempt, annotations do not.
    stripped = re.sub(r"(?<![\d.])0+(?=\d)", "", expression.strip())
    return value(ast.parse(stripped, mode="eval").body)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    """An expression in Python's notation."""
    kind = draw(st.integers(0, 5)) if depth else 0
    if kind <= 1:
        whole = draw(st.integers(0, 12000))
        decimals = draw(st.sampled_from(["", "", "5", "25", "50"]))
        return f"{whole}.{decimals}" if decimals else str(whole)
    left, right = draw(expressions(depth=depth - 1)), draw(expressions(depth=depth - 1))
    if kind == 5:
        return f"({left} - {right}) * {draw(st.integers(1, 9))}"
    return f"({left}) {'+-*/'[kind - 2]} ({right})" if kind == 4 else f"{left} {'+-*/'[kind - 2]} {right}"


@settings(max_examples=150, deadline=None)
@given(expressions(), st.booleans(), st.booleans(), st.booleans())
def test_any_notation_is_evaluated_as_python_evaluates_it(
    text: str, typographic: bool, commas: bool, spaces: bool
) -> None:
    try:
        expected: Fraction | None = oracle(text)
    except ZeroDivisionError:
        expected = None
    written = text
    if commas:
        written = re.sub(r"(?<![\d.])\d+", lambda match: f"{int(match.group()):,}", written)
    if typographic:
        written = written.replace("*", "×").replace("/", "÷").replace(" - ", " − ")
    if not spaces:
        written = written.replace(" ", "")
    assert evaluate(written) == expected


@settings(max_examples=100, deadline=None)
@given(expressions(), st.integers(-3, 3), st.sampled_from(["So he has {} marbles.", "{}", "Then: {}; fine"]))
def test_a_claimed_result_is_true_exactly_when_it_is_the_value_rounded(text: str, off: int, sentence: str) -> None:
    assume(re.search("[-+*/]", text))
    try:
        value = oracle(text)
    except ZeroDivisionError:
        return
    # Half a unit of the last digit is where rounding begins and ends; ties are tested below.
    claimed = (value * 100).__round__() + off
    assume(abs(abs(value * 100 - (value * 100).__round__()) - Fraction(1, 2)) > 0)
    assume(claimed > 0)
    whole, hundredths = divmod(claimed, 100)
    step = sentence.format(f"{text} = ${whole}.{hundredths:02}")
    (equation,) = find_equations(step)
    assert equation.holds is (off == 0)
    assert equation.exact is (Fraction(claimed, 100) == value)
    assert [step[n.start : n.end] for n in equation.operands] == re.findall(r"[\d.]+", text)
    assert step[equation.result.start : equation.result.end] == f"{whole}.{hundredths:02}"


@pytest.mark.parametrize(
    ("step", "operands", "result", "holds"),
    [
        ("16 eggs - 3 eggs = 13", "16 3", "13", True),
        ("16 eggs - 3 eggs = 14 eggs", "16 3", "14", False),
        ("$1,200 + $300.50 = $1,500.50", "1,200 300.50", "1,500.50", True),
        ("20% of 50 = 10", "20 50", "10", True),
        ("20 percent of $50 = $10", "20 50", "10", True),
        ("3/4 of 20 eggs = 15", "3 4 20", "15", True),
        ("20 / 80 = 25%", "20 80", "25", True),
        ("20 / 80 * 100 = 25%", "20 80 100", "25", True),
        ("20 / 80 = 26%", "20 80", "26", False),
        ("100% - 40% = 60% of", "100 40", "60", True),
        ("10/3=3.33", "10 3", "3.33", True),
        ("10/3=3.34", "10 3", "3.34", False),
        ("5/2 = 3", "5 2", "3", True),
        ("5/2 = 2", "5 2", "2", True),
        ("7/2 = 3", "7 2", "3", False),
        ("1 - 3/4 = 1/4 of the pupils", "1 3 4", "1/4", True),
        ("20 = 4*5", "4 5", "20", True),
        ("4(40)-13=147", "4 40 13", "147", True),
        ("5 x 4 = 20", "5 4", "20", True),
        ("So 5 – 8 = -3 degrees", "5 8", "-3", True),
        ("- 5 + 3 = 8", "5 3", "8", True),
        ("Total cost = 5*4 = 20", "5 4", "20", True),
        ("2^10 = 1024", "2 10", "1024", True),
        ("$18/bag x 17 bags = $306", "18 17", "306", True),
        ("a total of 5 + 5 = 10", "5 5", "10", True),
        # Not checkable: division by zero, a value beyond the bound, units that may be converted.
        ("10/0 = 5", "10 0", "5", None),
        ("9^9^9^9 = 3", "9 9 9 9", "3", None),
        ("0^(0-1) = 1", "0 0 1", "1", None),
        ("1 hour + 30 minutes = 90 minutes", "1 30", "90", None),
    ],
)
def test_equations_as_people_write_them(step: str, operands: str, result: str, holds: bool | None) -> None:
    (equation,) = find_equations(step)
    assert " ".join(step[n.start : n.end] for n in equation.operands) == operands
    assert step[equation.result.start : equation.result.end] == result
    assert equation.holds is holds


@pytest.mark.parametrize(
    "step",
    [
        "half of 20 + 3 = 13",
        "X + 3 * 4 = 20",
        "29 + X = 40",
        "x+4x-13=339",
        "4x-13 = 7",
        "12 inches = 1 foot",
        "3 dozen * 4 = 144",
        "2 hours 30 minutes + 1 hour = 3.5 hours",
        "1 for himself + 2 for friends = 4",
        "3 / 2 = 1 1/2",
        "5 - 1 = 20 * x",
        "there are 20 = and more",
        "<<x+3=5>>",
        "<<>>",
        "",
    ],
)
def test_what_takes_part_in_more_than_arithmetic_is_no_equation(step: str) -> None:
    assert find_equations(step) == ()


def test_an_annotation_is_what_the_step_claims_and_the_text_before_it_is_its_surface() -> None:
    step = "It costs 80,000*1.5=$<<80000*1.5=120000>>120,000 and 2+2=4."
    annotated, plain = find_equations(step)
    assert annotated.annotated
    assert step[annotated.start : annotated.end] == "<<80000*1.5=120000>>"
    assert annotated.copy is not None
    assert step[annotated.copy.start : annotated.copy.end] == "120,000"
    surface = annotated.surface
    assert surface is not None
    assert [step[n.start : n.end] for n in surface.operands] == ["80,000", "1.5"]
    assert surface.result == annotated.copy
    assert not plain.annotated
    assert step[plain.start : plain.end] == "2+2=4"


def test_a_copy_is_an_operand_of_what_follows_it() -> None:
    step = "5+5=<<5+5=10>>10*2=<<10*2=20>>20"
    first, second = find_equations(step)
    assert first.holds is second.holds is True
    assert second.surface is not None
    assert second.surface.operands[0] == first.copy


def test_other_operands_can_be_put_into_an_equation() -> None:
    (equation,) = find_equations("(5 + 3) * 2 = 16")
    assert equation.value() == 16
    assert equation.value([Fraction(1), Fraction(2), Fraction(10)]) == 30
    with pytest.raises(ValueError, match="3 operands"):
        equation.value([Fraction(1)])


@pytest.mark.parametrize(
    "hostile",
    [
        "(" * 5000 + "1" + ")" * 5000,
        "-" * 5000 + "1",
        "1" * 5000,
        "9**9**9**9**9",
        "(9**999)**(9**999)",
        "1+" * 5000 + "1",
        "__import__('os').getcwd()",
        "1 if 2 else 3",
        "1 +",
        "5 eggs",
        "",
    ],
)
def test_nothing_is_executed_and_nothing_escapes(hostile: str) -> None:
    assert evaluate(hostile) is None
    assert all(isinstance(equation, Equation) for equation in find_equations(f"{hostile} = 3"))
    assert all(isinstance(equation, Equation) for equation in find_equations(f"3 = {hostile}"))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789 +-*/^().,=%$x<>eggsofa\n", max_size=60))
def test_any_text_is_read_without_an_error_and_spans_are_its_own(text: str) -> None:
    numbers = {(number.start, number.end) for number in find_numbers(text)}
    for equation in find_equations(text):
        assert equation.holds in (True, False, None)
        assert all((number.start, number.end) in numbers for number in equation.operands)
        assert 0 <= equation.start < equation.end <= len(text)


def test_gsm8k_annotations_are_all_read_and_judged_as_python_judges_them(gsm8k: list[dict[str, str]]) -> None:
    count = 0
    for record in gsm8k:
        found = [equation for equation in find_equations(record["answer"]) if equation.annotated]
        written = re.findall(r"<<([^<>]*)=([^<>=]*)>>", record["answer"])
        assert len(found) == len(written)
        for equation, (expression, claimed) in zip(found, written, strict=True):
            value = oracle(expression)
            assert equation.value() == value
            tolerance = Fraction(1, 2 * 10 ** len(claimed.partition(".")[2]))
            true = abs(value - oracle(claimed)) <= (0 if "/" in claimed else tolerance)
            assert equation.holds is true
            count += 1
    assert count == sum(record["answer"].count("<<") for record in gsm8k) > 4000


@pytest.fixture(scope="module")
def gsm8k(data: DataFile) -> list[dict[str, str]]:
    """The GSM8K test problems, where they are at hand."""
    path = data("gsm8k/test.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
