"""Bootstrap-t, held to the enumeration of every resample there is, and to what its limits must be."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from analysis import statistics
from analysis.errors import InputError
from analysis.statistics import bootstrap

SKEWED = (0.1, 0.3, 0.35, 1.2, 4.0)
SIZES = (1.0, 0.5, 2.0, 1.5, 3.0)


def mean_and_error(pairs):
    values = [above for above, _ in pairs]
    centre = sum(values) / len(values)
    return centre, math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1) / len(values))


def ratio_and_error(pairs):
    n, total = len(pairs), sum(below for _, below in pairs)
    centre = sum(above for above, _ in pairs) / total
    square = sum((above - centre * below) ** 2 for above, below in pairs) / (n - 1)
    return centre, math.sqrt(square * n) / total


def all_pivots(pairs, statistic):
    """`t*` of each of the nⁿ resamples; those without spread are infinite."""
    centre, _ = statistic(pairs)
    for sample in itertools.product(pairs, repeat=len(pairs)):
        value, error = statistic(sample)
        yield (value - centre) / error if error > 1e-12 else math.copysign(math.inf, value - centre)


@pytest.mark.parametrize(
    ("statistic", "found"),
    [
        (mean_and_error, statistics.bootstrap_mean(np.array(SKEWED), 0.8, seed=0, draws=20_000)),
        (ratio_and_error, statistics.bootstrap_ratio(np.array(SKEWED), np.array(SIZES), 0.8, seed=0, draws=20_000)),
    ],
    ids=["mean", "ratio"],
)
def test_limits_are_quantiles_of_all_resamples(statistic, found):
    """Exactly a tenth of all 3,125 resamples lies beyond each limit, up to what 20,000 draws of them can miss."""
    pairs = list(zip(SKEWED, SIZES, strict=True))
    centre, error = statistic(pairs)
    pivots = np.array(list(all_pivots(pairs, statistic)))
    assert found.estimate == pytest.approx(centre)
    assert found.se == pytest.approx(error)
    slack = 4 * math.sqrt(0.1 * 0.9 / 20_000)
    low_pivot, high_pivot = (centre - found.high) / error, (centre - found.low) / error
    near = 1e-6  # a limit is itself one of the pivots, up to rounding
    assert np.mean(pivots < low_pivot - near) <= 0.1 + slack
    assert np.mean(pivots <= low_pivot + near) >= 0.1 - slack
    assert np.mean(pivots > high_pivot + near) <= 0.1 + slack
    assert np.mean(pivots >= high_pivot - near) >= 0.1 - slack


def test_it_leans_towards_the_long_tail():
    values = np.random.default_rng(0).exponential(size=30)
    found, student = statistics.bootstrap_mean(values, seed=1), statistics.mean(values)
    assert found.high - found.estimate > found.estimate - found.low
    assert found.high > student.high
    assert found.low > student.low


def test_it_is_students_t_for_many_normal_prompts():
    """Asymptotically; the quantiles of 20,000 draws are within .1 standard errors."""
    values = stats.norm.ppf((np.arange(200) + 0.5) / 200)
    found, student = statistics.bootstrap_mean(values, seed=2, draws=20_000), statistics.mean(values)
    assert (found.low, found.high) == pytest.approx((student.low, student.high), abs=0.1 * student.se)


def test_a_seed_fixes_every_bit_however_draws_are_cut(monkeypatch):
    values = np.random.default_rng(3).exponential(size=37)
    first = statistics.bootstrap_mean(values, seed=4)
    assert first == statistics.bootstrap_mean(values, seed=4)
    assert first != statistics.bootstrap_mean(values, seed=5)
    monkeypatch.setattr(bootstrap, "CHUNK", 1000)
    assert first == statistics.bootstrap_mean(values, seed=4)


def test_moving_and_stretching_the_data_moves_and_stretches_the_interval():
    values = np.random.default_rng(6).exponential(size=25)
    found, moved = statistics.bootstrap_mean(values, seed=7), statistics.bootstrap_mean(3 * values - 1, seed=7)
    assert (moved.low, moved.high) == pytest.approx((3 * found.low - 1, 3 * found.high - 1))
    turned = statistics.bootstrap_mean(-values, seed=7)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_ratios_to_ones_are_means():
    values = np.random.default_rng(8).exponential(size=25)
    mean, ratio = statistics.bootstrap_mean(values, seed=9), statistics.bootstrap_ratio(values, np.ones(25), seed=9)
    assert (ratio.low, ratio.high) == pytest.approx((mean.low, mean.high))


@pytest.mark.parametrize(("n_effects", "bounded"), [(1, False), (3, False), (6, True)])
def test_draws_without_spread_leave_the_interval_open(n_effects, bounded):
    """With k effects among 20 prompts (1 − k/20)^20 of the draws hold only zeros: 36%, 3.9%, and .08%."""
    values = np.zeros(20)
    values[:n_effects] = 1 + np.arange(n_effects) / 10
    found = statistics.bootstrap_mean(values, seed=10)
    assert math.isfinite(found.high) == bounded
    assert found.too_small == (not bounded)
    assert math.isfinite(found.low)
    if not bounded:
        assert found.to_dict()["high"] is None


def test_draws_without_a_pivot_count_on_both_sides():
    """±1 once among zeros: a draw of zeros alone has the sample's mean and no spread."""
    values = np.zeros(20)
    values[:2] = -1, 1
    found = statistics.bootstrap_mean(values, seed=11)
    assert (found.low, found.high) == (-math.inf, math.inf)
    below = np.zeros(20)
    below[:2] = 1  # (18/20)^20 = 12% of the draws have no denominator
    found = statistics.bootstrap_ratio(values, below, seed=11)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_spread_that_is_rounding_is_none():
    """3.9% of the draws leave the three effects out; y − y/x · x is then 0 up to rounding, and rarely 0."""
    sizes = np.random.default_rng(19).uniform(1, 2, 20)
    shares = np.full(20, 0.1)
    shares[:3] = 0.9, 0.8, 0.7
    assert statistics.bootstrap_ratio(shares * sizes, sizes, seed=20).high == math.inf


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_prompts_that_are_all_equal_have_no_width_as_with_t(value):
    found = statistics.bootstrap_mean(np.full(20, value), seed=12)
    assert (found.low, found.estimate, found.high) == pytest.approx((value, value, value), abs=1e-15)
    sizes = np.random.default_rng(13).uniform(1, 2, 20)
    found = statistics.bootstrap_ratio(value * sizes, sizes, seed=12)
    assert (found.low, found.high) == pytest.approx((value, value), abs=1e-15)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_prompts_have_no_interval(n):
    found = statistics.bootstrap_mean(np.ones(n), seed=14)
    assert math.isnan(found.low)
    assert math.isnan(found.at(0.9).high)
    assert (found.n, found.too_small) == (n, True)


def test_other_levels_come_from_the_same_draws():
    values = np.random.default_rng(15).exponential(size=25)
    found = statistics.bootstrap_mean(values, seed=16, excluded={"cut off": 1})
    narrow = found.at(0.9)
    assert narrow == statistics.bootstrap_mean(values, 0.9, seed=16, excluded={"cut off": 1})
    assert found.low < narrow.low < narrow.high < found.high
    assert found.to_dict()["method"] == "bootstrap-t"


def test_too_few_draws_are_refused():
    values = np.random.default_rng(17).normal(size=25)
    with pytest.raises(InputError, match="at least"):
        statistics.bootstrap_mean(values, seed=18, draws=38)
    assert statistics.bootstrap_mean(values, seed=18, draws=39).n == 25
    with pytest.raises(InputError, match="at least"):
        statistics.bootstrap_mean(values, seed=18).at(0.9999)
