"""Spans of question, steps, marker and answer, with word-level and byte-level BPE tokenizers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.trace_format import TraceFormat
from analysis.traces import TraceEncoder
from tests.conftest import BPE_FORMAT, CORPUS, WORD_FORMAT, bpe_tokenizer, word_tokenizer

STEP = st.text(
    alphabet=st.sampled_from([*"0123456789+-*= abcé,.\u20ac\u4e2d#:;", "\t"]), min_size=1, max_size=20
).filter(str.strip)


@pytest.fixture(scope="module")
def bpe() -> TraceEncoder:
    return TraceEncoder(bpe_tokenizer(), TraceFormat.from_dict(BPE_FORMAT))


@pytest.fixture(scope="module")
def word() -> TraceEncoder:
    return TraceEncoder(word_tokenizer(), TraceFormat.from_dict(WORD_FORMAT))


def test_word_level_spans(word):
    trace = word.encode("a 7 b 2", ["a 7 + 5 = 12", "b 2 * 3 = 6"], "6")
    tokens = word.tokenizer.convert_ids_to_tokens(list(trace.ids))

    def part(span):
        return " ".join(tokens[slice(*span)])

    assert part(trace.question) == "<bos> Q a 7 b 2 think"
    assert [part(span) for span in trace.steps] == ["a 7 + 5 = 12 ;", "b 2 * 3 = 6"]
    assert part(trace.marker) == "; answer"
    assert part(trace.answer) == "6 <eos>"
    assert part(trace.chain) == "a 7 + 5 = 12 ; b 2 * 3 = 6"


def test_no_steps_gives_an_empty_chain(word):
    trace = word.encode("a 7", [], "6")
    assert trace.steps == ()
    assert trace.chain[0] == trace.chain[1] == trace.question[1] == trace.marker[0]


def test_without_answer_the_trace_ends_at_the_marker(word):
    whole = word.encode("a 7", ["a 7 + 5 = 12"], "12")
    cut = word.encode("a 7", ["a 7 + 5 = 12"])
    assert cut.ids == whole.ids[: whole.answer[0]]
    assert cut.answer == (len(cut.ids), len(cut.ids))


def test_eos_that_the_tokenizer_appends_is_not_part_of_the_text(bpe):
    appending = TraceEncoder(bpe_tokenizer(append_eos=True), bpe.format)
    plain, appended = (e.encode("Tom has 12?", ["12 + 34 = 46"], "46") for e in (bpe, appending))
    assert appended.ids == plain.ids
    assert appended.answer == plain.answer
    assert appending.encode_question("Tom has 12?") == bpe.encode_question("Tom has 12?")


def test_stop_that_is_a_special_token_is_scored(word):
    trace = word.encode("a 7", ["a 7 + 5 = 12"], "12")
    assert trace.ids[-1] == word.tokenizer.eos_token_id
    assert trace.answer == (len(trace.ids) - 2, len(trace.ids))


def test_token_merged_across_step_boundary_belongs_to_the_last_step_it_shows():
    """With ";" inside one token " ;x", the step that the token's visible text ends in owns it."""
    encoder = TraceEncoder(
        bpe_tokenizer(), TraceFormat("{question}", " think ", "; ", " answer ", "\n", step_regex=";")
    )
    trace = encoder.encode("q", ["a1", "b2"], "3")
    assert trace.steps[0][1] == trace.steps[1][0]
    text = encoder.tokenizer.decode(trace.ids[trace.steps[1][0] : trace.steps[1][1]])
    assert text.strip() == "b2"


@settings(max_examples=200, deadline=None)
@given(question=STEP, steps=st.lists(STEP, min_size=0, max_size=5), answer=STEP)
def test_every_token_is_in_exactly_one_part_and_parts_are_in_order(question, steps, answer):
    encoder = TraceEncoder(_BPE, TraceFormat.from_dict(BPE_FORMAT))
    trace = encoder.encode(question, [step.strip() for step in steps], answer.strip())
    spans = [trace.question, *trace.steps, trace.marker, trace.answer]
    assert spans[0][0] == 0
    assert spans[-1][1] == len(trace.ids)
    for (_, end), (start, _) in pairwise(spans):
        assert end == start
    # Nothing is lost or invented: ids decode to the text, and each part holds its own visible characters.
    assert encoder.tokenizer.decode(trace.ids[1:]) == trace.text
    for step, span in zip(steps, trace.steps, strict=True):
        assert step.strip() in encoder.tokenizer.decode(trace.ids[slice(*span)])


_BPE = bpe_tokenizer()


@pytest.mark.parametrize("append_eos", [False, True])
def test_answers_together_are_encoded_as_they_are_one_by_one(append_eos):
    """Marker ends that merge with some answers included: "=4" is one token here, "=7" two."""
    merging = TraceFormat("{question}", " think ", "; ", "; 1 =", "\n")
    for trace_format in (TraceFormat.from_dict(BPE_FORMAT), merging):
        encoder = TraceEncoder(bpe_tokenizer(append_eos), trace_format)
        answers = ["46", "123", " 46", "x", "é", "46 apples"]
        together = encoder.encode_answers("Tom has 12?", ["12 + 34 = 46", "So"], answers)
        assert together == [encoder.encode("Tom has 12?", ["12 + 34 = 46", "So"], answer) for answer in answers]


def test_ids_are_those_of_the_whole_text_tokenised_once(bpe):
    for text in CORPUS:
        question = text.split("\n")[0].removeprefix("Question: ")
        steps = text.split("\n")[2:-2]
        answer = text.split("The answer is ")[1].strip()
        trace = bpe.encode(question, steps, answer)
        assert trace.text == text
        assert list(trace.ids) == bpe.tokenizer(text).input_ids


def test_chat_template_wraps_the_question_and_adds_no_second_bos():
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = "<bos>[user] {{ messages[0]['content'] }} [assistant] "
    encoder = TraceEncoder(tokenizer, TraceFormat("{question}", "", "\n", "\nAnswer: ", "\n", chat=True))
    trace = encoder.encode("Tom?", ["12"], "46")
    assert trace.text.startswith("<bos>[user] Tom? [assistant] 12\nAnswer: ")
    assert list(trace.ids).count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version"),
        ({"question": "no place"}, "exactly once"),
        ({"answer_start": ""}, "must not be empty"),
        ({"steps": "x"}, "unknown field 'steps'"),
        ({"stop": 3}, "must be a text"),
        ({"step_regex": "("}, "not valid"),
        ({"chat": "yes"}, "true or false"),
    ],
)
def test_bad_format_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        TraceFormat.from_dict({**WORD_FORMAT, **change})


def test_split_undoes_join():
    trace_format = TraceFormat.from_dict(WORD_FORMAT)
    steps = ("a 7 + 5 = 12", "b 2 * 3 = 6")
    assert trace_format.split(trace_format.join(steps)) == steps
    assert trace_format.split(" a 1 ;  ; b 2 ; ") == ("a 1", "b 2")
    assert trace_format.split("") == ()


def test_a_steps_end_is_the_last_token_of_its_own_last_visible_character(bpe):
    """Not of the separator behind it; and where a character is several tokens, the last of them."""
    steps = ["12 + 34 = 46", "So he has 46 \u20ac", "That is all.  "]
    trace = bpe.encode("Tom?", steps, "46", ["\n\n", "\n", ""])
    seen = "".join(bpe.tokenizer.convert_ids_to_tokens(list(trace.ids[: trace.step_ends[1] + 1])))
    euro = "".join(bpe.tokenizer.convert_ids_to_tokens(bpe.tokenizer("\u20ac", add_special_tokens=False).input_ids))
    assert len(bpe.tokenizer("\u20ac", add_special_tokens=False).input_ids) == 3
    assert seen.endswith(euro)
    for (start, stop), end, step in zip(trace.steps, trace.step_ends, steps, strict=True):
        assert start <= end < stop
        assert bpe.tokenizer.decode(list(trace.ids[start : end + 1])).strip() == step.strip()
        assert bpe.tokenizer.decode([trace.ids[end]]).strip()
    assert trace.step_ends[0] < trace.steps[0][1] - 1
    assert bpe.encode("Tom?", []).step_ends == ()
