"""Options that several commands of `fracture probes` have, and what they all use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Where = Annotated[Path, typer.Argument(help="The run directory of a study, or an activation store.")]
TARGETS = (
    "answer, step-value (of each step), step-value:2 (of step 2; -1: the last), cue, correct, or a column: of "
    "--labels, of the store's rows, or of what came with the prompts."
)
TargetName = Annotated[str, typer.Option(help=TARGETS)]
Model = Annotated[str | None, typer.Option(help="Which model of a study: base (default) or a variant.")]
Layers = Annotated[str, typer.Option(help="all, numbers and ranges such as 0,4-7, or hook names.")]
Site = Annotated[str | None, typer.Option(help="resid_post, z, …; by default all that the store holds.")]
POSITIONS = (
    "Comma-separated: question_end, steps (each by its number), step 2, step -1, step_ends (all together), "
    "answer, …; of your own store the values of its column position."
)
Positions = Annotated[str | None, typer.Option(help=POSITIONS)]
KindName = Annotated[str, typer.Option(help="ridge, logistic, mass-mean or mlp.")]
Task = Annotated[str, typer.Option(help="auto, classification or regression.")]
Labels = Annotated[Path | None, typer.Option(help="CSV, JSONL or Parquet with id (and step) and the target's column.")]
Folds = Annotated[int, typer.Option(help="Folds over prompts.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn: folds, permutations, controls.")]
Device = Annotated[str, typer.Option(help="Where ridge is computed: cpu, cuda, …")]


def kind_of(kind: str) -> Any:
    """The kind of probe itself; an error for one that there is not."""
    from fracture.probing.training import check_kind

    return check_kind(kind)


def listed(text: str | None) -> list[str] | None:
    """The parts of a comma-separated list."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def progress() -> Any:
    """Progress on the standard error stream."""
    from rich.console import Console

    from fracture.progress import Progress

    return Progress(Console(stderr=True))


def console() -> Any:
    """The terminal for results."""
    from rich.console import Console

    return Console(soft_wrap=False)
