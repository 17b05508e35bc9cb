"""Validity: how far the suite's own validation lets each quantity be trusted, as shipped beside the code.

`validity.json` is the compact extract that a `fracture validate` writes into its directory, taken in here by
`fracture adopt`. Validation itself weighs with `EMPTY`: a measure that failed once could otherwise never pass again, as
it would be muted before it is asked.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.files import write_whole

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
        measures: `MEASURE.QUANTITY.CONDITION` → `status`, `why`, `auroc`, `spearman`, `false_positives`; and `made_by`
            where it is of another validation than the rest.

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
    data = resources.files("fracture").joinpath(FILE).read_bytes()
    return Validity(_read(data, f"fracture/{FILE}", "install the suite anew")["measures"])


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


def adopted(shipped: Mapping[str, Any], found: Mapping[str, Any], measures: Collection[str] | None) -> dict[str, Any]:
    """What `validity.json` holds when a validation's is adopted: `found`, or `shipped` with some measures of `found`.

    Args:
        shipped, found: as in the file.
        measures: whose quantities are taken from `found`, each with the command that it was `made_by`; those that
            `shipped` has of them go. None for all of `found`, in place of `shipped`.

    Raises:
        InputError: if `found` has no quantity of one of the measures, or none is named.
    """
    if measures is None:
        return dict(found)
    if not measures:
        raise InputError("--measures: names none; expected some with commas between them, or leave it out for all")
    for name in measures:
        if not any(_measure(key) == name for key in found["measures"]):
            known = ", ".join(dict.fromkeys(_measure(key) for key in found["measures"]))
            raise InputError(f"--measures {name!r}: has no status in that validation; it has some of {known}")
    taken = {
        key: {**entry, "made_by": found["made_by"]}
        for key, entry in found["measures"].items()
        if _measure(key) in measures
    }
    kept = {key: entry for key, entry in shipped["measures"].items() if _measure(key) not in measures}
    return {**shipped, "measures": {**kept, **taken}}


def adopt(validation: Path, measures: Collection[str] | None = None) -> Path:
    """Takes the statuses that a finished validation found into the suite's own file, and returns where that is.

    Args:
        validation: the directory of a `fracture validate`.
        measures: as for `adopted`.

    Raises:
        InputError: if the directory holds no finished validation, or as `adopted`.
    """
    there = validation / FILE
    if not there.is_file():
        raise InputError(f"{validation}: holds no {FILE}; expected the directory of a finished `fracture validate`")
    own = Path(__file__).with_name(FILE)
    shipped, found = (
        _read(path.read_bytes(), str(path), "make it anew with `fracture validate`") for path in (own, there)
    )
    write_whole(own, (json.dumps(adopted(shipped, found, measures), indent=1) + "\n").encode())
    return own


def _measure(key: str) -> str:
    return key.partition(".")[0]


def _read(data: bytes, where: str, remedy: str) -> dict[str, Any]:
    """The content of such a file: what it was made by, and measures whose statuses are known."""
    try:
        content = json.loads(data)
        Validity(content["measures"])
        if not isinstance(content["made_by"], str):
            raise TypeError
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise InputError(f"{where}: no JSON mapping with `made_by` and `measures`; {remedy}") from None
    return dict(content)


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
