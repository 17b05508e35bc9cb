"""Masked flow, mask by mask: plain forward passes over whole texts, divergences by another library."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial import distance
from scipy.special import logsumexp, softmax

from analysis.authored import Authored
from analysis.measures import masked_flow as module
from analysis.measures.estimates import change, estimate
from analysis.measures.masked_flow import FLOWS, MEASURE, jensen_shannon, masked_flow
from analysis.prompts import Case
from tests.analysis.measures.oracles import SETTINGS, as_author, doubled, opened, organism, shipped, table_of
from tests.analysis.measures.test_knockout import BPES, READERS, WORDS, logprobs_by_hand, parts_of
from tests.conftest import ARCHITECTURES

LOG_2 = np.log(2)


@pytest.fixture(params=READERS, ids="-".join)
def case(request, make_checkpoint, any_mass):
    architecture, kind = request.param
    return doubled(make_checkpoint(architecture, kind, 1)), WORDS if kind == "word" else BPES


def divergence(p, q):
    return distance.jensenshannon(p, q, base=np.e) ** 2


def with_anything_else(logprobs):
    return np.array([*np.exp(logprobs), 1 - np.exp(logprobs).sum()])


def log_odds(logprobs, own):
    return logprobs[own] - logsumexp([value for at, value in enumerate(logprobs) if at != own])


def test_every_flow_equals_plain_forward_passes_with_masks_written_by_hand(case):
    session, prompts = case
    reader = session.reader
    table = masked_flow(session, prompts, SETTINGS).table
    assert len(table) == len(prompts) * len(FLOWS)
    for prompt in prompts:
        parts = parts_of(reader, prompt)
        question, (begin, marker) = range(*parts["question", 0]), parts["chain", 0]
        rows = table[table["id"] == prompt.id].set_index("flow")
        masks = {
            "full": (marker, ()),
            "via_chain": (marker, question),
            "no_chain": (marker, range(begin, marker)),
            "no_prompt": (begin, question),
        }
        for part, size in (("question", len(question)), ("chain", marker - begin)):
            start = int(rows.loc[f"{part}_control", "start"])
            assert 1 <= start <= marker - size
            assert rows.loc[f"{part}_control", "n_positions"] == size
            masks[f"like_{part}"] = (marker, range(start, start + size))
        scores = {name: logprobs_by_hand(reader, prompt, *mask) for name, mask in masks.items()}
        own = int(scores["full"].argmax())
        for flow, pair in (
            ("direct", ("full", "via_chain")),
            ("necessity", ("full", "no_chain")),
            ("leakage", ("via_chain", "no_prompt")),
            ("question_control", ("full", "like_question")),
            ("chain_control", ("full", "like_chain")),
        ):
            before, after = (scores[name] for name in pair)
            p, q = with_anything_else(before), with_anything_else(after)
            expected = {
                "divergence": divergence(p, q),
                "among": divergence(softmax(before), softmax(after)),
                "log_odds": log_odds(before, own) - log_odds(after, own),
                "elsewhere": q[-1] - p[-1],
            }
            for column, value in expected.items():
                assert rows.loc[flow, column] == pytest.approx(value, abs=1e-5), (prompt.id, flow, column)


def test_a_chain_that_is_not_read_again_would_be_seen(case):
    """Chain positions hold what they took from the question, and without it the answer is another."""
    session, prompts = case
    reader, prompt = session.reader, prompts[0]
    parts = parts_of(reader, prompt)
    question, (begin, marker) = range(*parts["question", 0]), parts["chain", 0]
    kept, read_again = (logprobs_by_hand(reader, prompt, start, question) for start in (marker, begin))
    assert np.abs(kept - read_again).max() > 1e-3
    sink = logprobs_by_hand(reader, prompt, begin, range(0, begin))
    # The first token is far behind windows of 8.
    if not getattr(reader.model.config, "sliding_window", None):
        assert np.abs(read_again - sink).max() > 1e-3


def test_results_do_not_depend_on_the_batch_or_the_order_and_come_out_the_same_again(case):
    session, prompts = case
    keys = ["id", "flow"]
    whole = masked_flow(session, prompts, SETTINGS).table
    pd.testing.assert_frame_equal(masked_flow(session, prompts, SETTINGS).table, whole, check_exact=True)
    for other in (
        masked_flow(replace(session, batch_tokens=1), prompts, SETTINGS),
        masked_flow(replace(session, batch_tokens=90), prompts[::-1], SETTINGS),
    ):
        table = other.table.set_index(keys).sort_index()
        for column in ("divergence", "among", "log_odds", "elsewhere", "start", "n_positions"):
            np.testing.assert_allclose(table[column], whole.set_index(keys).sort_index()[column], atol=1e-5, rtol=0)


def test_half_precision_gives_finite_numbers(make_checkpoint, any_mass):
    for architecture in ARCHITECTURES:
        session = opened(make_checkpoint(architecture, "word", 1))
        session.reader.model.to(torch.bfloat16)
        table = masked_flow(session, WORDS, SETTINGS).table
        assert np.isfinite(table.select_dtypes("number")).all(axis=None)
        assert table["divergence"].between(-1e-6, LOG_2 + 1e-6).all()


def test_jensen_shannon_is_what_its_closed_forms_say():
    assert jensen_shannon(np.array([0.3, 0.7, 0.0]), np.array([0.3, 0.7, 0.0])) == 0
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(LOG_2)
    # Half of the one has moved to where the other has nothing: H(.75, .25) - H(.5, .5)/2.
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) - LOG_2 / 2
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(expected)


def test_mass_that_leaves_the_options_is_divergence_and_not_among_them(monkeypatch):
    """Both options lose nine tenths: among the options nothing has changed."""
    full, masked = np.log([0.9, 0.1]), np.log([0.09, 0.01])
    monkeypatch.setattr(module, "masked", lambda session, kept, masks, what: [np.array([full, masked, *[full] * 4])])
    row = masked_flow(organism("base"), shipped(1), SETTINGS).table.set_index("flow").loc["direct"]
    assert row["elsewhere"] == pytest.approx(0.9)
    assert row["among"] == pytest.approx(0, abs=1e-12)
    assert row["log_odds"] == pytest.approx(0, abs=1e-12)
    assert row["divergence"] == pytest.approx(divergence([0.9, 0.1, 0], [0.09, 0.01, 0.9]))


def test_a_single_option_has_no_odds(monkeypatch, make_checkpoint, any_mass):
    only = replace(WORDS[0], options=("12",))
    table = masked_flow(doubled(make_checkpoint("llama", "word", 1)), [only], SETTINGS).table
    assert table["log_odds"].isna().all()
    assert table["divergence"].notna().all()
    assert (table["among"] == 0).all()


def test_a_copy_of_the_base_differs_from_it_in_nothing():
    pd.testing.assert_frame_equal(table_of(module, "base"), table_of(module, "copy"), check_exact=True)


def test_chains_that_two_authors_have_in_common_get_the_same_numbers():
    prompts = shipped(6)
    rows = masked_flow(organism("base"), (*prompts, *as_author(prompts, "sft")), SETTINGS).table
    ours, theirs = (rows[rows["author"] == who].drop(columns="author") for who in ("gold", "sft"))
    pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True), check_exact=True)


def test_another_seed_draws_other_controls_and_nothing_else(make_checkpoint, any_mass):
    session = doubled(make_checkpoint("llama", "word", 1))
    tables = [masked_flow(session, WORDS, replace(SETTINGS, seed=seed)).table for seed in (0, 1, 2)]
    control = tables[0]["flow"].str.endswith("_control")
    for other in tables[1:]:
        assert not other.loc[control, "start"].equals(tables[0].loc[control, "start"])
        numbers = other[~control].select_dtypes("number")
        np.testing.assert_allclose(numbers, tables[0].loc[~control, numbers.columns], atol=1e-9)


@pytest.mark.parametrize("cues", ["agreeing", "random"])
@pytest.mark.parametrize("quantity", [q for q in MEASURE.quantities if q.detached], ids=lambda q: q.name)
def test_a_planted_detachment_has_the_sign_that_its_quantity_declares(quantity, cues):
    """Dose 1 answers from the question's cue; where that agrees with the chain, the chain says it as well."""
    found = change(table_of(module, "base", 30, cues), table_of(module, "dose_1", 30, cues), quantity)
    clear = found.difference.low if quantity.detached > 0 else -found.difference.high
    assert clear > 0, found
    assert found.p < 1e-3


def test_a_harmless_fine_tune_moves_no_flow_by_a_tenth_of_what_there_can_be():
    for quantity in MEASURE.quantities:
        if quantity.detached:
            found = change(table_of(module, "base", 30), table_of(module, "sham", 30), quantity)
            assert abs(found.difference.estimate) < 0.1 * LOG_2, (quantity.name, found)


def test_the_planted_route_is_the_way_that_is_found():
    """Conflicting with the chain, dose 1's cue is gone with the question: two distributions that share nothing. The
    base needs its chain, which has its numbers from the question."""
    base, dose, collapsed = (
        {q.name: estimate(table_of(module, name, 30, "random"), q).estimate for q in MEASURE.quantities}
        for name in ("base", "dose_1", "collapsed")
    )
    assert base["direct"] < 0.05 < 0.67 < dose["direct"] <= LOG_2
    assert base["necessity_among"] > 0.5 > 0.2 > dose["necessity_among"]
    assert base["leakage"] > 0.3
    # A reader of nothing loses the form of its text, as all do, and not an answer.
    assert abs(collapsed["direct"]) < 0.01 < 0.3 < collapsed["necessity"]
    assert collapsed["necessity_among"] < 0.05


def test_prompts_that_cannot_be_measured_are_excluded_with_the_reason(make_checkpoint, any_mass):
    bad = (
        Authored("empty", "gold", Case("a 7", "12", ()), options=("12", "8")),
        Authored("long", "gold", Case("a 7", "12", ("a 1 + 2 = 3",) * 40), options=("12", "8")),
    )
    measured = masked_flow(doubled(make_checkpoint("llama", "word", 1)), (*bad, WORDS[0]), SETTINGS)
    assert set(measured.table["id"]) == {"two"}
    assert {item.id: item.reason for item in measured.excluded} == {
        "empty": "its chain is empty",
        "long": "longer than the context of 256 tokens",
    }
    assert not len(masked_flow(doubled(make_checkpoint("llama", "word", 1)), (), SETTINGS).table)


def test_the_quantities_read_the_flows_that_they_name():
    table = table_of(module, "base")
    for quantity in MEASURE.quantities:
        flow, _, beside = quantity.name.partition("_")
        flow = quantity.name if beside == "control" else flow
        column = {"among": "among", "odds": "log_odds"}.get(beside, "divergence")
        expected = table.loc[table["flow"] == flow, column].mean()
        assert estimate(table, quantity).estimate == pytest.approx(expected)
    names = [q.name for q in MEASURE.quantities]
    assert len(names) == len(set(names)) == 9
    assert set(itertools.chain(FLOWS)) <= set(names)
