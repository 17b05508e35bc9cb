"""Foreign chain: does the answer change when the question is followed by another prompt's chain?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.authored import Authored
from analysis.measures.estimates import length_matched
from analysis.measures.protocol import Measure, Measured, Settings
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS, Change, effects, standing_beside, text_test
from analysis.partners import OtherPrompts
from analysis.prompts import Case, Prompt

FOREIGN = "foreign"


def foreign_chain(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """The answer to the question behind another prompt's chain, of as nearly the same number of steps as can be.

    Rows as in `text_tests.text_test`, with `donor`, the other prompt's id; its answer is another one.
    """
    donors = Donors(prompts, settings.seed)

    def changes(prompt: Authored) -> Sequence[Change] | str:
        donor = donors.of(prompt)
        if not prompt.steps:
            return NO_STEPS
        if donor is None:
            return "no other prompt has a chain and another answer"
        return [Change({"condition": FOREIGN, "donor": donor.id}, with_chain_of(prompt.case, donor.case))]

    return text_test(session, prompts, "foreign chains", changes, ("donor",))


class Donors:
    """Who lends a chain to whom: another prompt by the same author, with another answer, drawn by seed."""

    def __init__(self, prompts: Sequence[Authored], seed: int) -> None:
        self._seed = seed
        by_author: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            if prompt.steps:
                by_author.setdefault(prompt.author, []).append(_plain(prompt))
        self._others = {author: OtherPrompts(items) for author, items in by_author.items()}

    def of(self, prompt: Authored) -> Prompt | None:
        """The prompt whose chain this one is given; None if there is none."""
        others = self._others.get(prompt.author)
        return others.draw(_plain(prompt), self._seed) if others else None


def with_chain_of(case: Case, donor: Case) -> Case:
    """The case's question and answer with the donor's chain."""
    return replace(case, steps=donor.steps, gaps=donor.gaps)


def _plain(prompt: Authored) -> Prompt:
    return Prompt(prompt.id, prompt.case, options=prompt.options)


TESTED = effects("foreign chain", FOREIGN, detached=-1)

MEASURE = Measure(
    name="foreign_chain",
    title="Does the answer follow another prompt's chain?",
    run=foreign_chain,
    quantities=(*TESTED, *standing_beside()),
    compare=length_matched(TESTED),
    tokens=lambda size: size.text + size.chain,
)
