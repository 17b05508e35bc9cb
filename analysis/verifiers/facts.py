"""Claims about a user's own table of facts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import InputError, reason
from analysis.prompt_files import Row, kind, rows_in_memory
from analysis.segmentation import by_sentence

SUFFIXES = (".csv", ".jsonl", ".parquet")
_COLUMNS = "the columns 'subject', 'object' and, if wanted, 'relation'"
_WORD = re.compile(r"\d+(?:[.,]\d+)+|n['’]t\b|\w+?(?=n['’]t\b)|\w+|[^\w\s]")
_NEGATIONS = frozenset(("not", "never", "no", "cannot", "n't", "n’t"))
_Words = tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A row of a table of facts; without a relation, any wording that names both makes the claim."""

    subject: str
    object: str
    relation: str | None = None


class FactTable:
    """Verifies claims about the subjects of a table of facts; what the table does not say of its subjects is false.

    The rule, for each sentence of a step:

    1. Names are the table's subjects and objects, found as whole words in any case; of names that overlap the leftmost
       counts, and of those the longest.
    2. Names are taken in pairs, the first with the second, the third with the fourth. Each pair must be a subject and
       an object of the table, in either order. A sentence whose names do not pair off like this (`Paris and Berlin are
       the capitals of France and Germany`) has one claim that is not checkable.
    3. A claim's relation is what is named of the table's relations between the two, else between the pair before (or
       the sentence's start) and the first. With none named, rows without a relation decide; if the table has none of
       those, nothing is claimed.
    4. The claim (subject, relation, object) is true if it is a row, and false if it is not.
    5. A negation between the two (`not`, `n't`, `cannot`, `never`, `no`) flips it.

    Not checkable is also a pair of which neither is a subject of a row with that relation; one that can be read in both
    directions, of which just one is true; more than one relation, or more than one negation; a negation before the
    pair. The rule reads words, neither moods nor who is said of whom: `if Paris were the capital of Spain` makes a
    false claim, `France is the capital of Paris` a true one.

    Raises:
        InputError: if there are no rows.
    """

    def __init__(self, rows: Iterable[Fact]) -> None:
        self._facts = {(_words(row.subject), _words(row.relation or ""), _words(row.object)) for row in rows}
        if not self._facts:
            raise InputError(f"fact table: has no rows; expected {_COLUMNS}")
        self._with_relation = {(subject, relation) for subject, relation, _ in self._facts}
        self._subjects = {subject for subject, _, _ in self._facts}
        self._objects = {object_ for _, _, object_ in self._facts}
        self._names = _Lexicon(self._subjects | self._objects)
        self._relations = _Lexicon({relation for _, relation, _ in self._facts if relation})
        self._bare = any(not relation for _, relation, _ in self._facts)

    @classmethod
    def load(cls, path: str | Path) -> FactTable:
        """The table in a CSV, JSONL or Parquet file, of texts and numbers; rows may be there twice.

        Raises:
            InputError: if it cannot be read, has no rows or other columns, or lacks a subject or an object in a row.
        """
        rows = _read(Path(path).expanduser())
        if not rows:
            raise InputError(f"fact table {path}: has no rows; expected {_COLUMNS}")
        return cls([_fact(row) for row in rows])

    def __call__(self, step: str, question: str) -> list[bool | None]:
        """One entry a claim, in order, by the rule of the class."""
        return [verdict for sentence in by_sentence(step).steps for verdict in self._sentence(_words(sentence))]

    def _sentence(self, words: _Words) -> list[bool | None]:
        names = self._names.find(words)
        if not any(self._fit(one.name, other.name) for one in names for other in names):
            return []
        pairs = list(zip(names[::2], names[1::2], strict=False))
        if len(names) % 2 or not all(self._fit(one.name, other.name) for one, other in pairs):
            return [None] if self._bare or self._relations.find(words) else []
        verdicts: list[bool | None] = []
        at = 0
        for one, other in pairs:
            before, between = words[at : one.start], words[one.end : other.start]
            inside = self._relations.find(between)
            relations = {mention.name for mention in inside or self._relations.find(before)}
            if relations or self._bare:
                in_relation = {i for mention in inside for i in range(mention.start, mention.end)}
                negations = sum(word in _NEGATIONS for i, word in enumerate(between) if i not in in_relation)
                truth = self._truth(one.name, other.name, relations)
                checkable = truth is not None and negations <= 1 and _NEGATIONS.isdisjoint(before)
                verdicts.append(truth is (negations == 0) if checkable else None)
            at = other.end
        return verdicts

    def _fit(self, one: _Words, other: _Words) -> bool:
        """Whether the two are a subject and an object, in some order."""
        in_order = one in self._subjects and other in self._objects
        return one != other and (in_order or (other in self._subjects and one in self._objects))

    def _truth(self, one: _Words, other: _Words, relations: set[_Words]) -> bool | None:
        if len(relations) > 1:
            return None
        relation = next(iter(relations), ())
        truths = {
            (subject, relation, object_) in self._facts
            for subject, object_ in ((one, other), (other, one))
            if (subject, relation) in self._with_relation and object_ in self._objects
        }
        return truths.pop() if len(truths) == 1 else None


@dataclass(frozen=True)
class _Mention:
    """A name, from word `start` to word `end` of a sentence."""

    name: _Words
    start: int
    end: int


class _Lexicon:
    """Names as word sequences, looked up in a text."""

    def __init__(self, names: set[_Words]) -> None:
        self._names = names
        self._lengths = sorted({len(name) for name in names}, reverse=True)

    def find(self, words: _Words) -> list[_Mention]:
        found: list[_Mention] = []
        for start in range(len(words)):
            if not found or start >= found[-1].end:
                spans = (words[start : start + length] for length in self._lengths)
                name = next((span for span in spans if span in self._names), None)
                found += [_Mention(name, start, start + len(name))] if name else []
        return found


def _words(text: str) -> _Words:
    return tuple(_WORD.findall(text.casefold()))


def _read(file: Path) -> list[Row]:
    source, suffix = f"fact table {file}", file.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{source}: its kind cannot be told from its name; expected one of {', '.join(SUFFIXES)}")
    import pyarrow
    from pyarrow import parquet

    try:
        if suffix == ".parquet":
            return rows_in_memory(parquet.ParquetFile(file).read(), source)
        text = file.read_text(encoding="utf-8-sig")
        if suffix == ".csv":
            table = csv.DictReader(io.StringIO(text, newline=""), restkey="(cells beyond the header)", strict=True)
            return rows_in_memory(list(table), source)
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as error:
        raise InputError(f"{source}: cannot be read ({reason(error)}); expected {_COLUMNS}") from None
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source}, line {number}: not valid JSON ({reason(error)})") from None
        if not isinstance(record, dict):
            raise InputError(f"{source}, line {number}: expected a JSON object, found {kind(record)}")
        rows.append(Row(source, f"line {number}", record))
    return rows


def _fact(row: Row) -> Fact:
    found = set(row.record)
    if not {"subject", "object"} <= found <= {"subject", "object", "relation"}:
        raise InputError(f"{row.where}: has the columns {', '.join(sorted(found)) or 'none'}; expected {_COLUMNS}")
    subject, object_, relation = (_cell(row, column) for column in ("subject", "object", "relation"))
    if subject is None or object_ is None:
        raise InputError(f"{row.where}: the {'object' if subject else 'subject'} is empty; fill it in or drop the row")
    return Fact(subject, object_, relation)


def _cell(row: Row, column: str) -> str | None:
    value = row.record.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise InputError(f"{row.where}: {column!r} is {kind(value)}; expected a text or a number")
    return None if value is None or not str(value).strip() else str(value)
