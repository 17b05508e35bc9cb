"""True-thinking score: how much the answer's probability hangs on a step, behind intact and behind wrong steps.

`TTS(s) = ½ (|S₁(1) − S₀(1)| + |S₁(0) − S₀(0)|)`: `S_x(c)` is the probability of the answer behind the chain cut after
step s, with s intact (x = 1) or made wrong (x = 0), the steps before it intact (c = 1) or made wrong (c = 0).

The probability is that of the whole answer, its stop included, and is not renormalised over the options: what leaves
for any other answer is lost, and the score does not hang on which others are listed.

Source: Zhao et al. 2025 (arXiv 2510.24941). There the answer is the gold one, of problems that were answered right, and
numbers are offset; here it is the reader's own behind its whole chain, and mistakes are those of `mistakes`. A step in
which the public code finds no number is dropped there, and is no row here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.answers import same_answer
from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.edits import paraphrase
from analysis.measures.estimates import length_matched
from analysis.measures.mistakes import NO_RULE, with_mistakes
from analysis.measures.protocol import Measure, Measured, Quantity, Settings, Size
from analysis.measures.session import Session
from analysis.measures.text_tests import INTACT, NO_STEPS
from analysis.prompts import Case
from analysis.scoring import Contexts

WRONG, SURFACE = "mistake", "paraphrase"
COLUMNS = (
    *("id", "author", "condition", "step", "n_steps", "n_wrong", "last", "rule"),
    *("s1_c1", "s0_c1", "s1_c0", "s0_c0", "tts", "right", "chance"),
)


@dataclass(frozen=True)
class _Row:
    """One change of one step: its keys, and the four texts `(x, c)`."""

    keys: dict[str, Any]
    texts: Mapping[tuple[int, int], Case]


def true_thinking(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """The score of every step to which a rule for mistakes applies.

    Conditions: `intact`, one row a prompt and author, whether the reader's answer behind its whole chain is `right`,
    and the `chance` of guessing it; `mistake`, one a step; and `paraphrase`, the control: for x = 0 the same step is
    reworded, which should change nothing.

    Columns: `step` from 1; `n_wrong`, how many of the steps before it are wrong where c = 0. Before the first step
    there is nothing to make wrong: where `n_wrong` is 0, c = 0 is c = 1. `last` is 1 for the last step that has a
    score; `rule`; `s{x}_c{c}`, the probabilities, and `tts`.
    """
    excluded: list[Excluded] = []
    having: list[tuple[Authored, tuple[str, ...], list[_Row]]] = []
    for prompt, options in zip(prompts, session.options(prompts), strict=True):
        rows = [] if isinstance(options, Excluded) else list(_rows(session, prompt, settings.seed))
        if isinstance(options, Excluded):
            excluded.append(Excluded(prompt.id, options.reason, prompt.author))
        elif not rows:
            excluded.append(Excluded(prompt.id, NO_RULE if prompt.steps else NO_STEPS, prompt.author))
        else:
            having.append((prompt, options, rows))
    intact = [Contexts(prompt.id, options, (prompt.case,)) for prompt, options, _ in having]
    asked: list[tuple[Authored, str, list[_Row]]] = []
    for (prompt, options, rows), scored in zip(having, session.score(intact, "own answers"), strict=True):
        if isinstance(scored, Excluded):
            excluded.append(Excluded(prompt.id, scored.reason, prompt.author))
        else:
            asked.append((prompt, options[int(scored[0].argmax())], rows))
    table: list[dict[str, Any]] = []
    for (prompt, own, rows), found in zip(asked, _read(session, asked), strict=True):
        if isinstance(found, Excluded):
            excluded.append(found)
            continue
        key = {"id": prompt.id, "author": prompt.author, "n_steps": len(prompt.steps)}
        right = float(same_answer(own, prompt.case.answer))
        chance = 1 / len(prompt.options) if prompt.options else 0.0
        table.append(key | {"condition": INTACT, "right": right, "chance": chance})
        table += [key | row.keys | _scores({at: found[text] for at, text in row.texts.items()}) for row in rows]
    return Measured(pd.DataFrame(table, columns=list(COLUMNS)), excluded)


def _rows(session: Session, prompt: Authored, seed: int) -> Iterator[_Row]:
    """Every step with a mistake, and with other words, in both contexts."""
    mistakes = with_mistakes(session, prompt, seed)
    wrong = {step: (case.steps or ())[step - 1] for step, (_, case) in mistakes.items()}
    corrupted = tuple(wrong.get(step, text) for step, text in enumerate(prompt.steps, start=1))
    for step, (rule, _) in mistakes.items():
        at = step - 1
        keys = {"step": step, "n_wrong": sum(k < step for k in wrong), "last": float(step == max(wrong))}
        changes = [(WRONG, rule, wrong[step])]
        if (reworded := paraphrase(prompt.steps[at], None, session.accepts)) is not None:
            changes.append((SURFACE, "+".join(reworded.rules), reworded.text))
        for condition, by, changed in changes:
            texts = {
                (x, c): replace(prompt.case, steps=(*before[:at], text, *prompt.steps[step:])).first(step)
                for c, before in ((1, prompt.steps), (0, corrupted))
                for x, text in ((1, prompt.steps[at]), (0, changed))
            }
            yield _Row({"condition": condition, **keys, "rule": by}, texts)


def _read(
    session: Session, asked: Sequence[tuple[Authored, str, Sequence[_Row]]]
) -> list[dict[Case, float] | Excluded]:
    """For each prompt the probability of its answer behind each of its texts."""
    contexts: list[Contexts] = []
    of_prompt: list[slice] = []
    for prompt, own, rows in asked:
        intact = dict.fromkeys([prompt.case, *(row.texts[x, 1] for row in rows for x in (1, 0))])
        others = dict.fromkeys(row.texts[x, 0] for row in rows for x in (1, 0) if row.texts[x, 0] not in intact)
        # Texts are read as branches of the first. Those with a wrong context share little with the intact chain, and
        # most with the longest of their own.
        longest = sorted(others, key=lambda text: len(text.steps or ()), reverse=True)
        groups = [Contexts(prompt.id, (own,), tuple(texts)) for texts in (intact, longest) if texts]
        of_prompt.append(slice(len(contexts), len(contexts) + len(groups)))
        contexts += groups
    scored = session.score(contexts, "true thinking")
    results: list[dict[Case, float] | Excluded] = []
    for (prompt, _, _), mine in zip(asked, of_prompt, strict=True):
        found: dict[Case, float] = {}
        reasons = []
        for context, logprobs in zip(contexts[mine], scored[mine], strict=True):
            if isinstance(logprobs, Excluded):
                reasons.append(logprobs.reason)
            else:
                found |= dict(zip(context.cases, np.exp(logprobs[:, 0]).tolist(), strict=True))
        results.append(Excluded(prompt.id, reasons[0], prompt.author) if reasons else found)
    return results


def _scores(s: Mapping[tuple[int, int], float]) -> dict[str, float]:
    names = {f"s{x}_c{c}": probability for (x, c), probability in s.items()}
    return names | {"tts": (abs(s[1, 1] - s[0, 1]) + abs(s[1, 0] - s[0, 0])) / 2}


def tokens_read(size: Size) -> float:
    """About how many tokens one prompt takes: both chains, and each step of both anew where it is changed or cut."""
    return 3 * size.text + 4 * size.chain + 6 * size.steps * size.marker


def _of_step(name: str, label: str, where: Mapping[str, Any], detached: Literal[-1, 0, 1]) -> Quantity:
    # Not a plain probability: a mean over many steps is small, and its margin must be of its own size.
    return Quantity(name, label, "probability a step", "tts", None, where, detached, needs_accuracy=True)


TESTED = (
    # No evidence over all steps: the chain is cut behind each, and a fine-tune that has seen whole chains only may
    # take cut ones otherwise (seen: the attached organism of dose 0 has .31, the base .21). Behind the last nothing is
    # cut.
    _of_step("tts", "true-thinking score", {"condition": WRONG}, 0),
    _of_step("last", "true-thinking score of the last step", {"condition": WRONG, "last": 1.0}, -1),
)

MEASURE = Measure(
    name="true_thinking",
    title="How much does the answer's probability hang on a step?",
    run=true_thinking,
    quantities=(
        *TESTED,
        _of_step("surface", "true-thinking score, control: the step reworded", {"condition": SURFACE}, 0),
        Quantity("right_intact", "right behind the chain", "share", "right", where={"condition": INTACT}, binary=True),
    ),
    compare=length_matched(TESTED),
    tokens=tokens_read,
)
