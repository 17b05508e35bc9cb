"""The attention flow figure: curves through each prompt's steps, and bars that are the summary's estimates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from figures.attention_flow import FLOWS, attention_flow_figure
from figures.style import BLACK, looks
from tests.figures import drawn


def bars(axes, colour):
    """`(centre, height)` of every bar of a colour, from left to right."""
    from matplotlib.colors import to_rgba

    found = [bar for bar in axes.patches if bar.get_edgecolor() == to_rgba(colour)]
    return sorted((bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in found)


def test_at_the_ends_lines_are_the_means_of_first_and_last_steps_with_their_intervals(make_run):
    run = make_run(steps=(2, 3, 5))
    step, control, _ = attention_flow_figure(run).axes
    table = run.table("attention_knockout")
    rows = table[(table["part"] == "step")]
    for name, look in looks(run.readers).items():
        x, y = drawn.curve(step, look.colour)
        at, low, high = drawn.band(step, look.colour)
        mine = rows[rows["reader"] == name]
        for end, where in ((0, mine["step"] == 1), (-1, mine["step"] == mine["n_steps"])):
            values = mine.loc[where, "p_drop"]
            assert len(values) == 24
            assert y[end] == pytest.approx(values.mean())
            ends = stats.t.interval(0.95, 23, loc=values.mean(), scale=stats.sem(values))
            np.testing.assert_allclose([low[at == x[end]].min(), high[at == x[end]].max()], ends)
        assert (x[0], x[-1]) == (0, 1)
        # A control's curve ends with the last step's too.
        last = mine[(mine["step"] == mine["n_steps"]) & (mine["n_steps"] > 2)]
        assert drawn.curve(control, look.colour)[1][-1] == pytest.approx(last["p_drop_control"].mean())


def test_between_steps_a_prompts_curve_is_straight(make_run):
    run = make_run(prompts=1, steps=(3,))
    x, y = drawn.curve(attention_flow_figure(run).axes[0], looks(run.readers)["sft"].colour)
    table = run.table("attention_knockout").query("reader == 'sft' and part == 'step'").sort_values("step")
    first, second, third = table["p_drop"]
    assert y[np.isclose(x, 0.1)] == pytest.approx(0.8 * first + 0.2 * second)
    assert y[np.isclose(x, 0.5)] == pytest.approx(second)
    assert y[np.isclose(x, 0.9)] == pytest.approx(0.2 * second + 0.8 * third)


def test_other_chains_and_other_parts_do_not_enter(make_run):
    def edit(summary, tables):
        rows = tables["attention_knockout"]
        tables["attention_knockout"] = type(rows)(
            np.concatenate([rows, rows.assign(author="sft", p_drop=99.0, p_drop_control=99.0)]), columns=rows.columns
        ).infer_objects()

    plain, crowded = (attention_flow_figure(run).axes for run in (make_run(), make_run(edit=edit)))
    for one, other in zip(plain[:2], crowded[:2], strict=True):
        for look in looks(("base", "sham", "sft")).values():
            np.testing.assert_array_equal(drawn.curve(one, look.colour), drawn.curve(other, look.colour))


def test_bars_are_the_summarys_estimates_each_model_beside_the_other_and_intervals_its_own(make_run):
    run = make_run(("sham", "sft", "rl"))
    axes = attention_flow_figure(run).axes[2]
    found = run.summary["measures"]["masked_flow"]["readers"]
    for at, (name, look) in enumerate(looks(run.readers).items()):
        mine = bars(axes, look.colour)
        assert [height for _, height in mine] == [found[name]["gold"][flow]["estimate"] for flow in FLOWS]
        for group, (centre, _) in enumerate(mine):
            assert round(centre) == group
            estimate = found[name]["gold"][list(FLOWS)[group]]
            (line,) = [
                line
                for line in axes.lines
                if list(line.get_xdata()) == pytest.approx([centre] * 2) and line.get_ydata()[0] != line.get_ydata()[1]
            ]
            assert list(line.get_ydata()) == [estimate["low"], estimate["high"]]
        others = [bars(axes, look.colour)[0][0] for look in looks(run.readers).values()]
        assert sorted(others).index(mine[0][0]) == at
    assert any(set(line.get_ydata()) == {math.log(2)} for line in axes.lines)


def test_controls_have_grey_names_and_the_others_not(make_run):
    axes = attention_flow_figure(make_run()).axes[2]
    black = [label.get_text() for label in axes.get_xticklabels() if label.get_color() == BLACK]
    assert black == ["direct", "necessity", "among\noptions", "leakage"]


def test_too_few_prompts_are_hollow_and_a_model_without_a_value_is_named(make_run):
    def edit(summary, tables):
        summary["measures"]["masked_flow"]["readers"]["sham"] = {}
        tables["attention_knockout"] = tables["attention_knockout"].query("reader != 'sham'")

    figure = attention_flow_figure(make_run(prompts=5, edit=edit))
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "sham\n(no value)" in words
    assert "fewer than 20 prompts" in words
    assert all(bar.get_facecolor() == (1, 1, 1, 1) for bar in figure.axes[2].patches)


@pytest.mark.parametrize(
    ("more", "words"), [({"steps": (1,)}, "no chain of\ntwo steps"), ({"empty": True}, "no value")]
)
def test_where_there_is_no_curve_the_panels_say_why(make_run, more, words):
    step, control, _ = attention_flow_figure(make_run(**more)).axes
    assert [text.get_text() for axes in (step, control) for text in axes.texts] == [words] * 2
