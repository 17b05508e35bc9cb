"""The early answering figure: what lies above its lines are the areas of the summary, taken prompt by prompt."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from figures.early_answering import early_answering_figure
from figures.style import looks
from tests.figures import drawn


def test_the_areas_are_those_of_the_summary(make_run):
    """Every cut of 1, 2, 4 and 5 steps is a point of the grid, so that the trapezoids agree exactly."""
    run = make_run(steps=(1, 2, 4, 5))
    same, drop = early_answering_figure(run).axes
    for name, look in looks(run.readers).items():
        found = run.summary["measures"]["early_answering"]["readers"][name]["gold"]
        x, y = drawn.curve(same, look.colour)
        assert (x[0], x[-1]) == (0, 1)
        assert np.trapezoid(1 - y, x) == pytest.approx(found["aoc"]["estimate"], abs=1e-12)
        assert y[-1] == 1
        x, y = drawn.curve(drop, look.colour)
        assert np.trapezoid(y, x) == pytest.approx(found["drop"]["estimate"], abs=1e-12)
        assert y[-1] == 0


def test_bands_are_t_intervals_over_prompts(make_run):
    """At no chain and at its half, which all of these prompts have as cuts."""
    run = make_run(steps=(2, 4))
    axes = early_answering_figure(run).axes[1]
    table = run.table("early_answering")
    for name, look in looks(run.readers).items():
        rows = table[table["reader"] == name]
        x, y = drawn.curve(axes, look.colour)
        at, low, high = drawn.band(axes, look.colour)
        for share in (0.0, 0.5):
            values = rows.loc[rows["cut"] == share * rows["n_steps"], "drop"].to_numpy()
            assert len(values) == 24
            ends = stats.t.interval(0.95, 23, loc=values.mean(), scale=stats.sem(values))
            assert y[np.isclose(x, share)] == pytest.approx(values.mean())
            where = np.isclose(at, share)
            np.testing.assert_allclose([low[where].min(), high[where].max()], ends)


def test_between_cuts_a_prompts_curve_is_straight(make_run):
    run = make_run(prompts=1, steps=(3,))
    x, y = drawn.curve(early_answering_figure(run).axes[1], looks(run.readers)["sft"].colour)
    rows = run.table("early_answering").query("reader == 'sft'").sort_values("cut")
    none, one, two = rows["drop"].to_numpy()[:3]
    # .05 is .15 of the first third; .5 is half of the second; .85 is .55 of the last, which ends in 0.
    assert y[np.isclose(x, 0.05)] == pytest.approx(0.85 * none + 0.15 * one)
    assert y[np.isclose(x, 0.5)] == pytest.approx(0.5 * one + 0.5 * two)
    assert y[np.isclose(x, 0.85)] == pytest.approx(0.45 * two)


def test_other_chains_and_other_conditions_do_not_enter(make_run):
    def edit(summary, tables):
        rows = tables["early_answering"]
        others = [
            rows.assign(author="sft", same=0.0, drop=99.0),
            rows.assign(condition="no_chain", same=0.0, drop=99.0),
        ]
        tables["early_answering"] = type(rows)(np.concatenate([rows, *others]), columns=rows.columns).infer_objects()

    plain, crowded = (early_answering_figure(run).axes for run in (make_run(), make_run(edit=edit)))
    for one, other in zip(plain, crowded, strict=True):
        for look in looks(("base", "sham", "sft")).values():
            np.testing.assert_array_equal(drawn.curve(one, look.colour), drawn.curve(other, look.colour))


def test_a_model_that_is_not_scorable_has_no_line_and_says_so(make_run):
    run = make_run(not_scorable=("sham",))
    figure = early_answering_figure(run)
    for axes in figure.axes:
        assert {line.get_color() for line in axes.lines} == {
            looks(run.readers)[name].colour for name in ("base", "sft")
        }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "sham\n(not scorable)", "sft"]


def test_where_no_model_is_scorable_the_panels_say_so(make_run):
    figure = early_answering_figure(make_run(not_scorable=("base", "sham", "sft")))
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["not scorable"] * 2
    assert all(not axes.lines for axes in figure.axes)


def test_routes_without_a_partner_do_not_hide_early_answering(make_run):
    """No partner leaves the routes without an effect, but the chain can be cut all the same."""

    def edit(summary, tables):
        summary["base"]["scorable"] = False
        for variant in summary["variants"].values():
            variant |= {"scorable": False, "verdict": "not scorable"}

    figure = early_answering_figure(make_run(edit=edit))
    assert {line.get_color() for line in figure.axes[0].lines} == {
        look.colour for look in looks(("base", "sham", "sft")).values()
    }
