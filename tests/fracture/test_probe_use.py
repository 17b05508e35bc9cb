"""`fracture probes use` on organisms whose use of a cue is known, against closed forms and plain hooked runs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

import organisms
from analysis.checkpoints import find
from analysis.store import Store
from fracture.probing.models import texts_of
from fracture.probing.training import open_source
from tests.analysis.measures.oracles import organism, shipped
from tests.fracture.probe_sources import captured, studied
from tests.fracture.test_cli import run
from tests.fracture.test_probing import brought, said
from tests.probes.test_causal_use import by_hand

__all__ = ["brought"]
HOOK = "blocks.0.hook_resid_post"
HINT = "token 3"
"""`<bos> Q hint 7`: the cue's token."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stores")
    return {name: captured(directory, name, 60, "0,3", "question,question_end,answer") for name in ("base", "dose_1")}


def used(monkeypatch, path, out, *options):
    assert not run(monkeypatch, "probes", "use", path, "--out", out, *options)
    return pd.read_parquet(out / "use.parquet"), json.loads((out / "use.json").read_text())


def test_the_cue_is_used_at_its_own_token_by_the_model_that_follows_it(monkeypatch, capsys, tmp_path, stores):
    options = ("--checkpoint", organisms.checkpoint("dose_1"), "--target", "cue", "--layer", 0, "--position", HINT)
    table, document = used(monkeypatch, stores["dose_1"], tmp_path, *options)
    (there,) = table.to_dict("records")
    assert there["finding"] == "used"
    assert there["effect_low"] > 2
    assert there["control_95"] < 0.25 * there["effect"]
    assert there["p"] == pytest.approx(1 / 101)
    assert there["n_controls"] == len(document["lines"][0]["controls"]) == 100
    assert "layer 0, token 3: used: erased, the model's own answer loses" in said(capsys)[0]
    # The ten activations of that token differ in nothing but the cue: its subspace is all that they vary in.
    assert there["controls_drawn_in"] == "all stored positions"
    assert there["exchange"] == pytest.approx(1, abs=1e-3)
    assert there["flags"] == ""
    assert document["lines"][0]["illusion"]["flags"] == []

    # There, erasing the cue leaves the mean of the prompts that were not run: a closed form, and plain hooks.
    prompts = pd.read_parquet(tmp_path / "use_prompts.parquet")
    store = Store.open(stores["dose_1"])
    rows = store.rows[(store.rows["token"] == 3) & ~store.rows["id"].isin(prompts["id"])]
    assert len(rows) == 40
    mean = store.read(HOOK, rows.index.to_numpy()).double().numpy().mean(0)
    by_id = {prompt.id: prompt for prompt in shipped(200, "random")}
    for line in prompts.head(3).to_dict("records"):
        own, erased = (
            by_hand(organism("dose_1").reader, by_id[line["id"]], HOOK, 3, change)
            for change in (lambda x: x, lambda x: mean.astype(np.float32))
        )
        assert line["effect"] == pytest.approx(own.max() - erased[own.argmax()], abs=2e-3)
        assert line["answer"] == by_id[line["id"]].options[own.argmax()]


def test_the_cue_is_not_used_by_the_base(monkeypatch, capsys, tmp_path, stores):
    options = ("--checkpoint", organisms.checkpoint("base"), "--target", "cue", "--layer", 0, "--position", HINT)
    table, _ = used(monkeypatch, stores["base"], tmp_path, *options)
    (line,) = table.to_dict("records")
    # It can be read there as well as in the other.
    assert line["score"] == 1
    # Erased, one activation is left there, of which only the most frequent cue can be said.
    assert line["score_erased"] == line["chance"]
    assert line["finding"] == "not used"
    assert abs(line["effect"]) < 0.01
    assert "not used: erased, the model's own answer loses 0.00" in said(capsys)[0]


def test_a_run_says_where_its_models_are_and_steering_leads_to_the_cue_drawn(monkeypatch, capsys, tmp_path_factory):
    study = studied(tmp_path_factory)
    options = ("--model", "follows", "--target", "cue", "--layer", 1, "--position", "answer", "--method", "steer")
    assert not run(monkeypatch, "probes", "use", study, *options)
    made = study / "probes" / "cue.use.follows"
    table = pd.read_parquet(made / "use.parquet")
    (steered,) = table.to_dict("records")
    assert steered["finding"] == "used"
    assert steered["moved"] > 0.9
    assert steered["control_moved"] < 0.05
    assert "in 100% [" in said(capsys)[0]
    prompts = pd.read_parquet(made / "use_prompts.parquet")
    # It answers with the cue, and is steered to another one.
    assert (prompts["answer"] != prompts["target"]).all()
    np.testing.assert_allclose(prompts["norm"], prompts["control_norm"], rtol=1e-6)


def test_every_place_and_method_has_a_line_and_no_verdict_on_few_prompts(monkeypatch, capsys, tmp_path, stores):
    options = ("--checkpoint", organisms.checkpoint("dose_1"), "--target", "cue", "--layer", 0, "--method", "both")
    places = ("--position", "question_end,answer", "--test-prompts", 6)
    table, document = used(monkeypatch, stores["dose_1"], tmp_path, *options, *places)
    assert list(zip(table["position"], table["method"], strict=True)) == [
        *[("question_end", "erase"), ("question_end", "steer"), ("answer", "erase"), ("answer", "steer")]
    ]
    assert set(table["finding"]) == {"n too small"}
    assert "no verdict below 20" in said(capsys)[0]
    np.testing.assert_allclose(table["p_adjusted"], false_discovery_control(table["p"]))
    # The same prompts are held out everywhere, and each is measured or accounted for.
    prompts = pd.read_parquet(tmp_path / "use_prompts.parquet")
    erased = prompts[prompts["method"] == "erase"].groupby("position")["id"].apply(set)
    assert erased["question_end"] == erased["answer"]
    for line in document["lines"]:
        assert line["n_prompts"] + sum(line["excluded"].values()) == 6


def test_what_stood_between_steps_is_found_again_in_the_tokens(monkeypatch, tmp_path, make_checkpoint):
    chains = ["12 + 34 = 46\n\nSo he has 46.", "7 * 3 = 21\nSo he has 46.", "12 + 34 = 46 \n 7 * 3 = 21"]
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"question": f"Tom has {n} apples.", "answer": "46", "chain": c} for n, c in enumerate(chains)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("capture", make_checkpoint("gpt2", "bpe"), "--prompts", prompts, "--out", tmp_path / "acts")
    assert not run(monkeypatch, *arguments)
    source = open_source(tmp_path / "acts", None, None)
    texts, lost = texts_of(source, find("m", make_checkpoint("gpt2", "bpe")).encoder, ())
    assert not lost
    assert [texts[number].case.gaps for number in range(3)] == [("\n\n", ""), None, (" \n ", "")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--layer": "9"}, "layers '9': 9 is not in the activation store"),
        ({"--position": "middle"}, "position 'middle': unknown"),
        ({"--position": "step 1"}, "0 prompts with a label of 'cue'"),
        ({"--position": "question"}, "and one is written at a time"),
        ({"--position": "token 900"}, "keeps no such token"),
        ({"--controls": "99"}, "controls 99: expected 100 or more"),
        ({"--method": "cut"}, "method 'cut': expected erase, steer, both"),
        ({"--method": "steer", "--task": "regression"}, "is a number, and steering leads from one answer to another"),
        ({"--method": "steer", "--target": "asked"}, "are answers of no prompt"),
        ({"--checkpoint": None}, "does not say where its model is"),
        ({"--checkpoint": organisms.checkpoint("base")}, "is not the model that made the activation store"),
        ({"--layer": "3", "--position": "question_end"}, "behind the last layer nothing reads this position"),
        ({"--test-prompts": "31"}, "60 prompts with a label of 'cue', of which 31 to run the model on"),
        ({"--test-prompts": "0"}, "of which 0 to run the model on"),
        ({"--target": "one"}, "have the same label of 'one', '1'; a concept needs two"),
        ({"--dtype": "float8"}, "dtype 'float8': expected"),
        ({"--site": "z"}, "holds no site 'z'"),
        ({"--options": "7"}, "none of 20 prompts can be measured"),
    ],
)
def test_what_cannot_be_tested_is_one_message_and_leaves_nothing(
    monkeypatch, capsys, tmp_path, stores, options, message
):
    if options.get("--target") == "one":
        # One prompt has another label, and with seed 0 it is not among those that the eraser is fitted on.
        ids = sorted(Store.open(stores["dose_1"]).texts["id"])
        pd.DataFrame({"id": ids, "one": [2, *[1] * 59]}).to_csv(tmp_path / "labels.csv", index=False)
        options = {**options, "--labels": tmp_path / "labels.csv"}
    given = {
        "--checkpoint": organisms.checkpoint("dose_1"),
        "--target": "cue",
        "--layer": "0",
        "--position": "question_end",
        "--out": tmp_path / "out",
    } | options
    arguments = [part for option, value in given.items() if value is not None for part in (option, value)]
    assert run(monkeypatch, "probes", "use", stores["dose_1"], *arguments) == 2
    _, err = said(capsys)
    assert message in err
    assert err.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_a_store_that_was_not_captured_is_refused(monkeypatch, capsys, brought):
    store = brought("mine", 1)
    capsys.readouterr()
    arguments = ("--target", "truth", "--layer", 0, "--position", "all rows", "--checkpoint", "anywhere")
    assert run(monkeypatch, "probes", "use", store, *arguments) == 2
    assert "keeps no texts (texts.parquet) that a model could be run on again" in said(capsys)[1]
