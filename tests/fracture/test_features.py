"""The commands of `fracture sae`, as they are typed, on a small study of the organisms."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pandas as pd
import pytest

import organisms
from fracture.features.files import comparisons, read_summary
from fracture.study import run_study
from sae.dictionary import Dictionary
from tests.fracture.test_cli import run
from tests.fracture.test_study import config, first_prompts

SMALL = ("--layer", "1", "--latents", "128", "--k", "6", "--rows", "40000", "--seeds", "2")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A run that kept the activations of all tokens."""
    directory = tmp_path_factory.mktemp("features")
    prompts = first_prompts(organisms.prompts("random"), directory / "p.jsonl", 40)
    settings = config(
        directory / "run", {"dose_1": "dose_1"}, prompts, measures=("readout",), positions=("all",), patch_prompts=3
    )
    return run_study(settings).directory


@pytest.fixture
def typed(monkeypatch, capsys):
    """A function that types a command and gives its exit status and what it said."""

    def type_in(*arguments):
        capsys.readouterr()
        status = run(monkeypatch, "sae", *arguments)
        streams = capsys.readouterr()
        return status, " ".join((streams.out + streams.err).split())

    return type_in


@pytest.fixture
def trained(study, typed):
    status, said = typed("train", study, *SMALL)
    assert not status
    return said


def test_dictionaries_are_trained_into_the_run_and_found_there_again(study, typed, trained):
    assert "crosscoder of base, dose_1 at blocks.1.hook_resid_post: 128 latents, k 6" in trained
    assert "explained variance, dose_1" in trained
    (directory,) = (study / "sae").iterdir()
    dictionaries = {path.name: Dictionary.load(path) for path in sorted(directory.glob("seed_*"))}
    assert list(dictionaries) == ["seed_0", "seed_1"]
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert typed("train", study, *SMALL)[0] == 0
    assert before == {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    # In sae-lens' format.
    from sae_lens import SAE

    assert SAE.load_from_disk(directory / "seed_0").cfg.d_in == 2 * 128


def test_a_comparison_leaves_tables_figures_and_a_summary(study, typed, trained):
    status, said = typed("compare", study, "--prompts", "4", "--no-maps")
    assert not status
    assert re.search(r"most changed exchanged \(\d+ latents\), by text: bypass", said)
    assert "random-init, base, held out: explained variance" in said
    assert "shuffled, dose_1, held out: explained variance" in said
    assert "found again by another of 2 seeds" in said
    (where,) = comparisons(study)
    assert where.name == "compare.dose_1"
    names = {path.stem for path in where.iterdir()}
    assert {"latents", "places", "differences", "contexts", "answers", "twins", "causal", "causal_effects"} <= names
    assert {path.stem for path in where.glob("*.png")} == {"norms", "firing", "causal"}
    summary = read_summary(where)
    assert sum(summary["classes"].values()) == 128
    assert {line["edit"] for line in summary["effects"]} >= {"most changed exchanged"}
    latent = summary["latents"][0]
    assert latent["contexts"][0]["marked"]
    assert {"rank", "answer", "effect"} <= set(latent["answers"][0])
    contexts = pd.read_parquet(where / "contexts.parquet")
    text = contexts.iloc[0]
    # What is shown as context is the prompt's own text around the marked token.
    prompts = {line["id"]: line for line in map(json.loads, (study.parent / "p.jsonl").read_text().splitlines())}
    shown = f"{text['before']}{text['marked']}{text['after']}"
    words = prompts[text["id"]]["question"].split()
    assert any(word in shown for word in [*words, *" ".join(prompts[text["id"]]["steps"]).split()])


def test_one_models_dictionary_is_compared_by_how_it_fires(study, typed):
    flags = ("--arch", "topk", "--layer", "1", "--latents", "96", "--k", "6", "--rows", "20000", "--seeds", "1")
    assert typed("train", study, *flags, "--out", study.parent / "single")[0] == 0
    status, said = typed(
        "compare", study, "--dictionary", study.parent / "single", "--no-twins", "--no-causal", "--no-maps"
    )
    assert not status
    assert "differing: " in said
    assert "no causal check" in said
    latents = pd.read_parquet(study.parent / "single" / "compare.dose_1" / "latents.parquet")
    assert {"density_base", "density_variant", "class"} <= set(latents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "RUN", "--latents", "999999"), "999999 latents on "),
        (("train", "RUN", "--layer", "9"), "--layer 9: "),
        (("train", "RUN", "--site", "z"), "site 'z': not in"),
        (("train", "RUN", "--arch", "vae"), "architecture 'vae': expected one of"),
        (("train", "RUN", "--model", "sft"), "--model 'sft': there are base, dose_1"),
        (("train", "RUN", "--model", "base"), "a crosscoder is of two models or more"),
        (("train", "RUN", "--seeds", "0"), "--seeds 0: expected 1 or more"),
        (("train", "RUN", "--other", "x"), "--other 'x': expected NAME=STORE"),
        (("train", "nowhere"), "is neither the run directory of a finished study"),
        (("compare", "RUN", "--dictionary", "EMPTY"), "holds no dictionaries; make some with `fracture sae train`"),
        (("compare", "RUN", "--sae", "no-such-release"), "is no directory, and no RELEASE/ID"),
    ],
)
def test_bad_input_ends_in_one_line(study, typed, tmp_path, arguments, message):
    places = {"RUN": study, "EMPTY": tmp_path}
    status, said = typed(*(places.get(argument, argument) for argument in arguments))
    assert status == 2
    assert message in said
    assert "Traceback" not in said


def test_a_run_without_activations_names_the_command_that_makes_them(tmp_path, typed):
    prompts = first_prompts(organisms.prompts("random"), tmp_path / "p.jsonl", 2)
    made = run_study(config(tmp_path / "run", {"dose_1": "dose_1"}, prompts)).directory
    status, said = typed("train", made)
    assert status == 2
    assert "kept no activations; run the study again with `fracture study --measures" in said
    assert "--positions all" in said


def test_a_dictionary_of_another_hook_is_refused(study, typed, trained):
    (directory,) = (study / "sae").glob("crosscoder*")
    status, said = typed("compare", study, "--sae", directory / "seed_0", "--layer", "2")
    assert status == 2
    assert "was trained on hook blocks.1.hook_resid_post, not on blocks.2.hook_resid_post" in said


def test_where_nothing_can_be_scored_all_else_is_told_on_any_architecture(make_checkpoint, tmp_path, typed):
    """Random GPT-2s with a byte-level tokenizer on GSM8K's own records."""
    models = [make_checkpoint("gpt2", "bpe", seed) for seed in (0, 1)]
    records = [
        {
            "question": f"Tom has {n} apples and buys {n + 3}. How many?",
            "answer": f"He has {n} + {n + 3} = <<{n}+{n + 3}={2 * n + 3}>>{2 * n + 3} apples.\n#### {2 * n + 3}",
        }
        for n in range(1, 31)
    ]
    prompts = tmp_path / "gsm8k.jsonl"
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = config(
        tmp_path / "run", {}, prompts, base=models[0], measures=("readout",), positions=("all",), format="gsm8k"
    )
    run_study(replace(settings, variants={"v": str(models[1])}))
    flags = ("--latents", "32", "--rows", "5000", "--seeds", "1")
    assert typed("train", tmp_path / "run", *flags)[0] == 0
    status, said = typed("compare", tmp_path / "run", "--no-maps", "--no-twins")
    assert not status
    assert "no causal check: causal check of v: no prompt has a partner and could be scored" in said
    (where,) = comparisons(tmp_path / "run")
    assert read_summary(where)["effects"] is None
