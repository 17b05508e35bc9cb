"""Options that a study and a trajectory have alike; None where the settings' own default holds."""

from __future__ import annotations

from typing import Annotated

import typer

MaxPrompts = Annotated[int | None, typer.Option(help="Only the first so many prompts; 0 for all.")]
Verifier = Annotated[
    str | None,
    typer.Option(help="Of claims: arithmetic, arithmetic:MODULUS, facts (.csv, .jsonl, .parquet) or MODULE:FUNCTION"),
]
Format = Annotated[
    str | None, typer.Option(help="Trace format: plain, gsm8k, think, chat or a JSON file. Default: beside the model.")
]
Author = Annotated[
    str | None, typer.Option(help="Whose chains all models read: gold or base. Default: gold if all are given.")
]
Partners = Annotated[
    str | None,
    typer.Option(
        help="Counterfactuals: given with the prompts; changed (default): else one number changed and propagated; "
        "any: else another prompt, for description only."
    ),
]
Annotations = Annotated[str | None, typer.Option(help="GSM8K's <<48/2=24>> in chains: keep or drop.")]
Seed = Annotated[int | None, typer.Option(help="Of everything that is drawn.")]
Margin = Annotated[float | None, typer.Option(help="The change of bypass that counts; .1 by default.")]
MaxChainTokens = Annotated[int | None, typer.Option(help="Where a chain that a model writes is cut.")]
BatchTokens = Annotated[int | None, typer.Option(help="How many tokens one forward pass may hold.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another study's run at --out.")]
TrustRemoteCode = Annotated[
    bool | None, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
]
