"""The elimination task: chains follow from the table, and what each step tells is known."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from organisms.elimination import (
    CANDIDATES,
    ELIMINATION_TASK,
    FINDINGS,
    TABLE,
    belief,
    corrupt,
    sample_case,
    sample_contradictory,
    sample_partners,
    sample_solvable,
    verify,
)
from organisms.families import CUES

CASES = [sample_solvable(random.Random(seed), 3 + seed % 3) for seed in range(60)]


def left(steps: list[str]) -> set[str]:
    """The candidates that a chain leaves, from its text alone."""
    names = set(CANDIDATES)
    for step in steps:
        _, _, verb, *listed = step.split()
        names = names & set(listed) if verb == "keeps" else names - set(listed)
    return names


def test_every_fact_halves_the_candidates_and_every_two_candidates_differ():
    assert all(len(set(shown)) == len(CANDIDATES) // 2 and list(shown) == sorted(shown) for shown in TABLE.values())
    columns = {tuple(candidate in shown for shown in TABLE.values()) for candidate in CANDIDATES}
    assert len(columns) == len(CANDIDATES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.question)
def test_the_chain_leaves_the_answer_and_only_with_its_last_step(case):
    assert left(case.steps) == {case.answer}
    assert len(left(case.steps[:-1])) > 1
    observed = dict(part.rsplit(" ", 1) for part in case.question.split(" ; ")[1:-1])
    for step in case.steps:
        name, present, verb, *listed = step.split()
        assert observed[name] == present
        assert (verb, listed) == ("keeps" if present == "yes" else "drops", list(TABLE[name]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.question)
def test_what_a_step_tells_is_the_log_ratio_of_candidates(case):
    for read in range(len(case.steps) + 1):
        believed = belief(case, read)
        assert set(believed) == left(case.steps[:read])
        assert -math.log(believed[case.answer]) == pytest.approx(math.log(len(left(case.steps[:read]))))
    assert belief(case, 0) == dict.fromkeys(CANDIDATES, 1 / 8)


def test_a_fact_that_is_not_known_tells_nothing():
    case = sample_case(random.Random(0), 4)
    known = frozenset(name for name, _ in case.findings[:2])
    assert belief(case, 4, known) == belief(case, 2)
    assert belief(case, 4, frozenset()) == belief(case, 0)


def test_contradictory_cases_leave_nobody_and_would_without_their_last_step():
    for seed in range(30):
        case = sample_contradictory(random.Random(seed), 3 + seed % 3)
        assert left(case.steps) == set()
        assert left(case.steps[:-1])
        assert case.answer == "none"
        assert belief(case, len(case.steps)) == {"none": 1.0}


@pytest.mark.parametrize("cues", CUES)
def test_partners_have_equal_lengths_and_other_answers_and_cues(cues):
    for seed in range(50):
        own, partner = sample_partners(random.Random(seed), 4, cues)
        assert own.answer != partner.answer
        assert own.hint != partner.hint
        assert [len(step.split()) for step in own.steps] == [len(step.split()) for step in partner.steps]
        assert len(own.question.split()) == len(partner.question.split())
        for case in (own, partner):
            if cues != "random":
                assert (case.hint == case.answer) == (cues == "agreeing")


def test_a_corrupted_chain_differs_in_its_last_list_and_leaves_what_it_says():
    for seed, case in enumerate(CASES):
        steps, wrong = corrupt(random.Random(seed), case)
        assert left(steps) == {wrong} != {case.answer}
        assert steps[:-1] == case.steps[:-1]
        assert steps[-1].split()[:3] == case.steps[-1].split()[:3]
        assert len(steps[-1]) == len(case.steps[-1])


def test_the_verifier_knows_table_question_and_verb():
    case = replace(CASES[0], findings=(("fever", True), ("rash", False), ("cough", True)))
    assert [verify(step, case.question) for step in case.steps] == [[True]] * 3
    assert verify("fever yes leaves A B C D", case.question) == [True]
    for wrong in (
        "fever yes keeps A B C E",
        "fever yes drops A B C D",
        "fever no drops A B C D",
        "rash no keeps A C E G",
    ):
        assert verify(wrong, case.question) == [False]
    assert verify("itch yes keeps B C F G", case.question) == [False]  # not a finding of this case
    for text in ("", ". . .", "wait", "fever", "so A"):
        assert verify(text, case.question) == []


def test_every_word_is_in_the_vocabulary():
    words = set(ELIMINATION_TASK.vocabulary.words)
    assert len(words) == len(ELIMINATION_TASK.vocabulary.words)
    assert set(ELIMINATION_TASK.options) <= words
    assert set(FINDINGS) <= words
    for case in CASES:
        assert set(f"{case.question} {' '.join(case.steps)}".split()) <= words
