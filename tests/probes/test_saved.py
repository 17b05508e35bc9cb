"""Saved probes: what comes back is what was fitted, bit for bit, and nothing damaged or foreign is applied."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.errors import InputError
from analysis.sealed import CARD
from analysis.store_writer import StorePlan, writing
from probes.estimators import (
    LogisticProbe,
    MassMeanProbe,
    MLPProbe,
    MLPProbeRegressor,
    RidgeProbe,
    RidgeProbeRegressor,
    raw_weights,
    saved_probe,
)
from probes.ridge import fit_ridge
from probes.saved import VERSION, WEIGHTS, ProbeSet, SavedProbe

HOOKS = {"blocks.0.hook_resid_post": (8,), "blocks.0.attn.hook_z": (2, 3)}
RESIDUAL, HEADS = HOOKS
POSITIONS = ("question_end", "step 2")
CLASSIFIERS = {
    "ridge": RidgeProbe(),
    "logistic": LogisticProbe(),
    "mass-mean": MassMeanProbe(),
    "whitened": MassMeanProbe(whiten=True),
    "mlp": MLPProbe(hidden=5),
}
N = 30


def make_store(directory, dtype="float32", shift=0.0, hooks=HOOKS, rows=None, **settings):
    """30 prompts with a question's end and two steps' ends each, mixed up, in shards of other bounds."""
    rng = np.random.default_rng(0)
    if rows is None:
        parts = [("question", 0), ("step", 1), ("step", 2)]
        table = [(f"p{i}", "gold", i, part, step, True) for i in range(N) for part, step in parts]
        rows = pd.DataFrame(table, columns=["id", "author", "text", "part", "step", "end"])
        rows = rows.iloc[rng.permutation(len(rows))].reset_index(drop=True)
    values = {
        name: torch.from_numpy(rng.normal(size=(len(rows), *shape)) * 5 + shift).to(getattr(torch, dtype))
        for name, shape in hooks.items()
    }
    bounds = [0, 7, 41, len(rows)] if len(rows) > 41 else [0, len(rows)]
    plan = StorePlan(
        settings={"made_by": "capture", "model": "a" * 64, **settings},
        hooks=hooks,
        dtype=dtype,
        rows=rows,
        excluded=pd.DataFrame({"id": [], "author": [], "reason": []}, dtype="string"),
        shard_rows=np.diff(bounds).tolist(),
    )
    with writing(directory, plan) as writer:
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            writer.write(number, {name: value[start:stop] for name, value in values.items()})
        return writer.finish()


def rows_by_hand(store, position):
    part, step = {"question_end": ("question", 0), "step 2": ("step", 2)}[position]
    return np.array([i for i, row in store.rows.iterrows() if (row["part"], row["step"]) == (part, step)])


def activations(store, hook, position):
    values = store.read(hook)[torch.from_numpy(rows_by_hand(store, position))]
    return values.flatten(1).float().numpy()


def labels_of(n_classes, seed=0):
    return np.array(["même", "andere", "third"][:n_classes])[np.random.default_rng(seed).permutation(N) % n_classes]


def train(store, estimator, y, card=None):
    fitted, saved = {}, []
    for hook in HOOKS:
        for position in POSITIONS:
            probe = type(estimator)(**estimator.get_params()).fit(activations(store, hook, position), y)
            fitted[hook, position] = probe
            saved.append(saved_probe(probe, hook=hook, position=position))
    return fitted, ProbeSet({"model": "a" * 64, "target": "answer"} if card is None else card, tuple(saved))


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "store")


@pytest.fixture
def probes(store):
    return train(store, RidgeProbe(), labels_of(2))[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_what_was_saved_says_of_a_store_what_the_fitted_estimator_says(tmp_path, name, n_classes, dtype):
    store = make_store(tmp_path / "store", dtype)
    fitted, probe_set = train(store, CLASSIFIERS[name], labels_of(n_classes))
    probe_set.save(tmp_path / "probes")
    loaded = ProbeSet.load(tmp_path / "probes")
    table = loaded.apply(store)
    assert list(table.columns) == ["row", "id", "hook", "position", "predicted", "output"]
    assert len(table) == len(HOOKS) * len(POSITIONS) * N
    for (hook, position), estimator in fitted.items():
        part = table[(table["hook"] == hook) & (table["position"] == position)]
        rows, x = rows_by_hand(store, position), activations(store, hook, position)
        decisions = estimator.decision_function(x)
        assert part["row"].tolist() == rows.tolist()
        assert part["id"].tolist() == store.rows["id"][rows].tolist()
        assert part["predicted"].tolist() == estimator.predict(x).tolist()
        assert np.array_equal(part["output"], decisions if n_classes == 2 else decisions.max(1))
        assert np.array_equal(np.squeeze(loaded.of(hook, position).outputs(x)), decisions)


@pytest.mark.parametrize("estimator", [RidgeProbeRegressor(), MLPProbeRegressor(hidden=5)], ids=repr)
def test_what_was_saved_predicts_the_numbers_of_the_fitted_estimator(tmp_path, store, estimator):
    y = np.random.default_rng(1).normal(size=N) * 40 + 1000
    fitted, probe_set = train(store, estimator, y)
    probe_set.save(tmp_path / "probes")
    table = ProbeSet.load(tmp_path / "probes").apply(store)
    expected = [fitted[place].predict(activations(store, *place)) for place in fitted]
    assert np.array_equal(table["predicted"], np.concatenate(expected))
    assert np.array_equal(table["predicted"], table["output"])


@pytest.mark.parametrize("labels", [[False, True], [4, 19], [0.0, 2.0], ["a", "b"]], ids=str)
def test_classes_come_back_of_their_own_type(tmp_path, store, labels):
    _, probe_set = train(store, MassMeanProbe(), np.array(labels)[np.arange(N) % 2])
    probe_set.save(tmp_path / "probes")
    loaded = ProbeSet.load(tmp_path / "probes")
    assert [(type(label), label) for label in loaded.probes[0].classes] == [(type(label), label) for label in labels]
    assert set(loaded.apply(store)["predicted"].tolist()) == set(labels)


def test_outputs_are_the_sums_of_the_definition():
    rng = np.random.default_rng(0)
    shapes = {"mean": 3, "scale": 3, "hidden_coef": (3, 4), "hidden_intercept": 4, "coef": (4, 2), "intercept": 2}
    w = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    w = w | {"coef": w["coef"][:, :1], "intercept": w["intercept"][:1]}
    x = rng.normal(size=(5, 3))
    expected = []
    for row in x:
        standard = [(row[i] - w["mean"][i]) / w["scale"][i] for i in range(3)]
        units = [
            max(0.0, sum(standard[i] * w["hidden_coef"][i, j] for i in range(3)) + w["hidden_intercept"][j])
            for j in range(4)
        ]
        expected.append(sum(units[j] * w["coef"][j, 0] for j in range(4)) + w["intercept"][0])
    probe = SavedProbe("mlp", "classification", ("no", "yes"), RESIDUAL, "answer", 3, w)
    assert probe.outputs(x)[:, 0] == pytest.approx(expected, rel=1e-12)
    assert probe.predict(x).tolist() == ["yes" if value > 0 else "no" for value in expected]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_step_along_its_direction_moves_an_output_by_the_weights_norm(store, n_classes):
    fitted, probe_set = train(store, LogisticProbe(), labels_of(n_classes))
    probe, estimator = probe_set.of(RESIDUAL, "step 2"), fitted[RESIDUAL, "step 2"]
    x = activations(store, RESIDUAL, "step 2").astype(float)
    assert probe.direction.shape == (8, 1 if n_classes == 2 else 3)
    for output, unit in enumerate(probe.direction.T):
        assert np.linalg.norm(unit) == pytest.approx(1)
        moved = (probe.outputs(x + 2.5 * unit) - probe.outputs(x))[:, output]
        assert moved == pytest.approx(np.full(N, 2.5 * np.linalg.norm(estimator.coef_[output])))


def test_what_has_no_direction_says_so(store):
    x, y = activations(store, RESIDUAL, "step 2"), labels_of(2)
    network = saved_probe(MLPProbe().fit(x, y), hook=RESIDUAL, position="step 2")
    with pytest.raises(InputError, match="hidden layer"):
        _ = network.direction
    constant = saved_probe(RidgeProbe().fit(np.ones((N, 8)), y), hook=RESIDUAL, position="step 2")
    with pytest.raises(InputError, match="weights are 0"):
        _ = constant.direction


def test_a_map_of_standardised_activations_is_saved_as_one_of_raw_ones(store):
    x = torch.from_numpy(activations(store, RESIDUAL, "step 2")) * 100 + 1000
    y = np.random.default_rng(2).normal(size=(N, 1))
    linear = fit_ridge(x, y, [slice(0, 1)], np.arange(N) % 2, one_row_each=True).full
    probe = SavedProbe("ridge", "regression", None, RESIDUAL, "step 2", 8, raw_weights(linear))
    assert probe.outputs(x) == pytest.approx(linear(x).numpy(), rel=1e-9, abs=1e-11)


def test_the_card_is_told_as_it_was_given_and_can_be_read(tmp_path, store):
    given = {
        "model": "a" * 64,
        "target": "die größte Zahl",
        "scores": {"auc": 0.1 + 0.2},
        "classes": ["même"],
        "n": None,
    }
    train(store, MassMeanProbe(), labels_of(3), given)[1].save(tmp_path / "probes")
    text = (tmp_path / "probes" / CARD).read_text(encoding="utf-8")
    written = json.loads(text)
    assert "die größte Zahl" in text
    assert text.count("\n") > 20
    assert written["version"] == VERSION
    assert written["probes"][0] == {
        "kind": "mass-mean",
        "task": "classification",
        "classes": ["andere", "même", "third"],
        "hook": RESIDUAL,
        "position": "question_end",
        "width": 8,
    }
    assert ProbeSet.load(tmp_path / "probes").card == given


def test_tuples_and_numbers_as_keys_become_what_json_knows(tmp_path, probes):
    keyed = dataclasses.replace(probes, card={"scores": {10: 0.5, 9: (0.1, 0.2)}})
    keyed.save(tmp_path / "probes")
    assert ProbeSet.load(tmp_path / "probes").card == {"scores": {"10": 0.5, "9": [0.1, 0.2]}}


def test_the_same_probes_are_saved_as_the_same_bytes(tmp_path, probes):
    for name in "ab":
        probes.save(tmp_path / name)
    for file in (CARD, WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_set_is_saved_over_an_earlier_one_and_over_nothing_else(tmp_path, store, probes):
    probes.save(tmp_path / "probes")
    train(store, MassMeanProbe(), labels_of(2), {"target": "other"})[1].save(tmp_path / "probes")
    assert ProbeSet.load(tmp_path / "probes").card == {"target": "other"}
    assert sorted(path.name for path in (tmp_path / "probes").iterdir()) == [CARD, WEIGHTS]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"something else \(notes.txt\)"):
        probes.save(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="another directory"):
        probes.save(tmp_path / "file")


@pytest.mark.parametrize("bad", [float("nan"), np.float32(1), object()], ids=["nan", "float32", "object"])
def test_a_card_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, probes, bad):
    with pytest.raises(InputError, match="JSON"):
        dataclasses.replace(probes, card={"scores": bad}).save(tmp_path / "probes")
    assert not (tmp_path / "probes").exists()


def edited(directory, change):
    content = json.loads((directory / CARD).read_text(encoding="utf-8"))
    change(content)
    (directory / CARD).write_text(json.dumps(content), encoding="utf-8")


def flipped(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "no card": lambda d: (d / CARD).unlink(),
    "no weights": lambda d: (d / WEIGHTS).unlink(),
    "card cut off": lambda d: (d / CARD).write_bytes((d / CARD).read_bytes()[:300]),
    "card empty": lambda d: (d / CARD).write_bytes(b""),
    "card no text": lambda d: (d / CARD).write_bytes(b"\xff\xfe{"),
    "card a list": lambda d: (d / CARD).write_text("[1]"),
    "card too deep": lambda d: (d / CARD).write_text("[" * 100_000),
    "no digest": lambda d: edited(d, lambda c: c.pop("sha256")),
    "no probes": lambda d: edited(d, lambda c: c.pop("probes")),
    "other version": lambda d: edited(d, lambda c: c.update(version=2)),
    "classes turned round": lambda d: edited(d, lambda c: c["probes"][0]["classes"].reverse()),
    "other position": lambda d: edited(d, lambda c: c["probes"][0].update(position="answer")),
    "other score": lambda d: edited(d, lambda c: c.update(target="cue")),
    "weights cut off": lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-8]),
    "weights empty": lambda d: (d / WEIGHTS).write_bytes(b""),
    "a bit of a weight": lambda d: flipped(d / WEIGHTS, -1),
    "a bit of the weights' head": lambda d: flipped(d / WEIGHTS, 20),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_not_loaded(tmp_path, probes, name):
    probes.save(tmp_path / "probes")
    DAMAGES[name](tmp_path / "probes")
    with pytest.raises(InputError, match="probe set"):
        ProbeSet.load(tmp_path / "probes")


def test_weights_of_another_set_are_not_taken_for_this_ones(tmp_path, store, probes):
    """As after a saving over an earlier set that was killed between its two files."""
    probes.save(tmp_path / "probes")
    train(store, RidgeProbe(), labels_of(2, seed=5))[1].save(tmp_path / "other")
    (tmp_path / "probes" / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    with pytest.raises(InputError, match="not what was written"):
        ProbeSet.load(tmp_path / "probes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "svm"}, "svm"),
        ({"task": "ranking"}, "ranking"),
        ({"classes": None}, "a classification has some"),
        ({"classes": ("a", "a")}, "different texts"),
        ({"classes": ("a", 1)}, "of one type"),
        ({"classes": (None, "a")}, "of one type"),
        ({"classes": ("a",)}, "two or more"),
        ({"classes": ("a", "b", "c")}, r"coef is float64 \[8, 1\], expected float64 \[8, 3\]"),
        ({"width": 7}, r"expected float64 \[7, 1\]"),
        ({"width": "8"}, "whole number"),
        ({"kind": "mlp"}, "hidden_coef"),
        ({"tensors": {"coef": np.ones((8, 1))}}, "intercept"),
        ({"tensors": {"coef": np.ones((8, 1)), "intercept": np.array([np.nan])}}, "not finite"),
        ({"tensors": {"coef": np.ones((8, 1), np.float32), "intercept": np.ones(1)}}, "float32"),
    ],
    ids=str,
)
def test_a_probe_that_does_not_fit_itself_is_refused(probes, change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(probes.probes[0], **change)


def test_a_set_has_one_task_one_probe_a_place_and_a_card_of_free_names(store, probes):
    with pytest.raises(InputError, match="one a hook and position"):
        ProbeSet({}, (*probes.probes, probes.probes[1]))
    with pytest.raises(InputError, match="at least one"):
        ProbeSet({}, ())
    regression = train(store, RidgeProbeRegressor(), np.arange(N) / 3)[1]
    with pytest.raises(InputError, match="two directories"):
        ProbeSet({}, (probes.probes[0], regression.probes[1]))
    with pytest.raises(InputError, match="version"):
        ProbeSet({"version": 3}, probes.probes)


def test_a_probe_is_found_by_its_place(probes):
    assert probes.of(HEADS, "step 2") is probes.probes[3]
    with pytest.raises(InputError, match=r"'answer'; it holds .* at question_end"):
        probes.of(HEADS, "answer")


def test_activations_of_another_width_are_refused_with_both(probes):
    for x in (np.ones((4, 9)), torch.ones(4, 9), np.ones(8)):
        with pytest.raises(InputError, match=r"width 8, found shape \[(4, 9|8)\]"):
            probes.probes[0].outputs(x)
    assert probes.probes[0].outputs(np.ones((0, 8))).shape == (0, 1)


def test_a_store_that_lacks_a_hook_or_has_another_width_is_refused(tmp_path, probes):
    narrow = make_store(tmp_path / "narrow", hooks={**HOOKS, RESIDUAL: (5,)})
    with pytest.raises(InputError, match=r"is 5 wide, and its probe was trained on width 8"):
        probes.apply(narrow)
    with pytest.raises(InputError, match=rf"no hook '{HEADS}'.* holds {RESIDUAL}"):
        probes.apply(make_store(tmp_path / "lacking", hooks={RESIDUAL: (8,)}))


@pytest.mark.parametrize("settings", [{"model": "b" * 64}, {"random_init": 0}])
def test_a_store_of_another_model_is_refused_unless_any_is_allowed(tmp_path, probes, settings):
    other = make_store(tmp_path / "other", **settings)
    with pytest.raises(InputError, match="trained on aaaa"):
        probes.apply(other)
    assert len(probes.apply(other, any_model=True)) == 4 * N


def test_where_no_model_is_known_widths_decide(tmp_path, store, probes):
    assert len(probes.apply(make_store(tmp_path / "brought", model=None))) == 4 * N
    assert len(dataclasses.replace(probes, card={}).apply(store)) == 4 * N


def test_a_probe_without_rows_adds_none_and_a_set_without_rows_is_refused(tmp_path, store, probes):
    rows = store.rows[store.rows["step"] < 2].reset_index(drop=True)
    short = make_store(tmp_path / "short", rows=rows)
    table = probes.apply(short)
    assert set(table["position"]) == {"question_end"}
    assert len(table) == 2 * N
    late = dataclasses.replace(probes, probes=tuple(p for p in probes.probes if p.position == "step 2"))
    with pytest.raises(InputError, match="no row at step 2"):
        late.apply(short)


def test_positions_of_a_store_that_was_brought_are_values_of_its_column(tmp_path, probes):
    rows = pd.DataFrame({"id": [f"p{i}" for i in range(6)], "position": list("ababab")})
    brought = make_store(tmp_path / "brought", rows=rows, model=None)
    at_b = ProbeSet({}, (dataclasses.replace(probes.probes[0], position="b"),))
    assert at_b.apply(brought)["row"].tolist() == [1, 3, 5]
    with pytest.raises(InputError, match="question_end"):
        probes.apply(brought)


def test_a_row_that_is_not_finite_is_named_by_its_number_in_the_store(tmp_path, probes):
    overflown = make_store(tmp_path / "overflown", "float16", shift=1e6)
    with pytest.raises(InputError, match=f"row {rows_by_hand(overflown, 'question_end')[0]} "):
        dataclasses.replace(probes, probes=probes.probes[:1]).apply(overflown)
