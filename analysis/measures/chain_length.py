"""Chain length: is a model right more or less often where it writes more steps, and is there a best length?

Source: after Wu et al. 2025, When More is Less: Understanding Chain-of-Thought Length in LLMs (arXiv 2502.07266), who
describe accuracy as an inverted U of the number of steps. The test is Simonsohn 2018, Two Lines: A Valid Alternative to
the Invalid Testing of U-Shaped Relationships With Quadratic Regressions (AMPPS 1, 538-555).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from analysis import statistics
from analysis.answers import same_answer
from analysis.authored import Authored
from analysis.measures.own_chains import own_steps
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session
from analysis.statistics import MIN_PROMPTS

COLUMNS = ("id", "author", "n_steps", "n_tokens", "right", "unanswered")
ALPHA = 0.05
FOUND, NOT_SHOWN, TOO_FEW = "inverted U", "not shown", f"fewer than {MIN_PROMPTS} prompts"


@dataclass(frozen=True)
class Line:
    """A straight line through the prompts on one side of a break: its slope a step, and the two-sided p of that."""

    slope: float
    p: float
    n: int


@dataclass(frozen=True)
class TwoLines:
    """Whether accuracy rises and then falls.

    Attributes:
        finding: `inverted U` if the slope before the break is above 0 and that behind it below, both at .05; else
            `not shown`, which says nothing against one.
        at: the number of steps where the lines meet; None if there is nowhere to break.
        before, behind: the lines; None without a break.
    """

    finding: str
    at: float | None = None
    before: Line | None = None
    behind: Line | None = None


def chain_length(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt with a chain that this reader wrote.

    Columns: `n_steps` and `n_tokens` of the chain; `right`, whether the answer that the reader wrote behind it is the
    gold one; `unanswered`, whether it wrote none, which is not right (the suite appended the marker for other
    measures).
    """
    own, excluded = own_steps(session, prompts)
    rows: list[dict[str, Any]] = []
    for prompt in own:
        start, end = session.reader.encoder.encode(prompt.case.question, prompt.steps, None, prompt.case.gaps).chain
        rows.append(
            {
                "id": prompt.id,
                "author": prompt.author,
                "n_steps": len(prompt.steps),
                "n_tokens": end - start,
                "right": float(same_answer(prompt.written, prompt.case.answer)),
                "unanswered": float(prompt.written is None),
            }
        )
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def summarise(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Accuracy by number of steps, with exact intervals, and whether it rises and then falls.

    `bins`: neighbouring numbers of steps put together until each bin has `MIN_PROMPTS` prompts. `shape`: `two_lines`.
    Of fewer prompts there are neither.
    """
    if len(table) < MIN_PROMPTS:
        return {"bins": [], "shape": {"finding": TOO_FEW}}
    steps, right = (table[name].to_numpy(dtype=float) for name in ("n_steps", "right"))
    bins = [
        {
            "from": int(steps[among].min()),
            "to": int(steps[among].max()),
            "right": statistics.clopper_pearson(int(right[among].sum()), int(among.sum())).to_dict(),
            "mean_tokens": float(table["n_tokens"].to_numpy(dtype=float)[among].mean()),
        }
        for among in (np.isin(steps, part) for part in _bins(steps))
    ]
    found = two_lines(steps, right)
    return {"bins": bins, "shape": {key: value for key, value in asdict(found).items() if value is not None}}


def _bins(steps: Float[ndarray, " prompt"]) -> list[list[float]]:
    """The numbers of steps in parts with at least `MIN_PROMPTS` prompts each, from the fewest steps on."""
    parts: list[list[float]] = []
    open_: list[float] = []
    for value in np.unique(steps).tolist():
        open_.append(value)
        if np.isin(steps, open_).sum() >= MIN_PROMPTS:
            parts.append(open_)
            open_ = []
    if open_:
        parts[-1] += open_
    return parts


def two_lines(x: Float[ndarray, " prompt"], y: Float[ndarray, " prompt"]) -> TwoLines:
    """Whether `y` rises with `x` and then falls, by two straight lines and not by the sign of a parabola.

    The break is the value of `x` nearest to the vertex of a fitted parabola, among those with `MIN_PROMPTS` prompts and
    two different values on each side, the break itself on both. Slopes are least squares with HC3 standard errors and
    Student's t. Both slopes must be significant, so a curve that only rises, or rises and stays, is found in fewer than
    5% of samples (simulated in the tests), although the data choose the break.

    Args:
        x: a number for each prompt, such as its steps.
        y: 0 or 1 for each prompt.
    """
    breaks = [at for at in np.unique(x) if all(_fits(x[side]) for side in (x <= at, x >= at))]
    if not breaks:
        return TwoLines(NOT_SHOWN)
    square, linear, _ = np.polyfit(x - x.mean(), y, 2)
    if square >= 0:
        return TwoLines(NOT_SHOWN)
    vertex = x.mean() - linear / (2 * square)
    at = float(min(breaks, key=lambda value: abs(value - vertex)))
    before, behind = (_line(x[side], y[side]) for side in (x <= at, x >= at))
    both = before.slope > 0 > behind.slope and max(before.p, behind.p) < ALPHA
    return TwoLines(FOUND if both else NOT_SHOWN, at, before, behind)


def _fits(side: Float[ndarray, " prompt"]) -> bool:
    return len(side) >= MIN_PROMPTS and len(np.unique(side)) > 1


def _line(x: Float[ndarray, " prompt"], y: Float[ndarray, " prompt"]) -> Line:
    """The least-squares slope with the HC3 standard error (MacKinnon & White 1985), as residuals of shares differ."""
    centred = x - x.mean()
    spread = float(np.sum(centred**2))
    slope = float(np.sum(centred * y)) / spread
    residuals = y - y.mean() - slope * centred
    leverage = 1 / len(x) + centred**2 / spread
    # A prompt alone at its end of the line has a leverage of 1 and no residual to tell anything by.
    weighted = np.divide(residuals, 1 - leverage, out=np.zeros_like(residuals), where=leverage < 1 - 1e-9)
    se = math.sqrt(float(np.sum((centred * weighted) ** 2))) / spread
    if abs(slope) < 1e-12:
        return Line(0.0, 1.0, len(x))
    p = 0.0 if se == 0 else float(2 * stats.t.sf(abs(slope) / se, len(x) - 2))
    return Line(slope, p, len(x))


MEASURE = Measure(
    name="chain_length",
    title="Is the answer right more or less often where more steps are written?",
    run=chain_length,
    quantities=(
        Quantity("n_steps", "steps of its own chain", "steps", "n_steps"),
        Quantity("n_tokens", "tokens of its own chain", "tokens", "n_tokens"),
    ),
    summarise=summarise,
    descriptive=True,
    tokens=lambda size: 0,
)
