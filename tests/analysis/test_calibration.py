"""Calibration against loops over bins, scikit-learn, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from analysis import calibration, statistics
from analysis.errors import InputError


def answers(seed, n, too_sure=0.0):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(3, 1, n)
    return confidence, (rng.random(n) < confidence - too_sure).astype(float)


def ece_by_loops(confidence, right, bins):
    """Bin by bin, each prompt asked whether it lies in it, with fractions in words: lower < c ≤ upper."""
    total = 0.0
    for part in range(bins):
        inside = [i for i, c in enumerate(confidence) if part / bins < c <= (part + 1) / bins or (part == 0 and c == 0)]
        if inside:
            gap = sum(right[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 2, 7, 10, 15])
@pytest.mark.parametrize("decimals", [2, 12])
def test_ece_is_the_loop_over_bins(bins, decimals):
    confidence, right = answers(bins, 300, 0.1)
    # Two decimals put many prompts on the ends of bins.
    confidence = np.round(confidence, decimals)
    found = calibration.expected_calibration_error(confidence, right, bins)
    assert found == pytest.approx(ece_by_loops(confidence, right, bins), abs=1e-12)


@pytest.mark.parametrize("bins", [2, 5, 10, 20, 100])
def test_a_confidence_on_the_end_of_a_bin_belongs_to_the_bin_below(bins):
    """Each end of a bin, as its decimal is written, shares a bin with the middle of the one that it ends."""
    for part in range(1, bins + 1):
        end, middle = float(f"{part / bins:.2f}"), (part - 0.5) / bins
        table = calibration.reliability(np.array([middle, end]), np.array([1, 0]), bins)
        assert table["n"].tolist() == [2], (part, bins)
    table = calibration.reliability(np.array([0.0, 0.5 / bins, 1.0, 1 - 0.5 / bins]), np.ones(4), bins)
    assert table["n"].tolist() == [2, 2]


def test_bins_of_equal_mass_are_cut_from_the_sorted_prompts():
    confidence, right = answers(1, 60, 0.1)
    rank = np.argsort(confidence)
    parts = zip(np.split(confidence[rank], 15), np.split(right[rank], 15), strict=True)
    by_hand = sum(4 / 60 * abs(said.mean() - came.mean()) for said, came in parts)
    found = calibration.expected_calibration_error(confidence, right, 15, "mass")
    assert found == pytest.approx(by_hand, abs=1e-12)
    assert calibration.reliability(confidence, right, 15, "mass")["n"].tolist() == [4] * 15
    assert sorted(calibration.reliability(confidence[:58], right[:58], 15, "mass")["n"]) == [3] * 2 + [4] * 13


@pytest.mark.parametrize("scheme", ["width", "mass"])
def test_the_order_of_prompts_does_not_matter_where_confidences_are_equal(scheme):
    confidence, right = answers(2, 200, 0.1)
    confidence = np.round(confidence, 1)
    order = np.random.default_rng(0).permutation(200)
    found = calibration.expected_calibration_error(confidence, right, 12, scheme)
    again = calibration.expected_calibration_error(confidence[order], right[order], 12, scheme)
    assert found == pytest.approx(again, abs=1e-12)
    table = calibration.reliability(confidence, right, 12, scheme)
    assert table["n"].sum() == 200
    assert len(table) <= len(np.unique(confidence))


@pytest.mark.parametrize("scheme", ["width", "mass"])
def test_closed_forms_of_the_calibration_error(scheme):
    def ece(confidence, right):
        return calibration.expected_calibration_error(np.array(confidence), np.array(right), 15, scheme)

    assert ece([1.0, 1.0, 0.0], [1, 1, 0]) == 0.0
    assert ece([1.0, 1.0, 0.0], [0, 0, 1]) == 1.0
    assert ece([0.8] * 10, [True] * 5 + [False] * 5) == pytest.approx(0.3)
    assert ece([0.3] * 10, [1] * 7 + [0] * 3) == pytest.approx(0.4)
    assert ece([0.2] * 5 + [0.9] * 5, [1, 0, 0, 0, 0, 1, 1, 1, 0, 0]) == pytest.approx(0.5 * 0.3)
    assert math.isnan(ece([], []))


@pytest.mark.parametrize(("scheme", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_the_reliability_table_is_the_calibration_curve_of_scikit_learn(scheme, strategy):
    confidence, right = answers(3, 300, 0.1)
    table = calibration.reliability(confidence, right, 10, scheme)
    accuracy, said = calibration_curve(right, confidence, n_bins=10, strategy=strategy)
    np.testing.assert_allclose(table["accuracy"], accuracy, atol=1e-12)
    np.testing.assert_allclose(table["confidence"], said, atol=1e-12)
    gap = (table["n"] / 300 * (table["accuracy"] - table["confidence"]).abs()).sum()
    assert calibration.expected_calibration_error(confidence, right, 10, scheme) == pytest.approx(gap)


def test_each_bin_of_the_reliability_table_has_its_exact_interval():
    confidence = np.array([0.05] * 6 + [0.95] * 20)
    right = np.array([0] * 6 + [1] * 17 + [0] * 3)
    table = calibration.reliability(confidence, right, level=0.9)
    for row, (count, n) in zip(table.itertuples(), [(0, 6), (17, 20)], strict=True):
        oracle = stats.binomtest(count, n).proportion_ci(0.9, method="exact")
        assert (row.n, row.accuracy) == (n, count / n)
        assert (row.low, row.high) == pytest.approx((oracle.low, oracle.high))
    assert calibration.reliability(np.array([]), np.array([])).empty


def test_brier_of_two_options_is_twice_the_binary_score():
    confidence, right = answers(4, 100)
    scores = calibration.brier(np.column_stack([confidence, 1 - confidence]), 1 - right.astype(int))
    assert scores.shape == (100,)
    assert scores.mean() == pytest.approx(2 * brier_score_loss(right, confidence))


def test_brier_of_many_options_is_that_of_scikit_learn():
    rng = np.random.default_rng(5)
    probabilities, right = rng.dirichlet(np.ones(7), 50), rng.integers(0, 7, 50)
    oracle = brier_score_loss(right, probabilities, labels=np.arange(7), scale_by_half=False)
    assert calibration.brier(probabilities, right).mean() == pytest.approx(oracle)


def test_brier_and_entropy_at_the_ends_of_their_ranges_with_unequal_numbers_of_options():
    options = [np.array([1.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.full(4, 0.25), np.array([1.0])]
    assert calibration.brier(options, [0, 2, 1, 0]) == pytest.approx([0, 2, 0.75**2 + 3 / 16, 0])
    assert calibration.entropy(options) == pytest.approx([0, 0, math.log(4), 0])


def test_entropy_is_that_of_scipy_and_takes_float32():
    probabilities = np.random.default_rng(6).dirichlet(np.ones(49), 20)
    assert calibration.entropy(probabilities) == pytest.approx([stats.entropy(p) for p in probabilities])
    assert calibration.entropy(probabilities.astype(np.float32)) == pytest.approx(
        calibration.entropy(probabilities), rel=1e-5
    )


def test_the_null_of_one_bin_is_the_binomial():
    """With one confidence the error is |k/n - c|, k binomial: its mean and its distribution by enumeration."""
    n, c = 20, 0.7
    null = calibration.calibration_null(np.full(n, c), seed=0, draws=20000)
    values, weights = np.abs(np.arange(n + 1) / n - c), stats.binom.pmf(np.arange(n + 1), n, c)
    assert null.mean() == pytest.approx(values @ weights, abs=4 * null.std() / math.sqrt(20000))
    for bar in (0.04, 0.08, 0.18):
        exact = weights[values >= bar].sum()
        assert (null >= bar).mean() == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20000))


def test_a_calibrated_reader_of_few_prompts_shows_a_large_error_by_chance():
    """What the null is for: .17 and .09 where the truth is 0."""
    even = np.random.default_rng(7).random
    for n, shown in ((50, 0.17), (200, 0.09)):
        means = [calibration.calibration_null(even(n), seed=seed, draws=50).mean() for seed in range(40)]
        assert np.mean(means) == pytest.approx(shown, abs=0.005)


@pytest.mark.parametrize("scheme", ["width", "mass"])
def test_p_is_uniform_for_a_calibrated_reader(scheme):
    rng = np.random.default_rng(8)
    p = []
    for seed in range(500):
        confidence = rng.beta(3, 1, 60)
        right = rng.random(60) < confidence
        p.append(calibration.calibration_error(confidence, right, 10, scheme, seed=seed, draws=99).p)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert min(p) >= 0.01


def test_a_reader_that_is_too_sure_is_found_and_its_expected_error_is_not_blamed_on_it():
    confidence, right = answers(9, 400, 0.15)
    found = calibration.calibration_error(confidence, right, seed=0)
    assert found.p == pytest.approx(1 / 2001)
    assert found.ece > found.high > found.expected > 0
    assert (found.n, found.bins) == (400, len(calibration.reliability(confidence, right)))
    null = calibration.calibration_null(confidence, seed=0)
    assert (found.expected, found.high) == pytest.approx((null.mean(), np.quantile(null, 0.95)))
    assert found.p == statistics.permutation_p(found.ece, null)


def test_nothing_has_no_calibration_error():
    found = calibration.calibration_error(np.array([]), np.array([]), seed=0)
    assert (found.n, found.bins) == (0, 0)
    assert math.isnan(found.ece)
    assert math.isnan(found.p)


@pytest.mark.parametrize(
    ("confidence", "right", "says"),
    [
        ([0.5, 1.2], [1, 0], r"1 of 2 confidences .* 1\.2"),
        ([-0.1, 0.5], [1, 0], "log-probabilities"),
        ([0.5, math.nan], [1, 0], "nan"),
        ([0.5, 0.5], [1, 0.5], "right must be 1 or 0"),
        ([0.5, 0.5], [1, math.nan], "right must be 1 or 0"),
        ([0.5, 0.5], [1], "one value a prompt"),
        ([[0.5, 0.5]], [[1, 0]], "one value a prompt"),
    ],
)
def test_what_is_no_confidence_or_no_outcome_is_refused(confidence, right, says):
    with pytest.raises(InputError, match=says):
        calibration.expected_calibration_error(np.array(confidence), np.array(right))


@pytest.mark.parametrize(("bins", "scheme"), [(0, "width"), (15, "quantile")])
def test_what_is_no_binning_is_refused(bins, scheme):
    with pytest.raises(InputError, match="width, mass"):
        calibration.expected_calibration_error(np.array([0.5]), np.array([1]), bins, scheme)


@pytest.mark.parametrize("p", [[0.5, 0.4], [1.5, -0.5], [math.nan, 1.0], [], [[0.5, 0.5]]])
def test_what_is_no_distribution_is_refused(p):
    for measure in (calibration.entropy, lambda options: calibration.brier(options, [0, 0])):
        with pytest.raises(InputError, match="prompt 1"):
            measure([np.array([0.5, 0.5]), np.array(p)])


@pytest.mark.parametrize(
    ("right", "says"), [([0, 2], "prompt 1 is 2"), ([0, -1], "prompt 1 is -1"), ([0], "2 prompts")]
)
def test_a_right_option_that_is_not_there_is_refused(right, says):
    with pytest.raises(InputError, match=says):
        calibration.brier(np.full((2, 2), 0.5), right)
