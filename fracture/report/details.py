"""Tables that a measure has beside its quantities: what no mean over prompts can say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.models import BASE
from analysis.routes import MIN_TOTAL_EFFECT
from analysis.runs import Run
from figures.marks import hidden
from fracture import catalogue
from fracture.report.changes import changes_tables
from fracture.report.costs import length_tables, part_tables, rule_tables
from fracture.report.interventions import agreement, head_tables, intervention_tables
from fracture.report.numbers import MISSING, centre_of, limits_of, number, p_value, tiny, too_small
from fracture.report.probes import probes_tables, transfer_tables
from fracture.report.repair import repair_tables
from fracture.report.step_scores import decay_tables
from fracture.report.tables import CHAINS, TOO_SMALL, Cell, Group, Row, Table, chains, measure_table, whose
from fracture.verdict import NOT_SCORABLE


@dataclass(frozen=True)
class MeasureTables:
    """All tables of one measure."""

    name: str
    title: str
    descriptive: bool
    tables: tuple[Table, ...]


def measures_tables(run: Run) -> list[MeasureTables]:
    """The tables of every measure of the run, in its order."""
    found = []
    for name in run.measures:
        measure = catalogue.measure(name)
        # What no prompt could be asked has no row, and a measure's own tables say why.
        tables = [found for found in [measure_table(run, measure)] if found.groups or name not in _BESIDE]
        tables = tables if measure.quantities else []
        tables += changes_tables(run, measure)
        tables += _BESIDE[name](run) if name in _BESIDE else []
        found.append(MeasureTables(name, measure.title, measure.descriptive, tuple(tables)))
    return found


def _routes(run: Run) -> Iterator[Table]:
    """The shares of the headline for every model by itself; the verdicts compare them prompt by prompt."""
    names = ("total", "bypass", "direct", "covert")
    groups = []
    for chain, words in (("whole", "whole chain"), ("no_conclusion", "last step removed")):
        for form, how in (("text", "by text"), ("inside", "inside")):
            rows = []
            for name, reader in _readers(run):
                own = reader["own"][chain]
                readable = not hidden(run, name) and (chain == "whole" or _acts(own["text"]["total"]))
                shares = [_share(own[form].get(share), readable or share == "total") for share in names]
                rows.append(Row(name, [_count(own[form]["total"]), *shares]))
            groups.append(Group(f"{words}, {how}".capitalize(), rows))
    yield Table(
        "Shares of the answer's causal effect, every model by itself",
        "The mean total effect is at most 2. Bypass is the share that does not run through the chain; direct, the "
        "share that comes about when the question alone is replaced; covert, what the chain's positions carry beyond "
        f"its words. Shares are not scorable where the total effect's lower bound is below {MIN_TOTAL_EFFECT:g}. 95% "
        "intervals in brackets.",
        ["n", "mean total effect", "bypass", "direct", "covert"],
        groups,
    )
    others = [(name, reader["another_prompt_as_partner"]) for name, reader in _readers(run)]
    if any(found for _, found in others):
        yield Table(
            "Another prompt as partner: described, counted for no verdict",
            "For prompts without a counterfactual of their own, by text. 95% intervals in brackets.",
            ["n", "mean total effect", "bypass", "direct"],
            [
                Group(
                    "",
                    [
                        Row(name, [_count(found["total"]), *(_share(found[share], True) for share in names[:3])])
                        for name, found in others
                        if found
                    ],
                )
            ],
        )
    yield Table(
        "Check of the inside form",
        "The largest difference, in probability, between the run with both caches spliced and the partner's own run. "
        "It must be near 0.",
        ["largest difference"],
        [Group("", [Row(name, [Cell(tiny(reader["splice_error"]))]) for name, reader in _readers(run)])],
    )


def _calibration(run: Run) -> Iterator[Table]:
    groups = [
        Group(
            head,
            [
                Row(
                    name,
                    [
                        _count(found),
                        *(Cell(number(found[key], "error")) for key in ("ece", "expected", "high")),
                        Cell(p_value(found["p"]).removeprefix("p ").removeprefix("= ") or MISSING),
                    ],
                )
                for name, found in models
            ],
        )
        for head, models in _details(run, "accuracy_and_calibration")
    ]
    yield Table(
        "Expected calibration error, beside what perfect calibration would show",
        "At a finite number of prompts a perfectly calibrated reader's error is not 0 either: what it would be with "
        "the same confidences stands beside the observed one, as mean and 95th percentile. p is the share of its draws "
        "that are as large as the observed one; a large p does not show calibration.",
        ["n", "observed", "if calibrated: mean", "if calibrated: 95th percentile", "p"],
        groups,
    )


def _structure(run: Run) -> Iterator[Table]:
    groups = []
    for head, models in _details(run, "chain_effect"):
        rows = []
        for name, found in models:
            effects = [found["effects"][which] for which in ("chain", "question", "any_chain")]
            small = any(too_small(effect["ate"]) for effect in effects)
            cells = [Cell(found["structure"], kind="words", flag=TOO_SMALL if small else "")]
            for effect in effects:
                ate = effect["ate"]
                cells.append(Cell(centre_of(ate, signed=True), limits_of(ate), p_value(effect["p"])))
            rows.append(Row(name, cells))
        groups.append(Group(head, rows))
    yield Table(
        "Which causal structure the effects on being right speak for",
        "By how much less often the answer is right behind another prompt's chain, with another question, and without "
        "a chain: paired differences with 95% intervals and exact McNemar p. An edge is seen where p is below .05.",
        ["structure", "effect of the chain", "effect of the question", "effect of having a chain"],
        groups,
    )


def _map(run: Run) -> Iterator[Table]:
    given = next(iter(_details(run, "patch_map")), ("", []))
    others = "interventions" in run.measures
    rows = [
        Row(
            name,
            [
                Cell(str(found["prompts"])),
                Cell(str(found["logit_scored"])),
                Cell(_first_layer(found), kind="words"),
                Cell("yes: a mean hides what there is" if found["outliers"] else "no", kind="words"),
                *([Cell(agreement(run, name), kind="words")] if others else []),
            ],
        )
        for name, found in given[1]
    ]
    yield Table(
        "What the residual map rests on",
        "The map itself is among the figures. Share: the chain's, after the first layer, in logit differences, over "
        "prompts (median; 5th to 95th percentile). Outliers: in some layer it is high on average while more than a "
        "tenth of the prompts lie below 0 or above 1.5."
        + (" Other interventions: denoising and mean ablation, at the first layer." if others else ""),
        [
            "prompts",
            "with a logit form",
            "share over prompts",
            "outliers",
            *(["other interventions"] if others else []),
        ],
        [Group("", rows)],
    )


def _first_layer(found: Mapping[str, Any]) -> str:
    """How the chain's share after the first layer is spread over prompts."""
    spread = next(iter(found.get("distribution", [])), None)  # an older run has none
    if spread is None:
        return "—"
    return f"{number(spread['q50'])}; {number(spread['q05'])} to {number(spread['q95'])}"


def _drift(run: Run) -> Iterator[Table]:
    rows = []
    for name, found in run.summary["measures"]["drift"].get("details", {}).items():
        least, most, distance = (number(found[key]) for key in ("cka_min", "cka_max", "procrustes_max"))
        flagged = f"{found['flagged']} of {found['cells']}"
        rows.append(Row(name, [Cell(least), Cell(most), Cell(distance), Cell(flagged)]))
    yield Table(
        "Similarity of activations to the base's, over layers and positions",
        "A baseline: a harmless fine-tune drifts too. Debiased linear CKA is 1 for equal activations and about 0 for "
        "unrelated ones; the Procrustes distance is 0 for equal ones. Flagged are places where the 1% of rows with the "
        "largest norms decide the similarity.",
        ["least CKA", "largest CKA", "largest Procrustes distance", "flagged"],
        [Group("", rows)],
    )


def _readers(run: Run) -> list[tuple[str, dict[str, Any]]]:
    return [(BASE, run.summary["base"]), *run.summary["variants"].items()]


def _acts(total: Mapping[str, Any]) -> bool:
    low = total["estimate"] if total["low"] is None else total["low"]
    return low is not None and low >= MIN_TOTAL_EFFECT


def _count(found: Mapping[str, Any]) -> Cell:
    return Cell(str(found["n"]), flag=TOO_SMALL if found["n"] and too_small(found) else "")


def _share(found: Mapping[str, Any] | None, readable: bool) -> Cell:
    if found is None or found["estimate"] is None:
        return Cell(MISSING)
    return Cell(centre_of(found), limits_of(found)) if readable else Cell(NOT_SCORABLE, kind="words")


def _details(run: Run, measure: str) -> Iterator[tuple[str, list[tuple[str, Mapping[str, Any]]]]]:
    """On the given and on their own chains: each model's further results, if any has some."""
    readers = run.summary["measures"][measure]["readers"]
    for kind in ("given", "own"):
        reader_of, author_of = chains(run)[kind]
        found = [(name, readers.get(reader_of(name), {}).get(author_of(name), {})) for name in run.readers]
        models = [(name, numbers["details"]) for name, numbers in found if "details" in numbers]
        if models:
            yield CHAINS[kind].format(whose=whose(run)), models


_BESIDE: Mapping[str, Callable[[Run], Iterator[Table]]] = {
    catalogue.HEADLINE: _routes,
    "accuracy_and_calibration": _calibration,
    "chain_effect": _structure,
    "logit_decay": decay_tables,
    "patch_map": _map,
    "interventions": intervention_tables,
    "head_map": head_tables,
    "repair": repair_tables,
    "rule_shift": rule_tables,
    "chain_length": length_tables,
    "partial_input": part_tables,
    "probes": probes_tables,
    "transfer": transfer_tables,
    "drift": _drift,
}
