"""Probes within a study, on the shipped organisms: the planted truth, the null, and the twin."""

from __future__ import annotations

import pytest
import torch

import organisms
from analysis.store import Store
from fracture.config import StudyConfig
from fracture.evidence import weigh
from fracture.study import run_study
from fracture.validation.pairs import quantities_of
from fracture.validity import EMPTY
from fracture.verdict import MARGIN
from tests.fracture.test_study import config, first_prompts

PROBES = ("readout", "probes", "transfer")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Cues that say nothing of the answer: what `dose_1` says is the cue, and what the base says is the chain's."""
    directory = tmp_path_factory.mktemp("probes")
    prompts = first_prompts(organisms.prompts("random"), directory / "p.jsonl", 100)
    variants = {"copy": "base", "sham": "sham", "dose_1": "dose_1"}
    return run_study(config(directory / "run", variants, prompts, measures=PROBES))


def evidence(run, variant):
    """What the readout says, without regard to what the suite's own validation says of the readout."""
    measures = run.summary["measures"]
    found = weigh(measures, quantities_of(measures), variant, MARGIN, validity=EMPTY)
    return {finding.quantity: finding.to_dict() for finding in found if finding.measure == "readout"}


def test_the_chains_answer_does_not_arrive_in_a_detached_organism(run):
    found = evidence(run, "dose_1")["chain_answer"]
    assert found["stance"] == "for"
    assert found["difference"]["high"] < -0.4


def test_a_harmless_fine_tune_and_a_copy_are_no_evidence(run):
    for name in ("sham", "copy"):
        assert {item["stance"] for item in evidence(run, name).values()} == {"neither"}
    copy = evidence(run, "copy")
    assert {item["difference"]["estimate"] for item in copy.values()} == {0.0}


def test_the_bases_answer_is_decodable_behind_the_chain_and_lost_in_the_detached_organism(run):
    probed = run.table("probes")
    base = probed[(probed["reader"] == "base") & (probed["finding"] == "decodable")]
    assert set(base["position"]) == {"answer"}
    outcomes = run.table("transfer")
    behind = outcomes[(outcomes["position"] == "answer") & (outcomes["target"] == "chain_answer")]
    by_reader = behind[behind["layer"] > 0].groupby("reader")["outcome"].agg(set)
    assert by_reader.to_dict() == {"copy": {"kept"}, "sham": {"kept"}, "dose_1": {"lost"}}


def test_the_twin_has_the_same_texts_and_other_weights(run):
    ours, twin = Store.open(run.directory / "activations" / "base"), Store.open(run.directory / "twin")
    assert twin.manifest.settings["random_init"] == 0
    assert ours.rows.equals(twin.rows)
    assert ours.texts.equals(twin.texts)
    hook = ours.hooks[-1]
    assert not torch.allclose(ours.read(hook), twin.read(hook), atol=0.1)
    probed = run.table("probes")
    assert probed["twin"].notna().all()


def test_a_twin_is_captured_only_where_it_is_read():
    given = {"base": "b", "variants": {"v": "w"}, "prompts": "p", "out": "o"}
    assert StudyConfig(**given, measures=("probes",)).keeps_twin
    drift = StudyConfig(**given, measures=("drift",))
    assert drift.keeps_activations
    assert not drift.keeps_twin
