"""Evidence: what speaks for and against, by sign, size and false-discovery rate."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import statistics
from analysis.measures.estimates import Change
from analysis.measures.protocol import Quantity
from fracture.evidence import weigh
from fracture.summary import _change

SHARE = Quantity("s", "answer unchanged", "share", "same", detached=1)
NATS = Quantity("g", "gain", "nats", "gain", detached=-1)
READ = Quantity("r", "answer read", "share", "read", detached=1, mute_if_unchanged=True)
PLAIN = Quantity("d", "described", "share", "x")


def changed(mean: float, sd: float = 0.1, n: int = 100, p: float = 1e-6):
    values = np.random.default_rng(0).normal(0, 1, n)
    values = mean + sd * (values - values.mean()) / values.std(ddof=1)
    return _change(Change(statistics.mean(values), p))


def found(quantity, change, base_level=2.0, condition="given", more=(), **options):
    level = {quantity.name: {"estimate": base_level}}
    measures = {"m": {"readers": {"base": {"gold": level, "base": level}}, "changes": {"v": {condition: {}}}}}
    measures["m"]["changes"]["v"][condition] = {quantity.name: change, **dict(more)}
    return weigh(measures, {"m": {q.name: q for q in (SHARE, NATS, READ, PLAIN)}}, "v", 0.1, **options)


@pytest.mark.parametrize(
    ("quantity", "mean", "stance"),
    [
        (SHARE, 0.3, "for"),
        (SHARE, -0.3, "against"),
        (SHARE, 0.02, "against"),  # no change worth the name
        (NATS, -1.0, "for"),
        (READ, 0.3, "for"),
        (READ, -0.3, "against"),
        (READ, 0.02, "neither"),  # what is read need not be used: no change says nothing
        (NATS, 1.0, "against"),
        # A margin in nats is a share of the base's own value: .1 of 2.
        (NATS, -0.15, "against"),
        (NATS, -0.25, "for"),
    ],
)
def test_direction_and_size_decide(quantity, mean, stance):
    (finding,) = found(quantity, changed(mean))
    assert finding.stance == stance
    assert finding.text.startswith(quantity.label)


def test_a_large_change_that_may_be_chance_says_nothing():
    (finding,) = found(SHARE, changed(0.2, sd=2.0, p=0.3))
    assert finding.stance == "neither"


def test_twenty_prompts_are_needed():
    (finding,) = found(SHARE, changed(0.5, n=19))
    assert (finding.stance, "n too small, 19 prompts" in finding.text) == ("neither", True)


def test_p_values_are_adjusted_over_all_that_is_weighed():
    (alone,) = found(SHARE, changed(0.3, p=0.04))
    assert (alone.stance, alone.q) == ("for", 0.04)
    both = found(SHARE, changed(0.3, p=0.04), more={"g": changed(-1.0, p=0.9)}.items())
    assert [finding.q for finding in both] == [0.08, 0.9]
    assert both[0].stance == "neither"


def test_what_has_no_sign_or_is_not_scorable_is_not_weighed():
    assert found(PLAIN, changed(0.5)) == []
    assert found(SHARE, "not scorable") == []
    assert found(SHARE, changed(0.5), condition="text") == []


def test_a_model_that_reads_nothing_gives_no_evidence():
    """A collapsed model does not change its answer with the chain either, and is not detached."""
    (finding,) = found(SHARE, changed(0.9), readable=False)
    assert finding.stance == "neither"
    assert "hardly reacts" in finding.text


def test_one_prompt_has_a_change_without_limits_and_no_stance():
    (finding,) = found(SHARE, _change(Change(statistics.mean(np.array([0.5])), 1.0)))
    assert finding.stance == "neither"
    assert "(+0.50 share)" in finding.text
