"""What figures draw alike: estimates with their intervals, curves with bands, legends, words for what is not there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from analysis.runs import BASE
from analysis.statistics import MIN_PROMPTS, Estimate
from figures.style import BLACK, GREY, Look, broken

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.runs import Run

NOT_SCORABLE = "not scorable"
MARKER = 4.0
MARKED = 8
"""No more points of a curve than this carry a marker."""
NO_VALUE = "no value"
TOO_FEW = f"fewer than {MIN_PROMPTS} prompts"
DAGGER = "† routes not scorable"
NOTHING = Look(GREY, "", "none")


def hidden(run: Run, name: str) -> bool:
    """Whether a model's shares of its effect are noise, as it hardly reacts to question and chain."""
    reader = run.summary["base"] if name == BASE else run.summary["variants"][name]
    return not reader["scorable"] or reader.get("verdict") == NOT_SCORABLE


def label(run: Run, name: str) -> str:
    """A model's name as it is printed; a dagger stands for `DAGGER`, where the measure has a number all the same."""
    return broken(name) + (" †" if hidden(run, name) else "")


def estimate_of(run: Run, measure: str, reader: str, author: str, quantity: str) -> dict[str, Any] | str:
    """An estimate of `summary.json`, or in words why there is none."""
    found = run.summary["measures"][measure]["readers"].get(reader, {}).get(author, {}).get(quantity, NO_VALUE)
    return NO_VALUE if isinstance(found, Mapping) and found["estimate"] is None else found


def few(estimate: Mapping[str, Any]) -> bool:
    """Whether these are too few prompts for an interval to hold, which a hollow marker says."""
    return estimate["n"] < MIN_PROMPTS or estimate["low"] is None or estimate["high"] is None


def dot(axes: Axes, estimate: Mapping[str, Any], at: float, look: Look, size: float = MARKER) -> None:
    """Draws an estimate with its interval, lying at height `at`."""
    value = estimate["estimate"]
    low, high = (value if estimate[end] is None else estimate[end] for end in ("low", "high"))
    axes.plot([low, high], [at, at], color=look.colour, linewidth=1.2, solid_capstyle="butt")
    face = "white" if few(estimate) else look.colour
    axes.plot(value, at, color=look.colour, marker=look.marker, markersize=size, markerfacecolor=face)


def curve(axes: Axes, x: Float[ndarray, " point"], points: Sequence[Estimate], look: Look) -> None:
    """Draws estimates along x with a band for their intervals; a single one with a line for its own."""
    values, low, high = (
        np.array([getattr(point, name) for point in points], dtype=float) for name in ("estimate", "low", "high")
    )
    axes.plot(x, values, color=look.colour, linestyle=look.line, linewidth=1.1)
    axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)
    if len(x) == 1:
        axes.vlines(x, low, high, color=look.colour, linewidth=1.1)
    small = np.array([point.too_small for point in points])
    marked = np.arange(len(x)) % max(1, math.ceil(len(x) / MARKED)) == 0
    for face, chosen in ((look.colour, marked & ~small), ("white", marked & small)):
        axes.plot(
            x[chosen],
            values[chosen],
            linestyle="none",
            color=look.colour,
            marker=look.marker,
            markersize=MARKER - 0.5,
            markerfacecolor=face,
        )


def instead(axes: Axes, x: float, y: float, words: str, **where: Any) -> None:
    """Says in grey what stands in a number's place."""
    axes.text(x, y, words, va="center", color=GREY, style="italic", fontsize=7, **where)


def blank(axes: Axes, words: str) -> None:
    """Says in the middle of axes why they are empty."""
    instead(axes, 0.5, 0.5, words, transform=axes.transAxes, ha="center", multialignment="center")


def n_prompts(counts: Iterable[int]) -> str:
    """`n = 40`, or `n = 38–40` where models differ."""
    found = sorted(set(counts))
    return f"n = {found[0]}" if len(found) == 1 else f"n = {found[0]}–{found[-1]}" if found else "n = 0"


def handle(look: Look, label: str, line: bool = True, hollow: bool = False) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    face = "white" if hollow else look.colour
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": MARKER, "markerfacecolor": face}
    return Line2D([], [], linestyle=look.line if line else "none", linewidth=1.1, label=label, **style)


def remarks(few: bool = False, dagger: bool = False) -> list[Any]:
    """Entries of a legend that say what a hollow marker and a dagger mean, where there are any."""
    found = [handle(Look(BLACK, "o", "-"), TOO_FEW, line=False, hollow=True)] if few else []
    return [*found, handle(NOTHING, DAGGER)] if dagger else found


def entries(run: Run, look: Mapping[str, Look], missing: Mapping[str, str], few: bool = False) -> list[Any]:
    """A legend's entries for models and what their signs mean.

    Args:
        run: where the models are from.
        look: model → how it is drawn.
        missing: model → in words, why it is not drawn.
        few: whether there are hollow markers.
    """
    drawn = {
        name: handle(NOTHING, f"{broken(name)}\n({missing[name]})")
        if name in missing
        else handle(each, label(run, name))
        for name, each in look.items()
    }
    return [*drawn.values(), *remarks(few, any(hidden(run, name) for name in look if name not in missing))]


def legend(figure: Figure, handles: Sequence[Any]) -> float:
    """Sets a legend above all axes, in as many columns as the width holds; returns its height in inches."""
    columns = len(handles)
    while True:
        rows = math.ceil(len(handles) / columns)
        found = figure.legend(
            handles=handles,
            loc="outside upper center",
            # No more columns than these rows need, so that they are equally long.
            ncols=math.ceil(len(handles) / rows),
            columnspacing=1.2,
            handletextpad=0.5,
            borderaxespad=0.2,
        )
        size = found.get_window_extent()
        if columns == 1 or size.width <= 0.98 * figure.bbox.width:
            return float(size.height / figure.dpi)
        found.remove()
        columns -= 1


def common_steps(rows: pd.DataFrame) -> int:
    """How many steps, from the first, are in enough prompts for a mean: in `MIN_PROMPTS` of them, or in half.

    Args:
        rows: each a prompt `id` and a `step` that it has, from 1.
    """
    counts = rows.groupby("step")["id"].nunique()
    bar = min(MIN_PROMPTS, math.ceil(rows["id"].nunique() / 2))
    last = 0
    while counts.get(last + 1, 0) >= max(1, bar):
        last += 1
    return last
