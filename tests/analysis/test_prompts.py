"""Prompt files: what is read, and what is said of a broken one."""

from __future__ import annotations

import json

import pytest

from analysis.errors import InputError
from analysis.prompts import Case, read_prompts

GOOD = {"id": "p1", "question": "1 + 1?", "answer": "2", "steps": ["1 + 1 = 2"]}


def write(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_reads_every_field(tmp_path):
    other = {"question": "2 + 2?", "answer": 4, "steps": ["2 + 2 = 4"]}
    record = {**GOOD, "options": ["2", 4], "counterfactual": other, "meta": {"cue": 1}}
    (prompt,) = read_prompts(write(tmp_path, "", record, "  "))
    assert prompt.case == Case("1 + 1?", "2", ("1 + 1 = 2",))
    assert prompt.partner == Case("2 + 2?", "4", ("2 + 2 = 4",))
    assert prompt.options == ("2", "4")
    assert prompt.meta == {"cue": 1}


def test_a_counterfactual_may_be_the_id_of_another_prompt_even_a_later_one(tmp_path):
    first, second = read_prompts(write(tmp_path, {**GOOD, "counterfactual": "p2"}, {**GOOD, "id": "p2", "answer": "3"}))
    assert first.partner == second.case
    assert second.partner is None


def test_line_separators_inside_a_text_do_not_split_it(tmp_path):
    (prompt,) = read_prompts(write(tmp_path, json.dumps({**GOOD, "question": "a\u2028b"}, ensure_ascii=False)))
    assert prompt.case.question == "a\u2028b"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], r"line 1: not valid JSON"),
        ([GOOD, "[1]"], r"line 2: expected a JSON object, found a list"),
        ([GOOD, "", {"id": "p2", "question": "q"}], r"line 3: field 'answer' is missing"),
        ([GOOD, GOOD], r"line 2: id 'p1' was already used on line 1"),
        ([{**GOOD, "anwser": 1}], r"unknown field 'anwser'; did you mean 'answer'\?"),
        ([{**GOOD, "answer": ["2"]}], r"'answer' must be a text or a number, found a list"),
        ([{**GOOD, "answer": " "}], r"'answer' is empty"),
        ([{**GOOD, "answer": True}], r"found true or false"),
        ([{**GOOD, "steps": "1"}], r"'steps' must be a list"),
        ([{**GOOD, "steps": ["a", ""]}], r"none of them empty"),
        ([{**GOOD, "chain": "x"}], r"either 'steps' or 'chain'"),
        ([{**GOOD, "options": ["2", "2"]}], r"the same answer twice"),
        ([{**GOOD, "options": ["2"]}], r"at least two"),
        ([{**GOOD, "options": ["3", "4"]}], r"answer '2' is not among the options"),
        ([{**GOOD, "counterfactual": "p9"}], r"names 'p9', but no prompt has that id"),
        ([{**GOOD, "counterfactual": "p1"}], r"names the prompt itself"),
        ([{**GOOD, "counterfactual": {"question": "q"}}], r"field 'counterfactual': field 'answer' is missing"),
        ([{**GOOD, "counterfactual": 3}], r"found a number"),
        ([{**GOOD, "meta": []}], r"'meta' must be an object"),
        ([""], r"no prompts in it"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        read_prompts(write(tmp_path, *lines))


def test_missing_or_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"id": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(path)
