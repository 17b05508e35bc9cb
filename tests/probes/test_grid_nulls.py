"""What probe grids say where there is nothing, and what their numbers do not depend on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import statistics
from analysis.errors import InputError
from probes.folds import assign_folds
from probes.grid import COLUMNS, DECODABLE, GridSettings
from probes.nulls import family_wise_p, permuted_labels
from probes.targets import LabelSet
from tests.probes.conftest import HOOKS, tables, text, write_store
from tests.probes.planted import (
    STEP_TWO,
    brought,
    by_scikit_learn,
    corpus,
    decodable,
    everywhere,
    fold_auc,
    grid_of,
    labels_of,
    names,
    noise,
    planted,
    step_two,
    table_of,
)


def bounds(n, p):
    """Between these a count of n lies but for once in a thousand times."""
    return stats.binom.ppf([5e-4, 1 - 5e-4], n, p)


@pytest.mark.parametrize(("draws", "cells"), [(19, 40), (99, 200)])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_family_wise_p_values_are_uniform_however_many_cells_and_few_draws(draws, cells, shared):
    """The smallest of a grid's p-values, where cells have scales of their own and may rise and fall together."""
    rng = np.random.default_rng(draws)
    scales, smallest = rng.uniform(0.1, 10, size=(cells, 1)), []
    for _ in range(400):
        together, apart = rng.normal(size=draws + 1), rng.normal(size=(cells, draws + 1))
        scores = 0.5 + scales * (np.sqrt(shared) * together + np.sqrt(1 - shared) * apart)
        smallest.append(min(family_wise_p(scores[:, 0], list(scores[:, 1:]))))
    for level in (0.05, 0.2, 0.5):
        low, high = bounds(400, level)
        assert low <= np.count_nonzero(np.array(smallest) <= level + 1e-12) <= high


def test_a_cell_with_a_signal_does_not_make_others_significant():
    rng, found = np.random.default_rng(1), 0
    for _ in range(400):
        scores = rng.normal(size=(30, 40))
        scores[0, 0] += 50
        p = family_wise_p(scores[:, 0], list(scores[:, 1:]))
        assert p[0] == 1 / 40
        found += min(p[1:]) <= 0.05
    assert found <= bounds(400, 0.05)[1]


def test_a_family_of_one_is_the_cell_alone_and_more_cells_only_raise_p():
    rng = np.random.default_rng(2)
    scores = np.round(rng.random(size=(6, 25)), 1)
    scores[5] = 0.5
    alone = [statistics.permutation_p(row[0], row[1:]) for row in scores]
    assert [family_wise_p(row[:1], [row[1:]])[0] for row in scores] == alone
    together = family_wise_p(scores[:, 0], list(scores[:, 1:]))
    assert (np.array(together) >= alone).all()
    assert np.isnan(family_wise_p(scores[:, 0], [np.empty(0)] * 6)).all()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_null_p_values_of_a_cell_are_uniform(tmp_path, n_classes):
    """Classes of one size, which folds share out evenly, as they do not share out a draw that goes across folds."""
    settings, p_values, permuted = GridSettings(permutations=19, control_draws=0), [], []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        rows = pd.DataFrame({"id": names(30), "label": rng.permutation(np.arange(30) % n_classes)})
        store = write_store(tmp_path / str(seed), rows, {"acts": rng.normal(size=(30, 4)).astype(np.float32)})
        line = grid_of(store, settings).table.iloc[0]
        p_values.append(line["p"])
        permuted.append(line["permuted"])
    assert np.count_nonzero(np.array(p_values) < 0.051) <= bounds(120, 0.05)[1]
    counts = np.bincount((np.array(p_values) * 20).round().astype(int) - 1, minlength=20).reshape(4, 5).sum(1)
    assert counts[0] <= bounds(120, 0.25)[1]
    # Nor is p always large; scores of thirty rows are often the same, which makes p larger and never smaller.
    assert counts[0] >= bounds(120, 0.15)[0]
    assert np.mean(permuted) == pytest.approx(1 / n_classes, abs=0.03)


def test_null_grids_have_a_decodable_cell_no_more_than_once_in_twenty(tmp_path):
    settings, found = GridSettings(permutations=19, control_draws=0), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = np.repeat(rng.random(30) < 0.4, 3)
        rows = pd.DataFrame({"id": np.repeat(names(30), 3), "position": list("abc") * 30, "label": labels})
        store = write_store(tmp_path / str(seed), rows, {"acts": rng.normal(size=(90, 5)).astype(np.float32)})
        found += bool(decodable(table_of(store, settings)))
    assert found <= bounds(40, 0.05)[1]


@pytest.mark.parametrize("seed", range(3))
def test_of_rare_labels_without_a_signal_nothing_is_found(make_store, seed):
    labels = labels_of(120, share=0.1, seed=seed)
    rows, texts = corpus(labels, seed=seed)
    table = table_of(make_store(rows, planted(rows, labels, everywhere, strength=0.0, seed=10 * seed), texts))
    assert (table["majority_rate"] == 0.9).all()
    assert not decodable(table)
    assert 0.4 < table["score"].mean() < 0.6
    assert 0.45 < table["permuted"].mean() < 0.55
    assert (table["accuracy"] > 0.8).all()
    assert (table["balanced_accuracy"] < 0.6).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_label_of_the_prompt_does_not_show_through_what_its_rows_share(make_store, seed):
    """Six rows a prompt, nearly equal: 40 points that more than 40 dimensions can split in any way.

    Held out by row, every label is read from the prompt's other rows; held out by prompt, none is.
    """
    rng = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(40), 6)
    labels = rng.permutation(np.arange(40) % 2)[prompts]
    x = 3 * rng.normal(size=(40, 60))[prompts] + 0.1 * rng.normal(size=(240, 60))
    line = grid_of(brought(make_store, x, id=[f"p{i}" for i in prompts], label=labels)).table.iloc[0]
    assert (line["n_prompts"], line["n_rows"]) == (40, 240)
    assert line["finding"] != DECODABLE
    assert line["p"] > 0.02
    # Of 240 rows as if they were independent, the interval would be less than half as wide.
    assert line["high"] - line["low"] > 0.3
    by_rows = grid_of(brought(make_store, x, id=names(240), label=labels), GridSettings(permutations=0))
    assert by_rows.table["score"].iloc[0] > 0.95


def test_twenty_dimensions_cannot_split_forty_prompts_at_will(make_store):
    """Nor can scikit-learn's ridge, with the same folds: the scores below .95 are the activations', not the grid's."""
    found = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(40) % 2)[np.repeat(np.arange(40), 3)]
        x = 3 * rng.normal(size=(40, 20))[np.repeat(np.arange(40), 3)] + 0.1 * rng.normal(size=(120, 20))
        x = x.astype(np.float32)
        grid = grid_of(brought(make_store, x, id=names(120), label=labels), GridSettings(permutations=0))
        folds = np.array([grid.folds[name] for name in names(120)])
        outputs = by_scikit_learn(x.astype(float), np.where(labels, 1.0, -1.0)[:, None], folds, np.arange(120))
        found.append(grid.table["score"].iloc[0])
        assert found[-1] == pytest.approx(fold_auc(labels, outputs[:, 0], folds), abs=1e-9)
    assert min(found) < 0.9


@pytest.mark.parametrize(("sizes", "exchanged"), [([1] * 5, True), ([2, 2, 3, 3, 3], True), ([1, 2, 3, 4, 5], False)])
def test_permuted_labels_are_exchanged_between_prompts_of_as_many_rows(sizes, exchanged):
    ids = np.repeat(names(5), sizes)
    order = np.random.default_rng(0).permutation(len(ids))
    values = np.arange(len(ids))[order]
    blocks = {tuple(values[ids[order] == name]) for name in set(ids)}
    different = set()
    for labels in permuted_labels(LabelSet(values.astype(float), None), ids[order], 40, 0):
        now = [tuple(labels.values[ids[order] == name].astype(int)) for name in sorted(set(ids))]
        assert set(now) == blocks
        different.add(tuple(now))
    assert (len(different) > 1) == exchanged


def test_every_order_of_prompts_is_as_likely_and_within_folds_every_order_of_each():
    """24 orders of four prompts over 2,400 draws; four of two folds of two."""
    labels, ids = LabelSet(np.arange(4.0), None), np.array(list("abcd"))
    for folds, orders in ((None, 24), (np.array([1, 0, 1, 0]), 4)):
        drawn = [tuple(found.values.astype(int)) for found in permuted_labels(labels, ids, 2400, 3, folds)]
        counts = pd.Series(drawn).value_counts()
        assert len(counts) == orders
        assert stats.chisquare(counts).pvalue > 0.001
    assert {frozenset(order[::2]) for order in counts.index} == {frozenset({0, 2})}


def assert_same_tables(first, second, tolerance=1e-9):
    words = ["site", "metric", "best_baseline", "finding", "not_had"]
    pd.testing.assert_frame_equal(first[words], second[words])
    numbers = [name for name in COLUMNS if name in first and name not in words]
    left, right = (frame[numbers].astype(float).to_numpy() for frame in (first, second))
    np.testing.assert_allclose(left, right, atol=tolerance, rtol=tolerance)


def shuffled(rows, hooks, seed=0):
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.iloc[order].reset_index(drop=True), {name: value[order] for name, value in hooks.items()}


@pytest.mark.parametrize("positions", [None, ["step_ends"]])
def test_the_order_of_rows_in_the_store_does_not_matter(make_store, positions):
    labels = labels_of(40)
    rows, texts = corpus(labels)
    hooks = planted(rows, labels, step_two, strength=1.0)
    stores = make_store(rows, hooks, texts), make_store(*shuffled(rows, hooks), texts)
    assert_same_tables(*(table_of(store, positions=positions) for store in stores))


def test_the_numbers_that_a_store_gave_its_texts_do_not_matter(make_store):
    """Two texts a prompt, by two authors and with labels of their own."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(60):
        steps = [f"{a} + {b} = {c}" for a, b, c in rng.integers(9, size=(2, 3))]
        known = {"id": f"p{number // 2}", "author": ["gold", "sft"][number % 2], "meta.label": int(rng.integers(3))}
        lines.append(text(number, f"w{number}", steps, "1", **known))
    rows, texts = tables(lines)
    hooks = {HOOKS[0]: noise(rows, 1).astype(np.float32)}
    number = rng.permutation(60)
    renumbered = (rows.assign(text=number[rows["text"]]), hooks, texts.assign(text=number[texts["text"]]))
    stores = make_store(rows, hooks, texts), make_store(*renumbered)
    assert_same_tables(*(table_of(store, positions=["answer", "step_ends"]) for store in stores))


def test_the_order_of_rows_in_a_store_that_was_brought_does_not_matter(make_store):
    """All rows of a prompt in one cell, told apart by a column `position` alone."""
    rows = pd.DataFrame({"id": np.repeat(names(40), 3), "position": list("abc") * 40})
    rows["label"] = np.random.default_rng(0).integers(2, size=120)
    hooks = {"acts": noise(rows, 3).astype(np.float32)}
    stores = make_store(rows, hooks), make_store(*shuffled(rows, hooks))
    assert_same_tables(*(table_of(store, positions=["all rows"]) for store in stores))


def test_a_twins_rows_are_found_by_what_they_are_of_and_not_by_their_order(make_store):
    labels = labels_of(60)
    rows, texts = corpus(labels)
    store = make_store(rows, planted(rows, labels, step_two), texts)
    hooks = planted(rows, labels, step_two, seed=50)
    twins = make_store(rows, hooks, texts), make_store(*shuffled(rows, hooks), texts)
    first, second = (table_of(store, twin=twin) for twin in twins)
    assert_same_tables(first, second)
    assert second.loc[STEP_TWO, "twin"] > 0.95
    assert second.loc[STEP_TWO, "finding"] == "not above the random-init twin"
    own = table_of(make_store(rows, hooks, texts))
    np.testing.assert_allclose(second["twin"], own["score"], atol=1e-9)
    assert decodable(table_of(store)) == {STEP_TWO}


def test_the_twin_must_be_of_the_same_texts_and_hooks(make_store):
    labels = labels_of(30)
    rows, texts = corpus(labels)
    hooks = planted(rows, labels, everywhere)
    store = make_store(rows, hooks, texts)
    less = (rows["id"] != "p4").to_numpy()
    fewer = make_store(rows[less].reset_index(drop=True), {k: v[less] for k, v in hooks.items()}, texts)
    with pytest.raises(InputError, match="twin: has no row for 1 rows"):
        grid_of(store, twin=fewer)
    with pytest.raises(InputError, match=r"holds no hook"):
        grid_of(store, twin=make_store(rows, {HOOKS[0]: hooks[HOOKS[0]]}, texts))
    with pytest.raises(InputError, match="no row in common"):
        grid_of(store, twin=make_store(rows.assign(author="sft"), hooks, texts))


def test_a_store_and_its_copy_give_one_table_and_another_seed_another(make_store):
    labels = labels_of(40)
    rows, texts = corpus(labels)
    hooks = planted(rows, labels, step_two, strength=1.0)
    base, copy = (make_store(rows, hooks, texts) for _ in range(2))
    first, second = (table_of(store, layers="1") for store in (base, copy))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    other = table_of(base, GridSettings(permutations=39, control_draws=3, seed=1), layers="1")
    assert not np.allclose(other["score"], first["score"])


def test_a_cell_is_the_same_whatever_other_hooks_and_positions_are_fitted(make_store):
    labels = labels_of(40)
    rows, texts = corpus(labels)
    store = make_store(rows, planted(rows, labels, step_two, strength=1.0), texts)
    whole, alone = table_of(store), table_of(store, layers="1", positions=["step 2"])
    free = [name for name in alone if name not in ("p_grid", "finding")]
    pd.testing.assert_series_equal(whole[free].loc[STEP_TWO], alone[free].iloc[0], check_exact=False)
    assert alone["p_grid"].iloc[0] == alone["p"].iloc[0]
    assert (whole["p_grid"] >= whole["p"]).all()


def test_rows_without_a_label_are_counted_cell_by_cell_and_their_prompts_named(make_store):
    labels = [None if i in (3, 5) else i % 2 == 0 for i in range(30)]
    rows, texts = corpus(labels)
    # The question end of one more prompt is not in the store.
    rows = rows[~((rows["id"] == "p8") & (rows["part"] == "question"))].reset_index(drop=True)
    hooks = {HOOKS[0]: noise(rows, 0).astype(np.float32)}
    grid = grid_of(make_store(rows, hooks, texts))
    table = grid.table.set_index("position")
    assert table["n_prompts"].to_dict() == {"question_end": 27, "step 1": 28, "step 2": 28, "answer": 28}
    assert (table["without_label"] == 2).all()
    named = grid.excluded.groupby("position")["id"].apply(sorted).to_dict()
    assert named == {name: ["p3", "p5"] for name in table.index}
    assert set(grid.excluded["reason"]) == {"not known for the text"}
    assert not {"p3", "p5"} & set(grid.folds)
    there = ~rows["id"].isin(["p3", "p5"]).to_numpy()
    without = make_store(rows[there].reset_index(drop=True), {HOOKS[0]: hooks[HOOKS[0]][there]}, texts)
    columns = [name for name in COLUMNS if name != "without_label"]
    pd.testing.assert_frame_equal(grid_of(without).table[columns], grid.table[columns])


def test_cells_that_cannot_be_scored_are_left_out_with_the_reason(make_store):
    """Few prompts, one label, one prompt of a label, and folds without two labels to compare."""
    n, ids = 30, [f"p{i:02d}" for i in range(30)]
    folds = assign_folds(ids, ["0" if i % 2 else "1" for i in range(n)], 5, 0)
    # One prompt of each fold, as the grid deals them: no two of them are compared.
    apart = [next(i for i in range(fold % 2, n, 2) if folds[ids[i]] == fold) for fold in range(5)]
    kinds = {"full": range(n), "few": range(4), "single": range(0, n, 2), "lone": [0, *range(1, n, 2)]}
    kinds |= {"apart": apart, "together": [i for i in range(n) if folds[ids[i]] == 2]}
    lines = [(ids[i], name, 1 - i % 2) for name, numbers in kinds.items() for i in numbers]
    rows = pd.DataFrame(lines, columns=["id", "position", "label"])
    store = make_store(rows, {"acts": noise(rows, 0).astype(np.float32)})
    grid = grid_of(store)
    assert grid.table["position"].tolist() == ["full"]
    assert grid.excluded["id"].isna().all()
    said = {
        "few": "fewer than the 5 folds",
        "single": "same label",
        "lone": "single prompt",
        "apart": "of their fold",
        "together": "1 folds",
    }
    reasons = grid.excluded.set_index("position")["reason"].to_dict()
    assert set(reasons) == set(said)
    for name, words in said.items():
        assert words in reasons[name]
        with pytest.raises(InputError, match=rf"no position .*{name}: "):
            grid_of(store, positions=[name])


def test_draws_without_a_fold_of_both_labels_do_not_stop_a_grid(make_store):
    """Two prompts of ten have the other label: some orders put them into one fold, alone."""
    labels = [1, 1, *[0] * 8]
    store = brought(make_store, noise(labels, 0), id=list("abcdefghij"), label=labels)
    line = grid_of(store, GridSettings(permutations=200, control_draws=0)).table.iloc[0]
    assert 0 < line["p"] <= 1
    assert 0.3 < line["permuted"] < 0.7


def test_with_two_folds_there_is_none_to_choose_the_penalty_where_prompts_have_many_rows(make_store):
    labels = np.repeat(np.arange(20) % 2, 3)
    x, settings = noise(labels, 0), GridSettings(folds=2, permutations=0)
    with pytest.raises(InputError, match="folds"):
        grid_of(brought(make_store, x, id=np.repeat(names(20), 3), label=labels), settings)
    assert len(grid_of(brought(make_store, x, id=names(60), label=labels), settings).table) == 1


def test_without_permutations_and_control_task_the_table_says_so(make_store):
    labels = labels_of(30)
    store = brought(make_store, noise(labels, 0), id=names(30), label=labels)
    line = grid_of(store, GridSettings(permutations=0, control_draws=0)).table.iloc[0]
    assert "permuted labels" in line["not_had"]
    assert "control task" in line["not_had"]
    assert line[["permuted", "p", "p_grid", "control"]].isna().all()


def test_where_hardly_any_prompts_can_exchange_labels_the_table_says_so(make_store):
    """Prompts with a number of rows of their own: 1, 2, 3 … of one place each."""
    ids = np.repeat(names(12), np.arange(1, 13))
    labels = np.repeat(np.arange(12) % 2, np.arange(1, 13))
    store = brought(make_store, np.random.default_rng(0).normal(size=(len(ids), 4)), id=ids, label=labels)
    found = table_of(store, GridSettings(permutations=20, control_draws=0)).iloc[0]
    assert "permuted labels: only 0 of 12 prompts have one with as many rows" in found["not_had"]
    assert np.isnan(found["p_grid"])
    assert "permuted" not in found["finding"]
