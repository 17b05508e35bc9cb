"""The run directory: all of it is written, or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells import Excluded
from analysis.errors import InputError


@contextmanager
def new_run_directory(out: Path, overwrite: bool) -> Iterator[Path]:
    """A directory beside `out` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        InputError: before anything is computed, if `out` exists and may not be replaced, or cannot be written.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 (a link stays a link)
    if out.exists() and not overwrite:
        raise InputError(f"output {out}: exists already; choose another --out, or give --overwrite to replace it")
    foreign = _foreign(out) if out.exists() else None
    if foreign:
        raise InputError(
            f"output {out}: is not the run of a study ({foreign}), so it is not overwritten; choose another --out"
        )
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"output {out}: cannot be written ({error.strerror}); choose another --out") from None
    try:
        yield partial
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise InputError(f"output {out}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _foreign(out: Path) -> str | None:
    """Why a directory is not a run and nothing else; None if it is one, or empty."""
    if not out.is_dir():
        return "it is a file"
    names = {path.name for path in out.iterdir()}
    if odd := names - {"summary.json", "run.json", "effects.parquet", "excluded.parquet", "figures"}:
        return f"it holds {min(odd)!r}"
    if names and not {"summary.json", "run.json"} <= names:
        return "it has no summary.json or no run.json"
    return None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes indented JSON; NaN, which JSON has no word for, is an error."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_effects(path: Path, tables: Mapping[str, Mapping[str, pd.DataFrame]]) -> None:
    """Writes all readers' effects as one table, a row a prompt, `reader` and `chain` (whole or without its end)."""
    labelled = [
        table.assign(reader=reader, chain=chain) for reader, chains in tables.items() for chain, table in chains.items()
    ]
    pd.concat(labelled, ignore_index=True).to_parquet(path, index=False)


def write_excluded(path: Path, excluded: Mapping[str, Sequence[Excluded]]) -> None:
    """Writes every dropped prompt: `id`, `reader` (or `all`), `reason`."""
    rows = [
        {"id": item.id, "reader": reader, "reason": item.reason} for reader, items in excluded.items() for item in items
    ]
    pd.DataFrame(rows, columns=["id", "reader", "reason"]).astype("string").to_parquet(path, index=False)
