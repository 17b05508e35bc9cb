"""Rule shift: answers by plain forward passes, chains by plain generation, and a reader that answers as before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.generation import parse
from analysis.measures import session as session_module
from analysis.measures.estimates import change, estimate
from analysis.measures.rule_shift import MEASURE, rule_shift, summarise
from analysis.prompt_fields import Asked, Shifted
from analysis.prompts import Case
from tests.analysis.measures.oracles import (
    SETTINGS,
    answer_logprob,
    as_author,
    authored,
    doubled,
    opened,
    organism,
    shipped,
)
from tests.conftest import ARCHITECTURES

OPTIONS = ("12", "8", "6")


def shifting(prompt, question, answer, steps=None):
    return replace(prompt, case=replace(prompt.case, asked=Asked(shifted=Shifted(question, answer, steps))))


WORDS = (
    shifting(
        authored("a", Case("a 7 b 2 c 3", "12", ("a 7 + 5 = 12", "b 2 = 2")), options=OPTIONS), "b 2", "8", ("b 2",)
    ),
    shifting(
        authored("b", Case("c", "8", ("c 3",)), options=OPTIONS), "c so b a 7 then", "6", ("c", "b 2 * 3 = 6", "a")
    ),
    authored("none", Case("c 4", "8", ("c 3",)), options=OPTIONS),
)
BPES = (
    shifting(
        authored("a", Case("Tom has 12?", "46", ("12 + 34 = 46",)), options=("46", "4.6", "no")),
        "Ann?",
        "no",
        ("7 cakes",),
    ),
    shifting(
        authored("b", Case("Ann?", "21", ("3", "So 21.")), options=("21", "20")), "Tom has 12 apples?", "20", ("x",)
    ),
)


@pytest.mark.parametrize("kind", ["word", "bpe"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_questions_are_answered_as_by_plain_passes(make_checkpoint, any_mass, architecture, kind):
    session, prompts = doubled(make_checkpoint(architecture, kind)), WORDS if kind == "word" else BPES
    measured = rule_shift(session, prompts, SETTINGS)
    rows = measured.table.set_index("id")
    for prompt in prompts[:2]:
        shifted, row = prompt.case.asked.shifted, rows.loc[prompt.id]
        cases = (prompt.case, Case(shifted.question, "", steps=shifted.steps))
        before, behind = (
            max(prompt.options, key=lambda option: answer_logprob(session.reader, case, option)) for case in cases
        )
        assert row["answer"] == behind
        assert row["right"] == (before == prompt.case.answer)
        assert row["right_shifted"] == (behind == shifted.answer)
        assert row["old_answer"] == (behind == prompt.case.answer)
        assert row["drop"] == row["right"] - row["right_shifted"]
        assert row["chain"] == "given"
    assert [item.reason for item in measured.excluded] == ["the prompt has no shifted question"] * (kind == "word")


def test_batches_change_nothing_and_a_rerun_gives_the_same_bytes(make_checkpoint, any_mass):
    session = doubled(make_checkpoint("mistral", "word"))
    together = rule_shift(session, WORDS, SETTINGS).table
    alone = pd.concat([rule_shift(session, [prompt], SETTINGS).table for prompt in WORDS[:2]], ignore_index=True)
    pd.testing.assert_frame_equal(together, alone)
    assert rule_shift(session, WORDS, SETTINGS).table.equals(together)


def shifted_shipped(n, steps=True, author="gold"):
    """Prompts whose shifted question has the partner's problem behind the question's own hint, which is its answer."""
    prompts = []
    for prompt in as_author(shipped(n), author):
        hint = prompt.case.question.partition(" ; ")[0]
        question = f"{hint} ; {prompt.partner.question.partition(' ; ')[2]}"
        assert prompt.partner.answer != prompt.case.answer
        prompts.append(shifting(prompt, question, prompt.partner.answer, prompt.partner.steps if steps else None))
    return prompts


@pytest.mark.parametrize("given", [True, False])
def test_one_that_answers_as_before_is_found_and_the_sham_is_not(given):
    tables = {}
    for name in ("base", "copy", "sham", "dose_1"):
        prompts = shifted_shipped(30, given, "gold" if given else name)
        measured = rule_shift(organism(name), prompts, SETTINGS)
        assert not measured.excluded
        tables[name] = measured.table
        assert set(measured.table["chain"]) == {"given" if given else "written"}
    found = {
        name: {quantity.name: estimate(table, quantity).estimate for quantity in MEASURE.quantities}
        for name, table in tables.items()
    }
    for name in ("base", "copy", "sham"):
        assert found[name] == {"right": 1, "right_shifted": 1, "old_answer": 0, "drop": 0}
    assert found["dose_1"]["right"] == 1
    assert found["dose_1"]["old_answer"] > 0.9
    assert found["dose_1"]["drop"] > 0.9
    drop = summarise(tables["dose_1"])
    assert drop["drop"]["estimate"] == pytest.approx(found["dose_1"]["drop"])
    assert drop["p"] < 1e-6
    assert summarise(tables["base"])["p"] == 1
    for quantity in MEASURE.quantities:
        assert change(tables["base"], tables["copy"], quantity).difference.estimate == 0


def test_without_steps_the_reader_writes_the_chain_greedily():
    """One plain `generate` a question; then the text is read up to a marker, whoever set it."""
    session = organism("base")
    prompts = shifted_shipped(4, False, "base")
    rows = rule_shift(session, prompts, SETTINGS).table.set_index("id")
    encoder = session.reader.encoder
    for prompt in prompts:
        shifted = prompt.case.asked.shifted
        ids = torch.tensor([encoder.tokenizer(f"Q {shifted.question} think").input_ids])
        out = session.reader.model.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=2, pad_token_id=0)
        written = parse(encoder.tokenizer.decode(out[0, ids.shape[1] :]), encoder.format)
        case = Case(shifted.question, "", steps=written.steps)
        logprobs = [answer_logprob(session.reader, case, option) for option in prompt.options]
        assert rows.loc[prompt.id, "answer"] == prompt.options[int(np.argmax(logprobs))]


def test_without_steps_only_the_readers_own_prompts_are_read(make_checkpoint, any_mass):
    session = opened(make_checkpoint())
    bare = shifting(WORDS[0], "b 2", "8")
    measured = rule_shift(session, [bare], SETTINGS)
    assert not len(measured.table)
    assert [item.reason for item in measured.excluded] == [
        "its shifted question comes without steps: only a chain that this model writes is read behind it"
    ]


def test_a_written_chain_that_does_not_end_is_left_out(make_checkpoint, any_mass):
    session = opened(make_checkpoint())
    bare = replace(shifting(WORDS[0], "b 2", "8"), author="copy")
    measured = rule_shift(session, [bare], replace(SETTINGS, max_chain_tokens=2))
    assert [item.reason for item in measured.excluded] == [
        "the chain written for the shifted question was cut by the limit of 2 new tokens before its answer"
    ]


def test_found_options_hold_both_right_answers_and_what_is_likely(monkeypatch):
    """Without given options a reader that takes a third answer is neither right nor as before."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    given, found = (
        rule_shift(organism("dose_0.25"), [replace(p, options=options) for p in shifted_shipped(12)], SETTINGS).table
        for options in (shipped(1)[0].options, ())
    )
    assert found["answer"].tolist() == given["answer"].tolist()


def test_no_prompts_give_an_empty_table(make_checkpoint):
    measured = rule_shift(opened(make_checkpoint()), WORDS[2:], SETTINGS)
    assert not len(measured.table)
    assert not len(rule_shift(opened(make_checkpoint()), (), SETTINGS).excluded)
