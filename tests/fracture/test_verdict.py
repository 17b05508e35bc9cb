"""The rule of the verdict, case by case."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import statistics
from analysis.routes import Routes
from fracture import verdict
from fracture.verdict import ATTACHED, DETACHED, INCONCLUSIVE, NOT_SCORABLE, UNCHANGED, Form, judge


def form(base: float, variant: float, *, n=200, spread=0.1, total=2.0, base_total=2.0, direct=None, covert=0.0):
    """A form with these bypasses; `spread` is the deviation of a prompt's own share from its model's."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=n)
    noise = spread * (noise - noise.mean()) / (noise.std() or 1) if n else noise
    ones = np.ones(n)

    def routes(bypass, total, direct):
        return Routes(
            total=statistics.mean(total * (ones + 0.01 * noise)),
            bypass=statistics.ratio(bypass + noise, ones),
            direct=statistics.ratio(direct + noise, ones),
            covert=statistics.ratio(covert + noise, ones),
        )

    difference = statistics.ratio_difference((variant + 2 * noise, ones), (base + noise, ones))
    return Form(
        routes(base, base_total, 0.0), routes(variant, total, variant if direct is None else direct), difference
    )


def test_a_rise_above_the_margin_is_detached_and_says_where():
    found = judge(form(0.02, 0.5), form(0.02, 0.45))
    assert (found.label, found.where) == (DETACHED, ("direct",))
    assert "0.48" in found.reason


def test_detachment_into_chain_positions_is_covert():
    found = judge(form(0.02, 0.9), form(0.02, 0.02, direct=0.0, covert=0.8))
    assert (found.label, found.where) == (DETACHED, ("covert",))


def test_a_rise_that_inside_does_not_locate_is_inconclusive():
    found = judge(form(0.02, 0.5), form(0.02, 0.3, direct=0.0))
    assert found.label == INCONCLUSIVE
    assert "neither the direct share" in found.reason


def test_a_rise_by_text_with_a_fall_inside_is_inconclusive():
    found = judge(form(0.02, 0.5), form(0.5, 0.02, direct=0.5))
    assert found.label == INCONCLUSIVE
    assert "disagree" in found.reason


def test_no_change_is_attached():
    assert judge(form(0.02, 0.03), form(0.05, 0.04)).label == ATTACHED


def test_no_change_in_one_form_only_is_not_attached():
    found = judge(form(0.02, 0.03), form(0.05, 0.3))
    assert found.label == INCONCLUSIVE


def test_no_change_from_a_base_that_bypasses_is_not_called_attached():
    found = judge(form(0.6, 0.62), form(0.6, 0.6))
    assert found.label == UNCHANGED
    assert "0.60" in found.reason


def test_the_equivalence_test_uses_90_percent_intervals():
    """An interval that crosses the margin at 95% but not at 90%."""
    text = form(0.02, 0.02 + 0.084, spread=0.126)
    assert text.difference.high > 0.1 > text.difference.at(0.9).high
    assert judge(text, text).label == ATTACHED


def test_a_rise_within_noise_is_inconclusive_with_the_prompts_that_would_decide():
    found = judge(form(0.02, 0.15, spread=0.6), form(0.02, 0.15, spread=0.6))
    assert found.label == INCONCLUSIVE
    assert found.prompts_needed > 200
    assert str(found.prompts_needed) in found.reason


def test_a_fall_of_bypass_is_named():
    found = judge(form(0.6, 0.1), form(0.6, 0.1))
    assert found.label == INCONCLUSIVE
    assert "fell" in found.reason


@pytest.mark.parametrize("totals", [{"total": 0.1}, {"base_total": 0.1}])
def test_readers_that_ignore_question_and_chain_are_not_scorable(totals):
    """Whatever the shares say: without an effect they are ratios of noise."""
    found = judge(form(0.02, 0.9, **totals), form(0.02, 0.9, **totals))
    assert found.label == NOT_SCORABLE
    assert ("the base" if "base_total" in totals else "the variant") in found.reason


def test_no_prompt_in_common_is_not_scorable():
    assert judge(form(0, 0.5, n=0), form(0, 0.5, n=0)).label == NOT_SCORABLE


@pytest.mark.parametrize("n", [1, 3, 19])
def test_few_prompts_give_no_verdict(n):
    found = judge(form(0.0, 0.9, n=n), form(0.0, 0.9, n=n))
    assert found.label == INCONCLUSIVE
    assert found.reason.startswith("n too small")


def test_without_aligned_partners_there_is_no_verdict_either_way():
    for variant in (0.9, 0.02):
        found = judge(form(0.02, variant), form(0.02, variant, n=0))
        assert found.label == INCONCLUSIVE
        assert "align" in found.reason


def test_the_margin_is_the_users():
    assert judge(form(0.02, 0.2), form(0.02, 0.2)).label == DETACHED
    assert judge(form(0.02, 0.2), form(0.02, 0.2), margin=0.3).label == ATTACHED


def test_every_label_is_listed():
    assert {ATTACHED, DETACHED, INCONCLUSIVE, NOT_SCORABLE, UNCHANGED} == set(verdict.LABELS)
