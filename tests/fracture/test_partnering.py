"""Partners for a prompt file, as they are typed."""

from __future__ import annotations

import json

from analysis.prompts import read_prompts
from tests.fracture.test_cli import run
from tests.fracture.test_study_inputs import WORD_PROBLEMS


def test_partners_are_written_counted_and_read_back(monkeypatch, capsys, tmp_path):
    path, out = tmp_path / "p.jsonl", tmp_path / "new" / "with.jsonl"
    records = [{"id": f"p{i}", **record} for i, record in enumerate(WORD_PROBLEMS)]
    records.append({"id": "bare", "question": "Why?", "answer": "7", "meta": {"from": "me"}, "options": ["7", "8"]})
    records.append(
        {"id": "own", "question": "2+2?", "answer": "4", "counterfactual": {"question": "2+3?", "answer": "5"}}
    )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert not run(monkeypatch, "partners", path, "--out", out)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == ["changed", "number", "3", "60.0%"]
    assert sorted(shown[1:]) == [["given", "1", "20.0%"], ["none:", "no", "chain", "1", "20.0%"]]
    before, after = read_prompts(path), read_prompts(out)
    for old, new in zip(before, after, strict=True):
        assert (old.id, old.case, old.options, old.meta) == (new.id, new.case, new.options, new.meta)
    assert [prompt.partner is not None for prompt in after] == [True, True, True, False, True]
    assert after[0].partner.answer != after[0].case.answer
    assert after[4].partner == before[4].partner
    assert [file.name for file in out.parent.iterdir()] == ["with.jsonl"]
    assert run(monkeypatch, "partners", path, "--out", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(monkeypatch, "partners", path, "--out", path / "below" / "x.jsonl") == 2
    assert "cannot be written" in capsys.readouterr().err
