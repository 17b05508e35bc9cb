"""A study of prompts that ask more: unanswerable ones are measured where they can be, and nowhere else."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import organisms
from analysis.runs import Run
from fracture.config import StudyConfig
from fracture.explain import explain
from fracture.study import run_study
from tests.fracture.report_pages import Html, account_tables, adds_up

COSTS = ("abstention", "format_adherence", "rule_shift", "chain_length", "thought_switches", "partial_input")
OTHERS = ("early_answering", "chain_effect", "token_kl", "drift")
N = 24


def records():
    """Shipped prompts with a changed rule and a cue; three that are unanswerable, one without an answer."""
    made = []
    for line in organisms.prompts("agreeing").read_text().splitlines()[:N]:
        record = json.loads(line)
        hint, _, _ = record["question"].partition(" ; ")
        partner = record["counterfactual"]
        shifted = {**partner, "question": f"{hint} ; {partner['question'].partition(' ; ')[2]}"}
        partial = {"cue": f"{hint} ; a 0 b 0 c 0 ; i a + 0 ; ask {record['meta']['asked']}"}
        made.append(record | {"shifted": shifted, "partial": partial, "constraints": ["max_steps:9"]})
    for at in (3, 9, 15):
        bare = {name: made[at][name] for name in ("id", "question")}
        made[at] = bare | {"answerable": False, "abstain": [made[at]["answer"]]}
    made[9] = made[9] | {"answer": "none"}
    return made


def config_of(tmp_path, lines, measures, **settings):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    variants = {"dose_1": str(organisms.checkpoint("dose_1"))}
    out = str(tmp_path / "run")
    return StudyConfig(str(organisms.checkpoint("base")), variants, str(prompts), out, measures=measures, **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[StudyConfig, Run]:
    config = config_of(tmp_path_factory.mktemp("costs"), records(), (*COSTS, *OTHERS))
    return config, run_study(config)


def test_unanswerable_prompts_are_in_the_measures_that_can_use_them_and_in_no_other(made):
    _, run = made
    unanswerable = {record["id"] for record in records() if record.get("answerable") is False}
    assert len(unanswerable) == 3
    for name in run.measures:
        ids = set(run.table(name).get("id", pd.Series(dtype=str)))
        assert ids & unanswerable == (unanswerable if name in ("abstention", "format_adherence") else set()), name
    lost = run.excluded[run.excluded["id"].isin(unanswerable)]
    assert set(lost["reason"]) == {"marked as unanswerable: there is no answer to measure"}
    assert set(lost["author"]) == {"gold", "base", "dose_1"}


def test_accuracy_counts_no_unanswerable_prompt_as_wrong(made):
    _, run = made
    right = run.summary["measures"]["accuracy_and_calibration"]["readers"]["base"]["base"]["written_right"]
    assert (right["estimate"], right["n"]) == (1, N - 3)


def test_planted_costs_are_found(made):
    _, run = made
    found = {name: run.summary["measures"][name]["readers"] for name in COSTS}
    # Their own right answers are what two of the three are said to abstain by; the third also by its given one.
    for name in ("base", "dose_1"):
        own = found["abstention"][name][name]
        assert (own["unanswerable"]["estimate"], own["unanswerable"]["n"]) == (1, 3)
        assert (own["answerable"]["estimate"], own["answerable"]["n"]) == (0, N - 3)
        kept = found["format_adherence"][name][name]
        assert (kept["passed"]["estimate"], kept["passed"]["n"]) == (1, N)
        assert kept["constraints"]["n"] == N - 3
        assert found["thought_switches"][name][name]["switches"]["estimate"] == 0
        steps = [len(record["steps"]) for record in records() if "steps" in record]
        assert found["chain_length"][name][name]["n_steps"]["estimate"] == pytest.approx(sum(steps) / len(steps))
    assert found["rule_shift"]["base"]["gold"]["old_answer"]["estimate"] == 0
    assert found["rule_shift"]["dose_1"]["gold"]["old_answer"]["estimate"] > 0.9
    assert found["partial_input"]["dose_1"]["gold"]["right_cue"]["estimate"] > 0.9
    assert found["partial_input"]["base"]["gold"]["right_cue"]["estimate"] < 0.5


def test_every_prompt_is_accounted_for(made):
    _, run = made
    html = Html((run.directory / "report.html").read_text(encoding="utf-8"))
    assert "not accounted for" not in html.text
    for rows in account_tables(html):
        assert all(adds_up(cells) for cells in rows[1:])
    assert html.tables["Prompts and chains"][1][1:] == [
        str(N),
        str(N - 3),
        "3 × marked as unanswerable: there is no answer to measure",
    ]


def test_the_plan_counts_the_prompts_that_have_a_field(made):
    config, _ = made
    counts = {line.split()[0]: line.split()[2] for line in explain(config).splitlines() if line.startswith(COSTS)}
    assert counts == {
        **dict.fromkeys(("rule_shift", "chain_length", "thought_switches", "partial_input"), str(N - 3)),
        **dict.fromkeys(("abstention", "format_adherence"), str(N)),
    }


def test_texts_that_a_limit_cuts_fail_the_format_and_are_no_abstention(tmp_path):
    run = run_study(config_of(tmp_path, records(), COSTS, max_chain_tokens=8))
    for name in ("base", "dose_1"):
        kept = run.summary["measures"]["format_adherence"]["readers"][name][name]
        assert (kept["stopped"]["estimate"], kept["stopped"]["n"]) == (0, N)
        assert kept["passed"]["estimate"] == 0
    assert not len(run.table("abstention"))
    assert not len(run.table("chain_length"))


def test_a_study_that_asks_none_of_it_says_why_in_a_line(tmp_path):
    lines = [json.loads(line) for line in organisms.prompts("agreeing").read_text().splitlines()[:6]]
    run = run_study(config_of(tmp_path, lines, COSTS))
    for name in ("rule_shift", "partial_input"):
        assert all(not found for found in run.summary["measures"][name]["readers"].values())
        assert not run.summary["measures"][name]["changes"]["dose_1"]
    text = (run.directory / "report.md").read_text(encoding="utf-8")
    for title, why in (
        ("changed rule", "no prompt has a shifted question"),
        ("part of the question get", "no prompt names"),
    ):
        section = text.partition("## Tables")[2].partition(title)[2].partition("\n#")[0]
        assert why in section
        assert "base" not in section
