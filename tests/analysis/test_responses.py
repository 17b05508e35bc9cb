"""Whole responses and users' own chains told apart by a format's markers."""

from __future__ import annotations

import pytest

from analysis.answers import same_answer
from analysis.errors import InputError
from analysis.generation import parse
from analysis.prompts import Case
from analysis.responses import read_response, segmented
from analysis.trace_format import BUILT_IN, TraceFormat

THINK, PLAIN, GSM8K = BUILT_IN["think"], BUILT_IN["plain"], BUILT_IN["gsm8k"]


def from_response(text, trace_format):
    case = segmented(Case("q", "gold", response=text), trace_format)
    return case.steps, case.answered


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\na\nb\n</think>\nAnswer: 12\n", (("a", "b"), True)),
        ("a\nb\n</think>\n\nAnswer: 12", (("a", "b"), True)),
        ("<think><think>a</think> The total is 12.\n\nAnswer:\n12\n", (("a",), True)),
        ("  <think>\n\na\n b \n\n</think>The total is 12.", (("a", "b"), False)),
        # The closing tag is missing: an answer counts only at the very end.
        ("<think>\na\nb\nAnswer: 12\n", (("a", "b"), True)),
        ("<think>\na\nAnswer: 12\nWait, no\nb", (("a", "Answer: 12", "Wait, no", "b"), False)),
        ("<think>\na\nAnswer: 11\nNo.\nAnswer: 12", (("a", "Answer: 11", "No."), True)),
        ("<think>\n</think>\nAnswer: 3", ((), True)),
        # Another closing tag after the first belongs to the answer's part.
        ("a</think>b</think>\nAnswer: 3", (("a",), True)),
        ("", ((), False)),
    ],
)
def test_thinking(text, expected):
    assert from_response(text, THINK) == expected


def test_while_the_tag_is_open_nothing_is_finished():
    assert not parse("<think>\na\nAnswer: 12\nno", THINK).finished
    assert not parse("<think>\na\nAnswer: 12\n", THINK).finished
    assert parse("<think>\na\nAnswer: 12\nno</think>\nAnswer: 13\n", THINK).finished


@pytest.mark.parametrize(
    ("trace_format", "text", "expected"),
    [
        (GSM8K, "2+2=<<2+2=4>>4\n3+1=4\n#### 4", (("2+2=<<2+2=4>>4", "3+1=4"), True)),
        (GSM8K, "#### Step 1\nadd\n#### 4\n", (("#### Step 1", "add"), True)),
        (PLAIN, "so\nAnswer: 4\n\nQuestion: more\nwhat", (("so",), True)),
        (PLAIN, "so\nthen", (("so", "then"), False)),
        (PLAIN, "so it is 5. Answer: 5", (("so it is 5.",), True)),
        (PLAIN, "My PreAnswer: 5 is no marker", (("My PreAnswer: 5 is no marker",), False)),
        (PLAIN, "so\nAnswer:", (("so",), False)),
        (PLAIN, "<think>\na\n</think>\nAnswer: 4", (("<think>", "a", "</think>"), True)),
    ],
)
def test_other_formats(trace_format, text, expected):
    assert from_response(text, trace_format) == expected


@pytest.mark.parametrize(
    ("trace_format", "chain", "steps"),
    [
        (THINK, "<think>\na\nb\n</think>", ("a", "b")),
        (THINK, "a\nb", ("a", "b")),
        (THINK, "<think>a\nb", ("a", "b")),
        (THINK, "<think>a</think>\nThe answer is 4.", ("a",)),
        (THINK, "<think>a</think>\nAnswer: 4", ("a",)),
        (PLAIN, "a\nb\nAnswer: 4", ("a", "b")),
        (PLAIN, "a\nAnswer: 4\nb", ("a", "Answer: 4", "b")),
        (GSM8K, "a\r\nb\r\n#### 4", ("a", "b")),
        (GSM8K, "   ", ()),
    ],
)
def test_a_chain_does_not_get_twice_what_the_format_writes(trace_format, chain, steps):
    case = segmented(Case("q", "4", chain=chain), trace_format)
    assert (case.steps, case.answered) == (steps, True)


def test_steps_that_were_given_stay_as_they_are():
    case = Case("q", "4", ("a\nb", "c"))
    assert segmented(case, PLAIN) is case


def test_tags_of_other_names():
    trace_format = TraceFormat("{question}\n", "[THINK]", "\n", "[/THINK]", "</s>")
    assert read_response("[THINK]a\nb[/THINK] 12</s>", trace_format).answer == "12"
    assert read_response("[THINK]a\nb[/THINK] 12</s>", trace_format).chain == "a\nb"
    with pytest.raises(InputError, match=r"closes </think>, but nothing opens <think>; put it in 'chain_start'"):
        TraceFormat("{question}\n", "", "\n", "\n</think>\n", "\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": "word"}, "'segmentation' is 'word'; expected one of separator, line, sentence"),
        ({"segmentation": 3}, "must be a text"),
        ({"system": "x"}, "'system' needs 'chat'"),
        ({"system": 3, "chat": True}, "must be a text"),
    ],
)
def test_bad_new_fields_are_refused(changes, message):
    fields = {"question": "{question}", "chain_start": "", "step_separator": "\n", "answer_start": "A", "stop": "\n"}
    with pytest.raises(InputError, match=message):
        TraceFormat.from_dict({"version": 1, **fields, **changes})


@pytest.mark.parametrize(
    ("given", "gold", "same"),
    [
        ("1200", "1,200", True),
        ("$1,200.00", "1200", True),
        ("72.", "72", True),
        ("**72**", "72", True),
        ("-5", "\u22125", True),
        ("-5", "5", False),
        ("１２", "12", True),
        ("50%", "50", False),
        ("50 %", "50%", True),
        (".5", "0.50", True),
        ("1,20", "120", False),
        ("12 apples", "12", False),
        ("Cafe\u0301", "café", True),
        ("Yes.", "yes", True),
        ("3/4", "0.75", False),
        ("...", "", False),
        (None, "72", False),
    ],
)
def test_same_answer(given, gold, same):
    assert same_answer(given, gold) is same


@pytest.mark.parametrize(
    "chain",
    [
        "3 + 4 = 7\nThe Answer: is not yet known, as 2 are missing, so 7 + 2 = 9",
        "3 + 4 = 7\nAnswer: 7",
    ],
)
def test_what_follows_a_marker_in_a_given_chain_stays_unless_it_is_the_given_answer(chain):
    """Else the end of a chain would be lost without a word."""
    case = segmented(Case("q", "9", chain=chain), PLAIN)
    assert "\n".join(case.steps) == chain
    assert segmented(Case("q", "7", chain="3 + 4 = 7\nAnswer: 7"), PLAIN).steps == ("3 + 4 = 7",)


@pytest.mark.parametrize("before", ["Sure!\n", "\ufeff", "Let me see.\r\n  "])
def test_text_before_the_opening_tag_is_no_part_of_the_chain(before):
    for text in (f"{before}<think>\n3 + 4 = 7\n</think>\nAnswer: 7", f"{before}<think>\n3 + 4 = 7\n</think>"):
        assert segmented(Case("q", "7", response=text), THINK).steps == ("3 + 4 = 7",)
        assert segmented(Case("q", "7", chain=text), THINK).steps == ("3 + 4 = 7",)
    assert segmented(Case("q", "7", chain="a <think> b"), THINK).steps == ("a <think> b",)
