"""Information gain: how much the chain, and each of its steps, tells a reader of the gold answer.

`G = LP(y*|Q, c) − LP(y*|Q)` in nats, and the profile `g_i = LP(y*|Q, s_≤i) − LP(y*|Q, s_<i)`, which sums to it. A
property of a text as read by some model; no proof that the reader's own answer is computed from it.

Source: after Wu et al. 2025 (arXiv 2506.02126), whose own form is the `paper` column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from analysis.answers import same_answer
from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.edits import filler as filler_text
from analysis.measures.estimates import strata
from analysis.measures.filler import filled
from analysis.measures.foreign_chain import Donors, with_chain_of
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS
from analysis.prompts import Case
from analysis.scoring import Contexts

CHAIN, STEP = "chain", "step"
_NUMBER = re.compile(r"[$€£¥]?(?<![\w.,])\d[\d,]*(?:\.\d+)?%?(?!\w)")
CONTROLS = ("masked", "foreign", "filler", "question")
COLUMNS = ("id", "author", "condition", "step", "n_steps", "n_tokens", "gain", "paper", "logprob")


def information_gain(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """The gain of every chain, of each of its steps, and of what stands in its place as a control.

    One row a prompt, author and condition: `chain` (the total), `step` (with `step` from 1: the profile), and as
    controls for the total `masked` (the gold answer masked wherever the chain says it), `foreign` (another prompt's
    chain, as nearly as long), `filler` (a neutral text of the same token length), `question` (the question once more in
    the chain's place). A control that cannot be made for a prompt has no row.

    Columns: `n_steps`; `n_tokens` of the text before the answer; `gain` in nats; `paper`, the published form `(PPL_0 −
    PPL_t)/t` over t steps, with the perplexity of the gold answer's tokens (it telescopes: the content of single steps
    cancels); `logprob`, `LP(y*)` behind the text.
    """
    donors = Donors(prompts, settings.seed)
    contexts, laid_out, excluded = [], [], []
    for prompt in prompts:
        if not prompt.steps:
            excluded.append(Excluded(prompt.id, NO_STEPS, prompt.author))
            continue
        controls = {
            name: case
            for name, case in _controls(session, prompt, donors)
            if case is not None and session.fits(case, prompt.case.answer)
        }
        prefixes = [prompt.case.first(n) for n in range(len(prompt.steps))]
        contexts.append(Contexts(prompt.id, (prompt.case.answer,), (prompt.case, *prefixes, *controls.values())))
        laid_out.append((prompt, controls))
    rows: list[dict[str, Any]] = []
    for (prompt, controls), scored in zip(laid_out, session.score(contexts, "information gain"), strict=True):
        if isinstance(scored, Excluded):
            excluded.append(Excluded(prompt.id, scored.reason, prompt.author))
        else:
            rows += _rows(session, prompt, controls, scored[:, 0])
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def _rows(
    session: Session, prompt: Authored, controls: Mapping[str, Case], logprobs: Float[ndarray, " text"]
) -> Iterator[dict[str, Any]]:
    n_steps = len(prompt.steps)
    curve = [*logprobs[1 : 1 + n_steps], logprobs[0]]
    key = {"id": prompt.id, "author": prompt.author, "n_steps": n_steps, "n_tokens": session.length(prompt.case)}
    n_tokens = session.answer_tokens(prompt.case)
    yield key | {
        "condition": CHAIN,
        "step": 0,
        "gain": curve[-1] - curve[0],
        "paper": (math.exp(-curve[0] / n_tokens) - math.exp(-curve[-1] / n_tokens)) / n_steps,
        "logprob": curve[-1],
    }
    for step in range(1, n_steps + 1):
        yield key | {"condition": STEP, "step": step, "gain": curve[step] - curve[step - 1], "logprob": curve[step]}
    for name, logprob in zip(controls, logprobs[1 + n_steps :], strict=True):
        yield key | {"condition": name, "step": 0, "gain": logprob - curve[0], "logprob": logprob}


def _controls(session: Session, prompt: Authored, donors: Donors) -> Iterator[tuple[str, Case | None]]:
    yield "masked", masked(session, prompt.case)
    donor = donors.of(prompt)
    yield "foreign", None if donor is None else with_chain_of(prompt.case, donor.case)
    yield "filler", filled(session, prompt.case, 0)
    yield "question", replace(prompt.case, steps=(prompt.case.question,), gaps=None)


def masked(session: Session, case: Case) -> Case | None:
    """The case with its answer masked by filler wherever a step says it, as a word or as a number of the same value.

    None if no filler fits, or no step says it.
    """
    mask = filler_text(session.tokens(case.answer), session.tokens)
    if mask is None:
        return None
    said = re.compile(rf"(?<![\w.,]){re.escape(case.answer)}(?![\w]|[.,]\d)", re.IGNORECASE)

    def hide(number: re.Match[str]) -> str:
        return mask if same_answer(number[0].rstrip(","), case.answer) else number[0]

    steps = tuple(said.sub(lambda _: mask, _NUMBER.sub(hide, step)) for step in case.steps or ())
    return None if steps == case.steps else replace(case, steps=steps)


TOTAL = Quantity("total", "information gain of the chain", "nats", "gain", where={"condition": CHAIN}, detached=-1)


def compare(base: pd.DataFrame, variant: pd.DataFrame) -> dict[str, Any]:
    """The change of the total by number of steps, by length, and by whether the base finds the gold answer likely."""
    prompts = base[base["condition"] == CHAIN].set_index("id")
    length = prompts["n_tokens"].map(lambda n: "shorter half" if n <= prompts["n_tokens"].median() else "longer half")
    likely = prompts["logprob"].map(lambda logprob: "gold likely" if logprob > math.log(0.5) else "gold not likely")
    return strata(base, variant, TOTAL, {"steps": prompts["n_steps"], "length": length, "base": likely})


MEASURE = Measure(
    name="information_gain",
    title="How much does the chain tell of the gold answer?",
    run=information_gain,
    authors="all",
    quantities=(
        TOTAL,
        Quantity("per_step", "information gain a step", "nats", "gain", "n_steps", {"condition": CHAIN}),
        Quantity(
            "paper",
            "information gain as published, (PPL_0 − PPL_t)/t",
            "perplexity",
            "paper",
            where={"condition": CHAIN},
        ),
        *(
            Quantity(name, f"information gain, control: {label}", "nats", "gain", where={"condition": name})
            for name, label in zip(
                CONTROLS,
                (
                    "answer masked in the chain",
                    "another prompt's chain",
                    "filler of equal length",
                    "the question again",
                ),
                strict=True,
            )
        ),
    ),
    compare=compare,
    tokens=lambda size: size.text + size.steps * size.marker + 3 * size.chain + size.question,
)
