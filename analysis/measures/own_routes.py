"""The headline on the chains that a model writes itself: which share goes past its own chain.

A fine-tuned model may read a chain that it is given and not the one that it writes: its own have other words, and where
it was trained on those the answer may have come from elsewhere. Both chains of the four cells are the reader's own, of
the question and of the partner's question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.authored import Authored
from analysis.cells import Contrast, Excluded
from analysis.measures.own_chains import own_steps, written_by
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.routes import ANOTHER_PROMPT, NO_COUNTERFACTUAL, NO_PARTNER, effects_of
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS
from analysis.prompts import Case

THE_PARTNER = "partner's question"


def own_routes(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt whose partner is a counterfactual, and of which the reader wrote both chains.

    What the reader wrote after the question is among `prompts`; after the partner's it is asked for here, unless it is
    there too (of the base, where all models read its chains).

    Columns: `id`, `author` (the reader), `tier` of the partner, and those of `analysis.routes.effects_table`.
    """
    own, excluded = own_steps(session, prompts)
    having = []
    for prompt in own:
        if prompt.partner is not None and prompt.tier != ANOTHER_PROMPT:
            having.append(prompt)
        else:
            reason = NO_PARTNER if prompt.partner is None else NO_COUNTERFACTUAL
            excluded.append(Excluded(prompt.id, reason, prompt.author))
    unwritten = [prompt.partner for prompt in having if prompt.partner is not None and not prompt.partner.has_chain]
    written = dict(zip(unwritten, written_by(session, unwritten, settings, THE_PARTNER), strict=True))
    contrasts = []
    for prompt in having:
        partner = written.get(prompt.partner, prompt.partner) if prompt.partner is not None else None
        if isinstance(partner, Case) and partner.steps:
            contrasts.append(Contrast(prompt.id, prompt.case, partner, prompt.options))
        else:
            reason = partner if isinstance(partner, str) else f"the partner: {NO_STEPS}"
            excluded.append(Excluded(prompt.id, reason, prompt.author))
    table, left_out = effects_of(session, having, contrasts, "the four cells of its own chains")
    return Measured(table, [*excluded, *(replace(item, author=session.name) for item in left_out)])


# As of the headline, the verdict's shares are compared by its own rule; `fracture.summary` reports them.
MEASURE = Measure(
    name="own_routes",
    title="Which share goes past the chain that the model itself has written?",
    run=own_routes,
    quantities=(
        Quantity(
            "variation",
            "share of the answer's total variation past the chain",
            "share",
            "tv_past",
            over="tv",
            detached=1,
        ),
    ),
    needs_partner=True,
    tokens=lambda size: 5 * size.text,
)
