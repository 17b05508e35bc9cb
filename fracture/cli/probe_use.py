"""`fracture probes use`. Heavy imports happen inside the function, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fracture.cli.probe_options import Labels, Model, Seed, TargetName, Task, Where, console, listed, progress


def causal_use(
    source: Where,
    layers: Annotated[str, typer.Option("--layer", "--layers", help="Numbers and ranges such as 0,4-7, or all.")],
    positions: Annotated[
        str,
        typer.Option(
            "--position",
            "--positions",
            help="Comma-separated: question_end, steps, step 2, step -1, answer, or token 3 (of the text, from 0).",
        ),
    ],
    target: TargetName = "answer",
    site: Annotated[str, typer.Option(help="resid_post or resid_pre.")] = "resid_post",
    model: Model = None,
    method: Annotated[
        str, typer.Option(help="erase the concept, steer from one of its classes to another, or both.")
    ] = "erase",
    controls: Annotated[int, typer.Option(help="Random erasers, or directions; 100 or more.")] = 100,
    test_prompts: Annotated[
        int | None,
        typer.Option(
            help="How many prompts the model is run on; the others fit the eraser. Default: a third, 20 to 40."
        ),
    ] = None,
    task: Task = "auto",
    labels: Labels = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="The model that made the store. Default for a run: the study's.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The model that an adapter is merged into.")] = None,
    options: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated answers to choose from, for prompts that a bare store keeps no options of. Default: "
            "the store's answers if they are at most 20, else all that the model finds likely."
        ),
    ] = None,
    seed: Seed = 0,
    batch_tokens: Annotated[int, typer.Option(help="How many tokens one forward pass may hold.")] = 16384,
    dtype: Annotated[str | None, typer.Option(help="Default: the one that the store was computed in.")] = None,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, …")] = "cpu",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory for table and JSON. Default: in the run, or beside the store.")
    ] = None,
) -> None:
    """Is what a probe reads used? Erase it (LEACE) or steer along it in the model, against random ones."""
    from fracture.probing.models import ModelSettings, open_model, texts_of
    from fracture.probing.places import UseSettings, check_settings, places_of
    from fracture.probing.training import open_source, target_of
    from fracture.probing.use import use
    from fracture.probing.use_results import TABLE, output, told, write

    opened = open_source(source, model, None)
    found = target_of(opened, target, task, labels)
    settings = UseSettings(method, controls, test_prompts, seed)
    check_settings(settings, found)
    chosen = ModelSettings(checkpoint, base, dtype, device, batch_tokens, trust_remote_code)
    directory = output(opened, found, out)
    with progress() as shown:
        session = open_model(opened, chosen, shown.stage)
        texts, lost = texts_of(opened, session.reader.encoder, listed(options) or ())
        places = places_of(
            opened.store,
            found,
            texts,
            lost,
            layers=layers,
            site=site,
            positions=listed(positions) or (),
            settings=settings,
        )
        findings = use(session, opened.store, found, texts, places, settings)
    write(directory, findings, opened, found, settings)
    terminal = console()
    terminal.print(f"{found.name} in {opened.label}: {found.meaning}", highlight=False, markup=False)
    for text, finding in told(findings):
        terminal.print(text, highlight=False, markup=False, style="bold" if finding else None, soft_wrap=True)
    typer.echo(f"table  {directory / TABLE}")
