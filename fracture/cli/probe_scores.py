"""`fracture probes scores`. Heavy imports happen inside functions, so that `--help` answers at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fracture.cli.probe_options import (
    TARGETS,
    Device,
    Folds,
    KindName,
    Labels,
    Layers,
    Positions,
    Seed,
    Site,
    Task,
    Where,
    console,
    kind_of,
    listed,
    progress,
)

if TYPE_CHECKING:
    import pandas as pd

    from fracture.probing.training import Source


def score_representation(
    source: Where,
    targets: Annotated[str, typer.Option("--targets", "--target", help=f"Comma-separated, of: {TARGETS}")],
    model: Annotated[
        str | None, typer.Option(help="Of a study, comma-separated. Default: the base and all variants.")
    ] = None,
    other: Annotated[
        list[Path] | None, typer.Option(help="Store of another model on the same prompts; may be given more than once.")
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(help="Comma-separated: fracture, entanglement (two targets or more), redundancy. Default: all."),
    ] = None,
    layers: Layers = "all",
    site: Site = None,
    positions: Positions = None,
    column: Annotated[
        str | None,
        typer.Option(help="Column of the rows whose values are fracture's contexts, in place of the positions."),
    ] = None,
    recentre: Annotated[
        bool, typer.Option("--recentre", help="Fracture: take out the constant offset between contexts.")
    ] = False,
    kind: KindName = "ridge",
    task: Task = "auto",
    labels: Labels = None,
    draws: Annotated[int, typer.Option(help="Of fracture's null.")] = 40,
    folds: Folds = 5,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Directory for tables and JSON. Default: in the run, or beside it.")
    ] = None,
) -> None:
    """Is a concept encoded alike everywhere, can it be erased alone, how often is it there? Model beside model.

    Fracture, entanglement and redundancy of representation, each with its null and interval.
    """
    from fracture.probing.score_cells import ScoreSettings
    from fracture.probing.scores import score_models, write
    from fracture.probing.training import file_name, target_of
    from probes.grid import GridSettings

    sources = _sources(source, model, other or [])
    names = list(dict.fromkeys(listed(targets) or ()))
    found = [[target_of(opened, name, task, labels) for name in names] for opened in sources]
    asked, places = listed(scores), listed(positions)
    settings = ScoreSettings(
        None if asked is None else tuple(asked),
        layers,
        site,
        None if places is None else tuple(places),
        column,
        recentre,
        draws,
    )
    probing = GridSettings(kind_of(kind), folds, seed=seed, device=device)
    with progress() as shown:
        scored = score_models(sources, found, settings, probing, shown.stage)
    label = "-".join(opened.label for opened in sources)
    directory = out or sources[0].out / file_name(f"{'-'.join(names)}.scores.{label}")
    write(directory, scored, sources, settings, probing)
    terminal = console()
    for target in found[0]:
        terminal.print(f"{target.name}: {target.meaning}", highlight=False, markup=False)
    for name, n in scored.left_out.items():
        terminal.print(
            f"{name}: {n} prompts left out: not every model has a label of them", highlight=False, markup=False
        )
    for name, table in scored.tables.items():
        if name in _SHOWN:
            _show(terminal, name, table)
    typer.echo(f"tables  {directory}")


def _sources(source: Path, model: str | None, other: list[Path]) -> list[Source]:
    from analysis.errors import InputError
    from analysis.runs import Run
    from analysis.store import MANIFEST
    from fracture.probing.training import open_source

    if (source / MANIFEST).is_file():
        return [open_source(path, model, None) for path in (source, *other)]
    if other:
        raise InputError(f"--other {other[0]}: stands beside a store; a run has its own models (--model)")
    first = open_source(source, None, None)
    names = listed(model) or list(Run.open(source).readers)
    return [first if name == first.model else open_source(source, name, None) for name in names]


def _interval(line: pd.Series[Any], name: str) -> str:
    low, high = ("low", "high") if name == "estimate" else (f"{name}_low", f"{name}_high")
    return f"{_number(line[name])} \\[{_number(line[low])}, {_number(line[high])}]"


def _number(value: float) -> str:
    """Two decimals without a leading zero, that a line fits 80 columns; adding 0 turns -0.00 into 0.00."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{round(value, 2) + 0.0:.2f}")


def _rounds(line: pd.Series[Any]) -> str:
    return "more" if line["rounds"] != line["rounds"] else f"{line['rounds']:.0f}"


_Columns = dict[str, Callable[["pd.Series[Any]"], str]]
_SHOWN: dict[str, tuple[str, _Columns]] = {
    "fracture": (
        "fracture: 0 for one code in all contexts, 1 for one of its own in each; null: 95th percentile; p adjusted",
        {
            "fracture": lambda line: _interval(line, "estimate"),
            "null, to": lambda line: _number(line["null_high"]),
            "p": lambda line: _number(line["p_adjusted"]),
            "own probes": lambda line: _interval(line, "within"),
        },
    ),
    "entanglement": (
        "entanglement: 0 where concepts are erased one by one, 1 where only together; labels: how they associate",
        {
            "entanglement": lambda line: _interval(line, "estimate"),
            "labels": lambda line: _number(line["association"]),
        },
    ),
    "redundancy": (
        "redundancy: rounds of projection until the concept is not read, and the dimensions that they took",
        {
            "rounds": _rounds,
            "dims": lambda line: "—" if line["rounds"] != line["rounds"] else f"{line['dimensions']:.0f}",
            "above chance": lambda line: _interval(line, "above"),
        },
    ),
}


def _show(terminal: Any, name: str, table: pd.DataFrame) -> None:
    """The lines that have a number, models below each other; then how many have none, and why."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    title, columns = _SHOWN[name]
    key = "rounds" if name == "redundancy" else "estimate"
    table = table.reindex(columns=[*table, *({key, "reason", "above_low"} - set(table))])
    # Nothing to project out is nothing to be redundant.
    there = table["above_low"] > 0 if name == "redundancy" else table[key].notna()
    hook = "hook" if table["layer"].isna().any() or table["site"].nunique() > 1 else "layer"
    if there.any():
        shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for heading in (hook, "target", "position", "model"):
            shown.add_column(heading, overflow="fold")
        for heading in columns:
            shown.add_column(heading, justify="right", no_wrap=True)
        for where, lines in table[there].groupby([hook, "target", "position"], sort=False):
            for _, line in lines.iterrows():
                at = [str(int(part)) if isinstance(part, float) else str(part) for part in (*where, line["model"])]
                shown.add_row(*map(escape, at), *(show(line) for show in columns.values()))
        terminal.print(shown)
    reasons = table.loc[~there, "reason"].fillna("not clearly above chance").groupby(table["model"], sort=False)
    for model, why in reasons:
        for reason, n in why.value_counts(sort=False).items():
            terminal.print(
                f"{name}: {n} of {len(table)} lines have none: {model}: {reason}", highlight=False, markup=False
            )
