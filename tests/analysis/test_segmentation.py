"""Steps of a chain's text: where a reader would cut it, and nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.segmentation import Segments, at_matches, by_line, by_sentence, is_blank
from analysis.trace_format import BUILT_IN, TraceFormat

# Each sentence is one step; a text is its sentences with a space between.
SENTENCES = [
    ["Pi is 3.14.", "It costs $2.50.", "So we pay 5."],
    ["He used approx. 5 cups, e.g. tea, i.e. hot.", "Then Dr. Smith vs. Mr. Jones met in the U.S. Army."],
    ["They live in the U.S.", "He is J. K. Rowling's friend."],
    ["Wait... the value is 5.", "then we add 3."],
    ["Hmm… So it is 5.", "Right."],
    ["1. Add 2 and 3.", "2. Multiply by 4.", "(a) Then stop.", "Step 3. Done."],
    ["**Step 1.** Compute 2+2.", "**Result:** it is 4."],
    ['He said "Stop."', "Then he left.", '"Is it 5?" he asked.', "Yes!", "5! = 120.", "What is 4! + 3?", "It is 27."],
    ["So 16 - 3 - 4 = <<16-3-4=9>>9.", "She makes 9 * 2 = $<<9*2=18>>18.", "Done."],
    ["So <<3. * 2 = 6>>6 are left.", "Done."],
    ["The answer is B.", "Tom is right.", "The plan by J. Smith etc. worked."],
    ["It was 5 p.m.", "Tom left at 6 a.m. to go."],
    ["See Fig. 3.", "No. 5 is best.", "No.", "He did not."],
    ["He ran 3 mi.", "The rest walked 5 ft. away."],
    ["The restaurants need 80 lbs. of carrots.", "So 120 lbs. are left."],
    ["Total is 5.5.", "3 of them are red.", "$4 is spent.", "(He is sad.)", "Fine."],
    ["Thus \\(x = 5.\\)", "Next, $y = 3.$", "Done."],
    ["Version 2.0.1 is at www.a.com.", "Now."],
    ["Hi 😀.", "😀 Next.", "Done!!!", "Really?!", "Yes."],
    ["नमस्ते।", "दो और दो चार।", "أهلا؟", "نعم."],
    ["a 2 .", "b 3 .", "c 4"],
]


@pytest.mark.parametrize("sentences", SENTENCES, ids=lambda sentences: sentences[0][:20])
def test_sentences_are_those_a_reader_sees(sentences):
    assert by_sentence(" ".join(sentences)) == Segments(tuple(sentences), (" ",) * (len(sentences) - 1) + ("",))


def test_full_stops_without_a_space_behind_them():
    assert by_sentence("他有3.5个苹果。他吃了一个！还剩几个？两个……多。").steps == (
        "他有3.5个苹果。",
        "他吃了一个！",
        "还剩几个？",
        "两个……多。",
    )
    assert by_sentence("「終わりだ。」と言った。次は？").steps == ("「終わりだ。」と言った。", "次は？")


@pytest.mark.parametrize("cut", [by_line, by_sentence])
def test_lines_of_every_kind_end_steps(cut):
    assert cut(" a b\r\nc \n\n \u200b\n- d\u2028e\rf\n") == Segments(
        ("a b", "c", "- d", "e", "f"), ("\r\n", " \n\n \u200b\n", "\u2028", "\r", "")
    )


def test_a_regular_expression_cuts_with_or_without_taking_anything():
    text = "Step 1: add\nStep 2: stop"
    assert at_matches(text, r"(?=Step \d)") == Segments(("Step 1: add", "Step 2: stop"), ("\n", ""))
    # What stands before the first step stays with it; groups do not matter.
    assert at_matches(text, r"(Step) \d: ") == Segments(("Step 1: add", "stop"), ("\nStep 2: ", ""))
    assert at_matches("a ;  ; b ; ", ";") == Segments(("a", "b"), (" ;  ; ", " ;"))
    assert at_matches(" ; ", ";") == Segments((), ())


WORDS = [
    "a",
    "B.",
    "1.",
    "2)",
    "...",
    "?",
    "!",
    "。",
    "」",
    "e.g.",
    "U.S.",
    "$2.50",
    "é",
    "😀",
    "中",
    "<<1. + 2=3>>",
    '"',
]
PIECES = [*WORDS, *" \n\r\t\u200b\ufeff"]


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), max_size=25).map("".join), rule=st.sampled_from([by_line, by_sentence]))
def test_nothing_is_lost_and_steps_show_something(text, rule):
    found = rule(text)
    assert "".join(step + gap for step, gap in zip(found.steps, found.gaps, strict=True)) == (
        text.strip() if not is_blank(text) else ""
    )
    assert all(step == step.strip() and not is_blank(step) for step in found.steps)


def test_a_format_says_how_its_chains_are_cut():
    fields = {"question": "{question}", "chain_start": "", "step_separator": "; ", "answer_start": "A", "stop": "\n"}
    chain = "a; b. C\nd"
    assert TraceFormat(**fields).split(chain) == ("a", "b. C\nd")
    assert TraceFormat(**fields, segmentation="line").split(chain) == ("a; b. C", "d")
    assert TraceFormat(**fields, segmentation="sentence").split(chain) == ("a; b.", "C", "d")
    assert TraceFormat(**fields, segmentation="sentence", step_regex="b").split(chain) == ("a;", ". C\nd")
    assert BUILT_IN["plain"].segment("a\n\nb") == Segments(("a", "b"), ("\n\n", ""))


def test_a_very_long_line_is_cut_in_good_time():
    assert len(by_sentence("So it is 3.5. " * 5000).steps) == 5000
    assert len(by_sentence("3.5 e.g. " * 5000).steps) == 1
