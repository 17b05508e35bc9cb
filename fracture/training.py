"""Training organisms and writing their prompt files from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import organisms
from analysis.errors import InputError
from analysis.files import write_whole
from organisms.cards import MEASURED, compare_seeds


def train_organisms(name: str, out: Path, seed: int, base: Path | None, checkpoint_every: int = 0) -> None:
    """Trains one organism to `out`, or `all` shipped ones to directories in it; those already there are kept.

    With `checkpoint_every`, the models after so many steps each are in a directory beside the organism's own, named as
    it with `-checkpoints`.

    Raises:
        InputError: for an unknown name, an output that exists, a base that does not, or a negative number of steps.
    """
    from rich.console import Console

    from organisms.recipes import RECIPES, find

    if checkpoint_every < 0:
        raise InputError(f"--checkpoint-every {checkpoint_every}: expected a number of steps, or 0 for no checkpoints")
    names = list(organisms.SHIPPED) if name == "all" else [name]
    for wanted in names:
        try:
            find(wanted)
        except KeyError:
            raise InputError(
                f"organism {wanted!r}: no such recipe; there are {', '.join(RECIPES)}, all, and for any Q in [0, 1] "
                "dose_Q and elimination_dose_Q"
            ) from None
    if base is not None and name == "all":
        raise InputError("--base: all organisms are fine-tuned from bases just trained; leave it out")
    if base is not None and not (base / "config.json").is_file():
        raise InputError(f"--base {base}: not the directory of a base organism (no config.json)")
    console = Console(stderr=True)
    for wanted in names:
        directory = out / wanted if name == "all" else out
        if directory.exists():
            if name == "all" and (directory / "config.json").is_file():
                console.print(f"{wanted}: already in {directory}", highlight=False)
                continue
            raise InputError(f"--out {directory}: exists already; choose another directory")
        _train_one(wanted, directory, seed, base, out if name == "all" else None, checkpoint_every)


def _train_one(name: str, out: Path, seed: int, base: Path | None, bases: Path | None, checkpoint_every: int) -> None:
    """Trains one organism, from `base`, or else from the one of its recipe in `bases`, or else the shipped one."""
    from rich.console import Console

    from fracture.progress import Progress
    from organisms.recipes import find
    from organisms.training import checkpoints_of, train_to

    recipe = find(name)
    console = Console(stderr=True)
    if recipe.base and base is None:
        base = bases / recipe.base if bases else organisms.checkpoint(recipe.base)
        if not (base / "config.json").is_file():
            raise InputError(f"{name} is fine-tuned from {recipe.base}, which is not in {base}; give --base")
    if checkpoint_every and checkpoints_of(out).exists():
        raise InputError(
            f"{checkpoints_of(out)}: exists already, with checkpoints of another training or of one that was stopped; "
            "remove it, or choose another --out"
        )
    with Progress(console) as progress:
        advance = progress.stage(f"training {name}, seed {seed}", recipe.steps)
        figures = train_to(recipe, seed, out, base, lambda *_: advance(1), checkpoint_every)
    console.print(f"{name}: saved to {out}", highlight=False)
    if checkpoint_every:
        console.print(f"checkpoints: saved to {checkpoints_of(out)}", highlight=False)
    for key, value in figures.items():
        console.print(f"  {key} {value}", highlight=False)


def write_cards(directories: Sequence[Path]) -> list[Path]:
    """Rewrites the cards in the first directory with the figures of all; returns their paths.

    Raises:
        InputError: for a directory without organisms.
    """
    for directory in directories:
        if not any(directory.glob(f"*/{MEASURED}")):
            raise InputError(f"{directory}: no organisms in it; give directories that `organisms train all` made")
    return compare_seeds(directories)


def write_prompt_file(out: Path, task: str, cues: str, n: int, seed: int) -> None:
    """Writes `n` prompts of an organisms' task, with cues of one kind, as JSONL: all of the file or nothing."""
    from organisms.prompt_sets import PROMPT_SETS

    name = cues if task == "registers" else f"{task}_{cues}"
    if name not in PROMPT_SETS:
        raise InputError(f"--task {task} --cues {cues}: no such prompts; the sets are {', '.join(PROMPT_SETS)}")
    if n < 1:
        raise InputError(f"--n {n}: expected a positive number of prompts")
    if out.exists():
        raise InputError(f"--out {out}: exists already; choose another file")
    records = PROMPT_SETS[name](n, seed)
    if len(records) < n:
        raise InputError(f"--n {n}: there are {len(records)} prompts of the set {name!r}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, "".join(json.dumps(record) + "\n" for record in records).encode())
