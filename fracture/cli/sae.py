"""The commands of `fracture sae`. Heavy imports happen inside functions, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fracture.cli.probe_options import Where, console, progress

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    help="Features: sparse autoencoders and crosscoders over stored activations, and whether they carry the bypass.",
    no_args_is_help=True,
)


@app.command("train")
def train_dictionary(
    source: Where,
    model: Annotated[
        str | None,
        typer.Option(
            help="base, a variant, both (the only variant), or names with commas. Crosscoders are of two or more; an "
            "autoencoder of several is of all their rows together. Default: both for crosscoders, else the base."
        ),
    ] = None,
    arch: Annotated[str, typer.Option(help="crosscoder, l1-crosscoder, topk, batchtopk or jumprelu.")] = "crosscoder",
    layer: Annotated[int | None, typer.Option(help="Default: the middle one of those that are stored.")] = None,
    site: Annotated[str, typer.Option(help="resid_post, attn_out, mlp_out, …")] = "resid_post",
    latents: Annotated[int | None, typer.Option(help="Default: 8 a dimension, if there are 8 rows a latent.")] = None,
    k: Annotated[int | None, typer.Option(help="How many fire on a row. Default: one in 32, 4 to 32.")] = None,
    rows: Annotated[int | None, typer.Option(help="Rows to train on, of all passes. Default: 20 passes.")] = None,
    seeds: Annotated[int, typer.Option(help="Dictionaries of so many seeds: what one alone has is not named.")] = 3,
    seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    other: Annotated[
        list[str] | None, typer.Option(help="NAME=STORE, another model's activations of the same texts.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory. Default: in the run, or beside the store.")] = None,
) -> None:
    """Train dictionaries of stored activations in sae-lens' format; an interrupted training goes on."""
    from fracture.features.dictionaries import (
        chosen_models,
        defaults,
        hook_of,
        open_activations,
        rows_for,
        train_dictionaries,
    )

    opened = open_activations(source, _others(other))
    models, hook = chosen_models(opened, model, arch), hook_of(opened, layer, site)
    settings = defaults(rows_for(opened, models, hook, arch), arch, latents, k, rows, seed)
    with progress() as shown:
        directory, found = train_dictionaries(opened, models, hook, settings, seeds, shown.stage, out)
    terminal = console()
    terminal.print(
        f"{arch} of {', '.join(models)} at {hook}: {settings.latents} latents, k {settings.k}", highlight=False
    )
    terminal.print(_trained(found))
    for dictionary in found:
        for warning in dictionary.card["warnings"]:
            terminal.print(f"seed {dictionary.card['settings']['seed']}: {warning}", highlight=False)
    terminal.print("These figures are no evidence: models that learned nothing reach as much (`fracture sae compare`).")
    typer.echo(f"dictionaries  {directory}")


@app.command("compare")
def compare_features(
    run: Annotated[Path, typer.Argument(help="The run directory of a finished study.")],
    dictionary: Annotated[
        Path | None, typer.Option(help="Directory of trained dictionaries. Default: the only one of the run.")
    ] = None,
    sae: Annotated[
        str | None, typer.Option("--sae", help="A published one instead: RELEASE/ID of sae-lens' list, or a directory.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Default: the dictionary's, or the only one.")] = None,
    layer: Annotated[int | None, typer.Option(help="With --sae: the layer it is read at.")] = None,
    site: Annotated[str, typer.Option(help="With --sae: the site.")] = "resid_post",
    prompts: Annotated[int, typer.Option(help="Prompts with partners that the causal check measures.")] = 40,
    draws: Annotated[int, typer.Option(help="Random sets of latents an edit; 20 or more.")] = 20,
    twins: Annotated[bool, typer.Option(help="The same figures of models that learned nothing.")] = True,
    causal: Annotated[bool, typer.Option(help="Edit the latents that differ, and measure bypass again.")] = True,
    maps: Annotated[bool, typer.Option(help="UMAP and PCA of step states and latents.")] = True,
    seed: Annotated[int, typer.Option(help="Of twins, random sets and maps.")] = 0,
) -> None:
    """Which latents differ between base and variant, what they fire on, and whether they carry the bypass."""
    from fracture.features.comparison import CompareSettings, compare_models
    from fracture.features.dictionaries import open_activations, published, seeds_of, the_dictionaries
    from fracture.features.files import COMPARE, write

    opened = open_activations(run, {})
    if sae is not None:
        directory, found = published(opened, sae, layer, site)
    else:
        directory = dictionary or the_dictionaries(opened)
        found = seeds_of(directory)
    name = variant or (found[0].models[1] if len(found[0].models) > 1 else _only(list(opened.stores)[1:]))
    settings = CompareSettings(prompts, draws, twins and sae is None, causal, maps, seed)
    with progress() as shown:
        comparison = compare_models(opened, found, name, directory, settings, shown.stage)
        where = directory / f"{COMPARE}.{name}"
        summary = write(comparison, where)
    terminal = console()
    for line in _said(summary):
        terminal.print(line, highlight=False)
    typer.echo(f"tables and figures  {where}\nin the report       fracture report {run}")


def _others(given: list[str] | None) -> dict[str, Path]:
    from analysis.errors import InputError

    found = {}
    for item in given or ():
        name, _, where = item.partition("=")
        if not name or not where:
            raise InputError(f"--other {item!r}: expected NAME=STORE")
        found[name] = Path(where)
    return found


def _only(variants: list[str]) -> str:
    from analysis.errors import InputError

    if len(variants) != 1:
        raise InputError(f"--variant: the run has {', '.join(variants)}; name one")
    return variants[0]


def _trained(found: list[Any]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    models = list(found[0].card["held_out"]["explained_variance"])
    for column in ("seed", *(f"explained variance, {name}" for name in models), "L0", "dead"):
        table.add_column(column, justify="right")
    for dictionary in found:
        held_out = dictionary.card["held_out"]
        numbers = [held_out["explained_variance"][name] for name in models]
        cells = [*(f"{number:.3f}" for number in numbers), f"{held_out['l0']:.1f}", f"{held_out['dead']:.0%}"]
        table.add_row(str(dictionary.card["settings"]["seed"]), *cells)
    return table


def _said(summary: dict[str, Any]) -> list[str]:
    lines = [f"{summary['variant']} against base, {summary['hook']}"]
    lines += [f"  {name}: {n} latents" for name, n in summary["classes"].items()]
    lines += [f"  warning: {warning}" for warning in summary["warnings"]]
    if summary["agreement"]:
        found = summary["agreement"]
        lines.append(
            f"  {found['share']:.0%} of the latents are found again by another of {found['seeds']} seeds (by chance "
            f"{found['chance']:.0%}); only those are named"
        )
    for twin in summary["twins"] or ():
        lines.append(
            f"  {twin['kind']}, {twin['model']}, held out: explained variance {twin['explained_variance']:.3f}, L0 "
            f"{twin['l0']:.1f}, dead {twin['dead']:.0%}"
        )
    if summary["effects"] is None:
        lines.append(f"  no causal check: {summary['unchecked']}")
    for line in summary["effects"] or ():
        how = "by text" if line["form"] == "text" else "inside"
        if line["change"] != line["change"]:
            lines.append(
                f"{line['edit']} ({line['n_latents']} latents), {how}: not scorable, hardly an effect to share"
            )
            continue
        change, control = (
            f"{line[name]:+.2f} [{line[f'{name}_low']:+.2f}, {line[f'{name}_high']:+.2f}]"
            for name in ("change", "control")
        )
        lines.append(
            f"{line['edit']} ({line['n_latents']} latents), {how}: bypass {line['bypass']:.2f}, changed by {change}; "
            f"random ones {control}, p = {line['p']:.2g}"
        )
    return lines
