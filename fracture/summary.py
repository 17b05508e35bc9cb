"""`summary.json`: everything a reader of a run needs, as plain numbers; the schema is described in docs/summary.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.measures.estimates import Change, change, estimate, hidden, select
from analysis.measures.protocol import Measure
from analysis.measures.routes import ANOTHER_PROMPT, NO_CONCLUSION, WHOLE
from analysis.models import BASE
from analysis.routes import FORMS, Routes, is_scorable, routes
from analysis.statistics import Estimate
from fracture import catalogue
from fracture.config import StudyConfig
from fracture.evidence import Finding, weigh
from fracture.validity import Validity
from fracture.verdict import NOT_SCORABLE, Form, compared, judge

SCHEMA_VERSION = 2
SIMPSON = "Simpson: strata disagree"
READ_BEFORE = "read in the first layer already"
_NO_CHANGE = {"simpson": SIMPSON, "read_before": READ_BEFORE, "no_effect": NOT_SCORABLE}
"""What `Measure.compare` may find → what stands in place of the changes then."""


def summarise(
    config: StudyConfig,
    author: str,
    prompts: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    excluded: pd.DataFrame,
    validity: Validity | None = None,
) -> dict[str, Any]:
    """The summary of a study: settings, prompts, the base, each variant with its verdict and evidence, all measures.

    Args:
        config: the settings.
        author: whose chains all models read.
        prompts: what became of the prompts of the file.
        tables: measure → its table, with a column `reader`.
        excluded: as `excluded.parquet`.
        validity: as of `fracture.evidence.weigh`: None for the shipped one.
    """
    readers = (BASE, *config.variants)
    by_reader, own = (
        {name: tables[measure].query("reader == @name") for name in readers}
        for measure in (catalogue.HEADLINE, catalogue.OWN_HEADLINE)
    )
    measures = {name: _measure(catalogue.measure(name), tables[name], config, author) for name in tables}
    variants = {}
    for name in config.variants:
        forms = {
            chain: compared(*(_counted(by_reader[whose], chain) for whose in (BASE, name)))
            for chain in (WHOLE, NO_CONCLUSION)
        }
        on_own = compared(own[BASE], own[name])
        verdict = judge(forms[WHOLE], on_own, config.margin)
        # Without a prompt that has a partner nothing is known of the routes, and nothing is wrong with the model.
        readable = verdict.label != NOT_SCORABLE or forms[WHOLE]["text"].variant.total.n == 0
        variants[name] = {
            "verdict": verdict.label,
            "reason": verdict.reason,
            "where": list(verdict.where),
            "prompts_needed": verdict.prompts_needed,
            "chains": verdict.chains,
            "evidence": [finding.to_dict() for finding in _evidence(measures, name, config.margin, readable, validity)],
            **_shares(forms[WHOLE]),
            "no_conclusion": _shares(forms[NO_CONCLUSION]),
            "own_chains": _shares(on_own),
            **_reader(name, by_reader[name], tables, excluded, author),
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "study": {**config.to_dict(), "author": author},
        "prompts": dict(prompts),
        "base": _reader(BASE, by_reader[BASE], tables, excluded, author),
        "variants": variants,
        "measures": measures,
    }


def _counted(table: pd.DataFrame, chain: str) -> pd.DataFrame:
    """The prompts that count: those whose partner is a counterfactual, not merely another prompt."""
    return table[(table["chain"] == chain) & (table["tier"] < ANOTHER_PROMPT)].reset_index(drop=True)


def _shares(forms: Mapping[str, Form]) -> dict[str, Any]:
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
                    whose: _optional(getattr(found, share))
                    for whose, found in (("base", form.base), ("variant", form.variant))
                }
                for name, form in forms.items()
                if share != "covert" or name == "inside"
            }
            for share in ("direct", "covert", "total")
        },
    }


def _reader(
    name: str, table: pd.DataFrame, tables: Mapping[str, pd.DataFrame], excluded: pd.DataFrame, author: str
) -> dict[str, Any]:
    """One model's own figures, over all prompts that it scored."""
    own = {chain: {form: routes(_counted(table, chain), form) for form in FORMS} for chain in (WHOLE, NO_CONCLUSION)}
    others = table[(table["chain"] == WHOLE) & (table["tier"] == ANOTHER_PROMPT)]
    described = routes(others, "text") if len(others) else None
    lost = excluded[(excluded["reader"] == name) & (excluded["measure"] == catalogue.HEADLINE)]
    error = float(table.loc[table["chain"] == WHOLE, "splice_error"].max())
    return {
        "scorable": is_scorable(own[WHOLE]["text"].total),
        "accuracy": _accuracy(name, tables, author),
        "excluded": {str(reason): int(n) for reason, n in lost["reason"].value_counts().sort_index().items()},
        "splice_error": None if math.isnan(error) else error,
        "own": {chain: {form: _own(found, form) for form, found in forms.items()} for chain, forms in own.items()},
        "another_prompt_as_partner": described
        and {share: getattr(described, share).to_dict() for share in ("total", "bypass", "direct")},
    }


def _own(found: Routes, form: str) -> dict[str, Any]:
    names = ("total", "bypass", "direct", "covert") if form == "inside" else ("total", "bypass", "direct")
    return {share: _optional(getattr(found, share)) for share in names}


def _accuracy(name: str, tables: Mapping[str, pd.DataFrame], author: str) -> dict[str, float | None]:
    """Shares of right answers, by whose chain was read."""
    table = tables["accuracy_and_calibration"]
    table = table[table["reader"] == name]
    own, given = table[table["author"] == name], table[table["author"] == author]
    shares = {
        "own_chain": own["written_right"].mean(),
        "own_chain_without_answer": own["unanswered"].mean(),
        "given_chain": given["right"].mean(),
    }
    return {key: None if math.isnan(share) else float(share) for key, share in shares.items()}


def _measure(measure: Measure, table: pd.DataFrame, config: StudyConfig, author: str) -> dict[str, Any]:
    """What a measure found for every reader and author, and how every variant differs from the base."""
    found: dict[str, Any] = {"title": measure.title, "descriptive": measure.descriptive, "readers": {}, "changes": {}}
    if "author" not in table:
        if measure.summarise:
            found["details"] = measure.summarise(table, config.seed)
        return found
    for name in (BASE, *config.variants):
        rows = table[table["reader"] == name]
        found["readers"][name] = {
            whose: _estimates(measure, rows[rows["author"] == whose], config.seed)
            for whose in dict.fromkeys(rows["author"])
        }
    for name in config.variants:
        conditions = {"given": (author, author), "own": (BASE, name)}
        if measure.authors == "all":
            conditions["text"] = (BASE, name)
        found["changes"][name] = {}
        for condition, (base_reads, variant_reads) in conditions.items():
            reader = BASE if condition == "text" else name
            base = table[(table["reader"] == BASE) & (table["author"] == base_reads)]
            variant = table[(table["reader"] == reader) & (table["author"] == variant_reads)]
            if len(base) and len(variant):
                found["changes"][name][condition] = _changes(measure, base, variant)
    return found


def _estimates(measure: Measure, rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Each quantity of one reader and author; one that needs accuracy, of a reader without it, says so instead."""
    found: dict[str, Any] = {
        quantity.name: NOT_SCORABLE if hidden(rows, quantity) else estimate(rows, quantity).to_dict()
        for quantity in measure.quantities
        if len(select(rows, quantity))
    }
    if measure.summarise:
        found["details"] = measure.summarise(rows, seed)
    return found


def _changes(measure: Measure, base: pd.DataFrame, variant: pd.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for quantity in measure.quantities:
        if not len(select(base, quantity)) or not len(select(variant, quantity)):
            continue
        if hidden(base, quantity) or hidden(variant, quantity):
            found[quantity.name] = NOT_SCORABLE
        else:
            found[quantity.name] = _change(change(base, variant, quantity))
    if measure.compare:
        found["details"] = measure.compare(base, variant)
        # What is up in one part of the prompts and down in another has no pooled change worth printing; and a patch
        # after the first layer says nothing of a route that ends within it.
        words = next((say for name, say in _NO_CHANGE.items() if found["details"].get(name)), None)
        if words is not None:
            found = {
                name: words if isinstance(value, dict) and name != "details" else value for name, value in found.items()
            }
    return found


def _change(found: Change) -> dict[str, Any]:
    return {"difference": found.difference.to_dict(), "p": found.p}


def _evidence(
    measures: Mapping[str, Any], name: str, margin: float, readable: bool, validity: Validity | None
) -> list[Finding]:
    quantities = {
        measure: {quantity.name: quantity for quantity in catalogue.measure(measure).quantities} for measure in measures
    }
    return weigh(measures, quantities, name, margin, readable, validity)


def _optional(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_dict()
