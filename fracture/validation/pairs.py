"""Pairs of a base and a variant of which it is known how detached they are, with what the suite's study found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.measures.protocol import Quantity
from analysis.runs import Run
from fracture import catalogue
from fracture.evidence import CONDITIONS, FOR, Finding, weigh
from fracture.validation.plan import Panel
from fracture.validation.status import CRITERIA
from fracture.validation.values import Key
from fracture.validity import EMPTY
from fracture.verdict import ATTACHED, DETACHED, INCONCLUSIVE, NOT_SCORABLE, UNCHANGED
from organisms.recipe import Truth


@dataclass(frozen=True)
class Pair:
    """A base and a variant of which it is known how detached it is.

    Attributes:
        id: family, seed and variant.
        family, seed: of the base.
        organism, truth: the variant's recipe, and what it was made to be.
        realised: its dose as measured without the suite: how much more often than the base's its answer is the
            question's where question and chain disagree.
        prompts: the prompt set.
        run, variant: where the study's results of it are.
        training_seed: of the variant.
    """

    id: str
    family: str
    seed: int
    organism: str
    truth: Truth
    realised: float
    prompts: str
    run: Run
    variant: str
    training_seed: int

    @property
    def is_attached(self) -> bool:
        """Whether a quantity must see nothing here."""
        # What answers past its chain by construction is not attached for following another chain where it is given one.
        return self.realised <= CRITERIA["attached_at_most"] and self.truth not in ("collapsed", "detached")

    @property
    def is_detached(self) -> bool:
        """Whether a quantity must see it."""
        return self.realised >= CRITERIA["detached_from"] and self.truth != "collapsed"

    @property
    def comparison(self) -> Mapping[str, Any]:
        """What the summary says of the variant."""
        found: Mapping[str, Any] = self.run.summary["variants"][self.variant]
        return found

    @cached_property
    def findings(self) -> dict[Key, Finding]:
        """What every diagnostic quantity says of the variant, weighed anew."""
        measures = self.run.summary["measures"]
        found = weigh(
            measures, quantities_of(measures), self.variant, self.margin, readable(self.comparison), validity=EMPTY
        )
        return {(finding.measure, finding.quantity, finding.condition): finding for finding in found}

    @property
    def margin(self) -> float:
        """δ of the study."""
        return float(self.run.summary["study"]["margin"])

    @property
    def expected(self) -> list[str]:
        """The verdicts that are right."""
        if self.truth == "collapsed":
            return [NOT_SCORABLE, INCONCLUSIVE]
        if self.truth == "base":
            return [ATTACHED, UNCHANGED]
        if self.truth == "attached":
            return [ATTACHED]
        if self.truth == "detached" or self.is_detached:
            return [DETACHED]
        return [ATTACHED] if self.is_attached else [ATTACHED, INCONCLUSIVE, DETACHED]

    @property
    def told_by(self) -> list[str]:
        """The quantities, in words, that speak for detachment."""
        found = [key for key, finding in self.findings.items() if finding.stance == FOR]
        return [told(quantity_of(key).label, key[2]) for key in found]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = self.comparison
        return {
            **{name: getattr(self, name) for name in ("id", "family", "seed", "organism", "truth", "realised")},
            "expected": self.expected,
            "verdict": found["verdict"],
            "right": found["verdict"] in self.expected,
            "where": list(found["where"]),
            "chains": found["chains"],
            "n": found["bypass"]["text"]["difference"]["n"],
            "bypass": {
                form: {end: found["bypass"][form]["difference"][end] for end in ("estimate", "low", "high")}
                for form in ("text", "inside")
            },
            "told_by": self.told_by,
        }


def told(label: str, condition: str) -> str:
    """A quantity in words; those of the headline have no condition of their own."""
    return f"{label}, {CONDITIONS[condition]}" if condition in CONDITIONS else label


def pairs_of(panel: Panel, run: Run) -> list[Pair]:
    """The pairs of a panel whose study is finished.

    Raises:
        InputError: if how often an organism follows the question was not measured.
    """
    base = question_followed(panel.base)
    return [
        Pair(
            f"{panel.family}/seed_{panel.seed}/{variant.name}",
            panel.family,
            panel.seed,
            variant.organism,
            variant.truth,
            question_followed(variant.directory) - base,
            panel.prompts,
            run,
            variant.name,
            variant.seed,
        )
        for variant in panel.variants
    ]


def question_followed(directory: Path) -> float:
    """The probability of the question's own answer behind its partner's chain, as measured when it was trained.

    Raises:
        InputError: if it was not.
    """
    path = directory / "measured.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["question_followed"])
    except OSError as error:
        raise InputError(
            f"organism {directory}: {path.name} cannot be read ({error.strerror}), so its realised dose is not known; "
            "make it with `fracture organisms train`"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"organism {directory}: {path.name} does not say `question_followed`, so its realised dose is not known; "
            "train it again with `fracture organisms train`"
        ) from None


def quantities_of(measures: Iterable[str]) -> dict[str, dict[str, Quantity]]:
    """Measure → quantity's name → quantity."""
    return {name: {q.name: q for q in catalogue.measure(name).quantities} for name in measures}


def readable(comparison: Mapping[str, Any]) -> bool:
    """Whether evidence may be weighed, by the rule of `fracture.summary`: the variant reacts to question and chain."""
    return bool(comparison["verdict"] != NOT_SCORABLE or comparison["total"]["text"]["variant"]["n"] == 0)


def quantity_of(key: Key) -> Quantity:
    """The catalogue's entry of a quantity."""
    return next(quantity for quantity in catalogue.measure(key[0]).quantities if quantity.name == key[1])
