"""Heads: which attention heads carry the partner's answer, as far as patched exactly, and what the screen is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from figures.marks import NOT_SCORABLE, blank, handle, hidden, n_prompts
from figures.patch_maps import ROUNDING, share_colours
from figures.style import BLACK, GREY, ORANGE, PAGE_HEIGHT, PAGE_WIDTH, SKY, Look, broken, styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from analysis.runs import Run

PARTS = ("marker", "chain", "question")
ESTIMATES = {"plain": SKY, "integrated": ORANGE}
UNCONFIRMED = "#D9D9D9"
SCALES = (0.1, 0.25, 0.5, 1.0)
"""To which size colours run: the first that holds all shares, or the last."""
ROW, LOWEST, AROUND, BETWEEN = 1.5, 0.6, 0.75, 0.45
"""Inches: a model's row at most and at least, what stands around all, and between two rows."""


@styled
def heads_figure(run: Run) -> Figure:
    """Every model's maps of layers × heads at marker, chain and question, and its estimates against exact shares.

    Colour is the share of the change of the logit difference that comes about when the head's output there is the
    partner's, of the cells that were patched exactly, clipped at ±1; the others are grey, whatever their estimates say
    (of the last layer nothing but the marker is read, and nothing else patched).
    On the right all that were patched, those of steps too: both estimates against the exact share; the random sample of
    what was ranked low, with the bound on what it leaves unseen.
    """
    table = run.table("head_map")
    table = table[table["author"] == run.headline]
    layers = int(table["layer"].max()) + 1 if len(table) else 1
    heads = int(table["head"].max()) + 1 if len(table) else 1
    height = max(LOWEST, min(ROW, (PAGE_HEIGHT - AROUND) / len(run.readers) - BETWEEN))
    figure = Figure(figsize=(PAGE_WIDTH, AROUND + len(run.readers) * (height + BETWEEN)), layout="constrained")
    panels = figure.subplots(len(run.readers), 4, squeeze=False, width_ratios=(1, 1, 1, 1.25))
    details = {name: _details(run, name) for name in run.readers}
    exact = np.array(
        [
            cell["share"]["estimate"]
            for found in details.values()
            for cell in (found or {"cells": ()})["cells"]
            if cell["part"] in PARTS
        ],
        dtype=float,
    )
    scale = next((size for size in SCALES if (np.abs(exact) <= size).all()), SCALES[-1])
    for name, (*maps, scatter) in zip(run.readers, panels, strict=True):
        found = details[name]
        maps[0].set_ylabel("layer")
        for axes, part in zip(maps, PARTS, strict=True):
            axes.set_title(f"{broken(name)}\n{part}" if part == PARTS[0] else part, loc="left")
            _ticks(axes, layers, heads, height)
            if found is None:
                blank(axes, NOT_SCORABLE if hidden(run, name) else "no prompt")
            else:
                _draw(axes, _shares(found["cells"], part, layers, heads), scale)
        if found is None:
            scatter.set_axis_off()
        else:
            _scatter(scatter, found)
    for axes in panels[-1, :3]:
        axes.set_xlabel("head")
    if drawn := [at for at, found in enumerate(details.values()) if found]:
        panels[drawn[-1], 3].set_xlabel("exact share")
    _colour_bar(figure, panels, exact, scale)
    counts = n_prompts(found["prompts"] for found in details.values() if found)
    figure.legend(handles=_key(counts), loc="outside upper center", ncols=5, columnspacing=1.2, handletextpad=0.4)
    return figure


def _details(run: Run, name: str) -> Mapping[str, Any] | None:
    """What the measure found for a model; None where there is nothing, or what there is is noise."""
    reader = run.summary["measures"]["head_map"]["readers"].get(name, {}).get(run.headline)
    if hidden(run, name) or not reader:
        return None
    found: Mapping[str, Any] = reader["details"]
    return found


def _shares(cells: Sequence[Mapping[str, Any]], part: str, layers: int, heads: int) -> Float[ndarray, "layer head"]:
    """Exact shares of a part; NaN where a cell was not patched."""
    found = np.full((layers, heads), np.nan)
    for cell in cells:
        if cell["part"] == part:
            found[cell["layer"], cell["head"]] = cell["share"]["estimate"]
    return found


def _draw(axes: Axes, shares: Float[ndarray, "layer head"], scale: float) -> None:
    drawn = np.where(np.abs(shares) <= 1 + ROUNDING, np.clip(shares, -1, 1), shares)
    colours = share_colours().with_extremes(bad=UNCONFIRMED)
    axes.imshow(drawn, cmap=colours, vmin=-scale, vmax=scale, aspect="auto", origin="lower", interpolation="nearest")


def _ticks(axes: Axes, layers: int, heads: int, height: float) -> None:
    for axis, n, inches in ((axes.yaxis, layers, height), (axes.xaxis, heads, 1.2)):
        every = next((step for step in (1, 2, 5, 10, 20, 50) if n * 0.16 <= step * inches), 100)
        axis.set_ticks(range(0, n, every))
        axis.set_tick_params(labelsize=7)
    axes.set_xlim(-0.5, heads - 0.5)
    axes.set_ylim(-0.5, layers - 0.5)


def _scatter(axes: Axes, found: Mapping[str, Any]) -> None:
    cells = found["cells"]
    exact = np.array([cell["share"]["estimate"] for cell in cells], dtype=float)
    sampled = np.array([cell["chosen"] == "sample" for cell in cells], dtype=bool)
    for which, colour in ESTIMATES.items():
        values = np.array([cell[which] for cell in cells], dtype=float)
        for chosen, marker, size in ((~sampled, "o", 9), (sampled, "x", 14)):
            axes.scatter(exact[chosen], values[chosen], s=size, c=colour, marker=marker, linewidths=0.8, zorder=2)
    # The line where an estimate is the exact share, from end to end of all that is drawn.
    ends = [0.0, *exact, *(cell[which] for cell in cells for which in ESTIMATES)]
    low, high = min(ends), max(ends)
    pad = 0.06 * (high - low or 1)
    axes.plot([low - pad, high + pad], [low - pad, high + pad], color=GREY, linewidth=0.6, zorder=1)
    axes.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel("estimate", labelpad=1)
    axes.set_title(_bound(found["screen"]), loc="right", fontsize=7)


def _bound(screen: Mapping[str, Any]) -> str:
    """What the sample says of the cells that were ranked low."""
    if not screen["sampled"]:
        return f"every cell patched: {screen['cells']}"
    low = screen["cells"] - screen["confirmed"]
    # Rounded up: a bound must not be printed as less than it is.
    most = math.ceil(1000 * screen["bound"]) / 10
    return f"{screen['missed']} of {screen['sampled']} sampled missed;\nof {low} ranked low, ≤ {most:.1f}%"


def _key(counts: str) -> list[Any]:
    from matplotlib.patches import Patch

    estimates = [handle(Look(colour, "o", "none"), name, line=False) for name, colour in ESTIMATES.items()]
    sampled = handle(Look(BLACK, "x", "none"), "of the random sample", line=False)
    return [
        Patch(facecolor=UNCONFIRMED, label="not patched"),
        *estimates,
        sampled,
        handle(Look(GREY, "", "none"), counts, line=False),
    ]


def _colour_bar(figure: Figure, panels: ndarray, exact: Float[ndarray, " cell"], scale: float) -> None:
    under, over = bool((exact < -1 - ROUNDING).any()), bool((exact > 1 + ROUNDING).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[under, over]
    colours = ScalarMappable(Normalize(-scale, scale), share_colours())
    bar = figure.colorbar(colours, ax=panels[:, :3], extend=extend, fraction=0.03, pad=0.02, aspect=30)
    bar.set_label("share of the change" + (", clipped at ±1" if under or over else ""))
    bar.set_ticks([-scale, -scale / 2, 0, scale / 2, scale])
    bar.ax.tick_params(labelsize=7)
