"""The table beside logit-difference decay: what its mean rests on, as the rows of the run have it."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.measures.logit_decay import PARTS
from tests.fracture.report_pages import QUICK, made, page

TABLE = "What the mean decay rests on"


def test_steps_undefined_median_and_place_stand_beside_the_mean(tmp_path):
    run = made(tmp_path, prompts=24, steps=(4,), measures=(*QUICK, "logit_decay"))
    html = page(run)
    rows = run.table("logit_decay").query("condition == 'mistake' and author == 'gold'")

    def cell(name: str, column: str) -> str:
        return html.cell(TABLE, "On the gold chains", name, column)

    for name in run.readers:
        mine = rows[rows["reader"] == name]
        assert cell(name, "steps") == str(len(mine)) == "96"
        assert cell(name, "undefined") == str(int(mine["nldd"].isna().sum()))
    means = rows[rows["reader"] == "half"].groupby("id")["nldd"].mean()
    shown = float(cell("half", "median decay (%)").split()[0])
    assert shown == pytest.approx(np.median(means), abs=0.005)
    # Made decays rise to the last of four steps, in the last fifth; each prompt's so clearly that it is so in any draw.
    assert (cell("half", "largest in"), cell("half", "again, of draws")) == ("80% to 100%", "100%")
    assert PARTS == 5
    assert [cell("gone", column) for column in ("undefined", "median decay (%)", "largest in", "again, of draws")] == [
        "96",
        *["—"] * 3,
    ]


def test_too_few_prompts_are_called_so(tmp_path):
    html = page(made(tmp_path, prompts=6, steps=(2,), measures=(*QUICK, "logit_decay")))
    assert "n too small" in html.cell(TABLE, "Each on its own chains", "half", "median decay (%)")
    assert html.cell(TABLE, "Each on its own chains", "half", "largest in") == "—"
