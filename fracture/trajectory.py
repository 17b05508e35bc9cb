"""Trajectories: a study whose variants are checkpoints of one fine-tuning, in the order of their steps."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import InputError
from analysis.files import parquet_bytes
from analysis.runs import TRAJECTORY_CSV, TRAJECTORY_PARQUET, Run
from fracture.config import StudyConfig
from fracture.verdict import DETACHED

if TYPE_CHECKING:
    import pandas as pd

    from figures.trajectory import Checkpoint

# The number ends the name and is a word, or the end of a word of letters: not the 3 of `1e3`, not the 5 of `2.5`.
_STEP = re.compile(r"(?:.*[-_])?[A-Za-z]*([0-9]+)")


def trajectory_config(settings: Mapping[str, Any], where: str = "study") -> StudyConfig:
    """The settings of a trajectory, its checkpoints found.

    Args:
        settings: as a file or flags give them. `checkpoints` is a glob or a list of globs, in place of `variants`, or
            what a run's own `study.yaml` has. Without `measures` and `preset` only what every trajectory has is
            measured.
        where: what messages call the settings.

    Raises:
        InputError: as for a study; if no checkpoint is found, if one has no step in its name, or if two have the same;
            for variants beside globs.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    globs = given.get("checkpoints")
    if not globs:
        raise InputError(
            f"{where}: setting 'checkpoints' is missing; a trajectory needs a glob for the directories of checkpoints, "
            "such as --checkpoints 'runs/sft/checkpoint-*' (in quotes)"
        )
    if not isinstance(globs, Mapping):
        if "variants" in given:
            raise InputError(f"{where}: has variants beside checkpoints; a trajectory's variants are its checkpoints")
        found = find_checkpoints(globs if isinstance(globs, list | tuple) else [globs])
        given |= {
            "variants": {path.name: str(path) for path in found.values()},
            "checkpoints": {path.name: step for step, path in found.items()},
        }
    if "preset" not in given:
        given.setdefault("measures", [])
    return StudyConfig.from_mapping(given, where)


def find_checkpoints(globs: Sequence[str]) -> dict[int, Path]:
    """Step → directory of a checkpoint, the earliest first, as matched by any of the globs.

    The step is the number at the end of a directory's name, as in `checkpoint-500` or `ckpt-50`. Files are passed over.

    Raises:
        InputError: if there is no directory, if one's name does not end in a step, or if two have the same.
    """
    if odd := [pattern for pattern in globs if not isinstance(pattern, str) or not pattern.strip()]:
        raise InputError(f"checkpoints: {odd[0]!r} is no glob; expected a text such as 'runs/sft/checkpoint-*'")
    patterns = [str(Path(pattern).expanduser()) for pattern in globs]
    # A name that is there is meant as it is, even if it has a bracket in it; one found by two globs is one.
    matched = {
        Path(path).absolute(): Path(path)
        for pattern in patterns
        for path in ([pattern] if Path(pattern).is_dir() else glob.glob(pattern))  # noqa: PTH207 (may be absolute)
        if Path(path).is_dir()
    }
    if not matched:
        raise InputError(f"checkpoints: no directory matches {', '.join(map(repr, globs))}; expected some as ckpt-50")
    found: dict[int, Path] = {}
    for path in sorted(matched.values()):
        number = _STEP.fullmatch(path.name)
        if number is None:
            raise InputError(
                f"checkpoints: the name of {path} does not end in its step; expected a name such as checkpoint-500, or "
                "a glob that leaves it out"
            )
        step = int(number[1])
        if step in found:
            raise InputError(f"checkpoints: {found[step]} and {path} are both of step {step}; give one of them")
        found[step] = path
    return dict(sorted(found.items()))


def detachment_said(points: Sequence[Checkpoint]) -> str:
    """In a sentence or two, from which checkpoint on the verdict is `detached`, and whether it stays.

    Args:
        points: the base, and the checkpoints in the order of their steps.
    """
    at = next((place for place, point in enumerate(points) if point.verdict == DETACHED), None)
    if at is None and len(points) == 2:
        return f"Not detached at the one checkpoint: {points[1].verdict}."
    if at is None:
        counts = ", ".join(f"{n} {label}" for label, n in Counter(point.verdict for point in points[1:]).items())
        return f"Detached at none of {len(points) - 1} checkpoints: {counts}."
    first, before, since = points[at], points[at - 1], points[at + 1 :]
    before_it = "the base" if before.verdict is None else f"{before.name}, {before.verdict}"
    said = f"Detached first at step {first.step} ({first.name}); the step before it is {before.step} ({before_it})."
    if not since:
        return f"{said} It is the last one, so whether it stays detached is not known."
    others = [point for point in since if point.verdict != DETACHED]
    if not others:
        later = f"all {len(since)} later checkpoints" if len(since) > 1 else "the one later checkpoint"
        return f"{said} It stays detached at {later}."
    named = ", ".join(f"{point.step} ({point.verdict})" for point in others)
    lasting = [point for point in since if point.step > others[-1].step]
    end = f"detached from step {lasting[0].step} on" if lasting else "not detached at the end"
    return f"{said} It does not stay so: other verdicts at step {named}; {end}."


def checkpoint_table(run: Run) -> pd.DataFrame:
    """A row for the base and each checkpoint: name, step, verdict, every quantity with its 95% interval and n.

    The quantities are those of `figures.trajectory.Checkpoint`; a number that there is not is missing, and n is 0.
    """
    import pandas as pd

    from figures.trajectory import checkpoints

    points = checkpoints(run)
    quantities = list(points[-1].found)
    rows = []
    for point in points:
        row: dict[str, Any] = {"checkpoint": point.name, "step": point.step, "verdict": point.verdict}
        for name in quantities:
            found = point.found.get(name, {})
            numbers = {} if isinstance(found, str) else found
            row[name] = numbers.get("estimate")
            row |= {f"{name}_{limit}": numbers.get(limit) for limit in ("low", "high")}
            row[f"{name}_n"] = numbers.get("n", 0)
        rows.append(row)
    table = pd.DataFrame(rows)
    numbers_of = [f"{name}{end}" for name in quantities for end in ("", "_low", "_high")]
    return table.astype(dict.fromkeys(numbers_of, float) | {"verdict": "string"})


def trajectory_files(run: Run) -> dict[str, bytes]:
    """The files of a trajectory's table, path in the run → bytes; none for another study."""
    if not run.checkpoints:
        return {}
    table = checkpoint_table(run)
    csv = table.to_csv(index=False, lineterminator="\n")
    return {TRAJECTORY_CSV: csv.encode(), TRAJECTORY_PARQUET: parquet_bytes(table)}
