"""`summary.json`: everything a reader of a run needs, as plain numbers; the schema is described in docs/summary.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.routes import Routes
from analysis.statistics import Estimate
from fracture.verdict import Form, is_scorable, judge

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ReaderResult:
    """One model's own figures, over all prompts that it scored.

    Attributes:
        routes: chain form (`whole`, `no_conclusion`) → form (`text`, `inside`) → its routes.
        accuracy: shares of right answers, by whose chain was read.
        excluded: reason → number of prompts.
        described: the routes by text over prompts whose partner is merely another prompt; None if there are none.
        splice_error: largest error of the run-time check of the inside form; NaN if it had no prompt.
    """

    routes: Mapping[str, Mapping[str, Routes]]
    accuracy: Mapping[str, float | None]
    excluded: Mapping[str, int]
    splice_error: float
    described: Routes | None = None


def summarise(
    study: Mapping[str, Any],
    prompts: Mapping[str, Any],
    base: ReaderResult,
    variants: Mapping[str, tuple[ReaderResult, Mapping[str, Form], Mapping[str, Form]]],
    margin: float,
) -> dict[str, Any]:
    """The summary of a study: settings, prompts, the base, and each variant with its verdict."""
    return {
        "schema_version": SCHEMA_VERSION,
        "study": dict(study),
        "prompts": dict(prompts),
        "base": _reader(base),
        "variants": {
            name: _variant(result, whole, no_conclusion, margin)
            for name, (result, whole, no_conclusion) in variants.items()
        },
    }


def _variant(
    result: ReaderResult, whole: Mapping[str, Form], no_conclusion: Mapping[str, Form], margin: float
) -> dict[str, Any]:
    verdict = judge(whole["text"], whole["inside"], margin)
    return {
        "verdict": verdict.label,
        "reason": verdict.reason,
        "where": list(verdict.where),
        "prompts_needed": verdict.prompts_needed,
        **_compared(whole),
        "no_conclusion": _compared(no_conclusion),
        **_reader(result),
    }


def _compared(forms: Mapping[str, Form]) -> dict[str, Any]:
    return {
        "bypass": {
            name: {
                "base": form.base.bypass.to_dict(),
                "variant": form.variant.bypass.to_dict(),
                "difference": form.difference.to_dict(),
            }
            for name, form in forms.items()
        },
        **{
            share: {
                name: {
                    whose: _optional(getattr(routes, share))
                    for whose, routes in (("base", form.base), ("variant", form.variant))
                }
                for name, form in forms.items()
                if share != "covert" or name == "inside"
            }
            for share in ("direct", "covert", "total")
        },
    }


def _reader(result: ReaderResult) -> dict[str, Any]:
    return {
        "scorable": is_scorable(result.routes["whole"]["text"].total),
        "accuracy": dict(result.accuracy),
        "excluded": dict(sorted(result.excluded.items())),
        "splice_error": None if math.isnan(result.splice_error) else result.splice_error,
        "own": {
            chain: {
                form: {
                    share: _optional(getattr(routes, share))
                    for share in ("total", "bypass", "direct", "covert")
                    if share != "covert" or form == "inside"
                }
                for form, routes in forms.items()
            }
            for chain, forms in result.routes.items()
        },
        "another_prompt_as_partner": result.described
        and {share: getattr(result.described, share).to_dict() for share in ("total", "bypass", "direct")},
    }


def _optional(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_dict()
