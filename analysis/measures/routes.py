"""The headline: which share of the answer's causal effect goes past the chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.authored import Authored
from analysis.cells import Cells, Contrast, Excluded, measure_cells
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session
from analysis.routes import VARIATION_EFFECTS, effects_table

WHOLE, NO_CONCLUSION = "whole", "no_conclusion"
ANOTHER_PROMPT = 3
NO_PARTNER, NO_COUNTERFACTUAL = "no counterfactual partner", "its partner is merely another prompt"


def routes(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """Every prompt's effects, with the whole chain and (`chain` = `no_conclusion`) with the last step of both removed.

    Columns: `id`, `author`, `tier` of the partner (1 given, 2 changed number, 3 another prompt), `chain`, and those of
    `analysis.routes.effects_table`.
    """
    having = [prompt for prompt in prompts if prompt.partner is not None and prompt.partner.has_chain]
    whole = [Contrast(p.id, p.case, p.partner, p.options) for p in having if p.partner is not None]
    table, excluded = effects_of(session, having, whole, "the four cells")
    shorter = effects_of(session, having, without_conclusion(whole), "the same without the concluding step")[0]
    found = pd.concat([table.assign(chain=WHOLE), shorter.assign(chain=NO_CONCLUSION)], ignore_index=True)
    return Measured(found, excluded)


def effects_of(
    session: Session, prompts: Sequence[Authored], contrasts: Sequence[Contrast], what: str
) -> tuple[pd.DataFrame, list[Excluded]]:
    """The effects of contrasts of these prompts, one row each, with `author` and `tier`; and those left out.

    Of a partner that is merely another prompt, those of the total variation are NaN, since it describes and is compared
    with nothing.
    """
    stage = session.stage(f"{session.name}: {what}", len(contrasts))
    results = measure_cells(session.reader, contrasts, session.batch_tokens, stage)
    table = effects_table([cells for cells in results if isinstance(cells, Cells)])
    for position, column in enumerate(("author", "tier"), start=1):
        of_prompt = {prompt.id: getattr(prompt, column) for prompt in prompts}
        table.insert(position, column, table["id"].map(of_prompt))
    table.loc[table["tier"] == ANOTHER_PROMPT, list(VARIATION_EFFECTS)] = np.nan
    return table, [item for item in results if isinstance(item, Excluded)]


def without_conclusion(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The contrasts with the last step removed from both chains; those with a chain of one step are left out."""
    return [
        replace(
            contrast,
            own=contrast.own.first(len(contrast.own.steps) - 1),
            partner=contrast.partner.first(len(contrast.partner.steps) - 1),
        )
        for contrast in contrasts
        if contrast.own.steps
        and contrast.partner.steps
        and min(map(len, (contrast.own.steps, contrast.partner.steps))) > 1
    ]


VARIATION = Quantity(
    "variation",
    "share of the answer's total variation past the chain",
    "share",
    "tv_past",
    over="tv",
    where={"chain": WHOLE},
    detached=1,
)
# The verdict's shares are ratios of several columns, compared by its own rule; `fracture.summary` reports them.
MEASURE = Measure(
    name="routes",
    title="Which share of the answer's causal effect goes past the chain?",
    run=routes,
    quantities=(VARIATION,),
    authors="headline",
    needs_partner=True,
    tokens=lambda size: 8 * size.text,
)
