"""How well each quantity tells attached from detached pairs, and follows the dose: numbers from finished studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from fracture import catalogue
from fracture.evidence import CONDITIONS, FOR
from fracture.validation.pairs import Pair, quantity_of
from fracture.validation.plan import is_dose
from fracture.validation.status import CRITERIA, Counts, counts, judged
from fracture.validation.values import GIVEN, Key, bypass_values, diagnosticity, read_values
from fracture.verdict import DETACHED, NOT_SCORABLE
from organisms.recipe import Truth

HEADLINE = {
    (catalogue.HEADLINE, "bypass", "text"): "bypass, by text",
    (catalogue.HEADLINE, "bypass", "inside"): "bypass, inside",
}
WITH_A_DOSE: tuple[Truth, ...] = ("base", "attached", "dose")
MIN_RUNGS = 3


@dataclass(frozen=True)
class Score:
    """What one quantity says of one pair: its score (None without a number), and whether it speaks for detachment."""

    pair: Pair
    score: float | None
    found: bool


def rows(pairs: Sequence[Pair], nulls: Sequence[Mapping[str, Counts]]) -> list[dict[str, Any]]:
    """A row for each form of the headline, and for each diagnostic quantity on the same chains and each on its own.

    Args:
        pairs: of all families and seeds.
        nulls: of each kind of null, `MEASURE.QUANTITY.CONDITION` → how often it spoke for detachment.
    """
    told = _diagnosticities(pairs)
    found = [row(key, headline(pairs, key), told.get(key, {}), nulls) for key in HEADLINE]
    measured = [name for name in catalogue.NAMES if any(name in pair.run.summary["measures"] for pair in pairs)]
    for name in measured:
        for quantity in catalogue.measure(name).quantities:
            for condition in CONDITIONS:
                key = (name, quantity.name, condition)
                # Not every measure reads chains that models wrote themselves, and a few no others.
                given = condition == GIVEN and name not in catalogue.OWN_CHAINS
                asked = given or any(key in pair.findings for pair in pairs)
                if quantity.detached and asked:
                    found.append(row(key, diagnostic(pairs, key), told.get(key, {}), nulls))
    return found


def headline(pairs: Sequence[Pair], key: Key) -> list[Score]:
    """The change of bypass in one form, and the verdict."""
    return [
        Score(
            pair,
            None
            if pair.comparison["verdict"] == NOT_SCORABLE
            else pair.comparison["bypass"][key[2]]["difference"]["estimate"],
            pair.comparison["verdict"] == DETACHED,
        )
        for pair in pairs
    ]


def diagnostic(pairs: Sequence[Pair], key: Key) -> list[Score]:
    """A quantity's change towards detachment, in units of its scale, for the pairs whose study has the measure."""
    scores = []
    for pair in pairs:
        if key[0] in pair.run.summary["measures"]:
            finding = pair.findings.get(key)
            # A margin is so many parts of the scale.
            scale = finding.margin / pair.margin if finding else 0.0
            value = finding.difference["estimate"] if finding else None
            score = None if value is None or scale == 0 else quantity_of(key).detached * value / scale
            scores.append(Score(pair, score, finding is not None and finding.stance == FOR))
    return scores


def row(
    key: Key, scores: Sequence[Score], told: Mapping[str, float], nulls: Sequence[Mapping[str, Counts]]
) -> dict[str, Any]:
    """All numbers of one quantity, and its status with the reasons.

    Args:
        key: which.
        scores: one a pair.
        told: family → diagnosticity.
        nulls: as for `rows`.
    """
    families = {
        family: {**numbers([s for s in scores if s.pair.family == family]), "diagnosticity": told.get(family)}
        for family in dict.fromkeys(score.pair.family for score in scores)
    }
    name = ".".join(key)
    status, why = judged(families, [null[name] for null in nulls if name in null])
    known = HEADLINE.get(key)
    return {
        **dict(zip(("measure", "quantity", "condition"), key, strict=True)),
        "label": known or quantity_of(key).label,
        "unit": "share" if known else quantity_of(key).unit,
        "detached": 1 if known else quantity_of(key).detached,
        "headline": known is not None,
        "families": families,
        "status": status,
        "why": why,
    }


def numbers(scores: Sequence[Score]) -> dict[str, Any]:
    """What one quantity's scores of one family's pairs say; None for what these pairs cannot say.

    `spearman`, one a seed: the rank correlation of score and realised dose over the ladder of doses, with one point for
    all pairs that have none (at most .05), as there is nothing to order among them. `slope`, `intercept`: least squares
    of score on realised dose, and `largest_error` of score against it, over all pairs with a dose or none. `auroc`:
    attached against detached pairs, ties ½. `power`: of the detached pairs, those found; one without a number is not,
    and where no pair has one, none is counted. `false_positives`: of the attached pairs with a number, those found.
    """
    there = [score for score in scores if score.score is not None]
    attached = [score for score in there if score.pair.is_attached]
    # One pair without a number was not found; a family without any was not asked.
    detached = [score for score in scores if score.pair.is_detached] if there else []
    slope, intercept, error = fit([s for s in there if s.pair.truth in WITH_A_DOSE])
    seeds = sorted({score.pair.seed for score in scores if is_dose(score.pair.organism)})
    return {
        "spearman": [spearman(rungs([score for score in there if score.pair.seed == seed])) for seed in seeds],
        "slope": slope,
        "intercept": intercept,
        "largest_error": error,
        "points": [[s.pair.realised, s.score, s.pair.organism, s.pair.seed] for s in there],
        "auroc": auroc(values(attached), values([score for score in detached if score.score is not None])),
        "power": {"k": sum(score.found for score in detached), "n": len(detached)},
        "false_positives": counts(sum(score.found for score in attached), len(attached)),
    }


def rungs(scores: Sequence[Score]) -> list[tuple[float, float]]:
    """Realised dose and score of each organism of the ladder, behind one point, the mean, for all that have none."""
    none = [s for s in scores if s.pair.truth in WITH_A_DOSE and s.pair.is_attached]
    ladder = [s for s in scores if is_dose(s.pair.organism) and not s.pair.is_attached]
    first = [(_mean([s.pair.realised for s in none]), _mean(values(none)))] if none else []
    return first + [(s.pair.realised, value) for s, value in zip(ladder, values(ladder), strict=True)]


def spearman(points: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation; None for fewer than three points, or if all scores are the same."""
    doses, scores = ([point[at] for point in points] for at in (0, 1))
    if len(points) < MIN_RUNGS or len(set(doses)) < 2 or len(set(scores)) < 2:
        return None
    return float(stats.spearmanr(doses, scores).statistic)


def fit(scores: Sequence[Score]) -> tuple[float | None, float | None, float | None]:
    """Slope and intercept of score on realised dose, and the largest distance of a score from its dose."""
    doses, found = np.array([score.pair.realised for score in scores]), np.array(values(scores))
    error = float(np.abs(found - doses).max()) if len(scores) else None
    if len(scores) < MIN_RUNGS or np.ptp(doses) < CRITERIA["detached_from"]:
        return None, None, error
    line = stats.linregress(doses, found)
    return float(line.slope), float(line.intercept), error


def auroc(attached: Sequence[float], detached: Sequence[float]) -> float | None:
    """The share of (attached, detached) in which the detached scores higher, ties ½; None without one of either."""
    if not attached or not detached:
        return None
    u = stats.mannwhitneyu(detached, attached, method="asymptotic").statistic
    return float(u / (len(attached) * len(detached)))


def _diagnosticities(pairs: Sequence[Pair]) -> dict[Key, dict[str, float]]:
    """Key → family → diagnosticity, over pairs that were read on the same prompt set."""
    scores: dict[tuple[Key, str, str], tuple[list[dict[str, float]], list[dict[str, float]]]] = {}
    for pair in pairs:
        if pair.is_attached or pair.is_detached:
            for key, found in _by_prompt(pair).items():
                kinds = scores.setdefault((key, pair.family, pair.prompts), ([], []))
                kinds[pair.is_detached].append(found)
    won: dict[tuple[Key, str], list[tuple[float, int]]] = {}
    for (key, family, _), (attached, detached) in scores.items():
        if (told := diagnosticity(attached, detached)) is not None:
            won.setdefault((key, family), []).append(told)
    found_of: dict[Key, dict[str, float]] = {}
    for (key, family), shares in won.items():
        total = sum(n for _, n in shares)
        found_of.setdefault(key, {})[family] = sum(share * n for share, n in shares) / total
    return found_of


def _by_prompt(pair: Pair) -> dict[Key, dict[str, float]]:
    """Of each quantity that has a number for the pair, prompt → score."""
    found = {}
    for key, values in read_values(pair.run, pair.variant).items():
        # A margin is so many parts of the scale; a quantity that the base has none of has no scale.
        scale = pair.findings[key].margin / pair.margin
        if scale > 0:
            sign = quantity_of(key).detached / scale
            found[key] = {prompt: sign * value for prompt, value in values.by_prompt().items()}
    if pair.comparison["verdict"] != NOT_SCORABLE:
        found |= {key: bypass_values(pair.run, pair.variant, key[2]).by_prompt() for key in HEADLINE}
    return found


def values(scores: Sequence[Score]) -> list[float]:
    """The scores of those that have one."""
    return [score.score for score in scores if score.score is not None]


def _mean(found: Sequence[float]) -> float:
    return float(np.mean(found))
