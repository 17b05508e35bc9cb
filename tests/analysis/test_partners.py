from __future__ import annotations

import ast
import json
import operator
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.partners import (
    NoPartner,
    Partner,
    PartneredPrompt,
    assign_partners,
    change_number,
    propagate,
)
from analysis.prompts import Case, Prompt
from tests.conftest import DataFile

EGGS = Case(
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast and bakes with four. She sells the others for $2 "
    "per egg. How much does she make?",
    "18",
    (
        "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.",
        "She makes 9 * 2 = $<<9*2=18>>18 every day.",
    ),
)
HOUSE = Case(
    "Josh buys a house for $80,000 and puts in $50,000. This raised its value by 150%. How much profit did he make?",
    "70000",
    chain="House and repairs came out to 80,000+50,000=$<<80000+50000=130000>>130,000\n"
    "He raised the value by 80,000*1.5=<<80000*1.5=120000>>120,000\n"
    "So the house is worth 120,000+80,000=$<<120000+80000=200000>>200,000\n"
    "So he made 200,000-130,000=$<<200000-130000=70000>>70,000",
)
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
NUMBER_WORD = (
    r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    r"eighteen|nineteen|(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:-\w+)?)"
)


def oracle(expression: str) -> Fraction:
    """The expression's value by Python's own grammar."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        return Fraction(str(ast.get_source_segment(stripped, node)))

    stripped = re.sub(r"(?<![\d.])0+(?=\d)", "", expression)
    return value(ast.parse(stripped, mode="eval").body)


def chain_text(case: Case) -> str:
    return "\n".join(case.steps) if case.steps is not None else str(case.chain)


def without_numbers(text: str) -> str:
    return re.sub(rf"[\d.,]*\d|\b{NUMBER_WORD}\b", "#", text, flags=re.IGNORECASE)


def check_partner(case: Case, partner: Partner) -> None:
    """What every propagated partner must be, by the test's own reading of the texts."""
    new = partner.case
    for old_text, new_text in ((case.question, new.question), (chain_text(case), chain_text(new))):
        assert without_numbers(old_text) == without_numbers(new_text)
    before, after = case.question[: partner.start], case.question[partner.start + len(partner.old) :]
    assert case.question == before + partner.old + after
    assert new.question == before + partner.new + after
    assert partner.old != partner.new
    pattern = r"<<([^<>]*)=([^<>=]*)>>(?: ?\$?(-?[\d,]*\.?\d+(?:/\d+)?))?"
    old_claims, new_claims = re.findall(pattern, chain_text(case)), re.findall(pattern, chain_text(new))
    assert len(old_claims) == len(new_claims)
    for (old_left, old_right, _), (left, right, copy) in zip(old_claims, new_claims, strict=True):
        if (left, right) != (old_left, old_right):
            assert oracle(left) == oracle(right)
        if copy:
            assert oracle(copy.replace(",", "")) == oracle(right)
    assert Fraction(new.answer.replace(",", "")) != Fraction(case.answer.replace(",", ""))
    assert change_number(new, partner.start, value_of(partner.old)) == case


def value_of(written: str) -> Fraction:
    units = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    units += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
    tens = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    head, _, tail = written.lower().partition("-")
    if head in tens:
        return Fraction(20 + 10 * tens.index(head) + (units.index(tail) + 1 if tail else 0))
    return Fraction(units.index(head) + 1) if head in units else Fraction(written.replace(",", ""))


class Story:
    """A word problem whose arithmetic is known: `render` writes it for any values of its question's numbers."""

    def __init__(self, rng: random.Random, annotated: bool, split: bool) -> None:
        self.annotated, self.split = annotated, split
        colours = ["red", "blue", "green", "white", "black"]
        while True:
            self.values = rng.sample(range(13, 99), rng.randint(2, 4))
            self.colours = colours[: len(self.values)]
            self.plan = []
            for i in range(rng.randint(1, 4)):
                known = len(self.values) + i
                # Each step uses the one before, so that the answer depends on what is used at all.
                first = known - 1 if i else 0
                second = rng.choice([j for j in range(known) if j != first])
                self.plan.append((rng.choice("+-*"), first, second))
            numbers = self.numbers(self.values)
            if min(numbers) > 1 and len(set(numbers)) == len(numbers) and max(numbers) < 10**6:
                return

    def numbers(self, values: list[int]) -> list[int]:
        numbers = list(values)
        for sign, a, b in self.plan:
            numbers.append({"+": operator.add, "-": operator.sub, "*": operator.mul}[sign](numbers[a], numbers[b]))
        return numbers

    def own(self) -> Case:
        return self.render(self.values)

    def render(self, values: list[int]) -> Case:
        numbers = self.numbers(values)
        listed = ", ".join(f"{value} {colour}" for value, colour in zip(values, self.colours, strict=True))
        steps = []
        for i, (sign, a, b) in enumerate(self.plan, start=len(values)):
            expression, result = f"{numbers[a]} {sign} {numbers[b]}", numbers[i]
            claim = f"<<{expression.replace(' ', '')}={result}>>" if self.annotated else ""
            steps.append(f"From {numbers[a]} we come to {expression} = {claim}{result} marbles.")
        question = f"The box holds {listed} marbles. What does Ann count?"
        if self.split:
            return Case(question, str(numbers[-1]), tuple(steps))
        return Case(question, str(numbers[-1]), chain="\n".join(steps))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**9), st.booleans(), st.booleans())
def test_a_propagated_chain_is_the_chain_of_the_changed_problem(seed: int, annotated: bool, split: bool) -> None:
    story = Story(random.Random(seed), annotated, split)
    case = story.own()
    found = propagate(Prompt("story", case), seed)
    if isinstance(found, NoPartner):
        assert found.reason in ("no fitting value", "no number to change")
        return
    changed = [found.new if str(value) == found.old else value for value in story.values]
    assert found.case == story.render([int(value) for value in changed])
    check_partner(case, found)


def test_nearly_every_problem_whose_numbers_are_all_distinct_has_a_partner() -> None:
    found = [propagate(Prompt("s", Story(random.Random(i), True, True).own())) for i in range(60)]
    assert sum(isinstance(one, Partner) for one in found) >= 54


def test_a_number_is_changed_in_words_digits_annotations_and_answer() -> None:
    changed = change_number(EGGS, EGGS.question.index("four"), 5)
    assert changed == Case(
        EGGS.question.replace("four", "five"),
        "16",
        (
            "Janet sells 16 - 3 - 5 = <<16-3-5=8>>8 duck eggs a day.",
            "She makes 8 * 2 = $<<8*2=16>>16 every day.",
        ),
    )


def test_a_chain_in_one_text_keeps_its_commas_and_its_percentage() -> None:
    changed = change_number(HOUSE, HOUSE.question.index("50,000"), 55000)
    assert changed == Case(
        HOUSE.question.replace("50,000", "55,000"),
        "65000",
        chain="House and repairs came out to 80,000+55,000=$<<80000+55000=135000>>135,000\n"
        "He raised the value by 80,000*1.5=<<80000*1.5=120000>>120,000\n"
        "So the house is worth 120,000+80,000=$<<120000+80000=200000>>200,000\n"
        "So he made 200,000-135,000=$<<200000-135000=65000>>65,000",
    )


def test_a_percentage_is_found_as_its_hundredth() -> None:
    case = Case(
        "A ring costs $900 and 30% more to be made. What is paid?",
        "1170",
        ("900*.3=<<900*.3=270>>270", "So 900+270=<<900+270=1170>>1170 is paid."),
    )
    changed = change_number(case, case.question.index("30"), 40)
    assert isinstance(changed, Case)
    assert changed.steps == ("900*.4=<<900*.4=360>>360", "So 900+360=<<900+360=1260>>1260 is paid.")


@pytest.mark.parametrize("case", [EGGS, HOUSE])
def test_a_partner_depends_on_id_and_seed_alone_and_they_choose_different_ones(case: Case) -> None:
    first = [propagate(Prompt(f"p{i}", case), 3) for i in range(8)]
    assert first == [propagate(Prompt(f"p{i}", case), 3) for i in range(8)]
    partners = [one for one in first if isinstance(one, Partner)]
    assert len(partners) == 8
    assert len({one.case for one in partners}) > 2
    for one in partners:
        check_partner(case, one)


def case_of(question: str, *steps: str, answer: str) -> Case:
    return Case(question, answer, steps)


REFUSED = {
    "no chain": Case("What is 12 + 13?", "25"),
    "no equation": case_of("What is 12 and 13?", "It is 25.", answer="25"),
    "false equation": case_of("Ann has 12 pens and 13 caps. How many?", "12 + 13 = 26", answer="26"),
    "unchecked equation": case_of("Ann has 12 pens and 13 caps. How many?", "12 / (13 - 13) = 26", answer="26"),
    "untraced operand": case_of("Ann has 12 pens and gets more. How many?", "12 + 17 = 29", answer="29"),
    "untraced mention": case_of("Ann has 12 pens and 13 caps.", "With 77 in mind, 12 + 13 = 25", answer="25"),
    "untraced answer": case_of("Ann has 12 pens and 13 caps.", "12 + 13 = 25", answer="31"),
    "no number to change": case_of("On May 12 at 6:30, what is twice that day?", "12 * 2 = 24", answer="24"),
    # 12 twice, and which of them is meant makes a difference.
    "ambiguous source": case_of("Ann has 12 pens and Bob 12 caps.", "12 + 12 = 24", answer="24"),
    "unread equality": case_of("Ann has 12 pens.", "x - 12 = 12", "So 12 * 2 = 24 is both", answer="24"),
    # No other divisor of 37 is a number of two digits.
    "no fitting value": case_of("37 pens are put into 37 boxes, 1 each. How many?", "37 / 37 = 1", answer="1"),
}


@pytest.mark.parametrize("reason", [reason for reason in REFUSED if reason != "no fitting value"])
def test_what_cannot_be_changed_soundly_is_refused_with_its_reason(reason: str) -> None:
    assert propagate(Prompt("p", REFUSED[reason])) == NoPartner(reason)  # type: ignore[arg-type]


def test_a_number_that_may_be_a_source_or_a_result_is_ambiguous_only_where_it_matters() -> None:
    # The 20 of the last step is the question's or the first step's.
    case = case_of("Ann has 12 pens and 8 caps. Bob has 20 cups.", "12 + 8 = 20 things", "20 * 30% = 6", answer="6")
    case = replace(case, question=case.question + " Of these 30% go.")
    for number in ("12", "20", "8"):
        assert change_number(case, case.question.index(number), 10) == NoPartner("ambiguous source")
    changed = change_number(case, case.question.index("30"), 40)
    assert isinstance(changed, Case)
    assert changed.answer == "8"


@pytest.mark.parametrize(
    ("question", "steps", "answer", "number", "value"),
    [
        ("Ann has 12 pens and gives 8 away. How many are left?", ("12 - 8 = 4",), "4", "8", 15),  # below zero
        ("Ann has 12 pens and gives 8 away. How many are left?", ("12 - 8 = 4",), "4", "8", 12),  # nothing left
        ("24 pens go to 8 children. How many each?", ("24 / 8 = 3",), "3", "8", 9),  # 24 / 9 pens
        ("Ann runs 5 days a week, 12 miles each. How far?", ("5 * 12 = 60",), "60", "5", 8),  # 8 days a week
        ("60% of 20 pens are red. How many?", ("20 * .6 = 12",), "12", "60", 65),  # .65 where tenths are written
        ("An 80 foot rope and 12 more feet. How long?", ("80 + 12 = 92",), "92", "80", 70),  # "An 70 foot"
        ("From 10 pens on, 5 are free. Ann buys 12. What does she pay for?", ("12 - 5 = 7",), "7", "12", 9),
    ],
)
def test_values_that_leave_no_sensible_problem_are_refused(
    question: str, steps: tuple[str, ...], answer: str, number: str, value: int
) -> None:
    case = Case(question, answer, steps)
    assert isinstance(propagate(Prompt("p", case)), Partner)
    assert change_number(case, case.question.index(number), value) == NoPartner("no fitting value")


def test_a_choice_between_results_is_not_turned_over() -> None:
    case = case_of(
        "A pen costs $2 and a cap $5. Ann buys 30 pens or 10 caps, what is cheapest. What does she pay?",
        "30 * 2 = 60 for pens",
        "10 * 5 = 50 for caps",
        answer="50",
    )
    start = case.question.index("10")
    assert change_number(case, start, 14) == NoPartner("no fitting value")
    assert isinstance(change_number(case, start, 11), Case)


@pytest.mark.parametrize(
    "question",
    [
        "All three kids get 12 pens. How many?",
        "There are 3 kids: Al, Bo and Cy, with 12 pens each. How many?",
        "Ann sees 3 kids, the third being Cy, with 12 pens each. How many?",
        "3/4 of it on day 3 are 12 pens. How many?",
    ],
)
def test_counts_of_what_is_named_labels_and_fractions_are_not_changed(question: str) -> None:
    case = Case(question, "36", ("3 * 12 = 36",))
    assert isinstance(propagate(Prompt("p", case)), Partner)
    small = question.index("three" if "three" in question else "3")
    with pytest.raises(ValueError, match=f"character {small} "):
        change_number(case, small, 4)


def test_a_small_number_used_twice_may_be_a_count_and_a_larger_one_is_not() -> None:
    for small, reason in ((3, "ambiguous source"), (6, None)):
        once, twice = small * 12, small * small * 12
        case = case_of(
            f"Ann buys {small} pens for $12 each.",
            f"{small} * 12 = {once}",
            f"{once} * {small} = {twice}",
            answer=str(twice),
        )
        changed = change_number(case, case.question.index(str(small)), small + 1)
        assert changed == NoPartner("ambiguous source") if reason else isinstance(changed, Case)


def test_an_annotation_that_computes_nothing_is_not_trusted_with_a_change() -> None:
    case = case_of("Ann has 12 pens and gets 30.", "That makes <<12=12>>12 pens.", "12 + 30 = 42", answer="42")
    assert change_number(case, case.question.index("12"), 15) == NoPartner("unread equality")


def test_a_partner_stays_among_the_options() -> None:
    case = case_of("Ann has 12 pens and gets 13. How many?", "12 + 13 = 25", answer="25")
    for options in (("25", "24"), ("25", "28"), ("25", "27")):
        found = propagate(Prompt("p", case, options=options))
        assert isinstance(found, Partner)
        assert found.case.answer == options[1]
    assert propagate(Prompt("p", case, options=("25", "yes"))) == NoPartner("no fitting value")


def test_setting_a_number_that_is_not_there_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="character 1 "):
        change_number(EGGS, 1, 5)


def test_other_fields_of_a_case_survive() -> None:
    gapped = replace(EGGS, gaps=(" ", ""))
    changed = change_number(gapped, gapped.question.index("16"), 15)
    assert isinstance(changed, Case)
    assert changed.gaps == (" ", "")


def prompts_of_every_kind() -> list[Prompt]:
    given = Case("Given?", "1", ("1",))
    untraced = [
        # Some answers are the same.
        Prompt(f"n{i}", case_of(f"Odd question {i}?", *["It is so."] * (1 + i % 3), answer=str(i % 3 + i // 6)))
        for i in range(9)
    ]
    return [Prompt("given", EGGS, given), Prompt("eggs", EGGS), *untraced, Prompt("house", HOUSE)]


def test_tiers_are_tried_in_order_and_counted() -> None:
    prompts = prompts_of_every_kind()
    found = assign_partners(prompts, seed=1, tiers=(1, 2, 3))
    assert [one.prompt.id for one in found] == [prompt.id for prompt in prompts]
    assert Counter(one.tier for one in found) == {1: 1, 2: 2, 3: 9}
    assert found[0] == PartneredPrompt(prompts[0], 1)
    assert all(one.reason == "no equation" for one in found if one.tier == 3)
    assert all(replace(one.prompt, partner=p.partner) == p for one, p in zip(found, prompts, strict=True))
    assert found == assign_partners(prompts, seed=1, tiers=(3, 2, 1))

    without = assign_partners(prompts, seed=1)
    assert Counter(one.tier for one in without) == {1: 1, 2: 2, None: 9}
    assert all((one.prompt.partner is None) == (one.tier is None) for one in without)
    assert [one.tier for one in assign_partners(prompts, tiers=(2,))][:2] == [2, 2]


def test_another_prompt_is_never_the_same_and_has_a_chain_as_long_where_there_is_one() -> None:
    prompts = prompts_of_every_kind()
    drawn: Callable[[int], tuple[Case | None, ...]] = lambda seed: tuple(  # noqa: E731
        one.prompt.partner for one in assign_partners(prompts, seed, tiers=(3,))
    )
    for prompt, partner in zip(prompts, drawn(0), strict=True):
        assert partner is not None
        assert partner.question != prompt.case.question
        assert partner.answer != prompt.case.answer
        if prompt.id.startswith("n"):
            assert partner.steps is not None
            assert prompt.case.steps is not None
            assert len(partner.steps) == len(prompt.case.steps)
    assert drawn(0) == drawn(0)
    assert len({drawn(seed) for seed in range(4)}) > 1
    (alone,) = assign_partners([Prompt("a", EGGS)], tiers=(3,))
    assert alone == PartneredPrompt(Prompt("a", EGGS), None, "no other prompt")


def test_an_unknown_tier_is_refused() -> None:
    with pytest.raises(InputError, match="tiers"):
        assign_partners([Prompt("a", EGGS)], tiers=(1, 4))  # type: ignore[arg-type]


def test_gsm8k_partners_hold_by_an_independent_reading(gsm8k: list[Prompt]) -> None:
    sample = gsm8k[::5]
    partners = [(prompt, propagate(prompt, seed=5)) for prompt in sample]
    made = [(prompt.case, found) for prompt, found in partners if isinstance(found, Partner)]
    for case, partner in made:
        check_partner(case, partner)
    assert len(made) > 0.5 * len(sample)


@pytest.fixture(scope="module")
def gsm8k(data: DataFile) -> list[Prompt]:
    """The GSM8K test problems, where they are at hand."""
    path = data("gsm8k/test.jsonl")
    prompts = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        chain, answer = record["answer"].rsplit("\n#### ", 1)
        prompts.append(Prompt(str(i), Case(record["question"], answer.strip(), tuple(chain.split("\n")))))
    return prompts


@pytest.mark.parametrize(
    ("question", "equation", "answer"),
    [
        ("Tom keeps 8 spiders. How many legs have they?", "8 * 8 = 64 legs", "64"),
        ("The 6 cubes are painted. How many faces is that?", "They have 6 x 6 = <<6*6=36>>36 faces.", "36"),
    ],
)
def test_a_number_that_is_two_operands_of_an_equation_may_be_two_things(question, equation, answer) -> None:
    """7 spiders have 56 legs, and not 49."""
    assert isinstance(propagate(Prompt("p", case_of(question, equation, answer=answer))), NoPartner)
