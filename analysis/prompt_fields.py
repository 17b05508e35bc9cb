"""What a prompt may ask beyond its question: to abstain, to keep constraints, a changed rule, partial questions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from analysis.answers import same_answer
from analysis.errors import InputError
from analysis.prompt_files import ASKED, kind
from analysis.segmentation import is_blank

FULL = "full"
"""Where partial questions are named, the whole question; so no partial one may have this name."""

_COUNTED = ("max_steps", "min_steps")
_MATCHED = ("answer_matches", "chain_matches", "chain_lacks")


@dataclass(frozen=True)
class Shifted:
    """The same task under a changed rule: another question, its answer, and its chain's steps where they are given."""

    question: str
    answer: str
    steps: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Asked:
    """What a prompt asks beyond its question.

    Attributes:
        answerable: False for a question that has no answer.
        abstain: the prompt's own answers that abstain; empty for the usual phrases.
        constraints: on chain and answer, as written (`max_steps:5`).
        shifted: the same task under a changed rule.
        partial: name and text of the questions that give a part of what the whole one gives.
    """

    answerable: bool = True
    abstain: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    shifted: Shifted | None = None
    partial: tuple[tuple[str, str], ...] = ()


NOTHING = Asked()


def read_asked(record: Mapping[str, Any], answer: str, options: tuple[str, ...], where: str) -> Asked:
    """What a prompt's record asks beyond its question.

    Args:
        record: its fields; those not in `ASKED` are not looked at, and those that are None count as not given.
        answer: the gold answer; empty where an unanswerable prompt gives none.
        options: the answers given with the prompt.
        where: the record's place, for messages.

    Raises:
        InputError: naming the field, for anything that cannot be read or contradicts answer or options.
    """
    given = {name: None if _missing(record.get(name)) else record.get(name) for name in ASKED}
    answerable = given["answerable"]
    if not isinstance(answerable, bool | None):
        raise InputError(f"{where}: field 'answerable' must be true or false, found {kind(answerable)}")
    asked = Asked(
        answerable is not False,
        _texts(given["abstain"], "abstain", where),
        _texts(given["constraints"], "constraints", where),
        _shifted(given["shifted"], answer, options, where),
        _partial(given["partial"], options, where),
    )
    for constraint in asked.constraints:
        meets(constraint, (), "", None, f"{where}, field 'constraints'")
    if not asked.answerable:
        for name in ("shifted", "partial"):
            if given[name] is not None:
                raise InputError(
                    f"{where}: field {name!r} needs a right answer, and the prompt is marked as unanswerable"
                )
    elif any(same_answer(answer, each) for each in asked.abstain):
        raise InputError(
            f"{where}: field 'abstain' names the gold answer {answer!r}; a right answer abstains from none"
        )
    return asked


def meets(constraint: str, steps: tuple[str, ...], chain: str, answer: str | None, where: str) -> bool:
    """Whether a chain and its answer meet a constraint.

    `max_steps:N` and `min_steps:N` count steps; `chain_matches:REGEX` and `chain_lacks:REGEX` search the chain's text,
    `answer_matches:REGEX` the answer (`^` and `$` hold it to all of it; no answer never matches).

    Raises:
        InputError: for a constraint that is none of these, or whose number or expression cannot be read.
    """
    name, colon, value = constraint.partition(":")
    if not colon or name not in (*_COUNTED, *_MATCHED):
        known = ", ".join([*(f"{each}:N" for each in _COUNTED), *(f"{each}:REGEX" for each in _MATCHED)])
        raise InputError(f"{where}: constraint {constraint!r} is not known; expected one of {known}")
    if name in _COUNTED:
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
            raise InputError(f"{where}: constraint {constraint!r} needs a whole number of steps behind the colon")
        return len(steps) <= int(value) if name == "max_steps" else len(steps) >= int(value)
    try:
        pattern = re.compile(value)
    except re.error as error:
        raise InputError(f"{where}: constraint {constraint!r} is no valid regular expression ({error})") from None
    if name == "answer_matches":
        return answer is not None and pattern.search(answer) is not None
    return (pattern.search(chain) is not None) == (name == "chain_matches")


def to_json(asked: Asked) -> str | None:
    """What a prompt asks as the JSON text of an object; None if that is nothing."""
    return None if asked == NOTHING else json.dumps(asdict(asked), ensure_ascii=False)


def from_json(text: str | None) -> Asked:
    """What `to_json` wrote."""
    if text is None:
        return NOTHING
    data = json.loads(text)
    shifted = data["shifted"]
    if shifted is not None:
        steps = shifted["steps"]
        shifted = Shifted(shifted["question"], shifted["answer"], None if steps is None else tuple(steps))
    return Asked(
        data["answerable"],
        tuple(data["abstain"]),
        tuple(data["constraints"]),
        shifted,
        tuple((name, question) for name, question in data["partial"]),
    )


def _missing(value: object) -> bool:
    # Tables write a missing object as one whose fields are all missing.
    return value is None or (isinstance(value, dict) and bool(value) and all(item is None for item in value.values()))


def _text(value: object, key: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InputError(f"{where}: field {key!r} must be a text, found {kind(value)}")
    if is_blank(value):
        raise InputError(f"{where}: field {key!r} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: field {key!r} holds half of a surrogate pair; write the character itself") from None
    return value


def _texts(value: object, key: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: field {key!r} must be a list of texts, at least one")
    return tuple(_text(item, key, where).strip() for item in value)


def _shifted(value: object, answer: str, options: tuple[str, ...], where: str) -> Shifted | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InputError(f"{where}: field 'shifted' must be an object, found {kind(value)}")
    where = f"{where}, field 'shifted'"
    for key in value:
        if key not in ("question", "answer", "steps"):
            raise InputError(f"{where}: unknown field {key!r}; known fields are question, answer, steps")
    for key in ("question", "answer"):
        if value.get(key) is None:
            raise InputError(f"{where}: field {key!r} is missing")
    steps = value.get("steps")
    shifted = Shifted(
        _text(value["question"], "question", where),
        _text(value["answer"], "answer", where).strip(),
        None if steps is None else tuple(step.strip() for step in _texts(steps, "steps", where)),
    )
    if same_answer(shifted.answer, answer):
        raise InputError(f"{where}: its answer is the old one, {answer!r}; a changed rule shows only by another answer")
    if options and shifted.answer not in options:
        raise InputError(f"{where}: its answer {shifted.answer!r} is not among the options {list(options)}")
    return shifted


def _partial(value: object, options: tuple[str, ...], where: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or not value:
        raise InputError(f"{where}: field 'partial' must be an object, name → question, found {kind(value)}")
    if not options:
        raise InputError(f"{where}: field 'partial' needs the field 'options', among which probability is divided")
    if FULL in value:
        raise InputError(f"{where}, field 'partial': {FULL!r} is the name of the whole question; choose another")
    # A row of a table has every name that some row has.
    return tuple(
        (name, _text(text, name, f"{where}, field 'partial'")) for name, text in value.items() if text is not None
    )
