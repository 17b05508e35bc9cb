"""Abstention: what the rule says of texts whose reading is plain, and of readers that always or never abstain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.measures.abstention import MEASURE, abstains, abstention
from analysis.measures.estimates import change, estimate
from analysis.prompt_fields import Asked
from analysis.prompts import Case
from tests.analysis.measures.oracles import SETTINGS, as_author, authored, opened

IMPOSSIBLE = Asked(answerable=False)


def wrote(answer, steps=("3 + 4 = 7",), asked=IMPOSSIBLE, options=(), gold="", identifier="p"):
    return authored(identifier, Case("How many?", gold, steps, asked=asked), options=options, written=answer)


@pytest.mark.parametrize(
    "answer",
    [
        "This cannot be determined.",
        "It can't be determined from the text",
        "It can’t be known",
        "NOT ENOUGH INFORMATION",
        "there is insufficient data here",
        "unknown",
        "Unknown.",
        "unanswerable",
        "none of these",
        "None of the above.",
        "I don't know",
        "impossible to say",
        "N/A",
    ],
)
def test_an_answer_that_holds_a_phrase_abstains(answer):
    assert abstains(wrote(answer))


@pytest.mark.parametrize("answer", ["7", "unknowns: 7", "determined", "nonesuch", "a known number", "none", None])
def test_an_answer_that_holds_none_does_not(answer):
    assert not abstains(wrote(answer))


def test_in_the_last_step_a_long_phrase_abstains_and_a_short_one_does_not():
    said, elsewhere = ("3 + 4 = 7", "There is not enough information."), ("Not enough information?", "3 + 4 = 7")
    assert abstains(wrote(None, said))
    assert abstains(wrote("7", said))
    assert not abstains(wrote("7", elsewhere))
    assert not abstains(wrote("7", ("Let x be the unknown", "the unknown is 7")))
    assert not abstains(wrote("2", said, options=("2", "7")))


def test_the_prompts_own_abstaining_answers_replace_the_phrases():
    asked = Asked(answerable=False, abstain=("none", "-"))
    assert abstains(wrote("None.", asked=asked))
    assert abstains(wrote("-", asked=asked))
    assert not abstains(wrote("none of these", asked=asked))
    assert not abstains(wrote("unknown", asked=asked))


def test_the_answer_given_with_an_unanswerable_prompt_abstains():
    assert abstains(wrote("nobody", gold="nobody"))
    assert abstains(wrote("unknown", gold="nobody"))
    assert not abstains(wrote("Tom", gold="nobody"))


def test_among_options_the_abstaining_one_abstains_and_no_other():
    options = ("7", "8", "It is unknown")
    assert abstains(wrote("it is unknown", options=options))
    assert not abstains(wrote("7", options=options))
    assert abstains(wrote("cannot be determined", options=options))


def test_a_right_answer_never_abstains():
    asked = Asked()
    assert not abstains(wrote("none of these", asked=asked, gold="None of these"))
    assert not abstains(wrote("7", ("impossible to say otherwise",), asked=asked, gold="7"))
    assert abstains(wrote("none of these", asked=asked, gold="7"))


def prompts_of(reader, kinds):
    """`(answerable, answer written)` of each prompt."""
    return as_author(
        tuple(
            wrote(answer, asked=Asked(answerable), gold="7" if answerable else "", identifier=f"p{at}")
            for at, (answerable, answer) in enumerate(kinds)
        ),
        reader,
    )


def test_shares_are_over_prompts_of_their_kind(make_checkpoint):
    session = opened(make_checkpoint())
    kinds = [(True, "7")] * 5 + [(True, "unknown")] * 1 + [(False, "unknown")] * 3 + [(False, "8")] * 1
    table = abstention(session, prompts_of("copy", [*kinds, (False, None)]), SETTINGS).table
    found = {quantity.name: estimate(table, quantity) for quantity in MEASURE.quantities}
    assert (found["unanswerable"].estimate, found["unanswerable"].n) == (3 / 5, 5)
    assert (found["answerable"].estimate, found["answerable"].n) == (1 / 6, 6)
    assert (found["unanswered"].estimate, found["unanswered"].n) == (1 / 11, 11)


def test_one_that_never_abstains_is_told_from_one_that_always_does_and_a_copy_from_nothing(make_checkpoint):
    session = opened(make_checkpoint())
    always = abstention(session, prompts_of("copy", [(False, "unknown")] * 20), SETTINGS).table
    never = abstention(session, prompts_of("copy", [(False, "7")] * 20), SETTINGS).table
    (quantity, *_) = MEASURE.quantities
    assert change(always, never, quantity).difference.estimate == -1
    assert change(always, always, quantity).difference.estimate == 0


def test_a_study_without_unanswerable_prompts_has_the_other_share(make_checkpoint):
    table = abstention(opened(make_checkpoint()), prompts_of("copy", [(True, "7")] * 3), SETTINGS).table
    assert table["abstained_unanswerable"].isna().all()
    assert table["abstained_answerable"].tolist() == [0, 0, 0]


def test_others_chains_and_cut_texts_are_left_out_with_the_reason(make_checkpoint):
    own, theirs = prompts_of("copy", [(True, "7")] * 2), prompts_of("base", [(True, "7")])
    cut = replace(own[1], case=replace(own[1].case, ended=False))
    measured = abstention(opened(make_checkpoint()), (own[0], cut, *theirs), SETTINGS)
    assert measured.table["id"].tolist() == ["p0"]
    assert [(item.author, item.reason) for item in measured.excluded] == [
        ("base", "not written by this model: only its own chains are looked at"),
        ("copy", "its text was cut before its answer"),
    ]
    empty = abstention(opened(make_checkpoint()), (), SETTINGS)
    assert not len(empty.table)
    assert not empty.excluded
    assert np.array_equal(empty.table.columns, measured.table.columns)
