"""Trace formats: how a question, its chain of steps and its answer are written as one text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.segmentation import Segments, at_matches, by_line, by_sentence

FILE_NAME = "trace_format.json"
VERSION = 1
SEGMENTATIONS = ("separator", "line", "sentence")
_TAG = r"<[^<>\s]+>|\[[^\[\]\s]+\]"


@dataclass(frozen=True)
class Tags:
    """The pair of tags that a chain stands between, such as `<think>` and `</think>`, and the answer marker behind."""

    opening: str
    closing: str
    marker: str


@dataclass(frozen=True)
class TraceFormat:
    """The text around a question, its steps and its answer.

    A trace reads `question (filled in) + chain_start + s_1 + step_separator + … + s_T + answer_start + y + stop`.
    Between the steps of a chain that came as one text stands what stood there, and not `step_separator`.

    Attributes:
        question: template with the one place `{question}`.
        chain_start: what stands between the question and the first step.
        step_separator: what stands between two steps; it belongs to the step before it.
        answer_start: the answer marker.
        stop: what ends an answer; may be the text of a special token, such as `<eos>`.
        step_regex: where a chain's text is split into steps; wins over `segmentation`.
        segmentation: split at `step_separator` (`separator`), at line breaks (`line`) or after sentences (`sentence`).
        chat: pass the question through the tokenizer's chat template, as the user's turn, before `chain_start`. Where
            the template's last words are already those of `chain_start` (`<think>`), they are not written again.
        system: with `chat`, the text of a system turn before the user's; None for no such turn.
    """

    question: str
    chain_start: str
    step_separator: str
    answer_start: str
    stop: str
    step_regex: str | None = None
    chat: bool = False
    segmentation: str = "separator"
    system: str | None = None

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
        if self.segmentation not in SEGMENTATIONS:
            raise InputError(
                f"trace format: 'segmentation' is {self.segmentation!r}; expected one of {', '.join(SEGMENTATIONS)}"
            )
        if self.system is not None and not self.chat:
            raise InputError("trace format: 'system' needs 'chat': true; without a chat template put it in 'question'")
        if not self.chat and self.tags and self.tags.opening not in self.question + self.chain_start:
            raise InputError(
                f"trace format: 'answer_start' closes {self.tags.closing}, but nothing opens {self.tags.opening}; "
                "put it in 'chain_start'"
            )

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
            elif not isinstance(value, str) and not (key in ("step_regex", "system") and value is None):
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

    def segment(self, chain: str) -> Segments:
        """The steps of a chain's text and what stands between them; empty pieces are no steps."""
        if self.step_regex is not None:
            return at_matches(chain, self.step_regex)
        if self.segmentation == "line":
            return by_line(chain)
        if self.segmentation == "sentence":
            return by_sentence(chain)
        return at_matches(chain, re.escape(self.step_separator.strip() or self.step_separator))

    def split(self, chain: str) -> tuple[str, ...]:
        """The steps of a chain's text, stripped; empty pieces are dropped."""
        return self.segment(chain).steps

    @cached_property
    def tags(self) -> Tags | None:
        """The tags that the chain stands between; None if `answer_start` does not begin with a closing tag."""
        found = re.match(_TAG, self.answer_start.lstrip())
        if found is None or not re.match(r"</|\[/", found[0]):
            return None
        closing = found[0]
        return Tags(closing[0] + closing[2:], closing, self.answer_start.lstrip()[len(closing) :])


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
