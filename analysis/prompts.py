"""Prompts: what a study asks, read from a JSONL file with numbered complaints."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.errors import InputError

REQUIRED = ("id", "question", "answer")
OPTIONAL = ("steps", "chain", "options", "counterfactual", "meta")
COUNTERFACTUAL_FIELDS = ("question", "answer", "steps", "chain")


@dataclass(frozen=True)
class Case:
    """A question with its gold answer and, where known, a chain: as steps, or as one text still to be split."""

    question: str
    answer: str
    steps: tuple[str, ...] | None = None
    chain: str | None = None


@dataclass(frozen=True)
class Prompt:
    """One prompt of a study.

    Attributes:
        id: unique name.
        case: the prompt's own question, answer and (optionally) chain.
        partner: the counterfactual case `(Q', c', y')`, or None when the prompt has none.
        options: the answers among which the reader's probability is divided; empty when they are to be found.
        meta: anything else the user wants to keep with the prompt.
    """

    id: str
    case: Case
    partner: Case | None = None
    options: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a JSONL file, in its order; blank lines are skipped.

    Each line is an object with `id`, `question`, `answer`, and optionally `steps` (a list of texts) or `chain` (one
    text), `options`, `counterfactual` (an object `{question, answer, steps}` or the id of another prompt), `meta`.

    Raises:
        InputError: naming the file and the line, for anything that is not so.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"prompt file {path}: no such file; give a JSONL file with one prompt per line")
    records = list(_records(path))
    if not records:
        raise InputError(f"prompt file {path}: no prompts in it; expected one JSON object per line")
    first_line: dict[str, int] = {}
    cases: dict[str, Case] = {}
    for line, where, record in records:
        identifier = _text(record, "id", where)
        if identifier in first_line:
            raise InputError(
                f"{where}: id {identifier!r} was already used on line {first_line[identifier]}; ids must be unique"
            )
        first_line[identifier] = line
        cases[identifier] = _case(record, where)
    return [
        _prompt(record, identifier, cases, where) for (_, where, record), identifier in zip(records, cases, strict=True)
    ]


def _prompt(record: Mapping[str, Any], identifier: str, cases: Mapping[str, Case], where: str) -> Prompt:
    case = cases[identifier]
    partner = _partner(record.get("counterfactual"), identifier, cases, where)
    options = _options(record.get("options"), where)
    for gold, whose in ((case, "answer"), (partner, "partner's answer")):
        if options and gold and gold.answer not in options:
            raise InputError(f"{where}: the {whose} {gold.answer!r} is not among the options {list(options)}")
    return Prompt(identifier, case, partner, options, _meta(record.get("meta"), where))


def _records(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"prompt file {path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    # Not splitlines(): U+2028 and its like are legal inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"prompt file {path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{where}: not valid JSON ({error.msg} at column {error.colno}); expected one JSON object per line"
            ) from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected a JSON object, found {_kind(record)}")
        for key in REQUIRED:
            if key not in record:
                raise InputError(f"{where}: field {key!r} is missing; every prompt needs {', '.join(REQUIRED)}")
        for key in record:
            if key not in (*REQUIRED, *OPTIONAL):
                raise InputError(f"{where}: unknown field {key!r}{_nearest(key, (*REQUIRED, *OPTIONAL))}")
        yield number, where, record


def _nearest(key: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known fields are {', '.join(known)} (put anything else under 'meta')"


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record[key]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InputError(f"{where}: field {key!r} must be a text or a number, found {_kind(value)}")
    if not value.strip():
        raise InputError(f"{where}: field {key!r} is empty")
    return value if key == "question" else value.strip()


def _case(record: Mapping[str, Any], where: str) -> Case:
    steps, chain = record.get("steps"), record.get("chain")
    if steps is not None and chain is not None:
        raise InputError(f"{where}: give either 'steps' or 'chain', not both")
    if steps is not None:
        if not isinstance(steps, list) or not all(isinstance(step, str) and step.strip() for step in steps):
            raise InputError(f"{where}: field 'steps' must be a list of texts, none of them empty")
        steps = tuple(step.strip() for step in steps)
    if chain is not None and not isinstance(chain, str):
        raise InputError(f"{where}: field 'chain' must be a text, found {_kind(chain)}")
    return Case(_text(record, "question", where), _text(record, "answer", where), steps, chain)


def _partner(value: object, identifier: str, cases: Mapping[str, Case], where: str) -> Case | None:
    if value is None:
        return None
    if isinstance(value, str):
        if value == identifier:
            raise InputError(f"{where}: field 'counterfactual' names the prompt itself")
        if value not in cases:
            raise InputError(f"{where}: field 'counterfactual' names {value!r}, but no prompt has that id")
        return cases[value]
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: field 'counterfactual' must be an object or another prompt's id, found {_kind(value)}"
        )
    where = f"{where}, field 'counterfactual'"
    for key in ("question", "answer"):
        if key not in value:
            raise InputError(f"{where}: field {key!r} is missing")
    for key in value:
        if key not in COUNTERFACTUAL_FIELDS:
            raise InputError(f"{where}: unknown field {key!r}{_nearest(key, COUNTERFACTUAL_FIELDS)}")
    return _case(value, where)


def _options(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InputError(f"{where}: field 'options' must be a list of texts, found {_kind(value)}")
    options = tuple(_text({"options": item}, "options", where) for item in value)
    if len(set(options)) < len(options):
        raise InputError(f"{where}: field 'options' holds the same answer twice")
    if len(options) == 1:
        raise InputError(f"{where}: field 'options' holds one answer; give at least two, or leave it out")
    return options


def _meta(value: object, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: field 'meta' must be an object, found {_kind(value)}")
    return value
