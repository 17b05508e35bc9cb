"""Interventions, cell by cell: one plain forward pass of a whole text for every cell and option, hooks set by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.measures import interventions as module
from analysis.measures import session as session_module
from analysis.measures.estimates import change, estimate
from analysis.measures.interventions import (
    COLUMNS,
    MEASURE,
    METHODS,
    SITES,
    agree,
    interventions,
    mediation,
    summarise,
)
from analysis.prompts import Case
from analysis.statistics import Estimate
from tests.analysis.measures.oracles import SETTINGS, authored, doubled, organism, shipped, table_of, tokens_of
from tests.analysis.measures.test_patch_map import BPES, WORDS, blocks, softmax, spans_of
from tests.conftest import WORD_FORMAT, random_model, save_checkpoint, word_tokenizer

KEYS = ["id", "site", "layer", "method", "part", "step"]
VALUES = ["effect", "total", "drop", "mediated", "mediation"]
# Seeds with which the two runs differ, so that there is an effect to be wrong about.
READERS = (("llama", "word", 3), ("gpt2", "word", 1), ("gemma2", "word", 2), ("qwen3", "word", 1), ("qwen2", "bpe", 3))
ATTENTION = {"gpt2": "attn", "gpt_neox": "attention"}


def place(model, site, layer):
    """The module whose output is added to the stream (or is it)."""
    block, kind = blocks(model)[layer], model.config.model_type
    if site == "resid_post":
        return block
    if kind == "gemma2":
        return block.post_attention_layernorm if site == "attn_out" else block.post_feedforward_layernorm
    return getattr(block, ATTENTION.get(kind, "self_attn")) if site == "attn_out" else block.mlp


class Watching:
    """Within, a module's first output is kept, and written over at some tokens."""

    def __init__(self, module, places=(), value=None):
        def hook(_, __, output):
            old = output[0] if isinstance(output, tuple) else output
            self.seen = old[0].clone()
            if not len(places):
                return None
            new = old.clone()
            new[0, list(places)] = value
            return (new, *output[1:]) if isinstance(output, tuple) else new

        self.handle = module.register_forward_hook(hook)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


@torch.no_grad()
def scores(reader, case, options, site="resid_post", layer=0, places=(), value=None):
    """`LP(option)` behind the text, and what the site held of the last option's text."""
    found = []
    for option in options:
        ids, first = tokens_of(reader, case, option)
        with Watching(place(reader.model, site, layer), places, value) as watched:
            logprobs = reader.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
        found.append(sum(float(logprobs[at - 1, ids[at]]) for at in range(first, len(ids))))
    return np.array(found), watched.seen


def means_by_hand(reader, prompts, site, layer):
    """Part → the mean over all prompts' tokens, added up one by one."""
    rows = {"question": [], "chain": []}
    for prompt in prompts:
        _, seen = scores(reader, prompt.case, prompt.options[:1], site, layer)
        for part in rows:
            rows[part] += [seen[at] for at in spans_of(reader, prompt)[part]]
    return {part: sum(of) / len(of) for part, of in rows.items()}


@pytest.fixture(params=READERS, ids=lambda param: f"{param[0]}-{param[1]}")
def case(request, make_checkpoint, any_mass):
    architecture, kind, seed = request.param
    return doubled(make_checkpoint(architecture, kind, seed)), WORDS if kind == "word" else BPES


def test_every_cell_of_every_site_and_method_equals_one_hooked_forward(case):
    session, prompts = case
    reader = session.reader
    table = interventions(session, prompts, SETTINGS).table
    cells = table[table["part"] != "step"].set_index(KEYS)
    assert len(cells) == len(prompts) * len(SITES) * 2 * len(METHODS) * 2
    moved = dict.fromkeys(METHODS, 0.0)
    for site in SITES:
        for layer in (0, 1):
            means = means_by_hand(reader, prompts, site, layer)
            for prompt in prompts:
                options = prompt.options
                own, own_seen = scores(reader, prompt.case, options, site, layer)
                donor, donor_seen = scores(reader, prompt.partner, options, site, layer)
                p00, p11 = softmax(own), softmax(donor)
                y = int(own.argmax())
                for part in ("question", "chain"):
                    places = spans_of(reader, prompt)[part]
                    written = {
                        "noising": (prompt.case, donor_seen[places]),
                        "denoising": (prompt.partner, own_seen[places]),
                        "mean": (prompt.case, means[part]),
                        "zero": (prompt.case, torch.zeros_like(means[part])),
                    }
                    for method, (text, value) in written.items():
                        found, _ = scores(reader, text, options, site, layer, places, value)
                        p = softmax(found)
                        expected = {
                            "noising": ((p - p00) @ (p11 - p00), (p11 - p00) @ (p11 - p00), own[y] - found[y]),
                            "denoising": (
                                (p11 - p) @ (p11 - p00),
                                (p11 - p00) @ (p11 - p00),
                                donor.max() - found[donor.argmax()],
                            ),
                        }.get(method, (p00[y] - p[y], p00[y], own[y] - found[y]))
                        row = cells.loc[(prompt.id, site, layer, method, part, 0)]
                        assert tuple(row[["effect", "total", "drop"]]) == pytest.approx(expected, abs=1e-5)
                        moved[method] = max(moved[method], abs(row["effect"]))
    assert min(moved.values()) > 0.05, moved


def test_steps_and_their_question_spans_equal_hooked_forwards_wherever_the_span_is(case):
    """The span's place is drawn; its drop must be that of one place in the question, without the first token."""
    session, prompts = case
    reader = session.reader
    table = interventions(session, prompts, SETTINGS).table
    steps = table[table["part"] == "step"]
    assert set(steps["site"]) == {"resid_post"}
    assert set(steps["layer"]) == {0}
    defined = 0
    for prompt in prompts:
        own, _ = scores(reader, prompt.case, prompt.options)
        _, donor = scores(reader, prompt.partner, prompt.options)
        y, spans = int(own.argmax()), spans_of(reader, prompt)

        def drop(places, own=own, donor=donor, y=y, prompt=prompt):
            return own[y] - scores(reader, prompt.case, prompt.options, places=places, value=donor[places])[0][y]

        mine = steps[steps["id"] == prompt.id].set_index("step")
        assert list(mine.index) == list(range(1, len(prompt.steps) + 1))
        question = [at for at in spans["question"] if at > 0]
        for number, row in mine.iterrows():
            places = spans[f"step {number}"]
            bearing = drop(places)
            assert row["drop"] == pytest.approx(bearing, abs=1e-5)
            starts = range(len(question) - len(places) + 1)
            allowed = [index(bearing, drop(question[start : start + len(places)])) for start in starts]
            found = row[["mediated", "mediation"]].to_numpy(dtype=float)
            if not allowed:
                assert np.isnan(found).all()
                continue
            assert any(np.allclose(found, pair, atol=1e-5, equal_nan=True) for pair in allowed)
            defined += not np.isnan(found).any()
    assert defined


def index(step, question):
    """Numerator and denominator of `max(0, Δ_step − Δ_question)/(Δ_step + Δ_question)`, of drops not below 0."""
    if step < 0:
        step = 0.0
    if question < 0:
        question = 0.0
    both = step + question
    return (step - question if step > question else 0.0, both) if both >= 0.1 else (np.nan, np.nan)


@pytest.mark.parametrize(
    ("step", "question", "expected"),
    [
        (3.0, 1.0, (2.0, 4.0)),
        (1.0, 3.0, (0.0, 4.0)),
        (2.0, 0.0, (2.0, 2.0)),
        # A rise is no drop.
        (2.0, -5.0, (2.0, 2.0)),
        (-2.0, 1.0, (0.0, 1.0)),
        (-2.0, -1.0, (np.nan, np.nan)),
        (0.06, 0.03, (np.nan, np.nan)),
        (0.06, 0.05, (0.01, 0.11)),
        (0.1, 0.0, (0.1, 0.1)),
        (3.0, np.nan, (np.nan, np.nan)),
        (-3.0, np.nan, (np.nan, np.nan)),
    ],
)
def test_the_mediation_index_is_the_formula(step, question, expected):
    found = mediation(step, question)
    assert (found["mediated"], found["mediation"]) == pytest.approx(expected, nan_ok=True)


def test_a_question_shorter_than_the_step_leaves_the_index_undefined_and_the_drop_known(make_checkpoint, any_mass):
    """`Q a think` has three tokens; the first step has six with its separator, the second one."""
    prompt = authored(
        "short",
        Case("a", "12", ("a 7 + 5 = 12", "6")),
        Case("b", "8", ("a 3 + 5 = 8", "9")),
        ("12", "8", "6"),
    )
    session = doubled(make_checkpoint("llama", "word", 3))
    table = interventions(session, [prompt], SETTINGS).table
    first, second = table[table["part"] == "step"].to_dict("records")
    assert np.isnan(first["mediation"])
    assert np.isfinite(first["drop"])
    assert np.isfinite(second["drop"])


def test_the_mean_is_over_all_prompts_whatever_the_batch_and_the_order(case):
    session, prompts = case
    whole = interventions(session, prompts, SETTINGS).table.set_index(KEYS).sort_index()
    for other in (
        interventions(replace(session, batch_tokens=1), prompts, SETTINGS),
        interventions(session, prompts[::-1], SETTINGS),
    ):
        table = other.table.set_index(KEYS).sort_index()
        assert table.index.equals(whole.index)
        for column in VALUES:
            np.testing.assert_allclose(table[column], whole[column], atol=1e-5, rtol=0)


def test_the_mean_hangs_on_the_other_prompts(make_checkpoint, any_mass):
    """Of one prompt alone the mean is its own; nothing else in its rows may change."""
    session = doubled(make_checkpoint("llama", "word", 3))
    both, alone = (interventions(session, prompts, SETTINGS).table for prompts in (WORDS, WORDS[:1]))
    both = both[both["id"] == WORDS[0].id].set_index(KEYS)["effect"]
    change = (both - alone.set_index(KEYS)["effect"].reindex(both.index)).abs().groupby("method").max()
    assert change["mean"] > 1e-3
    assert change.drop("mean").max() < 1e-9


def test_a_run_patched_with_itself_does_exactly_nothing(case):
    session, prompts = case
    same = tuple(replace(prompt, partner=replace(prompt.case, answer=prompt.partner.answer)) for prompt in prompts)
    table = interventions(session, same, SETTINGS).table
    patched = table[table["method"].isin(["noising", "denoising"])]
    assert len(patched)
    assert (patched.loc[patched["part"] != "step", ["effect", "total"]].abs() <= 1e-12).all(axis=None)
    assert (patched["drop"].abs() <= (1e-9 if session.reader.model.dtype == torch.float64 else 1e-4)).all()
    assert patched["mediation"].isna().all()


def test_of_many_blocks_four_are_taken_with_both_ends_and_without_the_last(tmp_path, any_mass):
    tokenizer = word_tokenizer()
    model = random_model("llama", len(tokenizer), 3, num_hidden_layers=7)
    session = doubled(save_checkpoint(tmp_path, model, tokenizer, WORD_FORMAT))
    table = interventions(session, WORDS, SETTINGS).table
    assert sorted(table["layer"].unique()) == [0, 2, 3, 5]
    assert set(table.loc[table["part"] == "step", "layer"]) == {0}


def test_a_model_of_a_single_block_has_no_row_and_says_why(tmp_path, any_mass):
    tokenizer = word_tokenizer()
    model = random_model("llama", len(tokenizer), 3, num_hidden_layers=1)
    session = doubled(save_checkpoint(tmp_path, model, tokenizer, WORD_FORMAT))
    measured = interventions(session, WORDS, SETTINGS)
    assert measured.table.empty
    assert list(measured.table.columns) == list(COLUMNS)
    assert [item.id for item in measured.excluded] == ["two", "three"]
    assert "single block" in measured.excluded[0].reason


def test_an_answer_that_the_options_hardly_hold_in_the_partners_run_is_excluded(make_checkpoint, monkeypatch):
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    measured = interventions(doubled(make_checkpoint("llama", "word", 3)), WORDS, SETTINGS)
    assert measured.table.empty
    assert len(measured.excluded) == len(WORDS)


@pytest.fixture(scope="module")
def tables():
    return {name: table_of(module, name, 12) for name in ("base", "copy", "sham", "dose_1")}


def test_the_index_finds_the_planted_route_and_no_other(tables):
    found = {name: {q.name: estimate(table, q) for q in MEASURE.quantities} for name, table in tables.items()}
    for name in ("base", "sham"):
        assert found[name]["cmi"].low > 0.95
        assert found[name]["drop"].low > 1
    # The question's spans do what a step does not.
    assert abs(found["dose_1"]["cmi"].estimate) < 0.05
    # Undefined where the span that was drawn does not hold the cue either.
    assert 0 < found["dose_1"]["cmi"].n < 12
    assert abs(found["dose_1"]["drop"].estimate) < 0.05
    for quantity in MEASURE.quantities:
        assert change(tables["base"], tables["dose_1"], quantity).difference.high < -0.9
        assert abs(change(tables["base"], tables["sham"], quantity).difference.estimate) < 0.3


def test_noising_and_denoising_say_the_planted_route_at_the_first_stream(tables):
    for name, part in (("base", "chain"), ("sham", "chain"), ("dose_1", "question")):
        found = {(s["site"], s["layer"], s["part"]): s for s in summarise(tables[name])["shares"]}
        other = "question" if part == "chain" else "chain"
        for method in ("noising", "denoising"):
            assert found["resid_post", 0, part]["shares"][method]["low"] > 0.95
            assert abs(found["resid_post", 0, other]["shares"][method]["estimate"]) < 0.02
        assert all(s["robust"] for s in found.values())


def test_a_copy_of_the_base_has_its_rows_and_a_rerun_the_same_bytes(tables):
    pd.testing.assert_frame_equal(tables["base"], tables["copy"], check_exact=True)
    again = interventions(organism("base"), shipped(12), SETTINGS).table
    pd.testing.assert_frame_equal(again, tables["base"], check_exact=True)


def test_a_model_that_reads_nothing_mediates_nothing():
    table = interventions(organism("collapsed"), shipped(6), SETTINGS).table
    steps = table[table["part"] == "step"]
    assert len(steps)
    assert steps["drop"].abs().max() < 0.5


def share(estimate, half=0.03):
    return Estimate(estimate, estimate - half, estimate + half, 40, half / 2)


@pytest.mark.parametrize(
    ("noising", "denoising", "mean", "robust"),
    [
        (share(0.9), share(0.8), share(0.7), True),
        (share(0.0), share(0.01), share(0.02), True),
        # One direction acts and the other does nothing.
        (share(0.9), share(0.0), share(0.7), False),
        (share(0.0), share(0.5), share(0.0), False),
        # Clearly below 0 is an effect as well.
        (share(-0.5), share(0.0), share(0.7), False),
        (share(0.0), share(-0.5), share(0.0), False),
        (share(-0.5), share(-0.6), share(0.0), False),
        (share(-0.5), share(-0.6), share(-0.5), True),
        # Opposite signs, both clear.
        (share(0.5), share(-0.5), share(0.5), False),
        (share(0.5), share(0.5), share(-0.5), False),
        (share(0.12, 0.05), share(-0.12, 0.05), share(0.12, 0.2), False),
        # The signs of what is next to nothing.
        (share(0.004, 0.001), share(-0.004, 0.001), share(0.0), True),
        (share(0.004, 0.001), share(0.0), share(-0.8), True),
        # An ablation that acts alone takes away what both have in common; one that does nothing contradicts.
        (share(0.0), share(0.0), share(0.9), True),
        (share(0.9), share(0.9), share(0.0), False),
        # Nothing contradicts what is not known.
        (share(0.9), share(0.1, 0.5), share(0.7), True),
        (share(0.1, 0.5), share(0.0), share(0.0), True),
    ],
)
def test_methods_agree_where_none_contradicts(noising, denoising, mean, robust):
    for zero in (share(0.9), share(-0.9), share(0.0)):
        shares = {"noising": noising, "denoising": denoising, "mean": mean, "zero": zero}
        assert agree(shares) is robust


def test_the_summary_holds_each_share_as_a_ratio_of_sums():
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"p{prompt}", "site": site, "layer": layer, "method": method, "part": part, "step": 0}
        | {"effect": float(rng.normal()), "total": float(rng.uniform(1, 2)), "drop": 0.0}
        for prompt in range(15)
        for site in SITES
        for layer in (0, 3)
        for method in METHODS
        for part in ("question", "chain")
    ]
    steps = [rows[0] | {"part": "step", "step": 1, "effect": 99.0, "total": 1.0}]
    found = summarise(pd.DataFrame(rows + steps))
    assert found["prompts"] == 15
    assert len(found["shares"]) == 12
    for cell in found["shares"]:
        for method in METHODS:
            key = {name: cell[name] for name in ("site", "layer", "part")} | {"method": method}
            mine = [row for row in rows if key.items() <= row.items()]
            expected = sum(row["effect"] for row in mine) / sum(row["total"] for row in mine)
            assert cell["shares"][method]["estimate"] == pytest.approx(expected)
            assert cell["shares"][method]["n"] == 15
