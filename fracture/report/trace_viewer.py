"""What the report's trace viewer shows: prompts, chains, each step's effect on each reader's answer, as plain data."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from analysis.authored import Authored
from analysis.measures.mistakes import KEPT
from analysis.measures.routes import WHOLE
from analysis.runs import Run
from figures.marks import hidden
from fracture import catalogue
from fracture.report.numbers import MINUS
from fracture.report.tables import whose
from fracture.study import EVERYONE
from fracture.verdict import NOT_SCORABLE

MISTAKES, ACCURACY = "mistakes", "accuracy_and_calibration"
MAX_PROMPTS = 200
MAX_BYTES = 2_500_000
"""What the report holds of prompts: the first so many of the file, as long as they fit."""

EFFECT_CLASSES = (-0.05, 0.05, 0.2, 0.4, 0.6, 0.8)
"""Ends of the classes into which a step's effect falls; what is below the first rose."""


def viewer_data(run: Run, max_prompts: int = MAX_PROMPTS, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """For every prompt and model what it read, what each step did to its answer, and what it wrote, as plain data.

    Keys: `models`, `whose` chains all read, `steps` (model → None, or why none of its steps has an effect), `classes`
    of effects, `total` (how many prompts there are), and `prompts`: those that fit, in the order of the file.
    """
    found = _Tables(run)
    prompts = run.authored()
    shown: list[dict[str, Any]] = []
    size = 0
    for prompt in prompts[:max_prompts]:
        data = found.prompt(prompt)
        size += len(embedded(data))
        if shown and size > max_bytes:
            break
        shown.append(data)
    return {
        "models": list(run.readers),
        "whose": whose(run),
        "steps": {name: _no_effects(run, name) for name in run.readers},
        "classes": list(EFFECT_CLASSES),
        "total": len(prompts),
        "prompts": shown,
    }


def embedded(data: Any) -> str:
    """JSON that may stand in a script element of HTML: nothing in it ends the element or begins a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def notes(run: Run) -> list[str]:
    """Why some models' steps have no effect to show."""
    if MISTAKES not in run.measures:
        return [f"Chains are not coloured: the measure “{MISTAKES}” is not in this run, so no step's effect is known."]
    return [f"{name}: {reason}." for name in run.readers if (reason := _no_effects(run, name))]


def legend(run: Run) -> list[dict[str, str]]:
    """The classes of a step's effect, in words, with the style of each; nothing if the run knows no effects."""
    if MISTAKES not in run.measures:
        return []
    ends = [f"{end:g}".replace("-", MINUS) for end in EFFECT_CLASSES]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
    words = [f"rose by more than {ends[0].removeprefix(MINUS)}", *between, f"{ends[-1]} and more"]
    kinds = ["rose", *(str(place) for place in range(len(ends)))]
    last = {"kind": "none", "words": "not known, for the reason given"}
    return [*({"kind": kind, "words": word} for kind, word in zip(kinds, words, strict=True)), last]


def _no_effects(run: Run, name: str) -> str | None:
    if MISTAKES not in run.measures:
        return None
    quantities = run.summary["measures"][MISTAKES]["readers"].get(name, {}).get(run.headline, {})
    if quantities.get("drop") == NOT_SCORABLE:
        return "not scorable: this model is hardly ever right behind the chain, so a change of its answer says nothing"
    return None


class _Tables:
    """The tables of a run, by prompt and reader."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._written = {(prompt.id, prompt.author): prompt for prompt in _authored(run)}
        self._accuracy = self._by_prompt(ACCURACY)
        self._routes = self._by_prompt(catalogue.HEADLINE, chain=WHOLE)
        self._mistakes = self._by_prompt(MISTAKES, condition=KEPT) if MISTAKES in run.measures else {}
        self._reasons = {
            (row["measure"], row["id"], row["reader"], row["author"]): str(row["reason"])
            for row in run.excluded.to_dict("records")
        }
        self._hidden = {name: hidden(run, name) for name in run.readers}

    def prompt(self, prompt: Authored) -> dict[str, Any]:
        """One prompt as the viewer needs it; models in the order of the run."""
        partner = prompt.partner and {
            "question": prompt.partner.question,
            "answer": prompt.partner.answer,
            "tier": prompt.tier,
        }
        return {
            "id": prompt.id,
            "question": prompt.case.question,
            "answer": prompt.case.answer,
            "steps": list(prompt.steps),
            "partner": partner,
            "readers": [self._reader(prompt, name) for name in self._run.readers],
        }

    def _reader(self, prompt: Authored, name: str) -> dict[str, Any]:
        rows = self._accuracy.get((prompt.id, name, prompt.author), [])
        found: Mapping[Any, Any] = rows[0] if rows else {}
        return {
            "right": _flag(found.get("right")),
            "confidence": _rounded(found.get("confidence")),
            "why": self._reason(ACCURACY, prompt, name),
            "effects": self._effects(prompt, name),
            "no_effects": self._reason(MISTAKES, prompt, name),
            **self._shares(prompt, name),
            "own": self._own(prompt, name),
        }

    def _effects(self, prompt: Authored, name: str) -> list[float | None] | None:
        """For each step the drop of the probability of the reader's answer when it is made wrong."""
        if MISTAKES not in self._run.measures:
            return None
        by_step = {int(row["step"]): row["p_drop"] for row in self._mistakes.get((prompt.id, name, prompt.author), [])}
        return [_rounded(by_step.get(step)) for step in range(1, len(prompt.steps) + 1)]

    def _shares(self, prompt: Authored, name: str) -> dict[str, Any]:
        """Total effect, through the chain and past it, by text and inside; or why there are none."""
        rows = self._routes.get((prompt.id, name, prompt.author), [])
        if prompt.partner is None:
            reason = "no counterfactual partner"
        elif not rows:
            reason = self._reason(catalogue.HEADLINE, prompt, name) or "not measured"
        elif self._hidden[name]:
            reason = NOT_SCORABLE
        else:
            reason = None
        if reason:
            return {"text": None, "inside": None, "no_routes": reason}
        text, inside = (
            [_rounded(rows[0][prefix + effect]) for effect in ("te", "nie", "nde")] for prefix in ("", "inside_")
        )
        return {"text": text, "inside": None if None in inside else inside, "no_routes": None}

    def _own(self, prompt: Authored, name: str) -> dict[str, Any]:
        """What the model wrote itself after the question."""
        written = self._written.get((prompt.id, name))
        if written is None:
            return {"why": self._reasons.get(("", prompt.id, EVERYONE, name), "not kept")}
        rows = self._accuracy.get((prompt.id, name, name), [])
        same = written.steps == prompt.steps
        return {
            "same": same,
            "steps": None if same else list(written.steps),
            "answer": written.written,
            "right": _flag(rows[0]["written_right"]) if rows else None,
        }

    def _reason(self, measure: str, prompt: Authored, name: str) -> str | None:
        # The headline's measure names no author.
        keys = [(measure, prompt.id, name, author) for author in (prompt.author, "")]
        return next((self._reasons[key] for key in keys if key in self._reasons), None)

    def _by_prompt(self, measure: str, **where: str) -> dict[tuple[str, str, str], list[Mapping[Any, Any]]]:
        table = self._run.table(measure)
        for column, value in where.items():
            table = table[table[column] == value]
        found: dict[tuple[str, str, str], list[Mapping[Any, Any]]] = {}
        for row in table.to_dict("records"):
            found.setdefault((row["id"], row["reader"], row["author"]), []).append(row)
        return found


def _authored(run: Run) -> Iterator[Authored]:
    for author in run.readers:
        yield from run.authored(author)


def _rounded(value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    # Adding 0 turns -0.0 into 0.0.
    return round(value, 3) + 0.0


def _flag(value: float | None) -> bool | None:
    return None if value is None or math.isnan(value) else bool(value)
