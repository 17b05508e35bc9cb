"""Estimates and changes, by hand with NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.measures.estimates import change, estimate, length_matched, scorable, select, strata
from analysis.measures.protocol import Quantity

MEAN = Quantity("mean", "a mean", "nats", "value", where={"condition": "kept"})
RATIO = Quantity("ratio", "a ratio", "share", "value", "whole", {"condition": "kept"})
BINARY = Quantity("binary", "a share", "share", "value", where={"condition": "kept"}, binary=True)


def rows_of(values: dict[str, list[float]], condition: str = "kept", whole: float = 1.0) -> pd.DataFrame:
    """A row for every value of a prompt, in mixed order."""
    rows = [
        {"id": name, "author": "gold", "condition": condition, "value": value, "whole": whole + len(name) * at}
        for name, mine in values.items()
        for at, value in enumerate(mine)
    ]
    table = pd.DataFrame(rows, columns=["id", "author", "condition", "value", "whole"])
    return table.sample(frac=1, random_state=0)


def t_interval(values):
    values = np.asarray(values)
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


def test_a_prompt_with_many_rows_counts_once():
    values = {"a": [1.0] * 50, "bb": [3.0, 5.0], "ccc": [8.0]}
    found = estimate(rows_of(values), MEAN)
    means = [1.0, 4.0, 8.0]
    assert found.n == 3
    assert found.estimate == pytest.approx(np.mean(means))
    assert (found.low, found.high) == pytest.approx(t_interval(means))


def test_rows_of_other_conditions_and_rows_without_a_value_do_not_count():
    kept = rows_of({"a": [1.0, np.nan], "b": [2.0], "c": [np.nan]})
    table = pd.concat([kept, rows_of({"a": [100.0], "d": [100.0]}, "other")])
    assert sorted(select(table, MEAN)["value"]) == [1.0, 2.0]
    found = estimate(table, MEAN)
    assert (found.n, found.estimate) == (2, 1.5)


def test_several_conditions_must_all_hold():
    table = pd.DataFrame(
        {"id": list("abcd"), "part": ["x", "x", "y", "y"], "layer": [0, 1, 0, 1], "value": [1.0, 2.0, 4.0, 8.0]}
    )
    quantity = Quantity("q", "", "", "value", where={"part": "y", "layer": 0})
    assert select(table, quantity)["value"].tolist() == [4.0]


def test_a_share_has_an_exact_interval():
    found = estimate(rows_of({f"p{i}": [float(i < 7)] for i in range(20)}), BINARY)
    low, high = stats.binomtest(7, 20).proportion_ci(0.95, method="exact")
    assert found.estimate == pytest.approx(7 / 20)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_a_ratio_is_one_of_sums_over_prompts_and_not_a_mean_of_ratios():
    rng = np.random.default_rng(0)
    values = {f"p{i}" + "x" * (i % 3): rng.normal(3, 1, rng.integers(1, 5)).tolist() for i in range(12)}
    table = rows_of(values, whole=2.0)
    above = {name: sum(mine) for name, mine in values.items()}
    below = {name: sum(2.0 + len(name) * at for at in range(len(mine))) for name, mine in values.items()}
    found = estimate(table, RATIO)
    expected = sum(above.values()) / sum(below.values())
    assert found.estimate == pytest.approx(expected)
    left_out = [(sum(above.values()) - above[name]) / (sum(below.values()) - below[name]) for name in values]
    n = len(values)
    se = np.sqrt((n - 1) / n * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    assert found.se == pytest.approx(se)
    assert found.high - found.estimate == pytest.approx(stats.t.ppf(0.975, n - 1) * se)


@pytest.fixture
def pairs():
    rng = np.random.default_rng(1)
    base = {f"p{i}": rng.normal(0, 1, rng.integers(1, 4)).tolist() for i in range(20)}
    variant = {f"p{i}": (rng.normal(0.5, 1, rng.integers(1, 4))).tolist() for i in range(5, 28)}
    return base, variant


def test_a_change_is_variant_minus_base_over_the_prompts_that_both_have(pairs):
    base, variant = pairs
    shared = [name for name in base if name in variant]
    differences = [np.mean(variant[name]) - np.mean(base[name]) for name in shared]
    found = change(rows_of(base), rows_of(variant), MEAN)
    assert found.difference.n == len(shared) == 15
    assert found.difference.estimate == pytest.approx(np.mean(differences))
    assert (found.difference.low, found.difference.high) == pytest.approx(t_interval(differences))
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert change(rows_of(variant), rows_of(base), MEAN).difference.estimate == pytest.approx(-np.mean(differences))


def test_a_change_of_a_ratio_pairs_numerators_and_denominators_by_prompt(pairs):
    base, variant = pairs
    shared = [name for name in base if name in variant]

    def sums(values):
        return (
            np.array([sum(values[name]) for name in shared]),
            np.array([sum(1.0 + len(name) * at for at in range(len(values[name]))) for name in shared]),
        )

    (above, below), (base_above, base_below) = sums(variant), sums(base)
    found = change(rows_of(base), rows_of(variant), RATIO)
    expected = above.sum() / below.sum() - base_above.sum() / base_below.sum()
    assert found.difference.estimate == pytest.approx(expected)
    left_out = np.array(
        [
            np.delete(above, i).sum() / np.delete(below, i).sum()
            - np.delete(base_above, i).sum() / np.delete(base_below, i).sum()
            for i in range(len(shared))
        ]
    )
    n = len(shared)
    se = np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))
    assert found.difference.se == pytest.approx(se)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(expected) / se, n - 1))


def test_a_change_of_right_and_wrong_is_tested_by_mcnemar():
    rng = np.random.default_rng(2)
    base = {f"p{i}": [float(rng.random() < 0.4)] for i in range(30)}
    variant = {f"p{i}": [float(rng.random() < 0.8)] for i in range(3, 40)}
    shared = [name for name in base if name in variant]
    up = sum(variant[name][0] > base[name][0] for name in shared)
    down = sum(variant[name][0] < base[name][0] for name in shared)
    found = change(rows_of(base), rows_of(variant), BINARY)
    assert found.difference.estimate == pytest.approx((up - down) / len(shared))
    assert found.difference.n == len(shared)
    assert found.p == pytest.approx(stats.binomtest(up, up + down, 0.5).pvalue)


def test_shares_of_several_rows_a_prompt_are_no_counts():
    """Declared binary, but a prompt's mean is a share: Student's t, and no McNemar."""
    base = {f"p{i}": [0.0, 1.0] for i in range(10)}
    variant = {f"p{i}": [1.0, 1.0] for i in range(10)}
    found = change(rows_of(base), rows_of(variant), BINARY)
    assert found.difference.estimate == pytest.approx(0.5)
    assert found.p == pytest.approx(2 * 0.5**10)  # all differ alike: only two of all sign patterns are as extreme


def test_nothing_in_common_is_no_number():
    for quantity in (MEAN, RATIO, BINARY):
        found = change(rows_of({"a": [1.0]}), rows_of({"b": [1.0]}), quantity)
        assert np.isnan(found.difference.estimate)
        assert found.difference.n == 0
        assert found.p == 1.0
        empty = estimate(rows_of({"a": [1.0]}, "other"), quantity)
        assert np.isnan(empty.estimate)
        assert empty.n == 0


def test_equal_readers_have_no_change_and_no_p(pairs):
    base, _ = pairs
    binary = {name: [float(mine[0] > 0)] for name, mine in base.items()}
    for values, quantity in ((base, MEAN), (base, RATIO), (binary, BINARY)):
        found = change(rows_of(values), rows_of(values), quantity)
        assert found.difference.estimate == 0
        assert found.p == 1.0


@pytest.mark.parametrize(
    ("right", "n", "chance", "expected"),
    [
        (20, 20, 0.0, True),
        (9, 20, 0.0, True),  # the exact lower end is .231
        (8, 20, 0.0, False),  # .191
        (20, 40, 0.25, True),  # .338
        (18, 40, 0.25, False),  # .293: above a fifth, not above guessing and .05
        (0, 20, 0.0, False),
    ],
)
def test_a_reader_is_scorable_from_the_lower_end_of_its_accuracy(right, n, chance, expected):
    low = stats.binomtest(right, n).proportion_ci(0.95, method="exact").low
    assert (low >= max(0.2, chance + 0.05)) == expected
    rows = pd.DataFrame(
        {"id": [f"p{i}" for i in range(n)], "condition": "intact", "right": [float(i < right) for i in range(n)]}
    ).assign(chance=chance)
    other = rows.assign(condition="early", right=1 - rows["right"])
    assert scorable(pd.concat([rows, other])) == expected
    assert not scorable(other)


def two_sides(changes: dict[str, float], n_steps=None):
    """Base and variant, which differs from it by these numbers and a little noise."""
    rng = np.random.default_rng(5)
    ids = list(changes)
    base = pd.DataFrame({"id": ids, "condition": "kept", "value": rng.normal(size=len(ids))})
    variant = base.assign(value=base["value"] + list(changes.values()) + 0.1 * rng.normal(size=len(ids)))
    if n_steps is not None:
        base, variant = base.assign(n_steps=n_steps[0]), variant.assign(n_steps=n_steps[1])
    return base, variant


@pytest.mark.parametrize(
    ("in_a", "in_b", "simpson"), [(-1.0, 3.0, True), (-1.0, 1.0, True), (0.0, 3.0, False), (1.0, 3.0, False)]
)
def test_a_change_that_turns_round_between_strata_is_found(in_a, in_b, simpson):
    """Simpson's: of forty prompts each half has its own change; one without a change turns nothing round."""
    ids = [f"p{at}" for at in range(40)]
    base, variant = two_sides({name: in_a if at % 2 else in_b for at, name in enumerate(ids)})
    labels = pd.Series(["a" if at % 2 else "b" for at in range(40)], index=ids)
    alone = pd.Series("all", index=ids)
    found = strata(base, variant, MEAN, {"half": labels, "whole": alone})
    assert found["simpson"] == simpson
    assert [(item["by"], item["stratum"]) for item in found["strata"]] == [
        ("half", "a"),
        ("half", "b"),
        ("whole", "all"),
    ]
    for item, expected in zip(found["strata"], (in_a, in_b, (in_a + in_b) / 2), strict=True):
        ids_in = set(labels.index[labels == item["stratum"]]) if item["by"] == "half" else set(ids)
        inside = (variant["value"] - base["value"])[base["id"].isin(ids_in)]
        assert item["difference"]["estimate"] == pytest.approx(inside.mean())
        assert (item["difference"]["low"], item["difference"]["high"]) == pytest.approx(t_interval(inside))
        assert item["difference"]["estimate"] == pytest.approx(expected, abs=0.1)


def test_a_stratum_against_the_whole_is_simpsons_too_and_one_of_few_prompts_is_none():
    """The rest, of too few prompts to be a stratum of its own, carries the whole the other way."""
    ids = [f"p{at}" for at in range(39)]
    changes = {name: -0.2 if at < 20 else 8.0 for at, name in enumerate(ids)}
    labels = pd.Series(["a"] * 20 + ["b"] * 19, index=ids)
    found = strata(*two_sides(changes), MEAN, {"half": labels})
    assert [item["stratum"] for item in found["strata"]] == ["a"]
    assert found["simpson"]
    assert not strata(*two_sides(dict.fromkeys(ids, 1.0)), MEAN, {"half": labels})["simpson"]


def test_lengths_are_matched_by_prompt():
    """Prompts whose two chains have as many steps: the even ones, whose change is another than that of the rest."""
    ids = [f"p{at}" for at in range(60)]
    changes = {name: 2.0 if at % 2 else -1.0 for at, name in enumerate(ids)}
    steps = [3 + at % 3 for at in range(60)]
    base, variant = two_sides(changes, (steps, [n + at % 2 for at, n in enumerate(steps)]))
    base = base[base["id"] != "p0"]
    found = length_matched([MEAN])(base, variant)["length_matched"]
    assert (found["prompts"], found["of"]) == (29, 59)
    even = variant["id"].isin(ids[2::2])
    apart = variant.loc[even, "value"].to_numpy() - base.loc[base["id"].isin(ids[2::2]), "value"].to_numpy()
    assert found["mean"]["difference"]["n"] == 29
    assert found["mean"]["difference"]["estimate"] == pytest.approx(apart.mean())
    assert (found["mean"]["difference"]["low"], found["mean"]["difference"]["high"]) == pytest.approx(t_interval(apart))
