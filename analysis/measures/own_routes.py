"""The headline on the chains that a model writes itself: which share goes past its own chain.

A fine-tuned model may read a chain that it is given and not the one that it writes: its own have other words, and where
it was trained on those the answer may have come from elsewhere. Both chains of the four cells are the reader's own, of
the question and of the partner's question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import statistics
from analysis.authored import Authored
from analysis.cells import Contrast, Excluded
from analysis.measures.own_chains import own_steps, written_by
from analysis.measures.protocol import Measure, Measured, Settings
from analysis.measures.routes import ANOTHER_PROMPT, NO_COUNTERFACTUAL, NO_PARTNER, VARIATION, effects_of
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS
from analysis.prompts import Case
from analysis.routes import is_scorable

THE_PARTNER = "partner's question"


def own_routes(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt whose partner is a counterfactual, and of which the reader wrote both chains.

    What the reader wrote after the question is among `prompts`; after the partner's it is asked for here, unless it is
    there too (of the base, where all models read its chains).

    Columns: `id`, `author` (the reader), `tier` of the partner, and those of `analysis.routes.effects_table`.
    """
    own, excluded = own_steps(session, prompts)
    having: list[tuple[Authored, Case]] = []
    for prompt in own:
        if prompt.partner is not None and prompt.tier != ANOTHER_PROMPT:
            having.append((prompt, prompt.partner))
        else:
            reason = NO_PARTNER if prompt.partner is None else NO_COUNTERFACTUAL
            excluded.append(Excluded(prompt.id, reason, prompt.author))
    unwritten = [partner for _, partner in having if not partner.has_chain]
    written = dict(zip(unwritten, written_by(session, unwritten, settings, THE_PARTNER), strict=True))
    contrasts = []
    for prompt, given in having:
        partner = written.get(given, given)
        if isinstance(partner, str):
            excluded.append(Excluded(prompt.id, partner, prompt.author))
        elif not partner.steps:
            excluded.append(Excluded(prompt.id, f"the partner: {NO_STEPS}", prompt.author))
        else:
            contrasts.append(Contrast(prompt.id, prompt.case, partner, prompt.options))
    table, left_out = effects_of(session, own, contrasts, "the four cells of its own chains")
    return Measured(table, [*excluded, *(replace(item, author=session.name) for item in left_out)])


def compare(base: pd.DataFrame, variant: pd.DataFrame) -> dict[str, Any]:
    """Whether base or variant hardly reacts to question and chain on its own chains, so that shares mean nothing."""
    return {"no_effect": not all(is_scorable(statistics.mean(rows["te"].to_numpy(float))) for rows in (base, variant))}


# As of the headline, the verdict's shares are compared by its own rule; `fracture.summary` reports them.
MEASURE = Measure(
    name="own_routes",
    title="Which share goes past the chain that the model itself has written?",
    run=own_routes,
    quantities=(replace(VARIATION, where={}),),
    compare=compare,
    needs_partner=True,
    tokens=lambda size: 5 * size.text,
)
