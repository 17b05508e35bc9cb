"""Repair: by layer, the variant's bypass with the base's states in its chain, beside what else was written there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from analysis.runs import BASE
from figures import marks
from figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PAGE_HEIGHT,
    PAGE_WIDTH,
    PURPLE,
    SKY,
    VERMILION,
    Look,
    broken,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.runs import Run

WRITTEN: Mapping[str, tuple[Look, str]] = {
    "base": (Look(BLUE, "o", "-"), "base's states"),
    "affine": (Look(SKY, "s", "-"), "base's states, mapped"),
    "mean_difference": (Look(GREEN, "^", "-"), "mean difference added"),
    "random": (Look(ORANGE, "X", "-"), "random (control)"),
    "other_prompt": (Look(VERMILION, "D", "-"), "another prompt's (control)"),
    "length": (Look(PURPLE, "v", "-"), "shorter chains (placebo)"),
}
"""Condition → how it is drawn, and what the legend calls it."""
UNDISTURBED: Mapping[str, tuple[Look, str]] = {
    "unedited": (Look(BLACK, "", "-"), "nothing written"),
    "base_itself": (Look(GREY, "", "--"), "the base"),
}
NO_EFFECT = Look(GREY, "x", "")
COLUMNS = 3
PANEL_HEIGHT = 1.7
MAX_LABELS = 8
DODGE = 0.7
"""Share of the room of a layer that its points take."""
LEAST, MOST = -0.08, 1.08
BEYOND = 0.3
"""How far beyond the outermost point an interval is shown."""


@styled
def repair_figure(run: Run) -> Figure:
    """Bypass with 95% intervals, a panel a variant, by the layer after which states are written into the chain.

    Lines are the variant with nothing written, with its interval, and the base. The layer that is reported as a number
    is shaded. Where hardly any effect is left there is no bypass, and a grey cross at the lower edge.
    """
    columns = min(COLUMNS, len(run.variants))
    rows = math.ceil(len(run.variants) / columns)
    figure = Figure(figsize=(PAGE_WIDTH, 1.0), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    noise = [name for name in run.variants if marks.hidden(run, name) or marks.hidden(run, BASE)]
    shown = {name: found for name in run.variants if name not in noise and (found := _details(run, name))}
    low, high = _limits([cell for found in shown.values() for cell in found["cells"]])
    for axes in panels[len(run.variants) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, run.variants, strict=False):
        axes.set_title(broken(name), loc="left")
        axes.set_ylim(low, high)
        # Fixed, since other ticks would make other labels once the height is known, and leave no room for them.
        axes.yaxis.set_major_locator(MultipleLocator(0.5))
        if name in shown:
            _panel(axes, shown[name], low)
        else:
            axes.set_xticks([])
            marks.blank(axes, marks.NOT_SCORABLE if name in noise else "no prompt was patched")
    for axes in panels[::columns]:
        axes.set_ylabel("bypass")
    counts = [cell["total"]["n"] for found in shown.values() for cell in found["cells"]]
    figure.supxlabel(f"by text, states written after layer ({marks.n_prompts(counts)})", fontsize=8)
    height = marks.legend(figure, _handles(list(shown.values()))) if shown else 0.0
    figure.set_size_inches(PAGE_WIDTH, min(PAGE_HEIGHT, 0.5 + height + rows * PANEL_HEIGHT))
    return figure


def _details(run: Run, name: str) -> dict[str, Any] | None:
    reader = run.summary["measures"]["repair"]["readers"].get(name, {}).get(run.headline)
    found: dict[str, Any] | None = reader and reader.get("details")
    return found if found and found["layers"] else None


def _panel(axes: Axes, found: Mapping[str, Any], low: float) -> None:
    layers = found["layers"]
    axes.set_xlim(-0.5, len(layers) - 0.5)
    every = math.ceil(len(layers) / MAX_LABELS)
    axes.set_xticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    at = layers.index(found["fixed"])
    axes.axvspan(at - 0.5, at + 0.5, color="#F2F2F2", linewidth=0, zorder=0)
    for cell in found["cells"]:
        if cell["condition"] in UNDISTURBED and cell["bypass"]:
            look, _ = UNDISTURBED[cell["condition"]]
            axes.axhline(cell["bypass"]["estimate"], color=look.colour, linestyle=look.line, linewidth=1.0, zorder=1)
            if cell["condition"] == "unedited" and not marks.few(cell["bypass"]):
                axes.axhspan(cell["bypass"]["low"], cell["bypass"]["high"], color=BLACK, alpha=0.15, linewidth=0)
    for place, condition in enumerate(WRITTEN):
        shift = DODGE * (place / (len(WRITTEN) - 1) - 0.5)
        for cell in found["cells"]:
            if cell["condition"] == condition:
                _point(axes, cell["bypass"], layers.index(cell["layer"]) + shift, WRITTEN[condition][0], low)


def _point(axes: Axes, bypass: Mapping[str, Any] | None, at: float, look: Look, floor: float) -> None:
    if bypass is None:
        axes.plot(at, floor, color=NO_EFFECT.colour, marker=NO_EFFECT.marker, markersize=marks.MARKER, clip_on=False)
        return
    value = bypass["estimate"]
    ends = [value if bypass[end] is None else bypass[end] for end in ("low", "high")]
    axes.plot([at, at], ends, color=look.colour, linewidth=1.2, solid_capstyle="butt")
    face = "white" if marks.few(bypass) else look.colour
    axes.plot(at, value, color=look.colour, marker=look.marker, markersize=marks.MARKER, markerfacecolor=face)


def _shown(cells: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for cell in cells:
        if cell["condition"] in (*WRITTEN, *UNDISTURBED) and cell["bypass"]:
            yield cell["bypass"]


def _limits(cells: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    values = [each["estimate"] for each in _shown(cells)]
    ends = [each[key] for each in _shown(cells) for key in ("low", "high") if each[key] is not None]
    least, most = min([LEAST, *(value - 0.05 for value in values)]), max([MOST, *(value + 0.05 for value in values)])
    return max(min([least, *ends]), least - BEYOND), min(max([most, *ends]), most + BEYOND)


def _handles(found: Sequence[Mapping[str, Any]]) -> list[Any]:
    cells = [cell for each in found for cell in each["cells"]]
    there = {cell["condition"] for cell in cells}
    handles = [marks.handle(look, words) for name, (look, words) in UNDISTURBED.items() if name in there]
    handles += [marks.handle(look, words, line=False) for name, (look, words) in WRITTEN.items() if name in there]
    if any(cell["condition"] in WRITTEN and cell["bypass"] is None for cell in cells):
        handles.append(marks.handle(NO_EFFECT, "hardly any effect left", line=False))
    return [*handles, *marks.remarks(any(map(marks.few, _shown(cells))))]
