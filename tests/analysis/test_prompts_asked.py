"""Prompt files with what a prompt asks beyond its question: read, refused, kept in tables, and given no partner."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from analysis.authored import Authored, from_table, to_table
from analysis.errors import InputError
from analysis.partners import assign_partners
from analysis.prompt_fields import Asked, Shifted
from analysis.prompts import Case, prompts_from_records, read_prompts
from fracture.partnering import make_partners

FULL = {
    "id": "a",
    "question": "1 + 1?",
    "answer": "2",
    "options": ["2", "3"],
    "answerable": True,
    "abstain": ["none"],
    "constraints": ["max_steps:3"],
    "shifted": {"question": "1 + 1, and one more?", "answer": "3"},
    "partial": {"cue": "1?", "options": "2 or 3?"},
}
BARE = {"id": "b", "question": "How old is he?", "answerable": False}
GIVEN = {"id": "c", "question": "He is 5 + 6. How old?", "answer": "11", "steps": ["5 + 6 = 11"]}


def test_a_file_may_ask_all_of_it(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (FULL, BARE, GIVEN)))
    full, bare, given = read_prompts(path)
    assert full.case.asked == Asked(
        True,
        ("none",),
        ("max_steps:3",),
        Shifted("1 + 1, and one more?", "3"),
        (("cue", "1?"), ("options", "2 or 3?")),
    )
    assert (bare.case.asked, bare.case.answer, bare.options) == (Asked(answerable=False), "", ())
    assert given.case == Case("He is 5 + 6. How old?", "11", ("5 + 6 = 11",))


def test_a_table_gives_the_same(tmp_path):
    path = tmp_path / "p.parquet"
    pd.DataFrame([FULL, BARE, GIVEN]).to_parquet(path)
    records = [FULL, BARE, GIVEN]
    assert read_prompts(path) == prompts_from_records(records) == prompts_from_records(pd.DataFrame(records))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"id": "b", "question": "q"}], "row 1: field 'answer' is missing"),
        ([{**BARE, "answerable": True}], "row 1: field 'answer' is missing"),
        ([{**BARE, "answerable": "no"}], "row 1: field 'answer' is missing"),
        ([{**GIVEN, "answerable": "no"}], "row 1: field 'answerable' must be true or false"),
        ([{**FULL, "constraints": ["max_stepps:3"]}], "row 1, field 'constraints': constraint 'max_stepps:3' is not"),
        ([GIVEN, {**BARE, "counterfactual": "c"}], "row 2: field 'counterfactual' needs a right answer"),
        ([{**GIVEN, "counterfactual": "b"}, BARE], "row 1: field 'counterfactual' names a prompt that is unanswerable"),
        ([{**BARE, "answer": "5", "options": ["6", "7"]}], "row 1: the answer '5' is not among the options"),
        ([{**FULL, "partials": {}}], "unknown field 'partials'; did you mean 'partial'"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_row(records, message):
    with pytest.raises(InputError, match=message):
        prompts_from_records(records)


def test_tables_of_chains_keep_what_is_asked_and_how_a_text_ended():
    full, bare, given = prompts_from_records([FULL, BARE, GIVEN])
    steps = prompts_from_records([{**FULL, "shifted": {**FULL["shifted"], "steps": ["1 + 1 + 1 = 3", "é"]}}])[0]
    prompts = [
        Authored(prompt.id, "sft", Case(case.question, case.answer, ("x",), ended=ended, asked=case.asked))
        for prompt, ended in ((full, True), (bare, False), (given, None), (steps, True))
        for case in (prompt.case,)
    ]
    assert from_table(to_table(prompts)) == prompts


def test_an_unanswerable_prompt_has_no_partner_and_is_nobodys():
    unanswerable = {**GIVEN, "id": "d", "answerable": False}
    prompts = prompts_from_records([GIVEN, unanswerable, {**GIVEN, "id": "e", "question": "Else?", "answer": "12"}])
    found = {item.prompt.id: item for item in assign_partners(prompts, tiers=(1, 2, 3))}
    assert (found["d"].tier, found["d"].reason) == (None, "unanswerable")
    assert found["c"].tier == 2
    others = {item.prompt.partner.question for item in assign_partners(prompts, tiers=(3,)) if item.prompt.partner}
    assert others == {"Else?", GIVEN["question"]}


def test_partners_keep_what_a_file_asks(tmp_path):
    source, out = tmp_path / "p.jsonl", tmp_path / "q.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in (FULL, BARE, GIVEN)))
    make_partners(str(source), out, 0, "keep")
    before, after = read_prompts(source), read_prompts(out)
    assert [prompt.case for prompt in after] == [prompt.case for prompt in before]
    assert after[2].partner is not None
