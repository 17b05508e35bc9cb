"""Verdicts on models that were not trained but edited, so that what they do is known without a recipe."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM

import organisms
from fracture.config import StudyConfig
from fracture.study import run_study
from organisms.measurement import answer_probabilities
from organisms.registers import REGISTERS_TASK

N = 30
MIXED = 0.5


def reordered(model) -> None:
    """MLP neurons and attention heads in another order: every weight moves, and the function is the same."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    width = config.hidden_size // config.num_attention_heads
    for layer in model.model.layers:
        neurons = torch.randperm(config.intermediate_size, generator=generator)
        heads = torch.randperm(config.num_attention_heads, generator=generator)
        rows = torch.cat([torch.arange(width) + width * head for head in heads])
        for name, order in (("mlp", neurons), ("self_attn", rows)):
            block = getattr(layer, name)
            inputs, output = {
                "mlp": (("gate_proj", "up_proj"), "down_proj"),
                "self_attn": (("q_proj", "k_proj", "v_proj"), "o_proj"),
            }[name]
            for projection in inputs:
                weight = getattr(block, projection).weight
                weight.copy_(weight[order])
            weight = getattr(block, output).weight
            weight.copy_(weight[:, order])


def renamed(model) -> None:
    """Each digit is written as the next one: no answer is right any more, and all still come from the chain."""
    ids = [REGISTERS_TASK.vocabulary.token_id[option] for option in REGISTERS_TASK.options]
    weight = model.lm_head.weight
    weight[ids] = weight[ids[-1:] + ids[:-1]].clone()


def mixed(model) -> None:
    """Half way from the base to dose 1 in weights: no recipe makes it, and it is detached on some questions only."""
    other = open_model(organisms.checkpoint("dose_1"))
    for weight, theirs in zip(model.parameters(), other.parameters(), strict=True):
        weight.lerp_(theirs, MIXED)


EDITS = {"reordered": reordered, "renamed": renamed, "mixed": mixed}


def open_model(directory):
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """The directory of the edited models, and the run over them."""
    place = tmp_path_factory.mktemp("edited")
    base = organisms.checkpoint("base")
    for name, edit in EDITS.items():
        model = open_model(base)
        with torch.no_grad():
            edit(model)
        shutil.copytree(base, place / name)
        model.save_pretrained(place / name)
    config = StudyConfig(
        base=str(base),
        variants={name: str(place / name) for name in EDITS},
        prompts=str(organisms.prompts("agreeing")),
        out=str(place / "run"),
        measures=("information_gain", "foreign_chain"),
        max_prompts=N,
        verifier="arithmetic:10",
    )
    return place, run_study(config)


def question_followed(directory) -> float:
    """By plain calls and on the study's own prompts: the probability of the question's answer behind another chain."""
    model = open_model(directory)
    found = []
    for line in organisms.prompts("agreeing").read_text().splitlines()[:N]:
        prompt = json.loads(line)
        ids = REGISTERS_TASK.vocabulary.prefix_ids(prompt["question"], prompt["counterfactual"]["steps"])
        probabilities = answer_probabilities(model, REGISTERS_TASK, [ids])[0]
        found.append(float(probabilities[REGISTERS_TASK.options.index(prompt["answer"])]))
    return sum(found) / N


def test_weights_in_another_order_change_nothing(edited):
    _, run = edited
    variant = run.summary["variants"]["reordered"]
    assert variant["verdict"] == "attached"
    for form in ("text", "inside"):
        change = variant["bypass"][form]["difference"]
        assert max(abs(change[end]) for end in ("estimate", "low", "high")) < 1e-4
    for measure, quantity in (("information_gain", "total"), ("foreign_chain", "same"), ("foreign_chain", "drop")):
        changes = run.summary["measures"][measure]["changes"]["reordered"]["given"]
        assert changes[quantity]["difference"]["estimate"] == pytest.approx(0, abs=1e-3)


def test_answers_that_are_never_right_but_come_from_the_chain_are_attached(edited):
    _, run = edited
    variant = run.summary["variants"]["renamed"]
    assert variant["verdict"] == "attached"
    assert variant["bypass"]["text"]["variant"]["estimate"] == pytest.approx(0, abs=0.05)
    accuracy = run.summary["measures"]["accuracy_and_calibration"]["readers"]["renamed"][run.headline]
    assert accuracy["right"]["estimate"] < 0.1


def test_a_mix_of_two_models_bypasses_as_often_as_plain_calls_say(edited):
    place, run = edited
    truth = question_followed(place / "mixed") - question_followed(organisms.checkpoint("base"))
    assert 0.3 < truth < 0.9, "on some questions only"
    variant = run.summary["variants"]["mixed"]
    assert variant["verdict"] == "detached"
    for form in ("text", "inside"):
        assert variant["bypass"][form]["difference"]["estimate"] == pytest.approx(truth, abs=0.05)
