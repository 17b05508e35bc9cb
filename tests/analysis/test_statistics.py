"""Intervals and sample sizes, held to brute force, to a second library and to simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis import statistics
from analysis.errors import InputError
from analysis.statistics.clusters import NO_VALUE


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


def test_a_ratio_of_nothing_has_no_value_in_json():
    found = statistics.ratio(np.ones(3), np.zeros(3)).to_dict()
    assert (found["estimate"], found["low"], found["n"]) == (None, None, 3)


def test_estimates_count_what_was_excluded():
    found = statistics.mean(np.arange(19.0), excluded={"cut off": 3, "no chain": 2})
    assert (found.n, found.n_excluded, found.too_small) == (19, 5, True)
    assert found.at(0.9).excluded == {"cut off": 3, "no chain": 2}
    assert found.to_dict()["excluded"] == {"cut off": 3, "no chain": 2}
    assert not statistics.mean(np.arange(20.0)).too_small


def test_summary_keys_stay_as_they_are():
    """`docs/summary.md` names these keys, in this order, for an estimate without exclusions."""
    assert list(statistics.mean(np.arange(5.0)).to_dict()) == ["estimate", "low", "high", "n", "se", "level"]


@pytest.mark.parametrize("bad", [np.array([1.0, np.nan]), np.array([1.0, np.inf]), np.ones((3, 2))])
def test_values_that_are_not_one_number_a_prompt_are_refused(bad):
    with pytest.raises(InputError):
        statistics.mean(bad)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_levels_outside_of_0_and_1_are_refused(level):
    with pytest.raises(InputError, match="level"):
        statistics.mean(np.arange(5.0), level)


def test_prompts_are_grouped_as_pandas_groups_them():
    rng = np.random.default_rng(6)
    rows = pd.DataFrame({"id": rng.permutation(np.repeat([f"p{i}" for i in range(30)], 8)), "x": rng.normal(size=240)})
    oracle = rows.groupby("id", sort=False)["x"].mean()
    found = statistics.by_prompt(rows["x"].to_numpy(), rows["id"].to_numpy())
    assert list(found.ids) == list(oracle.index)
    assert found.means == pytest.approx(oracle.to_numpy())
    assert list(found.rows) == [8] * 30
    assert statistics.mean(found).se == pytest.approx(oracle.std() / math.sqrt(30))


def test_missing_values_are_refused_or_counted():
    values, ids = np.array([1.0, np.nan, 3.0, np.nan, np.nan]), ["b", "b", "a", "c", "c"]
    with pytest.raises(InputError, match="3 of 5 values are NaN"):
        statistics.by_prompt(values, ids)
    found = statistics.by_prompt(values, ids, missing="drop")
    assert (found.ids, list(found.means), list(found.rows)) == (("b", "a"), [1.0, 3.0], [1, 1])
    assert (found.without, found.dropped) == (("c",), 3)
    assert statistics.mean(found, excluded={"cut off": 2}).excluded == {NO_VALUE: 1, "cut off": 2}


def test_a_grid_keeps_the_cells_that_a_prompt_lacks():
    values = np.array([[1.0, np.nan], [3.0, np.nan], [5.0, 7.0], [np.nan, np.nan]])
    found = statistics.by_prompt(values, [1, 1, 2, 3], missing="drop")
    assert found.ids == (1, 2)
    np.testing.assert_array_equal(found.means, [[2.0, np.nan], [5.0, 7.0]])
    np.testing.assert_array_equal(found.rows, [[2, 0], [1, 1]])
    with pytest.raises(InputError, match="one value a prompt"):
        statistics.mean(found)


def test_ids_keep_their_type():
    found = statistics.by_prompt(np.arange(4.0), [1, "1", ("a", 2), ("a", 2)])
    assert found.ids == (1, "1", ("a", 2))


@pytest.mark.parametrize("ids", [["a", None, "b"], ["a", math.nan, "b"], ["a", pd.NA, "b"], ["a", "b"], []])
def test_rows_without_a_prompt_are_refused(ids):
    with pytest.raises(InputError, match="id"):
        statistics.by_prompt(np.ones(3), ids)


def test_infinite_rows_are_refused():
    with pytest.raises(InputError, match="infinite"):
        statistics.by_prompt(np.array([1.0, np.inf]), ["a", "b"], missing="drop")


def test_no_rows_are_no_prompts():
    found = statistics.by_prompt(np.array([]), [])
    assert found.ids == ()
    assert statistics.mean(found).n == 0


def test_pairs_meet_by_id_and_the_rest_is_counted():
    first = statistics.by_prompt(np.array([1.0, 2.0, 5.0, np.nan, 4.0]), ["a", "b", "c", "d", "e"], missing="drop")
    second = statistics.by_prompt(np.array([7.0, np.nan, 9.0, 1.0, 6.0]), ["c", "d", "a", "f", "b"], missing="drop")
    found = statistics.paired_difference(first, second)
    oracle = stats.ttest_rel([1.0, 2.0, 5.0], [9.0, 6.0, 7.0]).confidence_interval()
    assert found.estimate == pytest.approx(-14 / 3)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))
    assert found.excluded == {"only in the first of the pair": 1, "only in the second of the pair": 1, NO_VALUE: 1}
    assert found.n + found.n_excluded == len({*"abcdef"})


def test_pairs_that_cannot_be_aligned_are_refused():
    clusters = statistics.by_prompt(np.ones(3), ["a", "b", "c"])
    with pytest.raises(InputError, match="only one"):
        statistics.paired_difference(clusters, np.ones(3))
    with pytest.raises(InputError, match="found 3 and 2"):
        statistics.ratio(np.ones(3), np.ones(2))
    with pytest.raises(InputError, match="same prompts"):
        statistics.ratio_difference((np.ones(3), np.ones(3)), (np.ones(2), np.ones(2)))


@given(
    st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=40),
    st.floats(0.01, 0.3),
)
def test_equivalence_is_two_t_tests_and_their_interval(values, margin):
    values = np.array(values)
    if np.std(values) < 1e-6:
        values = values + np.linspace(0, 0.01, len(values))
    found = statistics.equivalence(statistics.mean(values), margin)
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    assert found.p == pytest.approx(max(above, below), rel=1e-6, abs=1e-12)
    assert abs(found.p - 0.05) < 1e-9 or found.equivalent == (found.p <= 0.05)
    assert found.interval.level == 0.9


@pytest.mark.parametrize(("value", "equivalent"), [(0.0, True), (0.1, True), (-0.1, True), (0.11, False)])
def test_equivalence_without_spread_is_a_comparison(value, equivalent):
    found = statistics.equivalence(statistics.Estimate(value, value, value, 30, 0.0), 0.1)
    assert (found.equivalent, found.p) == (equivalent, 0.0 if equivalent else 1.0)


def test_equivalence_is_not_shown_by_too_few_prompts():
    found = statistics.equivalence(statistics.mean(np.zeros(1)), 0.1)
    assert (found.equivalent, found.p) == (False, 1.0)


def test_equivalence_refuses_what_it_cannot_test():
    with pytest.raises(InputError, match="margin"):
        statistics.equivalence(statistics.mean(np.arange(5.0)), 0)
    with pytest.raises(InputError, match="Clopper-Pearson"):
        statistics.equivalence(statistics.clopper_pearson(1, 5), 0.1)


def test_benjamini_hochberg_agrees_with_scipy():
    rng = np.random.default_rng(7)
    for n in (1, 2, 7, 100):
        p = np.round(rng.random(n) ** 3, 2)  # rounded, so that some tie
        family = {("layer", i): value for i, value in enumerate(p)}
        found = statistics.benjamini_hochberg(family)
        assert list(found) == list(family)
        assert list(found.values()) == pytest.approx(stats.false_discovery_control(p))
    assert statistics.benjamini_hochberg({}) == {}


@pytest.mark.parametrize("p", [math.nan, -0.1, 1.1])
def test_benjamini_hochberg_refuses_what_is_no_p_value(p):
    with pytest.raises(InputError, match="covert"):
        statistics.benjamini_hochberg({"direct": 0.5, "covert": p})
