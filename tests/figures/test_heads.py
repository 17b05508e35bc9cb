"""The heads: coloured is what was patched, grey what was not; the scatter and its bound are the summary's."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from figures.heads import ESTIMATES, PARTS, UNCONFIRMED, heads_figure
from tests.figures import drawn

COLUMNS = 4


def _panels(figure, run):
    rows = len(run.readers)
    return np.reshape(figure.axes[: COLUMNS * rows], (rows, COLUMNS))


def _image(axes):
    (found,) = axes.images
    return found.get_array()


def _details(run, name):
    return run.summary["measures"]["head_map"]["readers"][name]["gold"]["details"]


def _points(axes, colour):
    """`(exact, estimate)` of every point of a colour, dots and crosses apart."""
    return [
        [tuple(map(float, at)) for at in item.get_offsets()]
        for item in axes.collections
        if to_hex(item.get_facecolor()[0] if len(item.get_facecolor()) else item.get_edgecolor()[0]) == colour.lower()
    ]


def test_each_patched_cell_has_its_share_at_its_layer_and_head_and_all_others_are_grey(make_run):
    run = make_run(layers=4)
    panels = _panels(heads_figure(run), run)
    for name, row in zip(run.readers, panels, strict=True):
        for axes, part in zip(row, PARTS, strict=False):
            image = _image(axes)
            assert image.shape == (4, 4)
            cells = {
                (cell["layer"], cell["head"]): cell["share"]["estimate"]
                for cell in _details(run, name)["cells"]
                if cell["part"] == part
            }
            assert cells
            for at in np.ndindex(4, 4):
                if at in cells:
                    assert image[at] == pytest.approx(cells[at])
                else:
                    assert np.ma.getmaskarray(image)[at]
                    assert to_hex(axes.images[0].cmap(image)[at]) == UNCONFIRMED.lower()
            low, high = axes.get_ylim()
            assert low < high, "layers go upward"


def test_a_cell_that_was_patched_and_does_nothing_is_not_drawn_as_one_that_was_not(make_run):
    def edit(summary, tables):
        cells = summary["measures"]["head_map"]["readers"]["sham"]["gold"]["details"]["cells"]
        next(cell for cell in cells if cell["part"] == "marker")["share"]["estimate"] = 0.0

    run = make_run(layers=3, edit=edit)
    (image,) = _panels(heads_figure(run), run)[1, 0].images
    colours = {to_hex(colour) for colour in image.cmap(image.norm(image.get_array())).reshape(-1, 4)}
    nothing = to_hex(image.cmap(0.5))
    assert {nothing, UNCONFIRMED.lower()} <= colours
    # Far enough apart to be told: luminances on a scale of 1.
    assert np.mean([int(nothing[at : at + 2], 16) for at in (1, 3, 5)]) / 255 - 0xD9 / 255 > 0.08


def test_the_scatter_holds_both_estimates_against_exact_shares_of_top_and_sample(make_run):
    def edit(summary, tables):
        details = summary["measures"]["head_map"]["readers"]["sham"]["gold"]["details"]
        details["cells"].append(details["cells"][0] | {"part": "step", "step": 2, "plain": 7.0})

    run = make_run(layers=4, edit=edit)
    panels = _panels(heads_figure(run), run)
    for name, axes in zip(run.readers, panels[:, 3], strict=True):
        for which, colour in ESTIMATES.items():
            expected = [
                [(c["share"]["estimate"], c[which]) for c in _details(run, name)["cells"] if c["chosen"] == chosen]
                for chosen in ("top", "sample")
            ]
            top, sample = _points(axes, colour)
            np.testing.assert_allclose(top, expected[0])
            np.testing.assert_allclose(sample, expected[1])
        low, high = axes.get_xlim()
        assert axes.get_ylim() == (low, high)
        (line,) = axes.lines
        np.testing.assert_allclose(line.get_xdata(), line.get_ydata())
    assert any(at[1] == 7.0 for at in _points(panels[1, 3], ESTIMATES["plain"])[0]), "steps are in the scatter"


@pytest.mark.parametrize(
    ("screen", "words"),
    [
        (
            {"cells": 100, "confirmed": 24, "sampled": 24, "missed": 0, "bound": 0.11734},
            "0 of 24 sampled missed;\nof 76 ranked low, ≤ 11.8%",
        ),
        # A bound is never printed as less than it is.
        (
            {"cells": 8192, "confirmed": 24, "sampled": 409, "missed": 2, "bound": 0.01532},
            "2 of 409 sampled missed;\nof 8168 ranked low, ≤ 1.6%",
        ),
        ({"cells": 12, "confirmed": 12, "sampled": 0, "missed": 0, "bound": 0.0}, "every cell patched: 12"),
    ],
)
def test_the_bound_on_what_was_missed_is_printed(make_run, screen, words):
    def edit(summary, tables):
        summary["measures"]["head_map"]["readers"]["base"]["gold"]["details"]["screen"] |= screen

    run = make_run(edit=edit)
    assert _panels(heads_figure(run), run)[0, 3].get_title(loc="right") == words


@pytest.mark.parametrize(
    ("largest", "scale", "clipped"), [(0.07, 0.1, False), (0.2, 0.25, False), (0.8, 1, False), (1.6, 1, True)]
)
def test_one_scale_holds_all_shares_of_all_models_and_says_where_it_is_clipped(make_run, largest, scale, clipped):
    def edit(summary, tables):
        for reader in summary["measures"]["head_map"]["readers"].values():
            for at, cell in enumerate(reader["gold"]["details"]["cells"]):
                cell["share"]["estimate"] = (-1) ** at * largest / (1 + at)

    run = make_run(edit=edit)
    figure = heads_figure(run)
    images = [axes.images[0] for axes in _panels(figure, run)[:, :3].flat]
    assert {(image.norm.vmin, image.norm.vmax) for image in images} == {(-scale, scale)}
    bar = next(axes for axes in figure.axes if axes.get_label() == "<colorbar>")
    assert ("clipped at ±1" in bar.get_ylabel()) == clipped
    assert bar._colorbar.extend == ("max" if clipped else "neither")


def test_a_model_without_prompts_and_one_that_is_not_scorable_say_so(make_run):
    def edit(summary, tables):
        summary["measures"]["head_map"]["readers"]["sft"] = {}

    run = make_run(not_scorable=("sham",), edit=edit)
    panels = _panels(heads_figure(run), run)
    assert [[text.get_text() for axes in row[:3] for text in axes.texts] for row in panels] == [
        [],
        ["not scorable"] * 3,
        ["no prompt"] * 3,
    ]
    assert [row[3].axison for row in panels] == [True, False, False]
    assert panels[0, 3].get_xlabel() == "exact share"


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"layers": 1},
        {"layers": 32},
        {"layers": 80, "variants": ("sft",)},
        {"layers": 32, "variants": tuple("abcdef")},
        {"variants": ("a_rather_long_name_of_a_variant", "b"), "not_scorable": ("b",)},
        {"empty": True},
        {"prompts": 1},
    ],
)
def test_nothing_leaves_the_page_or_lies_on_another(make_run, made):
    figure = heads_figure(make_run(**made))
    assert figure.get_figheight() <= 9.5
    assert drawn.outside(figure) == []
    assert drawn.overlapping(figure) == []
