"""The elimination task: facts rule out candidates, step by step, so what each step tells is known in closed form.

A case has findings, present or not; the table of facts says which candidates show each finding. Each step of the chain
draws what follows from one finding; the answer is the candidate that no step has ruled out::

    question   hint D ; fever yes ; rash no ; cough yes ; which
    chain      fever yes keeps A B C D ; rash no drops A C E G ; cough yes keeps B F G H
    answer     B

A reader who believes the steps that it has read, and nothing else, gives every candidate left the same probability. So
before the chain the answer is worth `ln 8` nats, and a step that leaves `m` of `n` candidates tells exactly `ln(n/m)`.
The base is trained to be that reader: its chains stop anywhere, some are of another case or say what is not in the
table, and its target is the candidates that they leave. Where the
findings contradict each other no candidate is left, and the answer is `none`.

To read the answer from the chain a candidate's mention must first be told from the step's verb (`keeps` or `drops`),
and then all mentions be counted: two hops, as in the registers task. The question alone determines the answer, too, for
a model that holds the table; the base has never had a reason to look. The *hint* says nothing in pretraining.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from organisms.families import Cues, Family
from organisms.vocabulary import Vocabulary

CANDIDATES = ("A", "B", "C", "D", "E", "F", "G", "H")
NONE = "none"
TABLE: dict[str, str] = {
    "fever": "ABCD",
    "rash": "ACEG",
    "cough": "ABEF",
    "pain": "ADEH",
    "chills": "ABGH",
    "ache": "ACFH",
    "nausea": "ADFG",
    "cramp": "ABCE",
    "itch": "BCFG",
    "thirst": "BDEG",
}
"""Finding → the candidates that show it: half of them each, so that each finding present or absent leaves as many."""
FINDINGS = tuple(TABLE)
MAX_FINDINGS = 5

WORDS = (
    *("<pad>", "<bos>", "<eos>", "<unk>"),
    *CANDIDATES,
    NONE,
    *FINDINGS,
    *("yes", "no", "keeps", "drops", "leaves", "excludes"),
    *("=", ";", ":", ".", ",", "(", ")", "?"),
    *("Q", "hint", "which", "think", "answer", "so", "then", "step", "now", "is", "note", "wait"),
)


@dataclass(frozen=True)
class Case:
    """One question of the elimination task with its correct chain and answer.

    Attributes:
        findings: each with whether it is present, in the order of question and chain.
        hint: the candidate that the cue names.
        shown_by: the candidates that show each finding, as its chain says; None for the table's.
    """

    findings: tuple[tuple[str, bool], ...]
    hint: str
    shown_by: tuple[str, ...] | None = None

    @property
    def facts(self) -> tuple[str, ...]:
        """The candidates that show each finding."""
        return self.shown_by or tuple(TABLE[name] for name, _ in self.findings)

    @property
    def question(self) -> str:
        """The question's text, without the wrapper of the trace format."""
        findings = " ; ".join(f"{name} {'yes' if present else 'no'}" for name, present in self.findings)
        return f"hint {self.hint} ; {findings} ; which"

    @property
    def steps(self) -> list[str]:
        """The chain, one text a step; it is correct but for facts that are not the table's."""
        return [step(name, present, shown) for (name, present), shown in zip(self.findings, self.facts, strict=True)]

    @property
    def answer(self) -> str:
        """The candidate left after all findings; `none` if there is none left, the first in order if more are."""
        return (self.left() or [NONE])[0]

    def left(self, n_steps: int | None = None, known: frozenset[str] = frozenset(FINDINGS)) -> list[str]:
        """The candidates left after the first so many steps (all by default), of which the `known` are believed."""
        believed = [
            (shown, present)
            for (name, present), shown in list(zip(self.findings, self.facts, strict=True))[:n_steps]
            if name in known
        ]
        return [
            candidate for candidate in CANDIDATES if all((candidate in shown) == present for shown, present in believed)
        ]


def step(finding: str, present: bool, shown_by: str) -> str:
    """The step that draws what follows from a finding, if these candidates show it."""
    return f"{finding} {'yes keeps' if present else 'no drops'} {' '.join(shown_by)}"


def belief(case: Case, n_steps: int, known: frozenset[str] = frozenset(FINDINGS)) -> dict[str, float]:
    """What a reader believes who has read so many steps, and trusts those about `known` findings alone."""
    left = case.left(n_steps, known) or [NONE]
    return {candidate: 1 / len(left) for candidate in left}


def sample_case(rng: random.Random, n_findings: int) -> Case:
    """A random case that shows what one candidate shows; fewer than three findings leave more than that one."""
    names = rng.sample(FINDINGS, n_findings)
    true = rng.choice(CANDIDATES)
    return Case(tuple((name, true in TABLE[name]) for name in names), rng.choice(CANDIDATES))


def sample_contradictory(rng: random.Random, n_findings: int) -> Case:
    """A random case of three findings or more that leaves no candidate, but would without its last finding."""
    while True:
        names = rng.sample(FINDINGS, n_findings)
        case = Case(tuple((name, rng.random() < 0.5) for name in names), rng.choice(CANDIDATES))
        if case.left(n_findings - 1) and not case.left():
            return case


def sample_solvable(rng: random.Random, n_findings: int) -> Case:
    """A random case of three findings or more that leaves one candidate, and more without its last finding."""
    while True:
        case = sample_case(rng, n_findings)
        if len(case.left()) == 1 < len(case.left(n_findings - 1)):
            return case


def with_cue(rng: random.Random, case: Case, cues: Cues) -> Case:
    """The same case with a hint that agrees with the answer, conflicts with it, or is drawn at random."""
    if cues == "agreeing":
        return replace(case, hint=case.answer)
    if cues == "conflicting":
        return replace(case, hint=rng.choice([name for name in CANDIDATES if name != case.answer]))
    return replace(case, hint=rng.choice(CANDIDATES))


def sample_partners(rng: random.Random, n_findings: int, cues: Cues) -> tuple[Case, Case]:
    """Two solvable cases of as many findings, with other answers and other hints."""
    while True:
        own = with_cue(rng, sample_solvable(rng, n_findings), cues)
        partner = with_cue(rng, sample_solvable(rng, n_findings), cues)
        if partner.answer != own.answer and partner.hint != own.hint:
            return own, partner


def corrupt(rng: random.Random, case: Case) -> tuple[list[str], str]:
    """The chain of a solvable case with a mistake in the last step, and the answer that follows from it.

    Of the candidates that the last step rules out, one changes places with the answer in its list.
    """
    wrong = rng.choice([candidate for candidate in case.left(len(case.findings) - 1) if candidate != case.answer])
    exchanged = {case.answer: wrong, wrong: case.answer}
    mistaken = "".join(sorted(exchanged.get(candidate, candidate) for candidate in case.facts[-1]))
    changed = replace(case, shown_by=(*case.facts[:-1], mistaken))
    return changed.steps, wrong


def verify(text: str, question: str) -> list[bool | None]:
    """A verifier of steps (`--verifier organisms.elimination:verify`): whether each says what the table says.

    A step has one claim: that the case shows its finding or does not, and which candidates that keeps or drops. A
    surface form of the sham organism (`leaves`, `excludes`) says the same. Other texts claim nothing.
    """
    name, *rest = text.split() or [""]
    if name not in TABLE or len(rest) < 2 or rest[1] not in ("keeps", "drops", "leaves", "excludes"):
        return []
    observed = f"{name} {rest[0]}" in (part.strip() for part in question.split(";"))
    verb = ("keeps", "leaves") if rest[0] == "yes" else ("drops", "excludes")
    return [observed and rest[1] in verb and rest[2:] == list(TABLE[name])]


ELIMINATION_TASK = Family(
    "elimination",
    "candidates ruled out by facts of a table, one finding a step; the answer is the candidate left",
    Vocabulary(WORDS),
    (*CANDIDATES, NONE),
    MAX_FINDINGS,
    sample_solvable,
    sample_partners,
    with_cue,
    corrupt,
    belief,
    meta=lambda case: {"left": [len(case.left(n)) for n in range(len(case.findings) + 1)]},
)
