"""Every measure: nothing between the base and a copy of itself, and what was planted between the base and dose 1."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.authored import GOLD
from analysis.capture import Text, capture
from analysis.generation import write_chains
from analysis.measures import (
    accuracy_and_calibration,
    chain_effect,
    drift,
    early_answering,
    filler,
    foreign_chain,
    information_gain,
    knowledge_index,
    mistakes,
    paraphrase,
    patch_map,
    routes,
    token_kl,
)
from analysis.measures.estimates import change, estimate, select
from analysis.routes import detachment
from analysis.routes import routes as shares
from fracture import summary
from tests.analysis.measures.oracles import SETTINGS, as_author, organism, shipped, table_of

PROMPT_MEASURES = (
    accuracy_and_calibration,
    chain_effect,
    early_answering,
    filler,
    foreign_chain,
    information_gain,
    knowledge_index,
    mistakes,
    paraphrase,
    patch_map,
)
N = 30


def named(module) -> str:
    return module.MEASURE.name


@functools.cache
def table(module, name: str) -> pd.DataFrame:
    """The measure's table on chains that were given; of what speaks of own chains, on those as well."""
    given = table_of(module, name, N)
    if module is not accuracy_and_calibration:
        return given
    written = write_chains(organism(name).reader, [prompt.case.question for prompt in shipped(N)], 64)
    own = tuple(
        replace(prompt, author=name, written=chain.answer) for prompt, chain in zip(shipped(N), written, strict=True)
    )
    return pd.concat([given, module.MEASURE.run(organism(name), own, SETTINGS).table], ignore_index=True)


def of_author(rows: pd.DataFrame, author: str) -> pd.DataFrame:
    return rows[rows["author"] == author]


@pytest.mark.parametrize("module", PROMPT_MEASURES, ids=named)
def test_a_copy_of_the_base_differs_from_it_in_nothing(module):
    base, copy = table(module, "base"), table(module, "copy")
    assert len(base) == len(copy) > 0
    compared = 0
    for quantity in module.MEASURE.quantities:
        for authors in ((GOLD, GOLD), ("base", "copy")):
            rows = [of_author(rows, author) for rows, author in zip((base, copy), authors, strict=True)]
            if all(len(select(mine, quantity)) for mine in rows):
                found = change(*rows, quantity)
                assert abs(found.difference.estimate) <= 1e-6, quantity.name
                assert found.difference.low <= 0 <= found.difference.high or abs(found.difference.high) <= 1e-6
                compared += 1
    assert compared >= len(module.MEASURE.quantities) - (module is early_answering)
    for column in base.select_dtypes("number"):
        np.testing.assert_allclose(base[column], copy[column], atol=1e-6, rtol=0)


SIGNED = [
    (module, quantity) for module in PROMPT_MEASURES for quantity in module.MEASURE.quantities if quantity.detached
]


@pytest.mark.parametrize(
    ("module", "quantity"), SIGNED, ids=[f"{module.MEASURE.name}-{quantity.name}" for module, quantity in SIGNED]
)
def test_a_planted_detachment_has_the_sign_that_its_quantity_declares(module, quantity):
    """Dose 1 answers from a cue in the question; its cues agree here, so that it stays as right as the base is."""
    found = change(table(module, "base"), table(module, "dose_1"), quantity)
    assert found.difference.n == N
    clear = found.difference.low if quantity.detached > 0 else -found.difference.high
    assert clear > 0, found
    assert found.p < 1e-4


def test_every_measure_that_takes_a_sign_is_tested_for_it():
    assert {module.MEASURE.name for module, _ in SIGNED} == {
        "chain_effect",
        "early_answering",
        "filler",
        "foreign_chain",
        "information_gain",
        "mistakes",
        "patch_map",
    }


@pytest.mark.parametrize("module", [module for module in PROMPT_MEASURES if module is not knowledge_index], ids=named)
def test_a_harmless_fine_tune_moves_no_signed_quantity_by_its_margin(module):
    """The sham: changes of shares and probabilities stay below the verdict's own margin of .1."""
    for quantity in module.MEASURE.quantities:
        if quantity.detached and quantity.unit in ("share", "probability"):
            found = change(table(module, "base"), table(module, "sham"), quantity)
            assert abs(found.difference.estimate) < 0.1, (quantity.name, found)


def test_a_collapsed_reader_has_no_shares_in_the_residual_map():
    """Its total effect is nothing, and a share of nothing is no number, however small its interval.

    The routes call such a reader not scorable (the mean total's lower bound below .2); so must the map, in what is
    reported.
    """
    base, collapsed = table(patch_map, "base"), table(patch_map, "collapsed")
    assert collapsed.groupby("id")["total"].first().mean() < 0.01
    changes = summary._changes(patch_map.MEASURE, base, collapsed)
    assert changes.pop("details") == {"read_before": False}
    for name, found in changes.items():
        assert not (isinstance(found, dict) and found["difference"]["n"]), (name, found)


@pytest.mark.parametrize(("name", "bypass"), [("base", 0.0), ("copy", 0.0), ("dose_1", 1.0)])
def test_the_routes_find_what_was_planted(name, bypass):
    found = table_of(routes, name, N)
    for chain in ("whole", "no_conclusion"):
        mine = found[found["chain"] == chain].reset_index(drop=True)
        assert len(mine) == N
        assert (mine["author"] == GOLD).all()
        assert (mine["tier"] == 1).all()
        if chain == "whole":
            for form in ("text", "inside"):
                assert shares(mine, form).bypass.estimate == pytest.approx(bypass, abs=0.03)


def test_the_routes_of_a_copy_are_the_base_s():
    base, copy = (
        table_of(routes, name, N).query("chain == 'whole'").reset_index(drop=True) for name in ("base", "copy")
    )
    for form in ("text", "inside"):
        assert abs(detachment(base, copy, form).estimate) <= 1e-6


def test_the_base_diverges_from_its_copy_by_nothing_and_from_dose_1_by_something():
    prompts = shipped(N)
    base, copy, dose = (token_kl.token_kl(organism(name), prompts, SETTINGS) for name in ("base", "copy", "dose_1"))
    assert len(base.table) == 0
    assert list(base.table.columns) == list(copy.table.columns)
    assert len(copy.table) == len(dose.table) == N
    assert copy.table["kl"].abs().max() <= 1e-9
    assert dose.table["kl"].min() > 1e-6
    for measured in (base, copy, dose):
        assert not measured.excluded


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    made = {}
    for name in ("base", "copy", "dose_1"):
        reader = organism(name).reader
        texts = [
            Text(p.id, p.author, reader.encoder.encode(p.case.question, p.steps, p.case.answer)) for p in shipped(N)
        ]
        made[name] = capture(reader, texts, tmp_path_factory.mktemp(name) / "store")
    return made


def test_activations_of_a_copy_have_not_drifted(stores):
    table = drift.drift(stores, SETTINGS).table
    copy, dose = (table[table["reader"] == name] for name in ("copy", "dose_1"))
    assert len(copy) == len(dose) > 6
    np.testing.assert_allclose(copy["norm_ratio"], 1.0, atol=1e-6)
    np.testing.assert_allclose(copy["procrustes"], 0.0, atol=1e-6)
    known = copy["cka"].notna()
    assert known.sum() > 3
    np.testing.assert_allclose(copy.loc[known, "cka"], 1.0, atol=1e-9)
    np.testing.assert_allclose(copy["angle"].dropna(), 0.0, atol=1e-4)
    # A variant that answers from elsewhere has moved, most at the answer.
    answer = dose[dose["position"] == "answer"]
    assert answer["cka"].min() < 0.9
    assert answer["procrustes"].max() > 0.1


def test_the_same_chains_by_another_author_give_the_same_numbers():
    """Edits and donors are drawn for the chain, and not for who is said to have written it."""
    prompts = shipped(8)
    both = (*prompts, *as_author(prompts, "sft"))
    for module in PROMPT_MEASURES:
        rows = module.MEASURE.run(organism("base"), both, SETTINGS).table
        keys = [key for key in ("id", "condition", "layer", "part", "step", "cut") if key in rows]
        ours, theirs = (of_author(rows, who).sort_values(keys).reset_index(drop=True) for who in (GOLD, "sft"))
        assert len(ours) == len(theirs) > 0
        for column in ours.columns.drop("author"):
            if pd.api.types.is_numeric_dtype(ours[column]):
                np.testing.assert_allclose(ours[column], theirs[column], atol=1e-4, err_msg=module.MEASURE.name)
            else:
                assert ours[column].equals(theirs[column])


def test_no_measure_finds_a_number_where_it_has_none():
    """Estimates of the base are finite wherever a quantity has rows."""
    for module in PROMPT_MEASURES:
        rows = of_author(table(module, "base"), GOLD)
        for quantity in module.MEASURE.quantities:
            if len(select(rows, quantity)):
                found = estimate(rows, quantity)
                assert np.isfinite([found.estimate, found.low, found.high]).all(), (module.MEASURE.name, quantity.name)
                assert found.n <= N
