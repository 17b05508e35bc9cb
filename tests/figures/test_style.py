"""Names on lines, looks that differ, and how many steps are enough."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from figures.marks import common_steps, n_prompts
from figures.style import broken, looks

NAMES = st.text("abcXYZ019._-", min_size=1, max_size=60)


@given(NAMES)
def test_a_broken_name_is_the_name_on_lines_of_at_most_nineteen(name):
    lines = broken(name).split("\n")
    assert "".join(lines) == name
    assert all(1 <= len(line) <= 19 for line in lines)
    assert len(lines) == 1 if len(name) <= 16 else len(lines) > 1


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("dose_0.25", ["dose_0.25"]),
        ("llama-3.1-8b_sft-math.ckpt0500", ["llama-3.1-8b_", "sft-math.ckpt0500"]),
        ("mistral-7b.v0.3_lora-r64-a128x", ["mistral-7b.v0.3_", "lora-r64-a128x"]),
        ("aaaaaaaaaaaaaaaaaaaa", ["aaaaaaaaaa", "aaaaaaaaaa"]),
    ],
)
def test_names_break_between_their_parts(name, lines):
    assert broken(name).split("\n") == lines


def test_up_to_thirty_two_variants_look_different_and_eight_do_in_colour_and_marker_alone():
    found = looks([f"m{at}" for at in range(33)])
    assert len({(look.colour, look.marker, str(look.line)) for look in found.values()}) == 33
    nine = list(looks([f"m{at}" for at in range(9)]).values())
    assert len({look.colour for look in nine}) == len({look.marker for look in nine}) == 9


# Viénot, Brettel & Mollon 1999, in linear RGB: what a protanope and a deuteranope see.
SEEN = {
    "all": np.eye(3),
    "protanope": np.array([(0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)]),
    "deuteranope": np.array([(0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)]),
}
XYZ = np.array(
    [(0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041)]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def _lab(colour, seen):
    """CIE Lab (D65) of an sRGB colour as it is seen."""
    rgb = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])
    xyz = XYZ @ np.clip(seen @ rgb, 0, 1) / WHITE
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("who", SEEN)
def test_colours_of_eight_variants_and_the_base_stay_apart_for_everyone(who):
    """A distance of 2.3 is just noticeable; 10 is seen at a glance."""
    shown = [_lab(look.colour, SEEN[who]) for look in looks([f"m{at}" for at in range(9)]).values()]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(shown, 2)) > 10


@pytest.mark.parametrize(
    ("lengths", "steps"),
    [
        ([5] * 40, 5),
        ([2] * 20 + [3] * 20, 3),
        ([2] * 21 + [3] * 19, 2),
        ([1, 2, 3], 2),
        ([4], 4),
        ([], 0),
        ([1] * 500 + [9] * 20, 9),
    ],
)
def test_steps_are_common_in_twenty_prompts_or_half(lengths, steps):
    rows = [(f"p{at}", step) for at, length in enumerate(lengths) for step in range(1, length + 1)]
    assert common_steps(pd.DataFrame(rows, columns=["id", "step"])) == steps


def test_numbers_of_prompts_are_one_or_a_range():
    assert n_prompts([40, 40]) == "n = 40"
    assert n_prompts(iter([40, 38, 39])) == "n = 38–40"
    assert n_prompts([]) == "n = 0"
