"""What probes found, as tables of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from analysis.runs import Run
from fracture.report.numbers import MISSING, number
from fracture.report.tables import Cell, Group, Row, Table
from probes.grid import DECODABLE
from probes.measures.targets import ANSWER, CHAIN_ANSWER
from probes.transfer import OUTCOMES

_TARGETS = {ANSWER: "The model's own answer", CHAIN_ANSWER: "The answer that the chain comes to"}


def probes_tables(run: Run) -> Iterator[Table]:
    """How much a linear probe reads, of each target in each model."""
    groups = []
    for target, models in _by_target(run, "probes"):
        rows = []
        for name, found in models:
            if "reason" in found:
                rows.append(Row(name, [Cell(found["reason"], kind="words"), *[Cell(MISSING)] * 3]))
                continue
            best = found["best"]
            limits = f"[{number(best['low'])}, {number(best['high'])}]"
            score = Cell(number(best["score"]), limits, found["metric"])
            beyond = "" if best["finding"] == DECODABLE else best["finding"]
            where = Cell(f"{best['site']} {best['layer']}, {best['position']}", change=beyond, kind="words")
            first = found.get("readable_from")
            since = Cell(first or "nowhere", kind="words") if target == ANSWER else Cell(MISSING)
            rows.append(Row(name, [Cell(f"{found['decodable']} of {found['cells']}"), score, where, since]))
        groups.append(Group(_TARGETS[target], rows))
    yield Table(
        "What a linear probe reads, over layers and positions",
        "Decodable are cells whose score on held-out prompts stands, with its interval, above permuted labels (over "
        "the whole grid), a control task, the best baseline without activations, and a model with random weights. The "
        "best is of the decodable cells, or of all if there is none, and flattered by the choice. Readable from: the "
        "first position from which, in some layer, the score stays above half of the way from chance to 1, whatever "
        "the controls. 95% intervals in brackets.",
        ["decodable cells", "best score", "where", "readable from"],
        groups,
    )


def transfer_tables(run: Run) -> Iterator[Table]:
    """What became of the base's readings in every variant."""
    groups = [
        Group(
            _TARGETS[target],
            [
                Row(
                    name,
                    [Cell(found["reason"], kind="words"), *[Cell(MISSING)] * (len(OUTCOMES) - 1)]
                    if "reason" in found
                    else [Cell(str(found["outcomes"].get(outcome, 0))) for outcome in OUTCOMES],
                )
                for name, found in models
            ],
        )
        for target, models in _by_target(run, "transfer")
    ]
    yield Table(
        "What became of the base's readings, cells by outcome",
        "Kept: the base's probe reads the variant as well. Moved: it does not, and a probe of the variant's own does. "
        "Lost: that one does not either. Absent: it is read in neither; gained: in the variant alone. Kept says that "
        "the direction is the same, not that it is used.",
        list(OUTCOMES),
        groups,
    )


def _by_target(run: Run, measure: str) -> Iterator[tuple[str, list[tuple[str, Mapping[str, Any]]]]]:
    """Each target with the models' further results."""
    details = run.summary["measures"][measure].get("details", {})
    for target in _TARGETS:
        models = [(name, details[name][target]) for name in run.readers if target in details.get(name, {})]
        if models:
            yield target, models
