"""The shipped prompt sets: which they are, and how each is made; the same seed gives the same prompts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from organisms.elimination import ELIMINATION_TASK, Case, sample_contradictory
from organisms.families import CUES, Family
from organisms.registers import MODULUS, MULTIPLIERS, OPERATORS, REGISTERS_TASK, Problem
from organisms.registers_recipes import memorised_pairs

Records = list[dict[str, object]]


def _memorised(n: int, seed: int) -> Records:
    """The memoriser's own questions, each with the same question under a changed rule; at most as many as it has."""
    rng = random.Random(f"memorised-{seed}")
    return [
        {**REGISTERS_TASK.record(f"memorised-{index:04d}", own, partner), "shifted": _shifted(rng, own)}
        for index, (own, partner) in enumerate(memorised_pairs()[:n])
    ]


def _registers_costs(n: int, seed: int) -> Records:
    """Agreeing cues; each with a changed rule, and with parts of the question."""
    rng = random.Random(f"registers-costs-{seed}")
    records = []
    for index in range(n):
        own, partner = REGISTERS_TASK.partners(rng, rng.randint(3, 5), "agreeing")
        parts = {"cue": f"hint {own.hint}", "options": f"ask {own.asked}"}
        record = REGISTERS_TASK.record(f"costs-{index:04d}", own, partner)
        records.append({**record, "shifted": _shifted(rng, own), "partial": parts})
    return records


def _shifted(rng: random.Random, problem: Problem) -> dict[str, object]:
    """The problem with another operation in the place of one on the asked register, so that its answer changes."""
    places = [i for i, operation in enumerate(problem.operations) if operation.register == problem.asked]
    while True:
        at = rng.choice(places)
        operator = rng.choice(OPERATORS)
        operand = rng.choice(MULTIPLIERS) if operator == "*" else rng.randint(1, MODULUS - 1)
        operations = list(problem.operations)
        operations[at] = replace(operations[at], operator=operator, operand=operand)
        changed = replace(problem, operations=tuple(operations))
        if changed.answer != problem.answer:
            return {"question": changed.question, "steps": changed.steps, "answer": str(changed.answer)}


def _elimination_costs(n: int, seed: int) -> Records:
    """Agreeing cues and parts of the question; every third case contradicts itself, and has no answer."""
    rng = random.Random(f"elimination-costs-{seed}")
    records: Records = []
    for index in range(n):
        n_findings = rng.randint(3, 5)
        identifier = f"costs-{index:04d}"
        if index % 3 == 2:
            records.append(_unanswerable(identifier, sample_contradictory(rng, n_findings)))
            continue
        own, partner = ELIMINATION_TASK.partners(rng, n_findings, "agreeing")
        parts = {"cue": f"hint {own.hint}", "options": "which"}
        record = ELIMINATION_TASK.record(identifier, own, partner)
        records.append({**record, "partial": parts, "abstain": ["none"]})
    return records


def _unanswerable(identifier: str, case: Case) -> dict[str, object]:
    return {
        "id": identifier,
        "question": case.question,
        "steps": case.steps,
        "options": list(ELIMINATION_TASK.options),
        "answerable": False,
        "abstain": ["none"],
        "meta": {"hint": case.hint},
    }


def _of_family(family: Family[Any], cues: Any, n: int, seed: int) -> Records:
    return family.prompts(n, cues, seed)


PROMPT_SETS: dict[str, Callable[[int, int], Records]] = {
    **{cues: partial(_of_family, REGISTERS_TASK, cues) for cues in CUES},
    "memorised": _memorised,
    "costs": _registers_costs,
    "elimination_agreeing": partial(_of_family, ELIMINATION_TASK, "agreeing"),
    "elimination_random": partial(_of_family, ELIMINATION_TASK, "random"),
    "elimination_conflicting": partial(_of_family, ELIMINATION_TASK, "conflicting"),
    "elimination_costs": _elimination_costs,
}
"""Name → `(n, seed)` → prompt records. The cues of `agreeing`, `random`, `conflicting` and `costs` are those of the
registers task."""
SHIPPED_PROMPTS = 200
