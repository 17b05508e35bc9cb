"""What must hold: limits at their edges, on made pairs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fracture.validation import acceptance


def pair(verdict, *told_by, low=0.1, high=0.3):
    change = {"information_gain": {"changes": {"x": {"own": {"total": {"difference": {"low": low, "high": high}}}}}}}
    return SimpleNamespace(
        comparison={"verdict": verdict},
        told_by=list(told_by),
        variant="x",
        run=SimpleNamespace(summary={"measures": change}),
    )


def test_what_tells_an_organism_must_do_so_at_every_seed_and_not_be_descriptive():
    said = acceptance._told("covert", [pair("detached", "a", "b"), pair("inconclusive", "b", "c")], {"a", "b", "c"})
    assert (said["value"], said["passed"]) == ("b", True)
    said = acceptance._told("covert", [pair("inconclusive", "a"), pair("inconclusive", "b")], {"a", "b"})
    assert (said["value"], said["passed"]) == ("nothing that does so at every seed", False)
    said = acceptance._told("covert", [pair("inconclusive", "muted")], {"a"})
    assert not said["passed"]
    said = acceptance._told("covert", [pair("detached", *"abcdef")], set("abcdef"))
    assert (said["value"], said["passed"]) == ("the verdict; a; b; c; 3 more", True)


@pytest.mark.parametrize(
    ("low", "high", "sign", "passed"),
    [(0.1, 0.3, 1, True), (-0.1, 0.3, 1, False), (-0.3, -0.1, -1, True), (-0.3, 0.1, -1, False), (0.1, 0.3, -1, False)],
)
def test_the_trap_must_change_by_intervals_on_one_side_of_nothing(low, high, sign, passed):
    clear = sorted((0.4 * sign, 0.5 * sign))
    made = [pair("detached", low=clear[0], high=clear[1]), pair("x", low=low, high=high)]
    assert acceptance._trapped(made, "information_gain", "total", "gain", sign)["passed"] == passed
    assert acceptance._trapped(made, "knowledge_index", "index", "knowledge", sign) is None


def test_gains_are_the_bases_behind_given_chains_beside_the_ratio_of_candidates(tmp_path):
    """Oracle: ln 2, ln 4/3 and ln 3 written out, for two prompts of two and three steps."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": "a", "meta": {"left": [8, 4, 1]}}\n{"id": "b", "meta": {"left": [8, 4, 3, 1]}}\n')
    rows = [
        {"reader": reader, "author": author, "condition": condition, "id": prompt, "step": step, "gain": gain}
        for reader, author, condition, scale in (
            ("base", "gold", "step", 1),
            ("base", "base", "step", 9),
            ("sft", "gold", "step", 9),
            ("base", "gold", "chain", 9),
        )
        for prompt, step, gain in (("a", 1, 0.6), ("a", 2, 1.3), ("b", 1, 0.5), ("b", 2, 0.2), ("b", 3, 1.0))
        for gain in (gain * scale,)
    ]
    run = SimpleNamespace(measures=("information_gain",), headline="gold", table=lambda name: pd.DataFrame(rows))
    found = acceptance.gains(run, prompts)
    assert {step: value[0] for step, value in found.items()} == pytest.approx({1: 0.55, 2: 0.75, 3: 1.0})
    truth = {1: math.log(2), 2: np.mean([math.log(4), math.log(4 / 3)]), 3: math.log(3)}
    assert {step: value[1] for step, value in found.items()} == pytest.approx(truth)
    # The worst of all seeds.
    item = acceptance._profile([{1: (math.log(2), math.log(2))}, found, {2: (0.0, 0.0)}])
    assert item["value"] == pytest.approx(max(abs(found[step][0] - truth[step]) for step in truth))
    assert not item["passed"]
    run.measures = ("routes",)
    assert acceptance.gains(run, prompts) == {}


@pytest.mark.parametrize(("value", "passed"), [(0.1, True), (-0.1, True), (0.11, False), (-0.11, False), (None, False)])
def test_calibration_holds_up_to_its_bound_on_both_sides(value, passed):
    assert acceptance._near("intercept", value, 0.1)["passed"] == passed


def test_the_smallest_dose_that_is_detached_at_every_seed_is_what_must_be_found():
    def dose(organism, family, realised):
        return SimpleNamespace(organism=organism, family=family, realised=realised, is_detached=realised >= 0.2)

    made = [dose("dose_1", "a", 1.0), dose("dose_0.25", "a", 0.24), dose("dose_0.25", "a", 0.19)]
    made += [
        dose("dose_0.4", "a", 0.41),
        dose("dose_0.4", "a", 0.39),
        dose("itemwise", "a", 0.3),
        dose("dose_0", "a", 0),
    ]
    made += [dose("elimination_dose_0.25", "b", 0.23), dose("elimination_dose_0.5", "b", 0.5), dose("dose_0", "c", 0)]
    found = [(pair.family, pair.organism, pair.realised) for pair in acceptance.weakest_detached(made)]
    assert found == [("a", "dose_0.4", 0.41), ("a", "dose_0.4", 0.39), ("b", "elimination_dose_0.25", 0.23)]
