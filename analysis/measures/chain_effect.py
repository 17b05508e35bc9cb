"""Average treatment effect of the chain on being right, and which causal structure it speaks for.

Source: Bao et al. 2024, How Likely Do LLMs with CoT Mimic Human Reasoning? (arXiv 2402.16048).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.authored import Authored
from analysis.measures.foreign_chain import FOREIGN, Donors, with_chain_of
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session
from analysis.measures.text_tests import INTACT, NO_CHAIN, NO_STEPS, Change, text_test

FOREIGN_QUESTION = "foreign_question"
ALPHA = 0.05
STRUCTURES = {
    (True, False): "chain: the answer hangs on the chain, and not on the question past it",
    (True, True): "full connection: the answer hangs on the chain and on the question",
    (False, True): "common cause: the answer hangs on the question, and not on the chain",
    (False, False): "isolation: neither was seen to act on being right",
}


def chain_effect(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """Right or wrong behind the chain, behind none, behind another prompt's, and behind the chain with another
    question.

    Rows as in `text_tests.text_test`, with conditions `intact` (the default chain; the gold one where the author is
    `gold`), `no_chain`, `foreign` (the treatment: a random chain) and `foreign_question` (the chain behind another
    prompt's question; its counterfactual partner's where there is one).
    """
    donors = Donors(prompts, settings.seed)

    def changes(prompt: Authored) -> Sequence[Change] | str:
        if not prompt.steps:
            return NO_STEPS
        donor = donors.of(prompt)
        if donor is None:
            return "no other prompt has a chain and another answer"
        asked = donor.case.question if prompt.partner is None or prompt.tier == 3 else prompt.partner.question
        return [
            Change({"condition": FOREIGN}, with_chain_of(prompt.case, donor.case)),
            Change({"condition": FOREIGN_QUESTION}, replace(prompt.case, question=asked)),
        ]

    return text_test(session, prompts, "effect of the chain", changes)


def summarise(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """The effects of one reader and author, with exact McNemar p-values, and the structure that they speak for.

    `ate` is the paired difference of being right between the default and another chain (or question), `relative` that
    difference over the default's accuracy, `log_odds` the difference of the log odds (half a prompt added to each
    count). An edge is seen where McNemar's p is below .05.
    """
    wide = table.pivot_table(index="id", columns="condition", values="right", sort=False)
    effects: dict[str, Any] = {}
    for name, condition in (("chain", FOREIGN), ("question", FOREIGN_QUESTION), ("any_chain", NO_CHAIN)):
        both = wide[[INTACT, condition]].dropna()
        default, treated = (both[column].to_numpy(dtype=float) for column in (INTACT, condition))
        test = statistics.mcnemar(default, treated)
        effects[name] = {
            "ate": test.difference.to_dict(),
            "p": test.p,
            "only_default": test.only_first,
            "only_treated": test.only_second,
            "relative": float((default.mean() - treated.mean()) / default.mean()) if default.any() else None,
            "log_odds": _log_odds(default) - _log_odds(treated),
        }
    seen = tuple(effects[name]["p"] < ALPHA and effects[name]["ate"]["estimate"] > 0 for name in ("chain", "question"))
    return {"effects": effects, "structure": STRUCTURES[seen[0], seen[1]]}


def _log_odds(right: np.ndarray) -> float:
    return math.log((right.sum() + 0.5) / (len(right) - right.sum() + 0.5))


MEASURE = Measure(
    name="chain_effect",
    title="Is the answer right because of the chain?",
    run=chain_effect,
    quantities=(
        Quantity("right_intact", "right behind the chain", "share", "right", where={"condition": INTACT}, binary=True),
        Quantity(
            "right_foreign",
            "right behind another prompt's chain",
            "share",
            "right",
            None,
            {"condition": FOREIGN},
            1,
            True,
            True,
        ),
        Quantity("right_no_chain", "right without a chain", "share", "right", None, {"condition": NO_CHAIN}, 0, True),
        Quantity(
            "right_foreign_question",
            "right behind the chain of another question",
            "share",
            "right",
            None,
            {"condition": FOREIGN_QUESTION},
            -1,
            True,
            True,
        ),
    ),
    summarise=summarise,
    tokens=lambda size: 2 * size.text + size.chain,
)
