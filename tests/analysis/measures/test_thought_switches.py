"""Thought switches: chains whose thoughts are plain to see, tokens counted by hand, and scores worked out on paper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.measures.estimates import change, estimate
from analysis.measures.thought_switches import MEASURE, holds_answer, split_thoughts, thought_switches
from analysis.prompts import Case
from tests.analysis.measures.oracles import SETTINGS, authored, opened, organism, shipped, text_before
from tests.conftest import ARCHITECTURES

SWITCHED = (
    "3 + 4 = 7. | Wait, 3 * 4 = 12.",
    "3 + 4 = 7.\n| Hmm. It is 12.",
    "3 + 4 = 7. | But wait, let me re-check: 12.",
    "3 + 4 = 7. | Alternatively, 3 * 4 = 12. | On second thought, 7.",
    "It is 7, | but wait, is it?",
    "Adding gives 7. | Another approach: multiply. | Let me try 3 * 4.",
    "So 7. | Actually, no. It is 12.",
    "So 7! | Okay, hold on. 12.",
    "I add: 7. | Let's double-check this. Yes. | wait... no.",
    "We could add; | alternatively multiply.",
)
WHOLE = (
    "They wait 5 minutes, and then wait 3 more.",
    "The kettle is actually empty, but wait times are long.",
    "Waiting. Waiters. Hmmph. An alternative.",
    "Wait, this is the first thought.",
    "Hmm. Wait. Let me try.",
    "He takes another apple. I let him try.",
    "",
)


@pytest.mark.parametrize("marked", SWITCHED)
def test_a_chain_is_cut_where_a_thought_is_dropped(marked):
    thoughts = split_thoughts(marked.replace("| ", "").replace("|", ""))
    assert "".join(thoughts) == marked.replace("| ", "").replace("|", "")
    assert [thought.strip() for thought in thoughts] == [thought.strip() for thought in marked.split("|")]


@pytest.mark.parametrize("chain", WHOLE)
def test_words_that_say_something_else_and_the_first_thought_are_no_switches(chain):
    assert split_thoughts(chain) == (chain,)


def test_a_step_begins_a_sentence_whatever_separates_it():
    chain = "a 7 ; wait b 2 ; wait c"
    assert len(split_thoughts(chain)) == 3
    chain = "a 7 / wait b 2 / they wait"
    assert len(split_thoughts(chain)) == 1
    assert split_thoughts(chain, [6, 17]) == ("a 7 / ", "wait b 2 / they wait")


@pytest.mark.parametrize(
    ("thought", "answer", "holds"),
    [
        ("so 46.", "46", True),
        ("so 146", "46", False),
        ("so 4.6", "46", False),
        ("46.0 apples", "46", True),
        ("it costs $1,200 now", "1200", True),
        ("it costs 1200", "$1,200", True),
        ("46%", "46", False),
        ("half, 50%", "50%", True),
        ("x = -3", "-3", True),
        ("x = 3", "-3", False),
        ("x = -3", "3", False),
        ("10 - 3 = 7", "3", True),
        ("10-3", "3", True),
        ("It is the red  box.", "red box", True),
        ("It is the Red Box", "red box", True),
        ("It is predred boxes", "red box", False),
        ("a car", "A", False),
        ("so (A)", "A", True),
    ],
)
def test_a_thought_holds_an_answer_by_value_or_as_whole_words(thought, answer, holds):
    assert holds_answer(thought, answer) is holds


def own(identifier, steps, gold, written, gaps=None, question="a 7 b 2"):
    return replace(authored(identifier, Case(question, gold, steps, gaps=gaps), written=written), author="copy")


# Of the word tokenizer's tokens, one a word; `.`, `wait` and the like are one unknown token each.
CHAINS = (
    # 6 tokens of the first thought hold 12, and 11 are all.
    own("dropped", ("a 7 + 5 = 12", "Wait 2 * 3"), "12", "6"),
    own("never", ("a 7 + 5 = 11", "Wait 2 * 3"), "12", "6"),
    own("late", ("a 7 + 5 = 11", "Wait 12 * 3"), "12", None),
    own("right", ("a 7 + 5 = 12", "Wait 2 * 3"), "12", "12"),
    own("one", ("a 7 + 5 = 12",), "12", "6"),
)


def test_underthinking_is_the_share_of_the_chain_behind_the_first_right_thought(make_checkpoint):
    rows = thought_switches(opened(make_checkpoint()), CHAINS, SETTINGS).table.set_index("id")
    assert rows["switches"].tolist() == [1, 1, 1, 1, 0]
    # `a 7 + 5 = 12 ;` are seven tokens, `Wait 2 * 3` four.
    assert rows["n_tokens"].tolist() == [11, 11, 11, 11, 6]
    assert rows.loc["dropped", "until_right"] == 7
    assert rows.loc["dropped", "underthinking"] == pytest.approx(1 - 7 / 11)
    assert rows.loc["never", "underthinking"] == 0
    assert rows.loc["late", "underthinking"] == 0
    assert rows["underthinking"].isna().tolist() == [False, False, False, True, False]
    assert rows.loc["one", "underthinking"] == 0
    found = {quantity.name: estimate(rows.reset_index(), quantity) for quantity in MEASURE.quantities}
    assert found["underthinking"].estimate == pytest.approx((1 - 7 / 11) / 4)
    assert (found["underthinking"].n, found["switched"].n) == (4, 5)
    assert found["switched"].estimate == 4 / 5


TEXTS = (
    own("a", ("12 + 34 = 46.", "Hmm, so 12.  But wait, 3?", "No. Let me try 7."), "46", "7", question="Tom has 12?"),
    own("b", ("7 * 3", "is it 20? Wait… it is 21 cakes", "Hmm. no"), "21", "3", ("\n\n", "  ", "\n"), "Ann?"),
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_up_to_a_thought_are_those_whose_last_character_it_has(make_checkpoint, architecture):
    session = opened(make_checkpoint(architecture, "bpe"))
    rows = thought_switches(session, TEXTS, SETTINGS).table.set_index("id")
    until = {"a": "12 + 34 = 46.\n", "b": "7 * 3\n\nis it 20? Wait… it is 21 cakes  "}
    assert rows["switches"].tolist() == [3, 2]
    for prompt in TEXTS:
        form = session.reader.encoder.format
        text = text_before(session.reader, prompt.case)
        start = len(form.question.replace("{question}", prompt.case.question) + form.chain_start)
        end = len(text) - len(form.answer_start.rstrip())
        ends = [to for _, to in session.reader.encoder.tokenizer(text, return_offsets_mapping=True).offset_mapping]
        assert rows.loc[prompt.id, "n_tokens"] == sum(start < to <= end for to in ends)
        thought = start + len(until[prompt.id])
        assert rows.loc[prompt.id, "until_right"] == sum(start < to <= thought for to in ends)


def test_a_model_that_writes_a_switch_is_told_from_one_that_does_not():
    prompts = shipped(20)
    plain = [replace(p, author="base", written=p.case.answer) for p in prompts]
    doubting = [
        replace(p, author="base", written="x", case=replace(p.case, steps=(*p.steps, f"Wait {p.steps[0]}")))
        for p in prompts
    ]
    (switches, switched, under) = MEASURE.quantities
    first, second = (thought_switches(organism("base"), each, SETTINGS).table for each in (plain, doubting))
    assert first["switches"].sum() == 0
    assert change(first, second, switched).difference.estimate == 1
    assert change(first, second, switches).difference.estimate == 1
    assert estimate(second, under).low > 0
    assert first["underthinking"].isna().all()
    copied = thought_switches(organism("copy"), [replace(p, author="copy") for p in doubting], SETTINGS).table
    assert change(second, copied, under).difference.estimate == 0


def test_others_chains_and_empty_ones_are_left_out_with_the_reason(make_checkpoint):
    measured = thought_switches(
        opened(make_checkpoint()), (replace(CHAINS[0], author="base"), own("empty", (), "12", "12")), SETTINGS
    )
    assert not len(measured.table)
    assert [item.reason for item in measured.excluded] == [
        "not written by this model: only its own chains are looked at",
        "its chain is empty",
    ]
