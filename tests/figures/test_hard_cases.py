"""Runs that are hard to draw: nothing warns, no word leaves the page or covers another, legends keep off the data."""

from __future__ import annotations

import warnings

import pytest
from matplotlib.text import Text

import figures
from tests.figures import drawn

LONG = (
    "llama-3.1-8b_sft-math.ckpt0500",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZABCD",
    "qwen2.5-7b-instruct_rl-grpo.v1",
    "mistral-7b.v0.3_lora-r64-a128x",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "x.y-z_x.y-z_x.y-z_x.y-z_x.y-zz",
    "Dose_0.25-seed0.rep1-lr1e-4.00",
    "gemma-2-9b-it_cft-critique.v02",
)
CASES = {
    "eight long names": {"variants": LONG, "steps": (3, 5, 9), "layers": 12, "not_scorable": LONG[2:4]},
    "eighty layers": {"variants": LONG[:2], "layers": 80, "steps": (3,), "prompts": 4},
    "eighty layers of eight": {"variants": LONG, "layers": 80, "steps": (2,), "prompts": 2},
    "forty steps": {"steps": (40, 14, 30), "prompts": 6, "layers": 2},
    "one prompt": {"variants": ("a",), "prompts": 1, "steps": (1,), "layers": 1},
    "one long name": {"variants": LONG[:1], "prompts": 30},
    "a thousand prompts": {"prompts": 1319, "steps": (9,), "layers": 1, "measures": ("information_gain", "routes")},
    "no value at all": {"empty": True},
    "none scorable": {"not_scorable": ("base", "sham", "sft")},
    "few measures": {"measures": ("routes", "accuracy_and_calibration", "early_answering")},
}


@pytest.fixture(params=CASES)
def drawn_figures(request, make_run):
    run = make_run(**CASES[request.param])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {name: figures.draw(name, run) for name in figures.available(run)}
        for figure in found.values():
            figures.to_bytes(figure, "svg")
    assert found
    return found


def test_hard_runs_are_legible(drawn_figures):
    for name, figure in drawn_figures.items():
        assert drawn.outside(figure) == [], name
        assert drawn.overlapping(figure) == [], name
        assert min(size for _, size, _ in drawn.texts(figure)) >= 6.5, name
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert all(box.y0 >= axes.get_window_extent().y1 for axes in figure.axes), name
        for axes in figure.axes:
            if axes.get_label() == "<colorbar>":
                continue
            extent = axes.get_window_extent()
            assert min(extent.width, extent.height) / figure.dpi > 0.15, f"{name}: a panel has collapsed"


def test_an_overlap_and_a_word_beyond_the_edge_would_be_found(make_run):
    figure = figures.draw("routes", make_run())
    assert drawn.overlapping(figure) == drawn.outside(figure) == []
    figure.text(0.5, 0.5, "here")
    figure.add_artist(Text(0.51, 0.51, "there", transform=figure.transFigure))
    figure.text(0.99, 0.9, "beyond")
    assert {"here", "there"} in map(set, drawn.overlapping(figure))
    assert drawn.outside(figure) == ["beyond"]


# Checkpoints go by their steps.
@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name not in figures.OF_TRAJECTORIES])
def test_every_model_is_named_in_full(make_run, name):
    run = make_run(LONG)
    words = "".join(text for text, _, _ in drawn.texts(figures.draw(name, run))).replace("\n", "")
    assert all(variant in words for variant in LONG)
