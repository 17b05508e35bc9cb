"""Finished runs: what figures, reports and notebooks read, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.authored import Authored, from_table
from analysis.errors import InputError

SUMMARY, STUDY, PROVENANCE = "summary.json", "study.yaml", "run.json"
TRACES, EXCLUDED = "traces.parquet", "excluded.parquet"
MEASURES, ACTIVATIONS, FIGURES = "measures", "activations", "figures"
TWIN, PROBES, FEATURES = "twin", "probes", "sae"
"""Activations of the base's random-weight twin; and what `fracture probes` and `fracture sae` write into a finished
run."""
REPORT, REPORT_MARKDOWN = "report.html", "report.md"
TRAJECTORY_CSV, TRAJECTORY_PARQUET = "trajectory.csv", "trajectory.parquet"
"""In the run of a trajectory: its table."""
WORK = "work"
"""What a study has measured so far; gone when the run is complete."""
FILES = (SUMMARY, STUDY, PROVENANCE, TRACES, EXCLUDED, REPORT, REPORT_MARKDOWN, TRAJECTORY_CSV, TRAJECTORY_PARQUET)
FOLDERS = (MEASURES, ACTIVATIONS, FIGURES, TWIN, PROBES, FEATURES, WORK)
BASE = "base"


@dataclass(frozen=True)
class Run:
    """A finished run directory, opened for reading."""

    directory: Path

    @classmethod
    def open(cls, directory: str | Path) -> Run:
        """The run in a directory.

        Raises:
            InputError: if there is none, or its study was not finished.
        """
        run = cls(Path(directory))
        if not (run.directory / SUMMARY).is_file():
            begun = (run.directory / STUDY).is_file()
            what = (
                "its study was not finished; run the same `fracture study` again, and it goes on"
                if begun
                else (f"holds no {SUMMARY}; expected the --out of a `fracture study`")
            )
            raise InputError(f"run {directory}: {what}")
        return run

    @cached_property
    def summary(self) -> dict[str, Any]:
        """`summary.json`, parsed; docs/summary.md describes it."""
        return self._json(SUMMARY)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """`run.json`, parsed: versions, digests of models and prompts, seconds a stage."""
        return self._json(PROVENANCE)

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants' names."""
        return tuple(self.summary["variants"])

    @property
    def readers(self) -> tuple[str, ...]:
        """All models' names, the base first."""
        return (BASE, *self.variants)

    @property
    def checkpoints(self) -> dict[str, int]:
        """Of a trajectory, checkpoint → step of fine-tuning, the earliest first; of another study, nothing."""
        steps: dict[str, int] = self.summary["study"].get("checkpoints", {})
        return dict(sorted(steps.items(), key=lambda item: item[1]))

    @property
    def headline(self) -> str:
        """The author whose chains all models read: `gold` or `base`."""
        return str(self.summary["study"]["author"])

    @property
    def verdicts(self) -> dict[str, str]:
        """Variant → verdict."""
        return {name: variant["verdict"] for name, variant in self.summary["variants"].items()}

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that this run has, by name."""
        names = tuple(self.summary["measures"])
        for name in names:
            # It becomes part of a path.
            if not re.fullmatch("[a-z_]+", name):
                raise InputError(
                    f"run {self.directory}: {SUMMARY} names a measure {name!r}; it was not written by a study"
                )
        return names

    def table(self, measure: str) -> pd.DataFrame:
        """The table of a measure: `reader`, `id`, `author`, keys and values, all models below each other.

        Raises:
            InputError: if the run has no such measure, or its file cannot be read.
        """
        if measure not in self.measures:
            raise InputError(
                f"run {self.directory}: has no measure {measure!r}; it has {', '.join(self.measures)}. Run the study "
                f"again with it, in another --out: --measures {','.join((*self.measures, measure))}"
            )
        return self._table(f"{MEASURES}/{measure}.parquet")

    def authored(self, author: str | None = None) -> list[Authored]:
        """The prompts with the chains that were read, of one author (by default of the headline's)."""
        table = self.traces
        return from_table(table[table["author"] == (author or self.headline)])

    @cached_property
    def traces(self) -> pd.DataFrame:
        """Every prompt with every author's chain: what was read."""
        return self._table(TRACES)

    @cached_property
    def excluded(self) -> pd.DataFrame:
        """Every prompt that was left out: `id`, `reader`, `measure`, `author`, `reason`."""
        return self._table(EXCLUDED)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            data = json.loads((self.directory / name).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"run {self.directory}: {name} cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise InputError(f"run {self.directory}: {name} is not valid JSON ({error})") from None
        if not isinstance(data, Mapping):
            raise InputError(f"run {self.directory}: {name} is not a JSON object; it was not written by a study")
        return dict(data)

    def _table(self, name: str) -> pd.DataFrame:
        try:
            return pd.read_parquet(self.directory / name)
        except OSError as error:
            raise InputError(f"run {self.directory}: {name} cannot be read ({error.strerror or error})") from None
        except ValueError as error:
            raise InputError(f"run {self.directory}: {name} is not a Parquet table ({error})") from None
