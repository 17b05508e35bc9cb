"""The command `fracture trajectory`. Heavy imports happen inside functions, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fracture.cli.options import (
    Annotations,
    Author,
    BatchTokens,
    Device,
    Dtype,
    Format,
    Margin,
    MaxChainTokens,
    MaxPrompts,
    Overwrite,
    Partners,
    Seed,
    TrustRemoteCode,
    Verifier,
)
from fracture.cli.probe_options import console, listed, progress


def trajectory(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(help="Settings in YAML, named as the options below or as a study's; options win over it."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="The model before fine-tuning: step 0.")] = None,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            help="A glob in quotes, such as 'runs/sft/checkpoint-*': directories (models or LoRA adapters) whose names "
            "end in their steps. May be given more than once."
        ),
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="Prompts, as for a study.")] = None,
    out: Annotated[str | None, typer.Option(help="Run directory to make, or to go on with.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="As for a study. Default: only the measures that every trajectory has.")
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(help="Comma-separated, beside routes, accuracy_and_calibration and information_gain."),
    ] = None,
    max_prompts: MaxPrompts = None,
    verifier: Verifier = None,
    format: Format = None,
    author: Author = None,
    partners: Partners = None,
    annotations: Annotations = None,
    seed: Seed = None,
    margin: Margin = None,
    max_chain_tokens: MaxChainTokens = None,
    batch_tokens: BatchTokens = None,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = None,
) -> None:
    """Bypass, information gain and accuracy over fine-tuning: a study whose variants are checkpoints."""
    from analysis.errors import InputError
    from analysis.runs import REPORT, TRAJECTORY_CSV
    from fracture.config import read_settings
    from fracture.study import run_study
    from fracture.terminal import trajectory_table
    from fracture.trajectory import trajectory_config

    if file is not None and file.is_dir():
        raise InputError(
            f"{file}: is a directory, and not a file with settings; a glob of checkpoints must be in quotes, or the "
            "shell puts directories in its place"
        )
    flags = {name: value for name, value in context.params.items() if name not in ("file", "overwrite")}
    flags |= {"measures": listed(measures), "checkpoints": checkpoints or None}
    settings = {} if file is None else read_settings(file)
    if checkpoints and "checkpoints" in settings:
        # A run's own file says which were found, as its variants; these are found anew.
        settings.pop("variants", None)
    settings |= {name: value for name, value in flags.items() if value is not None}
    config = trajectory_config(settings, "trajectory" if file is None else f"study file {file}")
    with progress() as shown:
        run = run_study(config, shown, overwrite)
    terminal = console()
    for part in trajectory_table(run):
        terminal.print(part)
    for name in (TRAJECTORY_CSV, REPORT):
        terminal.print(f"{name.split('.')[0]:<11}{Path(config.out) / name}", highlight=False)
