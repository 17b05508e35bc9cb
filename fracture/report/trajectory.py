"""What the report of a trajectory has beside that of a study: from which checkpoint on, and a table by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.routes import MIN_TOTAL_EFFECT
from analysis.runs import Run
from figures.marks import NO_VALUE
from figures.trajectory import Checkpoint, checkpoints
from fracture.report.numbers import MISSING, centre_of, limits_of, too_small
from fracture.report.tables import TOO_SMALL, Cell, Group, Row, Table, whose
from fracture.trajectory import detachment_said

_UNITS = {"information_gain": "nats", "information_gain_own": "nats"}


@dataclass(frozen=True)
class Trajectory:
    """The words and the table of a trajectory."""

    said: str
    table: Table


def trajectory(run: Run) -> Trajectory | None:
    """The section of a trajectory; None for another study."""
    if not run.checkpoints:
        return None
    points = checkpoints(run)
    given = f"the {whose(run)} chains"
    columns = {
        "total_effect": "total effect by text",
        "bypass_text": "bypass by text",
        "bypass_inside": "bypass inside",
        "information_gain": f"information gain (nats) of {given}",
        "information_gain_own": "of its own",
        "accuracy": f"right behind {given}",
        "accuracy_own": "right behind its own",
    }
    rows = [
        Row(
            point.name,
            [Cell(str(point.step)), Cell(point.verdict or MISSING, kind="words"), _count(point)]
            + [_cell(point, quantity) for quantity in columns],
        )
        for point in points
    ]
    table = Table(
        "Over fine-tuning",
        "The base is step 0. Every checkpoint is judged by itself against the base, so one among many may be detached "
        "by chance: what stays counts for more than what comes first. n: prompts of the total effect and of bypass by "
        f"text. The total effect is at most 2; with a lower bound below {MIN_TOTAL_EFFECT:g}, shares of it are not "
        "scorable. 95% intervals in brackets.",
        ["step", "verdict", "n", *columns.values()],
        [Group("", rows)],
        corner="checkpoint",
    )
    return Trajectory(detachment_said(points), table)


def _count(point: Checkpoint) -> Cell:
    found = point.found["total_effect"]
    if isinstance(found, str):
        return Cell(MISSING)
    return Cell(str(found["n"]), flag=TOO_SMALL if too_small(found) else "")


def _cell(point: Checkpoint, quantity: str) -> Cell:
    found = point.found[quantity]
    if not isinstance(found, Mapping):
        return Cell(MISSING) if found == NO_VALUE else Cell(found, kind="words")
    unit = _UNITS.get(quantity, "share")
    return Cell(centre_of(found, unit), limits_of(found, unit))
