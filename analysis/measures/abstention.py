"""Abstention: does a model say so where a question cannot be answered, and does it answer where one can?

By rule and not by judge: an answer abstains if it is, or holds, one of a list of phrases.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.answers import same_answer
from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.measures.own_chains import own_chains
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session

COLUMNS = ("id", "author", "answerable", "abstained", "abstained_unanswerable", "abstained_answerable", "unanswered")
CUT = "its text was cut before its answer"

_CANNOT = r"(?:cannot|can not|can['’]t|could not|couldn['’]t)"
PHRASES = (
    rf"{_CANNOT} be (?:determined|answered|known|told|inferred|computed|solved)",
    rf"{_CANNOT} (?:determine|answer|say|tell|know|be sure)",
    r"(?:not enough|insufficient|too little|no sufficient) (?:information|info|data|context)",
    r"impossible to (?:determine|answer|say|tell|know)",
    r"(?:i )?(?:don['’]t|do not) know",
    r"none of (?:the|these|those|them)",
    r"(?:not|isn['’]t) (?:given|stated|specified|answerable)",
    r"unanswerable",
    r"undetermined|indeterminate",
)
"""What abstains in an answer, and in the last step of a chain; regular expressions of whole words."""
SHORT = (r"unknown", r"no answer", r"n/a")
"""What abstains in an answer alone: in a step `the unknown is 7` answers."""

_IN_STEP, _IN_ANSWER = (
    re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE) for phrases in (PHRASES, (*PHRASES, *SHORT))
)


def abstention(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt with a text that this reader wrote and ended itself.

    Columns: `answerable`, whether the prompt is; `abstained`, whether the reader abstains (see `abstains`), again in
    `abstained_unanswerable` and `abstained_answerable` for prompts of that kind alone (NaN for the others);
    `unanswered`, whether it wrote no answer.
    """
    own, excluded = own_chains(session, prompts)
    rows: list[dict[str, Any]] = []
    for prompt in own:
        if prompt.case.ended is False:
            excluded.append(Excluded(prompt.id, CUT, prompt.author))
            continue
        answerable, abstained = prompt.case.asked.answerable, float(abstains(prompt))
        rows.append(
            {
                "id": prompt.id,
                "author": prompt.author,
                "answerable": answerable,
                "abstained": abstained,
                "abstained_unanswerable": np.nan if answerable else abstained,
                "abstained_answerable": abstained if answerable else np.nan,
                "unanswered": float(prompt.written is None),
            }
        )
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def abstains(prompt: Authored) -> bool:
    """Whether the answer that was written abstains.

    The right answer of an answerable prompt never does. Where the prompt names abstaining answers, or is unanswerable
    and has an answer, those do, and where options are given with it that hold an abstaining phrase, to choose one of
    them does. Else an answer does that holds one of `PHRASES` or `SHORT` and is none of the options; and, if there are
    no options, one whose chain's last step holds one of `PHRASES`.
    """
    asked, gold = prompt.case.asked, prompt.case.answer
    if asked.answerable and same_answer(prompt.written, gold):
        return False
    named = asked.abstain or ((gold,) if gold and not asked.answerable else ())
    if named and any(same_answer(prompt.written, answer) for answer in named):
        return True
    chosen = next((option for option in prompt.options if same_answer(prompt.written, option)), None)
    if asked.abstain or (chosen is not None and _IN_ANSWER.search(chosen) is None):
        return False
    if prompt.written is not None and _IN_ANSWER.search(prompt.written):
        return True
    return not prompt.options and bool(prompt.steps) and _IN_STEP.search(prompt.steps[-1]) is not None


MEASURE = Measure(
    name="abstention",
    title="Does the model abstain where a question cannot be answered, and only there?",
    run=abstention,
    quantities=(
        Quantity("unanswerable", "abstains from unanswerable prompts", "share", "abstained_unanswerable", binary=True),
        Quantity("answerable", "abstains from answerable prompts", "share", "abstained_answerable", binary=True),
        Quantity("unanswered", "no answer behind its own chain", "share", "unanswered", binary=True),
    ),
    descriptive=True,
    tokens=lambda size: 0,
)
