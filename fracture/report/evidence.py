"""The evidence of a report: what speaks for and against detachment, and apart from it what only describes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from analysis.measures.protocol import Quantity
from analysis.measures.text_tests import standing_beside
from analysis.models import BASE
from analysis.runs import Run
from figures.marks import hidden
from fracture import catalogue
from fracture.evidence import AGAINST, CONDITIONS, FOR, NEITHER
from fracture.report.numbers import MISSING, interval, number, p_value, too_small, typographic
from fracture.report.tables import TOO_SMALL, Cell, Group, Row, Table, is_share_of_effect
from fracture.validity import STATUSES
from fracture.verdict import NOT_SCORABLE

STANCES = {FOR: "for detachment", AGAINST: "against detachment", NEITHER: "neither"}


def findings(run: Run, variant: str) -> list[dict[str, Any]]:
    """The evidence on a variant, without shares of an effect where there is none."""
    noise = hidden(run, variant) or hidden(run, BASE)
    return [
        {**item, "text": typographic(item["text"])}
        for item in run.summary["variants"][variant]["evidence"]
        if not (noise and is_share_of_effect(_quantity(item["measure"], item["quantity"])))
    ]


def evidence_table(run: Run) -> Table:
    """Every diagnostic quantity by variant: what it speaks for, and its change from the base.

    Behind a quantity that was validated stands its status.
    """
    found = {
        (item["measure"], item["quantity"], item["condition"], name): item
        for name in run.variants
        for item in findings(run, name)
    }
    # Runs of before the suite was validated have none.
    statuses = {key[:3]: status for key, item in found.items() if (status := item.get("status"))}

    def cell(measure: str, quantity: Quantity, condition: str, variant: str) -> Cell | None:
        item = found.get((measure, quantity.name, condition, variant))
        if item is None:
            asked = run.summary["measures"][measure]["changes"].get(variant, {}).get(condition, {}).get(quantity.name)
            # A change that is there and not weighed is a share of no effect.
            return asked and Cell(asked if isinstance(asked, str) else NOT_SCORABLE, kind="words")
        flag = TOO_SMALL if too_small(item["difference"]) else ""
        shown = interval(item["difference"], quantity.unit, signed=True)
        return Cell(item["stance"], shown, p_value(item["q"], "q"), flag, kind=f"stance-{item['stance']}")

    return Table(
        "What every measure says",
        "Variant minus base, with 95% intervals. “For” and “against” mean detachment. A change speaks for it if it "
        "goes the way that the measure declares, is larger than the margin and holds over all that is weighed for the "
        "variant (q, Benjamini-Hochberg, below .05); against it if it goes the other way as clearly, or if its 90% "
        f"interval lies within the margin. None of it decides the verdict.{_said(set(statuses.values()))}",
        run.variants,
        list(_groups(run, cell, signed=True, statuses=statuses)),
        corner="quantity",
    )


def apart_table(run: Run) -> Table:
    """What is a baseline, a control or a description, and speaks neither for nor against: changes from the base."""

    def cell(measure: str, quantity: Quantity, condition: str, variant: str) -> Cell | None:
        of_measure = run.summary["measures"][measure]
        changed = of_measure["changes"].get(variant, {}).get(condition, {}).get(quantity.name)
        if changed is None:
            # A divergence from the base is a change by itself, and the base writes nothing into itself.
            alone = of_measure["readers"].get(variant, {}).get(run.headline, {}).get(quantity.name)
            if condition != "given" or BASE not in of_measure["readers"] or of_measure["readers"][BASE] or not alone:
                return None
            if is_share_of_effect(quantity) and (hidden(run, variant) or hidden(run, BASE)):
                alone = NOT_SCORABLE
            return Cell(alone, kind="words") if isinstance(alone, str) else Cell(interval(alone, quantity.unit))
        if is_share_of_effect(quantity) and (hidden(run, variant) or hidden(run, BASE)):
            changed = NOT_SCORABLE
        if isinstance(changed, str):
            return Cell(changed, kind="words")
        difference = changed["difference"]
        return Cell(interval(difference, quantity.unit, signed=True), flag=TOO_SMALL if too_small(difference) else "")

    return Table(
        "Baselines, controls and descriptions",
        "Variant minus base (for distances and divergences from the base, and what it repairs, the value itself), with "
        "95% intervals. These count neither for nor against: a harmless fine-tune moves them too.",
        run.variants,
        [*_groups(run, cell, signed=False), *_drift(run)],
        corner="quantity",
    )


def _said(statuses: Collection[str]) -> str:
    """What the statuses that are there mean."""
    said = "; ".join(f"{status}: {meaning}" for status, meaning in STATUSES.items() if status in statuses)
    return f" Of its status in the suite's own validation: {said}." if said else ""


def _groups(
    run: Run,
    cell: Callable[[str, Quantity, str, str], Cell | None],
    signed: bool,
    statuses: Mapping[tuple[str, str, str], str] | None = None,
) -> Iterator[Group]:
    """Rows of all quantities that have a sign, or of those that have none in descriptive measures, by measure."""
    for name in run.measures:
        measure = catalogue.measure(name)
        rows = []
        for quantity in measure.quantities:
            if (
                bool(quantity.detached) != signed
                or not (signed or measure.descriptive)
                or quantity in standing_beside()
            ):
                continue
            label = quantity.label.removeprefix(f"{name.replace('_', ' ')}: ")
            for condition, words in CONDITIONS.items():
                cells = [cell(name, quantity, condition, variant) for variant in run.variants]
                if any(cells):
                    head = f"{label} ({quantity.unit}), {words}"
                    if status := (statuses or {}).get((name, quantity.name, condition)):
                        head += f"; {status}"
                    rows.append(Row(head, [found or Cell(MISSING) for found in cells]))
        if rows:
            yield Group(measure.title, rows)


def _drift(run: Run) -> Iterator[Group]:
    found = run.summary["measures"].get("drift", {}).get("details", {})
    if found:
        rows = [
            Row(words, [Cell(number(found[name][key])) if name in found else Cell(MISSING) for name in run.variants])
            for key, words in (
                ("cka_min", "least debiased CKA over layers and positions"),
                ("procrustes_max", "largest Procrustes distance over layers and positions"),
            )
        ]
        yield Group(catalogue.measure("drift").title, rows)


def _quantity(measure: str, name: str) -> Quantity:
    return next(quantity for quantity in catalogue.measure(measure).quantities if quantity.name == name)
