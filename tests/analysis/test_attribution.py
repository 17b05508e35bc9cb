"""Attribution on networks whose effects are known in closed form: what gradients see, and what they do not."""

from __future__ import annotations

from math import comb

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.attribution import attribute
from analysis.measures import head_map
from analysis.measures.head_map import choose, summarise

DOUBLE = torch.float64


def column(*values):
    """One input, `[row, feature]`."""
    return torch.tensor([values], dtype=DOUBLE)


def saturated(x):
    """Two keys whose logits differ by x; values 1 and 0. Attention goes to the first unless x turns round."""
    return torch.sigmoid(x[:, 0]), {"gap": x}


def cancelling(x):
    """Two paths from one activation, of slopes 1 and −1 at the own input; the second ends at 0."""
    activation = x * 1
    return (activation + (-activation).relu())[:, 0], {"activation": activation}


def gated(x):
    """Two activations that move together: the second closes the gate before the first is beyond its threshold."""
    first, gate = x[:, :1] * 1, x[:, 1:] * 1
    return 4 * ((first - 0.5).relu() * (0.5 - gate).relu())[:, 0], {"first": first, "gate": gate}


def linear(x):
    """Two layers without any bend; rows of two tokens."""
    weights = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], dtype=DOUBLE)
    hidden = x @ weights
    return (hidden * torch.tensor([1.0, -2.0, 4.0], dtype=DOUBLE)).sum((1, 2)), {"x": x, "hidden": hidden}


def bent(x):
    """Nothing is linear, and everything depends on everything."""
    hidden = torch.tanh(x @ torch.tensor([[1.5, -2.0], [0.7, 1.1]], dtype=DOUBLE))
    return (hidden[:, 0].exp() * hidden[:, 1] + torch.sigmoid(3 * x[:, 0])), {"x": x, "hidden": hidden}


def test_saturated_attention_is_missed_by_the_gradient_and_found_along_the_way():
    found = attribute(saturated, column(8.0), column(-8.0))
    effect = float(torch.sigmoid(torch.tensor(-8.0)) - torch.sigmoid(torch.tensor(8.0)))
    assert effect == pytest.approx(-0.999, abs=5e-4)
    assert found.plain["gap"].item() == pytest.approx(-0.0054, abs=5e-5)
    assert found.integrated["gap"].item() == pytest.approx(effect, abs=0.05)


def test_cancelling_paths_are_missed_by_the_gradient_and_found_along_the_way():
    own, donor = column(-1.0), column(4.0)
    assert (cancelling(donor)[0] - cancelling(own)[0]).item() == 4
    found = attribute(cancelling, own, donor)
    assert found.plain["activation"].item() == 0
    # Off by at most half a step where the slope jumps.
    assert found.integrated["activation"].item() == pytest.approx(4, abs=5 / 8 / 2)


def test_a_linear_network_is_exact_in_both_for_every_activation_and_any_number_of_steps():
    rng = torch.Generator().manual_seed(0)
    own, donor = (torch.randn(3, 2, 2, dtype=DOUBLE, generator=rng) for _ in range(2))
    for steps in (1, 3, 8):
        found = attribute(linear, own, donor, steps)
        for name in ("x", "hidden"):
            (_, here), (_, there) = linear(own), linear(donor)
            for row, token, unit in np.ndindex(tuple(here[name].shape)):
                # Written by hand: one element is the donor's, and all else the own.
                value = here[name].clone()
                value[row, token, unit] = there[name][row, token, unit]
                if name == "x":
                    effect = linear(value)[0] - linear(own)[0]
                else:
                    effect = ((value - here[name]) * torch.tensor([1.0, -2.0, 4.0], dtype=DOUBLE)).sum((1, 2))
                for estimates in (found.plain, found.integrated):
                    assert estimates[name][row, token, unit].item() == pytest.approx(effect[row].item(), abs=1e-12)


def test_along_the_way_estimates_sum_to_the_whole_change_the_closer_the_more_steps():
    """Completeness (Sundararajan et al. 2017), of the input and of a layer that all paths run through but one."""
    rng = torch.Generator().manual_seed(1)
    own, donor = (torch.randn(5, 2, dtype=DOUBLE, generator=rng) for _ in range(2))
    whole = bent(donor)[0] - bent(own)[0]
    errors = [(attribute(bent, own, donor, steps).integrated["x"].sum(1) - whole).abs().max() for steps in (2, 8, 64)]
    assert errors[0] > 4 * errors[1] > 0
    assert errors[1] > 30 * errors[2]
    assert errors[2] < 1e-3
    plain = attribute(bent, own, donor).plain["x"].sum(1)
    assert (plain - whole).abs().max() > 0.1


def test_a_layers_estimates_follow_its_own_way_and_not_a_straight_line_between_its_ends():
    """`hidden = x²`, metric `hidden²`: along x = t the gradient is 2t², and ∫ 2t² d(t²) = 1, the whole change."""

    def network(x):
        hidden = x**2
        return (hidden**2)[:, 0], {"hidden": hidden}

    assert attribute(network, column(0.0), column(1.0), 200).integrated["hidden"].item() == pytest.approx(1, abs=1e-3)


def test_rows_do_not_mix_and_own_to_own_is_exactly_zero():
    own, donor = torch.tensor([[8.0], [1.0], [-2.0]], dtype=DOUBLE), torch.tensor([[-8.0], [1.0], [5.0]], dtype=DOUBLE)
    found = attribute(saturated, own, donor)
    for row in range(3):
        alone = attribute(saturated, own[row : row + 1], donor[row : row + 1])
        for which in ("plain", "integrated"):
            assert getattr(found, which)["gap"][row].item() == pytest.approx(getattr(alone, which)["gap"].item())
    assert found.plain["gap"][1].item() == found.integrated["gap"][1].item() == 0


def test_half_precision_is_added_up_in_single():
    def network(x):
        return x.sum(1).float(), {"x": x}

    # From .5 on bfloat16 is 1/256 apart, and half of that is lost each time that it is added.
    own, donor = (torch.full((1, 1), value, dtype=torch.bfloat16) for value in (0.0, 1.0))
    found = attribute(network, own, donor, 512).integrated["x"]
    assert found.dtype == torch.float32
    assert found.item() == 1


def many_heads(seed, hard, own, donor, n=200):
    """A table of cells as the screen leaves it: a hard head among linear ones, over eight prompts; and the truth.

    Each linear head's effect, between .01 and .05, is larger than the plain estimate of the hard one.
    """
    weights = torch.rand(n, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) * 0.04 + 0.01

    def network(x):
        metric, activations = hard(x[:, n:])
        linear = x[:, :n] * 1
        return metric + linear @ weights, {"linear": linear, **activations}

    start, end = torch.cat([torch.zeros(1, n), own], 1), torch.cat([torch.ones(1, n), donor], 1)
    found = attribute(network, start, end)
    names = list(found.plain)
    plain, integrated = (
        np.concatenate([getattr(found, which)[name].numpy()[0] for name in names]) for which in ("plain", "integrated")
    )
    rows = [
        {"id": f"p{prompt}", "author": "gold", "layer": cell // 32, "head": cell % 32, "part": "marker", "step": 0}
        | {"plain": plain[cell], "integrated": integrated[cell], "total": 4.0, "effect": np.nan, "chosen": ""}
        for prompt in range(8)
        for cell in range(len(plain))
    ]
    return pd.DataFrame(rows), (n // 32, n % 32, "marker", 0)


@pytest.mark.parametrize(
    ("hard", "own", "donor", "effect"),
    [(saturated, column(8.0), column(-8.0), -0.999), (cancelling, column(-1.0), column(4.0), 4)],
    ids=["saturated", "cancelling"],
)
def test_the_screen_puts_a_head_at_the_top_that_the_gradient_alone_would_pass_over(hard, own, donor, effect):
    table, planted = many_heads(0, hard, own, donor)
    by_gradient = table.groupby(["layer", "head", "part", "step"])["plain"].sum().abs().sort_values(ascending=False)
    assert planted not in list(by_gradient.index[: head_map.TOP_CELLS])
    assert choose(table, 0)[planted] == head_map.TOP
    assert abs(effect) > 0.5


def test_what_even_the_way_between_does_not_see_is_found_by_the_sample_alone():
    """The first of two heads that move together: both estimates are 0, and writing it alone changes the metric by 1."""
    own, donor = column(0.0, 0.0), column(1.0, 1.0)
    found = attribute(gated, own, donor)
    assert found.plain["first"].item() == found.integrated["first"].item() == 0
    assert gated(column(1.0, 0.0))[0].item() - gated(own)[0].item() == 1
    table, planted = many_heads(0, gated, own, donor)
    chosen = [choose(table, seed) for seed in range(200)]
    assert all(len(found) == head_map.TOP_CELLS + head_map.MIN_SAMPLE for found in chosen)
    drawn = [found.get(planted) for found in chosen]
    assert set(drawn) == {None, head_map.SAMPLE}
    # Each of 178 low-ranked cells is as likely to be among the 24 drawn; the standard error is .024.
    assert np.mean([which is not None for which in drawn]) == pytest.approx(24 / 178, abs=0.08)


def confirmed(shares, chosen):
    """A table of confirmed cells whose exact shares are given, two prompts each."""
    return pd.DataFrame(
        [
            {"id": f"p{prompt}", "author": "gold", "layer": 0, "head": at, "part": "chain", "step": 0}
            | {"plain": share, "integrated": 0.1 * at, "chosen": which, "effect": share * 2, "total": 2.0}
            for at, (share, which) in enumerate(zip(shares, chosen, strict=True))
            for prompt in range(2)
        ]
    )


@pytest.mark.parametrize("n", [24, 59, 410])
def test_of_none_missed_the_bound_is_the_closed_form(n):
    screen = summarise(confirmed([0.09] * n + [0.9], ["sample"] * n + ["top"]))["screen"]
    assert (screen["missed"], screen["sampled"], screen["confirmed"], screen["cells"]) == (0, n, 1, n + 1)
    assert screen["bound"] == pytest.approx(1 - 0.05 ** (1 / n), abs=1e-12)
    assert screen["largest"] == pytest.approx(0.09)


def test_a_miss_of_either_sign_counts_and_the_top_does_not():
    shares = [0.5, -0.4, 0.05, 0.1, 0.0] + [0.0] * 19
    screen = summarise(confirmed([*shares, 0.8], ["sample"] * 24 + ["top"]))["screen"]
    assert screen["missed"] == 3
    # The largest share of which 3 or fewer of 24 still have probability .05, by bisection on the binomial sum.
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        tail = sum(comb(24, k) * p**k * (1 - p) ** (24 - k) for k in range(4))
        low, high = (p, high) if tail > 0.05 else (low, p)
    assert screen["bound"] == pytest.approx(low, abs=1e-9)


@pytest.mark.parametrize("misses", [0, 3, 18, 60])
def test_the_bound_covers_in_at_least_95_of_100_samples(misses):
    """180 low-ranked cells, of which so many have a share of .5 that the screen knows nothing of."""
    rng = np.random.default_rng(misses)
    planted = set(rng.permutation(180)[:misses].tolist())
    table = pd.DataFrame(
        [
            {"id": "p", "author": "gold", "layer": 0, "head": at, "part": "chain", "step": 0}
            | {"plain": 9.0 * (at >= 180), "integrated": 0.0, "total": 1.0}
            for at in range(204)
        ]
    )
    bounds = {}
    covered = 0
    for seed in range(200):
        sample = [head for (_, head, _, _), which in choose(table, seed).items() if which == head_map.SAMPLE]
        assert all(head < 180 for head in sample)
        found = sum(head in planted for head in sample)
        if found not in bounds:
            shares = [0.5] * found + [0.0] * (len(sample) - found)
            bounds[found] = summarise(confirmed(shares, ["sample"] * len(sample)))["screen"]["bound"]
        covered += misses / 180 <= bounds[found]
    assert covered >= 0.95 * 200 - 2 * np.sqrt(200 * 0.05 * 0.95)


def test_where_all_cells_are_confirmed_nothing_can_be_missed():
    screen = summarise(confirmed([0.5, 0.2], ["top", "top"]))["screen"]
    assert (screen["sampled"], screen["missed"], screen["bound"]) == (0, 0, 0)


def test_a_large_grid_has_a_twentieth_of_its_rest_sampled_and_ties_do_not_hang_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    keys = [(layer, head, "chain", 0) for layer in range(32) for head in range(32)]
    table = pd.DataFrame(
        [
            dict(zip(("layer", "head", "part", "step"), key, strict=True)) | {"plain": 0.0, "integrated": 0.0}
            for key in keys
        ]
    )
    chosen = choose(table, 0)
    counts = pd.Series(chosen).value_counts()
    assert counts[head_map.TOP] == head_map.TOP_CELLS
    assert counts[head_map.SAMPLE] == 50  # of 1000
    assert choose(table.sample(frac=1, random_state=int(rng.integers(99))), 0) == chosen
    assert choose(table, 1) != chosen
