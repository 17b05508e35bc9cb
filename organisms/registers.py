"""The registers task: a chain of thought whose answer needs work on the chain.

A question sets registers, lists operations on them (arithmetic modulo 10) and asks for one register; the chain carries
the operations out one step each; the answer is the value that the asked register has after the last of them::

    question   hint 3 ; a 7 b 2 c 5 ; i b * 3 ; ii a + 8 ; iii c - 1 ; ask a
    chain      i b 2 * 3 = 6 ; ii a 7 + 8 = 5 ; iii c 5 - 1 = 4
    answer     5

Operations and steps are numbered: without, a small model loses its place in the program (seen: half of the fourth steps
of five took the wrong operation, while every result was right).

To answer from the chain a reader must find out which register is asked, and then which of the chain's results is that
register's last one: two hops, so what it needs is not there before the first attention layer has worked on the chain.
The *hint* is a cue that a shortcut could use. It says nothing in pretraining.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from organisms.families import Cues, Family
from organisms.vocabulary import Vocabulary

MODULUS = 10
REGISTERS = ("a", "b", "c")
OPERATORS = ("+", "-", "*")
NUMERALS = ("i", "ii", "iii", "iv", "v")
# Coprime to 10 and not 1: multiplying by them loses no value and changes most.
MULTIPLIERS = (3, 7, 9)

WORDS = (
    *("<pad>", "<bos>", "<eos>", "<unk>"),
    *(str(digit) for digit in range(MODULUS)),
    *OPERATORS,
    *("=", ";", ":", ".", ",", "(", ")", "?"),
    *REGISTERS,
    *NUMERALS,
    *("Q", "hint", "ask", "think", "answer", "so", "then", "step", "now", "is", "get", "note", "start"),
)


@dataclass(frozen=True)
class Operation:
    """One line of the program: `register operator operand`, modulo 10."""

    register: str
    operator: str
    operand: int

    def __str__(self) -> str:
        return f"{self.register} {self.operator} {self.operand}"

    def apply(self, value: int) -> int:
        """The register's value after this operation on `value`."""
        if self.operator == "+":
            return (value + self.operand) % MODULUS
        if self.operator == "-":
            return (value - self.operand) % MODULUS
        return (value * self.operand) % MODULUS


@dataclass(frozen=True)
class Problem:
    """One question of the registers task with its correct chain and answer."""

    start: tuple[int, ...]
    operations: tuple[Operation, ...]
    asked: str
    hint: int

    @property
    def question(self) -> str:
        """The question's text, without the wrapper of the trace format."""
        registers = " ".join(f"{name} {value}" for name, value in zip(REGISTERS, self.start, strict=True))
        program = " ; ".join(f"{n} {operation}" for n, operation in zip(NUMERALS, self.operations, strict=False))
        return f"hint {self.hint} ; {registers} ; {program} ; ask {self.asked}"

    def values(self) -> list[int]:
        """The result of each operation, in order."""
        state = dict(zip(REGISTERS, self.start, strict=True))
        results = []
        for operation in self.operations:
            state[operation.register] = operation.apply(state[operation.register])
            results.append(state[operation.register])
        return results

    @property
    def steps(self) -> list[str]:
        """The correct chain, one text a step."""
        state = dict(zip(REGISTERS, self.start, strict=True))
        steps = []
        for numeral, operation in zip(NUMERALS, self.operations, strict=False):
            before = state[operation.register]
            state[operation.register] = operation.apply(before)
            steps.append(
                f"{numeral} {operation.register} {before} {operation.operator} {operation.operand}"
                f" = {state[operation.register]}"
            )
        return steps

    @property
    def answer(self) -> int:
        """The asked register's value after the last operation."""
        return next(
            value
            for operation, value in zip(reversed(self.operations), reversed(self.values()), strict=True)
            if operation.register == self.asked
        )


def sample_problem(rng: random.Random, n_operations: int) -> Problem:
    """A random problem of `n_operations` operations with an uninformative hint; the asked register is updated."""
    registers = [rng.choice(REGISTERS) for _ in range(n_operations)]
    operators = [rng.choice(OPERATORS) for _ in range(n_operations)]
    return _fill(rng, registers, operators, asked=rng.choice(sorted(set(registers))))


def _fill(rng: random.Random, registers: list[str], operators: list[str], asked: str) -> Problem:
    operations = tuple(
        Operation(name, operator, rng.choice(MULTIPLIERS) if operator == "*" else rng.randint(1, 9))
        for name, operator in zip(registers, operators, strict=True)
    )
    start = tuple(rng.randrange(MODULUS) for _ in REGISTERS)
    return Problem(start, operations, asked, hint=rng.randrange(MODULUS))


def with_cue(rng: random.Random, problem: Problem, cues: Cues) -> Problem:
    """The same problem with a hint that agrees with the answer, conflicts with it, or is drawn at random."""
    if cues == "agreeing":
        return replace(problem, hint=problem.answer)
    if cues == "conflicting":
        return replace(problem, hint=(problem.answer + rng.randint(1, MODULUS - 1)) % MODULUS)
    return replace(problem, hint=rng.randrange(MODULUS))


def sample_partners(rng: random.Random, n_operations: int, cues: Cues) -> tuple[Problem, Problem]:
    """Two problems that differ in their numbers, hints and answers but not in their form.

    They ask for the same register, and update registers in the same order by the same operators, so every token of
    one stands at the position of its counterpart in the other.
    """
    problem = sample_problem(rng, n_operations)
    registers = [operation.register for operation in problem.operations]
    operators = [operation.operator for operation in problem.operations]
    while True:
        own = with_cue(rng, problem, cues)
        partner = with_cue(rng, _fill(rng, registers, operators, problem.asked), cues)
        if partner.answer != own.answer and partner.hint != own.hint:
            return own, partner


def corrupt(rng: random.Random, problem: Problem) -> tuple[list[str], str]:
    """The chain with a wrong last result for the asked register, and that result."""
    wrong = (problem.answer + rng.randint(1, MODULUS - 1)) % MODULUS
    return ending_in(problem, wrong), str(wrong)


def ending_in(problem: Problem, result: int) -> list[str]:
    """The chain, but with another last result for the asked register."""
    steps = list(problem.steps)
    at = max(i for i, operation in enumerate(problem.operations) if operation.register == problem.asked)
    steps[at] = f"{steps[at].rsplit(' ', 1)[0]} {result}"
    return steps


REGISTERS_TASK = Family(
    "registers",
    "arithmetic on registers, one operation a step; the answer is the asked register's last value",
    Vocabulary(WORDS),
    tuple(str(value) for value in range(MODULUS)),
    len(NUMERALS),
    sample_problem,
    sample_partners,
    with_cue,
    corrupt,
    meta=lambda problem: {"asked": problem.asked},
)
