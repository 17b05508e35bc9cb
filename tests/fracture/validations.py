"""A made `validation.json`: every number is known, in both families, with organisms of every kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fracture import catalogue
from fracture.validation.plan import ValidationConfig

ORGANISMS: Mapping[str, Sequence[tuple[str, str, float | None, str]]] = {
    "registers": [
        ("self", "base", 0.0, "attached"),
        ("sham", "attached", 0.0, "attached"),
        ("dose_0", "attached", 0.001, "attached"),
        ("dose_0.25", "dose", 0.23, "detached"),
        ("dose_0.5", "dose", 0.5, "detached"),
        ("dose_0.75", "dose", 0.77, "detached"),
        ("dose_1", "dose", 1.0, "detached"),
        ("itemwise", "detached", 0.48, "detached"),
        ("answer_only", "detached", 0.97, "detached"),
        ("rationaliser", "detached", 0.96, "detached"),
        ("memoriser", "unknown", 0.31, "detached"),
        ("collapsed", "collapsed", None, "not scorable"),
    ],
    "elimination": [
        ("self", "base", 0.0, "attached"),
        ("elimination_sham", "attached", 0.01, "attached"),
        ("dithering", "attached", 0.02, "attached"),
        ("elimination_dose_0.25", "dose", 0.26, "detached"),
        ("elimination_dose_1", "dose", 0.99, "detached"),
        ("internalised", "detached", 0.9, "detached"),
        ("covert", "detached", 0.03, "inconclusive"),
        ("accuracy_trap", "unknown", 0.4, "detached"),
    ],
}
"""Family → organism, truth, realised dose, verdict."""
HEADLINES = {"text": "bypass, by text", "inside": "bypass, inside"}


def counts(k: int, n: int) -> dict[str, Any]:
    """Counts with bounds that only look like exact ones."""
    return {"k": k, "n": n, "low": k / n * 0.5 if n else None, "high": min(1.0, k / n + 0.3) if n else None}


def made_validation(
    families: Sequence[str] = ("registers", "elimination"),
    seeds: Sequence[int] = (0,),
    mode: Literal["quick", "full"] = "quick",
) -> dict[str, Any]:
    """A validation in which measures differ in all that the page shows; the n-th has status n modulo 3."""
    config = ValidationConfig(Path("out"), mode, seeds=tuple(seeds), doses=(0, 0.25, 1), families=tuple(families))
    pairs = [pair(family, seed, *what) for family in families for seed in seeds for what in ORGANISMS[family]]
    measures = [
        row("routes", "bypass", label, "share", 1, form, 0, pairs, families, seeds) for form, label in HEADLINES.items()
    ]
    for name in catalogue.NAMES:
        if name == catalogue.HEADLINE:
            continue
        measure = catalogue.measure(name)
        for quantity in measure.quantities:
            for condition in ("given", "own") if quantity.detached else ():
                if measure.authors != "headline" if condition == "own" else name != "own_routes":
                    what = (name, quantity.name, quantity.label, quantity.unit, quantity.detached)
                    measures.append(row(*what, condition, len(measures), pairs, families, seeds))
    findings = {".".join(each[key] for key in ("measure", "quantity", "condition")): counts(1, 50) for each in measures}
    null = {"detached": counts(0, 50), "findings": findings}
    reader = {"dependence": 0.3, "accuracies": [0.25, 0.6, 0.9], "bypass": [0.7, 0.7, 0.69], "correlation": -0.02}
    return {
        "schema_version": 1,
        "mode": mode,
        "settings": config.deciding(),
        "criteria": {"auroc": 0.95, "slope": [0.8, 1.2]},
        "pairs": pairs,
        "measures": measures,
        "nulls": {"self_pairs": null, "permuted_labels": null, "readers": [reader]},
        "acceptance": [
            {"what": "Spearman of bypass by text, registers", "limit": "≥ 0.95", "value": 0.998, "passed": True},
            {"what": "shams called detached", "limit": "≤ 5%", "value": "2 of 40 [0.6%, 16.9%]", "passed": False},
            {"what": "covert told from the base", "limit": "by a measure beside the verdict", "value": "8 measures"}
            | {"passed": True},
        ],
    }


def pair(family: str, seed: int, name: str, truth: str, realised: float | None, verdict: str) -> dict[str, Any]:
    expected = ["attached"] if truth in ("base", "attached") else ["detached"]
    expected = ["not scorable"] if truth == "collapsed" else expected
    estimate = {"estimate": realised, "low": (realised or 0) - 0.01, "high": (realised or 0) + 0.01}
    none = {"estimate": None, "low": None, "high": None}
    return {
        **{"id": f"{family}/seed_{seed}/{name}", "family": family, "seed": seed, "organism": name, "truth": truth},
        **{"realised": realised, "expected": expected, "verdict": verdict, "right": verdict in expected},
        "where": ["direct"] if verdict == "detached" else [],
        "n": 40,
        "bypass": dict.fromkeys(("text", "inside"), estimate if realised is not None else none),
        "told_by": [] if (realised or 0) < 0.02 else ["information gain of the chain, own chains", "mistakes"],
    }


def row(
    measure: str,
    quantity: str,
    label: str,
    unit: str,
    detached: int,
    condition: str,
    at: int,
    pairs: Sequence[Mapping[str, Any]],
    families: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """The line of a quantity, the `at`-th; the more, the worse."""
    status = ("calibrated", "diagnostic", "descriptive")[at % 3]
    worse = at / 100
    of_family = {}
    for shift, family in enumerate(families):
        known = [each for each in pairs if each["family"] == family and each["realised"] is not None]
        of_family[family] = {
            "spearman": [1 - worse - 0.01 * seed - 0.02 * shift for seed in seeds],
            **{"slope": 0.99 - worse, "intercept": 0.01, "largest_error": 0.03 + worse},
            "points": [[each["realised"], each["realised"] * 0.97, each["organism"], each["seed"]] for each in known],
            **{"auroc": 1 - worse / 2 - 0.01 * shift, "diagnosticity": 0.9 - worse if at % 4 else None},
            "power": counts(max(0, 8 - at // 6), 8),
            "false_positives": counts(at // 14, 12),
        }
    return {
        **{"measure": measure, "quantity": quantity, "condition": condition, "label": label, "unit": unit},
        **{"detached": detached, "headline": at == 0, "families": of_family, "status": status},
        "why": [] if status == "calibrated" else [f"AUROC {1 - worse / 2:.3f} below .95", "slope 0.5"][: 1 + at % 2],
    }


def write_validation(out: Path, validation: Mapping[str, Any]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    (out / "validation.json").write_text(json.dumps(validation, allow_nan=False))
    return out
