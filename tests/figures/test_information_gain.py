"""The information gain figure: the profile is the mean of the rows, the totals are the summary's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from figures.information_gain import CONDITIONS, information_gain_figure
from figures.style import looks
from tests.figures import drawn


def test_the_profile_is_the_mean_over_prompts_that_have_the_step(make_run):
    run = make_run(prompts=24, steps=(1, 2, 4, 5))
    axes = information_gain_figure(run).axes[0]
    for name, look in looks(run.readers).items():
        gains = {step: [] for step in range(1, 6)}
        for row in run.table("information_gain").to_dict("records"):
            if row["reader"] == name:
                gains[row["step"]].append(row["gain"])
        # 24, 18, 12, 12 and 6 prompts: half of 24 are enough, 6 are not.
        expected = [sum(gains[step]) / len(gains[step]) for step in (1, 2, 3, 4)]
        x, y = drawn.curve(axes, look.colour)
        assert x.tolist() == [1, 2, 3, 4]
        np.testing.assert_allclose(y, expected)
        at, low, high = drawn.band(axes, look.colour)
        assert at.tolist() == [1, 2, 3, 4]
        for step in (1, 2, 3, 4):
            values = gains[step]
            ends = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
            np.testing.assert_allclose((low[step - 1], high[step - 1]), ends)


def test_the_number_of_prompts_stands_below_each_step(make_run):
    axes = information_gain_figure(make_run(prompts=24, steps=(1, 2, 4, 5))).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1\n24", "2\n18", "3\n12", "4\n12"]


def test_numbers_of_prompts_that_differ_between_models_are_a_range(make_run):
    def edit(summary, tables):
        rows = tables["information_gain"]
        tables["information_gain"] = rows[~((rows["reader"] == "sham") & rows["id"].isin(["p0", "p1", "p2"]))]

    axes = information_gain_figure(make_run(prompts=30, steps=(2,), edit=edit)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1\n27–30", "2\n27–30"]


def test_other_chains_and_other_rows_do_not_enter_the_profile(make_run):
    def edit(summary, tables):
        rows = tables["information_gain"]
        others = [rows.assign(author="sft", gain=99.0), rows.assign(condition="masked", gain=-99.0)]
        tables["information_gain"] = type(rows)(np.concatenate([rows, *others]), columns=rows.columns).infer_objects()

    plain, crowded = (information_gain_figure(run).axes[0] for run in (make_run(), make_run(edit=edit)))
    for name, look in looks(("base", "sham", "sft")).items():
        np.testing.assert_array_equal(drawn.curve(plain, look.colour), drawn.curve(crowded, look.colour), err_msg=name)


@pytest.mark.parametrize("author", ["gold", "base"])
def test_totals_and_controls_are_the_summarys_on_the_headline_chain(make_run, author):
    run = make_run(author=author)
    axes = information_gain_figure(run).axes[1]
    readers = run.summary["measures"]["information_gain"]["readers"]
    for name, look in looks(run.readers).items():
        expected = {row: readers[name][author][quantity]["estimate"] for row, quantity in enumerate(CONDITIONS)}
        assert {round(y): x for x, y in drawn.points(axes, look.colour)} == expected
        assert max(abs(y - round(y)) for _, y in drawn.points(axes, look.colour)) < 0.4
    ends = {(low, high) for low, high, _ in drawn.spans(axes)}
    shown = (readers[name][author][quantity] for name in run.readers for quantity in CONDITIONS)
    assert ends == {(each["low"], each["high"]) for each in shown}
    assert len({y for _, y in drawn.points(axes)}) == len(CONDITIONS) * len(run.readers), "none covers another"


def test_a_control_that_no_prompt_has_says_so_in_its_lane(make_run):
    def edit(summary, tables):
        for authors in summary["measures"]["information_gain"]["readers"].values():
            del authors["gold"]["foreign"]

    axes = information_gain_figure(make_run(edit=edit)).axes[1]
    assert [(text.get_text(), text.get_position()[1]) for text in axes.texts] == [("no value", 2)]
    assert {round(y) for _, y in drawn.points(axes)} == {0, 1, 3, 4}


def test_a_profile_of_forty_steps_has_few_labels_but_all_steps(make_run):
    axes = information_gain_figure(make_run(steps=(40,))).axes[0]
    assert len(axes.get_xticklabels()) <= 6
    for look in looks(("base", "sham", "sft")).values():
        assert drawn.curve(axes, look.colour)[0].tolist() == list(range(1, 41))
