"""The report shows every text as it is, is the same every time, and stays small."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import figures
from analysis.errors import InputError
from analysis.runs import Run
from fracture.report.page import outputs
from tests.fracture.report_pages import QUICK, VARIANTS, Html, account_tables, made, markdown_tables, page
from tests.fracture.report_runs import Made, write_run

HOSTILE = "</script><img src=x onerror=alert(1)><!-- <script>alert(1)</script> \u2028 & | [a](http://b) `c` *d*\ne"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, bytes], Html]:
    run = made(
        tmp_path_factory.mktemp("full"),
        prompts=40,
        alone=(3,),
        unreadable=(5,),
        crooked=(2, 6),
        other=(1,),
        unruled=(1,),
        steps=(1, 2, 3, 4),
        lost=[("routes", "half", 7), ("mistakes", "half", 8), ("accuracy_and_calibration", "gone", 9)],
        measures=(*QUICK, "mistakes", "early_answering"),
    )
    files = outputs(run)
    return run, files, Html(files["report.html"].decode())


def hostile(tmp_path: Path, place: str) -> Run:
    texts = {
        place_of: {"id": f"{HOSTILE}{place_of}", "question": HOSTILE, "steps": [HOSTILE, HOSTILE], "answer": HOSTILE}
        for place_of in range(2)
    }

    def edit(summary, tables):
        summary["study"] |= {"base": HOSTILE, "prompts": HOSTILE}
        summary["study"]["variants"]["half"] = HOSTILE
        summary["variants"]["half"]["reason"] = HOSTILE
        summary["variants"]["half"]["evidence"][0]["text"] = HOSTILE
        summary["measures"]["chain_effect"]["readers"]["half"]["gold"]["details"]["structure"] = HOSTILE

    measures = (*QUICK, "mistakes", "chain_effect")
    return write_run(tmp_path / place, Made(VARIANTS, texts=texts, measures=measures), edit)


def test_hostile_texts_are_shown_and_never_run(tmp_path):
    run = hostile(tmp_path, "run")
    html = page(run)
    tags = [tag for tag, _ in html.elements]
    assert tags.count("script") == 2
    assert len(html.scripts) == 2
    assert not any(name.startswith("on") for _, found in html.elements for name in found)
    assert {str(found["src"])[:5] for tag, found in html.elements if tag == "img"} == {"data:"}
    assert html.text.count("onerror=alert(1)") >= 5
    assert html.traces["prompts"][0]["question"] == HOSTILE
    assert html.traces["prompts"][0]["id"] == f"{HOSTILE}0"
    assert html.traces["prompts"][0]["steps"] == [HOSTILE, HOSTILE]
    for mark in "<>&\u2028":
        assert mark not in html.scripts["application/json"]


def test_a_hostile_variant_name_is_a_name(tmp_path):
    run = made(tmp_path, variants={"v": 0.5}, measures=(*QUICK, "mistakes"))
    text = run.directory.joinpath("summary.json").read_text().replace('"v"', json.dumps(HOSTILE))
    run.directory.joinpath("summary.json").write_text(text)
    for name in ("routes", "accuracy_and_calibration", "mistakes"):
        table = run.table(name)
        table["reader"] = table["reader"].replace("v", HOSTILE)
        table.to_parquet(run.directory / "measures" / f"{name}.parquet")
    files = outputs(Run.open(run.directory))
    html = Html(files["report.html"].decode())
    assert [tag for tag, _ in html.elements].count("script") == 2
    assert html.traces["models"] == ["base", HOSTILE]
    assert any(HOSTILE in text for level, text in html.headings if level == 3)


def test_markdown_shows_hostile_texts_on_one_line_and_in_their_cell(tmp_path):
    text = outputs(hostile(tmp_path, "run"))["report.md"].decode()
    assert "<script" not in text
    assert "<img" not in text
    assert "<!--" not in text
    assert not re.search(r"(?<!\\)\]\(http", text)
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    for rows in markdown_tables(text):
        assert len({len(cells) for cells in rows}) == 1
        assert set(rows[1]) == {"---"}


def test_the_markdown_twin_says_the_same_and_links_to_the_figures(full):
    run, files, html = full
    text = files["report.md"].decode()
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert links == [f"figures/{name}.png" for name in figures.available(run)]
    assert set(links) <= set(files)
    plain = re.sub(r"\\(.)", r"\1", text).replace("&lt;", "<")
    for name in VARIANTS:
        assert f"### {name}: {run.verdicts[name]}" in plain
    here = {tuple(cells[-4:]) for rows in markdown_tables(plain) for cells in rows}
    for rows in account_tables(html):
        for cells in rows[1:]:
            assert any(row[1] == cells[1] and row[0] == cells[0] for row in here)
    assert run.summary["variants"]["half"]["reason"][1:] in plain


def test_the_report_names_command_settings_and_digest_and_nothing_that_differs_between_reruns(full):
    run, files, html = full
    assert "fracture study study.yaml --out" in html.text
    settings = dict(html.tables["after Settings"][1:])
    assert settings["margin"] == "0.1"
    assert settings["variants"] == "sham=models/sham, half=models/half, gone=models/gone"
    digest = re.search("digest: (.*)", (run.directory / "study.yaml").read_text()).group(1)
    for path in ("report.html", "report.md"):
        text = files[path].decode()
        assert digest in text
        assert "run.json" in text
        assert "7.77" not in text
        assert "0.0.1" not in text
        assert str(run.directory) not in text


def test_the_same_run_gives_the_same_bytes_elsewhere_later_and_in_another_process(full, tmp_path):
    run, files, _ = full
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in run.directory.rglob("*"):
        if path.is_file():
            (moved / path.relative_to(run.directory)).parent.mkdir(exist_ok=True)
            (moved / path.relative_to(run.directory)).write_bytes(path.read_bytes())
    (moved / "run.json").write_text('{"inputs": {"torch": "9"}, "stages": {}}')
    summary = copy.deepcopy(run.summary)
    summary["study"]["out"] = "another/place"
    (moved / "summary.json").write_text(json.dumps(summary))
    script = (
        "import hashlib, sys; from analysis.runs import Run; from fracture.report.page import outputs\n"
        "for path, data in outputs(Run.open(sys.argv[1])).items(): print(path, hashlib.sha256(data).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    found = subprocess.run(
        [sys.executable, "-c", script, str(moved)], capture_output=True, text=True, check=True, env=environment
    )
    expected = [f"{path} {hashlib.sha256(data).hexdigest()}" for path, data in files.items()]
    assert found.stdout.splitlines() == expected


def test_a_run_without_its_study_file_is_refused(tmp_path):
    run = made(tmp_path, measures=QUICK)
    (run.directory / "study.yaml").write_text("base: b\n")
    with pytest.raises(InputError, match="holds no digest"):
        outputs(run)
    (run.directory / "study.yaml").unlink()
    with pytest.raises(InputError, match=r"study\.yaml cannot be read"):
        outputs(run)


def test_a_large_run_shows_its_first_prompts_and_stays_small(tmp_path):
    words = "So the number of apples that are left is 12 - 5 = 7, and each of them costs 3 dollars. "
    texts = {place: {"question": words * 4, "steps": [words] * 8} for place in range(210)}
    variants = {"sham": 0.0, "a": 0.3, "b": 0.6, "c": 1.0}
    run = made(tmp_path, variants=variants, prompts=210, texts=texts)
    files = outputs(run)
    html = Html(files["report.html"].decode())
    assert len(files["report.html"]) < 5_000_000
    assert [prompt["id"] for prompt in html.traces["prompts"]] == [f"p{place}" for place in range(200)]
    assert "The first 200, in the order of the file, of 210 prompts" in html.text


def test_prompts_that_do_not_fit_are_left_out_of_the_viewer_and_counted(tmp_path):
    texts = {place: {"question": "q" * 400_000} for place in range(24)}
    html = page(made(tmp_path, texts=texts, measures=QUICK))
    shown_prompts = len(html.traces["prompts"])
    assert 1 < shown_prompts < 24
    assert f"The first {shown_prompts}, in the order of the file, of 24 prompts" in html.text
    assert len(html.scripts["application/json"]) < 2_600_000
