"""The report accounts for every prompt, and its traces hold what the tables hold."""

from __future__ import annotations

import pytest

from analysis.runs import Run
from fracture.report.page import outputs
from tests.fracture.report_pages import QUICK, VARIANTS, Html, account_tables, adds_up, made, page
from tests.fracture.report_runs import ALL


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
        # All of which a made run has rows of every model.
        measures=tuple(name for name in ALL if name not in ("probes", "transfer")),
    )
    files = outputs(run)
    return run, files, Html(files["report.html"].decode())


def test_every_prompt_is_accounted_for(full):
    run, _, html = full
    tables = account_tables(html)
    assert len(tables) == 1 + len(run.measures)
    for rows in tables:
        assert len(rows) > 1
        assert all(adds_up(cells) for cells in rows[1:])
    assert "not accounted for" not in html.text
    chains = html.tables["Prompts and chains"]
    assert chains[1][1:] == ["40", "39", "1 × its chain is empty"]
    assert chains[2][1:] == ["39", "38 37 × given; 1 × another prompt", "1 × no counterfactual partner"]


def test_what_came_out_is_what_the_tables_hold(full):
    run, _, html = full
    rows = {cells[0]: cells for cells in html.tables["Prompts scored by routes"]}
    table = run.table("routes")
    for name in run.readers:
        whole = table[(table["reader"] == name) & (table["chain"] == "whole")]
        assert rows[f"{name}, by text"][2].split()[0] == str(len(whole))
        assert rows[f"{name}, inside"][2] == str(len(whole) - 2)
    assert rows["half, by text"][3] == "1 × no counterfactual partner; 1 × longer than the context of 8 tokens"
    n = run.summary["variants"]["half"]["bypass"]["text"]["difference"]["n"]
    assert rows["half, compared with base"][1:3] == [str(n), str(n)]
    mistakes = {cells[0]: cells for cells in html.tables["Prompts scored by mistakes"]}
    assert mistakes["half, gold chains"][1:] == ["39", "38", "1 × longer than the context of 8 tokens"]
    assert mistakes["half, own chains"][1:] == ["40", "39", "1 × longer than the context of 8 tokens"]
    accuracy = {cells[0]: cells for cells in html.tables["Prompts scored by accuracy and calibration"]}
    assert accuracy["gone, gold chains"][1:] == ["39", "38", "1 × longer than the context of 8 tokens"]


def test_a_prompt_that_is_lost_without_a_reason_shows(tmp_path):
    def edit(summary, tables):
        rows = tables["mistakes"]
        tables["mistakes"] = rows[~((rows["reader"] == "half") & (rows["id"] == "p4"))]

    html = page(made(tmp_path, edit, measures=(*QUICK, "mistakes")))
    rows = {cells[0]: cells for cells in html.tables["Prompts scored by mistakes"]}
    assert rows["half, gold chains"][3] == "1 × not accounted for: the run's tables do not add up"
    assert rows["sham, gold chains"][3] == "none"


def test_traces_hold_what_the_tables_hold(full):
    run, _, html = full
    table = run.table("mistakes")
    kept = table[(table["condition"] == "mistake") & (table["author"] == "gold")]
    traces = html.traces
    assert traces["models"] == ["base", *VARIANTS]
    assert [prompt["id"] for prompt in traces["prompts"]] == [f"p{n}" for n in range(40) if n != 5]
    for prompt in traces["prompts"]:
        for name, reader in zip(traces["models"], prompt["readers"], strict=True):
            rows = kept[(kept["reader"] == name) & (kept["id"] == prompt["id"])].set_index("step")["p_drop"]
            for step, effect in enumerate(reader["effects"], start=1):
                assert effect == (pytest.approx(rows[step], abs=0.0006) if step in rows else None)
    second, eighth = (next(p for p in traces["prompts"] if p["id"] == name)["readers"] for name in ("p1", "p8"))
    assert [effect is None for effect in second[0]["effects"]] == [True, False]
    assert eighth[2]["no_effects"] == "longer than the context of 8 tokens"
    assert traces["steps"]["gone"].startswith("not scorable")
    assert traces["steps"]["half"] is None


def test_routes_of_a_prompt_are_its_row_of_the_table(full):
    run, _, html = full
    row = run.table("routes").query("reader == 'half' and id == 'p4' and chain == 'whole'").iloc[0]
    reader = next(prompt for prompt in html.traces["prompts"] if prompt["id"] == "p4")["readers"][2]
    assert reader["text"] == [round(row[name], 3) for name in ("te", "nie", "nde")]
    gone = html.traces["prompts"][4]["readers"][3]
    assert (gone["text"], gone["inside"], gone["no_routes"]) == (None, None, "not scorable")


def test_without_mistakes_the_chains_are_plain_and_the_report_says_so(tmp_path):
    html = page(made(tmp_path, measures=QUICK))
    assert "Chains are not coloured: the measure “mistakes” is not in this run" in html.text
    assert "Every step is coloured" not in html.text
    assert all(reader["effects"] is None for prompt in html.traces["prompts"] for reader in prompt["readers"])


def test_without_a_partner_there_is_a_report_of_all_else(tmp_path):
    run = made(tmp_path, prompts=24, alone=range(24), measures=(*QUICK, "mistakes", "patch_map"))
    assert set(run.verdicts.values()) == {"not scorable"}
    html = page(run)
    assert "There is no prompt with a counterfactual partner to compare base and variant on." in html.text
    assert all(adds_up(cells) for rows in account_tables(html) for cells in rows[1:])
    assert html.cell("Quantities of mistakes", "On the gold chains", "half", "n") == "24"
    assert {reader["no_routes"] for p in html.traces["prompts"] for reader in p["readers"]} == {
        "no counterfactual partner"
    }


def test_chains_of_the_base_can_be_the_ones_that_all_read(tmp_path):
    html = page(made(tmp_path, author="base", measures=(*QUICK, "mistakes", "information_gain")))
    assert "all models read the base's chains" in html.text
    assert html.cell("Quantities of mistakes", "On the base's chains", "half", "n") == "24"
    assert all(adds_up(cells) for rows in account_tables(html) for cells in rows[1:])
    assert html.traces["prompts"][0]["readers"][0]["own"]["same"]
