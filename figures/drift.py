"""Drift: how far each variant's activations have moved from the base's; a baseline, as harmless fine-tuning drifts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.similarity import MAX_NORM_SENSITIVITY
from figures import marks
from figures.style import BLACK, COLUMN_WIDTH, GREY, Look, looks, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.runs import Run

POSITIONS = {"question_end": "end of question", "step_ends": "ends of steps", "answer": "answer"}
QUANTITIES = {"cka": "debiased CKA", "procrustes": "Procrustes distance"}
PANEL_HEIGHT = 1.05
PREFERRED = "resid_post"


@styled
def drift_figure(run: Run) -> Figure:
    """Debiased CKA with the base and orthogonal Procrustes distance by layer, a line a variant, a row a position.

    The grey area reaches up to the 95th percentile of CKA between permuted prompts, the highest of all variants'. A
    hollow marker is a CKA that the 1% of rows with the largest norms decide. Of several sites that were kept
    `resid_post` is shown, or the first.
    """
    table = run.table("drift")
    sites = list(dict.fromkeys(table["site"]))
    site = PREFERRED if PREFERRED in sites or not sites else sites[0]
    table = table[table["site"] == site].sort_values("layer", kind="stable")
    look = looks(run.readers)
    figure = Figure(figsize=(COLUMN_WIDTH, 1.0), layout="constrained")
    panels = figure.subplots(len(POSITIONS), len(QUANTITIES), sharex=True, sharey="col")
    for (position, title), row in zip(POSITIONS.items(), panels, strict=True):
        rows = table[table["position"] == position]
        row[0].set_ylabel(title, fontsize=7)
        for axes, quantity in zip(row, QUANTITIES, strict=True):
            if rows[quantity].notna().any():
                _panel(axes, rows, quantity, look)
            else:
                marks.blank(axes, marks.NO_VALUE if len(rows) else "not kept")
    _frame(panels, table)
    figure.supxlabel(f"layer ({site}; {marks.n_prompts(table['n_prompts'])})", fontsize=8)
    missing = dict.fromkeys(set(run.variants) - set(table["reader"]), marks.NO_VALUE)
    handles = marks.entries(run, {name: look[name] for name in run.variants}, missing)
    if table["null_high"].notna().any():
        handles.append(Patch(facecolor=GREY, alpha=0.3, label="up to the 95th percentile\nof permuted prompts"))
    if _decided(table).any():
        handles.append(marks.handle(Look(BLACK, "o", "-"), "1% of rows decide", line=False, hollow=True))
    height = marks.legend(figure, handles)
    figure.set_size_inches(COLUMN_WIDTH, 0.75 + height + PANEL_HEIGHT * len(POSITIONS))
    return figure


def _decided(rows: pd.DataFrame) -> pd.Series[bool]:
    return rows["norm_sensitivity"].abs() > MAX_NORM_SENSITIVITY


def _panel(axes: Axes, rows: pd.DataFrame, quantity: str, look: Mapping[str, Look]) -> None:
    if quantity == "cka":
        null = rows.groupby("layer")["null_high"].max()
        # A step half a layer to both sides, so that a single layer has a width.
        x = np.repeat(null.index.to_numpy(dtype=float), 2) + np.tile([-0.5, 0.5], len(null))
        axes.fill_between(x, -1, np.repeat(null.to_numpy(dtype=float), 2), color=GREY, alpha=0.3, linewidth=0)
    for name, found in rows.groupby("reader", sort=False):
        shown = look[str(name)]
        layers, values = found["layer"].to_numpy(), found[quantity].to_numpy(dtype=float)
        mark: dict[str, Any] = {"color": shown.colour, "marker": shown.marker, "markersize": marks.MARKER - 0.5}
        axes.plot(layers, values, linestyle=shown.line, linewidth=1.0, markevery=max(1, len(layers) // 6), **mark)
        if quantity == "cka" and (hollow := _decided(found).to_numpy()).any():
            axes.plot(layers[hollow], values[hollow], linestyle="none", markerfacecolor="white", **mark)


def _frame(panels: np.ndarray, table: pd.DataFrame) -> None:
    for axes, title in zip(panels[0], QUANTITIES.values(), strict=True):
        axes.set_title(title)
        axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    least, most = (values.fillna(0).to_numpy() for values in (table["cka"], table["procrustes"]))
    panels[0, 0].set_ylim(least.min(initial=0) - 0.05, 1.05)
    panels[0, 1].set_ylim(0, 1.1 * most.max(initial=0.1))
    if len(table):
        panels[0, 0].set_xlim(table["layer"].min() - 0.5, table["layer"].max() + 0.5)
