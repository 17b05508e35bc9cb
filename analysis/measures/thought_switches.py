"""Thought switches: how often does a chain drop one thought for another, and does it drop the right one?

Source: Wang et al. 2025, Thoughts Are All Over the Place: On the Underthinking of o1-Like LLMs (arXiv 2501.18585),
for the score. There a language model finds the thoughts and judges them; here both is by rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd

from analysis.answers import same_answer
from analysis.arithmetic import find_numbers
from analysis.authored import Authored
from analysis.measures.format_adherence import chain_text
from analysis.measures.own_chains import own_steps
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session

COLUMNS = ("id", "author", "switches", "switched", "n_tokens", "until_right", "right", "unanswered", "underthinking")

ANYWHERE = (
    r"alternatively",
    r"but wait(?=\s*[,.!…])",
    r"on second thoughts?",
    r"another (?:approach|way|method|idea)",
    r"(?:let me|let['’]s|let us|i(?:['’]ll| will| should)) (?:try|re-?check|double-?check|re-?consider|re-?think)",
    r"(?:let me|let['’]s|let us) (?:start (?:over|again)|go back)",
)
"""Cues wherever they stand; regular expressions of whole words, in any case."""
INITIAL = (r"wait", r"hmm+", r"actually", r"hold on", r"scratch that")
"""Cues only at the start of a step or sentence, as they also say something else (`they wait 5 minutes`)."""

_OPENING = r"(?:(?:but|oh|no|so|ok|okay|well)[\s,.…]+)*"
_ANYWHERE = re.compile(rf"(?<!\w)(?P<cue>{'|'.join(ANYWHERE)})(?!\w)", re.IGNORECASE)
_INITIAL = re.compile(
    rf"(?:\A|[.!?…:;][\"'”’)\]]*\s+|\n\s*)(?P<cue>{_OPENING}(?:{'|'.join(INITIAL)}))(?!\w)", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.!?…;\n]\W*\w")


def thought_switches(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt with a chain that this reader wrote.

    Columns: `switches` from one thought to another; `switched`, whether there is any; `n_tokens` of the chain;
    `until_right`, those up to and including the first thought that holds the right answer (NaN if none does); `right`,
    whether the answer written behind the chain is the gold one, and `unanswered`, whether there is none, which is not
    right; `underthinking`, for chains whose answer is not right `1 − until_right / n_tokens`, and 0 where no thought
    holds the right answer: who never had it dropped nothing (the paper's T̂ = T). Its mean is the paper's ξ.
    """
    own, excluded = own_steps(session, prompts)
    encoder = session.reader.encoder
    rows: list[dict[str, Any]] = []
    for prompt in own:
        thoughts = split_thoughts(chain_text(prompt, encoder.format), _starts(prompt, encoder.format.step_separator))
        # Cut at thoughts instead of steps the text is the same, and a token is of the thought that it ends in.
        trace = encoder.encode(prompt.case.question, thoughts, None, [""] * len(thoughts))
        start, end = trace.chain
        holding = next((at for at, text in enumerate(thoughts) if holds_answer(text, prompt.case.answer)), None)
        until = np.nan if holding is None else float(trace.steps[holding][1] - start)
        right = same_answer(prompt.written, prompt.case.answer)
        rows.append(
            {
                "id": prompt.id,
                "author": prompt.author,
                "switches": len(thoughts) - 1,
                "switched": float(len(thoughts) > 1),
                "n_tokens": end - start,
                "until_right": until,
                "right": float(right),
                "unanswered": float(prompt.written is None),
                "underthinking": np.nan if right else 0.0 if holding is None else 1 - until / (end - start),
            }
        )
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def split_thoughts(chain: str, starts: Sequence[int] = ()) -> tuple[str, ...]:
    """The thoughts of a chain, which together are its text: it is cut before each cue of `ANYWHERE` and `INITIAL`.

    Cues of one sentence are one switch (`But wait, let me re-check`), and so are cues with no word between them. A cue
    with no word before it begins the first thought and switches from none.

    Args:
        chain: its text.
        starts: characters at which steps start, in formats whose separator ends no sentence.
    """
    cuts: list[int] = []
    last_end = 0
    for start, end in _cues(chain, starts):
        between = chain[last_end:start]
        new_sentence = bool(_SENTENCE_END.search(chain[last_end : start + 1])) or any(
            last_end <= at <= start for at in starts
        )
        said = re.search(r"\w", between) is not None
        # The first cue needs a thought before it; a later one a sentence of its own and words since the one before.
        if said and (not cuts or new_sentence):
            cuts.append(start)
        last_end = end
    return tuple(chain[start:end] for start, end in zip([0, *cuts], [*cuts, len(chain)], strict=True))


def holds_answer(thought: str, answer: str) -> bool:
    """Whether a thought holds an answer by `same_answer`.

    For a number one of the thought's whole numbers, with its sign and percent sign, is the same (`46` is not in `146`);
    else its words stand there as whole words, a single letter in the same case. That a thought names the answer need
    not mean that it arrives at it.
    """
    if any(same_answer(number, answer) for number in _numbers(answer)):
        return any(same_answer(number, answer) for number in _numbers(thought))
    words = r"\s+".join(map(re.escape, answer.split()))
    flags = re.IGNORECASE if len(answer.strip()) > 1 else re.NOFLAG
    return re.search(rf"(?<!\w){words}(?!\w)", thought, flags) is not None


def _numbers(text: str) -> Iterator[str]:
    for number in find_numbers(text):
        before = text[: number.start].rstrip("$€£¥")
        # A minus between two operands is no sign.
        sign = "-" if re.search(r"(?:\A|[\s=(:,])[-−]\Z", before) and not re.search(r"\w\s*[-−]\s\Z", before) else ""
        yield sign + text[number.start : number.end] + ("%" if text[number.end : number.end + 1] == "%" else "")


def _cues(chain: str, starts: Sequence[int]) -> list[tuple[int, int]]:
    """Where cues start and end; of those that overlap the one that starts first."""
    found = {match.span("cue") for pattern in (_ANYWHERE, _INITIAL) for match in pattern.finditer(chain)}
    for start in starts:
        if match := _INITIAL.match(chain[start:]):
            found.add((start + match.start("cue"), start + match.end("cue")))
    kept: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


def _starts(prompt: Authored, separator: str) -> list[int]:
    """The characters of the chain's text at which its steps start, the first left out."""
    gaps = prompt.case.gaps or (separator,) * len(prompt.steps)
    lengths = [len(step) + len(gap) for step, gap in zip(prompt.steps, gaps, strict=True)]
    return list(accumulate(lengths))[:-1]


MEASURE = Measure(
    name="thought_switches",
    title="How often does the chain drop one thought for another, and does it drop the right one?",
    run=thought_switches,
    quantities=(
        Quantity("switches", "switches of thought in its own chain", "switches", "switches"),
        Quantity("switched", "chains with a switch", "share", "switched", binary=True),
        Quantity("underthinking", "underthinking of wrong answers", "share", "underthinking"),
    ),
    descriptive=True,
    tokens=lambda size: 0,
)
