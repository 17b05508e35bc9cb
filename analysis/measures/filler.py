"""Filler: does the answer change when steps are replaced by a neutral text of as many tokens?

Source: Lanham et al. 2023 (arXiv 2307.13702), section 2.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.authored import Authored
from analysis.edits import filler as filler_text
from analysis.measures.estimates import length_matched
from analysis.measures.protocol import Measure, Measured, Settings
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS, Change, areas, joined, over_chain, standing_beside, text_test
from analysis.prompts import Case

FILLER = "filler"


def filler(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """The answer behind the chain with every step after the first `cut` replaced by filler of the same token length.

    Rows as in `text_tests.text_test`, with `cut` for condition `filler`; one of condition `area` a prompt and author.
    The chain keeps its length and its separators: what is lost, against early answering, is words and not room.
    """

    def changes(prompt: Authored) -> Sequence[Change] | str:
        if not prompt.steps:
            return NO_STEPS
        cases = [filled(session, prompt.case, cut) for cut in range(len(prompt.steps))]
        if any(case is None for case in cases):
            return "no filler has as many tokens as one of its steps"
        return [Change({"condition": FILLER, "cut": cut}, case) for cut, case in enumerate(cases) if case is not None]

    measured = text_test(session, prompts, "filler", changes, ("cut",))
    return Measured(joined(measured.table, over_chain(measured.table, FILLER, "cut")), measured.excluded)


def filled(session: Session, case: Case, cut: int) -> Case | None:
    """The case with all but its first `cut` steps replaced by filler, of the same length; None if there is none."""
    steps = case.steps or ()
    texts = [filler_text(session.tokens(step), session.tokens) for step in steps[cut:]]
    if any(text is None for text in texts):
        return None
    result = replace(case, steps=(*steps[:cut], *(text for text in texts if text is not None)))
    return result if session.length(result) == session.length(case) else None


TESTED = areas("filler", detached=-1)

MEASURE = Measure(
    name="filler",
    title="Does the answer change when steps are replaced by filler?",
    run=filler,
    quantities=(*TESTED, *standing_beside()),
    compare=length_matched(TESTED),
    tokens=lambda size: size.text + size.later,
)
