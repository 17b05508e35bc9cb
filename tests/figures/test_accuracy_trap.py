"""The accuracy trap draws each model on its own chains, and the base reading them beside it."""

from __future__ import annotations

import pytest

from figures.accuracy_trap import accuracy_trap_figure
from figures.style import BLUE, ORANGE
from tests.figures import drawn

QUANTITIES = (
    ("accuracy_and_calibration", "written_right"),
    ("knowledge_index", "index"),
    ("information_gain", "total"),
)


def _rows(axes, colour):
    return {round(y): x for x, y in drawn.points(axes, colour)}


@pytest.mark.parametrize("author", ["gold", "base"])
def test_each_model_is_read_on_the_chains_that_it_wrote(make_run, author):
    run = make_run(("sham", "sft", "rl"), author=author)
    for axes, (measure, quantity) in zip(accuracy_trap_figure(run).axes, QUANTITIES, strict=True):
        readers = run.summary["measures"][measure]["readers"]
        own = {row: readers[name][name][quantity]["estimate"] for row, name in enumerate(run.readers)}
        assert _rows(axes, BLUE) == own
        by_base = {row: readers["base"][name]["total"]["estimate"] for row, name in enumerate(run.readers) if row > 0} \
            if measure == "information_gain" else {}  # fmt: skip
        assert _rows(axes, ORANGE) == by_base
        ends = {(low, high) for low, high, _ in drawn.spans(axes)}
        assert {(readers[n][n][quantity]["low"], readers[n][n][quantity]["high"]) for n in run.readers} <= ends
        assert len(drawn.spans(axes)) == len(own) + len(by_base)


def test_the_bases_value_goes_through_all_rows(make_run):
    run = make_run()
    for axes, (measure, quantity) in zip(accuracy_trap_figure(run).axes, QUANTITIES, strict=True):
        lines = [line.get_xdata()[0] for line in axes.lines if line.get_transform() == axes.get_xaxis_transform()]
        assert lines == [run.summary["measures"][measure]["readers"]["base"]["base"][quantity]["estimate"]]


def test_a_model_without_a_value_says_so_and_the_others_stay_in_their_rows(make_run):
    def edit(summary, tables):
        summary["measures"]["knowledge_index"]["readers"]["sham"]["sham"]["index"] = {"estimate": None, "n": 0}
        del summary["measures"]["information_gain"]["readers"]["sham"]["sham"]

    run = make_run(edit=edit)
    accuracy, index, gain = accuracy_trap_figure(run).axes
    assert [(text.get_text(), text.get_position()[1]) for text in index.texts] == [("no value", 1)]
    assert set(_rows(index, BLUE)) == set(_rows(gain, BLUE)) == {0, 2}
    assert set(_rows(gain, ORANGE)) == {1, 2}, "the base can still read what the model wrote"
    assert set(_rows(accuracy, BLUE)) == {0, 1, 2}
    assert not accuracy.texts


def test_a_model_that_is_not_scorable_is_marked_but_keeps_its_accuracy(make_run):
    figure = accuracy_trap_figure(make_run(not_scorable=("sft",)))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["base", "sham", "sft †"]
    assert set(_rows(figure.axes[0], BLUE)) == {0, 1, 2}
    assert "† routes not scorable" in [text.get_text() for text in figure.legends[0].get_texts()]
    plain = accuracy_trap_figure(make_run())
    assert "† routes not scorable" not in [text.get_text() for text in plain.legends[0].get_texts()]
