"""What a mean of logit-difference decays rests on, as a table of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from analysis.measures.logit_decay import MIN_LD, PARTS
from analysis.runs import Run
from fracture.report.numbers import MISSING, centre_of, limits_of, percent, too_small
from fracture.report.tables import CHAINS, TOO_SMALL, Cell, Group, Row, Table, chains, whose

_MEASURE, _UNIT = "logit_decay", "%"


def decay_tables(run: Run) -> Iterator[Table]:
    """How many decays are undefined, their median, and where along the chain they are largest, for every model."""
    readers = run.summary["measures"][_MEASURE]["readers"]
    groups = []
    for kind in ("given", "own"):
        reader_of, author_of = chains(run)[kind]
        found = {name: readers.get(reader_of(name), {}).get(author_of(name), {}) for name in run.readers}
        rows = [Row(name, _cells(numbers["details"])) for name, numbers in found.items() if "details" in numbers]
        if rows:
            groups.append(Group(CHAINS[kind].format(whose=whose(run)), rows))
    yield Table(
        "What the mean decay rests on",
        "A decay is a ratio, and where the gold answer hardly leads a few can decide a mean: a lead below "
        f"{MIN_LD:g} standard deviations of the logits gives none (undefined), and the median is over prompts, with an "
        f"interval from order statistics. Of {PARTS} equal parts of the chain, the one whose steps decay most on "
        "average (the paper's reasoning horizon), and how often it is the same when prompts are drawn anew.",
        ["steps", "undefined", "median decay (%)", "largest in", "again, of draws"],
        groups,
    )


def _cells(found: Mapping[str, Any]) -> list[Cell]:
    median, horizon = found["median"], found["horizon"]
    counts = [Cell(str(found["steps"])), Cell(str(found["undefined"]))]
    if median["estimate"] is None:
        middle = Cell(MISSING)
    else:
        flag = TOO_SMALL if too_small(median) else ""
        middle = Cell(centre_of(median, _UNIT), limits_of(median, _UNIT), flag=flag)
    if horizon is None:
        return [*counts, middle, Cell(MISSING), Cell(MISSING)]
    end = horizon["share"]
    where = Cell(f"{percent(end - 1 / PARTS)} to {percent(end)}", kind="words")
    return [*counts, middle, where, Cell(percent(horizon["again"]))]
