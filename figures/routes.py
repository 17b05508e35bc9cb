"""Route shares: which share of the answer's causal effect goes past the chain, and by which way inside the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.runs import BASE
from figures import marks
from figures.style import BLUE, COLUMN_WIDTH, GREEN, GREY, ORANGE, PURPLE, Look, broken, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.runs import Run

ROW_HEIGHT = 0.36
Shares = Mapping[tuple[str, str], tuple[Look, str]]
"""Form and share → how it is drawn, and what the legend calls it."""
BYPASS: Shares = {
    ("text", "bypass"): (Look(BLUE, "o", "-"), "by text"),
    ("inside", "bypass"): (Look(ORANGE, "s", "-"), "inside"),
}
WAYS: Shares = {
    ("inside", "direct"): (Look(GREEN, "^", "-"), "direct"),
    ("inside", "covert"): (Look(PURPLE, "D", "-"), "covert"),
}


@styled
def routes_figure(run: Run) -> Figure:
    """Bypass by text and inside, and the direct and covert shares inside, with 95% intervals, a row a model.

    A model that is not scorable has no share to show and says so in its row. Beside the other rows stand the verdicts.
    """
    figure = Figure(figsize=(COLUMN_WIDTH, 1.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for axes, shares, title in zip(panels, (BYPASS, WAYS), ("bypass", "ways inside"), strict=True):
        _panel(axes, run, shares)
        axes.set_title(title)
    panels[0].set_yticks(range(len(run.readers)), map(broken, run.readers))
    panels[0].set_ylim(len(run.readers) - 0.4, -0.6)
    for position, name in enumerate(run.readers):
        if name != BASE and not marks.hidden(run, name):
            beside = {"transform": panels[1].get_yaxis_transform(), "va": "center", "fontsize": 7}
            panels[1].text(1.05, position, run.verdicts[name].split(",")[0], **beside)
    found = list(_estimates(run, BYPASS))
    figure.supxlabel(f"share of the effect ({marks.n_prompts(each['n'] for each in found)})", fontsize=8)
    handles = [marks.handle(look, words) for look, words in (*BYPASS.values(), *WAYS.values())]
    few = any(map(marks.few, (*found, *_estimates(run, WAYS))))
    height = marks.legend(figure, [*handles, *marks.remarks(few)])
    figure.set_size_inches(COLUMN_WIDTH, 0.95 + height + ROW_HEIGHT * len(run.readers))
    return figure


def _panel(axes: Axes, run: Run, shares: Shares) -> None:
    low, high = _limits(list(_estimates(run, shares)))
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(3 if shares is BYPASS else 2, steps=[1, 5, 10]))
    for at in (0, 1):
        axes.axvline(at, color=GREY, linewidth=0.5, zorder=0)
    axes.tick_params(axis="y", length=0)
    for position, name in enumerate(run.readers):
        if marks.hidden(run, name):
            marks.instead(axes, 0.02, position, marks.NOT_SCORABLE)
            continue
        for (key, (look, _)), shift in zip(shares.items(), (-0.13, 0.13), strict=True):
            if share := _share(run, name, *key):
                marks.dot(axes, share, position + shift, look)


def _share(run: Run, name: str, form: str, share: str) -> dict[str, Any] | None:
    reader = run.summary["base"] if name == BASE else run.summary["variants"][name]
    found: dict[str, Any] | None = reader["own"]["whole"][form][share]
    return None if found is None or found["estimate"] is None else found


def _estimates(run: Run, shares: Shares) -> Iterator[dict[str, Any]]:
    for name in run.readers:
        for key in shares:
            if not marks.hidden(run, name) and (found := _share(run, name, *key)):
                yield found


def _limits(found: list[dict[str, Any]]) -> tuple[float, float]:
    ends = [each[key] for each in found for key in ("estimate", "low", "high") if each[key] is not None]
    return min([-0.08, *(end - 0.05 for end in ends)]), max([1.08, *(end + 0.05 for end in ends)])
