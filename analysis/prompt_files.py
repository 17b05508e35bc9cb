"""Rows of prompt files: JSONL, JSON, Parquet and `datasets` directories, and the same in memory, as plain objects."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import InputError

REQUIRED = ("question", "answer")
CHAINS = ("steps", "chain", "response")
ASKED = ("answerable", "abstain", "constraints", "shifted", "partial")
OPTIONAL = ("id", *CHAINS, "options", "counterfactual", "meta", *ASKED)
FIELDS = (*REQUIRED, *OPTIONAL)

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_EXPECTED = (
    "expected JSONL (.jsonl), a JSON list (.json), Parquet (.parquet) or a directory written by datasets' save_to_disk"
)


@dataclass(frozen=True)
class Row:
    """One record and where it stands: in what (`prompt file x.jsonl`) and at which place (`line 7`, `row 7`)."""

    source: str
    place: str
    record: dict[str, Any]

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.source}, {self.place}"


def read_rows(path: str | Path, split: str | None = None) -> list[Row]:
    """The records of a prompt file, of numbers, texts, lists and objects only; missing values are None.

    Args:
        path: the file or directory; `directory:split` names a split of a saved `DatasetDict`.
        split: the same, given apart.

    Raises:
        InputError: if it cannot be read, naming the line of JSONL.
    """
    file, split = _located(path, split)
    source = f"prompt file {file}" + (f", split {split!r}" if split is not None else "")
    if file.is_dir():
        return rows_in_memory(_from_dataset(file, split), source)
    if split is not None:
        raise InputError(f"prompt file {file}: a split ({split!r}) can be named only for a datasets directory")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        told = repr(file.suffix) if file.suffix else "its name"
        raise InputError(f"prompt file {file}: its kind cannot be told from {told}; {_EXPECTED}")
    if suffix == ".parquet":
        return rows_in_memory(_from_parquet(file), source)
    text = _text(file)
    if suffix == ".json":
        return rows_in_memory(_from_json(text, file), source)
    return list(_from_lines(text, source))


def rows_in_memory(records: Any, source: str) -> list[Row]:
    """The rows of a list of objects, a pandas DataFrame, a `datasets.Dataset` or an Arrow table, counted from 1.

    Raises:
        InputError: for anything else, and for a row that is not an object.
    """
    return [
        Row(source, f"row {number}", _object(_readable(record, f"{source}, row {number}"), f"{source}, row {number}"))
        for number, record in enumerate(_iterable(records, source), start=1)
    ]


def file_digest(path: str | Path) -> str:
    """SHA-256 of a prompt file, or of the names and bytes of a directory's files, as hexadecimal digits."""
    file, _ = _located(path, None)
    if file.is_file():
        return hashlib.sha256(file.read_bytes()).hexdigest()
    sha = hashlib.sha256()
    for part in sorted(part for part in file.rglob("*") if part.is_file() and not part.name.startswith("cache-")):
        sha.update(part.relative_to(file).as_posix().encode() + b"\0" + hashlib.sha256(part.read_bytes()).digest())
    return sha.hexdigest()


def _located(path: str | Path, split: str | None) -> tuple[Path, str | None]:
    file = Path(path).expanduser()
    if not file.exists() and ":" in file.name:
        stem, named = str(file).rsplit(":", 1)
        if Path(stem).exists():
            if split not in (None, named):
                raise InputError(f"prompt file {path}: names the split {named!r}, but {split!r} was asked for")
            return Path(stem), named
    if not file.exists():
        raise InputError(f"prompt file {file}: no such file; {_EXPECTED}")
    return file, split


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"prompt file {file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"prompt file {file}: cannot be read ({error.strerror})") from None


def _from_lines(text: str, source: str) -> Iterator[Row]:
    # Not splitlines(): U+2028 and its like are legal inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{source}, {place}: not valid JSON ({error.msg} at column {error.colno}); expected one JSON object "
                "per line"
            ) from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
            raise InputError(f"{source}, {place}: cannot be read as JSON ({error})") from None
        yield Row(source, place, _object(_readable(record, f"{source}, {place}"), f"{source}, {place}"))


def _from_json(text: str, file: Path) -> list[Any]:
    where = f"prompt file {file}"
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise InputError(
                f"{where}: more than one JSON value (line {error.lineno}); expected one list of objects; a file with "
                "one object per line must be named .jsonl"
            ) from None
        raise InputError(
            f"{where}, line {error.lineno}: not valid JSON ({error.msg} at column {error.colno})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot be read as JSON ({error})") from None
    if not isinstance(records, list):
        raise InputError(f"{where}: expected a JSON list of objects, found {kind(records)}")
    return records


def _from_parquet(file: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        # Not read_table(): it makes columns out of directories named like `split=test`.
        table = parquet.ParquetFile(file).read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"prompt file {file}: cannot be read as Parquet ({reason[0]})") from None
    return _without_index(table)


def _without_index(table: Any) -> list[dict[str, Any]]:
    """The rows of an Arrow table without pandas' index columns, save an index that was named as a field is."""
    import pyarrow

    if doubled := sorted({name for name in table.column_names if table.column_names.count(name) > 1}):
        raise InputError(f"table: has the column {doubled[0]!r} twice; give every column a name of its own")
    try:
        described = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
        index = {name for name in described["index_columns"] if isinstance(name, str) and name not in FIELDS}
    except (ValueError, TypeError, KeyError):  # not written by pandas, or not any more
        index = set()
    table = table.drop_columns([name for name in table.column_names if name in index])
    for number, column in enumerate(table.schema):
        # A 32-bit 0.1 is 0.1, and not the 64-bit number nearest to it.
        if pyarrow.types.is_float32(column.type) or pyarrow.types.is_float16(column.type):
            values = [None if value is None else float(str(value)) for value in table.column(number).to_numpy()]
            table = table.set_column(number, column.name, pyarrow.array(values, pyarrow.float64(), from_pandas=True))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _from_dataset(directory: Path, split: str | None) -> Any:
    """The `datasets.Dataset` saved in a directory; nothing is fetched and no script is run."""
    where = f"prompt file {directory}"
    many = (directory / "dataset_dict.json").is_file()
    if not many and not (directory / "state.json").is_file():
        raise InputError(f"{where}: a directory, but not one that datasets' save_to_disk wrote; {_EXPECTED}")
    from datasets import load_from_disk  # type: ignore[import-untyped, unused-ignore]

    try:
        loaded = load_from_disk(str(directory))
    except Exception as error:  # datasets, pyarrow and json each raise their own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{where}: cannot be loaded as a dataset ({reason[0]})") from None
    if not many:
        if split is not None:
            raise InputError(f"{where}: has no splits, but {split!r} was asked for; give the directory alone")
        return loaded
    names = list(loaded)
    if split is None and len(names) == 1:
        split = names[0]
    if split is None:
        raise InputError(f"{where}: holds the splits {', '.join(names)}; name one, as in {directory}:{names[0]}")
    if split not in names:
        raise InputError(f"{where}: has no split {split!r}; it holds {', '.join(names)}")
    return loaded[split]


def _iterable(records: Any, source: str) -> Iterable[Any]:
    if isinstance(records, Mapping):
        if records and all(hasattr(split, "with_format") for split in records.values()):
            raise InputError(f"{source}: holds the splits {', '.join(map(str, records))}; give one of them")
        raise InputError(f"{source}: expected a list of objects, found an object")
    if hasattr(records, "with_format"):  # datasets.Dataset
        return _without_index(records.with_format("arrow")[:])
    if hasattr(records, "to_pylist"):  # pyarrow.Table
        return _without_index(records)
    if hasattr(records, "reset_index") and hasattr(records, "columns"):  # pandas.DataFrame
        frame = records.reset_index() if set(records.index.names) & set(FIELDS) else records
        columns = [str(column) for column in frame.columns]
        return (dict(zip(columns, values, strict=True)) for values in frame.itertuples(index=False, name=None))
    if isinstance(records, Iterable) and not isinstance(records, str | bytes):
        return records
    raise InputError(f"{source}: expected a list of objects, a DataFrame or a Dataset, found {kind(records)}")


def _readable(value: Any, where: str) -> Any:
    try:
        return _plain(value)
    except RecursionError:
        raise InputError(f"{where}: is nested too deep to be read") from None


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, found {kind(record)}")
    return record


def _plain(value: Any) -> Any:
    """The value without numpy and pandas types; NaN, NaT and NA, which is how tables say missing, are None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if type(value).__module__ == "numpy":
        if getattr(value, "shape", ()):
            return _plain(value.tolist())
        # A 32-bit 0.1 is 0.1, and not the 64-bit number nearest to it.
        value = float(str(value)) if value.dtype.kind == "f" else value.item()
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def kind(value: object) -> str:
    """What a value is, in a user's words."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
