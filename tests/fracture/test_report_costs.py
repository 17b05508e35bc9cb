"""The report's tables of costs say what the summary says, and a line where no prompt asked for one."""

from __future__ import annotations

import pandas as pd
import pytest
from scipy import stats

from tests.fracture.report_pages import QUICK, VARIANTS, Html, made, page

COSTS = ("abstention", "format_adherence", "rule_shift", "chain_length", "thought_switches", "partial_input")
DROP = "Accuracy on the question and under the changed rule, paired by prompt"
PARTS = "A part of the question in the question's place, no chain"
LENGTHS = "Right answers by length of the own chain"
SHAPES = "Is there a best length?"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Html:
    return page(made(tmp_path_factory.mktemp("costs"), prompts=60, steps=(2, 3), measures=(*QUICK, *COSTS)))


def rows_of(html: Html, table: str) -> list[list[str]]:
    """A table's rows behind its head, the headings of groups included."""
    return html.tables[table][1:]


def test_the_drop_is_paired_with_mcnemars_p(full):
    """Every fifth of 60 prompts gets its old answer, all else are right: 12 are lost and none gained."""
    rows = [cells for cells in rows_of(full, DROP) if cells[0] == "half"]
    assert len(rows) == 2
    assert stats.binomtest(12, 12).pvalue < 0.001
    for _, n, drop, p in rows:
        assert n == "60"
        assert drop.startswith("+0.20 [")
        assert p == "< 0.001"


def test_every_part_stands_beside_the_whole_question_and_guessing(full):
    rows = rows_of(full, PARTS)
    heads = [cells[0] for cells in rows if len(cells) == 1]
    assert heads == ["cue alone", "other alone"]
    cue = next(cells for cells in rows if cells[0] == "half")
    low = stats.binomtest(60, 60).proportion_ci(0.95, "exact").low
    high = stats.binomtest(0, 60).proportion_ci(0.95, "exact").high
    assert cue[1:4] == ["60", f"1.00 [{low:.2f}, 1.00]", f"0.00 [0.00, {high:.2f}]"]
    assert cue[4].startswith("0.30")
    assert cue[6] == "0.25"


def test_lengths_have_their_prompts_and_no_shape_that_is_not_there(full):
    rows = rows_of(full, LENGTHS)
    base = rows[rows.index(["base"]) + 1 :][:2]
    low = stats.binomtest(30, 30).proportion_ci(0.95, "exact").low
    assert [cells[:3] for cells in base] == [[n, "30", f"1.00 [{low:.2f}, 1.00]"] for n in ("2", "3")]
    shapes = {cells[0]: cells[1:] for cells in rows_of(full, SHAPES)}
    assert set(shapes) == {"base", *VARIANTS}
    assert all(cells == ["not shown", "—", "—", "—"] for cells in shapes.values())


def test_an_inverted_u_is_shown_with_its_lines(tmp_path):
    def edit(summary, tables):
        line = {"slope": 0.1, "p": 0.004, "n": 40}
        shape = {"finding": "inverted U", "at": 5.0, "before": line, "behind": line | {"slope": -0.2}}
        summary["measures"]["chain_length"]["readers"]["half"]["half"]["details"]["shape"] = shape

    html = page(made(tmp_path, edit, measures=(*QUICK, *COSTS)))
    shapes = {cells[0]: cells[1:] for cells in rows_of(html, SHAPES)}
    assert shapes["half"] == ["inverted U", "5", "0.10 p = 0.004", "−0.20 p = 0.004"]


def test_where_no_prompt_asks_for_it_a_line_says_so(tmp_path):
    def edit(summary, tables):
        for name in ("rule_shift", "partial_input"):
            readers = summary["measures"][name]["readers"]
            summary["measures"][name] |= {"readers": {key: {} for key in readers}, "changes": {}}
            tables[name] = pd.DataFrame(columns=tables[name].columns)

    html = page(made(tmp_path, edit, measures=(*QUICK, *COSTS)))
    for title, why in (
        ("Rule shift", "no prompt has a shifted question"),
        ("Partial input", "no prompt names partial"),
    ):
        ((_, said),) = rows_of(html, title)
        assert said.startswith(why)
    assert DROP not in html.tables
    assert PARTS not in html.tables


def test_below_twenty_prompts_no_length_has_a_number(tmp_path):
    html = page(made(tmp_path, prompts=12, measures=(*QUICK, *COSTS)))
    assert LENGTHS not in html.tables
    assert {cells[1] for cells in rows_of(html, SHAPES)} == {"fewer than 20 prompts"}
