"""Values of 0 and 1, held to scipy's exact tests, to enumeration and to exact coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from analysis import statistics
from analysis.errors import InputError


def pair(both, only_first, only_second, neither):
    first = [1] * both + [1] * only_first + [0] * only_second + [0] * neither
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
    return np.array(first, dtype=float), np.array(second, dtype=float)


@pytest.mark.parametrize("gained", range(7))
@pytest.mark.parametrize("lost", range(4))
def test_mcnemar_is_the_binomial_and_the_swap_of_all_pairs(gained, lost):
    first, second = pair(5, gained, lost, 4)
    found = statistics.mcnemar(first, second)
    assert (found.only_first, found.only_second) == (gained, lost)
    assert found.difference.estimate == pytest.approx(first.mean() - second.mean())
    if gained + lost == 0:
        assert found.p == 1.0
        return
    assert found.p == pytest.approx(stats.binomtest(gained, gained + lost, 0.5).pvalue)
    swaps = [sum(signs) for signs in itertools.product((1, -1), repeat=gained + lost)]
    assert found.p == pytest.approx(np.mean([abs(total) >= abs(gained - lost) for total in swaps]))


def bonett_price_by_hand(gained, lost, n):
    """Wald's interval for a table with one prompt more in each cell that differs."""
    values = np.concatenate([np.ones(gained + 1), -np.ones(lost + 1), np.zeros(n - gained - lost)])
    half = stats.norm.ppf(0.975) * values.std() / math.sqrt(len(values))
    return values.mean() - half, values.mean() + half


@pytest.mark.parametrize(("gained", "lost", "rest"), [(7, 3, 30), (0, 0, 40), (20, 0, 5)])
def test_the_interval_adds_a_prompt_to_each_kind_that_differs(gained, lost, rest):
    found = statistics.mcnemar(*pair(rest // 2, gained, lost, rest - rest // 2)).difference
    assert (found.low, found.high) == pytest.approx(bonett_price_by_hand(gained, lost, gained + lost + rest))
    assert found.low < found.at(0.9).low < found.at(0.9).high < found.high
    assert found.to_dict()["method"] == "Bonett-Price"


@pytest.mark.parametrize("n", [20, 60])
def test_the_interval_covers_at_every_table(n):
    """Exactly, by summing over all tables: at least .93, or .925 where no prompt can differ the other way."""
    tables = np.array([(gained, lost) for gained in range(n + 1) for lost in range(n + 1 - gained)])
    found = [statistics.mcnemar(*pair(0, up, down, n - up - down)).difference for up, down in tables]
    low, high = np.array([(one.low, one.high) for one in found]).T
    for differ, tilt in itertools.product((0.02, 0.1, 0.2, 0.4, 0.7, 1.0), (0.5, 0.6, 0.8, 1.0)):
        up, down = differ * tilt, differ * (1 - tilt)
        weight = stats.multinomial.pmf(np.column_stack([tables, n - tables.sum(1)]), n, [up, down, 1 - up - down])
        covered = weight[(low <= up - down + 1e-12) & (up - down - 1e-12 <= high)].sum()
        assert covered >= (0.93 if tilt < 1 else 0.925), (differ, tilt)


def test_accuracy_is_paired_by_prompt():
    first = statistics.by_prompt(np.array([1.0, 0.0, 1.0]), ["a", "b", "c"])
    second = statistics.by_prompt(np.array([0.0, 0.0, 1.0]), ["c", "b", "d"])
    found = statistics.mcnemar(first, second, excluded={"cut off": 4})
    assert (found.only_first, found.only_second, found.difference.n) == (1, 0, 2)
    assert found.difference.n_excluded == 6


def test_mcnemar_refuses_shares_and_has_nothing_to_say_of_nothing():
    with pytest.raises(InputError, match=r"0\.5"):
        statistics.mcnemar(np.array([0.0, 0.5]), np.array([0.0, 1.0]))
    found = statistics.mcnemar(np.array([]), np.array([]))
    assert (found.p, found.difference.n) == (1.0, 0)
    assert math.isnan(found.difference.low)


def test_what_no_case_among_many_proves():
    """The published figures are ends of two-sided 95% intervals; the one-sided bounds are smaller."""
    assert statistics.clopper_pearson(0, 40).high == pytest.approx(0.088, abs=0.0005)
    assert statistics.clopper_pearson(0, 73).high == pytest.approx(0.049, abs=0.0005)
    assert statistics.clopper_pearson(0, 40).high == pytest.approx(1 - 0.025 ** (1 / 40))
    assert statistics.clopper_pearson(0, 40).at(0.9).high == pytest.approx(1 - 0.05 ** (1 / 40))


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 40), (3, 40), (20, 40), (40, 40), (71, 73)])
def test_clopper_pearson_agrees_with_scipy(successes, n):
    oracle = stats.binomtest(successes, n).proportion_ci(0.9, method="exact")
    found = statistics.clopper_pearson(successes, n, 0.9)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))
    assert (found.estimate, found.n) == (successes / n, n)


def test_clopper_pearson_covers_at_every_share():
    n = 20
    limits = np.array([[found.low, found.high] for found in (statistics.clopper_pearson(k, n) for k in range(n + 1))])
    for share in np.linspace(0.001, 0.999, 500):
        inside = (limits[:, 0] <= share) & (share <= limits[:, 1])
        assert stats.binom.pmf(np.arange(n + 1), n, share)[inside].sum() >= 0.95


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (1.5, 5), (math.nan, 5)])
def test_what_is_no_count_is_refused(successes, n):
    with pytest.raises(InputError, match="count"):
        statistics.clopper_pearson(successes, n)


def test_no_trial_has_no_share():
    found = statistics.clopper_pearson(0, 0)
    assert math.isnan(found.estimate)
    assert math.isnan(found.high)
