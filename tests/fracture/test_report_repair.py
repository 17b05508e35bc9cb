"""The tables of cross-model patching: every condition at every layer, and what has no number says so."""

from __future__ import annotations

import pytest

from analysis.models import BASE
from fracture.report.evidence import apart_table
from fracture.report.repair import CONDITIONS, repair_tables
from fracture.verdict import NOT_SCORABLE
from tests.fracture.report_runs import Made, write_run

QUICK = ("routes", "accuracy_and_calibration", "repair")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = Made({"half": 0.5, "sham": 0.01, "dead": None}, noise=0.01, measures=QUICK)
    return write_run(tmp_path_factory.mktemp("repair") / "run", made)


def rows(table):
    return {(group.head, row.head): row.cells for group in table.groups for row in group.rows}


def test_every_layer_has_its_bypass_and_the_share_that_is_repaired(run):
    bypass, _ = repair_tables(run)
    assert list(bypass.columns) == ["no layer", "after layer 0", "after layer 1"]
    found = rows(bypass)
    assert {variant for variant, _ in found} == set(run.variants)
    assert found["half", CONDITIONS["unedited"]][0].main == "0.50"
    assert found["half", CONDITIONS["base_itself"]][0].main == "0.00"
    for cell in found["half", CONDITIONS["base"]][1:]:
        assert cell.main == "0.25"
        assert cell.change.replace("\N{NO-BREAK SPACE}", " ").startswith("repaired 0.50 [")
    for cell in found["half", CONDITIONS["random"]][1:]:
        assert cell.main == "0.50"
        assert cell.change.replace("\N{NO-BREAK SPACE}", " ").startswith("repaired 0.00")
    assert not found["half", CONDITIONS["reverse"]][1].change
    assert found["half", CONDITIONS["base"]][0].main == ""
    assert ("half", CONDITIONS["length"]) not in found


def test_a_variant_that_bypasses_no_more_than_the_base_has_nothing_to_repair(run):
    bypass, _ = repair_tables(run)
    assert not any(cell.change for (variant, _), cells in rows(bypass).items() for cell in cells if variant == "sham")


def test_a_model_that_hardly_reacts_has_no_bypass(run):
    bypass, _ = repair_tables(run)
    cells = [cell.main for (variant, _), cells in rows(bypass).items() for cell in cells if variant == "dead"]
    assert set(cells) == {NOT_SCORABLE, ""}


def test_what_edits_leave_stands_apart(run):
    _, rest = repair_tables(run)
    cells = rows(rest)["half", CONDITIONS["base"]]
    assert cells[1].main == "0.50"
    assert cells[1].change == "effect 1.80, change 0.40"
    assert rows(rest)["half", CONDITIONS["unedited"]][0].change == "effect 1.80"


def test_bypass_under_an_edit_is_described_by_itself_and_not_as_a_change_from_the_base(run):
    assert run.summary["measures"]["repair"]["readers"][BASE] == {}
    table = apart_table(run)
    (group,) = [group for group in table.groups if "base's states" in group.head]
    cells = {row.head: [cell.main for cell in row.cells] for row in group.rows}
    (edited,) = [values for head, values in cells.items() if head.startswith("bypass with the base's states in")]
    assert edited[0].startswith("0.25 [")
    assert edited[2] == NOT_SCORABLE
