"""`fracture explain`: a plan from texts and configurations alone, held to what a study then reads."""

from __future__ import annotations

import json
import re

import pytest
import torch

import organisms
from analysis import joining, kv_cache
from analysis.errors import InputError
from fracture.config import StudyConfig
from fracture.explain import _model, explain
from fracture.study import run_study

MEASURES = ("mistakes", "early_answering", "filler", "patch_map")


@pytest.fixture
def config(tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(organisms.prompts("agreeing").read_text().splitlines(keepends=True)[:12]))
    base = str(organisms.checkpoint("base"))
    return StudyConfig(base, {"copy": base}, str(prompts), str(tmp_path / "run"), measures=MEASURES, patch_prompts=8)


def tokens(plan: str, stage: str) -> float:
    (line,) = [line for line in plan.splitlines() if line.startswith(stage)]
    number, unit = re.fullmatch(r"([\d.]+)([kMG]?)", line.split()[-1]).groups()
    return float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit]


def test_no_weights_are_loaded_and_nothing_is_written(config, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    plan = explain(config)
    assert "12 read, 12 with a partner (12 given)" in plan
    assert "of author gold" in plan
    for measure in config.measures:
        assert measure in plan
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl"]


def test_tokens_are_about_those_that_a_study_reads(config, monkeypatch):
    """Counted where every forward pass but generation's goes through; options come on top, one token for each."""
    counted: dict[str, int] = {}
    current = [""]
    run, stage = kv_cache._run, "fracture.progress.Progress.stage"

    def count(model, prefix, ids, real, apart=None):
        if apart is None:
            counted[current[0]] = counted.get(current[0], 0) + int(real.sum())
        return run(model, prefix, ids, real, apart)

    def follow(self, description, total):
        current[0] = description.partition(": ")[2] or description
        return lambda done: None

    joined = joining.run

    def count_joined(model, name, texts, entries, keep):
        # A patched run reads its later tokens in the layers above only.
        n = len(texts.streams)
        done = sum((len(texts.ids[entry.row]) - entry.start) * (n - entry.layer) / n for entry in entries)
        counted[current[0]] = counted.get(current[0], 0) + done
        return joined(model, name, texts, entries, keep)

    monkeypatch.setattr(joining, "run", count_joined)
    monkeypatch.setattr(kv_cache, "_run", count)
    monkeypatch.setattr(stage, follow)
    run_study(config)
    plan = explain(config)
    # All own chains are the gold ones word for word here, and read once: of 4 texts a prompt that are planned, 2.
    for name, described, read in (
        ("mistakes", "mistakes", 0.5),
        ("early_answering", "early answering", 0.5),
        ("filler", "filler", 0.5),
        ("patch_map", "residual map", 1),
    ):
        assert counted[described] == pytest.approx(read * tokens(plan, name), rel=0.3), name


def test_weights_are_counted_from_their_files(config):
    from analysis.models import ModelPair

    pair = ModelPair.load(config.base, config.variants)
    model = pair.open("base").model
    found = _model(pair.base)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    prefix, _ = kv_cache.read(model, [[1, 5, 6]])
    per_token = sum(k.numel() + v.numel() for k, v in zip(prefix.keys, prefix.values, strict=True)) // 3
    assert found.layers * 2 * found.kv_width == per_token
    assert torch.is_tensor(prefix.keys[0])


def test_prompts_that_a_study_would_refuse_are_refused(config, tmp_path):
    from dataclasses import replace

    (tmp_path / "bad.jsonl").write_text(json.dumps({"question": "a"}))
    with pytest.raises(InputError, match="field 'answer' is missing"):
        explain(replace(config, prompts=str(tmp_path / "bad.jsonl")))
