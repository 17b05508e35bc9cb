"""The figure of costs: what was measured has a panel, drawn at the summary's numbers, and nothing else has."""

from __future__ import annotations

import pytest

from figures.costs import COSTS, costs_figure
from tests.figures import drawn


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title().replace("\n", " ") == title]
    return axes


def without(*lost):
    """An edit that takes quantities from all models, as a study leaves them out that nobody could be asked."""

    def edit(summary, tables):
        for measure, quantity in lost:
            for authors in summary["measures"][measure]["readers"].values():
                for numbers in authors.values():
                    numbers.pop(quantity)

    return edit


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.quantity)
@pytest.mark.parametrize("author", ["gold", "base"])
def test_each_model_stands_at_its_own_number_with_its_interval(make_run, cost, author):
    run = make_run(author=author)
    axes = panel(costs_figure(run), cost.title.replace("\n", " "))
    points = sorted(drawn.points(axes), key=lambda point: point[1])
    spans = sorted(drawn.spans(axes), key=lambda span: span[2])
    readers = run.summary["measures"][cost.measure]["readers"]
    assert [y for _, y in points] == [0, 1, 2]
    for name, (x, _), (low, high, _) in zip(run.readers, points, spans, strict=True):
        expected = readers[name][name if cost.own else author][cost.quantity]
        assert x == pytest.approx(expected["estimate"])
        assert (low, high) == pytest.approx((expected["low"], expected["high"]))
    assert "n = 24" in axes.get_xlabel()


def test_what_no_model_has_has_no_panel(make_run):
    assert len(titles(costs_figure(make_run()))) == len(COSTS)
    lost = [("rule_shift", "right_shifted"), ("rule_shift", "old_answer"), ("abstention", "unanswerable")]
    lost += [("partial_input", f"right_{part}") for part in ("full", "cue", "options")]
    figure = costs_figure(make_run(edit=without(*lost)))
    gone = {cost.title for cost in COSTS if (cost.measure, cost.quantity) in lost}
    assert set(titles(figure)) == {cost.title for cost in COSTS} - gone
    assert "by guessing" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_what_one_model_has_not_is_said_in_its_row(make_run):
    def edit(summary, tables):
        del summary["measures"]["thought_switches"]["readers"]["sham"]["sham"]["underthinking"]

    axes = panel(costs_figure(make_run(edit=edit)), "underthinking of wrong answers")
    assert [(text.get_text(), text.get_position()[1]) for text in axes.texts] == [("no value", 1)]
    assert sorted(y for _, y in drawn.points(axes)) == [0, 2]


def test_guessing_stands_in_the_panels_without_a_chain_and_there_alone(make_run):
    run = make_run()
    figure = costs_figure(run)
    chance = run.summary["measures"]["partial_input"]["readers"]["base"]["gold"]["chance"]["estimate"]
    for cost in COSTS:
        dotted = [line for line in panel(figure, cost.title.replace("\n", " ")).lines if line.get_linestyle() == ":"]
        assert [line.get_xdata()[0] for line in dotted] == ([] if cost.own else [pytest.approx(chance)])


def test_counts_that_are_all_0_stand_at_the_left_of_an_axis_that_reaches_1(make_run):
    def edit(summary, tables):
        for authors in summary["measures"]["thought_switches"]["readers"].values():
            for numbers in authors.values():
                numbers["switches"] |= {"estimate": 0.0, "low": 0.0, "high": 0.0}

    low, high = panel(costs_figure(make_run(edit=edit)), "switches of thought").get_xlim()
    assert -0.1 < low <= 0
    assert high >= 1


def test_a_run_of_which_nothing_was_measured_says_so(make_run):
    figure = costs_figure(make_run(empty=True))
    assert titles(figure) == []
    assert "no value" in [words for words, _, _ in drawn.texts(figure)]


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"prompts": 3},
        {"prompts": 1},
        {"empty": True},
        {"not_scorable": ("sham",)},
        {"variants": ("a_rather_long_name_of_a_variant", "b")},
        {"variants": tuple(f"checkpoint-{at}" for at in range(8))},
        {"variants": ("sft",), "edit": without(*((c.measure, c.quantity) for c in COSTS[1:]))},
    ],
)
def test_nothing_leaves_the_page_or_lies_on_another(make_run, made):
    figure = costs_figure(make_run(**made))
    assert drawn.outside(figure) == []
    assert drawn.overlapping(figure) == []
    assert figure.get_figheight() <= 9.3
