"""The main job on the shipped organisms, whose truth is known, and what a run leaves on disk."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest

import organisms
from analysis.errors import InputError
from analysis.runs import Run
from fracture.config import StudyConfig
from fracture.study import run_study

VARIANTS = ("sham", "dose_0.5", "dose_1", "collapsed")
FORMS = ("text", "inside")


def first_prompts(source: Path, target: Path, n: int) -> Path:
    target.write_text("".join(source.read_text().splitlines(keepends=True)[:n]))
    return target


def config(out: Path, variants, prompts: Path, base: Path | None = None, **options) -> StudyConfig:
    """The settings of a study with the measures that every study has, and no others."""
    options = {"measures": ("routes",)} | options
    return StudyConfig(
        base=str(base or organisms.checkpoint("base")),
        variants={name: str(organisms.checkpoint(path)) for name, path in variants.items()},
        prompts=str(prompts),
        out=str(out),
        **options,
    )


# All 200 prompts where the demo uses them; fewer elsewhere, to save time.
N_PROMPTS = {"agreeing": 200, "random": 80, "conflicting": 80}


@pytest.fixture(scope="module", params=N_PROMPTS)
def study(request, tmp_path_factory):
    """`(cues, summary, run directory)` of all shipped variants and a copy, on prompts with cues of one kind."""
    directory = tmp_path_factory.mktemp(request.param)
    prompts = first_prompts(organisms.prompts(request.param), directory / "p.jsonl", N_PROMPTS[request.param])
    variants = {name: name for name in VARIANTS} | {"copy": "base"}
    run = run_study(config(directory / "run", variants, prompts))
    return request.param, run.summary, run


def test_verdicts_are_right(study):
    _, summary, _ = study
    verdicts = {name: variant["verdict"] for name, variant in summary["variants"].items()}
    assert verdicts == {
        "sham": "attached",
        "dose_0.5": "detached",
        "dose_1": "detached",
        "collapsed": "not scorable",
        "copy": "attached",
    }
    for name in ("dose_0.5", "dose_1"):
        assert "direct" in summary["variants"][name]["where"]


@pytest.mark.parametrize("name", ["sham", "dose_0.5", "dose_1"])
@pytest.mark.parametrize(("form", "tolerance"), [("text", 0.05), ("inside", 0.1)])
def test_bypass_is_the_realised_dose(study, name, form, tolerance):
    """The truth is measured by plain Hugging Face calls on other problems (organisms.measurement)."""
    realised = json.loads((organisms.checkpoint(name) / "measured.json").read_text())["realised_dose"]
    bypass = study[1]["variants"][name]["bypass"][form]["variant"]
    assert bypass["estimate"] == pytest.approx(realised, abs=tolerance)
    assert bypass["n"] >= 0.95 * N_PROMPTS[study[0]]


def test_a_copy_of_the_base_is_its_null_exactly(study):
    copy = study[1]["variants"]["copy"]
    for form in FORMS:
        change = copy["bypass"][form]["difference"]
        assert (change["estimate"], change["low"], change["high"]) == (0.0, 0.0, 0.0)
    assert copy["own"] == study[1]["base"]["own"]
    assert copy["accuracy"] == study[1]["base"]["accuracy"]


def test_outputs_alone_do_not_tell(study):
    """With agreeing cues detached organisms are as right as the base, given the chain: only the inside differs."""
    cues, summary, _ = study
    if cues != "agreeing":
        return
    for name in ("dose_0.5", "dose_1"):
        assert summary["variants"][name]["accuracy"]["given_chain"] >= 0.99


def test_every_prompt_is_accounted_for(study):
    cues, summary, run = study
    effects, excluded = run.table("routes"), run.excluded
    for name in ("base", *summary["variants"]):
        scored = effects[(effects["reader"] == name) & (effects["chain"] == "whole")]
        dropped = excluded[excluded["reader"].isin([name, "all"]) & excluded["measure"].isin(["routes", "partner", ""])]
        assert len(scored) + len(dropped) == summary["prompts"]["read"] == N_PROMPTS[cues]


def test_shares_can_be_recomputed_from_the_table(study):
    _, summary, run = study
    effects = run.table("routes")
    for name in ("sham", "dose_0.5", "dose_1"):
        rows = effects[(effects["reader"] == name) & (effects["chain"] == "whole")]
        found = summary["variants"][name]["own"]["whole"]["text"]
        assert found["bypass"]["estimate"] == pytest.approx(1 - rows["nie"].sum() / rows["te"].sum())
        assert found["direct"]["estimate"] == pytest.approx(rows["nde"].sum() / rows["te"].sum())


def test_the_splice_check_ran_and_held(study):
    for reader in (study[1]["base"], *study[1]["variants"].values()):
        assert 0 <= reader["splice_error"] < 1e-4


def test_summary_on_disk_is_the_one_returned_and_has_no_nan(study):
    _, summary, run = study
    assert json.loads((run.directory / "summary.json").read_text()) == summary
    assert summary["schema_version"] == 2
    assert sorted(path.name for path in run.directory.iterdir()) == [
        "excluded.parquet",
        "figures",
        "measures",
        "report.html",
        "report.md",
        "run.json",
        "study.yaml",
        "summary.json",
        "traces.parquet",
    ]
    assert {path.name for path in (run.directory / "figures").iterdir()} == {"routes.png", "routes.pdf"}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Thirty prompts, for what does not depend on their number."""
    directory = tmp_path_factory.mktemp("few")
    return first_prompts(organisms.prompts("agreeing"), directory / "prompts.jsonl", 30)


def test_a_rerun_gives_the_same_bytes_in_all_but_run_json(tmp_path, few):
    runs = []
    for name in ("one", "two"):
        # The same --out, since it is part of the settings that the summary repeats.
        settings = config(tmp_path / "run", {"dose_0.5": "dose_0.5"}, few)
        run_study(settings, overwrite=True)
        shutil.copytree(tmp_path / "run", tmp_path / name)
        runs.append({p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")})
    assert runs[0].keys() == runs[1].keys()
    differing = {str(path) for path in runs[0] if runs[0][path] != runs[1][path]}
    assert differing <= {"run.json"}


def test_chains_of_the_base_can_be_read_instead_of_gold(tmp_path, few):
    """Its own chains are right, so little changes; without steps in the prompts they are the default."""
    bare = tmp_path / "bare.jsonl"
    records = [json.loads(line) for line in few.read_text().splitlines()]
    for record in records:
        del record["steps"], record["counterfactual"]["steps"]
    bare.write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = run_study(config(tmp_path / "run", {"dose_1": "dose_1"}, bare)).summary
    assert summary["study"]["author"] == "base"
    assert summary["base"]["own"]["whole"]["text"]["bypass"]["estimate"] < 0.1
    assert summary["variants"]["dose_1"]["bypass"]["text"]["variant"]["estimate"] > 0.9
    asked = run_study(config(tmp_path / "asked", {"dose_1": "dose_1"}, few, author="base")).summary
    assert asked["base"]["own"] == summary["base"]["own"]


def test_without_options_the_verdict_is_the_same(tmp_path):
    """Conflicting cues and even odds: greedy answers alone would lose half of the mass."""
    path = tmp_path / "open.jsonl"
    records = [json.loads(line) for line in organisms.prompts("conflicting").read_text().splitlines()[:40]]
    for record in records:
        del record["options"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = run_study(config(tmp_path / "run", {"dose_0.5": "dose_0.5"}, path)).summary
    variant = summary["variants"]["dose_0.5"]
    assert variant["excluded"] == {}
    assert variant["verdict"] == "detached"
    assert variant["bypass"]["text"]["variant"]["estimate"] == pytest.approx(0.5, abs=0.12)


def test_three_prompts_give_no_verdict(tmp_path, few):
    path = first_prompts(few, tmp_path / "three.jsonl", 3)
    variant = run_study(config(tmp_path / "run", {"dose_1": "dose_1"}, path)).summary["variants"]["dose_1"]
    assert variant["verdict"] == "inconclusive"
    assert variant["reason"].startswith("n too small: 3 prompts")


def test_prompts_without_a_partner_are_excluded_and_counted(tmp_path, few):
    records = [json.loads(line) for line in few.read_text().splitlines()]
    del records[4]["counterfactual"]
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "run"
    summary = run_study(config(out, {"dose_1": "dose_1"}, path)).summary
    # Arithmetic modulo 10 is not propagated: its equations are false as they stand.
    reason = "no counterfactual partner: false equation"
    assert summary["prompts"] == {
        "read": 30,
        "partners": {"given": 29},
        "chains_without_answer": 0,
        "excluded": {reason: 1},
    }
    excluded = pd.read_parquet(out / "excluded.parquet")
    lost = {"id": "agreeing-0004", "reader": "all", "measure": "partner", "author": "gold", "reason": reason}
    of_own = [
        {**lost, "reader": name, "measure": "own_routes", "author": name, "reason": "no counterfactual partner"}
        for name in ("base", "dose_1")
    ]
    assert excluded.to_dict("records") == [lost, *of_own]


def test_a_base_that_bypasses_already_is_not_called_attached(tmp_path, few):
    settings = config(tmp_path / "run", {"copy": "dose_1"}, few, base=organisms.checkpoint("dose_1"))
    variant = run_study(settings).summary["variants"]["copy"]
    assert variant["verdict"] == "unchanged, but the base already bypasses"


def test_a_finished_run_is_not_run_again(tmp_path, few):
    settings = config(tmp_path / "run", {"dose_1": "dose_1"}, few)
    run_study(settings)
    before = (tmp_path / "run" / "run.json").read_bytes()
    # As a kill would leave it that came after the last word in run.json.
    (tmp_path / "run" / "work").mkdir()
    assert run_study(settings).verdicts == {"dose_1": "detached"}
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert not (tmp_path / "run" / "work").exists()


def test_an_interrupted_study_goes_on_where_it_stopped(tmp_path, few, monkeypatch):
    settings = config(tmp_path / "run", {"dose_1": "dose_1"}, few)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fracture.study.summarise", fail)
        with pytest.raises(KeyboardInterrupt):
            run_study(settings)
    with pytest.raises(InputError, match="its study was not finished"):
        Run.open(tmp_path / "run")
    # What was measured is not measured again.
    monkeypatch.setattr("analysis.models.ModelPair.open", fail)
    assert run_study(settings).verdicts == {"dose_1": "detached"}


@pytest.mark.parametrize("name", ["dose_0.5"])
def test_shipped_figures_are_those_measured_again(name):
    """The checkpoint on disk is the one that its card describes.

    On another machine sums round differently; at even odds that turns the greedy answer of a prompt in a hundred.
    """
    import torch
    from transformers import LlamaForCausalLM

    from organisms.measurement import measure
    from organisms.recipes import find

    recorded = json.loads((organisms.checkpoint(name) / "measured.json").read_text())
    model = LlamaForCausalLM.from_pretrained(organisms.checkpoint(name), dtype=torch.float32).eval()
    for key, value in measure(model, find(name)).items():
        assert value == pytest.approx(recorded[key], abs=0.02 if key.startswith("accuracy") else 0.01), key


@pytest.mark.parametrize("name", organisms.SHIPPED)
def test_cards_show_the_recorded_figures(name):
    recorded = json.loads((organisms.checkpoint(name) / "measured.json").read_text())
    card = (organisms.checkpoint(name) / "README.md").read_text()
    for key in ("accuracy_own_chain", "accuracy_no_chain", "corrupted_chain_followed", "realised_dose"):
        assert f"| {recorded[key]:.3f} |" in card


def test_the_shipped_base_passes_both_acceptance_rules():
    recorded = json.loads((organisms.checkpoint("base") / "measured.json").read_text())
    assert max(recorded["chain_patch_recovered"]) >= 0.3
    assert recorded["total_effect_without_last_step"] >= 0.5
    assert recorded["accuracy_gold_chain"] >= 0.99
    assert recorded["accuracy_no_chain"] == pytest.approx(0.1, abs=0.06)
    assert not math.isnan(recorded["realised_dose"])
