"""Mistakes, held to Python's own arithmetic on GSM8K's solutions and to the organisms' own on their chains."""

from __future__ import annotations

import ast
import json
import operator
import random
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.edits import mistake
from analysis.edits.names import find_names
from analysis.verifiers import Arithmetic
from organisms.registers import WORDS, sample_problem

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
NOTE = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
NOTE_AND_COPY = re.compile(r"(<<[^<>]*=)([^<>=]*)(>>[ $]*)(-?[\d,./]*\d)?")


def anything(text: str) -> bool:
    return True


def oracle(expression: str) -> Fraction:
    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        return Fraction(str(ast.get_source_segment(stripped, node)))

    stripped = re.sub(r"(?<![\d.])0+(?=\d)", "", expression.replace(",", "").strip())
    return value(ast.parse(stripped, mode="eval").body)


def outcomes(step: str, context: str = "", accept=anything, draws: int = 300):
    """Every text and rule that some state of the generator gives."""
    found = [mistake(step, context, random.Random(seed), accept) for seed in range(draws)]
    return {(one.text, one.rule) for one in found if one is not None}


@pytest.mark.parametrize(
    ("step", "results"),
    [
        ("i b 2 * 3 = 6", "i b 2 * 3 = {}"),
        ("iv c 9 + 1 = 0", "iv c 9 + 1 = {}"),
        ("then ii a 8 - 9 = 9", "then ii a 8 - 9 = {}"),
        ("ii a 8 - 9 is 9", "ii a 8 - 9 is {}"),
    ],
)
def test_a_digit_becomes_another_digit_and_can_become_any_other(step: str, results: str) -> None:
    old = int(step.split()[-1])
    near = {text for text, _ in outcomes(step)}
    assert near == {results.format(d) for d in range(10) if d != old and abs(d - old) <= 3}
    for digit in set(range(10)) - {old}:
        only = results.format(digit)
        assert outcomes(step, accept=lambda text, only=only: text == only, draws=1) == {(only, "number")}


def test_on_the_organisms_every_mistake_is_one_known_word_and_false_modulo_ten() -> None:
    rng, verify = random.Random(0), Arithmetic(10)
    for _ in range(300):
        problem = sample_problem(rng, 5)
        for step in problem.steps:
            found = mistake(step, problem.question, rng, lambda text: set(text.split()) <= set(WORDS))
            assert found is not None
            assert found.rule == "number"
            assert found.text.split()[:-1] == step.split()[:-1]
            assert found.text.split()[-1] in set("0123456789") - {step.split()[-1]}
            assert verify(step, "") == [True]
            assert verify(found.text, "") == [False]


@pytest.mark.parametrize(
    ("step", "shape"),
    [
        ("He has 48/2 = <<48/2=24>>24 left.", r"He has 48/2 = <<48/2=(\d\d)>>\1 left\."),
        (
            "It is 80,000*1.5=$<<80000*1.5=120000>>120,000.",
            r"It is 80,000\*1\.5=\$<<80000\*1\.5=1(\d\d)(\d{3})>>1\1,\2\.",
        ),
        ("That is 7/2 = $<<7/2=3.50>>3.50", r"That is 7/2 = \$<<7/2=(\d\.[1-9]0)>>\1"),
        ("So 10/3 = <<10/3=3.333>>3.33 each", r"So 10/3 = <<10/3=(\d\.\d\d)3>>\1 each"),
        ("He ate 1 - 3/4 = 1/4 of it", r"He ate 1 - 3/4 = [2-9]/4 of it"),
        ("It went to 5 - 8 = -3 degrees", r"It went to 5 - 8 = -[1-9] degrees"),
        ("It went to 5 – 8 = −3 degrees", r"It went to 5 – 8 = −[1-9] degrees"),
        ("So 99 - 0 = 99", r"So 99 - 0 = 9\d"),
        ("1 + 0.05 = 1.05, as said in 2020", r"1 \+ 0\.05 = \d\.\d\d, as said in 2020"),
        ("20 = 4 * 5 eggs", r"\d\d = 4 \* 5 eggs"),
        ("5 * 2 + 3 = 10 + 3 = 13", r"5 \* 2 \+ 3 = 10 \+ 3 = 1\d"),
        ("Hence x = 12", r"Hence x = \d\d"),
        ("On the 3rd day they see twelve birds", r"On the 3rd day they see [a-z]+ birds"),
        ("3 teams of 1,200 people", r"3 teams of 1,\d{3} people"),
    ],
)
def test_a_result_keeps_its_written_form_and_changes_in_all_its_places(step: str, shape: str) -> None:
    found = outcomes(step)
    assert len(found) > 1
    for text, rule in found:
        assert rule == "number"
        assert text != step
        assert re.fullmatch(shape, text)


def test_no_article_stands_before_a_number_that_asks_for_the_other() -> None:
    assert outcomes("She needs an 8 km run") == set()


def test_no_wrong_step_is_put_right_and_no_rounding_passes_for_a_mistake() -> None:
    assert {text for text, _ in outcomes("3 + 4 = 8")} == {f"3 + 4 = {digit}" for digit in (5, 6, 9)}
    # Halves round both ways, so 2 and 3 are both true.
    assert {text for text, _ in outcomes("5 / 2 = 3")} == {f"5 / 2 = {digit}" for digit in (0, 1, 4, 5, 6)}


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 99999),
    st.integers(0, 99999),
    st.sampled_from("+-*"),
    st.sampled_from(["", ",", ".5"]),
    st.booleans(),
    st.integers(0, 9),
)
def test_a_changed_result_is_never_the_value(a: int, b: int, sign: str, form: str, annotated: bool, seed: int) -> None:
    left = f"{a}{form if form == '.5' else ''}"
    value = oracle(f"{left} {sign} {b}")
    digits = f"{abs(float(value)):,.1f}" if form == ".5" else f"{abs(int(value)):{form}}"
    result = ("-" if value < 0 else "") + digits
    step = f"So {left} {sign} {b} = " + (
        f"<<{left}{sign}{b}={result.replace(',', '')}>>{result}" if annotated else result
    )
    found = mistake(step, "", random.Random(seed), anything)
    assert found is not None
    assert found.rule == "number"
    new = re.findall(r"-?[\d,.]*\d", found.text)
    old = re.findall(r"-?[\d,.]*\d", step)
    changed = [i for i, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
    assert changed == list(range(len(old)))[-2 if annotated else -1 :]
    for i in changed:
        assert re.sub(r"\d", "0", new[i]) == re.sub(r"\d", "0", old[i])
        assert oracle(new[i]) != value
        assert abs(oracle(new[i]) - value) <= 50


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("x + y is z", {"x - y is z"}),
        ("It is a * b", {"It is a / b"}),
        ("Tom is older than Ann", {"Tom is younger than Ann"}),
        ("That makes an increase", {"That makes a decrease"}),
        ("Adding them gives more", {"Subtracting them gives more", "Adding them gives less"}),
        ("Well-known and/or loved - the best of miles/hour", set()),
        ("- a bullet", set()),
    ],
)
def test_an_operator_or_a_comparison_is_turned_round(step: str, expected: set[str]) -> None:
    assert {text for text, rule in outcomes(step) if rule == "operator"} == expected


def test_a_sign_changes_in_an_annotation_and_its_text_together() -> None:
    step = "He has 16 - 3 × 2 = <<16-3*2=10>>10 left"
    found = outcomes(step, accept=lambda text: text.endswith("=10>>10 left"), draws=20)
    assert found == {
        ("He has 16 + 3 × 2 = <<16+3*2=10>>10 left", "operator"),
        ("He has 16 - 3 ÷ 2 = <<16-3/2=10>>10 left", "operator"),
    }


def test_a_sign_that_leaves_the_equation_true_is_no_mistake() -> None:
    assert outcomes("so 7 * 1 = 7", accept=lambda text: text.endswith("= 7"), draws=20) == set()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("It is red", {"It is not red"}),
        ("It is not red", {"It is red"}),
        ("It isn't red", {"It is red"}),
        ("They don’t know", {"They do know"}),
        ("She can swim", {"She cannot swim"}),
        ("She cannot swim", {"She can swim"}),
        ("She can't swim", {"She can swim"}),
        ("They won't come", {"They will come"}),
        ("Was it red", {"Was not it red"}),
        ("Doesn't it", {"Does it"}),
        ("A can of the will", set()),
        ("This island hides a canister", set()),
        ("It is red and was blue", {"It is not red and was blue", "It is red and was not blue"}),
    ],
)
def test_not_is_put_in_or_taken_away(step: str, expected: set[str]) -> None:
    assert outcomes(step) == {(text, "negation") for text in expected}


@pytest.mark.parametrize(
    ("step", "context", "expected"),
    [
        ("Ann paid", "Then Ann met Bob.", {"Bob paid"}),
        ("Ann paid Ann's bill", "Then Ann met Bob.", {"Bob paid Bob's bill"}),
        ("Total paid by Ann", "Total sums. Then Ann met Bob.", {"Total paid by Bob"}),
        ("they paid Bob", "Anna said: She saw Bob.", set()),
        ("they met on Monday", "then Bob came on Friday", {"they met on Friday"}),
        ("then New York won", "when New York met Boston", {"then Boston won"}),
        ("then Bob paid", "when Annette saw Mr. Bobson", {"then Annette paid", "then Bobson paid", "then Mr paid"}),
        ("they sent the Post-it notes", "when Bob saw Ann", set()),
        ("then Bob paid", "Nobody else", set()),
    ],
)
def test_a_name_becomes_another_one_of_the_context(step: str, context: str, expected: set[str]) -> None:
    assert outcomes(step, context) == {(text, "entity") for text in expected}


def test_the_name_that_a_step_already_has_comes_last() -> None:
    found = outcomes("then Ann paid Bob", "when Ann met Bob and Cleo")
    assert found == {("then Cleo paid Bob", "entity"), ("then Ann paid Cleo", "entity")}
    refused = outcomes("then Ann paid Bob", "when Ann met Bob and Cleo", lambda text: "Cleo" not in text)
    assert refused == {("then Bob paid Bob", "entity"), ("then Ann paid Ann", "entity")}


def test_names_are_told_by_their_capitals_in_any_alphabet() -> None:
    assert [name.text for name in find_names("gave Zoë and Łukasz 三只 the DVDs", "")] == ["DVDs", "Zoë", "Łukasz"]


def test_refused_rules_give_way_to_the_next_in_their_order() -> None:
    step, context = "Tom is 3 years older than Ann", "why Tom met Ann and Cleo"
    words = {"number": "3", "operator": "older", "negation": "is years", "entity": "Ann"}
    kept: list[str] = []
    seen = []
    while found := mistake(step, context, random.Random(0), lambda text: all(word in text for word in kept)):
        seen.append(found.rule)
        kept.append({"number": " 3 ", "operator": "older", "negation": "is 3", "entity": "Tom"}[found.rule])
        if found.rule == "entity":
            break
    assert seen == list(words)
    assert mistake(step, context, random.Random(0), lambda text: False) is None


def test_the_same_state_gives_the_same_mistake_and_states_differ() -> None:
    step = "Tom has 16 - 3 = 13 eggs"
    first = [mistake(step, "", random.Random(seed), anything) for seed in range(20)]
    assert first == [mistake(step, "", random.Random(seed), anything) for seed in range(20)]
    assert len(set(first)) > 1


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789 +-*/=.,$%x<>()TomAnisot’'\n", max_size=50), st.integers(0, 3))
def test_any_text_gives_another_text_or_none(step: str, seed: int) -> None:
    found = mistake(step, "why Tom met Ann", random.Random(seed), anything)
    assert found is None or found.text != step


@pytest.fixture(scope="module")
def steps(data) -> list[tuple[str, str]]:
    """Every step of GSM8K's solutions with its question and chain."""
    lines = data("gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [
        (step, record["question"] + "\n" + record["answer"])
        for record in records
        for step in record["answer"].split("\n")[:-1]
        if step.strip()
    ]


def test_gsm8k_steps_nearly_all_get_a_mistake_and_it_is_false(steps: list[tuple[str, str]]) -> None:
    rules: Counter[str | None] = Counter()
    verify, undecided = Arithmetic(), 0
    for step, context in steps:
        found = mistake(step, context, random.Random(step), anything)
        rules[found.rule if found else None] += 1
        if found is None:
            continue
        assert found.text != step
        if found.rule == "number" and (before := verify(step, "")) and before[-1] is True:
            after = verify(found.text, "")
            assert after[-1] is not True
            undecided += False not in after
        notes, new_notes = NOTE.findall(step), NOTE.findall(found.text)
        if found.rule == "number" and notes and notes != new_notes:
            *rest, (left, right) = new_notes
            assert [*rest, left] == [*notes[:-1], notes[-1][0]]
            assert abs(oracle(left) - oracle(right)) > Fraction(1, 2 * 10 ** len(right.partition(".")[2]))
            # Nothing else changed, and what stands behind the annotation still repeats it.
            assert NOTE_AND_COPY.sub(r"\1#\3#", step) == NOTE_AND_COPY.sub(r"\1#\3#", found.text)
            for old, new in zip(NOTE_AND_COPY.findall(step), NOTE_AND_COPY.findall(found.text), strict=True):
                assert len(old[1]) == len(new[1])
                assert oracle(new[1]) - oracle(old[1]) == oracle(new[3]) - oracle(old[3])
    assert sum(rules.values()) == len(steps) > 4800
    # Seen: number 4,774, negation 7, entity 7, operator 6, none 25 ("Let x be the number of camels.").
    assert rules["number"] > 0.98 * len(steps)
    assert rules[None] < 0.01 * len(steps)
    # Where units differ a mismatch may be a conversion, which the verifier leaves open.
    assert undecided < 0.005 * len(steps)
