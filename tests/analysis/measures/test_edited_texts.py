"""What measures put in a chain's place: edited where they should be, and nowhere else."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from analysis.answers import same_answer
from analysis.measures import session as session_module
from analysis.measures.early_answering import early_answering
from analysis.measures.filler import filled, filler
from analysis.measures.foreign_chain import Donors, foreign_chain
from analysis.measures.mistakes import mistakes
from analysis.measures.option_order import option_order_rows
from analysis.measures.paraphrase import paraphrase
from analysis.measures.session import Session
from analysis.prompts import Case
from tests.analysis.measures.oracles import (
    SETTINGS,
    answer_logprob,
    as_author,
    authored,
    doubled,
    organism,
    shipped,
)


class Spy(Session):
    """A session that keeps the texts that it scored, prompt by prompt and by what they were scored for."""

    def score(self, contexts, what):
        self.__dict__.setdefault("seen", {})[what] = list(contexts)
        return super().score(contexts, what)


def spied(session: Session) -> Spy:
    return Spy(session.pair, session.reader, session.batch_tokens)


def read_texts(session, prompts, measure, settings=SETTINGS):
    """Each row of a text test beside the case that was read for it."""
    spy = spied(session)
    table = measure(spy, prompts, settings).table
    table = table[~table["condition"].isin(["area", "options_shuffled"])].reset_index(drop=True)
    (what,) = set(spy.seen) - {"finding the answers", "option order"}
    cases = [case for item in spy.seen[what] for case in item.cases]
    assert len(cases) == len(table)
    return list(zip(table.to_dict("records"), cases, strict=True))


@pytest.fixture(params=["word", "bpe"])
def case(request, make_checkpoint, monkeypatch):
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    words = (
        authored("a", Case("a 7 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6", "c 4 so 12")), options=("12", "6")),
        authored("b", Case("c 3 b 9", "8", ("c 3 + 5 = 8", "b 9"), gaps=(" . ", " ; ")), options=("8", "12")),
        authored("c", Case("b 1", "6", ("b 1 * 6 = 6",)), options=("12", "6")),
    )
    bpes = (
        authored("a", Case("Tom has 12 apples.", "46", ("12 + 34 = 46", "So he has 46.")), options=("46", "47")),
        authored(
            "b",
            Case("Ann?", "21", ("7 * 3 = 21", "3 are more", "So 21."), gaps=("\n\n", " ", " ")),
            options=("21", "46"),
        ),
        authored("c", Case("Ann has 3?", "46", ("40 + 6 = 46", "So 46.")), options=("21", "46")),
    )
    kind = request.param
    return doubled(make_checkpoint("llama", kind)), words if kind == "word" else bpes


def originals(prompts):
    return {prompt.id: prompt.case for prompt in prompts}


def test_the_first_two_texts_are_the_whole_chain_and_none(case):
    session, prompts = case
    for measure in (early_answering, filler, mistakes, paraphrase, foreign_chain):
        for row, text in read_texts(session, prompts, measure):
            if row["condition"] == "intact":
                assert text == originals(prompts)[row["id"]]
            if row["condition"] == "no_chain":
                assert text == replace(originals(prompts)[row["id"]], steps=(), gaps=text.gaps)
                assert not text.gaps


def test_a_mistake_changes_its_step_and_nothing_else(case):
    session, prompts = case
    seen = set()
    for row, text in read_texts(session, prompts, mistakes):
        own = originals(prompts)[row["id"]]
        if row["condition"] not in ("mistake", "mistake_cut"):
            continue
        k = int(row["step"])
        assert (text.question, text.answer) == (own.question, own.answer)
        kept = len(own.steps) if row["condition"] == "mistake" else k
        assert text.steps[: k - 1] == own.steps[: k - 1]
        assert text.steps[k - 1] != own.steps[k - 1]
        assert text.steps[k:] == own.steps[k:kept]
        if own.gaps is not None:
            assert text.gaps == (own.gaps if kept == len(own.steps) else (*own.gaps[: k - 1], ""))
        seen.add((row["id"], k, row["condition"]))
    for prompt in prompts:
        made = {k for identifier, k, condition in seen if (identifier, condition) == (prompt.id, "mistake")}
        cut = {k for identifier, k, condition in seen if (identifier, condition) == (prompt.id, "mistake_cut")}
        assert made
        assert cut == made - {len(prompt.steps)}


def test_mistakes_of_the_shipped_prompts_are_wrong_modulo_ten():
    """Evaluated here, as the registers are: in ordinary arithmetic most of their true steps are false already."""
    session, prompts = organism("base"), shipped(30)
    count = 0
    for row, text in read_texts(session, prompts, mistakes):
        if row["condition"] != "mistake":
            continue
        changed = text.steps[int(row["step"]) - 1]
        left, result = re.fullmatch(r"[iv]+ [abc] (\d [-+*] \d) = (\d)", changed).groups()
        assert eval(left) % 10 != int(result), changed
        count += 1
    assert count == sum(len(prompt.steps) for prompt in prompts)


def test_filler_takes_the_place_of_steps_token_by_token(case):
    session, prompts = case
    encoder = session.reader.encoder
    rows = [(row, text) for row, text in read_texts(session, prompts, filler) if row["condition"] == "filler"]
    assert rows
    for row, text in rows:
        own, cut = originals(prompts)[row["id"]], int(row["cut"])
        assert (text.question, text.answer, text.gaps) == (own.question, own.answer, own.gaps)
        assert text.steps[:cut] == own.steps[:cut]
        assert all(set(step) <= set(" .…") for step in text.steps[cut:])
        ours, theirs = (encoder.encode(c.question, c.steps, None, c.gaps) for c in (own, text))
        assert len(ours.ids) == len(theirs.ids)
        assert ours.question == theirs.question
        assert ours.marker == theirs.marker
        assert ours.steps == theirs.steps, (own.steps, text.steps)
        before = ours.steps[cut][0]
        assert ours.ids[:before] == theirs.ids[:before]
    for prompt in prompts:
        cuts = {row["cut"] for row, _ in rows if row["id"] == prompt.id}
        assert cuts in (set(), set(range(len(prompt.steps))))  # a curve is whole, or there is none


def test_filler_of_the_shipped_prompts_keeps_every_position():
    session = organism("base")
    encoder = session.reader.encoder
    for prompt in shipped(30):
        text = filled(session, prompt.case, 0)
        ours, theirs = (encoder.encode(c.question, c.steps) for c in (prompt.case, text))
        assert (ours.question, ours.steps, ours.marker) == (theirs.question, theirs.steps, theirs.marker)
        assert not any(character.isalnum() for step in text.steps for character in step)


def test_a_paraphrase_keeps_every_number_and_all_gaps(case):
    session, prompts = case
    for row, text in read_texts(session, prompts, paraphrase):
        own = originals(prompts)[row["id"]]
        if row["condition"] == "paraphrase":
            assert (text.question, text.answer, text.gaps) == (own.question, own.answer, own.gaps)
            assert len(text.steps) == len(own.steps)
            changed = sum(a != b for a, b in zip(text.steps, own.steps, strict=True))
            assert changed == row["n_reworded"] > 0


def test_a_foreign_chain_is_another_prompts_whole_chain_behind_the_own_question(case):
    session, prompts = case
    for row, text in read_texts(session, prompts, foreign_chain):
        own = originals(prompts)[row["id"]]
        if row["condition"] == "foreign":
            donor = next(prompt for prompt in prompts if prompt.id == row["donor"])
            assert donor.id != row["id"]
            assert donor.case.answer != own.answer
            assert (text.question, text.answer) == (own.question, own.answer)
            assert (text.steps, text.gaps) == (donor.case.steps, donor.case.gaps)


def test_donors_have_as_many_steps_where_one_has_and_are_drawn_from_all_of_them():
    prompts = shipped(60)
    by_id = {prompt.id: prompt for prompt in prompts}
    drawn: dict[str, set[str]] = {prompt.id: set() for prompt in prompts}
    for seed in range(6):
        donors = Donors(prompts, seed)
        for prompt in prompts:
            donor = donors.of(prompt)
            assert donor == donors.of(prompt)
            assert donor.id != prompt.id
            assert by_id[donor.id].case.answer != prompt.case.answer
            assert len(donor.case.steps) == len(prompt.steps)
            drawn[prompt.id].add(donor.id)
    assert np.mean([len(names) for names in drawn.values()]) > 3


def test_a_donors_answer_is_another_one_by_the_suites_own_rule():
    """`12`, `12.0` and `$12` are one answer (`same_answer`); a chain that ends in it is no foreign one."""
    prompts = [
        authored("own", Case("a", "12", ("s",))),
        authored("same", Case("b", "$12.00", ("t",))),
        authored("other", Case("c", "7", ("u", "v"))),
    ]
    for seed in range(5):
        donor = Donors(prompts, seed).of(prompts[0])
        assert not same_answer(donor.case.answer, "12"), donor


def test_without_another_answer_there_is_no_donor(case):
    session, _ = case
    prompts = [authored(name, Case(f"a {name}", "12", ("a 1",)), options=("12", "8")) for name in ("b", "c")]
    measured = foreign_chain(session, prompts, SETTINGS)
    assert len(measured.table) == 0
    assert {item.reason for item in measured.excluded} == {"no other prompt has a chain and another answer"}


@pytest.mark.parametrize("measure", [mistakes, filler, paraphrase, foreign_chain, early_answering])
def test_a_seed_decides_every_edit_and_the_author_none(measure):
    session, prompts = organism("base"), shipped(6)
    texts = [case for _, case in read_texts(session, prompts, measure)]
    assert texts == [case for _, case in read_texts(session, prompts, measure)]
    assert texts == [case for _, case in read_texts(session, as_author(prompts, "sft"), measure)]
    if measure is not foreign_chain:  # which is drawn from a list
        assert {case for _, case in read_texts(session, prompts[::-1], measure)} == set(texts)
    if measure in (mistakes, foreign_chain):
        other = [case for _, case in read_texts(session, prompts, measure, replace(SETTINGS, seed=1))]
        assert other != texts


LISTED = "Which is it? A) 46 apples B) 21 apples C) 7 cakes\n"


@pytest.mark.parametrize(
    ("options", "gold"), [(("A", "B", "C"), "A"), (("46 apples", "21 apples", "7 cakes"), "7 cakes")]
)
def test_the_option_that_is_chosen_is_compared_by_what_it_says(make_checkpoint, monkeypatch, options, gold):
    """For many seeds, and so for many orders: two plain forward passes, and the texts behind the letters."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    outcomes = set()
    for model_seed in (0, 2, 3):
        session = spied(doubled(make_checkpoint("llama", "bpe", model_seed)))
        prompt = authored("p", Case(LISTED, gold, ("7 * 3 = 21",)), options=options)
        listed = dict(re.findall(r"([ABC])\) (\d+ [a-z]+)", LISTED))
        for seed in range(20):
            (row,) = option_order_rows(session, [prompt], seed)
            (asked,) = session.seen["option order"]
            first, second = asked.cases
            assert first == Case(LISTED, gold, ())
            now = dict(re.findall(r"([ABC])\) (\d+ [a-z]+)", second.question))
            assert sorted(now.values()) == sorted(listed.values())
            assert now != listed
            chosen = [
                options[int(np.argmax([answer_logprob(session.reader, text, option) for option in options]))]
                for text in (first, second)
            ]
            said = [names.get(option, option) for names, option in zip((listed, now), chosen, strict=True)]
            assert row["same"] == float(said[0] == said[1])
            assert row["chance"] == pytest.approx(1 / 3)
            outcomes.add(row["same"])
    assert outcomes >= ({0.0, 1.0} if gold == "A" else {1.0})
