"""Masked flow: does the answer's information run through the chain, or straight from the question?

Four masks on one text: `full`, nothing hidden; `via_chain`, marker and answer attend to nothing of the question;
`no_chain`, they attend to nothing of the chain; `no_prompt`, neither chain nor answer attends to the question, and the
chain is read again behind it. Then

    direct = D(full ‖ via_chain), necessity = D(full ‖ no_chain), leakage = D(via_chain ‖ no_prompt).

A mask does not undo what chain positions took from the question when they were read: the answer still reads that behind
`via_chain`, and `leakage` is how much it is. So a small `direct` does not show that the chain's words are what counts.

D is the Jensen-Shannon divergence over the options and anything else. A text that has lost its chain has lost its form
too, and where a model then says something that is no answer, that is necessity as well; the same over the options alone
leaves it out, and is what counts as evidence. Parts, the first token and the marker are as in attention knockout: of
the question all but the text's first token is hidden, the marker never.

Source: arXiv 2605.24286, with a divergence that holds at low entropy, and controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy.special import logsumexp, rel_entr, softmax

from analysis.authored import Authored
from analysis.masking import Mask
from analysis.measures.knockout import CHAIN, NOTHING, QUESTION, Readable, masked, readable, with_rest
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session

FULL = "full"
FLOWS = {
    "direct": (FULL, "via_chain"),
    "necessity": (FULL, "no_chain"),
    "leakage": ("via_chain", "no_prompt"),
    "question_control": (FULL, "like_question"),
    "chain_control": (FULL, "like_chain"),
}
"""Name → the two masks that are compared."""
COLUMNS = ("id", "author", "flow", "n_steps", "start", "n_positions", "divergence", "among", "log_odds", "elsewhere")


def masked_flow(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt, author and flow: `direct`, `necessity`, `leakage`, and two controls.

    `question_control` and `chain_control` are D of the full text and one in which a random span is hidden from marker
    and answer, as long as the question or the chain and anywhere before the marker; it may overlap it.

    Columns: `start` and `n_positions`, what the second mask hides; `divergence`, D in nats, at most log 2; `among`, the
    same over the options alone; `log_odds`, by how much the log-odds of `y` against the other options fall from the
    first mask to the second, in nats, where `y` is the reader's own answer, the most probable option behind the full
    text (NaN where it is the only option); `elsewhere`, by how much the probability of anything else rises.
    """
    kept, excluded = readable(session, prompts)
    masks = [_masks(item, settings.seed) for item in kept]
    scored = masked(session, kept, [tuple(found.values()) for found in masks], "masked flow")
    rows = []
    for item, found, scores in zip(kept, masks, scored, strict=True):
        logprobs = dict(zip(found, scores, strict=True))
        own = int(logprobs[FULL].argmax())
        for flow, pair in FLOWS.items():
            low, high = found[pair[1]].hidden
            before, after = (logprobs[mask] for mask in pair)
            p, q = with_rest(before), with_rest(after)
            rows.append(
                {
                    "id": item.prompt.id,
                    "author": item.prompt.author,
                    "flow": flow,
                    "n_steps": len(item.trace.steps),
                    "start": low,
                    "n_positions": high - low,
                    "divergence": jensen_shannon(p, q),
                    "among": jensen_shannon(softmax(before), softmax(after)),
                    "log_odds": _log_odds(before, own) - _log_odds(after, own),
                    "elsewhere": float(q[-1] - p[-1]),
                }
            )
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def jensen_shannon(p: Float[ndarray, " outcome"], q: Float[ndarray, " outcome"]) -> float:
    """The Jensen-Shannon divergence of two distributions in nats: 0 if they are equal, log 2 if they share nothing."""
    middle = (p + q) / 2
    return float((rel_entr(p, middle) + rel_entr(q, middle)).sum() / 2)


def _masks(item: Readable, seed: int) -> dict[str, Mask]:
    parts = {QUESTION: item.question, CHAIN: item.trace.chain}
    like = {part: item.anywhere(part, high - low, seed) for part, (low, high) in parts.items()}
    return {
        FULL: item.from_marker(NOTHING),
        "via_chain": item.from_marker(item.question),
        "no_chain": item.from_marker(item.trace.chain),
        "no_prompt": Mask(item.trace.chain[0], item.question),
        "like_question": item.from_marker(like[QUESTION]),
        "like_chain": item.from_marker(like[CHAIN]),
    }


def _log_odds(logprobs: Float[ndarray, " option"], own: int) -> float:
    """Of the own answer against the other options; against all else they would hang on what rounding leaves of 1."""
    others = np.delete(logprobs, own)
    return float(logprobs[own] - logsumexp(others)) if len(others) else np.nan


def _flow(flow: str, words: str) -> Quantity:
    return Quantity(flow, words, "nats", "divergence", None, {"flow": flow})


def _besides(flow: str, detached: Literal[-1, 1]) -> tuple[Quantity, ...]:
    where, words = {"flow": flow}, f"{flow}, over the options alone"
    # Where chain and question lead to the same answer, one of them does; that the question is not missed says nothing.
    mute = detached > 0
    return (
        Quantity(f"{flow}_among", words, "nats", "among", where=where, detached=detached, mute_if_unchanged=mute),
        Quantity(f"{flow}_odds", f"{flow}: fall of the answer's log-odds", "nats", "log_odds", None, where),
    )


MEASURE = Measure(
    name="masked_flow",
    title="Does information reach the answer through the chain, or past it?",
    run=masked_flow,
    quantities=(
        _flow("direct", "direct: divergence when the answer cannot see the question"),
        _flow("necessity", "necessity: divergence when the answer cannot see the chain"),
        _flow("leakage", "leakage: what chain positions hold of the question, read through them"),
        _flow("question_control", "divergence of a random span as long as the question"),
        _flow("chain_control", "divergence of a random span as long as the chain"),
        *_besides("direct", 1),
        *_besides("necessity", -1),
    ),
    tokens=lambda size: size.text + size.chain + 5 * size.marker,
)
