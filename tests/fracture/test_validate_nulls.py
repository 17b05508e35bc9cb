"""Null experiments on made studies: draws weigh as a study does, find what is planted, and nothing where there is
nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from analysis.routes import effects
from fracture.evidence import FOR
from fracture.validation.nulls import Drawn, permuted_labels, rounded_copy, self_pairs
from fracture.validation.readers import reader_cells, simulated_readers
from tests.fracture.report_runs import Made, write_run

MEASURES = ("early_answering", "information_gain", "patch_map", "chain_effect", "rule_shift", "readout")


def skip(done: int) -> None:
    """Shows no progress."""


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A study in which one prompt has no counterfactual partner, and another's tokens do not align."""
    made = Made(
        {"same": 0.0, "dose_1": 1.0, "collapsed": None}, measures=MEASURES, alone=(3,), crooked=(5,), prompts=30
    )
    return write_run(tmp_path_factory.mktemp("nulls") / "run", made)


@pytest.mark.parametrize("variant", ["same", "dose_1", "collapsed"])
def test_all_prompts_as_they_are_give_the_verdict_and_the_evidence_of_the_study(studied, variant):
    drawn = Drawn.of(studied, variant)
    said = studied.summary["variants"][variant]
    found = drawn.verdict(0.1)
    assert (found.label, found.reason) == (said["verdict"], said["reason"])
    stances = {(item["measure"], item["quantity"], item["condition"]): item["stance"] for item in said["evidence"]}
    assert drawn.stances(0.1, variant != "collapsed") == stances
    for key, values in drawn.values.items():
        name, quantity, condition = key
        theirs = studied.summary["measures"][name]["changes"][variant][condition][quantity]
        ours = values.change()
        assert ours.p == pytest.approx(theirs["p"], rel=1e-9), key
        for end in ("estimate", "low", "high", "n"):
            assert getattr(ours.difference, end) == pytest.approx(theirs["difference"][end], rel=1e-9, abs=1e-12), key


def test_a_prompt_drawn_twice_counts_twice_and_one_not_drawn_not_at_all(studied):
    drawn = Drawn.of(studied, "dose_1")
    first, second = drawn.ids[:2]
    places = np.array([drawn.ids.index(first)] * 2 + [drawn.ids.index(second)])
    again = drawn.resampled(places)
    assert len(again.effects["routes"][0]) == len(again.effects["routes"][1]) == 3
    assert again.effects["routes"][0]["id"].is_unique
    table = studied.table("routes")
    rows = table[(table["reader"] == "dose_1") & (table["chain"] == "whole")].set_index("id")
    assert again.effects["routes"][1]["nie"].tolist() == [rows.loc[prompt, "nie"] for prompt in (first, first, second)]
    for key, values in drawn.values.items():
        where = [values.ids.index(prompt) for prompt in (first, first, second) if prompt in values.ids]
        np.testing.assert_array_equal(again.values[key].variant, values.variant[where])


def test_own_chains_are_drawn_and_exchanged_with_the_given_ones(studied):
    drawn = Drawn.of(studied, "dose_1")
    base, variant = drawn.effects["own_routes"]
    assert list(base["id"]) == list(variant["id"])
    assert len(base) == len(drawn.effects["routes"][0])
    first, second = drawn.ids[:2]
    again = drawn.resampled(np.array([0, 0, 1]))
    nie = studied.table("own_routes").query("reader == 'dose_1'").set_index("id")["nie"]
    assert again.effects["own_routes"][1]["nie"].tolist() == [nie[prompt] for prompt in (first, first, second)]
    turned = drawn.exchanged(np.ones(len(drawn.ids), dtype=bool))
    assert turned.effects["own_routes"][0]["nie"].tolist() == variant["nie"].tolist()
    # Here it is the own chains that tell: with the given ones of a copy in their place the verdict is theirs.
    same = Drawn.of(studied, "same")
    mixed = Drawn({**same.effects, "own_routes": drawn.effects["own_routes"]}, same.values)
    assert (same.verdict(0.1).label, mixed.verdict(0.1).label, mixed.verdict(0.1).chains) == (
        "attached",
        "detached",
        "own",
    )


def test_exchanging_all_prompts_turns_every_difference_round(studied):
    drawn = Drawn.of(studied, "dose_1")
    turned = drawn.exchanged(np.ones(len(drawn.ids), dtype=bool))
    for key, values in drawn.values.items():
        assert turned.values[key].change().difference.estimate == pytest.approx(-values.change().difference.estimate)
    assert turned.effects["routes"][0]["nie"].tolist() == drawn.effects["routes"][1]["nie"].tolist()
    # The variant leans on its chain more than this base.
    assert turned.verdict(0.1).label == "inconclusive"


def test_exchanging_one_prompt_leaves_the_others(studied):
    drawn = Drawn.of(studied, "dose_1")
    which = np.array([prompt == "p7" for prompt in drawn.ids])
    turned = drawn.exchanged(which)
    at = turned.effects["routes"][0]["id"].tolist().index("p7")
    differing = np.flatnonzero(
        turned.effects["routes"][0]["nie"].to_numpy() != drawn.effects["routes"][0]["nie"].to_numpy()
    )
    assert differing.tolist() == [at]
    assert turned.effects["routes"][1].loc[at, "nie"] == drawn.effects["routes"][0].loc[at, "nie"]


def test_permuted_labels_of_a_detached_model_are_hardly_ever_called_detached(studied):
    found = permuted_labels({"a": (studied, "dose_1"), "b": (studied, "same")}, 60, 0, skip)
    assert found["detached"]["n"] == 120
    assert found["detached"]["k"] <= 0.05 * 120
    assert {name: counted["n"] for name, counted in found["pairs"].items()} == {"a": 60, "b": 60}
    rates = {name: counted["k"] / counted["n"] for name, counted in found["findings"].items()}
    assert len(rates) > 8
    assert max(rates.values()) <= 0.05, rates


def test_a_copy_that_is_none_is_called_detached_in_every_draw(studied):
    """The null experiment can fail: it finds what is there."""
    found = self_pairs({"a": (studied, studied, "dose_1")}, 15, 0, skip)
    assert (found["detached"]["k"], found["detached"]["n"]) == (15, 15)
    assert found["findings"]["information_gain.total.given"]["k"] == 15


def test_a_base_that_differs_from_itself_by_noise_is_never_called_detached(studied):
    done = []
    found = self_pairs({"a": (studied, studied, "same")}, 15, 0, done.append)
    assert (found["detached"]["k"], found["detached"]["n"]) == (0, 15)
    assert sum(done) == 15


def test_a_copy_is_read_in_its_own_study(studied, tmp_path):
    other = write_run(tmp_path / "other", Made({"copy": 0.9}, measures=MEASURES, crooked=(5,), prompts=30))
    assert self_pairs({"a": (studied, other, "copy")}, 5, 0, skip)["detached"]["k"] == 5
    assert Drawn.of(studied, "copy", other).effects["routes"][0]["nie"].tolist() == (
        Drawn.of(studied, "same").effects["routes"][0]["nie"].tolist()
    )


def test_the_same_seed_gives_the_same_counts_and_another_pair_changes_nothing(studied):
    one = permuted_labels({"a": (studied, "dose_1")}, 5, 0, skip)
    both = permuted_labels({"b": (studied, "same"), "a": (studied, "dose_1")}, 5, 0, skip)
    assert one == permuted_labels({"a": (studied, "dose_1")}, 5, 0, skip)
    assert both["pairs"]["a"] == one["pairs"]["a"]


def test_a_model_that_reads_nothing_gives_no_evidence_in_any_draw(studied):
    found = permuted_labels({"a": (studied, "collapsed")}, 10, 0, skip)
    assert all(counted["k"] == 0 for counted in found["findings"].values())
    assert FOR not in Drawn.of(studied, "collapsed").stances(0.1, False).values()


def test_a_copy_has_its_weights_rounded_to_bfloat16_and_all_else_the_same(tmp_path):
    base, out = tmp_path / "base", tmp_path / "made" / "copy"
    base.mkdir()
    (base / "config.json").write_text('{"a": 1}')
    weights = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    save_file({"w": weights, "h": weights.astype(np.float16)}, base / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "made" / ".copy.partial").mkdir(parents=True)
    rounded_copy(base, out)
    assert (out / "config.json").read_text() == '{"a": 1}'
    found = load_file(out / "model.safetensors")
    # To the nearest of the numbers whose lower 16 bits are 0.
    bits = weights.view(np.uint32).astype(np.uint64)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(found["w"], nearest)
    assert found["h"].dtype == np.float16
    assert (found["h"] != weights.astype(np.float16)).any()
    assert float(np.abs(found["h"] / weights - 1).max()) <= 2**-7
    assert sorted(path.name for path in out.parent.iterdir()) == ["copy"]
    assert torch.from_numpy(found["h"]).to(torch.bfloat16).to(torch.float16).numpy().tolist() == found["h"].tolist()


@pytest.mark.parametrize("dependence", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("accuracy", [0.25, 0.9])
def test_a_simulated_reader_has_the_effects_of_the_closed_form(dependence, accuracy):
    """With Δ the difference of the two answers, P01 − P00 = dependence × Δ and P11 − P00 = Δ."""
    total, chain, question = effects(reader_cells("p", dependence, accuracy).text)
    change = accuracy - (1 - accuracy) / 9
    assert total == pytest.approx(2 * change**2)
    assert chain == pytest.approx(dependence * total)
    assert question == pytest.approx((1 - dependence) * total)


def test_bypass_of_simulated_readers_goes_with_their_dependence_and_not_with_their_accuracy():
    found = simulated_readers(0)
    for reader in found:
        accuracies, shares = (np.array(reader[name]) for name in ("accuracies", "bypass"))
        assert np.ptp(accuracies) > 0.6
        assert abs(reader["correlation"]) <= 0.1
        assert reader["correlation"] == pytest.approx(np.corrcoef(accuracies, shares)[0, 1], abs=1e-3)
        assert math.isclose(shares.mean(), 1 - reader["dependence"], abs_tol=0.06)
    middle = next(reader for reader in found if reader["dependence"] == 0.5)
    assert np.mean(middle["bypass"]) == pytest.approx(0.5, abs=0.005)
