"""Validity: how far the suite's own validation lets each quantity be trusted, as shipped beside the code.

`validity.json` is the compact extract that a `fracture validate` writes into its directory, copied here. Validation
itself weighs with `EMPTY`: a measure that failed once could otherwise never pass again, as it would be muted before it
is asked.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from analysis.errors import InputError

CALIBRATED, DIAGNOSTIC, DESCRIPTIVE = "calibrated", "diagnostic", "descriptive"
STATUSES = {
    CALIBRATED: "its change is the share of answers that have come to go past the chain",
    DIAGNOSTIC: "it tells attached from detached models and ranks them, but its change is not that share",
    DESCRIPTIVE: "it failed validation, and counts neither for nor against",
}
"""What each status of a quantity says of it."""
FILE = "validity.json"
_OPTIONS = ("prompts", "patch_prompts", "seeds", "doses", "shams", "family", "measures")


@dataclass(frozen=True)
class Validity:
    """The status of every quantity that was validated.

    Attributes:
        measures: `MEASURE.QUANTITY.CONDITION` → `status`, `why`, `auroc`, `spearman`, `false_positives`.

    Raises:
        InputError: for a status that is none of `STATUSES`, which would pass for "not validated".
    """

    measures: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        for key, entry in self.measures.items():
            if entry.get("status") not in STATUSES:
                raise InputError(
                    f"validity of {key}: status {entry.get('status')!r} is unknown, expected one of "
                    f"{', '.join(STATUSES)}; make {FILE} anew with `fracture validate`"
                )

    def status(self, measure: str, quantity: str, condition: str) -> str | None:
        """One of `STATUSES`; None for what was not validated."""
        entry = self.measures.get(key_of(measure, quantity, condition))
        return None if entry is None else str(entry["status"])

    def why(self, measure: str, quantity: str, condition: str) -> str:
        """What kept it from a higher status, in words; empty where nothing did, or where it was not validated."""
        entry = self.measures.get(key_of(measure, quantity, condition), {})
        return "; ".join(entry.get("why", ()))


EMPTY = Validity({})
"""Nothing is known of any quantity, so every stance is what its numbers say."""


def key_of(measure: str, quantity: str, condition: str) -> str:
    """The key of a quantity on given chains, as in `validity.json` and in the null experiments of `validation.json`."""
    return f"{measure}.{quantity}.{condition}"


@functools.cache
def load() -> Validity:
    """The validity that is shipped with the suite.

    Raises:
        InputError: if its file does not hold it; then the installation is damaged.
    """
    text = resources.files("fracture").joinpath(FILE).read_text(encoding="utf-8")
    try:
        return Validity(json.loads(text)["measures"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise InputError(f"fracture/{FILE}: no JSON mapping with `measures`; install the suite anew") from None


def extract(validation: Mapping[str, Any]) -> dict[str, Any]:
    """What `validity.json` keeps of a `validation.json`: for each quantity its status and the worst of both families.

    Worst are the smallest AUROC, the smallest Spearman correlation of any seed, and the largest rate of false
    positives, with its counts and exact bounds.

    Raises:
        InputError: for a status that is none of `STATUSES`.
    """
    measures = {
        key_of(row["measure"], row["quantity"], row["condition"]): {
            "status": row["status"],
            "auroc": smallest(row, "auroc"),
            "spearman": smallest(row, "spearman"),
            "false_positives": false_positives(row),
            "why": list(row["why"]),
        }
        for row in validation["measures"]
    }
    return {"made_by": command(validation), "mode": validation["mode"], "measures": dict(Validity(measures).measures)}


def smallest(row: Mapping[str, Any], name: str) -> float | None:
    """The smallest value of a number of a quantity, over families and, where it has one each, seeds.

    None if it is missing in a seed or family that has data: of what could not be had nothing is known to be smaller.
    """
    return min(values(row, name), default=None)


def values(row: Mapping[str, Any], name: str) -> list[float]:
    """A number of a quantity in all families with data and, where it has one each, seeds; empty if one is missing."""
    families = [family for family in row["families"].values() if family["points"]]
    found = [value for family in families for value in _listed(family[name])]
    return [] if None in found else found


def false_positives(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """`{k, n, low, high}` of the family with the larger rate of false positives, and of equal ones with fewer pairs."""
    counts = (family["false_positives"] for family in row["families"].values())
    known = [dict(each) for each in counts if each and each["n"]]
    return max(known, key=lambda each: (each["k"] / each["n"], -each["n"]), default=None)


def command(validation: Mapping[str, Any]) -> str:
    """The command that makes such a validation, into a directory of its own."""
    settings = validation["settings"]
    said = {name: _listed(settings[name]) for name in _OPTIONS if settings.get(name) is not None}
    options = [f"--{name.replace('_', '-')} {','.join(map(_plain, values))}" for name, values in said.items()]
    return " ".join(["fracture validate", f"--{validation['mode']}", *options])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
