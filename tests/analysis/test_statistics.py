"""Intervals and sample sizes, held to brute force, to a second library and to simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis import statistics


def jackknife_by_hand(numerator, denominator):
    n = len(numerator)
    left_out = []
    for i in range(n):
        keep = [j for j in range(n) if j != i]
        left_out.append(sum(numerator[j] for j in keep) / sum(denominator[j] for j in keep))
    centre = sum(left_out) / n
    return math.sqrt((n - 1) / n * sum((value - centre) ** 2 for value in left_out))


def test_ratio_equals_a_jackknife_by_hand():
    rng = np.random.default_rng(0)
    denominator = rng.uniform(0.5, 2, 40)
    numerator = denominator * rng.beta(1, 4, 40)
    found = statistics.ratio(numerator, denominator)
    se = jackknife_by_hand(list(numerator), list(denominator))
    half = stats.t.ppf(0.975, 39) * se
    assert found.estimate == pytest.approx(numerator.sum() / denominator.sum())
    assert found.se == pytest.approx(se)
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half))
    assert found.n == 40


def test_ratio_to_a_constant_is_the_mean():
    """Then the jackknife is Student's t on prompt means, exactly."""
    values = np.random.default_rng(1).normal(size=25)
    assert statistics.ratio(values, np.ones(25)).to_dict() == pytest.approx(statistics.mean(values).to_dict())
    low, high = stats.t.interval(0.95, 24, loc=values.mean(), scale=stats.sem(values))
    assert (statistics.mean(values).low, statistics.mean(values).high) == pytest.approx((low, high))


def test_paired_difference_is_that_of_pairs():
    """With denominators of 1 it is the paired t interval."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=30), rng.normal(size=30)
    ones = np.ones(30)
    found = statistics.ratio_difference((first, ones), (second, ones))
    interval = stats.ttest_rel(first, second).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_levels_nest():
    values = np.random.default_rng(3).normal(size=25)
    wide, narrow = statistics.mean(values), statistics.mean(values).at(0.9)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert narrow.level == 0.9
    assert narrow.to_dict() == pytest.approx(statistics.mean(values, level=0.9).to_dict())


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_prompts_have_no_interval(n):
    for found in (statistics.mean(np.ones(n)), statistics.ratio(np.ones(n), np.ones(n))):
        assert math.isnan(found.low)
        assert found.n == n
        assert found.to_dict()["low"] is None


def test_equivalence_power_agrees_with_simulation():
    """The figures of two one-sided tests at a paired deviation of .6: 200 prompts 52%, 310 prompts 80%."""
    assert statistics.equivalence_power(0.6, 200, 0.1) == pytest.approx(0.52, abs=0.015)
    assert statistics.equivalence_power(0.6, 310, 0.1) == pytest.approx(0.80, abs=0.015)
    rng = np.random.default_rng(4)
    draws = rng.normal(0, 0.6, size=(4000, 200))
    half = stats.t.ppf(0.95, 199) * draws.std(1, ddof=1) / math.sqrt(200)
    found = np.mean((draws.mean(1) - half > -0.1) & (draws.mean(1) + half < 0.1))
    assert statistics.equivalence_power(0.6, 200, 0.1) == pytest.approx(found, abs=0.03)


def test_prompts_for_equivalence_is_the_smallest_number_with_that_power():
    n = statistics.prompts_for_equivalence(0.6, 0.1)
    assert statistics.equivalence_power(0.6, n, 0.1) >= 0.8 > statistics.equivalence_power(0.6, n - 1, 0.1)
    assert n == pytest.approx(310, abs=5)


def test_prompts_for_lower_bound_agrees_with_simulation():
    n = statistics.prompts_for_lower_bound(0.2, 0.6, 0.1)
    rng = np.random.default_rng(5)
    draws = rng.normal(0.2, 0.6, size=(4000, n))
    low = draws.mean(1) - stats.t.ppf(0.975, n - 1) * draws.std(1, ddof=1) / math.sqrt(n)
    assert np.mean(low > 0.1) == pytest.approx(0.8, abs=0.03)
    assert statistics.prompts_for_lower_bound(0.05, 0.6, 0.1) is None
