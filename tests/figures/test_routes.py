"""The routes figure says what the summary says, and nothing of a model that is not scorable."""

from __future__ import annotations

import pytest

from figures.routes import routes_figure
from figures.style import BLUE, GREEN, ORANGE, PURPLE
from tests.figures import drawn
from tests.figures.conftest import around

SHARES = {
    "base": (0.01, 0.02, 0.03, -0.01),
    "a_rather-long_name": (0.5, 0.4, 0.35, 0.2),
    "odd": (-0.4, 1.3, 1.7, -0.6),
    "unaligned": (0.3, None, None, None),
    "gone": (7.0, -9.0, 8.0, -8.0),
}
VERDICTS = {"a_rather-long_name": "detached", "unaligned": "unchanged, but the base already bypasses"}


@pytest.fixture
def run(make_run):
    def edit(summary, tables):
        for name, (text, inside, direct, covert) in SHARES.items():
            reader = summary["base"] if name == "base" else summary["variants"][name]
            reader["own"]["whole"] = {
                "text": {"bypass": around(text, 50)},
                "inside": {
                    "bypass": around(inside, 50),
                    "direct": around(direct, 50),
                    # A share that was not taken at all, as against one without a value.
                    "covert": None if covert is None else around(covert, 50),
                },
            }
            if name in VERDICTS:
                reader["verdict"] = VERDICTS[name]

    return make_run(list(SHARES)[1:], measures=("routes",), not_scorable=("gone",), edit=edit)


def test_every_share_is_where_the_summary_says_with_its_interval(run):
    panels = routes_figure(run).axes
    for axes, colours, columns in ((panels[0], (BLUE, ORANGE), (0, 1)), (panels[1], (GREEN, PURPLE), (2, 3))):
        for colour, column in zip(colours, columns, strict=True):
            expected = {
                row: shares[column]
                for row, (name, shares) in enumerate(SHARES.items())
                if name != "gone" and shares[column] is not None
            }
            found = drawn.points(axes, colour)
            assert {round(y): x for x, y in found} == expected
            assert all(abs(y - round(y)) < 0.25 for _, y in found), "within the row"
        widths = [high - low for low, high, _ in drawn.spans(axes)]
        assert widths == pytest.approx([0.1] * len(drawn.points(axes)))


def test_axes_hold_every_interval_and_none_of_a_model_that_is_not_scorable(run):
    for axes, (low, high) in zip(routes_figure(run).axes, ((-0.45, 1.35), (-0.65, 1.75)), strict=True):
        left, right = axes.get_xlim()
        assert left < low < high < right
        assert left > -2, "a model that is not scorable must not stretch the axis"
        assert right < 2


def test_rows_are_named_in_order_and_verdicts_stand_beside_them(run):
    first, second = routes_figure(run).axes
    labels = [label.get_text().replace("\n", "") for label in first.get_yticklabels()]
    assert labels == list(SHARES)
    assert {text.get_text(): text.get_position()[1] for text in first.texts} == {"not scorable": 4}
    assert {text.get_text(): text.get_position()[1] for text in second.texts} == {
        "detached": 1,
        "inconclusive": 2,
        "unchanged": 3,
        "not scorable": 4,
    }


def test_a_base_that_is_not_scorable_has_no_share_either(make_run):
    first, second = routes_figure(make_run([], measures=("routes",), not_scorable=("base",))).axes
    assert [text.get_text() for text in (*first.texts, *second.texts)] == ["not scorable"] * 2
    assert drawn.points(first) == drawn.points(second) == []


def test_too_few_prompts_are_hollow_and_the_legend_says_so(make_run):
    for prompts, hollow in ((19, True), (20, False)):
        figure = routes_figure(make_run(measures=("routes",), prompts=prompts))
        faces = {line.get_markerfacecolor() for line in figure.axes[0].lines if len(line.get_xdata()) == 1}
        assert (faces == {"white"}) == hollow
        assert ("fewer than 20 prompts" in [text.get_text() for text in figure.legends[0].get_texts()]) == hollow


def test_the_number_of_prompts_is_printed(make_run):
    figure = routes_figure(make_run(measures=("routes",), prompts=31))
    assert figure.get_supxlabel() == "share of the effect (n = 31)"
