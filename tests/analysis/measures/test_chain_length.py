"""Chain length: counts by hand, slopes by another library, planted shapes and a rate of false findings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.measures.chain_length import MEASURE, chain_length, summarise, two_lines
from analysis.prompts import Case
from tests.analysis.measures.oracles import SETTINGS, authored, opened, text_before
from tests.conftest import ARCHITECTURES


def table_of(steps, right):
    ids = [f"p{at}" for at in range(len(steps))]
    return pd.DataFrame(
        {"id": ids, "author": "sft", "n_steps": steps, "n_tokens": 10 * np.asarray(steps), "right": right}
    )


def drawn(curve, n, seed):
    """`n` prompts of 1 to 9 steps, right with the curve's probability."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, 10, size=n).astype(float)
    return steps, (rng.random(n) < curve(steps)).astype(float)


def up_and_down(steps):
    return 0.95 - 0.05 * (steps - 5) ** 2


def rising(steps):
    return 0.1 + 0.08 * steps


def saturating(steps):
    return 0.9 - 0.8 * np.exp(-steps)


def slope_by_matrices(x, y):
    """Slope and HC3 p from the textbook's matrices: (X'X)⁻¹ X' diag(e² / (1 − h)²) X (X'X)⁻¹."""
    design = np.column_stack([np.ones_like(x), x])
    inverse = np.linalg.inv(design.T @ design)
    beta = inverse @ design.T @ y
    hat = np.diag(design @ inverse @ design.T)
    scaled = ((y - design @ beta) / (1 - hat)) ** 2
    covariance = inverse @ design.T @ np.diag(scaled) @ design @ inverse
    t = beta[1] / np.sqrt(covariance[1, 1])
    return beta[1], 2 * stats.t.sf(abs(t), len(x) - 2)


WORDS = (
    authored("a", Case("a 7 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6")), written="12"),
    authored("b", Case("c", "8", ("c 3",)), written="9"),
    authored("c", Case("c 3", "8", ("c 3 + 5 = 8", "b 9", "so"), gaps=(" . ", " ; ", "")), written=None),
)
BPES = (
    authored("a", Case("Tom has 12?", "46", ("12 + 34 = 46", "So he has 46.")), written="46."),
    authored("b", Case("Ann has 3?", "21", ("7 * 3 = 21", "3 cakes"), gaps=("\n\n", "  ")), written="12"),
)


@pytest.mark.parametrize("kind", ["word", "bpe"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_tokens_and_right_answers_are_counted_as_by_hand(make_checkpoint, architecture, kind):
    session, prompts = opened(make_checkpoint(architecture, kind)), WORDS if kind == "word" else BPES
    table = chain_length(session, [replace(p, author="copy") for p in prompts], SETTINGS).table
    for prompt, row in zip(prompts, table.to_dict("records"), strict=True):
        form = session.reader.encoder.format
        text = text_before(session.reader, prompt.case)
        start = len(form.question.replace("{question}", prompt.case.question) + form.chain_start)
        end = len(text) - len(form.answer_start.rstrip())
        encoded = session.reader.encoder.tokenizer(text, return_offsets_mapping=True)
        assert row["n_tokens"] == sum(start < to <= end for _, to in encoded.offset_mapping)
        assert row["n_steps"] == len(prompt.steps)
    assert table["right"].tolist() == ([1, 0, 0] if kind == "word" else [1, 0])
    assert table["unanswered"].tolist() == ([0, 0, 1] if kind == "word" else [0, 0])


def test_only_own_chains_with_steps_are_counted(make_checkpoint):
    empty = replace(WORDS[0], author="copy", case=replace(WORDS[0].case, steps=()))
    measured = chain_length(opened(make_checkpoint()), (*WORDS, empty), SETTINGS)
    assert not len(measured.table)
    assert [item.reason for item in measured.excluded] == [
        *["not written by this model: only its own chains are looked at"] * 3,
        "its chain is empty",
    ]


def test_slopes_and_their_p_are_those_of_least_squares_with_hc3():
    x, y = drawn(up_and_down, 150, 3)
    found = two_lines(x, y)
    assert found.finding == "inverted U"
    assert 4 <= found.at <= 6
    for line, side in ((found.before, x <= found.at), (found.behind, x >= found.at)):
        slope, p = slope_by_matrices(x[side], y[side])
        assert line.slope == pytest.approx(slope)
        assert line.p == pytest.approx(p)
        assert line.n == side.sum()


def test_a_planted_inverted_u_is_found_in_nearly_all_samples():
    assert np.mean([two_lines(*drawn(up_and_down, 200, seed)).finding == "inverted U" for seed in range(100)]) > 0.95


@pytest.mark.parametrize("curve", [rising, saturating, lambda steps: np.full_like(steps, 0.5)])
def test_what_only_rises_or_stays_is_found_in_fewer_than_one_sample_of_twenty(curve):
    assert np.mean([two_lines(*drawn(curve, 200, seed)).finding == "inverted U" for seed in range(400)]) < 0.05


def test_a_parabola_through_a_saturating_curve_would_have_said_otherwise():
    """What the two lines are for: here the parabola opens downwards, with its vertex inside the data."""
    x, y = drawn(saturating, 2000, 0)
    square, linear, _ = np.polyfit(x, y, 2)
    assert square < 0
    assert 1 < -linear / (2 * square) < 9
    assert two_lines(x, y).finding == "not shown"


def test_a_u_the_right_way_up_is_no_inverted_one():
    x, y = drawn(lambda steps: 1 - up_and_down(steps), 400, 0)
    assert two_lines(x, y).finding == "not shown"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_answers_that_are_all_alike_show_nothing(value):
    x, _ = drawn(rising, 100, 0)
    assert two_lines(x, np.full_like(x, value)).finding == "not shown"


def test_chains_of_one_or_two_lengths_have_nowhere_to_break():
    for lengths in ((3.0,), (3.0, 4.0)):
        x = np.resize(lengths, 100)
        assert two_lines(x, (np.arange(100) % 3 == 0).astype(float)).at is None


def test_below_twenty_prompts_there_is_no_number():
    steps, right = drawn(up_and_down, 19, 0)
    assert summarise(table_of(steps, right)) == {"bins": [], "shape": {"finding": "fewer than 20 prompts"}}


def test_bins_have_twenty_prompts_each_and_together_all_with_exact_intervals():
    steps = np.repeat([1.0, 2.0, 3.0, 5.0, 9.0], [25, 8, 7, 30, 3])
    right = (np.arange(len(steps)) % 3 > 0).astype(float)
    bins = summarise(table_of(steps, right))["bins"]
    assert [(item["from"], item["to"]) for item in bins] == [(1, 1), (2, 9)]
    for item in bins:
        inside = right[(steps >= item["from"]) & (steps <= item["to"])]
        limits = stats.binomtest(int(inside.sum()), len(inside)).proportion_ci(0.95, "exact")
        assert (item["right"]["low"], item["right"]["high"]) == pytest.approx((limits.low, limits.high))
        assert item["right"]["n"] == len(inside) >= 20
    assert bins[0]["mean_tokens"] == 10


def test_it_is_no_evidence():
    assert MEASURE.descriptive
    assert all(quantity.detached == 0 for quantity in MEASURE.quantities)
