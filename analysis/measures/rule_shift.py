"""Rule shift: is the same task solved under a changed rule, or answered as before?

A model that has learnt the rule reads the new one; one that has memorised answers still gives the old answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from analysis import statistics
from analysis.answers import same_answer
from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.measures.own_chains import written_by
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session
from analysis.prompt_fields import Shifted
from analysis.prompts import Case
from analysis.scoring import Contexts

COLUMNS = ("id", "author", "chain", "answer", "right", "right_shifted", "old_answer", "drop")
GIVEN, WRITTEN = "given", "written"
NONE = "the prompt has no shifted question"
NOT_OWN = "its shifted question comes without steps: only a chain that this model writes is read behind it"


def rule_shift(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt and author: the most probable answer to the shifted question, beside that to the question.

    The question is read behind the author's chain. The shifted question is read behind its own steps where they are
    given (`chain` is `given`); else, for the reader's own chains alone, behind what the reader now writes (`written`;
    no answer is needed there, the marker is appended). The answers to choose from are those given with the prompt, or
    both right ones and all that are likely behind either text.

    Columns: `answer` to the shifted question; `right`, whether the question's answer is right; `right_shifted`, the
    same for the shifted question; `old_answer`, whether that gets the question's right answer; `drop`, `right −
    right_shifted`.
    """
    excluded: list[Excluded] = []
    asked: list[tuple[Authored, Shifted]] = []
    for prompt in prompts:
        shifted = prompt.case.asked.shifted
        if shifted is None:
            excluded.append(Excluded(prompt.id, NONE, prompt.author))
        elif shifted.steps is None and prompt.author != session.name:
            excluded.append(Excluded(prompt.id, NOT_OWN, prompt.author))
        else:
            asked.append((prompt, shifted))
    cases = _shifted_cases(session, [shifted for _, shifted in asked], settings)
    found = session.options([prompt for prompt, _ in asked])
    read: list[tuple[Authored, Shifted, tuple[str, ...], Case]] = []
    for (prompt, shifted), options, case in zip(asked, found, cases, strict=True):
        if isinstance(options, Excluded) or isinstance(case, str):
            reason = options.reason if isinstance(options, Excluded) else str(case)
            excluded.append(Excluded(prompt.id, reason, prompt.author))
        else:
            known = prompt.options or tuple(dict.fromkeys((*options, shifted.answer)))
            read.append((prompt, shifted, known, case))
    widened = session.widened([(prompt, options, [case]) for prompt, _, options, case in read])
    contexts = [
        Contexts(prompt.id, options, (prompt.case, case))
        for (prompt, _, _, case), options in zip(read, widened, strict=True)
    ]
    rows: list[dict[str, Any]] = []
    for (prompt, shifted, _, _), context, scored in zip(
        read, contexts, session.score(contexts, "rule shift"), strict=True
    ):
        if isinstance(scored, Excluded):
            excluded.append(Excluded(prompt.id, scored.reason, prompt.author))
        else:
            rows.append({"id": prompt.id, "author": prompt.author, **_values(prompt, shifted, context.answers, scored)})
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def _shifted_cases(session: Session, asked: Sequence[Shifted], settings: Settings) -> list[Case | str]:
    """The text of each shifted question up to its answer, or why there is none; chains are written where none are."""
    cases = [Case(shifted.question, shifted.answer, steps=shifted.steps) for shifted in asked]
    unwritten = [case for case in cases if not case.has_chain]
    written = dict(zip(unwritten, written_by(session, unwritten, settings, "shifted question"), strict=True))
    return [written.get(case, case) for case in cases]


def _values(
    prompt: Authored, shifted: Shifted, options: Sequence[str], scored: Float[ndarray, "text option"]
) -> dict[str, Any]:
    before, behind = (options[int(at)] for at in scored.argmax(axis=1))
    right, right_shifted = same_answer(before, prompt.case.answer), same_answer(behind, shifted.answer)
    return {
        "chain": WRITTEN if shifted.steps is None else GIVEN,
        "answer": behind,
        "right": float(right),
        "right_shifted": float(right_shifted),
        "old_answer": float(same_answer(behind, prompt.case.answer)),
        "drop": float(right) - float(right_shifted),
    }


def summarise(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """The drop of accuracy from question to shifted question, paired by prompt, with McNemar's exact p."""
    right, shifted = (table[name].to_numpy(dtype=float) for name in ("right", "right_shifted"))
    test = statistics.mcnemar(np.asarray(right), np.asarray(shifted))
    return {"drop": test.difference.to_dict(), "p": test.p}


MEASURE = Measure(
    name="rule_shift",
    title="Is the task solved under a changed rule, or answered as before?",
    run=rule_shift,
    quantities=(
        Quantity("right", "right on the question", "share", "right", binary=True),
        Quantity("right_shifted", "right under the changed rule", "share", "right_shifted", binary=True),
        Quantity("old_answer", "still the old answer under the changed rule", "share", "old_answer", binary=True),
        Quantity("drop", "drop of accuracy with the rule", "share", "drop"),
    ),
    summarise=summarise,
    descriptive=True,
    tokens=lambda size: 2 * size.text,
)
