"""Prompts with a chain by a named author: what measures read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.partners import Tier
from analysis.prompt_fields import from_json, to_json
from analysis.prompts import Case

GOLD = "gold"


@dataclass(frozen=True)
class Authored:
    """A prompt with the chain that one author wrote for it.

    Attributes:
        id: the prompt's.
        author: `gold`, or the name of the model that wrote the chain.
        case: question, gold answer and the author's chain in steps.
        partner: the counterfactual, with the chain that the same author wrote for it where that is known (it is for the
            author whose chains all models read); None if there is none.
        options: the answers given with the prompt; empty when they are to be found.
        tier: where the partner came from; None without one.
        written: the answer that the author set behind its chain; None for a gold chain, or where it set none.
    """

    id: str
    author: str
    case: Case
    partner: Case | None = None
    options: tuple[str, ...] = ()
    tier: Tier | None = None
    written: str | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        """The chain's steps."""
        return self.case.steps or ()


_CASE = ("question", "answer", "steps", "gaps", "answered")


def to_table(prompts: Sequence[Authored]) -> pd.DataFrame:
    """One row a prompt and author; the partner's case in columns `partner_…`."""
    rows = []
    for prompt in prompts:
        row: dict[str, Any] = {"id": prompt.id, "author": prompt.author}
        for case, prefix in ((prompt.case, ""), (prompt.partner, "partner_")):
            for name in _CASE:
                value = None if case is None else getattr(case, name)
                row[prefix + name] = list(value) if isinstance(value, tuple) else value
        row |= {"ended": prompt.case.ended, "asked": to_json(prompt.case.asked)}
        row |= {"options": list(prompt.options), "tier": prompt.tier, "written": prompt.written}
        rows.append(row)
    names = [prefix + name for prefix in ("", "partner_") for name in _CASE]
    table = pd.DataFrame(rows, columns=["id", "author", *names, "ended", "asked", "options", "tier", "written"])
    texts = ["asked", "id", "author", "question", "answer", "partner_question", "partner_answer", "written"]
    truths = ("answered", "partner_answered", "ended")
    return table.astype(dict.fromkeys(texts, "string") | dict.fromkeys(truths, "boolean") | {"tier": "Int64"})


def from_table(table: pd.DataFrame) -> list[Authored]:
    """The prompts of `to_table`."""
    prompts = []
    for row in table.to_dict("records"):
        case, partner = (
            None
            if pd.isna(row[prefix + "question"])
            else Case(
                row[prefix + "question"],
                row[prefix + "answer"],
                steps=_texts(row[prefix + "steps"]),
                gaps=_texts(row[prefix + "gaps"]),
                answered=bool(row[prefix + "answered"]),
            )
            for prefix in ("", "partner_")
        )
        if case is not None:
            ended, asked = (None if pd.isna(row[name]) else row[name] for name in ("ended", "asked"))
            case = replace(case, ended=None if ended is None else bool(ended), asked=from_json(asked))
            tier = None if pd.isna(row["tier"]) else row["tier"]
            written = None if pd.isna(row["written"]) else row["written"]
            options = _texts(row["options"]) or ()
            prompts.append(Authored(row["id"], row["author"], case, partner, options, tier, written))
    return prompts


def _texts(value: Any) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)
