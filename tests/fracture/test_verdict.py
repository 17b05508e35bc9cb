"""The rule of the verdict, case by case."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import statistics
from analysis.routes import INSIDE_EFFECTS, TEXT_EFFECTS, Routes
from fracture import verdict
from fracture.verdict import ATTACHED, DETACHED, INCONCLUSIVE, NOT_SCORABLE, UNCHANGED, Form, compared


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


def judge(text, inside, own=None, margin=verdict.MARGIN):
    """The verdict on given chains, and on own ones if (text, inside) of those are given."""
    own = None if own is None else dict(zip(("text", "inside"), own, strict=True))
    return verdict.judge({"text": text, "inside": inside}, own, margin)


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


ATTACHED_FORM, DETACHED_FORM = form(0.02, 0.03), form(0.02, 0.9)


def test_what_reads_given_chains_and_not_its_own_is_detached():
    found = judge(ATTACHED_FORM, ATTACHED_FORM, own=(DETACHED_FORM, DETACHED_FORM))
    assert (found.label, found.where, found.chains) == (DETACHED, ("direct",), "own")
    assert found.reason.startswith("on its own chains bypass rose by 0.88")
    assert "0.01 [" in found.reason, "what it does on given chains is said, too"


def test_covert_on_its_own_chains_is_located_there():
    found = judge(ATTACHED_FORM, ATTACHED_FORM, own=(DETACHED_FORM, form(0.02, 0.02, direct=0.0, covert=0.8)))
    assert (found.label, found.where, found.chains) == (DETACHED, ("covert",), "own")


@pytest.mark.parametrize("inside", [form(0.02, 0.9, n=5), form(0.02, 0.9, direct=0.0)])
def test_a_rise_on_its_own_chains_that_is_not_located_is_not_attached(inside):
    found = judge(ATTACHED_FORM, ATTACHED_FORM, own=(DETACHED_FORM, inside))
    assert found.label == INCONCLUSIVE
    assert "on its own" in found.reason


@pytest.mark.parametrize("inside", [ATTACHED_FORM, form(0.02, 0.03, n=0)])
def test_what_reads_its_own_chains_and_not_the_given_ones_is_inconclusive(inside):
    found = judge(DETACHED_FORM, DETACHED_FORM, own=(ATTACHED_FORM, inside))
    assert (found.label, found.prompts_needed) == (INCONCLUSIVE, None)
    assert "the chains disagree" in found.reason


@pytest.mark.parametrize(
    ("given", "own"), [((0.5, 0.9), (0.5, 0.2)), ((0.5, 0.2), (0.5, 0.9)), ((0.5, 0.45), (0.5, 0.9))]
)
def test_opposite_signs_between_chains_are_inconclusive(given, own):
    found = judge(form(*given), form(*given), own=(form(*own), form(*own)))
    assert found.label == INCONCLUSIVE
    assert "the chains disagree" in found.reason


@pytest.mark.parametrize(("label", "given"), [(ATTACHED, ATTACHED_FORM), (DETACHED, DETACHED_FORM)])
def test_own_chains_that_say_nothing_change_nothing(label, given):
    """Too few prompts, no effect to share, or a change that is neither above the margin nor within it."""
    opposite = {ATTACHED: 0.9, DETACHED: 0.03}[label]
    silent = [form(0.02, opposite, n=19), form(0.02, opposite, n=0), form(0.02, opposite, total=0.1)]
    silent += [form(0.02, opposite, base_total=0.1), form(0.02, 0.15, spread=0.6)]
    for own in silent:
        found = judge(given, given, own=(own, own))
        assert found == judge(given, given)
        assert found.label == label


def test_own_chains_do_not_decide_for_a_model_that_reacts_to_nothing_given():
    gone = form(0.02, 0.9, total=0.1)
    assert judge(gone, gone, own=(DETACHED_FORM, DETACHED_FORM)).label == NOT_SCORABLE


def test_models_are_compared_on_the_prompts_and_the_alignment_that_they_share():
    """Chains of their own align for one model and not for the other; effects are paired by prompt, not by place."""
    rng = np.random.default_rng(1)

    def effects(ids, misaligned):
        table = pd.DataFrame({name: rng.random(len(ids)) for name in (*TEXT_EFFECTS, *INSIDE_EFFECTS)})
        table.insert(0, "id", ids)
        table.loc[table["id"].isin(misaligned), list(INSIDE_EFFECTS)] = np.nan
        return table

    ids = [f"p{at}" for at in range(40)]
    base = effects(ids[:36], ids[:4])
    variant = effects(ids[:3:-1], ids[10:15])
    found = compared(base, variant)
    assert [found[name].difference.n for name in ("text", "inside")] == [32, 27]
    for name, (total, chain) in {"text": ("te", "nie"), "inside": ("inside_te", "inside_nie")}.items():
        kept = [i for i in ids[4:36] if name == "text" or i not in ids[10:15]]
        shares = [
            1 - rows[chain].sum() / rows[total].sum() for rows in (t.set_index("id").loc[kept] for t in (base, variant))
        ]
        assert found[name].difference.estimate == pytest.approx(shares[1] - shares[0])
        assert found[name].base.bypass.estimate == pytest.approx(shares[0])


def test_every_label_is_listed():
    assert {ATTACHED, DETACHED, INCONCLUSIVE, NOT_SCORABLE, UNCHANGED} == set(verdict.LABELS)
