"""Rows of the text tests, held to plain forward passes; areas over their curves, held to closed forms."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import integrate

from analysis.measures import early_answering as early_module
from analysis.measures import filler as filler_module
from analysis.measures import mistakes as mistakes_module
from analysis.measures import session as session_module
from analysis.measures.early_answering import early_answering
from analysis.measures.estimates import estimate, select
from analysis.measures.filler import filler
from analysis.measures.foreign_chain import foreign_chain
from analysis.measures.mistakes import mistakes
from analysis.measures.option_order import shuffled_options
from analysis.measures.paraphrase import paraphrase
from analysis.measures.session import Session
from analysis.measures.text_tests import Change, areas, over_chain, text_test
from analysis.prompts import Case
from tests.analysis.measures.oracles import SETTINGS, answer_logprob, authored, doubled, organism, shipped

WORD_OPTIONS = ("12", "8", "6", "5 ; 7")
WORDS = (
    authored("three", Case("a 7 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6", "c 4")), options=WORD_OPTIONS),
    authored("one", Case("c 3 b 9", "8", ("c 3 + 5 = 8",)), options=WORD_OPTIONS),
    authored("two", Case("b 2 a 1", "6", ("b 2 * 3 = 6", "so a 1"), gaps=(" ; then ", " .")), options=WORD_OPTIONS),
)
BPE_OPTIONS = ("46", "21", "123")
BPES = (
    authored("two", Case("Tom has 12 apples.", "46", ("12 + 34 = 46", "So he has 46.")), options=BPE_OPTIONS),
    authored(
        "three", Case("Ann?", "21", ("7 * 3 = 21", "3 cakes", "So 21."), gaps=("\n\n", " ", "")), options=BPE_OPTIONS
    ),
)


@pytest.fixture(params=[("llama", "word"), ("mistral", "word"), ("gpt2", "bpe")], ids="-".join)
def case(request, make_checkpoint, monkeypatch):
    """A random reader and its prompts; random models give options little mass."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    architecture, kind = request.param
    return doubled(make_checkpoint(architecture, kind)), WORDS if kind == "word" else BPES


def check_rows(session, rows, prompts, texts):
    """`texts`: (id, key of the row) → the case that was to be read."""
    by_id = {prompt.id: prompt for prompt in prompts}
    for (identifier, key), case in texts.items():
        prompt = by_id[identifier]
        row = rows[(rows["id"] == identifier) & np.logical_and.reduce([rows[name] == value for name, value in key])]
        assert len(row) == 1, (identifier, key)
        row = row.iloc[0]
        read = [
            np.array([answer_logprob(session.reader, text, option) for option in prompt.options])
            for text in (prompt.case, case)
        ]
        intact, changed = (np.exp(scores) / np.exp(scores).sum() for scores in read)
        own = int(np.argmax(read[0]))
        assert row["logprob"] == pytest.approx(read[1][own], abs=1e-5)
        assert row["drop"] == pytest.approx(read[0][own] - read[1][own], abs=1e-5)
        assert row["p_drop"] == pytest.approx(intact[own] - changed[own], abs=1e-5)
        assert row["same"] == float(np.argmax(read[1]) == own)
        assert row["right"] == float(prompt.options[int(np.argmax(read[1]))] == prompt.case.answer)
        assert row["n_steps"] == len(prompt.case.steps)
        assert row["chance"] == pytest.approx(1 / len(prompt.options))
        assert row["author"] == "gold"


def cut_by_hand(case, n):
    """The first steps, what stood between them, and nothing behind the last."""
    gaps = None if case.gaps is None else (*case.gaps[: max(0, n - 1)], *[""] * min(n, 1))
    return Case(case.question, case.answer, case.steps[:n], gaps=gaps)


def test_early_answering_reads_every_cut_of_every_chain(case):
    session, prompts = case
    rows = early_answering(session, prompts, SETTINGS).table
    texts = {}
    for prompt in prompts:
        texts[prompt.id, (("condition", "intact"),)] = prompt.case
        texts[prompt.id, (("condition", "no_chain"),)] = cut_by_hand(prompt.case, 0)
        for n in range(len(prompt.steps)):
            texts[prompt.id, (("condition", "early"), ("cut", n))] = cut_by_hand(prompt.case, n)
    check_rows(session, rows, prompts, texts)
    assert len(rows[rows["condition"] != "area"]) == len(texts)
    intact = rows[rows["condition"] == "intact"]
    assert (intact[["drop", "p_drop"]] == 0).all(axis=None)
    assert (intact["same"] == 1).all()


def test_areas_are_the_integrals_of_their_own_curves(case):
    """By numerical integration of the interpolated curve, and not by a sum over its points."""
    session, prompts = case
    rows = early_answering(session, prompts, SETTINGS).table
    for prompt in prompts:
        mine = rows[rows["id"] == prompt.id]
        area = mine[mine["condition"] == "area"]
        assert len(area) == 1
        curve = mine[mine["condition"] == "early"].sort_values("cut")
        share = [*(curve["cut"] / len(prompt.steps)), 1.0]
        for name, values in (
            ("aoc", [*(1 - curve["same"]), 0.0]),
            ("drop", [*curve["drop"], 0.0]),
            ("p_drop", [*curve["p_drop"], 0.0]),
        ):
            expected = sum(
                integrate.quad(np.interp, start, end, args=(share, values))[0]
                for start, end in itertools.pairwise(share)
            )
            assert area[name].iloc[0] == pytest.approx(expected, abs=1e-9)


def test_other_texts_are_scored_as_they_are_written(case):
    """Any change: other steps, another question, both; with keys that come back in the row."""
    session, prompts = case
    for_id = {
        prompt.id: [
            replace(prompt.case, question=prompt.case.question + " b 3"),
            replace(prompt.case, steps=prompt.case.steps[::-1]),
            Case(prompts[0].case.question, "no answer", prompts[-1].case.steps, gaps=prompts[-1].case.gaps),
        ]
        for prompt in prompts
    }
    measured = text_test(
        session,
        prompts,
        "any",
        lambda prompt: [Change({"condition": "any", "number": i}, text) for i, text in enumerate(for_id[prompt.id])],
        ("number",),
    )
    texts = {
        (identifier, (("condition", "any"), ("number", i))): text
        for identifier, cases in for_id.items()
        for i, text in enumerate(cases)
    }
    check_rows(session, measured.table, prompts, texts)
    assert not measured.excluded


def curve_table(*curves: tuple[str, list[float]]) -> pd.DataFrame:
    """Rows of one condition with these `same` values at cuts 0, 1, …, and the intact row."""
    rows = []
    for identifier, same in curves:
        key = {"id": identifier, "author": "gold", "n_steps": len(same), "chance": 0.0}
        rows += [
            key
            | {"condition": "early", "cut": cut, "same": value, "drop": 2 * (1 - value), "p_drop": 0.5 * (1 - value)}
            for cut, value in enumerate(same)
        ]
        rows.append(key | {"condition": "intact", "same": 1.0, "drop": 0.0, "p_drop": 0.0})
        rows.append(key | {"condition": "no_chain", "same": 0.0, "drop": 99.0, "p_drop": 1.0})
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_the_area_over_a_step_function_is_its_closed_form():
    """An answer that is the same from cut k of T on: the area is (k − ½)/T, and 0 for one that never changes."""
    lengths = {f"{t}-{k}": (t, k) for t in range(1, 7) for k in range(t + 1)}
    table = curve_table(*((name, [0.0] * k + [1.0] * (t - k)) for name, (t, k) in lengths.items()))
    found = over_chain(table, "early", "cut").set_index("id")
    assert len(found) == len(lengths)
    for name, (t, k) in lengths.items():
        expected = (k - 0.5) / t if k else 0.0
        assert found.loc[name, "aoc"] == pytest.approx(expected)
        assert found.loc[name, "drop"] == pytest.approx(2 * expected)
        assert found.loc[name, "p_drop"] == pytest.approx(0.5 * expected)
        assert found.loc[name, "n_steps"] == t


def test_the_mean_area_is_the_average_over_chain_lengths_by_their_frequency():
    rng = np.random.default_rng(0)
    curves = {f"p{i}": rng.integers(0, 2, rng.integers(1, 6)).astype(float).tolist() for i in range(40)}
    table = over_chain(curve_table(*curves.items()), "early", "cut")
    of_length = {
        t: np.mean([np.trapezoid([*(1 - np.array(c)), 0], dx=1 / t) for c in curves.values() if len(c) == t])
        for t in {len(c) for c in curves.values()}
    }
    frequency = Counter(len(c) for c in curves.values())
    expected = sum(frequency[t] / len(curves) * area for t, area in of_length.items())
    (aoc,) = (quantity for quantity in areas("x", -1) if quantity.name == "aoc")
    assert estimate(table, aoc).estimate == pytest.approx(expected)


def test_two_authors_of_one_prompt_have_an_area_each():
    first, second = curve_table(("p", [0.0, 1.0])), curve_table(("p", [1.0, 1.0])).assign(author="base")
    found = over_chain(pd.concat([first, second]), "early", "cut").set_index("author")["aoc"]
    assert found["gold"] == pytest.approx(0.25)
    assert found["base"] == 0.0


class Scripted(Session):
    """A session whose answers are written by hand."""

    def __init__(self, options, scores):
        super().__init__(organism("base").pair, organism("base").reader)
        self.written, self.scores = options, scores

    def options(self, prompts):
        return [self.written for _ in prompts]

    def score(self, contexts, what):
        assert all(len(item.cases) == len(self.scores) for item in contexts)
        return [np.log(np.array(self.scores)) for _ in contexts]


def test_rows_by_hand():
    """y is the reader's own answer, wrong here; its probability is among options that hold .8 together."""
    session = Scripted(("8", "12"), [[0.6, 0.2], [0.1, 0.3], [0.4, 0.0001]])
    prompt = authored("p", Case("q", "12", ("s",)), options=("8", "12"))
    rows = text_test(session, [prompt], "x", lambda _: [Change({"condition": "new"}, prompt.case)]).table
    rows = rows.set_index("condition")
    assert rows["same"].to_dict() == {"intact": 1.0, "no_chain": 0.0, "new": 1.0}
    assert rows["right"].to_dict() == {"intact": 0.0, "no_chain": 1.0, "new": 0.0}
    assert rows["drop"].to_dict() == pytest.approx({"intact": 0, "no_chain": np.log(6), "new": np.log(1.5)})
    assert rows.loc["no_chain", "p_drop"] == pytest.approx(0.75 - 0.25)
    assert rows.loc["new", "logprob"] == pytest.approx(np.log(0.4))


def test_an_answer_written_otherwise_is_the_same_answer():
    """Among found options are `46` and `46.`: by the suite's own rule (`same_answer`) one answer, and no change."""
    session = Scripted(("46", "46.", "8"), [[0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.4, 0.5, 0.1]])
    prompt = authored("p", Case("q", "46", ("s",)), options=("46", "46.", "8"))
    rows = text_test(session, [prompt], "x", lambda _: [Change({"condition": "new"}, prompt.case)]).table
    assert rows.set_index("condition")["same"].to_dict() == {"intact": 1.0, "no_chain": 0.0, "new": 1.0}


# A reader that is sure of its answer without a chain, and yet follows the chain: few answers are likely behind its own
# chain or behind none, and another one behind a changed chain.
TORN = "dose_0.25"


@pytest.mark.parametrize(("run", "condition"), [(foreign_chain, "foreign"), (mistakes, "mistake")])
def test_found_options_give_the_same_binary_rows_as_all_options_given(run, condition):
    """Whether the answer stays must not hang on whether the file lists options: the ten digits are all there are."""
    session = organism(TORN)
    given = shipped(30)
    found = tuple(replace(prompt, options=()) for prompt in given)
    keys = ["id", "condition", *(["step"] if run is mistakes else [])]
    tables = [run(session, prompts, SETTINGS).table for prompts in (given, found)]
    first, second = (table[table["condition"] == condition].set_index(keys) for table in tables)
    assert len(second) > 20
    both = first.join(second, rsuffix="_found", how="inner")
    np.testing.assert_allclose(both["drop"], both["drop_found"], atol=1e-4)
    assert (both["same"] == both["same_found"]).mean() > 0.98, (both["same"].mean(), both["same_found"].mean())
    assert (both["right"] == both["right_found"]).mean() > 0.98, (both["right"].mean(), both["right_found"].mean())


def test_a_reader_that_is_sure_with_and_without_the_chain_is_not_excluded_for_it():
    """It is the detached reader: leaving out prompts with one likely answer selects by the outcome that is measured."""
    given = shipped(30)
    alone = tuple(replace(prompt, options=(), partner=None, tier=None) for prompt in given)
    measured = mistakes(organism("dose_1"), alone, SETTINGS)
    assert measured.table["id"].nunique() == len(given), {item.reason for item in measured.excluded}
    rows = measured.table[measured.table["condition"] == "mistake"]
    assert (rows["same"] == 1).all()


def test_nothing_left_to_measure_is_an_empty_table_with_reasons(make_checkpoint):
    """All prompts excluded, as when a reader's options hold too little mass."""
    session = doubled(make_checkpoint("llama", "word"))
    for run in (early_answering, filler, mistakes, paraphrase, foreign_chain):
        measured = run(session, WORDS, SETTINGS)
        assert len(measured.table) == 0
        assert {item.id for item in measured.excluded} == {"three", "one", "two"}
        assert all("0.8" in item.reason for item in measured.excluded)


def test_quantities_find_their_rows():
    """Every declared quantity has rows to stand on, but for options that these questions do not list."""
    session, prompts = organism("base"), shipped(6)
    for measure in (early_module.MEASURE, filler_module.MEASURE, mistakes_module.MEASURE):
        table = measure.run(session, prompts, SETTINGS).table
        for quantity in measure.quantities:
            assert bool(len(select(table, quantity))) == (quantity.name != "same_shuffled"), quantity


def test_shuffled_option_lists_stay_what_they_are():
    """Brute force over all orders of three: whatever a letter stands for is the text that is listed behind it."""
    seen = set()
    for seed in range(40):
        made = shuffled_options("Which? A) red B) blue C) dark green\nThink.", ("A", "B", "C"), random.Random(seed))
        listed = dict(re.findall(r"([ABC])\) (red|blue|dark green)", made.question))
        before = {"A": "red", "B": "blue", "C": "dark green"}
        assert made.question.startswith("Which? A) ")
        assert made.question.endswith("\nThink.")
        assert {before[original] for original in made.stands_for.values()} == set(before.values())
        for letter, original in made.stands_for.items():
            assert listed[letter] == before[original]
        assert listed != before
        seen.add(tuple(listed.values()))
    assert len(seen) == 5
