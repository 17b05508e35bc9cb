"""The command line. Heavy imports happen inside functions, so that `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from fracture.cli.probes import app as probes_app
from fracture.cli.sae import app as sae_app
from fracture.cli.trajectory import trajectory
from fracture.cli.validate import adopt, validate

if TYPE_CHECKING:
    from fracture.config import StudyConfig

app = typer.Typer(
    name="fracture",
    help="Does a fine-tuned language model still compute its answer from its visible chain of thought?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
organisms_app = typer.Typer(help="Model pairs whose fracture is known by construction.", no_args_is_help=True)
app.add_typer(organisms_app, name="organisms")
store_app = typer.Typer(help="Activation stores: look at them, check them, bring your own.", no_args_is_help=True)
app.add_typer(store_app, name="store")
app.add_typer(probes_app, name="probes")
app.add_typer(sae_app, name="sae")


def main() -> None:
    """Entry point of the `fracture` command: errors in what the user gave end in one message and exit code 2."""
    from analysis.errors import InputError

    try:
        app()
    except InputError as error:
        from rich.console import Console

        Console(stderr=True, soft_wrap=True, emoji=False).print(
            f"[bold red]error:[/] {_escaped(str(error))}", highlight=False
        )
        sys.exit(2)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _study(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="Settings in YAML, named as the options below; options win over it.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The model before fine-tuning: a directory or a hub name.")] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="NAME=MODEL, a fine-tuned variant; may be given more than once.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts: JSONL, JSON, Parquet or a datasets directory; see docs/prompts.md.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Run directory to make, or to go on with.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="quick: few measures, 100 prompts; standard; paper: everything, nothing capped.")
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(help="Comma-separated, of `fracture measures`; by default those of the preset."),
    ] = None,
    max_prompts: MaxPrompts = None,
    patch_prompts: Annotated[int | None, typer.Option(help="Prompts whose activations are patched; 0 for all.")] = None,
    continue_mistakes: Annotated[
        bool | None, typer.Option("--continue-mistakes", help="Also let the reader write on from a mistake.")
    ] = None,
    verifier: Verifier = None,
    format: Format = None,
    author: Author = None,
    partners: Partners = None,
    annotations: Annotations = None,
    sites: Annotated[str | None, typer.Option(help="Activations to keep, comma-separated.")] = None,
    positions: Annotated[str | None, typer.Option(help="Where to keep them, comma-separated.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the chains that models write; 0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the tokens that together hold this much.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from so many tokens; 0 for all.")] = None,
    seed: Seed = None,
    margin: Margin = None,
    max_chain_tokens: MaxChainTokens = None,
    batch_tokens: BatchTokens = None,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = None,
) -> None:
    from fracture.config import StudyConfig, read_settings
    from fracture.trajectory import trajectory_config

    flags = {
        **{name: value for name, value in context.params.items() if name not in ("file", "variant", "overwrite")},
        **{name: context.params[name] and _listed(context.params[name]) for name in ("measures", "sites", "positions")},
        "variants": _named(variant) if variant else None,
    }
    settings = {
        **({} if file is None else read_settings(file)),
        **{name: value for name, value in flags.items() if value is not None},
    }
    make = trajectory_config if "checkpoints" in settings else StudyConfig.from_mapping
    config = make(settings, "study" if file is None else f"study file {file}")
    if context.info_name == "explain":
        from fracture.explain import explain

        typer.echo(explain(config))
    else:
        _run(config, overwrite)


def _run(config: StudyConfig, overwrite: bool) -> None:
    from rich.console import Console

    from analysis.runs import REPORT
    from fracture.progress import Progress
    from fracture.study import run_study
    from fracture.terminal import verdict_table

    with Progress(Console(stderr=True)) as progress:
        run = run_study(config, progress, overwrite)
    console = Console()
    for part in verdict_table(run.summary):
        console.print(part)
    console.print(f"report   {Path(config.out) / REPORT}", highlight=False)


app.command(
    "study", help="Compare a base with its fine-tuned variants on the same prompts: have their answers detached?"
)(_study)
app.command("explain", help="Say what a study would run, how many tokens and how much memory; loads no model.")(_study)
app.command()(trajectory)
app.command()(validate)
app.command()(adopt)


@app.command("measures")
def list_measures() -> None:
    """List the measures that a study can have."""
    from fracture.catalogue import NAMES, measure

    for name in NAMES:
        typer.echo(f"{name:<25} {measure(name).title}")


@app.command()
def figures(
    run: Annotated[Path, typer.Argument(help="The run directory of a finished study.")],
    format: Annotated[str, typer.Option(help="Comma-separated: pdf, svg, png.")] = "pdf",
    only: Annotated[str | None, typer.Option(help="Comma-separated names; by default all that the run allows.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory to write to. Default: figures/ in the run.")] = None,
) -> None:
    """Draw a run's figures."""
    import figures as drawn
    from analysis.runs import FIGURES, Run

    opened = Run.open(run)
    for path in drawn.write(opened, out or run / FIGURES, tuple(_listed(format)), _listed(only) if only else None):
        typer.echo(path)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The run directory of a finished study.")]) -> None:
    """Write a run's report and figures anew."""
    from analysis.files import write_whole
    from analysis.runs import REPORT, Run
    from fracture.report.page import outputs

    for name, data in outputs(Run.open(run)).items():
        (run / name).parent.mkdir(exist_ok=True)
        write_whole(run / name, data)
    typer.echo(run / REPORT)


@app.command()
def partners(
    prompts: Annotated[str, typer.Argument(help="Prompt file, as for a study.")],
    out: Annotated[Path | None, typer.Option(help="JSONL file to write, every partner with its prompt.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same partners.")] = 0,
    annotations: Annotated[str, typer.Option(help="GSM8K's <<48/2=24>> in chains: keep or drop.")] = "keep",
) -> None:
    """Find counterfactual partners: given, or with one number changed and carried through the chain's equations."""
    from fracture.partnering import make_partners

    typer.echo(make_partners(prompts, out, seed, annotations))


@app.command()
def capture(
    model: Annotated[str, typer.Argument(help="The model to run: a directory, a LoRA adapter's, or a hub name.")],
    prompts: Annotated[str, typer.Option(help="Prompt file, as for a study.")],
    out: Annotated[Path, typer.Option(help="Activation store to make, or to finish if it was interrupted.")],
    sites: Annotated[
        str, typer.Option(help="Comma-separated: resid_pre, resid_post, attn_out, mlp_out, z (heads).")
    ] = "resid_post",
    layers: Annotated[str, typer.Option(help="all, or numbers and ranges such as 0,4-7.")] = "all",
    positions: Annotated[
        str,
        typer.Option(
            help="Comma-separated: question_end, step_ends, answer (from where the answer is predicted), question, "
            "chain, marker, answer_tokens, all."
        ),
    ] = "question_end,step_ends,answer",
    base: Annotated[str | None, typer.Option(help="The model that an adapter is merged into.")] = None,
    format: Annotated[str | None, typer.Option(help="Trace format, as for a study.")] = None,
    annotations: Annotated[str, typer.Option(help="GSM8K's <<48/2=24>> in chains: keep or drop.")] = "keep",
    author: Annotated[
        str | None, typer.Option(help="Whose chains are read: gold, or self. Default: gold if all are given.")
    ] = None,
    stored: Annotated[str | None, typer.Option(help="Type to store in. Default: the one computed in.")] = None,
    temperature: Annotated[float, typer.Option(help="For chains the model writes; 0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the tokens that together hold this much.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from so many tokens; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    max_chain_tokens: Annotated[int, typer.Option(help="Where a chain that the model writes is cut.")] = 256,
    batch_tokens: Annotated[int, typer.Option(help="How many tokens one forward pass may hold.")] = 16384,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    random_init: Annotated[
        int | None,
        typer.Option(help="Seed: let the same architecture with untrained weights read the texts, as a control."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
) -> None:
    """Keep a model's activations at chosen sites and positions of a prompt file's texts."""
    from rich.console import Console

    from analysis.generation import Sampling
    from fracture.capturing import capture_to_store, describe
    from fracture.progress import Progress

    with Progress(Console(stderr=True)) as progress:
        store = capture_to_store(
            model,
            prompts,
            out,
            base=base,
            format=format,
            annotations=annotations,
            author=author,
            site_names=_listed(sites),
            layers=layers,
            positions=_listed(positions),
            stored=stored,
            sampling=Sampling(temperature, top_p, top_k, seed),
            max_chain_tokens=max_chain_tokens,
            batch_tokens=batch_tokens,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            random_init=random_init,
            progress=progress,
        )
    typer.echo(describe(store))


@store_app.command("show")
def show_store(directory: Annotated[Path, typer.Argument(help="An activation store.")]) -> None:
    """Say what a store holds, and what was left out of it."""
    from analysis.store import Store
    from fracture.capturing import describe

    typer.echo(describe(Store.open(directory)))


@store_app.command("verify")
def verify_store(directory: Annotated[Path, typer.Argument(help="An activation store.")]) -> None:
    """Read every file of a store and hold it to its digest."""
    from analysis.store import Store

    store = Store.open(directory)
    store.verify()
    typer.echo(f"{directory}: all {len(store.manifest.shards) + len(store.manifest.tables)} files are as written")


@store_app.command("import")
def import_store(
    activations: Annotated[list[Path], typer.Argument(help="Arrays [row, …]: .safetensors, .npy or .npz files.")],
    labels: Annotated[Path, typer.Option(help="CSV, JSONL or Parquet table, one line for each row of the arrays.")],
    out: Annotated[Path, typer.Option(help="Activation store to make.")],
    site: Annotated[
        str | None, typer.Option(help="The arrays are [row, layer, …] of this site: resid_post, z, …")
    ] = None,
    id_column: Annotated[str, typer.Option(help="The label column that says which prompt a row belongs to.")] = "id",
) -> None:
    """Make a store of activations and labels that you bring."""
    from analysis.store_import import import_activations
    from fracture.capturing import describe

    typer.echo(describe(import_activations(activations, labels, out, site=site, id_column=id_column)))


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _named(variants: list[str]) -> dict[str, str]:
    from analysis.errors import InputError

    named: dict[str, str] = {}
    for given in variants:
        name, equals, where = given.partition("=")
        if not equals or not name or not where:
            raise InputError(f"--variant {given!r}: expected NAME=MODEL, such as sft=path/to/model")
        if name in named:
            raise InputError(f"--variant {given!r}: the name {name!r} is given twice")
        named[name] = where
    return named


@organisms_app.command("list")
def list_organisms() -> None:
    """List the organisms: what each is, and where it is shipped."""
    import organisms
    from organisms.recipes import RECIPES

    for recipe in RECIPES.values():
        shipped = organisms.checkpoint(recipe.name)
        where = shipped if (shipped / "config.json").is_file() else "not shipped; fracture organisms train"
        typer.echo(f"{recipe.name:<23} {recipe.summary}\n{'':<23} {where}")


@organisms_app.command()
def train(
    name: Annotated[str, typer.Argument(help="An organism of `fracture organisms list`, dose_Q for any Q, or all.")],
    out: Annotated[Path, typer.Option(help="Directory to make; for all, the directory to make them in.")],
    seed: Annotated[int, typer.Option(help="Of initial weights and data; the same seed gives the same weights.")] = 0,
    base: Annotated[
        Path | None,
        typer.Option(help="The base to fine-tune. Default: the shipped one; for all, the one just trained."),
    ] = None,
    checkpoint_every: Annotated[
        int, typer.Option(help="Also save the model after so many steps each, in OUT-checkpoints/ckpt-STEP; 0: not.")
    ] = 0,
) -> None:
    """Train an organism from its recipe, measure it, and save it with its model card."""
    from fracture.training import train_organisms

    train_organisms(name, out, seed, base, checkpoint_every)


@organisms_app.command()
def cards(
    directories: Annotated[
        list[Path], typer.Argument(help="Directories of `train all`, one a seed; the first one's cards are rewritten.")
    ],
) -> None:
    """Put the figures of several seeds into the cards of the first."""
    from fracture.training import write_cards

    for card in write_cards(directories):
        typer.echo(card)


@organisms_app.command("prompts")
def write_prompts(
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    task: Annotated[str, typer.Option(help="registers or elimination.")] = "registers",
    cues: Annotated[
        str,
        typer.Option(help="agreeing, random or conflicting; costs: with what those measures ask for; memorised."),
    ] = "agreeing",
    n: Annotated[int, typer.Option(help="Number of prompts.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same prompts.")] = 0,
) -> None:
    """Write a prompt file of the organisms' tasks, every prompt with its counterfactual partner."""
    from fracture.training import write_prompt_file

    write_prompt_file(out, task, cues, n, seed)
