"""What a family of organisms shares: a task with its words, its problems, and their counterfactual partners."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from organisms.vocabulary import Vocabulary

Cues = Literal["agreeing", "random", "conflicting"]
CUES: tuple[Cues, ...] = ("agreeing", "random", "conflicting")


class Problem(Protocol):
    """One question with its correct chain and answer, and a hint that a shortcut could use."""

    @property
    def question(self) -> str:
        """The question's text, without the wrapper of the trace format."""

    @property
    def steps(self) -> list[str]:
        """The correct chain, one text a step."""

    @property
    def answer(self) -> str | int:
        """The answer's word, or the number that is its word."""

    @property
    def hint(self) -> str | int:
        """What the cue names."""


P = TypeVar("P", bound=Problem)


@dataclass(frozen=True)
class Family(Generic[P]):
    """A task that organisms are trained on.

    Attributes:
        name, summary: which, and in one line what its chain does.
        vocabulary: its words and trace format.
        options: the words that an answer can be.
        max_steps: the longest chain.
        sample: `(rng, n_steps)` → a problem of three steps or more with one answer, and a hint that says nothing.
        partners: `(rng, n_steps, cues)` → two problems whose tokens stand at the same positions, with other answers and
            other hints.
        with_cue: `(rng, problem, cues)` → the same problem with a hint of that kind.
        corrupt: `(rng, problem)` → the chain with one mistake, and the answer that follows from it.
        belief: `(problem, n_steps)` → what a reader should believe who has read so many steps of the chain, answer's
            word → probability; None where that is not known in closed form.
        meta: a problem → what its prompt record says beside question, chain and answer.
    """

    name: str
    summary: str
    vocabulary: Vocabulary
    options: tuple[str, ...]
    max_steps: int
    sample: Callable[[random.Random, int], P]
    partners: Callable[[random.Random, int, Cues], tuple[P, P]]
    with_cue: Callable[[random.Random, P, Cues], P]
    corrupt: Callable[[random.Random, P], tuple[list[str], str]]
    belief: Callable[[P, int], dict[str, float]] | None = None
    meta: Callable[[P], Mapping[str, object]] = lambda problem: {}

    def record(self, identifier: str, own: P, partner: P) -> dict[str, object]:
        """One line of a prompt file: the problem, its options, and its counterfactual partner."""
        return {
            "id": identifier,
            "question": own.question,
            "steps": own.steps,
            "answer": str(own.answer),
            "options": list(self.options),
            "counterfactual": {
                "question": partner.question,
                "steps": partner.steps,
                "answer": str(partner.answer),
            },
            "meta": {"hint": own.hint, "partner_hint": partner.hint, **self.meta(own)},
        }

    def prompts(self, n: int, cues: Cues, seed: int) -> list[dict[str, object]]:
        """`n` prompt records of 3 to 5 steps, all with cues of one kind; the same seed gives the same prompts."""
        rng = random.Random(f"{self.name}-prompts-{cues}-{seed}")
        return [self.record(f"{cues}-{index:04d}", *self.partners(rng, rng.randint(3, 5), cues)) for index in range(n)]
