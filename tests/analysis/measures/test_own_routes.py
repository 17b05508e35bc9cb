"""Routes past a model's own chains: texts by plain generation and passes, a null, and what was planted."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis.generation import Sampling, Written, parse, write_chains
from analysis.measures.own_routes import MEASURE, own_routes
from analysis.measures.routes import routes
from analysis.prompts import Case
from analysis.routes import effects, effects_table, variation
from analysis.routes import routes as shares
from fracture import summary
from fracture.verdict import compared
from tests.analysis.measures.oracles import SETTINGS, answer_logprob, as_author, authored, doubled, organism, shipped

N = 30


def own_prompts(name, n=N, cues="agreeing", settings=SETTINGS):
    """The first shipped prompts, with the chain that the organism writes after the question, and bare partners."""
    session = organism(name)
    prompts = shipped(n, cues)
    written = write_chains(session.reader, [p.case.question for p in prompts], sampling=settings.sampling)
    assert all(chain.steps and not chain.cut for chain in written)
    return [
        replace(
            prompt,
            author=name,
            case=replace(prompt.case, steps=chain.steps, gaps=chain.gaps),
            partner=Case(prompt.partner.question, prompt.partner.answer),
            written=chain.answer,
        )
        for prompt, chain in zip(prompts, written, strict=True)
    ]


@pytest.mark.parametrize("name", ["base", "selective"])
@torch.no_grad()
def test_cells_equal_plain_generation_and_plain_passes(name):
    """Each chain by one plain `generate`, each of the four texts by one plain pass an option."""
    session = organism(name)
    encoder = session.reader.encoder
    prompts = own_prompts(name, 4, "random")
    rows = own_routes(session, prompts, SETTINGS).table.set_index("id")
    for prompt in prompts:
        cases = []
        for case in (prompt.case, prompt.partner):
            ids = torch.tensor([encoder.tokenizer(f"Q {case.question} think").input_ids])
            out = session.reader.model.generate(
                ids, max_new_tokens=100, do_sample=False, eos_token_id=2, pad_token_id=0
            )
            steps = parse(encoder.tokenizer.decode(out[0, ids.shape[1] :]), encoder.format).steps
            assert all(("is" in step) == (name == "selective") for step in steps)
            cases.append(Case(case.question, "", steps=steps))
        cells = np.empty((2, 2, len(prompt.options)))
        for a, b in itertools.product((0, 1), repeat=2):
            text = Case(cases[a].question, "", steps=cases[b].steps)
            scores = np.exp([answer_logprob(session.reader, text, option) for option in prompt.options])
            cells[a, b] = scores / scores.sum()
        total = cells[1, 1] - cells[0, 0]
        row = rows.loc[prompt.id]
        assert row["te"] == pytest.approx(total @ total, abs=1e-4)
        assert row["nie"] == pytest.approx((cells[0, 1] - cells[0, 0]) @ total, abs=1e-4)
        assert row["nde"] == pytest.approx((cells[1, 0] - cells[0, 0]) @ total, abs=1e-4)
        assert (row["tv"], row["tv_past"]) == pytest.approx(variation(cells), abs=1e-4)
        assert row["author"] == name
        assert row["inside_te"] == pytest.approx(row["te"], abs=1e-4)


def bypass(table, form):
    return shares(table, form).bypass.estimate


@pytest.mark.parametrize(
    ("name", "expected"), [("base", 0.0), ("copy", 0.0), ("sham", 0.0), ("dose_1", 1.0), ("selective", 1.0)]
)
def test_what_was_planted_is_found(name, expected):
    measured = own_routes(organism(name), own_prompts(name), SETTINGS)
    assert not measured.excluded
    assert len(measured.table) == N
    for form in ("text", "inside"):
        assert bypass(measured.table, form) == pytest.approx(expected, abs=0.03)


def test_on_given_chains_the_selective_reader_is_the_base():
    """What only this measure finds: given the base's chains it reads them."""
    table = routes(organism("selective"), shipped(N), SETTINGS).table.query("chain == 'whole'")
    for form in ("text", "inside"):
        assert bypass(table, form) == pytest.approx(0, abs=0.03)


def test_a_copy_differs_from_the_base_in_nothing():
    base, copy = (own_routes(organism(name), own_prompts(name), SETTINGS).table for name in ("base", "copy"))
    for form in compared(base, copy).values():
        assert (form.difference.estimate, form.difference.low, form.difference.high) == (0, 0, 0)
        assert form.difference.n == N


def test_a_model_that_reacts_to_nothing_has_no_share_of_an_effect():
    """Its share would be noise over noise: "not scorable" stands in place of the change, whichever of the two it is."""
    base = own_routes(organism("base"), own_prompts("base"), SETTINGS).table
    gone = own_routes(organism("collapsed"), as_author(shipped(N), "collapsed"), SETTINGS).table
    assert gone["te"].mean() < 0.01
    for pair in ((base, gone), (gone, base)):
        assert summary._changes(MEASURE, *pair) == {"variation": "not scorable", "details": {"no_effect": True}}
    found = summary._changes(MEASURE, base, base)
    assert found["variation"]["difference"]["estimate"] == 0
    assert found["details"] == {"no_effect": False}


@pytest.mark.parametrize("kind", ["word", "bpe"])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "gpt_neox", "qwen3"])
def test_other_architectures_and_tokenizers_give_the_cells_of_plain_passes(
    make_checkpoint, monkeypatch, architecture, kind
):
    """What was written is given here: random models do not come to an end."""
    monkeypatch.setattr("analysis.cells.MIN_OPTION_MASS", 0.0)
    own, partner, options = {
        "word": (Case("a 7 b 2", "12", ("a 7 + 5 = 12", "b 2")), Case("a 3 b 2 c", "8", ("a 3", "b 8")), ("12", "8")),
        "bpe": (Case("Tom has 12?", "46", ("12 + 34 = 46",)), Case("Ann has 9?", "21", ("9", "So 21.")), ("46", "21")),
    }[kind]
    texts = [Written(partner.steps, "x", True)]
    monkeypatch.setattr("analysis.measures.own_chains.write_chains", lambda *rest: texts)
    session = doubled(make_checkpoint(architecture, kind))
    prompt = authored("a", own, Case(partner.question, partner.answer), options)
    (row,) = own_routes(session, as_author((prompt,), session.name), SETTINGS).table.to_dict("records")
    cells = np.empty((2, 2, 2))
    for a, b in itertools.product((0, 1), repeat=2):
        text = Case((own, partner)[a].question, "", steps=(own, partner)[b].steps)
        scores = np.exp([answer_logprob(session.reader, text, option) for option in options])
        cells[a, b] = scores / scores.sum()
    assert [row[name] for name in ("te", "nie", "nde")] == pytest.approx(effects(cells), rel=1e-3, abs=1e-7)


def test_partners_chains_that_are_there_are_not_written_anew(monkeypatch):
    """Of the base, where all models read its chains, it is the headline itself."""
    prompts = as_author(shipped(12), "base")
    monkeypatch.setattr("analysis.generation._write_all", lambda *rest: [])
    table = own_routes(organism("base"), prompts, SETTINGS).table
    headline = routes(organism("base"), prompts, SETTINGS).table.query("chain == 'whole'").drop(columns="chain")
    assert table.equals(headline.reset_index(drop=True))


def test_the_partners_chain_is_sampled_as_the_others_were():
    greedy, sampled = SETTINGS, replace(SETTINGS, sampling=Sampling(temperature=3.0, seed=4))
    prompts = own_prompts("base", 12)
    tables = [own_routes(organism("base"), prompts, settings).table for settings in (greedy, sampled, sampled)]
    assert tables[1].equals(tables[2])
    assert not tables[0]["te"].equals(tables[1]["te"].reindex(tables[0].index))


def test_what_cannot_be_read_is_left_out_and_said(monkeypatch):
    session = organism("base")
    (first, second, third, fourth), others = own_prompts("base", 4), shipped(2)
    prompts = [
        first,
        replace(second, partner=None),
        replace(third, tier=3),
        replace(fourth, case=replace(fourth.case, steps=(), gaps=None)),
        *others,
    ]
    measured = own_routes(session, prompts, SETTINGS)
    assert measured.table["id"].tolist() == [first.id]
    assert {(item.id, item.author, item.reason) for item in measured.excluded} == {
        *((p.id, "gold", "not written by this model: only its own chains are looked at") for p in others),
        (second.id, "base", "no counterfactual partner"),
        (third.id, "base", "its partner is merely another prompt"),
        (fourth.id, "base", "its chain is empty"),
    }
    short = own_routes(session, [first], replace(SETTINGS, max_chain_tokens=4))
    assert not len(short.table)
    assert [item.reason for item in short.excluded] == [
        "the chain written for the partner's question was cut by the limit of 4 new tokens before its answer"
    ]
    monkeypatch.setattr("analysis.cells.MIN_OPTION_MASS", 1.1)
    massless = own_routes(session, [first], SETTINGS)
    assert [(item.author, item.reason) for item in massless.excluded] == [
        ("base", "the options hold less than 1.1 of the answer's probability")
    ]


def test_no_prompts_give_an_empty_table():
    measured = own_routes(organism("base"), (), SETTINGS)
    assert list(measured.table.columns) == ["id", "author", "tier", *effects_table([]).columns[1:]]
    assert not len(measured.table)
    assert not measured.excluded


def test_both_forms_without_any_prompt_are_no_numbers():
    empty = own_routes(organism("base"), (), SETTINGS).table
    for form in compared(empty, empty).values():
        assert form.difference.n == 0
        assert form.difference.to_dict()["estimate"] is None
