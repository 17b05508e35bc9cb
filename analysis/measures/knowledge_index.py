"""Knowledge index: the share of a chain's steps whose claims are true, by rule and not by judge.

Source: after Wu et al. 2025 (arXiv 2506.02126), whose index a language model judges.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS

COLUMNS = ("id", "author", "step", "n_claims", "checkable", "true", "one")


def knowledge_index(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt, author and step: whether the step can be checked, and whether all that it claims is true.

    Columns: `n_claims` found; `checkable`, 1 if the verifier could decide on at least one of them; `true`, 1 if it
    decided so and found none false; `one`, always 1. A step without a checkable claim is counted apart, never as true.
    """
    rows, excluded = [], []
    for prompt in prompts:
        if not prompt.steps:
            excluded.append(Excluded(prompt.id, NO_STEPS, prompt.author))
        for index, step in enumerate(prompt.steps, start=1):
            claims = settings.verifier(step, prompt.case.question)
            decided = [claim for claim in claims if claim is not None]
            rows.append(
                {
                    "id": prompt.id,
                    "author": prompt.author,
                    "step": index,
                    "n_claims": len(claims),
                    "checkable": float(bool(decided)),
                    "true": float(bool(decided) and all(decided)),
                    "one": 1.0,
                }
            )
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


MEASURE = Measure(
    name="knowledge_index",
    title="How many of the chain's claims are true?",
    run=knowledge_index,
    quantities=(
        Quantity("index", "knowledge index: checkable steps that are true", "share", "true", "checkable"),
        Quantity("checkable", "steps with something to check", "share", "checkable", "one"),
    ),
    descriptive=True,
    tokens=lambda size: 0,
)
