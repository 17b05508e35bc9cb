"""What a finished study says on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

COLOURS = {"attached": "green", "detached": "red", "inconclusive": "yellow", "not scorable": "magenta"}


def verdict_table(summary: Mapping[str, Any]) -> Iterator[Table | str]:
    """The verdicts as a table, then the reason for each, then what was excluded."""
    table = Table(title="Has the answer detached from the chain?", title_justify="left")
    table.add_column("variant")
    table.add_column("verdict")
    for head in ("n", "bypass by text", "change by text", "bypass inside", "change inside", "accuracy"):
        table.add_column(head, justify="right")
    base = summary["base"]
    own = base["own"]["whole"]
    table.add_row(
        "base",
        "",
        str(own["text"]["bypass"]["n"]),
        _interval(own["text"]["bypass"]),
        "",
        _interval(own["inside"]["bypass"]),
        "",
        _percent(base["accuracy"]["own_chain"]),
    )
    for name, variant in summary["variants"].items():
        text, inside = variant["bypass"]["text"], variant["bypass"]["inside"]
        # Without an effect to divide, shares are noise and are not shown.
        scorable = variant["verdict"] != "not scorable"
        shares = [
            _interval(share) if scorable else "—"
            for share in (text["variant"], text["difference"], inside["variant"], inside["difference"])
        ]
        colour = COLOURS.get(variant["verdict"], "yellow")
        table.add_row(
            escape(name),
            f"[bold {colour}]{variant['verdict']}[/]",
            str(text["difference"]["n"]),
            *shares,
            _percent(variant["accuracy"]["own_chain"]),
        )
    yield table
    for name, variant in summary["variants"].items():
        yield f"[bold]{escape(name)}[/]: {escape(variant['reason'])}"
    yield from _excluded(summary)


def _excluded(summary: Mapping[str, Any]) -> Iterator[str]:
    readers = {"all": summary["prompts"], "base": summary["base"], **summary["variants"]}
    for name, reader in readers.items():
        for reason, count in reader["excluded"].items():
            yield f"excluded for {escape(name)}: {count} of {summary['prompts']['read']} prompts: {escape(reason)}"


def _interval(estimate: Mapping[str, Any]) -> str:
    if estimate["estimate"] is None:
        return "—"
    if estimate["low"] is None:
        return f"{estimate['estimate']:.2f}"
    # Adding 0 turns -0.00 into 0.00.
    shown = [round(estimate[key], 2) + 0.0 for key in ("estimate", "low", "high")]
    return f"{shown[0]:.2f} \\[{shown[1]:.2f}, {shown[2]:.2f}]"


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.0f}%"
