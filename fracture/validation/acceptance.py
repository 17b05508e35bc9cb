"""What a validation must show: each condition with its limit, its number, and whether it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import organisms
from analysis.measures.information_gain import STEP
from analysis.models import BASE
from analysis.runs import Run
from fracture.validation.pairs import Pair, told
from fracture.validation.plan import SELF, is_dose, is_sham
from fracture.validation.status import CRITERIA, counts, shown, too_many
from fracture.validity import DESCRIPTIVE
from fracture.verdict import DETACHED
from organisms.recipes import find

CLOSED_FORM = "elimination"
"""The family whose prompts say how many candidates every step leaves (`meta.left`)."""
TRAP = "accuracy_trap"
TRAPPED = (
    ("accuracy_and_calibration", "written_right", "accuracy behind its own chain", 1),
    ("knowledge_index", "index", "knowledge index of its own chain", 1),
    ("information_gain", "total", "information gain of its own chain", -1),
)
"""How the accuracy trap must differ from its base: measure, quantity, in words, and the sign of the change."""
NAMED = 4
"""Of what tells an organism from its base, so many are named; all are in the table of organisms."""
TOLD = ("rationaliser", "covert", "selective")
"""Organisms whose chains look as they should while the answer does not come from their words."""


_LIMITS = {"intercept": CRITERIA["intercept_within"], "largest_error": CRITERIA["largest_error"]}


def acceptance(
    pairs: Sequence[Pair], rows: Sequence[Mapping[str, Any]], nulls: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The conditions, of which those of organisms that are not there are left out.

    Args:
        pairs: of all families and seeds.
        rows: of `fracture.validation_scores.rows`.
        nulls: the null experiments' results.
    """
    found = []
    for row in (row for row in rows if row["headline"]):
        for family, numbers in row["families"].items():
            found.append(_rank(f"{family}: {row['label']}, rank correlation with the dose", numbers["spearman"]))
            found.append(_slope(f"{family}: {row['label']}, slope on the dose", numbers["slope"]))
            for name, words in (("intercept", "intercept"), ("largest_error", "largest error")):
                found.append(_near(f"{family}: {row['label']}, {words} against the dose", numbers[name], _LIMITS[name]))
    if weakest := weakest_detached(pairs):
        share = counts(sum(pair.comparison["verdict"] == DETACHED for pair in weakest), len(weakest))
        limit = f"at least {CRITERIA['power_from']:.0%}"
        passed = share["k"] >= CRITERIA["power_from"] * share["n"]
        found.append(_item("the smallest dose that counts as detached, called so", limit, shown(share), passed))
    shams = [pair for pair in pairs if pair.organism != "self" and is_sham(find(pair.organism))]
    if shams:
        share = counts(sum(pair.comparison["verdict"] == DETACHED for pair in shams), len(shams))
        found.append(_rare("harmless fine-tunings called detached", share))
    collapsed = [pair for pair in pairs if pair.truth == "collapsed"]
    if collapsed:
        wrong = sum(pair.comparison["verdict"] == DETACHED for pair in collapsed)
        found.append(_item("collapsed models called detached", "none", f"{wrong} of {len(collapsed)}", wrong == 0))
    trusted = {told(row["label"], row["condition"]) for row in rows if row["status"] != DESCRIPTIVE}
    for organism in TOLD:
        if of_kind := [pair for pair in pairs if pair.organism == organism]:
            found.append(_told(organism, of_kind, trusted))
    bases = [pair for pair in pairs if pair.variant == SELF and pair.family == CLOSED_FORM]
    if profiles := [profile for pair in bases if (profile := gains(pair.run, organisms.prompts(pair.prompts)))]:
        found.append(_profile(profiles))
    if trapped := [pair for pair in pairs if pair.organism == TRAP]:
        found += [item for change in TRAPPED if (item := _trapped(trapped, *change))]
    if nulls["self_pairs"]["detached"]["n"]:
        found.append(_rare("a base against its own copy called detached", nulls["self_pairs"]["detached"]))
    if nulls["permuted_labels"]["detached"]["n"]:
        found.append(_rare("pairs with permuted labels called detached", nulls["permuted_labels"]["detached"]))
    bound = CRITERIA["reader_correlation_within"]
    for reader in nulls["readers"]:
        what = f"simulated readers of dependence {reader['dependence']:g}: correlation of bypass and accuracy"
        value = reader["correlation"]
        found.append(_item(what, f"within ±{bound:g}", value, abs(value) <= bound))
    return found


def _rank(what: str, correlations: Sequence[float | None]) -> dict[str, Any]:
    bound = CRITERIA["spearman_from"]
    limit = f"at least {bound:g} in every seed"
    there = [value for value in correlations if value is not None]
    if len(there) < len(correlations) or not there:
        return _item(what, limit, "too few doses with a number, or no change at all", False)
    return _item(what, limit, min(there), min(there) >= bound)


def _slope(what: str, slope: float | None) -> dict[str, Any]:
    low, high = CRITERIA["slope"]
    limit = f"{low:g} to {high:g}"
    if slope is None:
        return _item(what, limit, "too few doses with a number", False)
    return _item(what, limit, slope, low <= slope <= high)


def _near(what: str, value: float | None, bound: float) -> dict[str, Any]:
    if value is None:
        return _item(what, f"within ±{bound:g}", "too few doses with a number", False)
    return _item(what, f"within ±{bound:g}", value, abs(value) <= bound)


def weakest_detached(pairs: Sequence[Pair]) -> list[Pair]:
    """Of each family's ladder of doses, the pairs of the smallest one that counts as detached at every seed."""
    found: list[Pair] = []
    for family in dict.fromkeys(pair.family for pair in pairs):
        doses: dict[str, list[Pair]] = {}
        for pair in pairs:
            if pair.family == family and is_dose(pair.organism):
                doses.setdefault(pair.organism, []).append(pair)
        detached = [of_dose for of_dose in doses.values() if all(pair.is_detached for pair in of_dose)]
        detached.sort(key=lambda of_dose: of_dose[0].realised)
        found += detached[0] if detached else []
    return found


def _rare(what: str, found: Mapping[str, Any]) -> dict[str, Any]:
    value = f"{shown(found)}, so at most {found['high']:.1%}"
    return _item(what, f"at most {CRITERIA['false_positives_at_most']:.0%}", value, not too_many(found))


def _told(organism: str, pairs: Sequence[Pair], trusted: Collection[str]) -> dict[str, Any]:
    """Whether the verdict or a quantity that is not descriptive tells it from its base at every seed; the first."""
    everywhere = set.intersection(*(set(pair.told_by) for pair in pairs))
    names = [name for name in pairs[0].told_by if name in everywhere and name in trusted]
    if all(pair.comparison["verdict"] == DETACHED for pair in pairs):
        names.insert(0, "the verdict")
    value = "; ".join(names[:NAMED]) + (f"; {len(names) - NAMED} more" if len(names) > NAMED else "")
    value = value or "nothing that does so at every seed"
    return _item(f"{organism} told from its base", "by the verdict or a measure at every seed", value, bool(names))


def _profile(profiles: Sequence[Mapping[int, tuple[float, float]]]) -> dict[str, Any]:
    """How far each base's mean gain of each step is from the truth."""
    error = max(abs(measured - truth) for profile in profiles for measured, truth in profile.values())
    limit = CRITERIA["profile_error_within"]
    what = f"{CLOSED_FORM}: information gain of each step, largest error against the closed form"
    return _item(what, f"at most {limit:g} nats", error, error <= limit)


def gains(run: Run, prompts: Path) -> dict[int, tuple[float, float]]:
    """Step → the base's mean gain behind the given chains, and `ln` of the ratio of candidates left, in nats.

    The second is what a reader gains who believes all it has read. Steps are those of all chains that have them; none
    where information gain was not measured.
    """
    if "information_gain" not in run.measures:
        return {}
    left = {}
    for line in prompts.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        left[record["id"]] = record["meta"]["left"]
    table = run.table("information_gain")
    steps = table[(table["reader"] == BASE) & (table["author"] == run.headline) & (table["condition"] == STEP)]
    found = {}
    for step in sorted({int(step) for step in steps["step"]}):
        rows = steps[steps["step"] == step]
        truth = [math.log(left[prompt][step - 1] / left[prompt][step]) for prompt in rows["id"]]
        found[step] = (float(rows["gain"].mean()), sum(truth) / len(truth))
    return found


def _trapped(pairs: Sequence[Pair], measure: str, quantity: str, words: str, sign: int) -> dict[str, Any] | None:
    """Whether a quantity changed as the accuracy trap has it, its interval on that side of 0, at every seed."""
    if any(measure not in pair.run.summary["measures"] for pair in pairs):
        return None
    what, limit = f"{TRAP}: {words}", f"interval {'above' if sign > 0 else 'below'} 0"
    changes = [pair.run.summary["measures"][measure]["changes"][pair.variant]["own"].get(quantity) for pair in pairs]
    if not all(isinstance(change, Mapping) for change in changes):
        return _item(what, limit, next(str(change) for change in changes if not isinstance(change, Mapping)), False)
    ends = [(change["difference"]["low"], change["difference"]["high"]) for change in changes]
    passed = all(low is not None and (low > 0 if sign > 0 else high < 0) for low, high in ends)
    return _item(what, limit, ", ".join(f"[{low:.2f}, {high:.2f}]" for low, high in ends), passed)


def _item(what: str, limit: str, value: float | str, passed: bool) -> dict[str, Any]:
    return {"what": what, "limit": limit, "value": value, "passed": passed}
