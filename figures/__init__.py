"""Figures: one module each, read from a finished run, returning a matplotlib Figure."""

from __future__ import annotations

import difflib
import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import InputError
from analysis.files import write_whole
from figures.style import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.runs import Run

FORMATS = ("png", "pdf", "svg")

FIGURES: dict[str, str] = {
    "routes": "Which share of the answer's causal effect bypasses the chain?",
    "accuracy_trap": "Does accuracy rise while the chain tells less?",
    "information_gain": "What does each step, and what stands in the chain's place, tell of the gold answer?",
    "early_answering": "Does the answer change when the chain is cut short?",
    "step_scores": "How much does the answer hang on each step?",
    "patch_maps": "Where, in layers and steps, does the answer travel?",
    "heads": "Which attention heads carry the answer?",
    "attention_flow": "What does the answer lose when it cannot attend to step, question or chain?",
    "repair": "Does the variant use its chain again with the base's states in it?",
    "costs": "What does fine-tuning cost around the chain?",
    "probe_maps": "Where, in layers and steps, can a probe read the answer?",
    "transfer": "Does the base's probe still read the variant?",
    "drift": "How far have activations moved from the base's? (a baseline)",
    "trajectory": "When, over fine-tuning, does the answer detach from the chain?",
}
"""Name → title. Each is `NAME_figure(run)` in its own module."""

NEEDS: dict[str, tuple[str, ...]] = {
    "routes": ("routes",),
    "accuracy_trap": ("accuracy_and_calibration", "information_gain", "knowledge_index"),
    "information_gain": ("information_gain",),
    "early_answering": ("early_answering",),
    "step_scores": ("true_thinking", "logit_decay"),
    "patch_maps": ("patch_map",),
    "heads": ("head_map",),
    "attention_flow": ("attention_knockout", "masked_flow"),
    "repair": ("repair",),
    "costs": (
        *("abstention", "format_adherence", "rule_shift"),
        *("chain_length", "thought_switches", "partial_input"),
    ),
    "probe_maps": ("probes",),
    "transfer": ("transfer",),
    "drift": ("drift",),
    "trajectory": ("routes", "accuracy_and_calibration", "information_gain"),
}
"""Name → the measures that a run must have for it."""
OF_TRAJECTORIES = ("trajectory",)
"""Those that only a trajectory has: a run whose variants are checkpoints of one fine-tuning."""


def draw(name: str, run: Run) -> Figure:
    """The figure of that name, drawn from a finished run.

    Raises:
        InputError: if there is no such figure, or the run lacks a measure that it shows, or is no trajectory.
    """
    _known("figure", name, tuple(FIGURES))
    if name in OF_TRAJECTORIES and not run.checkpoints:
        raise InputError(
            f"run {run.directory}: figure {name!r} is of checkpoints, and the run's variants are not known to be any; "
            "`fracture trajectory` makes such a run"
        )
    if lacking := [measure for measure in NEEDS[name] if measure not in run.measures]:
        wanted = ",".join((*run.measures, *lacking))
        raise InputError(
            f"run {run.directory}: figure {name!r} needs {_listed(lacking)}, and the run has "
            f"{_listed(run.measures)}; run the study again with it, in another --out: --measures {wanted}"
        )
    figure: Figure = getattr(importlib.import_module(f"figures.{name}"), f"{name}_figure")(run)
    return figure


def available(run: Run) -> tuple[str, ...]:
    """The names of the figures that can be drawn from a run's measures."""
    return tuple(
        name
        for name, measures in NEEDS.items()
        if set(measures) <= set(run.measures) and (run.checkpoints or name not in OF_TRAJECTORIES)
    )


def write(
    run: Run, directory: Path, formats: Sequence[str] = ("png", "pdf"), only: Sequence[str] | None = None
) -> list[Path]:
    """Writes figures of a run as `directory/NAME.FORMAT`, and returns the paths.

    Args:
        run: a finished run.
        directory: made if it is not there.
        formats: of `FORMATS`.
        only: names of figures; by default all that are available.

    Raises:
        InputError: for an unknown format or figure, for one that the run cannot give, or if a file cannot be written.
            Nothing is written before everything is drawn.
    """
    for name in formats:
        _known("format", name, FORMATS)
    names = dict.fromkeys(available(run) if only is None else only)
    drawn = [(name, draw(name, run)) for name in names]
    files = [
        (directory / f"{name}.{format}", to_bytes(figure, format))
        for name, figure in drawn
        for format in dict.fromkeys(formats)
    ]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, data in files:
            write_whole(path, data)
    except OSError as error:
        raise InputError(f"figures directory {directory}: cannot be written ({error.strerror or error})") from None
    return [path for path, _ in files]


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Writes the figure as `stem.png`, `stem.pdf` … and returns the paths; the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{format}") for format in formats]
    for path, format in zip(paths, formats, strict=True):
        write_whole(path, to_bytes(figure, format))
    return paths


def to_bytes(figure: Figure, format: str) -> bytes:
    """The figure as the bytes of a file; the same figure gives the same bytes.

    Raises:
        InputError: for a format that is none of `FORMATS`.
    """
    _known("format", format, FORMATS)
    # Dates and library versions would make every file differ from the last.
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}, "svg": {"Date": None}}
    sink = io.BytesIO()
    with style():
        figure.savefig(sink, format=format, metadata=metadata[format])
    return sink.getvalue()


def _known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}? Known are" if close else "; known are"
        raise InputError(f"{what} {name!r}: unknown{hint} {', '.join(known)}")


def _listed(names: Sequence[str]) -> str:
    return f"the measure{'s' if len(names) > 1 else ''} {', '.join(names)}" if names else "no measure"
