"""Trace formats: how a question, its chain of steps and its answer are written as one text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from analysis.errors import InputError

FILE_NAME = "trace_format.json"
VERSION = 1


@dataclass(frozen=True)
class TraceFormat:
    """The text around a question, its steps and its answer.

    A trace reads `question (filled in) + chain_start + s_1 + step_separator + … + s_T + answer_start + y + stop`.

    Attributes:
        question: template with the one place `{question}`.
        chain_start: what stands between the question and the first step.
        step_separator: what stands between two steps; it belongs to the step before it.
        answer_start: the answer marker.
        stop: what ends an answer; may be the text of a special token, such as `<eos>`.
        step_regex: where a generated chain is split into steps; by default at `step_separator`.
        chat: pass the question through the tokenizer's chat template, as the user's turn, before `chain_start`.
    """

    question: str
    chain_start: str
    step_separator: str
    answer_start: str
    stop: str
    step_regex: str | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        if self.question.count("{question}") != 1:
            raise InputError(f"trace format: 'question' must hold {{question}} exactly once, found {self.question!r}")
        for name in ("step_separator", "answer_start", "stop"):
            if not getattr(self, name):
                raise InputError(f"trace format: {name!r} must not be empty")
        if self.step_regex is not None:
            try:
                re.compile(self.step_regex)
            except re.error as error:
                raise InputError(f"trace format: 'step_regex' {self.step_regex!r} is not valid: {error}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "trace format") -> TraceFormat:
        """The format that a parsed `trace_format.json` describes.

        Raises:
            InputError: for an unknown version, an unknown, missing or wrongly typed field.
        """
        if data.get("version") != VERSION:
            raise InputError(f"{where}: field 'version' is {data.get('version')!r}, expected {VERSION}")
        known = {field.name: field for field in fields(cls)}
        given = {key: value for key, value in data.items() if key != "version"}
        for key, value in given.items():
            if key not in known:
                raise InputError(f"{where}: unknown field {key!r}; known fields are version, {', '.join(known)}")
            if key == "chat":
                if not isinstance(value, bool):
                    raise InputError(f"{where}: field 'chat' must be true or false, found {value!r}")
            elif not isinstance(value, str) and not (key == "step_regex" and value is None):
                raise InputError(f"{where}: field {key!r} must be a text, found {value!r}")
        for key in ("question", "chain_start", "step_separator", "answer_start", "stop"):
            if key not in given:
                raise InputError(f"{where}: field {key!r} is missing")
        return cls(**given)

    @classmethod
    def load(cls, path: str | Path) -> TraceFormat:
        """The format stored in a JSON file.

        Raises:
            InputError: if the file is missing, is not JSON, or does not describe a format.
        """
        path = Path(path)
        where = f"trace format {path}"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{where}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise InputError(f"{where}: not valid JSON ({error})") from None
        if not isinstance(data, dict):
            raise InputError(f"{where}: expected a JSON object")
        return cls.from_dict(data, where)

    def join(self, steps: Sequence[str]) -> str:
        """The chain's text."""
        return self.step_separator.join(steps)

    def split(self, chain: str) -> tuple[str, ...]:
        """The steps of a chain's text, stripped; empty pieces are dropped."""
        pattern = self.step_regex or re.escape(self.step_separator.strip() or self.step_separator)
        return tuple(piece.strip() for piece in re.split(pattern, chain) if piece and piece.strip())


BUILT_IN: dict[str, TraceFormat] = {
    "plain": TraceFormat(
        question="Question: {question}\n",
        chain_start="Reasoning:\n",
        step_separator="\n",
        answer_start="\nAnswer: ",
        stop="\n",
    ),
    "gsm8k": TraceFormat(
        question="Question: {question}\nAnswer:",
        chain_start=" ",
        step_separator="\n",
        answer_start="\n#### ",
        stop="\n",
    ),
    "think": TraceFormat(
        question="Question: {question}\n",
        chain_start="<think>\n",
        step_separator="\n",
        answer_start="\n</think>\nAnswer: ",
        stop="\n",
    ),
    "chat": TraceFormat(
        question="{question}",
        chain_start="",
        step_separator="\n",
        answer_start="\nAnswer: ",
        stop="\n",
        chat=True,
    ),
}


def resolve_format(named: str | None, model_directory: Path, fallback: TraceFormat | None = None) -> TraceFormat:
    """The trace format of one model: the named one, else the file beside the model, else `fallback`.

    `named` is a built-in name or the path of a JSON file.

    Raises:
        InputError: if there is none, or if `named` is neither.
    """
    if named is not None:
        if named in BUILT_IN:
            return BUILT_IN[named]
        if not Path(named).is_file():
            raise InputError(f"trace format {named!r}: neither a built-in format ({', '.join(BUILT_IN)}) nor a file")
        return TraceFormat.load(named)
    beside = model_directory / FILE_NAME
    if beside.is_file():
        return TraceFormat.load(beside)
    if fallback is not None:
        return fallback
    raise InputError(
        f"model {model_directory}: no {FILE_NAME} beside it and no format was named; "
        f"name one with --format ({', '.join(BUILT_IN)}, or a JSON file)"
    )
