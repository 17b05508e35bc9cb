"""Early answering: whether the answer stays the same, and how much less probable it is, behind a part of the chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from analysis import statistics
from analysis.statistics import MIN_PROMPTS
from figures import marks
from figures.style import COLUMN_WIDTH, looks, styled

if TYPE_CHECKING:
    from analysis.runs import Run

SHARES: Float[ndarray, " share"] = np.linspace(0, 1, 21)
PANELS = {"same": "share of answers\nunchanged", "drop": "drop of the answer's\nlog-probability (nats)"}
PANEL_HEIGHT = 1.3


@styled
def early_answering_figure(run: Run) -> Figure:
    """Both forms of early answering against the share of the chain that is kept, a line a model.

    On the chains that all models read. Each prompt's curve runs through its own cuts, linear between them; lines are
    means over prompts and bands their 95% intervals by Student's t. The answer is each model's own behind the whole
    chain, so that all lines end in 1 and 0. A model that is too often wrong for the test is not scorable.
    """
    table = run.table("early_answering")
    table = table[(table["author"] == run.headline) & table["condition"].isin(["early", "intact"])]
    look = looks(run.readers)
    figure = Figure(figsize=(COLUMN_WIDTH, 1.0), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    missing, counts = {}, []
    for name in run.readers:
        found = marks.estimate_of(run, "early_answering", name, run.headline, "drop")
        if isinstance(found, str):
            missing[name] = found
            continue
        for axes, value in zip(panels, PANELS, strict=True):
            curves = on_shares(table[table["reader"] == name], value)
            marks.curve(axes, SHARES, [statistics.mean(column) for column in curves.T], look[name])
            counts.append(len(curves))
    for axes, title in zip(panels, PANELS.values(), strict=True):
        axes.set_ylabel(title)
        axes.set_xlim(-0.03, 1.03)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if not counts:
            marks.blank(axes, ", ".join(dict.fromkeys(missing.values())))
            axes.set_yticks([])
    panels[0].set_ylim(-0.05, 1.05)
    panels[1].set_xlabel(f"share of the chain that is kept ({marks.n_prompts(counts)})")
    few = any(n < MIN_PROMPTS for n in counts)
    height = marks.legend(figure, marks.entries(run, look, missing, few))
    figure.set_size_inches(COLUMN_WIDTH, 0.7 + height + 2 * PANEL_HEIGHT)
    return figure


def on_shares(rows: pd.DataFrame, value: str) -> Float[ndarray, "prompt share"]:
    """One model's curves, each prompt's interpolated between its cuts, at `SHARES` of its chain.

    Args:
        rows: those of conditions `early` and `intact`; `cut` is the number of steps that were kept, NaN for all.
        value: column.
    """
    kept = rows.assign(share=rows["cut"].fillna(rows["n_steps"]) / rows["n_steps"]).sort_values("share", kind="stable")
    curves = [np.interp(SHARES, each["share"], each[value]) for _, each in kept.groupby("id", sort=False)]
    return np.array(curves).reshape(-1, len(SHARES))
