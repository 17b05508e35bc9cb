"""Format adherence: each check on texts that break this one rule and no other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.generation import parse
from analysis.measures.format_adherence import CHECKS, MEASURE, format_adherence, steps_match
from analysis.measures.session import Session
from analysis.models import ModelPair
from analysis.prompt_fields import Asked
from analysis.prompts import Case
from analysis.trace_format import TraceFormat
from tests.analysis.measures.oracles import SETTINGS, authored, opened
from tests.conftest import BPE_FORMAT

KEPT = authored(
    "kept",
    Case(
        "How many?",
        "7",
        ("3 + 4 = 7", "So 7."),
        gaps=("\n", ""),
        ended=True,
        asked=Asked(constraints=("max_steps:2", "chain_matches:=", "answer_matches:^\\d$")),
    ),
    options=("7", "8"),
    written="7",
)
KEPT = replace(KEPT, author="copy")


def changed(**case):
    return replace(KEPT, case=replace(KEPT.case, **case))


BROKEN = {
    "marker": (replace(KEPT, written=None), {"marker", "in_options", "constraints"}),
    "stopped": (changed(ended=False), {"stopped"}),
    "has_step": (changed(steps=(), gaps=(), asked=Asked()), {"has_step"}),
    "in_options": (replace(KEPT, written="9"), {"in_options"}),
    "max_steps": (changed(asked=Asked(constraints=("min_steps:1", "max_steps:1"))), {"constraints"}),
    "chain_lacks": (changed(asked=Asked(constraints=("chain_lacks:7\nSo",))), {"constraints"}),
}


def rows(session, *prompts):
    return format_adherence(session, prompts, SETTINGS).table


def failed(row):
    return {name for name in CHECKS if row[name] == 0}


def test_a_text_that_keeps_everything_passes(make_checkpoint):
    (row,) = rows(opened(make_checkpoint()), KEPT).to_dict("records")
    assert failed(row) == set()
    assert row["passed"] == 1
    assert np.isnan(row["steps_match"])


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_rule_is_the_one_that_fails(make_checkpoint, what):
    prompt, expected = BROKEN[what]
    (row,) = rows(opened(make_checkpoint()), prompt).to_dict("records")
    assert failed(row) == expected
    assert row["passed"] == 0


def test_what_there_is_nothing_to_check_of_is_not_checked(make_checkpoint):
    bare = replace(changed(asked=Asked()), options=())
    (row,) = rows(opened(make_checkpoint()), bare).to_dict("records")
    assert all(np.isnan(row[name]) for name in ("in_options", "steps_match", "constraints"))
    assert row["passed"] == 1


def test_an_answer_among_the_options_is_told_by_value(make_checkpoint):
    (row,) = rows(opened(make_checkpoint()), replace(KEPT, written="7.0", options=("7", "8"))).to_dict("records")
    assert row["in_options"] == 1


@pytest.mark.parametrize(
    ("text", "regex", "matches"),
    [
        ("Step 1: a\nStep 2: b", r"(?=Step \d)", True),
        ("Step 1: a", r"(?=Step \d)", True),
        ("Okay.\nStep 1: a\nStep 2: b", r"(?=Step \d)", False),
        ("a and b", r"(?=Step \d)", False),
        ("a\n\nb", r"\n\n", True),
        ("a\nb", r"\n\n", False),
    ],
)
def test_steps_match_where_the_format_finds_its_marks(text, regex, matches):
    form = TraceFormat.from_dict({**BPE_FORMAT, "step_regex": regex})
    assert steps_match(form.split(text), text, regex) is matches


def test_the_formats_expression_is_looked_for_in_the_models_own_text(make_checkpoint):
    directory = make_checkpoint("llama", "bpe")
    form = TraceFormat.from_dict({**BPE_FORMAT, "step_regex": r"(?=Step \d)"})
    session = opened(directory)
    encoder = replace(session.reader.encoder, format=form)
    reader = replace(session.reader, source=replace(session.reader.source, encoder=encoder))
    session = Session(ModelPair.load(directory, {"copy": directory}), reader)
    prompts = []
    for name, text in (("kept", "Step 1: a\nStep 2: b\nThe answer is 7\n"), ("broken", "a, b\nThe answer is 7\n")):
        written = parse(text, form)
        case = Case("How many?", "7", written.steps, gaps=written.gaps, ended=True)
        prompts.append(replace(authored(name, case, written=written.answer), author="copy"))
    assert rows(session, *prompts)["steps_match"].tolist() == [1, 0]


def test_where_it_is_not_known_how_a_text_ended_nothing_is_said(make_checkpoint):
    measured = format_adherence(
        opened(make_checkpoint()), (changed(ended=None), replace(KEPT, author="gold")), SETTINGS
    )
    assert not len(measured.table)
    assert [item.reason for item in measured.excluded] == [
        "not written by this model: only its own chains are looked at",
        "it is not known whether its author or a limit ended its text",
    ]


def test_every_check_is_a_quantity():
    assert [quantity.value for quantity in MEASURE.quantities] == ["passed", *CHECKS]
    assert all(quantity.binary and quantity.detached == 0 for quantity in MEASURE.quantities)
