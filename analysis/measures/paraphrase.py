"""Paraphrase: the control of the other text tests. An answer computed from the chain does not change with its wording.

Source: Lanham et al. 2023 (arXiv 2307.13702), section 2.6; there a language model writes the paraphrases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.authored import Authored
from analysis.edits import paraphrase as paraphrased
from analysis.measures.protocol import Measure, Measured, Settings
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS, Change, effects, standing_beside, text_test

PARAPHRASE = "paraphrase"


def paraphrase(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """The answer behind the chain with all its steps reworded, numbers and meaning kept.

    Rows as in `text_tests.text_test`, with `rule` (the rules used, joined by `+`) and `n_reworded` steps.
    """

    def changes(prompt: Authored) -> Sequence[Change] | str:
        if not prompt.steps:
            return NO_STEPS
        found = [paraphrased(step, None, session.accepts) for step in prompt.steps]
        rules = sorted({rule for made in found if made is not None for rule in made.rules})
        if not rules:
            return "no rule rewords any of its steps"
        steps = tuple(made.text if made else step for step, made in zip(prompt.steps, found, strict=True))
        keys = {"condition": PARAPHRASE, "rule": "+".join(rules), "n_reworded": sum(made is not None for made in found)}
        return [Change(keys, replace(prompt.case, steps=steps))]

    return text_test(session, prompts, "paraphrase", changes, ("rule", "n_reworded"))


MEASURE = Measure(
    name="paraphrase",
    title="Does the answer stay when the chain is reworded? (a control)",
    run=paraphrase,
    quantities=(*effects("paraphrase", PARAPHRASE, detached=0), *standing_beside()),
    descriptive=True,
    tokens=lambda size: size.text + size.chain,
)
