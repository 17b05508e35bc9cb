"""The registers task: its chains are right, and its partners differ only where they should."""

from __future__ import annotations

import random
import re

import pytest

from organisms.families import CUES
from organisms.registers import REGISTERS_TASK, sample_partners, sample_problem

PROBLEMS = [sample_problem(random.Random(seed), 1 + seed % 5) for seed in range(200)]


def run(question: str) -> dict[str, int]:
    """The registers after the program, from the question's text alone."""
    _, registers, *program, asked = question.split(" ; ")
    words = registers.split()
    state = {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    for line in program:
        _, name, operator, operand = line.split()
        state[name] = eval(f"({state[name]} {operator} {operand}) % 10", {})
    return {**state, "asked": state[asked.removeprefix("ask ")]}


@pytest.mark.parametrize("problem", PROBLEMS[:40], ids=lambda p: p.question)
def test_answer_and_chain_agree_with_the_program_run_from_its_text(problem):
    assert problem.answer == run(problem.question)["asked"]
    state = {}
    for step, operation in zip(problem.steps, problem.operations, strict=True):
        _, name, before, operator, operand, _, after = step.split()
        assert int(after) == eval(f"({before} {operator} {operand}) % 10", {})
        assert (name, operator, int(operand)) == (operation.register, operation.operator, operation.operand)
        assert int(before) == state.get(name, int(before))
        state[name] = int(after)
    assert state[problem.asked] == problem.answer


def test_every_word_is_in_the_vocabulary():
    words = {word for problem in PROBLEMS for word in f"{problem.question} {' '.join(problem.steps)}".split()}
    assert words <= set(REGISTERS_TASK.vocabulary.words)
    assert len(set(REGISTERS_TASK.vocabulary.words)) == len(REGISTERS_TASK.vocabulary.words)


@pytest.mark.parametrize("cues", CUES)
def test_partners_differ_in_numbers_only_and_in_answer_and_cue(cues):
    for seed in range(50):
        own, partner = sample_partners(random.Random(seed), 4, cues)
        assert own.answer != partner.answer
        assert own.hint != partner.hint

        def shape(problem):
            return re.sub(r"\d", "#", problem.question + " | ".join(problem.steps))

        assert shape(own) == shape(partner)
        for problem in (own, partner):
            if cues != "random":
                assert (problem.hint == problem.answer) == (cues == "agreeing")
