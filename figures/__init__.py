"""Figures: one module each, read from a run's results, returning a matplotlib Figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from figures.style import RC

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")


def save(figure: Figure, stem: Path, formats: tuple[str, ...] = ("png", "pdf")) -> list[Path]:
    """Writes the figure as `stem.png`, `stem.pdf` … and returns the paths; the same figure gives the same bytes."""
    import matplotlib as mpl

    stem.parent.mkdir(parents=True, exist_ok=True)
    # Dates and library versions would make every file differ from the last.
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}, "svg": {"Date": None}}
    paths = [stem.with_suffix(f".{name}") for name in formats]
    with mpl.rc_context(RC):
        for path, name in zip(paths, formats, strict=True):
            figure.savefig(path, format=name, metadata=metadata[name])
    return paths
