"""Patch maps: where, in layers and steps, the partner's residual stream carries its answer over, and what changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from numpy import ndarray

from analysis import statistics
from analysis.runs import BASE
from analysis.statistics import MIN_PROMPTS
from figures.marks import NOT_SCORABLE, blank, common_steps, hidden, n_prompts
from figures.style import PAGE_HEIGHT, PAGE_WIDTH, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.runs import Run

MAX_STEPS = 12
SIGNIFICANT = 0.05
LAYER_HEIGHT, MIN_HEIGHT, MAX_HEIGHT, BETWEEN = 0.14, 0.75, 1.6, 0.3
"""Inches: a layer's row, a map at least and at most, and between two maps."""
ROUNDING = 0.005
"""So far beyond 1 a share is still printed as 1.00, and is not called clipped."""


class Map(NamedTuple):
    """Shares of the effect and their p-values, by layer and set of positions; NaN where nothing was measured."""

    share: Float[ndarray, "layer column"]
    p: Float[ndarray, "layer column"]


class Grid(NamedTuple):
    """Rows and columns of the maps; a column is a `part` and a `step` of the measure's cells."""

    layers: Sequence[int]
    columns: Sequence[tuple[str, int]]


@styled
def patch_maps_figure(run: Run) -> Figure:
    """Every model's map of layers × positions, and every variant's minus the base's, on one colour scale.

    Colour is the share of the total effect that comes about when the donor's stream is written there, clipped at ±1. A
    dot marks p < .05, corrected over the map: the measure's own p-value, and for a difference that of `difference`.
    Of the steps those are shown that 20 prompts, or half of them, have; of these the first twelve.
    """
    table = run.table("patch_map")
    table = table[table["author"] == run.headline]
    grid, cut = _grid(table)
    rows = len(run.readers)
    height = min(MAX_HEIGHT, max(MIN_HEIGHT, LAYER_HEIGHT * len(grid.layers)), (PAGE_HEIGHT - 0.8) / rows - BETWEEN)
    height = max(height, MIN_HEIGHT / 2)
    figure = Figure(figsize=(PAGE_WIDTH, 0.8 + rows * (height + BETWEEN)), layout="constrained")
    panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
    base = table[table["reader"] == BASE]
    drawn: list[Map] = []
    for name, (left, right) in zip(run.readers, panels, strict=True):
        left.set_title(name, loc="left")
        left.set_ylabel("layer")
        left.set_xlim(-0.5, len(grid.columns) - 0.5)
        left.set_ylim(-0.5, max(1, len(grid.layers)) - 0.5)
        if name == BASE:
            right.set_axis_off()
            right.text(0, 1, _key(table, cut), transform=right.transAxes, va="top", fontsize=7)
        else:
            right.set_title("minus base")
        for axes, other in ((left, None), (right, base))[: 1 + (name != BASE)]:
            if hidden(run, name) or (other is not None and hidden(run, BASE)):
                blank(axes, NOT_SCORABLE)
            elif (found := _map(run, name, table[table["reader"] == name], other, grid)) is None:
                blank(axes, "no prompt was patched")
            else:
                _draw(axes, found, height)
                drawn.append(found)
    _ticks(panels, grid, height)
    _colour_bar(figure, panels, drawn)
    return figure


def difference(base: pd.DataFrame, variant: pd.DataFrame, grid: Grid, seed: int) -> Map:
    """Shares of the variant minus shares of the base, cell by cell, over the prompts that have the cell in both.

    The p-values are by sign flips of prompts, corrected over all cells by the max-statistic, of each prompt's effect
    over the model's mean total: its mean over prompts is the difference of the two ratios of sums.

    Args:
        base: rows of the measure's table.
        variant: the same of another reader.
        grid: the cells.
        seed: of the sign flips.
    """
    cells = pd.MultiIndex.from_tuples([(layer, *column) for layer in grid.layers for column in grid.columns])
    shared = sorted(set(base["id"]) & set(variant["id"]))
    values = {
        (whose, value): rows.set_index(["id", "layer", "part", "step"])[value]
        .unstack(["layer", "part", "step"])
        .reindex(index=shared, columns=cells)
        .to_numpy(dtype=float)
        for whose, rows in (("base", base), ("variant", variant))
        for value in ("effect", "total")
    }
    there = ~np.isnan(sum(values.values()))
    of_total = {}
    for whose in ("base", "variant"):
        n = there.sum(axis=0)
        total = np.where(there, values[whose, "total"], 0.0).sum(axis=0)
        scale = np.divide(n, total, out=np.full(len(cells), np.nan), where=total > 0)
        of_total[whose] = np.where(there, values[whose, "effect"], np.nan) * scale
    flips = statistics.sign_flip_max(of_total["variant"] - of_total["base"], seed=seed)
    shape = (len(grid.layers), len(grid.columns))
    return Map(flips.mean.reshape(shape), np.where(flips.n > 0, flips.p, np.nan).reshape(shape))


def _grid(table: pd.DataFrame) -> tuple[Grid, str]:
    """What is shown, and in words what is not."""
    steps = table[table["part"] == "step"]
    longest, common = int(steps["step"].max()) if len(steps) else 0, common_steps(steps)
    shown = min(common, MAX_STEPS)
    columns = [("question", 0), *(("step", step) for step in range(1, shown + 1)), ("chain", 0), ("control", 0)]
    cut = f"steps 1–{shown} of {longest}" if shown else "no steps"
    if common < longest:
        cut += f": those that {MIN_PROMPTS} prompts or half have"
    if common > MAX_STEPS:
        cut += f"{',' if common < longest else ':'}\nthe first {MAX_STEPS}" + " of them" * (common < longest)
    return Grid(sorted(int(layer) for layer in table["layer"].unique()), columns), cut


def _key(table: pd.DataFrame, cut: str) -> str:
    counts = n_prompts(table.groupby("reader")["id"].nunique())
    return (
        f"residual stream written from the partner's run, {counts}\n{cut}\n"
        "control: as many random positions as a step has\n"
        "dot: p < .05, corrected over the map"
    )


def _map(run: Run, name: str, rows: pd.DataFrame, base: pd.DataFrame | None, grid: Grid) -> Map | None:
    """A model's map, or its difference from the base's rows; None if there is no prompt for it."""
    if base is not None:
        # All steps, as in the measure's own p-values, and not only those that are shown.
        everything = {(str(part), int(step)) for part, step in zip(rows["part"], rows["step"], strict=True)}
        whole = Grid(grid.layers, sorted(everything | set(grid.columns)))
        if not set(rows["id"]) & set(base["id"]):
            return None
        found = difference(base, rows, whole, run.summary["study"]["seed"])
        kept = [whole.columns.index(column) for column in grid.columns]
        return Map(found.share[:, kept], found.p[:, kept])
    reader = run.summary["measures"]["patch_map"]["readers"].get(name, {}).get(run.headline)
    if not reader or rows.empty:
        return None
    share, p = (np.full((len(grid.layers), len(grid.columns)), np.nan) for _ in range(2))
    for cell in reader["details"]["cells"]:
        if (column := (cell["part"], cell["step"])) in grid.columns and cell["share"]["estimate"] is not None:
            at = grid.layers.index(cell["layer"]), grid.columns.index(column)
            share[at], p[at] = cell["share"]["estimate"], cell["p"]
    return Map(share, p)


def _draw(axes: Axes, found: Map, height: float) -> None:
    share = np.where(np.abs(found.share) <= 1 + ROUNDING, np.clip(found.share, -1, 1), found.share)
    axes.imshow(share, cmap=share_colours(), vmin=-1, vmax=1, aspect="auto", origin="lower", interpolation="nearest")
    layers, columns = share.shape
    for edge in (0.5, columns - 2.5, columns - 1.5):
        axes.axvline(edge, color="white", linewidth=1.5)
    rows, places = np.nonzero(found.p < SIGNIFICANT)
    size = np.clip(0.4 * 72 * min(height / layers, 2.8 / columns), 0.4, 2.4)
    colours = np.where(np.abs(found.share[rows, places]) > 0.55, "white", "black")
    axes.scatter(places, rows, s=size**2, c=colours, linewidths=0)


def share_colours() -> Colormap:
    """Blue over white to red, safe with all forms of colour blindness; beyond its ends darker still."""
    ends = mpl.colormaps["RdBu_r"](np.linspace(0.08, 0.92, 256))
    return LinearSegmentedColormap.from_list("share", ends).with_extremes(
        under="#02112B", over="#2B0008", bad="#D9D9D9"
    )


def _ticks(panels: ndarray, grid: Grid, height: float) -> None:
    every = next((n for n in (1, 2, 5, 10, 20, 50) if len(grid.layers) * 0.13 <= n * height), 100)
    shown = range(0, len(grid.layers), every)
    panels[0, 0].set_yticks(shown, [grid.layers[at] for at in shown], fontsize=7)
    names = [str(step) if part == "step" else part for part, step in grid.columns]
    panels[0, 0].set_xticks(range(len(names)), names)
    for axes in panels[-1]:
        for label, name in zip(axes.get_xticklabels(), names, strict=True):
            label.set_rotation(0 if name.isdigit() else 90)


def _colour_bar(figure: Figure, panels: ndarray, drawn: Sequence[Map]) -> None:
    shares = np.concatenate([np.ravel(found.share) for found in drawn]) if drawn else np.zeros(0)
    under, over = bool((shares < -1 - ROUNDING).any()), bool((shares > 1 + ROUNDING).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[under, over]
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), share_colours()), ax=panels, extend=extend, fraction=0.03, pad=0.02, aspect=30
    )
    bar.set_label("share of the total effect" + (", clipped at ±1" if under or over else ""))
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    bar.ax.tick_params(labelsize=7)
