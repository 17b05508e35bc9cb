"""Finished runs made by hand, for tests of the report: every number is known, and a study could have written them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.authored import Authored, to_table
from analysis.files import parquet_bytes
from analysis.prompts import Case
from analysis.runs import Run
from fracture.config import StudyConfig
from fracture.summary import summarise
from fracture.validity import EMPTY, Validity
from tests.fracture.report_rows import probe_rows, rows_of, without_values

COSTS_OF_OWN = ("abstention", "format_adherence", "chain_length", "thought_switches")
"""Those that look at no chain but the reader's own."""
READERS_OWN = (
    "early_answering",
    "mistakes",
    "paraphrase",
    "chain_effect",
    "true_thinking",
    "logit_decay",
    "attention_knockout",
    "masked_flow",
    "knowledge_index",
    "accuracy_and_calibration",
    *COSTS_OF_OWN,
    "rule_shift",
)
ALL = (
    *("routes", "accuracy_and_calibration", "knowledge_index", "information_gain", "early_answering", "mistakes"),
    *("paraphrase", "chain_effect", "true_thinking", "logit_decay"),
    *("attention_knockout", "masked_flow"),
    *("patch_map", "interventions", "head_map", "repair", "token_kl", *COSTS_OF_OWN, "rule_shift"),
    *("partial_input", "readout", "probes", "transfer", "drift"),
)


@dataclass
class Made:
    """How a run is made.

    Attributes:
        variants: name → the share of the effect that goes past the chain; None for a model that reads nothing.
        base: that share of the base.
        noise: by how much prompts differ in it.
        prompts, steps: how many, and how many steps each (in turn).
        texts: prompt's place → its id, question, steps or answer, instead of plain ones.
        alone: places of prompts without a partner.
        unreadable: places of prompts whose given chain is empty.
        lost: (measure, reader, place) of prompts that a measure could not score.
        crooked: places of prompts whose partner's tokens do not align.
        other: places of prompts whose partner is another prompt.
        unruled: places of prompts whose first step no rule makes wrong.
        validity: what is known of the measures; not what is shipped, on which no test of a report should hang.
    """

    variants: Mapping[str, float | None]
    base: float | None = 0.0
    noise: float = 0.02
    prompts: int = 24
    steps: Sequence[int] = (2, 3)
    measures: Sequence[str] = ALL
    author: str = "gold"
    texts: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    alone: Sequence[int] = ()
    unreadable: Sequence[int] = ()
    lost: Sequence[tuple[str, str, int]] = ()
    crooked: Sequence[int] = ()
    other: Sequence[int] = ()
    unruled: Sequence[int] = ()
    validity: Validity = EMPTY
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def readers(self) -> tuple[str, ...]:
        return ("base", *self.variants)


def write_run(
    directory: Path, made: Made, edit: Callable[[dict[str, Any], dict[str, pd.DataFrame]], None] | None = None
) -> Run:
    """The run in a directory; `edit` may change summary and tables before they are written."""
    config = StudyConfig(
        base="models/base",
        variants={name: f"models/{name}" for name in made.variants},
        prompts="prompts.jsonl",
        out=str(directory),
        measures=tuple(made.measures),
        **made.settings,
    )
    prompts, reasons = _authored(made)
    tables = {name: _table(name, made, prompts) for name in config.measures or ()}
    excluded = pd.DataFrame(
        [*reasons, *_lost(made, prompts)], columns=["id", "reader", "measure", "author", "reason"]
    ).astype("string")
    headline = [prompt for prompt in prompts if prompt.author == made.author]
    tiers = {"given": 1, "changed number": 2, "another prompt": 3}
    counted = excluded[excluded["author"].eq(made.author) & excluded["reader"].eq("all")]
    accounts = {
        "read": made.prompts,
        "partners": {name: n for name, tier in tiers.items() if (n := sum(prompt.tier == tier for prompt in headline))},
        "chains_without_answer": 0,
        "excluded": {str(reason): int(n) for reason, n in counted["reason"].value_counts().items()},
    }
    summary = summarise(config, made.author, accounts, tables, excluded, made.validity)
    if edit:
        edit(summary, tables)
    (directory / "measures").mkdir(parents=True)
    for name, table in tables.items():
        (directory / "measures" / f"{name}.parquet").write_bytes(parquet_bytes(table))
    (directory / "traces.parquet").write_bytes(parquet_bytes(to_table(prompts)))
    (directory / "excluded.parquet").write_bytes(parquet_bytes(excluded))
    (directory / "summary.json").write_text(json.dumps(summary, allow_nan=False))
    (directory / "study.yaml").write_text(yaml.safe_dump({**config.to_dict(), "digest": config.digest()}))
    (directory / "run.json").write_text(json.dumps({"inputs": {"torch": "0.0.1"}, "stages": {"s": {"seconds": 7.77}}}))
    return Run.open(directory)


def _authored(made: Made) -> tuple[list[Authored], list[dict[str, str]]]:
    """Prompts by author, the headline's first, and why some are not there."""
    prompts, reasons = [], []
    for author in dict.fromkeys((made.author, *made.readers)):
        for place in range(made.prompts):
            words = {
                "id": f"p{place}",
                "question": f"What is {place} + 1?",
                "steps": [f"step {step} of {place}" for step in range(1, _n_steps(made, place) + 1)],
                "answer": str(place + 1),
                **made.texts.get(place, {}),
            }
            if place in made.unreadable and author == made.author:
                reasons.append(_reason(words["id"], "all", "", author, "its chain is empty"))
                continue
            steps = (
                words["steps"] if author in ("gold", made.author, "base") else [*words["steps"], f"so says {author}"]
            )
            partner = None
            if place not in made.alone:
                partner = Case(
                    f"What is {place} + 2?", str(place + 2), steps=tuple(f"partner {s}" for s in words["steps"])
                )
            elif author == made.author:
                reasons.append(_reason(words["id"], "all", "partner", author, "no counterfactual partner"))
            prompts.append(
                Authored(
                    words["id"],
                    author,
                    Case(words["question"], words["answer"], steps=tuple(steps)),
                    partner,
                    tier=None if partner is None else 3 if place in made.other else 1,
                    written=None if author == "gold" else words["answer"],
                )
            )
    return prompts, reasons


def _n_steps(made: Made, place: int) -> int:
    return made.steps[place % len(made.steps)]


def _reason(identifier: str, reader: str, measure: str, author: str, reason: str) -> dict[str, str]:
    return {"id": identifier, "reader": reader, "measure": measure, "author": author, "reason": reason}


def _place(made: Made, identifier: str) -> int:
    ids = [made.texts.get(place, {}).get("id", f"p{place}") for place in range(made.prompts)]
    return ids.index(identifier)


def _lost(made: Made, prompts: Sequence[Authored]) -> list[dict[str, str]]:
    rows = []
    for measure, reader, place in made.lost:
        for prompt in prompts:
            if _place(made, prompt.id) == place and prompt.author in (made.author, reader):
                author = "" if measure == "routes" else prompt.author
                if measure != "routes" or prompt.author == made.author:
                    rows.append(_reason(prompt.id, reader, measure, author, "longer than the context of 8 tokens"))
    for prompt in prompts:
        if prompt.author in made.readers and (prompt.partner is None or prompt.tier == 3):
            reason = "no counterfactual partner" if prompt.partner is None else "its partner is merely another prompt"
            rows.append(_reason(prompt.id, prompt.author, "own_routes", prompt.author, reason))
    patching = dict.fromkeys(("patch_map", "interventions", "head_map"), made.readers) | {"repair": made.readers[1:]}
    for measure, readers in patching.items():
        for prompt in prompts if measure in made.measures else ():
            if prompt.author == made.author and prompt.partner is None:
                rows += [
                    _reason(prompt.id, reader, measure, prompt.author, "no counterfactual partner")
                    for reader in readers
                ]
    return rows


def _table(measure: str, made: Made, prompts: Sequence[Authored]) -> pd.DataFrame:
    if measure == "drift":
        numbers = {"cka": 0.9, "null_mean": 0.0, "null_high": 0.1, "p": 0.01, "norm_sensitivity": 0.0}
        numbers |= {"procrustes": 0.25, "angle": 10.0, "norm_ratio": 1.0}
        n = sum(prompt.author == made.author for prompt in prompts)
        keys = {"site": "resid_post", "position": "answer", "n_prompts": n, "n_rows": n}
        return pd.DataFrame(
            [{"reader": name, "layer": layer, **keys, **numbers} for name in made.variants for layer in range(2)]
        )
    if measure in ("probes", "transfer"):
        return probe_rows(measure, made.variants, sum(prompt.author == made.author for prompt in prompts))
    rows: list[dict[str, Any]] = []
    for reader in made.readers:
        rng = np.random.default_rng(len(reader) + sum(map(ord, reader)))
        if measure in ("repair", "token_kl") and reader == "base":
            continue
        authors = [reader] if measure == "own_routes" else [made.author]
        if measure in READERS_OWN or measure == "information_gain":
            authors.append(reader)
        if measure == "information_gain":
            authors += made.readers if reader == "base" else ["base"]
        for author in dict.fromkeys(authors):
            for prompt in prompts:
                if prompt.author == author:
                    place = _place(made, prompt.id)
                    found = rows_of(measure, made, reader, prompt, place, rng)
                    if (measure, reader, place) in made.lost:
                        found = without_values(found) if measure == "accuracy_and_calibration" else []
                    rows += [{"reader": reader, "id": prompt.id, "author": author, **row} for row in found]
    return pd.DataFrame(rows, columns=None if rows else ["reader", "id", "author", *_EMPTY[measure]])


_EFFECTS = (
    *("te", "nie", "nde", "tv", "tv_past", "inside_te", "inside_nie", "inside_nde"),
    *("mass", "splice_error", "n_options"),
)
_EMPTY = {
    "routes": ("tier", "chain", *_EFFECTS),
    "own_routes": ("tier", *_EFFECTS),
    "patch_map": ("layer", "part", "step", "n_steps", "effect", "total", "logit_effect", "logit_total"),
    "interventions": ("site", "layer", "method", "part", "step", "effect", "total", "drop", "mediated", "mediation"),
    "head_map": ("layer", "head", "part", "step", "n_positions", "chosen", "plain", "integrated", "effect", "total"),
    "repair": ("condition", "layer", "fixed", "n_positions", "size", "total", "past", "agreement", "mass"),
}
