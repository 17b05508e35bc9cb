"""How the report prints numbers: few digits, one minus sign, no minus zero, and words for what is not there."""

from __future__ import annotations

import pytest

from fracture.report.numbers import interval, number, p_value, percent, tiny, typographic


def estimate(value, low, high):
    return {"estimate": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("found", "unit", "expected"),
    [
        ((0.4912, 0.4789, 0.5049), "share", "0.49 [0.48, 0.50]"),
        ((-0.00001, -0.004, 0.004), "share", "0.00 [0.00, 0.00]"),
        ((-0.006, -0.012, 0.0), "probability", "−0.01 [−0.01, 0.00]"),
        ((8.6246, 7.673, 9.576), "nats", "8.62 [7.67, 9.58]"),
        ((0.0386, 0.0277, 0.0495), "nats", "0.039 [0.028, 0.050]"),
        ((0.0024, 0.0023, 0.0026), "nats", "0.002 [0.002, 0.003]"),
        ((123.45, 101.2, 145.7), "nats", "123.5 [101.2, 145.7]"),
        ((12345.6, 12000.0, 12700.0), "perplexity", "12346 [12000, 12700]"),
        ((-2e-8, -3e-8, 0.0), "nats", "0.00 [0.00, 0.00]"),
        ((0.5, None, None), "share", "0.50"),
        ((0.1, None, 0.3), "share", "0.10 [−∞, 0.30]"),
        ((0.1, 0.05, None), "share", "0.10 [0.05, ∞]"),
        ((None, None, None), "share", "—"),
    ],
)
def test_an_estimate_and_its_limits_have_the_same_decimals(found, unit, expected):
    assert interval(estimate(*found), unit) == expected


def test_a_difference_has_a_sign_and_its_limits_only_a_minus():
    assert interval(estimate(0.483, 0.187, 0.78), "nats", signed=True) == "+0.48 [0.19, 0.78]"
    assert interval(estimate(-0.01, -0.09, 0.07), "nats", signed=True) == "−0.01 [−0.09, 0.07]"
    assert interval(estimate(0.001, -0.002, 0.004), "share", signed=True) == "0.00 [0.00, 0.00]"


@pytest.mark.parametrize(
    ("p", "expected"),
    [(1e-40, "p < 0.001"), (0.00099, "p < 0.001"), (0.001, "p = 0.001"), (0.0125, "p = 0.013"), (0.5, "p = 0.50"),
     (1.0, "p = 1.00"), (None, ""), (float("nan"), "")],
)  # fmt: skip
def test_p_values_have_three_decimals_where_it_matters(p, expected):
    assert p_value(p) == expected


def test_single_numbers_percentages_and_orders_of_magnitude():
    assert [number(0.25), number(None), number(0.0231, "error"), number(-1.0)] == ["0.25", "—", "0.023", "−1.00"]
    assert [percent(0.836), percent(None), percent(0.0)] == ["84%", "—", "0%"]
    assert [tiny(1.93e-9), tiny(0.2), tiny(0.0), tiny(None)] == ["2e−9", "2e−1", "0", "—"]


def test_a_sentence_of_the_summary_gets_the_same_signs():
    assert typographic("x: rose (+0.48 [+0.19, +0.78] nats)") == "x: rose (+0.48 [0.19, 0.78] nats)"
    assert typographic("y (-0.01 [-0.09, +0.07] nats)") == "y (−0.01 [−0.09, 0.07] nats)"
    assert typographic("z (+0.00 [+0.00, +0.00] share)") == "z (0.00 [0.00, 0.00] share)"
    assert typographic("step-by-step, 3-4 prompts, within ±0.1") == "step-by-step, 3-4 prompts, within ±0.1"
