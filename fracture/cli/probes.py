"""The commands of `fracture probes`. Heavy imports happen inside functions, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fracture.cli.probe_options import (
    Device,
    Folds,
    KindName,
    Labels,
    Layers,
    Model,
    Positions,
    Seed,
    Site,
    TargetName,
    Task,
    Where,
    console,
    kind_of,
    listed,
    progress,
)
from fracture.cli.probe_scores import score_representation
from fracture.cli.probe_use import causal_use

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

app = typer.Typer(help="Probes over stored activations: what can be read, where, in which model.", no_args_is_help=True)
app.command("use")(causal_use)
app.command("scores")(score_representation)


@app.command("train")
def train_probes(
    source: Where,
    target: TargetName,
    model: Model = None,
    layers: Layers = "all",
    site: Site = None,
    positions: Positions = None,
    kind: KindName = "ridge",
    task: Task = "auto",
    labels: Labels = None,
    twin: Annotated[
        Path | None, typer.Option(help="Store of the same texts in a random-weight twin (capture --random-init).")
    ] = None,
    permutations: Annotated[int, typer.Option(help="Of the labels over prompts; 0 for none.")] = 100,
    mdl: Annotated[bool, typer.Option("--mdl", help="Also the online code length (logistic; slow).")] = False,
    folds: Folds = 5,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Directory for the probes. Default: in the run, or beside it.")
    ] = None,
) -> None:
    """Train a probe at every layer and position, with all its controls; save probes, table and heat map."""
    from fracture.probing.training import HEAT_MAP, TABLE, open_source, target_of, train
    from probes.commitment import commitment_points
    from probes.grid import GridSettings

    opened = open_source(source, model, twin)
    found = target_of(opened, target, task, labels)
    settings = GridSettings(kind_of(kind), folds, permutations, mdl=mdl, seed=seed, device=device)
    with progress() as shown:
        grid, directory = train(
            opened,
            found,
            layers=layers,
            site=site,
            positions=listed(positions),
            settings=settings,
            out=out,
            progress=shown.stage,
        )
    terminal = console()
    terminal.print(f"{found.name}: {found.meaning}; {len(grid.folds)} prompts, splits by prompt", highlight=False)
    terminal.print(_matrix(grid.table, "score", grid.metric))
    terminal.print("* beyond every control: " + _controls(grid.table), highlight=False)
    for line in _summary(grid.table):
        terminal.print(line, highlight=False)
    if found.name == "answer" and {"question_end", "answer"} <= set(grid.table["position"]):
        for _, point in commitment_points(grid.table).iterrows():
            where = "nowhere" if point["position"] != point["position"] else f"from {point['position']} on"
            terminal.print(f"{point['hook']}: above {point['threshold']:.2f} {where}", highlight=False)
    for (position, reason), rows in grid.excluded.groupby(["position", "reason"], sort=False):
        names = [str(name) for name in rows["id"].dropna().unique()]
        told = f"{len(names)} prompts ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})" if names else "left out"
        terminal.print(f"{position}: {told}: {reason}", highlight=False)
    typer.echo(f"table     {directory / TABLE}\nheat map  {directory / HEAT_MAP}\nprobes    {directory}")


@app.command("eval")
def evaluate_probes(
    probes: Annotated[Path, typer.Argument(help="Directory of trained probes.")],
    source: Where,
    model: Model = None,
    target: Annotated[str | None, typer.Option(help="By default the one that the probes were trained for.")] = None,
    task: Task = "auto",
    labels: Labels = None,
    include_trained: Annotated[
        bool, typer.Option("--include-trained", help="Also score prompts that the probes were trained on.")
    ] = False,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Also where the activations are of another model than the probes.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Parquet file for every row's prediction.")] = None,
) -> None:
    """Apply trained probes to other activations, and score them."""
    from analysis.files import parquet_bytes, write_whole
    from fracture.probing.training import evaluate, open_source, target_of, trained_prompts
    from probes.saved import ProbeSet

    opened, loaded = open_source(source, model, None), ProbeSet.load(probes)
    asked = task if task != "auto" else loaded.probes[0].task
    found = target_of(opened, target or str(loaded.card["target"]), asked, labels)
    table, left_out = evaluate(opened, loaded, found, trained_prompts(probes), include_trained, any_model)
    terminal = console()
    terminal.print(_matrix(table, "score", str(table["metric"].iloc[0])))
    if left_out:
        terminal.print(f"{left_out} prompts left out: the probes were trained on them", highlight=False)
    if out is not None:
        write_whole(out, parquet_bytes(loaded.apply(opened.store, any_model)))
        typer.echo(f"predictions  {out}")


@app.command("transfer")
def transfer_probes(
    source: Where,
    target: TargetName,
    variant: Annotated[str, typer.Option(help="A variant of the study, or the activation store of the other model.")],
    layers: Layers = "all",
    site: Site = None,
    positions: Positions = None,
    kind: KindName = "ridge",
    task: Task = "auto",
    labels: Labels = None,
    margin: Annotated[float, typer.Option(help="The change of the score that counts.")] = 0.1,
    folds: Folds = 5,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(help="Directory for table and map.")] = None,
) -> None:
    """Read the variant with the base's probes, and the base with the variant's: kept, moved or lost."""
    from fracture.probing.training import TRANSFER_MAP, TRANSFER_TABLE, open_source, target_of, transferred
    from probes.grid import GridSettings

    base = open_source(source, None, None)
    other = open_source(source, variant, None) if base.model else open_source(Path(variant), None, None)
    targets = (target_of(base, target, task, labels), target_of(other, target, task, labels))
    with progress() as shown:
        table, directory = transferred(
            base,
            other,
            targets,
            layers=layers,
            site=site,
            positions=listed(positions),
            settings=GridSettings(kind_of(kind), folds, seed=seed, device=device),
            margin=margin,
            out=out,
            progress=shown.stage,
        )
    terminal = console()
    metric = str(table["metric"].iloc[0])
    for name, what in (
        ("base", base.label),
        ("variant", other.label),
        ("transferred", f"{base.label} on {other.label}"),
    ):
        terminal.print(_matrix(table, name, metric, title=what))
    terminal.print(_matrix(table, "outcome", metric, title="outcome"))
    typer.echo(f"table  {directory / TRANSFER_TABLE}\nmap    {directory / TRANSFER_MAP}")


@app.command("list")
def list_trained(path: Annotated[Path, typer.Argument(help="A run, or any directory with probes below it.")]) -> None:
    """List trained probes."""
    from fracture.probing.training import describe, list_probes

    for directory, probes in list_probes(path):
        typer.echo(describe(directory, probes))


def _matrix(table: pd.DataFrame, value: str, metric: str, title: str | None = None) -> Table:
    """Layers as rows, positions as columns; scores with their intervals where they have one."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    names = {"auc": "AUC", "accuracy": "accuracy", "r2": "R²"}
    heading = escape(title or "") + (f" ({names[metric]}, 95% interval)" if value != "outcome" else "")
    shown = Table(title=heading.strip(), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("layer" if "layer" in table and table["layer"].notna().all() else "hook", overflow="fold")
    positions = list(dict.fromkeys(table["position"]))
    for position in positions:
        shown.add_column(escape(position), justify="right")
    for hook, cells in table.groupby("hook", sort=False):
        layer = cells["layer"].iloc[0] if "layer" in cells else None
        sites = table["site"].nunique() if "site" in table else 0
        name = str(hook) if layer is None or layer != layer or sites != 1 else str(int(layer))
        by_position = {line["position"]: line for _, line in cells.iterrows()}
        shown.add_row(escape(name), *(_cell(by_position.get(position), value) for position in positions))
    return shown


def _cell(line: pd.Series[Any] | None, value: str) -> str:
    if line is None:
        return "—"
    if value == "outcome":
        return str(line[value])
    low, high = ("low", "high") if value == "score" else (f"{value}_low", f"{value}_high")
    mark = "*" if line.get("finding") == "decodable" and value == "score" else ""
    return f"{_number(line[value])}{mark} \\[{_number(line[low])}, {_number(line[high])}]"


def _number(value: float) -> str:
    if value != value:
        return "—"
    text = f"{value:.2f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def _controls(table: pd.DataFrame) -> str:
    had = ["permuted labels (family-wise)"] if table["permuted"].notna().any() else []
    names = {
        "majority": "majority",
        "position_only": "position",
        "length_only": "length",
        "lexical": "the tokens at hand",
        "question_only": "question text",
        "control": "control task",
        "twin": "random-weight twin",
    }
    had += [words for column, words in names.items() if table[column].notna().any()]
    missing = sorted({part for text in table["not_had"].dropna() for part in text.split("; ")})
    return ", ".join(had) + (f". Not had: {'; '.join(missing)}" if missing else "")


def _summary(table: pd.DataFrame) -> list[str]:
    """How many cells are what, and the classes."""
    counts = table["finding"].value_counts()
    lines = [f"{n} of {len(table)} cells: {finding}" for finding, n in counts.items()]
    if table["classes"].notna().any():
        rate, classes = table["majority_rate"], int(table["classes"].max())
        lines.append(
            f"{classes} classes; the most frequent holds {rate.min():.0%} to {rate.max():.0%} of a cell's rows"
        )
    if table["bits"].notna().any():
        lines.append(
            f"online code: {table['compression'].max():.2f} times shorter than the marginal's at best, "
            f"{table['compression'].min():.2f} at worst"
        )
    return lines
