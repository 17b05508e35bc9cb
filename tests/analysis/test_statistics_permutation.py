"""Sign flips, held to enumeration by hand and to scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from analysis import statistics
from analysis.errors import InputError
from analysis.statistics import permutation


def family_wise_by_hand(values, statistic):
    """p of each cell (column): the share of all sign patterns whose largest statistic reaches the cell's own."""
    seen = [statistic(column) for column in values.T]
    maxima = []
    for signs in itertools.product((1, -1), repeat=len(values)):
        flipped = values * np.array(signs)[:, None]
        maxima.append(max(statistic(column) for column in flipped.T))
    return [np.mean([largest >= own - 1e-9 for largest in maxima]) for own in seen]


def abs_t(column):
    return abs(stats.ttest_1samp(column, 0).statistic)


def self_normalised(column):
    held = column[~np.isnan(column)]
    return abs(held.sum()) / math.sqrt((held**2).sum())


def test_full_grids_are_corrected_by_the_largest_t_of_all_patterns():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 4)) * [1, 1, 20, 0.1] + [1.5, 0, 0, 0.05]
    found = statistics.sign_flip_max(values.reshape(7, 2, 2), seed=0)
    assert found.exact
    assert found.flips == 2**7
    assert found.p.ravel() == pytest.approx(family_wise_by_hand(values, abs_t))
    assert found.t.ravel() == pytest.approx(stats.ttest_1samp(values, 0).statistic)
    assert found.mean.shape == (2, 2)


def test_ragged_grids_are_corrected_by_the_self_normalised_sum():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(8, 3)) + np.array([1, 0, 2])
    values[5:, 1] = np.nan
    values[2:, 2] = np.nan
    found = statistics.sign_flip_max(values, seed=0)
    assert found.p == pytest.approx(family_wise_by_hand(values, self_normalised))
    assert list(found.n) == [8, 5, 2]
    for cell in range(3):
        held = values[~np.isnan(values[:, cell]), cell]
        assert found.t[cell] == pytest.approx(stats.ttest_1samp(held, 0).statistic)


def test_single_cells_agree_with_scipy():
    values = np.random.default_rng(2).normal(0.5, 1, size=(9, 3))
    found = statistics.sign_flip_max(values, seed=0)
    for cell in range(3):
        oracle = stats.permutation_test(
            (values[:, cell],), np.mean, permutation_type="samples", n_resamples=np.inf
        ).pvalue
        assert found.p_cell[cell] == pytest.approx(oracle)
        assert statistics.sign_flip(values[:, cell], seed=0) == pytest.approx(oracle)


def test_random_patterns_approach_all_patterns():
    values = np.random.default_rng(3).normal(0.3, 1, size=(12, 5))
    all_of_them = statistics.sign_flip_max(values, seed=0, draws=2**12)
    some = statistics.sign_flip_max(values, seed=0, draws=4000)
    assert (all_of_them.exact, some.exact, some.flips) == (True, False, 4001)
    for found, truth in zip(some.p, all_of_them.p, strict=True):
        assert stats.binomtest(round(found * 4001) - 1, 4000, truth).pvalue > 1e-4


def test_ties_count_as_reached():
    """Differences of 0 and ±1 give many equal sums; 6 of 6 positive is 2 of 64, and not less by rounding."""
    assert statistics.sign_flip(np.ones(6) / 3, seed=0) == 2 / 64
    values = np.array([0.1, 0.2, 0.3, -0.3, 0.1, 0.1, 0.1])
    tenths = [1, 2, 3, -3, 1, 1, 1]
    sums = [
        abs(sum(s * v for s, v in zip(signs, tenths, strict=True))) for signs in itertools.product((1, -1), repeat=7)
    ]
    assert statistics.sign_flip(values, seed=0) == np.mean([total >= 6 for total in sums])


def test_cells_of_zeros_have_p_1():
    values = np.random.default_rng(4).normal(1, 1, size=(15, 3))
    values[:, 1] = 0
    values[:, 2] = np.nan
    found = statistics.sign_flip_max(values, seed=0)
    assert list(found.p[1:]) == [1.0, 1.0]
    assert list(found.p_cell[1:]) == [1.0, 1.0]
    assert (found.t[1], found.n[2]) == (0.0, 0)
    assert math.isnan(found.mean[2])
    assert found.p[0] < 0.05


@pytest.mark.parametrize("n", [5, 40])
def test_a_grid_of_zeros_has_p_1(n):
    """A model against its own copy."""
    found = statistics.sign_flip_max(np.zeros((n, 2, 3)), seed=0)
    np.testing.assert_array_equal(found.p, np.ones((2, 3)))
    np.testing.assert_array_equal(found.p_cell, np.ones((2, 3)))
    assert statistics.sign_flip(np.zeros(n), seed=0) == 1.0


def test_p_is_never_0():
    found = statistics.sign_flip_max(np.random.default_rng(5).normal(10, 1, size=(40, 3)), seed=0, draws=999)
    assert list(found.p) == [1 / 1000] * 3


def test_a_cell_of_few_prompts_takes_no_power_from_the_others():
    """Two prompts have an infinite t in half of all patterns, and three in a quarter."""
    values = np.random.default_rng(6).normal(0, 1, size=(30, 3))
    values[:, 0] += 1
    values[2:, 1] = np.nan
    values[3:, 2] = np.nan
    found = statistics.sign_flip_max(values, seed=0)
    assert found.p[0] < 0.01
    assert found.p[1] > 0.2


def test_the_scale_of_a_cell_does_not_matter():
    values = np.random.default_rng(7).normal(0.4, 1, size=(25, 6))
    scale = np.array([1, 1e-200, 1e6, 1, 1e150, 3])
    plain, scaled = (statistics.sign_flip_max(array, seed=0) for array in (values, values * scale))
    np.testing.assert_array_equal(plain.p, scaled.p)
    np.testing.assert_array_equal(plain.p_cell, scaled.p_cell)


def test_copies_of_a_cell_cost_nothing_and_independent_cells_do():
    """Signs are those of prompts, so that dependence between cells is kept."""
    rng = np.random.default_rng(8)
    cell = rng.normal(0.5, 1, size=(25, 1))
    alone = statistics.sign_flip_max(cell, seed=0).p[0]
    assert statistics.sign_flip_max(np.repeat(cell, 50, axis=1), seed=0).p[0] == alone
    assert statistics.sign_flip_max(np.hstack([cell, rng.normal(size=(25, 50))]), seed=0).p[0] > 5 * alone


def test_a_seed_fixes_p_however_patterns_are_cut(monkeypatch):
    values = np.random.default_rng(9).normal(0.2, 1, size=(25, 6))
    first = statistics.sign_flip_max(values, seed=1)
    exact = statistics.sign_flip_max(values[:9], seed=1)
    monkeypatch.setattr(permutation, "CHUNK", 700)
    np.testing.assert_array_equal(first.p, statistics.sign_flip_max(values, seed=1).p)
    np.testing.assert_array_equal(exact.p, statistics.sign_flip_max(values[:9], seed=1).p)
    assert (first.p != statistics.sign_flip_max(values, seed=2).p).any()


def test_rows_go_in_through_by_prompt():
    rng = np.random.default_rng(10)
    values = rng.normal(0.5, 1, size=(20, 4))
    rows = statistics.by_prompt(np.repeat(values, 3, axis=0), np.repeat(np.arange(20), 3))
    np.testing.assert_array_equal(statistics.sign_flip_max(rows, seed=0).p, statistics.sign_flip_max(values, seed=0).p)


@pytest.mark.parametrize("bad", [np.ones((0, 3)), np.ones((3, 0)), np.array(1.0), np.array([[np.inf], [1.0]])])
def test_grids_without_effects_are_refused(bad):
    with pytest.raises(InputError):
        statistics.sign_flip_max(bad, seed=0)


def test_sign_flip_refuses_prompts_without_a_value():
    with pytest.raises(InputError):
        statistics.sign_flip(np.array([1.0, np.nan]), seed=0)


def test_permutation_p_counts_itself():
    null = np.array([-3.0, -1.0, 0.0, 1.0, 2.0, 2.0, 3.0])
    assert statistics.permutation_p(2.0, null) == 4 / 8
    assert statistics.permutation_p(10.0, null) == 1 / 8
    assert statistics.permutation_p(-1.0, null, "less") == 3 / 8
    assert statistics.permutation_p(-3.0, null, "two-sided") == 3 / 8
    assert statistics.permutation_p(0.1 + 0.2, np.array([0.3])) == 1.0
    for observed, bad in ((1.0, np.array([])), (1.0, np.array([np.nan])), (math.nan, null)):
        with pytest.raises(InputError):
            statistics.permutation_p(observed, bad)
