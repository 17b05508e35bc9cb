"""What a prompt may ask beyond its question: what is read, what is refused, and what meets a constraint."""

from __future__ import annotations

import pytest

from analysis.errors import InputError
from analysis.prompt_fields import NOTHING, Asked, Shifted, meets, read_asked

OPTIONS = ("2", "3", "unknown")
SHIFTED = {"question": "1 + 1 in base 1?", "answer": 3, "steps": [" 1 + 1 = 3 "]}
STEPS = ("1 + 1 = 2", "So 2.")
CHAIN = "1 + 1 = 2\nSo 2."


def read(record, answer="2", options=OPTIONS):
    return read_asked(record, answer, options, "line 7")


def test_every_field_is_read():
    record = {
        "question": "looked at elsewhere",
        "answerable": True,
        "abstain": ["unknown "],
        "constraints": ["max_steps:3"],
        "shifted": SHIFTED,
        "partial": {"cue": "a?", "options": "b?"},
    }
    assert read(record) == Asked(
        True,
        ("unknown",),
        ("max_steps:3",),
        Shifted("1 + 1 in base 1?", "3", ("1 + 1 = 3",)),
        (("cue", "a?"), ("options", "b?")),
    )


@pytest.mark.parametrize(
    "record",
    [
        {},
        dict.fromkeys(("answerable", "abstain", "constraints", "shifted", "partial")),
        {"shifted": {"question": None, "answer": None}, "partial": {"cue": None, "options": None}},
    ],
    ids=["left out", "null", "objects of nothing but null"],
)
def test_what_is_missing_asks_nothing(record):
    assert read(record) == NOTHING


def test_a_table_leaves_names_empty_that_other_rows_have():
    assert read({"partial": {"cue": "a?", "options": None}}).partial == (("cue", "a?"),)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answerable": "no"}, "'answerable' must be true or false, found a text"),
        ({"answerable": 0}, "'answerable' must be true or false, found a number"),
        ({"abstain": "none"}, "'abstain' must be a list of texts, at least one"),
        ({"abstain": []}, "'abstain' must be a list of texts, at least one"),
        ({"abstain": [" "]}, "'abstain' is empty"),
        ({"abstain": ["2.0"]}, "'abstain' names the gold answer '2'"),
        ({"constraints": ["most_steps:3"]}, "constraint 'most_steps:3' is not known; expected one of max_steps:N"),
        ({"constraints": ["max_steps"]}, "constraint 'max_steps' is not known"),
        ({"constraints": ["max_steps:many"]}, "needs a whole number of steps"),
        ({"constraints": ["min_steps:-1"]}, "needs a whole number of steps"),
        ({"constraints": ["chain_lacks:("]}, r"constraint 'chain_lacks:\(' is no valid regular expression"),
        ({"shifted": "q"}, "'shifted' must be an object, found a text"),
        ({"shifted": {"question": "q"}}, "field 'shifted': field 'answer' is missing"),
        ({"shifted": {**SHIFTED, "chain": "x"}}, "unknown field 'chain'; known fields are question, answer, steps"),
        ({"shifted": {**SHIFTED, "answer": "2.00"}}, "its answer is the old one, '2'"),
        ({"shifted": {**SHIFTED, "answer": "9"}}, "'9' is not among the options"),
        ({"shifted": {**SHIFTED, "steps": "x"}}, "'steps' must be a list"),
        ({"partial": ["a?"]}, "'partial' must be an object"),
        ({"partial": {"full": "a?"}}, "'full' is the name of the whole question"),
        ({"partial": {"cue": 1.5}}, "'cue' must be a text"),
        ({"partial": {"cue": "\ud800"}}, "half of a surrogate pair"),
        ({"answerable": False, "shifted": SHIFTED}, "'shifted' needs a right answer"),
        ({"answerable": False, "partial": {"cue": "a?"}}, "'partial' needs a right answer"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(record, message):
    with pytest.raises(InputError, match=message) as raised:
        read(record)
    assert str(raised.value).startswith("line 7")


def test_partial_questions_need_options():
    with pytest.raises(InputError, match="'partial' needs the field 'options'"):
        read({"partial": {"cue": "a?"}}, options=())


@pytest.mark.parametrize(
    ("constraint", "met"),
    [
        ("max_steps:2", True),
        ("max_steps:1", False),
        ("min_steps: 2", True),
        ("min_steps:3", False),
        ("answer_matches:^\\d+$", True),
        ("answer_matches:^\\D+$", False),
        ("chain_matches:So", True),
        ("chain_matches:so", False),
        ("chain_matches:2\\nSo", True),
        ("chain_lacks:3", True),
        ("chain_lacks:= 2", False),
        ("chain_matches:a:b|2:?", True),
    ],
)
def test_constraints_are_checked_on_chain_and_answer(constraint, met):
    assert meets(constraint, STEPS, CHAIN, "2", "here") is met


def test_no_answer_meets_no_pattern():
    assert not meets("answer_matches:", STEPS, CHAIN, None, "here")
