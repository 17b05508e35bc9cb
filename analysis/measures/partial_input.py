"""Partial input: how far does a part of the question get, without a chain? Above chance, that part is a shortcut.

Source: after Gururangan et al. 2018, Annotation Artifacts in Natural Language Inference Data (arXiv 1803.02324), and
Poliak et al. 2018, Hypothesis Only Baselines (arXiv 1805.01042).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy.special import softmax

from analysis import statistics
from analysis.answers import same_answer
from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session
from analysis.prompt_fields import FULL
from analysis.scoring import Contexts

COLUMNS = ("id", "author", "part", "right", "p_gold", "chance")
STANDARD = ("cue", "options")
"""Parts that have quantities of their own; any other is in the table and in `summarise`."""
NONE = "the prompt names no partial questions"


def partial_input(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt and question: the whole one (`part` is `full`), and each partial one; no chain is read.

    Columns: `right`, whether the most probable of the options given with the prompt is the gold answer; `p_gold`, the
    gold answer's probability among them; `chance`, both by guessing: 1 over their number.
    """
    excluded = [Excluded(p.id, NONE, p.author) for p in prompts if not p.case.asked.partial]
    asked = [prompt for prompt in prompts if prompt.case.asked.partial]
    contexts = [
        Contexts(
            prompt.id,
            prompt.options,
            tuple(replace(prompt.case.first(0), question=text) for _, text in _questions(prompt)),
        )
        for prompt in asked
    ]
    rows: list[dict[str, Any]] = []
    for prompt, scored in zip(asked, session.score(contexts, "partial input"), strict=True):
        if isinstance(scored, Excluded):
            excluded.append(Excluded(prompt.id, scored.reason, prompt.author))
            continue
        for (name, _), logprobs in zip(_questions(prompt), scored, strict=True):
            rows.append({"id": prompt.id, "author": prompt.author, "part": name, **_values(prompt, logprobs)})
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def _questions(prompt: Authored) -> list[tuple[str, str]]:
    return [(FULL, prompt.case.question), *prompt.case.asked.partial]


def _values(prompt: Authored, logprobs: Float[ndarray, " option"]) -> dict[str, float]:
    gold = [same_answer(option, prompt.case.answer) for option in prompt.options]
    return {
        "right": float(gold[int(logprobs.argmax())]),
        "p_gold": float(softmax(logprobs)[gold].sum()),
        "chance": sum(gold) / len(gold),
    }


def summarise(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """For each partial question, by name, and for the whole one over the same prompts: accuracy with its exact
    interval, mean probability of the gold answer, and chance.
    """
    whole = table[table["part"] == FULL].set_index("id")
    parts: dict[str, Any] = {}
    for name in dict.fromkeys(table.loc[table["part"] != FULL, "part"]):
        rows = table[table["part"] == name]
        same = whole.loc[rows["id"]]
        parts[str(name)] = {
            "chance": float(rows["chance"].mean()),
            **_summary(rows, "right", "p_gold"),
            **_summary(same, "right_full", "p_full"),
        }
    return {"parts": parts}


def _summary(rows: pd.DataFrame, right: str, probability: str) -> dict[str, Any]:
    return {
        right: statistics.clopper_pearson(int(rows["right"].sum()), len(rows)).to_dict(),
        probability: statistics.mean(rows["p_gold"].to_numpy(dtype=float)).to_dict(),
    }


def _quantities() -> tuple[Quantity, ...]:
    found = [Quantity("chance", "right by guessing", "share", "chance", where={"part": FULL})]
    for part, words in ((FULL, "from the whole question"), *((name, f"from the {name} alone") for name in STANDARD)):
        where = {"part": part}
        found += [
            Quantity(f"right_{part}", f"right {words}, no chain", "share", "right", where=where, binary=True),
            Quantity(f"p_{part}", f"probability of gold {words}, no chain", "probability", "p_gold", where=where),
        ]
    return tuple(found)


MEASURE = Measure(
    name="partial_input",
    title="How far does a part of the question get, without a chain?",
    run=partial_input,
    quantities=_quantities(),
    authors="headline",
    summarise=summarise,
    descriptive=True,
    # The whole question and, as a rule, two parts, which are shorter.
    tokens=lambda size: 3 * (size.question + size.marker),
)
