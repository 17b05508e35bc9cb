"""Route shares on simulated readers whose four cells are known in closed form."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.cells import Cells
from analysis.routes import detachment, effects, effects_table, routes, variation

ONE = np.eye(10)


def mixture(q: float, own: tuple[int, int], partner: tuple[int, int]) -> np.ndarray:
    """A reader that answers with the question's cue with probability `q`, else with the chain's result."""
    (answer, cue), (other_answer, other_cue) = own, partner
    p = np.empty((2, 2, 10))
    for a, hint in enumerate((cue, other_cue)):
        for b, result in enumerate((answer, other_answer)):
            p[a, b] = (1 - q) * ONE[result] + q * ONE[hint]
    return p


def cells(identifier: str, text: np.ndarray, inside: np.ndarray | None = None) -> Cells:
    return Cells(identifier, tuple("0123456789"), text, inside, np.ones((2, 2)), 0.0)


def readers(rng: np.random.Generator, n: int, dose) -> list[Cells]:
    """Prompts with agreeing cues; each follows the question with its own drawn dose."""
    drawn = []
    for i in range(n):
        y, other = rng.choice(10, size=2, replace=False)
        drawn.append(cells(f"p{i}", mixture(dose(rng), (y, y), (other, other))))
    return drawn


@pytest.mark.parametrize("q", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_with_agreeing_cues_bypass_and_direct_are_the_dose(q):
    total, chain, direct = effects(mixture(q, (3, 3), (7, 7)))
    assert total == pytest.approx(2)
    assert 1 - chain / total == pytest.approx(q)
    assert direct / total == pytest.approx(q)


@pytest.mark.parametrize("q", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_with_cues_apart_bypass_is_the_squared_share(q):
    """Four different values: the two effects are orthogonal, so bypass is q²/(q² + (1−q)²): q at 0, ½ and 1 only."""
    total, chain, direct = effects(mixture(q, (3, 4), (7, 8)))
    assert 1 - chain / total == pytest.approx(q**2 / (q**2 + (1 - q) ** 2))
    assert direct / total == pytest.approx(1 - chain / total)


def test_an_interaction_is_bypass_without_direct_effect():
    """The answer moves only when question and chain move together: neither route alone carries it."""
    p = np.empty((2, 2, 10))
    p[:] = ONE[3]
    p[1, 1] = ONE[7]
    total, chain, direct = effects(p)
    assert (total, chain, direct) == (2.0, 0.0, 0.0)


def test_either_route_alone_is_direct_without_bypass():
    """Redundant routes: the chain suffices, and so does the question."""
    p = np.empty((2, 2, 10))
    p[:] = ONE[7]
    p[0, 0] = ONE[3]
    total, chain, direct = effects(p)
    assert (total, chain, direct) == (2.0, 2.0, 2.0)


def test_a_reader_that_ignores_both_has_no_total_effect():
    assert effects(np.full((2, 2, 10), 0.1)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("dose", [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_variation_past_the_chain_is_the_dose_whatever_the_cues(dose):
    """Oracle: the reader's probability of following the question; squared, bypass is that only where cues agree."""
    for question, chain in (((3, 7), (3, 7)), ((1, 2), (3, 7))):
        p = np.empty((2, 2, 10))
        for a in (0, 1):
            for b in (0, 1):
                p[a, b] = dose * ONE[question[a]] + (1 - dose) * ONE[chain[b]]
        total, past = variation(p)
        assert (total, past) == (pytest.approx(1), pytest.approx(dose))
        te, nie, _ = effects(p)
        squared = dose if question == chain else dose**2 / (dose**2 + (1 - dose) ** 2)
        assert 1 - nie / te == pytest.approx(squared)


def test_variation_of_noise_is_hardly_counted_and_of_nothing_is_none():
    rng = np.random.default_rng(0)
    flat = np.full((2, 2, 10), 0.1)
    assert variation(flat) == (0.0, 0.0)
    totals = [variation(flat + rng.normal(0, 0.001, (2, 2, 10)))[0] for _ in range(200)]
    assert 0 < np.mean(totals) < 0.001


def test_covert_share_is_what_chain_positions_carry_beyond_the_text():
    """By text the chain determines nothing; its positions carry everything: a chain of filler that computes."""
    text = mixture(1.0, (3, 3), (7, 7))
    inside = mixture(0.0, (3, 3), (7, 7))
    table = effects_table([cells(f"p{i}", text, inside) for i in range(30)])
    by_text, by_position = routes(table, "text"), routes(table, "inside")
    assert by_text.bypass.estimate == pytest.approx(1)
    assert by_position.bypass.estimate == pytest.approx(0)
    assert by_position.covert.estimate == pytest.approx(1)
    assert by_position.direct.estimate == pytest.approx(0)


def test_inside_uses_aligned_prompts_only_and_covert_compares_the_same_ones():
    aligned = cells("a", mixture(0.2, (3, 3), (7, 7)), mixture(0.2, (3, 3), (7, 7)))
    misaligned = cells("m", mixture(0.9, (3, 3), (7, 7)))
    table = effects_table([aligned, misaligned] * 20)
    assert routes(table, "text").bypass.n == 40
    inside = routes(table, "inside")
    assert inside.bypass.n == 20
    assert inside.bypass.estimate == pytest.approx(0.2)
    assert inside.covert.estimate == pytest.approx(0)


def test_a_copy_has_a_detachment_of_exactly_zero():
    rng = np.random.default_rng(0)
    table = effects_table(readers(rng, 50, lambda r: r.beta(1, 3)))
    change = detachment(table, table.copy(), "text")
    assert (change.estimate, change.low, change.high, change.n) == (0.0, 0.0, 0.0, 50)


def test_tables_of_different_prompts_are_not_compared():
    rng = np.random.default_rng(0)
    table = effects_table(readers(rng, 30, lambda r: 0.5))
    with pytest.raises(ValueError, match="same prompts"):
        detachment(table, table.iloc[::-1], "text")


def test_without_prompts_there_is_no_estimate():
    empty = effects_table([])
    assert routes(empty, "text").bypass.n == 0
    assert routes(empty, "text").bypass.to_dict()["estimate"] is None


DOSES = {
    "beta": (lambda r: r.beta(2, 3), 0.4),
    "item-wise": (lambda r: float(r.random() < 0.3), 0.3),
    "zero-inflated": (lambda r: r.beta(2, 2) * (r.random() < 0.4), 0.2),
}
FEW = (20, "zero-inflated")
"""Covered in 92.5% of 1,000: with so few prompts a level can rest on a handful that bypass at all."""


@pytest.mark.parametrize(("n", "kind"), [(n, kind) for n in (20, 50, 100) for kind in DOSES if (n, kind) != FEW])
def test_intervals_of_bypass_cover_the_truth(n, kind):
    """Coverage of 95% intervals over 1,000 simulated studies, each prompt with its own dose and total effect."""
    draw, truth = DOSES[kind]
    rng = np.random.default_rng([n, *kind.encode()])
    hits = 0
    for _ in range(1000):
        table = simulated_table(rng, np.array([draw(rng) for _ in range(n)]))
        bypass = routes(table, "text").bypass
        hits += bypass.low <= truth <= bypass.high
    assert 930 <= hits <= 970


@pytest.mark.parametrize("n", [20, 50, 100])
def test_intervals_of_detachment_cover_the_truth(n):
    """Base and variant share what is particular to a prompt, so the difference is narrower than either."""
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(1000):
        shared = rng.beta(2, 6, size=n)
        base = simulated_table(rng, shared)
        variant = simulated_table(rng, shared + 0.3 * rng.random(n))
        change = detachment(base, variant, "text")
        hits += change.low <= 0.15 <= change.high
    assert 930 <= hits <= 970


def simulated_table(rng: np.random.Generator, dose: np.ndarray) -> pd.DataFrame:
    """Closed-form effects: total 2·m², with m drawn by prompt, of which the prompt's dose goes past the chain."""
    n = len(dose)
    total = 2 * rng.uniform(0.6, 1.0, size=n) ** 2
    return pd.DataFrame({"id": [str(i) for i in range(n)], "te": total, "nie": (1 - dose) * total, "nde": dose * total})
