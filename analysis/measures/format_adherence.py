"""Format adherence: does a model's own text keep the trace format and the prompt's constraints, as programs check?"""

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
from analysis.prompt_fields import meets
from analysis.trace_format import TraceFormat

CHECKS = {
    "marker": "set the answer marker itself",
    "stopped": "stopped by itself",
    "has_step": "at least one step",
    "in_options": "its answer is one of the options",
    "steps_match": "its steps match the format's step_regex",
    "constraints": "all constraints of the prompt met",
}
"""Column → what is checked."""
COLUMNS = ("id", "author", *CHECKS, "passed")
NOT_KNOWN = "it is not known whether its author or a limit ended its text"


def format_adherence(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt with a text that this reader wrote, cut ones and empty chains included where they are given.

    Columns, each 1 if it holds and NaN if there is nothing to check: `marker`, the reader set the answer marker with an
    answer behind it, and the suite did not; `stopped`, no limit cut its text; `has_step`; `in_options`, the answer is
    one of the options given with the prompt (none is none); `steps_match`, see `steps_match`; `constraints`, all of the
    prompt's own; `passed`, all that were checked.
    """
    own, excluded = own_chains(session, prompts)
    form = session.reader.encoder.format
    rows: list[dict[str, Any]] = []
    for prompt in own:
        if prompt.case.ended is None:
            excluded.append(Excluded(prompt.id, NOT_KNOWN, prompt.author))
            continue
        checks = _checks(prompt, form)
        checked = [value for value in checks.values() if value is not None]
        values = {name: np.nan if value is None else float(value) for name, value in checks.items()}
        rows.append({"id": prompt.id, "author": prompt.author, **values, "passed": float(all(checked))})
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def _checks(prompt: Authored, form: TraceFormat) -> dict[str, bool | None]:
    """Name of a check → whether it holds; None if there is nothing to check."""
    text = chain_text(prompt, form)
    asked = [
        meets(constraint, prompt.steps, text, prompt.written, f"prompt {prompt.id!r}")
        for constraint in prompt.case.asked.constraints
    ]
    chosen = any(same_answer(prompt.written, option) for option in prompt.options)
    return {
        "marker": prompt.written is not None,
        "stopped": bool(prompt.case.ended),
        "has_step": bool(prompt.steps),
        "in_options": chosen if prompt.options else None,
        "steps_match": None if form.step_regex is None else steps_match(prompt.steps, text, form.step_regex),
        "constraints": all(asked) if asked else None,
    }


def chain_text(prompt: Authored, form: TraceFormat) -> str:
    """The text of a prompt's chain as its author wrote it, up to white space at its ends."""
    gaps = prompt.case.gaps
    if gaps is None:
        return form.join(prompt.steps)
    return "".join(step + gap for step, gap in zip(prompt.steps, gaps, strict=True))


def steps_match(steps: Sequence[str], text: str, step_regex: str) -> bool:
    r"""Whether a chain has the marks that its format splits it at.

    The expression must match somewhere in the text; and where it takes nothing away, as `(?=Step \d)`, so that every
    step begins with what it looks for, the first step must, too: words before it are no step.
    """
    found = list(re.finditer(step_regex, text))
    if not found or not steps:
        return False
    takes = any(match.end() > match.start() for match in found)
    return takes or re.match(step_regex, steps[0]) is not None


MEASURE = Measure(
    name="format_adherence",
    title="Does the model's own text keep the format and the constraints?",
    run=format_adherence,
    quantities=(
        Quantity("passed", "all checks passed", "share", "passed", binary=True),
        *(Quantity(name, words, "share", name, binary=True) for name, words in CHECKS.items()),
    ),
    descriptive=True,
    tokens=lambda size: 0,
)
