"""The commands `fracture validate` and `fracture adopt`. Heavy imports happen inside functions: `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fracture.cli.probe_options import console, listed, progress


def validate(
    out: Annotated[Path, typer.Option(help="Directory to make, or to go on with.")],
    full: Annotated[
        bool,
        typer.Option(
            "--full/--quick",
            help="full: train every organism at every seed, and many harmless ones (hours); quick: the shipped ones.",
        ),
    ] = False,
    prompts: Annotated[int, typer.Option(help="Prompts of every study.")] = 40,
    patch_prompts: Annotated[int, typer.Option(help="Prompts whose activations are patched; 0 for all.")] = 24,
    seeds: Annotated[
        str, typer.Option(help="Of a full validation, comma-separated; seed 0 takes the shipped organisms.")
    ] = "0,1,2",
    doses: Annotated[str, typer.Option(help="Of a full validation, comma-separated.")] = "0,0.1,0.25,0.4,0.5,0.75,1",
    shams: Annotated[int, typer.Option(help="Harmless fine-tunings of a full validation, in all.")] = 40,
    family: Annotated[str | None, typer.Option(help="registers or elimination. Default: both.")] = None,
    measures: Annotated[
        str | None, typer.Option(help="Comma-separated, of `fracture measures`. Default: all of them.")
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(help="Organisms trained, and studies made, at once, on a core each; no result changes."),
    ] = 1,
) -> None:
    """Ask the suite's own measures of models whose fracture is known: which can be believed, and how far?"""
    from fracture.report import validation as report_validation
    from fracture.validation import validate as validation
    from fracture.validation.plan import FAMILIES, ValidationConfig

    config = ValidationConfig(
        out,
        "full" if full else "quick",
        prompts,
        patch_prompts,
        tuple(int(_number("--seeds", text, whole=True)) for text in listed(seeds) or ()),
        tuple(_number("--doses", text) for text in listed(doses) or ()),
        shams,
        FAMILIES if family is None else (family,),
        None if measures is None else tuple(listed(measures) or ()),
    )
    with progress() as shown:
        found = validation.validate(config, shown, lambda line: typer.echo(line, err=True), jobs)
    written = report_validation.write(out)
    terminal = console()
    for line in report_validation.lines(found):
        terminal.print(line, highlight=False, markup=False, soft_wrap=True)
    for path in written:
        typer.echo(path)
    failed = [item["what"] for item in found["acceptance"] if not item["passed"]]
    if failed:
        typer.echo(f"not as it must be: {'; '.join(failed)}", err=True)
        raise typer.Exit(1)


def adopt(
    validation: Annotated[Path, typer.Argument(help="Directory of a finished `fracture validate`.")],
    measures: Annotated[
        str | None,
        typer.Option(help="Only of these, comma-separated; the rest stays as it is. Default: all, in its place."),
    ] = None,
) -> None:
    """Take the statuses that a validation found into the suite, whose studies then weigh by them."""
    from fracture import validity

    typer.echo(validity.adopt(validation, listed(measures)))


def _number(option: str, text: str, whole: bool = False) -> float:
    from analysis.errors import InputError

    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise InputError(f"{option} {text!r}: expected {kind} with commas between them") from None
