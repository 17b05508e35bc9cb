"""Prompts: what a study asks, read from a file or from records in memory, with complaints that name file and row."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.prompt_fields import NOTHING, Asked, read_asked
from analysis.prompt_files import CHAINS, FIELDS, REQUIRED, Row, kind, read_rows, rows_in_memory
from analysis.segmentation import is_blank

COUNTERFACTUAL_FIELDS = (*REQUIRED, *CHAINS)
ANNOTATIONS = ("keep", "drop")

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_GSM8K_ANSWER = re.compile(r"(?:\A|\n)[ \t]*####(?!#)([^\n]*)\Z")


@dataclass(frozen=True)
class Case:
    """A question with its gold answer and, where known, a chain: as steps, or as one text still to be split.

    Attributes:
        question, answer: as texts; the answer is empty where an unanswerable prompt gives none.
        steps: the chain's steps; None while it is not known or not split.
        chain: the chain as one text that a trace format still has to split.
        response: a model's whole text, of which a trace format still has to find chain and answer.
        gaps: what follows each step in the chain's own text; None to write the format's separator between steps.
        answered: False for a response in which no answer was found.
        ended: whether the chain's author ended its text by itself, and no limit did; None where that is not known.
        asked: what the prompt asks beyond its question.
    """

    question: str
    answer: str
    steps: tuple[str, ...] | None = None
    chain: str | None = None
    response: str | None = None
    gaps: tuple[str, ...] | None = None
    answered: bool = True
    ended: bool | None = None
    asked: Asked = NOTHING

    def __post_init__(self) -> None:
        if self.gaps is not None and (self.steps is None or len(self.gaps) != len(self.steps)):
            raise ValueError("a case needs as many gaps as steps; cut both with Case.first")

    @property
    def has_chain(self) -> bool:
        """Whether a chain came with the case, in whatever form."""
        return not (self.steps is None and self.chain is None and self.response is None)

    def first(self, n: int) -> Case:
        """The case with the first `n` steps of its chain alone, and nothing after the last of them."""
        if self.steps is None:
            raise ValueError("a chain must be split into steps before it is cut")
        steps = self.steps[:n]
        gaps = None if self.gaps is None else (*self.gaps[: len(steps) - 1], "")[: len(steps)]
        return replace(self, steps=steps, gaps=gaps if len(steps) < len(self.steps) else self.gaps)


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


def read_prompts(path: str | Path, split: str | None = None, annotations: str = "keep") -> list[Prompt]:
    """The prompts of a file, in its order.

    A record has `question`, `answer`, and optionally `id`, one of `steps` (a list of texts), `chain` (one text) and
    `response` (a model's whole text), `options`, `counterfactual` (an object `{question, answer, steps}` or the id of
    another prompt), `meta`; and `answerable` (false for a question that has no answer, and needs none), `abstain`,
    `constraints`, `shifted`, `partial`, as in `prompt_fields.Asked`. GSM8K's own records are understood as they are: an
    answer whose last line is `#### 72` is a chain and its answer. See docs/prompts.md.

    Args:
        path: JSONL, a JSON list, Parquet, or a directory written by datasets' `save_to_disk`, with `:split` behind it
            where it holds several.
        split: the split, given apart.
        annotations: `keep` or `drop` GSM8K's calculator annotations (`<<48/2=24>>`) in chains.

    Raises:
        InputError: naming the file and the line or row, for anything that is not so.
    """
    return _prompts(read_rows(path, split), f"prompt file {path}", annotations)


def prompts_from_records(records: Any, where: str = "records", annotations: str = "keep") -> list[Prompt]:
    """The prompts in a list of dicts, a pandas DataFrame, a `datasets.Dataset` or an Arrow table; see `read_prompts`.

    Raises:
        InputError: as `read_prompts`; messages call the source `where` and count rows from 1.
    """
    return _prompts(rows_in_memory(records, where), where, annotations)


def _prompts(rows: Sequence[Row], source: str, annotations: str) -> list[Prompt]:
    if annotations not in ANNOTATIONS:
        raise InputError(f"annotations {annotations!r}: expected {' or '.join(ANNOTATIONS)}")
    if not rows:
        raise InputError(f"{source}: no prompts in it; expected one JSON object per line, or rows of a table")
    for row in rows:
        _check_fields(row.record, row.where)
    cases: dict[str, Case] = {}
    for identifier, row in zip(_identifiers(rows), rows, strict=True):
        cases[identifier] = _case(row.record, row.where, annotations)
    return [
        _prompt(row.record, identifier, cases, row.where, annotations)
        for row, identifier in zip(rows, cases, strict=True)
    ]


def _check_fields(record: Mapping[str, Any], where: str) -> None:
    required = ("id", *REQUIRED) if record.get("id") is not None else REQUIRED
    for key in REQUIRED:
        if record.get(key) is None and not (key == "answer" and record.get("answerable") is False):
            raise InputError(f"{where}: field {key!r} is missing; every prompt needs {', '.join(required)}")
    for key in record:
        if key not in FIELDS:
            raise InputError(f"{where}: unknown field {key!r}{_nearest(key, FIELDS)}")


def _identifiers(rows: Sequence[Row]) -> list[str]:
    """Each row's id; `row-0001`, `row-0002`, … where no row has one."""
    having = [row for row in rows if row.record.get("id") is not None]
    if not having:
        return [f"row-{number:04d}" for number in range(1, len(rows) + 1)]
    first: dict[str, str] = {}
    for row in rows:
        if row.record.get("id") is None:
            raise InputError(
                f"{row.where}: field 'id' is missing, but {having[0].place} has one; give every prompt an id, or none"
            )
        identifier = _text(row.record["id"], "id", row.where)
        if identifier in first:
            raise InputError(
                f"{row.where}: id {identifier!r} was already used on {first[identifier]}; ids must be unique"
            )
        first[identifier] = row.place
    return list(first)


def _prompt(
    record: Mapping[str, Any], identifier: str, cases: Mapping[str, Case], where: str, annotations: str
) -> Prompt:
    case = cases[identifier]
    partner = _partner(record.get("counterfactual"), identifier, cases, where, annotations)
    options = _options(record.get("options"), where)
    case = replace(case, asked=read_asked(record, case.answer, options, where))
    if partner is not None and not case.asked.answerable:
        raise InputError(f"{where}: field 'counterfactual' needs a right answer, and the prompt is unanswerable")
    if partner is not None and not partner.answer:
        raise InputError(f"{where}: field 'counterfactual' names a prompt that is unanswerable; name another")
    for gold, whose in ((case, "answer"), (partner, "partner's answer")):
        if options and gold and gold.answer and gold.answer not in options:
            raise InputError(f"{where}: the {whose} {gold.answer!r} is not among the options {list(options)}")
    meta = record.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise InputError(f"{where}: field 'meta' must be an object, found {kind(meta)}")
    return Prompt(identifier, case, partner, options, meta or {})


def _nearest(key: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known fields are {', '.join(known)} (put anything else under 'meta')"


def _text(value: object, key: str, where: str) -> str:
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if not isinstance(value, int) and not math.isfinite(value):
            raise InputError(f"{where}: field {key!r} is {value}; expected a text or a finite number")
        # Tables turn 12 into 12.0 where some row lacks a number.
        value = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not isinstance(value, str):
        raise InputError(f"{where}: field {key!r} must be a text or a number, found {kind(value)}")
    if is_blank(value):
        raise InputError(f"{where}: field {key!r} is empty")
    _check_unicode(value, key, where)
    return value if key == "question" else value.strip()


def _check_unicode(text: str, key: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: field {key!r} holds half of a surrogate pair ({text[error.start]!r}), which is no character; "
            "write the character itself"
        ) from None


def _case(record: Mapping[str, Any], where: str, annotations: str) -> Case:
    given = [key for key in CHAINS if record.get(key) is not None]
    if len(given) > 1:
        raise InputError(f"{where}: give either {given[0]!r} or {given[1]!r}, not both")
    steps, chain, response = (record.get(key) for key in CHAINS)
    if steps is not None:
        if not isinstance(steps, list) or not all(isinstance(step, str) and not is_blank(step) for step in steps):
            raise InputError(f"{where}: field 'steps' must be a list of texts, none of them empty")
        steps = tuple(step.strip() for step in steps)
    for key in given:
        for text in steps if steps is not None else (record[key],):
            if not isinstance(text, str):
                raise InputError(f"{where}: field {key!r} must be a text, found {kind(text)}")
            _check_unicode(text, key, where)
    answer = "" if record.get("answer") is None else _text(record["answer"], "answer", where)
    if not given and isinstance(record.get("answer"), str) and (found := _GSM8K_ANSWER.search(answer)):
        chain, answer = answer[: found.start()], found[1].strip()
        if not answer:
            raise InputError(f"{where}: field 'answer' has nothing behind its last '####'; expected the final answer")
    if annotations == "drop":
        steps = steps and tuple(step for step in (_ANNOTATION.sub("", step).strip() for step in steps) if step)
        chain, response = (text and _ANNOTATION.sub("", text) for text in (chain, response))
    return Case(_text(record["question"], "question", where), answer, steps, chain, response)


def _partner(value: object, identifier: str, cases: Mapping[str, Case], where: str, annotations: str) -> Case | None:
    # Tables write a missing object as one whose fields are all missing.
    if value is None or (isinstance(value, dict) and value and all(item is None for item in value.values())):
        return None
    if isinstance(value, int | float) and _text(value, "counterfactual", where) in cases:
        value = _text(value, "counterfactual", where)
    if isinstance(value, str):
        if value == identifier:
            raise InputError(f"{where}: field 'counterfactual' names the prompt itself")
        if value not in cases:
            raise InputError(f"{where}: field 'counterfactual' names {value!r}, but no prompt has that id")
        return cases[value]
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: field 'counterfactual' must be an object or another prompt's id, found {kind(value)}"
        )
    where = f"{where}, field 'counterfactual'"
    for key in REQUIRED:
        if value.get(key) is None:
            raise InputError(f"{where}: field {key!r} is missing")
    for key in value:
        if key not in COUNTERFACTUAL_FIELDS:
            raise InputError(f"{where}: unknown field {key!r}{_nearest(key, COUNTERFACTUAL_FIELDS)}")
    return _case(value, where, annotations)


def _options(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InputError(f"{where}: field 'options' must be a list of texts, found {kind(value)}")
    options = tuple(_text(item, "options", where) for item in value)
    if len(set(options)) < len(options):
        raise InputError(f"{where}: field 'options' holds the same answer twice")
    if len(options) == 1:
        raise InputError(f"{where}: field 'options' holds one answer; give at least two, or leave it out")
    return options
