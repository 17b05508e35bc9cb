"""What a finished study says on the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from analysis.routes import MIN_TOTAL_EFFECT
from analysis.runs import Run
from figures.trajectory import checkpoints
from fracture.report.verdicts import reads_own
from fracture.trajectory import detachment_said
from fracture.validity import DESCRIPTIVE

COLOURS = {"attached": "green", "detached": "red", "inconclusive": "yellow", "not scorable": "magenta"}


def verdict_table(summary: Mapping[str, Any]) -> Iterator[Table | str]:
    """The verdicts as a table (shares with 95% intervals), the reasons and other shares, what was excluded."""
    table = Table(
        title="Has the answer detached from the chain?", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("variant", overflow="fold")
    table.add_column("verdict", min_width=len("not scorable"))
    for head in ("n", "bypass by text", "bypass inside", "right"):
        table.add_column(head, justify="right", no_wrap=True)
    base = summary["base"]
    own = {form: shares["bypass"] for form, shares in base["own"]["whole"].items()}
    # Without an effect to divide, shares are noise and are not shown.
    shares = _shares(own) if base["scorable"] else (str(own["text"]["n"]), "—", "—")
    table.add_row("base", "", *shares, _percent(base["accuracy"]["own_chain"]))
    for name, variant in summary["variants"].items():
        colour = COLOURS.get(variant["verdict"], "yellow")
        scorable = variant["verdict"] != "not scorable"
        own = {form: bypass["variant"] for form, bypass in variant["bypass"].items()}
        table.add_row(
            escape(name),
            f"[bold {colour}]{variant['verdict']}[/]",
            *(_shares(own) if scorable else (str(own["text"]["n"]), "—", "—")),
            _percent(variant["accuracy"]["own_chain"]),
        )
    yield table
    for name, variant in summary["variants"].items():
        yield f"[bold]{escape(name)}[/]: {escape(variant['reason'])}"
        if variant["verdict"] != "not scorable":
            yield from _other_shares(variant)
    yield from _statuses(summary)
    yield from _inputs(summary)
    yield from _excluded(summary)


def trajectory_table(run: Run) -> Iterator[Table | str]:
    """A trajectory as a table by step (shares with 95% intervals), from which step on it is detached, what was
    excluded."""
    points = checkpoints(run)
    table = Table(
        title="When does the answer detach from the chain?", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("verdict", min_width=len("not scorable"))
    for head in ("bypass by text", "bypass inside", "gain", "right"):
        table.add_column(head, justify="right", no_wrap=True)
    for point in points:
        found = {name: None if isinstance(each, str) else each for name, each in point.found.items()}
        gain, right = (
            None if (each := found[name]) is None else each["estimate"] for name in ("information_gain", "accuracy_own")
        )
        table.add_row(
            str(point.step),
            f"[bold {COLOURS.get(point.verdict, 'yellow')}]{point.verdict}[/]" if point.verdict else "base",
            *("—" if (each := found[f"bypass_{form}"]) is None else _interval(each) for form in ("text", "inside")),
            _number(gain),
            _percent(right),
        )
    yield table
    yield detachment_said(points)
    yield from _statuses(run.summary)
    yield from _inputs(run.summary)
    yield from _excluded(run.summary)


def _statuses(summary: Mapping[str, Any]) -> Iterator[str]:
    """Which measures have quantities that failed the suite's own validation, if any."""
    statuses = {
        (item["measure"], item["quantity"], item["condition"]): item.get("status")
        for variant in summary["variants"].values()
        for item in variant["evidence"]
    }
    failed = [key for key, status in statuses.items() if status == DESCRIPTIVE]
    if failed:
        yield (
            f"evidence: {len(failed)} of {len(statuses)} quantities are descriptive (failed validation) and speak "
            f"neither for nor against: of {', '.join(dict.fromkeys(measure for measure, *_ in failed))}"
        )


def _inputs(summary: Mapping[str, Any]) -> Iterator[str]:
    """Where partners came from, if not all from the prompt file, and what other prompts as partners show."""
    prompts = summary["prompts"]
    if set(prompts["partners"]) - {"given"}:
        yield f"partners: {', '.join(f'{n} × {source}' for source, n in prompts['partners'].items())}"
    for name, reader in {"base": summary["base"], **summary["variants"]}.items():
        if described := reader["another_prompt_as_partner"]:
            yield (
                f"  {escape(name)}, another prompt as partner (described, not counted): "
                f"bypass {_interval(described['bypass'])}"
            )
    if prompts["chains_without_answer"]:
        yield f"{prompts['chains_without_answer']} prompts: a chain without an answer was read; the marker was appended"


def _other_shares(variant: Mapping[str, Any]) -> Iterator[str]:
    """What stands beside bypass: with interaction, direct and bypass differ."""
    yield f"  direct: {_both(variant['direct'])}"
    yield f"  covert: {_interval(variant['covert']['inside']['variant'])}"
    cut = variant["no_conclusion"]
    total = cut["total"]["text"]["variant"]
    scorable = total["low"] is not None and total["low"] >= MIN_TOTAL_EFFECT
    yield f"  bypass, last step removed: {_both(cut['bypass']) if scorable else f'total effect {_interval(total)}'}"
    if reads_own(variant):
        yield f"  bypass on its own chains: {_both(variant['own_chains']['bypass'])}"


def _both(share: Mapping[str, Any]) -> str:
    return f"{_interval(share['text']['variant'])} text, {_interval(share['inside']['variant'])} inside"


def _shares(bypass: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(bypass["text"]["n"]), _interval(bypass["text"]), _interval(bypass["inside"])


def _excluded(summary: Mapping[str, Any]) -> Iterator[str]:
    readers = {"all": summary["prompts"], "base": summary["base"], **summary["variants"]}
    for name, reader in readers.items():
        for reason, count in reader["excluded"].items():
            yield f"excluded for {escape(name)}: {count} of {summary['prompts']['read']} prompts: {escape(reason)}"


def _interval(estimate: Mapping[str, Any]) -> str:
    centre, low, high = (_number(estimate[key]) for key in ("estimate", "low", "high"))
    return centre if estimate["low"] is None else f"{centre} \\[{low}, {high}]"


def _number(value: float | None) -> str:
    """Two decimals, no leading zero: the table must fit 80 columns."""
    if value is None:
        return "—"
    # Adding 0 turns -0.00 into 0.00.
    return re.sub(r"^(-?)0\.", r"\1.", f"{round(value, 2) + 0.0:.2f}")


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.0f}%"
