"""One style for all figures: column width, colour-blind safe, embedded fonts."""

from __future__ import annotations

from typing import Any

COLUMN_WIDTH = 3.5
"""Inches; one column of a two-column paper."""

# Okabe & Ito (2008), distinguishable with all common forms of colour blindness.
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"

RC: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.hashsalt": "fracture",
    "svg.fonttype": "none",
}
