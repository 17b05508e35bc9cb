"""Mistakes: does the answer change when one step is made wrong, by rule?

Source: Lanham et al. 2023 (arXiv 2307.13702), section 2.4; there a language model makes the mistakes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from analysis.authored import Authored
from analysis.edits import mistake
from analysis.generation import continue_chains
from analysis.measures.estimates import length_matched
from analysis.measures.protocol import Measure, Measured, Settings
from analysis.measures.session import Session
from analysis.measures.text_tests import (
    NO_STEPS,
    Change,
    effects,
    standing_beside,
    text_test,
)
from analysis.prompts import Case

KEPT, CUT, CONTINUED = "mistake", "mistake_cut", "mistake_continued"
NO_RULE = "no rule makes a mistake in any of its steps"


def mistakes(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """The answer behind the chain with step `step` (from 1) made wrong, for every step to which a rule applies.

    Rows as in `text_tests.text_test`, with `step` and `rule`, and three conditions: `mistake`, the rest of the chain as
    it was; `mistake_cut`, the chain ends with the mistake; and, with `settings.continue_mistakes`, `mistake_continued`:
    the reader writes on from the mistake.
    """
    continued = _continued(session, prompts, settings) if settings.continue_mistakes else {}

    def changes(prompt: Authored) -> Sequence[Change] | str:
        if not prompt.steps:
            return NO_STEPS
        found = []
        for step, (rule, case) in with_mistakes(session, prompt, settings.seed).items():
            keys = {"step": step, "rule": rule}
            found.append(Change({"condition": KEPT, **keys}, case))
            # After the last step nothing is left to cut, or to write.
            if step < len(prompt.steps):
                found.append(Change({"condition": CUT, **keys}, case.first(step)))
                if (written := continued.get(case.first(step))) is not None:
                    found.append(Change({"condition": CONTINUED, **keys}, written))
        return found or NO_RULE

    return text_test(session, prompts, "mistakes", changes, ("step", "rule"))


def with_mistakes(session: Session, prompt: Authored, seed: int) -> dict[int, tuple[str, Case]]:
    """Step (from 1) → rule and the chain with a mistake in it, in order; none for a step to which no rule applies.

    The same chain gets the same mistakes, whoever wrote it.
    """
    context = "\n".join((prompt.case.question, *prompt.steps))
    found: dict[int, tuple[str, Case]] = {}
    for index, step in enumerate(prompt.steps):
        rng = random.Random(f"{seed}:{context}:{index}:mistake")
        made = mistake(step, context, rng, session.accepts)
        if made is not None:
            steps = (*prompt.steps[:index], made.text, *prompt.steps[index + 1 :])
            found[index + 1] = made.rule, replace(prompt.case, steps=steps)
    return found


def _continued(session: Session, prompts: Sequence[Authored], settings: Settings) -> dict[Case, Case]:
    """For each chain that ends with a mistake, the chain as the reader writes on; without those it does not finish."""
    begun = list(
        dict.fromkeys(
            case.first(step)
            for prompt in prompts
            for step, (_, case) in with_mistakes(session, prompt, settings.seed).items()
            if step < len(prompt.steps)
        )
    )
    stage = session.stage(f"{session.name}: writing on from mistakes", len(begun))
    written = continue_chains(session.reader, begun, settings.max_chain_tokens, session.batch_tokens, stage)
    return {case: longer for case, longer in zip(begun, written, strict=True) if longer is not None}


TESTED = effects("mistakes", KEPT, detached=-1)

MEASURE = Measure(
    name="mistakes",
    title="Does the answer change when a step is made wrong?",
    run=mistakes,
    quantities=(*TESTED, *standing_beside()),
    compare=length_matched(TESTED),
    tokens=lambda size: size.text + size.later + size.steps * size.chain / max(size.steps, 1),
)
