"""Option order: is the chain-free answer the same option when the options that the question lists change places?

Source: Bentham, Stringham & Marasović 2024, Chain-of-Thought Unfaithfulness as Disguised Accuracy (arXiv 2402.14897): a
same-answer rate means little for a reader whose answer hangs on the order of the options.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.measures.session import Session
from analysis.measures.text_tests import SHUFFLED
from analysis.prompts import Case
from analysis.scoring import Contexts

_LABEL = re.compile(r"(?:(?<=\s)|(?<=\A)|(?<=\())(?P<letter>[A-J])(?P<mark>[).:])(?=\s)")


@dataclass(frozen=True)
class Shuffled:
    """A question with its options in another order, and which option of the question each answer then stands for."""

    question: str
    stands_for: Mapping[str, str]


def shuffled_options(question: str, options: Sequence[str], rng: random.Random) -> Shuffled | None:
    """The question with the options it lists (`A) …`, `(B) …`, `C. …`) moved to other letters; None if it lists none.

    Answers may be the letters, or the listed texts; a list that does not fit the given options is none.
    """
    found = list(_LABEL.finditer(question))
    run = [match for place, match in enumerate(found) if match["letter"] == chr(ord("A") + place)]
    if len(run) < 2 or len(run) != len(found):
        return None
    line_end = question.find("\n", run[-1].end())
    ends = [match.start("letter") for match in run[1:]] + [len(question) if line_end < 0 else line_end]
    spans = []
    for match, end in zip(run, ends, strict=True):
        text = question[match.end() : end]
        # What stands between two options: white space, commas, the next one's opening bracket.
        inner = text.strip().rstrip("(").rstrip(" \t\n,;")
        start = match.end() + text.index(inner) if inner else match.end()
        spans.append((start, start + len(inner)))
    texts = [question[start:end] for start, end in spans]
    letters = [match["letter"] for match in run]
    if len(set(texts)) < len(texts) or "" in texts:
        return None
    order = list(range(len(texts)))
    while order == sorted(order):
        rng.shuffle(order)
    if set(options) == set(letters):
        stands_for = {letter: letters[at] for letter, at in zip(letters, order, strict=True)}
    elif set(options) == set(texts):
        stands_for = {text: text for text in texts}
    else:
        return None
    for (start, end), at in reversed(list(zip(spans, order, strict=True))):
        question = question[:start] + texts[at] + question[end:]
    return Shuffled(question, stands_for)


def option_order_rows(session: Session, prompts: Sequence[Authored], seed: int) -> list[dict[str, Any]]:
    """A row of condition `options_shuffled` for every prompt whose question lists its options; `same` is the result."""
    asked: list[tuple[Authored, Shuffled]] = []
    for prompt, options in zip(prompts, session.options(prompts), strict=True):
        rng = random.Random(f"{seed}:{prompt.case.question}:options")
        shuffled = (
            None if isinstance(options, Excluded) else shuffled_options(prompt.case.question, prompt.options, rng)
        )
        if shuffled is not None:
            asked.append((prompt, shuffled))
    contexts = [
        Contexts(prompt.id, prompt.options, tuple(case.first(0) for case in (prompt.case, _asking(prompt, shuffled))))
        for prompt, shuffled in asked
    ]
    rows = []
    for (prompt, shuffled), scored in zip(asked, session.score(contexts, "option order"), strict=True):
        if isinstance(scored, Excluded):
            continue
        first, second = (prompt.options[int(np.argmax(logprobs))] for logprobs in scored)
        rows.append(
            {
                "id": prompt.id,
                "author": prompt.author,
                "condition": SHUFFLED,
                "n_steps": len(prompt.steps),
                "chance": 1 / len(prompt.options),
                "same": float(shuffled.stands_for[second] == first),
            }
        )
    return rows


def _asking(prompt: Authored, shuffled: Shuffled) -> Case:
    return replace(prompt.case, question=shuffled.question)
