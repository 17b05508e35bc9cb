"""Tables of changes from the base that are looked at more closely: within strata, and over chains of equal length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from analysis.measures.protocol import Measure
from analysis.runs import Run
from fracture.report.numbers import MISSING, interval, p_value, too_small
from fracture.report.tables import CHAINS, TOO_SMALL, Cell, Group, Row, Table, heading, whose


def changes_tables(run: Run, measure: Measure) -> Iterator[Table]:
    """What a measure has beside its pooled changes, of those that the run has."""
    yield from _matched(run, measure)
    yield from _strata(run, measure)


def _details(run: Run, measure: Measure, variant: str, condition: str, key: str) -> Any:
    changes = run.summary["measures"][measure.name]["changes"].get(variant, {}).get(condition, {})
    return changes.get("details", {}).get(key)


def _matched(run: Run, measure: Measure) -> Iterator[Table]:
    """Only on own chains can two models' lengths differ."""
    found = {name: _details(run, measure, name, "own", "length_matched") for name in run.variants}
    names = [q for q in measure.quantities if any(item and q.name in item for item in found.values())]
    rows = []
    for name, item in found.items():
        if item:
            pooled = run.summary["measures"][measure.name]["changes"][name]["own"]
            rows.append(
                Row(
                    name,
                    [
                        Cell(f"{item['prompts']} of {item['of']}"),
                        *(_change(item.get(q.name), pooled.get(q.name), q.unit) for q in names),
                    ],
                )
            )
    if rows and names:
        yield Table(
            "Changes where both chains have as many steps",
            "Variant minus base, each on its own chains, over the prompts for which both wrote as many steps: a longer "
            "chain has a larger share of steps that do not matter. 95% intervals, two-sided p.",
            ["prompts", *(heading(measure.name, q) for q in names)],
            [Group("", rows)],
        )


def _change(found: Mapping[str, Any] | None, pooled: Any, unit: str) -> Cell:
    # What is no number over all prompts is none over some of them.
    if isinstance(pooled, str):
        return Cell(pooled, kind="words")
    if not found or found["difference"]["estimate"] is None:
        return Cell(MISSING)
    flag = TOO_SMALL if too_small(found["difference"]) else ""
    return Cell(interval(found["difference"], unit, signed=True), change=p_value(found["p"]), flag=flag)


def _strata(run: Run, measure: Measure) -> Iterator[Table]:
    groups = []
    for condition in ("given", "own", "text"):
        found = {name: _details(run, measure, name, condition, "strata") or [] for name in run.variants}
        rows = []
        for by, stratum in dict.fromkeys((item["by"], item["stratum"]) for items in found.values() for item in items):
            cells = []
            for items in found.values():
                here = [item for item in items if (item["by"], item["stratum"]) == (by, stratum)]
                difference = here[0]["difference"] if here else None
                text = interval(difference, measure.quantities[0].unit, signed=True) if difference else MISSING
                cells.append(Cell(text, change=f"n = {difference['n']}" if difference else ""))
            rows.append(Row(f"{by}: {stratum}", cells))
        if rows:
            groups.append(Group(CHAINS[condition].format(whose=whose(run)), rows))
    if groups:
        yield Table(
            "Changes within strata",
            f"The change of {measure.quantities[0].label}, variant minus base, among prompts that are alike: by number "
            "of steps, by length, and by whether the base finds the gold answer likely. Where it turns round between "
            "strata, no pooled change is given (“Simpson”). Strata of too few prompts are left out.",
            run.variants,
            groups,
            corner="stratum",
        )
