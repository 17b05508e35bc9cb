"""The patch maps: cells are the summary's, differences those of sums over shared prompts, dots what is significant."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from figures.patch_maps import Grid, difference, patch_maps_figure
from tests.figures import drawn


def _panels(figure, run):
    rows = len(run.readers)
    return np.reshape(figure.axes[: 2 * rows], (rows, 2))


def _image(axes):
    (found,) = axes.images
    return np.ma.filled(found.get_array(), np.nan)


def _dots(axes):
    return {(int(y), int(x)) for item in axes.collections for x, y in item.get_offsets()}


def _columns(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def test_every_cell_is_the_summarys_and_dots_are_those_below_05(make_run):
    run = make_run(steps=(4, 5), layers=3)
    panels = _panels(patch_maps_figure(run), run)
    columns = [("question", 0), *(("step", n) for n in (1, 2, 3, 4, 5)), ("chain", 0), ("control", 0)]
    assert _columns(panels[-1, 0]) == ["question", "1", "2", "3", "4", "5", "chain", "control"]
    for name, axes in zip(run.readers, panels[:, 0], strict=True):
        cells = run.summary["measures"]["patch_map"]["readers"][name]["gold"]["details"]["cells"]
        image, dots = _image(axes), set()
        assert image.shape == (3, 8)
        for cell in cells:
            at = cell["layer"], columns.index((cell["part"], cell["step"]))
            assert image[at] == pytest.approx(np.clip(cell["share"]["estimate"], -1, 1))
            if cell["p"] < 0.05:
                dots.add(at)
        assert len(cells) == image.size
        assert dots, "the run must have some to find"
        assert _dots(axes) == dots
        low, high = axes.get_ylim()
        assert low < high, "layers go upward"


def test_a_difference_is_that_of_ratios_of_sums_over_shared_prompts(make_run):
    def edit(summary, tables):
        rows = tables["patch_map"]
        gone = (rows["reader"] == "sft") & rows["id"].isin(["p0", "p1"])
        gone |= (rows["reader"] == "base") & (rows["id"] == "p3")
        tables["patch_map"] = rows[~gone]

    run = make_run(steps=(2, 3), layers=2, edit=edit)
    image = _image(_panels(patch_maps_figure(run), run)[2, 1])
    shared = {f"p{at}" for at in range(24)} - {"p0", "p1", "p3"}
    columns = [("question", 0), ("step", 1), ("step", 2), ("step", 3), ("chain", 0), ("control", 0)]
    sums = {}
    for row in run.table("patch_map").to_dict("records"):
        if row["id"] in shared:
            key = row["reader"], row["layer"], row["part"], row["step"]
            effect, total = sums.get(key, (0.0, 0.0))
            sums[key] = effect + row["effect"], total + row["total"]
    for layer, (column, (part, step)) in itertools.product(range(2), enumerate(columns)):
        (above, below), (base_above, base_below) = (sums[name, layer, part, step] for name in ("sft", "base"))
        assert image[layer, column] == pytest.approx(above / below - base_above / base_below, abs=1e-12)


def _cells(effects, totals):
    """A table of one layer whose columns are parts, from arrays of prompts × cells."""
    rows = [
        (f"p{prompt}", 0, "step", step + 1, effects[prompt, step], totals[prompt])
        for prompt, step in np.ndindex(effects.shape)
        if not np.isnan(effects[prompt, step])
    ]
    return pd.DataFrame(rows, columns=["id", "layer", "part", "step", "effect", "total"])


def test_p_values_of_differences_are_those_of_all_sign_patterns():
    rng = np.random.default_rng(3)
    base, variant = rng.normal(0, 0.3, (8, 3)), rng.normal([1.5, 0, 0.1], 0.3, (8, 3))
    base[5, 2] = np.nan
    totals = rng.uniform(1, 2, (2, 8))
    grid = Grid([0], [("step", 1), ("step", 2), ("step", 3)])
    found = difference(_cells(base, totals[0]), _cells(variant, totals[1]), grid, seed=0)

    effects = np.full((8, 3), np.nan)
    for cell in range(3):
        there = ~np.isnan(base[:, cell])
        ours, theirs = variant[there, cell] / totals[1, there].mean(), base[there, cell] / totals[0, there].mean()
        effects[there, cell] = ours - theirs
        share = variant[there, cell].sum() / totals[1, there].sum() - base[there, cell].sum() / totals[0, there].sum()
        assert found.share[0, cell] == pytest.approx(share)
    sizes = np.sqrt(np.nansum(effects**2, axis=0))
    seen = np.abs(np.nansum(effects, axis=0)) / sizes
    maxima = [
        np.max(np.abs(np.nansum(np.array(signs)[:, None] * effects, axis=0)) / sizes)
        for signs in itertools.product((1, -1), repeat=8)
    ]
    expected = [np.mean([highest >= one - 1e-9 for highest in maxima]) for one in seen]
    np.testing.assert_allclose(found.p[0], expected)
    assert found.p[0, 0] < 0.05 < found.p[0, 1], "the planted cell, and not its neighbour"


def test_a_variant_equal_to_the_base_differs_nowhere_and_a_planted_cell_is_the_only_one_marked(make_run):
    def edit(summary, tables):
        rows = tables["patch_map"]
        base = rows[rows["reader"] == "base"]
        planted = base.assign(reader="sft")
        where = (planted["part"] == "question") & (planted["layer"] == 1)
        planted.loc[where, "effect"] += 0.8 * planted.loc[where, "total"]
        tables["patch_map"] = pd.concat([base, base.assign(reader="sham"), planted])

    run = make_run(edit=edit)
    panels = _panels(patch_maps_figure(run), run)
    assert np.abs(_image(panels[1, 1])).max() == 0
    assert _dots(panels[1, 1]) == set()
    image = _image(panels[2, 1])
    assert image[1, 0] == pytest.approx(0.8)
    assert np.abs(np.delete(image.ravel(), image.shape[1])).max() == pytest.approx(0, abs=1e-12)
    assert _dots(panels[2, 1]) == {(1, 0)}


def test_no_difference_is_marked_more_often_than_by_chance(make_run):
    """Equal models with noise of their own: about one map in twenty may hold a dot, and not one cell in twenty."""
    rng = np.random.default_rng(0)
    grid = Grid([0], [("step", n) for n in range(1, 11)])
    marked = [
        (
            difference(*(_cells(rng.normal(0, 1, (12, 10)), np.ones(12)) for _ in range(2)), grid, seed=run).p < 0.05
        ).any()
        for run in range(200)
    ]
    # 1 in 20 of 200 is 10; 19 or more have a probability of .005.
    assert sum(marked) < 19


@pytest.mark.parametrize(
    ("steps", "prompts", "shown", "words"),
    [
        ((3,), 30, 3, "steps 1–3 of 3\n"),
        ((14,), 30, 12, "steps 1–12 of 14:\nthe first 12\n"),
        # 20 of 60 prompts have the third step, which is enough; 12 have more.
        ((2, 2, 2, 3, 7), 60, 3, "steps 1–3 of 7: those that 20 prompts or half have\n"),
        ((2, 3, 3, 40), 8, 3, "steps 1–3 of 40: those that 20 prompts or half have\n"),
        ((13, 30, 14), 9, 12, "steps 1–12 of 30: those that 20 prompts or half have,\nthe first 12 of them\n"),
    ],
)
def test_steps_that_are_not_shown_are_told(make_run, steps, prompts, shown, words):
    run = make_run(("sft",), steps=steps, prompts=prompts, layers=1)
    panels = _panels(patch_maps_figure(run), run)
    assert _columns(panels[-1, 0]) == ["question", *map(str, range(1, shown + 1)), "chain", "control"]
    (key,) = (text.get_text() for text in panels[0, 1].texts)
    assert words in key
    assert f"n = {prompts}\n" in key


def test_a_share_beyond_the_scale_is_clipped_and_the_bar_says_so(make_run):
    def edit(summary, tables):
        cells = summary["measures"]["patch_map"]["readers"]["sham"]["gold"]["details"]["cells"]
        for cell, share in zip(cells, (1.5, 1.004, -1.004), strict=False):
            cell["share"]["estimate"] = share

    for run, extend, clipped in ((make_run(edit=edit), "max", True), (make_run(), "neither", False)):
        figure = patch_maps_figure(run)
        image = _panels(figure, run)[1, 0].images[0]
        bar = figure.axes[-1]._colorbar
        assert bar.extend == extend
        assert ("clipped at ±1" in bar.ax.get_ylabel()) == clipped
        assert (bar.vmin, bar.vmax, image.norm.vmin, image.norm.vmax) == (-1, 1, -1, 1)
        if clipped:
            values = _image(_panels(figure, run)[1, 0])
            over, end = image.cmap.get_over(), image.cmap(1.0)
            assert not np.allclose(over, end, atol=0.1)
            assert sorted(values[np.abs(values) >= 1]) == [-1, 1, 1.5], "what rounds to 1 is not clipped"


def test_a_model_that_is_not_scorable_has_no_map_and_no_difference(make_run):
    run = make_run(not_scorable=("sham",))
    panels = _panels(patch_maps_figure(run), run)
    assert [len(axes.images) for axes in panels.flat] == [1, 0, 0, 0, 1, 1]
    assert [text.get_text() for axes in panels[1] for text in axes.texts] == ["not scorable"] * 2
    run = make_run(not_scorable=("base",))
    panels = _panels(patch_maps_figure(run), run)
    assert [len(axes.images) for axes in panels.flat] == [0, 0, 1, 0, 1, 0]


def test_a_step_that_one_model_never_has_is_left_grey_and_not_invented(make_run):
    def edit(summary, tables):
        rows = tables["patch_map"]
        tables["patch_map"] = rows[(rows["reader"] != "sft") | (rows["step"] < 3)]
        found = summary["measures"]["patch_map"]["readers"]["sft"]["gold"]["details"]
        found["cells"] = [cell for cell in found["cells"] if cell["step"] < 3]

    run = make_run(steps=(3,), edit=edit)
    panels = _panels(patch_maps_figure(run), run)
    for axes in panels[2]:
        assert np.isnan(_image(axes)).all(axis=0).tolist() == [False, False, False, True, False, False]
    assert not np.isnan(_image(panels[1, 1])).any()


def test_dots_stay_within_their_cells_at_eighty_layers(make_run):
    run = make_run(("sft",), prompts=3, layers=80, steps=(2,))
    figure = patch_maps_figure(run)
    axes = _panels(figure, run)[0, 0]
    drawn.texts(figure)
    cell = axes.get_window_extent().height / 80 / figure.dpi * 72
    (dots,) = axes.collections
    assert np.sqrt(dots.get_sizes()[0]) < cell
