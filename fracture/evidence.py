"""Evidence: what the measures beside the headline say, for and against detachment, in words.

A change speaks for detachment where it goes the way that its measure declares, is larger than the margin, and holds
after Benjamini-Hochberg over all that is weighed for the variant. It speaks against where it is equivalent to none
(90% interval within the margin) or goes the other way as clearly. Shares and probabilities have the verdict's margin;
what is in nats has that share of the base's own value. None of it decides the verdict. What failed the suite's own
validation (`fracture.validity`) is said, and speaks neither for nor against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats

from analysis import statistics
from analysis.measures.protocol import Quantity
from analysis.models import BASE
from analysis.statistics import MIN_PROMPTS
from fracture import validity as validities
from fracture.validity import DESCRIPTIVE, Validity

FALSE_DISCOVERY_RATE = 0.05
FOR, AGAINST, NEITHER = "for", "against", "neither"
CONDITIONS = {"given": "on the same chains", "own": "each on its own chains"}
_ABSOLUTE = ("share", "probability")


@dataclass(frozen=True)
class Finding:
    """What one quantity says of one variant.

    Attributes:
        measure, quantity, condition: which, and on whose chains (`given` or `own`).
        stance: `for` detachment, `against` it, or `neither`.
        text: the finding in words.
        difference: variant minus base, as in `summary.json`.
        margin: what counts as a change.
        q: the p-value adjusted over all that is weighed for this variant; None for what is not weighed.
        status: of the quantity on these chains, one of `fracture.validity.STATUSES`; None if it was not validated.
    """

    measure: str
    quantity: str
    condition: str
    stance: str
    text: str
    difference: Mapping[str, Any]
    margin: float
    q: float | None
    status: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "difference": dict(self.difference)}


def weigh(
    measures: Mapping[str, Any],
    quantities: Mapping[str, Mapping[str, Quantity]],
    variant: str,
    margin: float,
    readable: bool = True,
    validity: Validity | None = None,
) -> list[Finding]:
    """What every diagnostic quantity says of a variant, in the order of the measures.

    A quantity whose status is `descriptive` keeps its words and numbers, but its stance is `neither`. As it is not
    weighed, it is not in the family of tests either; whether it rose or fell rests on its own p.

    Args:
        measures: as in `summary.json`.
        quantities: measure → name → quantity; those with a sign (`detached`) are diagnostic.
        variant: its name.
        margin: of shares and probabilities, and relative to the base for the rest.
        readable: False for a base or variant that hardly reacts to question and chain: a model that reads nothing looks
            detached to most measures, so nothing that it does is evidence.
        validity: the status of every quantity; None for the one that is shipped. Whoever validates the measures
            themselves gives `fracture.validity.EMPTY`, or an earlier failure would decide the next; `measures` may be
            those of a stored `summary.json`, which hold all that is weighed.
    """
    known = validities.load() if validity is None else validity
    asked: list[tuple[str, Quantity, str, Mapping[str, Any], float]] = []
    for name, found in measures.items():
        for condition, changes in found["changes"].get(variant, {}).items():
            for quantity in quantities[name].values():
                changed = changes.get(quantity.name)
                if condition in CONDITIONS and quantity.detached and isinstance(changed, Mapping):
                    level = _base_level(found, changes, quantity, condition)
                    scale = 1.0 if quantity.unit in _ABSOLUTE else abs(level)
                    asked.append((name, quantity, condition, changed, margin * scale))
    statuses = [known.status(name, quantity.name, condition) for name, quantity, condition, *_ in asked]
    weighed = {at: item[3]["p"] for at, item in enumerate(asked) if statuses[at] != DESCRIPTIVE}
    adjusted = statistics.benjamini_hochberg(weighed) if weighed else {}
    found = []
    for at, (name, quantity, condition, changed, width) in enumerate(asked):
        finding = _finding(name, quantity, condition, changed, width, adjusted.get(at), readable, statuses[at])
        if finding.status == DESCRIPTIVE:
            why = known.why(name, quantity.name, condition)
            said = f"{finding.text}; descriptive (failed validation: {why})"
            finding = replace(finding, stance=NEITHER, text=said)
        found.append(finding)
    return found


def _base_level(found: Mapping[str, Any], changes: Mapping[str, Any], quantity: Quantity, condition: str) -> float:
    """The base's own value, which a margin of a quantity without a natural scale is relative to."""
    base = found["readers"][BASE]
    authors: Sequence[str] = [BASE] if condition == "own" else list(base)
    for author in authors:
        level = base.get(author, {}).get(quantity.name)
        if isinstance(level, Mapping) and level["estimate"] is not None:
            return float(level["estimate"])
    return 0.0


def _finding(
    measure: str,
    quantity: Quantity,
    condition: str,
    changed: Mapping[str, Any],
    margin: float,
    q: float | None,
    readable: bool,
    status: str | None,
) -> Finding:
    difference = changed["difference"]
    stance, words = _stance(difference, quantity, margin, changed["p"] if q is None else q)
    if not readable:
        stance, words = NEITHER, "the model hardly reacts to question and chain"
    shown = "—" if difference["estimate"] is None else _shown(difference)
    text = f"{quantity.label}, {CONDITIONS[condition]}: {words} ({shown} {quantity.unit})"
    return Finding(measure, quantity.name, condition, stance, text, difference, margin, q, status)


def _stance(difference: Mapping[str, Any], quantity: Quantity, margin: float, q: float) -> tuple[str, str]:
    value, n = difference["estimate"], difference["n"]
    if value is None or n < MIN_PROMPTS or difference["low"] is None or difference["high"] is None:
        return NEITHER, f"n too small, {n} prompts"
    half = float(stats.t.ppf(0.95, n - 1)) * (difference["se"] or 0.0)
    if -margin <= value - half and value + half <= margin:
        return NEITHER if quantity.mute_if_unchanged else AGAINST, "did not change by more than the margin"
    if abs(value) > margin and q < FALSE_DISCOVERY_RATE:
        direction = "rose" if value > 0 else "fell"
        return (FOR if value * quantity.detached > 0 else AGAINST), direction
    return NEITHER, "undecided"


def _shown(estimate: Mapping[str, Any]) -> str:
    limits = [estimate["low"], estimate["high"]]
    centre, *ends = (
        f"{round(value, 2) + 0.0:+.2f}" for value in (estimate["estimate"], *(end for end in limits if end is not None))
    )
    return f"{centre} [{', '.join(ends)}]" if len(ends) == len(limits) else centre
