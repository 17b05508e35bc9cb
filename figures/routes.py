"""Route shares: which share of the answer's causal effect goes past the chain, in the base and in every variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from figures.style import BLUE, COLUMN_WIDTH, GREY, ORANGE, RC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_HEIGHT = 0.36


def routes_figure(summary: Mapping[str, Any]) -> Figure:
    """Bypass by text and inside, with 95% intervals, a row a model, from a run's summary (`summary.json`, parsed).

    A model that is not scorable has no share to show and says so in its row.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = {"base": summary["base"], **summary["variants"]}
    with mpl.rc_context(RC):
        figure = Figure(figsize=(COLUMN_WIDTH, 0.95 + ROW_HEIGHT * len(rows)), layout="constrained")
        axes = figure.subplots()
        for position, reader in enumerate(rows.values()):
            _row(axes, position, reader)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        low, high = _limits(rows)
        axes.set_xlim(low, high)
        for at in (0, 1):
            axes.axvline(at, color=GREY, linewidth=0.5, zorder=0)
        axes.set_xlabel("share of the effect that bypasses the chain")
        axes.tick_params(axis="y", length=0)
        for colour, marker, label in ((BLUE, "o", "by text"), (ORANGE, "s", "inside")):
            axes.plot([], [], color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
        figure.legend(loc="outside upper center", ncols=2)
    return figure


def _hidden(reader: Mapping[str, Any]) -> bool:
    return not reader["scorable"] or reader.get("verdict") == "not scorable"


def _row(axes: Axes, position: int, reader: Mapping[str, Any]) -> None:
    own, verdict = reader["own"]["whole"], reader.get("verdict")
    if _hidden(reader):
        axes.text(0.02, position, "not scorable", va="center", color=GREY, style="italic", fontsize=7)
        return
    for form, colour, marker, shift in (("text", BLUE, "o", -0.13), ("inside", ORANGE, "s", 0.13)):
        bypass = own[form]["bypass"]
        if bypass["estimate"] is None:
            continue
        low, high = (bypass[key] if bypass[key] is not None else bypass["estimate"] for key in ("low", "high"))
        axes.plot([low, high], [position + shift] * 2, color=colour, linewidth=1.2, solid_capstyle="butt")
        axes.plot(bypass["estimate"], position + shift, color=colour, marker=marker, markersize=4)
    if verdict is not None:
        axes.text(1.02, position, verdict.split(",")[0], transform=axes.get_yaxis_transform(), va="center", fontsize=7)


def _limits(rows: Mapping[str, Any]) -> tuple[float, float]:
    ends = [
        reader["own"]["whole"][form]["bypass"][key]
        for reader in rows.values()
        if not _hidden(reader)
        for form in ("text", "inside")
        for key in ("low", "high")
    ]
    known = [end for end in ends if end is not None]
    return min([-0.05, *(end - 0.03 for end in known)]), max([1.05, *(end + 0.03 for end in known)])
