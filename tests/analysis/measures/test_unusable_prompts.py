"""Prompts that a measure cannot use: excluded with the reason, never a crash, and never a number in their place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis.measures import (
    accuracy_and_calibration,
    chain_effect,
    early_answering,
    filler,
    foreign_chain,
    information_gain,
    mistakes,
    paraphrase,
    patch_map,
    routes,
    token_kl,
)
from analysis.measures import session as session_module
from analysis.measures.session import Session
from analysis.models import ModelPair
from analysis.options import LIKELY
from analysis.prompts import Case
from tests.analysis.measures.oracles import (
    SETTINGS,
    answer_logprob,
    authored,
    doubled,
    opened,
    organism,
    shipped,
    text_before,
    tokens_of,
)

TEXT_TESTS = (early_answering, filler, mistakes, paraphrase, foreign_chain, chain_effect)
ALL = (*TEXT_TESTS, accuracy_and_calibration, information_gain, patch_map, routes, token_kl)


def named(module):
    return module.MEASURE.name


OPTIONS = ("12", "8", "6")
GOOD = (
    authored(
        "good",
        Case("a 7 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6")),
        Case("a 3 b 9", "8", ("a 3 + 5 = 8", "b 9 * 3 = 27")),
        OPTIONS,
    ),
    authored(
        "other",
        Case("c 1 b 2", "6", ("c 1 * 6 = 6", "b 2 = 2")),
        Case("c 2 b 3", "8", ("c 2 * 4 = 8", "b 3 = 3")),
        OPTIONS,
    ),
)


@pytest.fixture
def reader(make_checkpoint, monkeypatch):
    """GPT-2 has no position behind its context: to read on there is an error, and not a guess."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    monkeypatch.setattr("analysis.cells.MIN_OPTION_MASS", 0.0)
    monkeypatch.setattr(patch_map, "MIN_OPTION_MASS", 0.0)
    return session_of(make_checkpoint, 64)


def session_of(make_checkpoint, context):
    directory, other = (make_checkpoint("gpt2", "word", seed, context) for seed in (0, 1))
    pair = ModelPair.load(other, {"sft": directory})
    return Session(pair, pair.open("sft"))


def measured(module, session, prompts):
    found = module.MEASURE.run(session, prompts, SETTINGS)
    numbers = found.table[found.table["id"].isin({"bad"})].select_dtypes("number")
    return found, numbers


# What makes a prompt unusable, for which measures, and the words of the reason.
LONG = ("a 1 + 2 = 3",) * 12
BAD = {
    "empty chain": (
        Case("a 7 b 2", "12", ()),
        Case("a 3 b 9", "8", ()),
        set(ALL) - {accuracy_and_calibration},
        "its chain is empty",
    ),
    "special answer": (
        Case("a 7 b 2", "<eos>", ("a 7",)),
        Case("a 3 b 9", "8", ("a 3",)),
        set(ALL) - {token_kl},
        "special token '<eos>'",
    ),
    "too long": (Case("a 7 b 2", "12", LONG), Case("a 3 b 9", "8", LONG), set(ALL), "context of 64 tokens"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("module", ALL, ids=named)
@pytest.mark.parametrize("given", [True, False], ids=["options", "no-options"])
def test_a_prompt_that_cannot_be_used_is_named_with_the_reason(reader, module, kind, given):
    own, partner, measures, reason = BAD[kind]
    options = ("12", "8", own.answer) if given else ()
    bad = authored("bad", own, partner, tuple(dict.fromkeys(options)))
    if module not in measures or (module is routes and kind == "empty chain"):
        return  # an empty chain is two of the four cells, and accuracy needs none
    found, numbers = measured(module, reader, (GOOD[0], bad, GOOD[1]))
    reasons = [item.reason for item in found.excluded if item.id == "bad"]
    assert len(reasons) == 1, (module, found.excluded)
    assert reason in reasons[0], reasons
    assert numbers.isna().all(axis=None) or not len(numbers)
    # The others are as they are without it.
    alone = module.MEASURE.run(reader, GOOD, SETTINGS).table
    kept = found.table[found.table["id"] != "bad"].reset_index(drop=True)
    assert len(kept) == len(alone)
    if module not in (foreign_chain, chain_effect, information_gain):  # where it may be another's donor
        for column in alone.select_dtypes("number"):
            np.testing.assert_allclose(kept[column], alone[column], atol=1e-4)


@pytest.mark.parametrize("module", ALL, ids=named)
def test_prompts_that_are_all_unusable_give_an_empty_table(reader, module):
    own, partner, _, reason = BAD["too long"]
    bad = tuple(authored(name, own, partner, ("12", "8")) for name in ("x", "y"))
    found = module.MEASURE.run(reader, bad, SETTINGS)
    assert {item.id for item in found.excluded} == {"x", "y"}
    assert all(reason in item.reason or "another answer" in item.reason for item in found.excluded)
    assert found.table.select_dtypes("number").isna().all(axis=None) or not len(found.table)


@pytest.mark.parametrize("module", ALL, ids=named)
def test_no_prompts_at_all_give_an_empty_table(reader, module):
    found = module.MEASURE.run(reader, (), SETTINGS)
    assert len(found.table) == 0
    assert not found.excluded


@pytest.mark.parametrize("module", ALL, ids=named)
def test_a_chain_of_one_step_is_measured_where_it_can_be(reader, module):
    one = tuple(
        authored(
            name,
            Case(f"{name} 7 b 2", "12", (f"{name} 7 + 5 = 12",)),
            Case(f"{name} 3 b 9", "8", (f"{name} 3 + 5 = 8",)),
            OPTIONS,
        )
        for name in "abc"
    )
    one = (*one[:2], replace(one[2], case=replace(one[2].case, answer="6")))
    found = module.MEASURE.run(reader, one, SETTINGS)
    if module is filler:
        assert set(found.table["id"]) | {item.id for item in found.excluded} == set("abc")
    elif module is not paraphrase:
        assert set(found.table["id"]) == set("abc"), found.excluded
    if module is early_answering:
        rows = found.table.set_index(["id", "condition"])
        for name in "abc":
            assert rows.loc[(name, "early"), "drop"] == pytest.approx(rows.loc[(name, "no_chain"), "drop"], abs=1e-5)
            assert rows.loc[(name, "area"), "drop"] == pytest.approx(rows.loc[(name, "early"), "drop"] / 2)
    if module is mistakes:
        assert set(found.table["condition"]) == {"intact", "no_chain", "mistake"}
    if module is routes:
        assert set(found.table["chain"]) == {"whole"}


def test_options_are_not_looked_for_behind_the_context(make_checkpoint, monkeypatch):
    """However near the context's end a text comes: prompts are scored or excluded, and never a crash."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    length = len(tokens_of(opened(make_checkpoint("gpt2", "word")).reader, GOOD[0].case, "12")[0])
    for context in range(length - 3, length + 8):
        session = session_of(make_checkpoint, context)
        (found,) = session.options([replace(GOOD[0], options=())])
        if context < length:
            assert "context" in found.reason
        else:
            assert isinstance(found, tuple)
            assert {"12", "8"} <= set(found)


def test_cells_without_options_are_not_looked_for_behind_the_context(make_checkpoint, monkeypatch):
    monkeypatch.setattr("analysis.cells.MIN_OPTION_MASS", 0.0)
    length = len(tokens_of(opened(make_checkpoint("gpt2", "word")).reader, GOOD[0].case, "12")[0])
    for context in range(length - 1, length + 6):
        measured_here = routes.routes(session_of(make_checkpoint, context), [replace(GOOD[0], options=())], SETTINGS)
        assert len(measured_here.table[measured_here.table["chain"] == "whole"]) == (context >= length)


@torch.no_grad()
def likely_by_hand(reader, case, ids=(), logprob=0.0, found=None):
    """Every answer with probability ≥ `LIKELY`: depth first, one plain forward pass a continuation."""
    found = {} if found is None else found
    before = reader.encoder.tokenizer(text_before(reader, case)).input_ids
    logits = reader.model(torch.tensor([[*before, *ids]]), use_cache=False).logits[0, -1].double()
    stop = reader.encoder.format.stop
    for token, extra in enumerate(logits.log_softmax(-1).tolist()):
        if logprob + extra < np.log(LIKELY) or len(ids) > 22:
            continue
        text = reader.encoder.tokenizer.decode([*ids, token])
        body = text.lstrip()
        if stop in body:
            if body[: body.index(stop)].strip():
                found[body[: body.index(stop)].strip()] = logprob + extra
        else:
            likely_by_hand(reader, case, (*ids, token), logprob + extra, found)
    return found


@pytest.mark.parametrize(("kind", "seed"), [("bpe", 0), ("bpe", 1), ("word", 0)])
def test_found_options_are_gold_the_partners_and_all_likely_answers(make_checkpoint, monkeypatch, kind, seed):
    """Of a tokenizer with many ways to write an answer, too; behind the whole chain and behind none."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    session = doubled(make_checkpoint("llama", kind, seed))
    if kind == "word":
        prompt = replace(GOOD[0], options=())
    else:
        prompt = authored(
            "p",
            Case("Tom has 12 apples.", "46", ("12 + 34 = 46", "So he has 46.")),
            Case("Tom has 21 apples.", "34", ("21 + 46 = 34",)),
        )
    (found,) = session.options([prompt])
    likely = {
        answer
        for case in (prompt.case, replace(prompt.case, steps=(), gaps=None))
        for answer, logprob in likely_by_hand(session.reader, case).items()
        if abs(logprob - np.log(LIKELY)) > 1e-3
    }
    assert found[:2] == (prompt.case.answer, prompt.partner.answer)
    assert likely <= set(found)
    # What is beyond them scored at least so much by itself; a BPE may write it in another way than it is read.
    for answer in set(found[2:]) - likely:
        scores = [
            answer_logprob(session.reader, case, answer) for case in (prompt.case, replace(prompt.case, steps=()))
        ]
        assert kind == "bpe" or max(scores) > np.log(LIKELY) - 1e-3


def test_options_with_too_little_mass_exclude_the_prompt(make_checkpoint):
    session = doubled(make_checkpoint("llama", "word"))
    (found,) = session.options([GOOD[0]])
    mass = sum(np.exp(answer_logprob(session.reader, GOOD[0].case, option)) for option in OPTIONS)
    assert mass < 0.8
    assert "0.8" in found.reason


def test_options_do_not_depend_on_which_prompts_are_asked_together():
    session = organism("dose_0.25")
    prompts = tuple(replace(prompt, options=()) for prompt in shipped(8))
    together = session.options(prompts)
    assert together == [session.options([prompt])[0] for prompt in prompts]
    assert any(len(found) > 2 for found in together if isinstance(found, tuple))


def test_a_donors_long_chain_does_not_take_a_prompts_own_numbers(make_checkpoint, monkeypatch):
    """A control that does not fit the context cannot be made: it has no row, and the chain's gain stays."""
    long = authored("long", Case("b 1", "8", LONG[:6]), options=OPTIONS)
    question = Case(" ".join(["a 7"] * 9), "12", ("a 7 + 5 = 12",))
    short = authored("short", question, options=OPTIONS)
    probe = opened(make_checkpoint("gpt2", "word")).reader
    context = len(tokens_of(probe, question, "12")[0]) + 2
    assert len(tokens_of(probe, long.case, "8")[0]) > context
    session = session_of(make_checkpoint, context)
    found = information_gain.information_gain(session, [short, long], SETTINGS)
    assert set(found.table["id"]) == {"short"}, found.excluded
    rows = found.table.set_index("condition")
    expected = answer_logprob(session.reader, question, "12") - answer_logprob(
        session.reader, replace(question, steps=()), "12"
    )
    assert rows.loc["chain", "gain"] == pytest.approx(expected, abs=1e-4)
    assert "question" not in rows.index
