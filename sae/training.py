"""Training of dictionaries on stored activations: sae-lens' training classes, its losses and its optimizer's settings.

A training writes into a directory that ends as a `sae.dictionary.Dictionary`. Until then it holds

    training.safetensors    weights, Adam's moments and how long each latent has been silent; in its header, as JSON,
                            the step, the settings and what identifies the rows

from which an interrupted training goes on, to the same bytes as an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from analysis.errors import InputError
from analysis.files import locked, write_whole
from analysis.sealed import CARD
from sae.dictionary import Dictionary
from sae.rows import Rows
from sae.trainer import ARCHITECTURES as ARCHITECTURES
from sae.trainer import CROSSCODERS, Batches, Trainer, training_sae
from sae.trainer import TrainSettings as TrainSettings

STATE = "training.safetensors"
CHECKPOINT_SECONDS = 60.0
COLLAPSE = 0.5
"""Share of dead latents from which on the card says that the dictionary collapsed."""


def train(
    rows: Rows, settings: TrainSettings, directory: str | Path, progress: Callable[[int], None] | None = None
) -> Dictionary:
    """The dictionary of these rows and settings, trained into `directory`, or finished or found there.

    Its card has `settings`, `rows` (`training` and `held_out`), `versions`, `warnings` and `held_out`: by the rows that
    were not trained on, `explained_variance` of each model, `l0` and `dead`, the share of latents that fire on none.
    Of batchtopk and crosscoder the threshold is first set so that on these rows `k` latents fire in the mean.

    Args:
        rows: of one model, or for crosscoders of several.
        settings: of the training.
        directory: of the dictionary.
        progress: called with the number of rows, of `settings.rows`, that were trained on since the last call.

    Raises:
        InputError: for fewer training rows than latents, several models and no crosscoder, a dictionary of other rows
            or settings in `directory`, or a loss that is not finite.
    """
    directory = Path(directory)
    _check(rows, settings)
    # Training rows and held-out ones are told apart by their places, and the activations by their mean norms.
    sha = hashlib.sha256(rows.held_out.tobytes() + rows.scales.tobytes())
    identity = {
        "settings": asdict(settings),
        "data": {"models": list(rows.models), "hook": rows.hook, "width": rows.width, "sha256": sha.hexdigest()},
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"dictionary {directory}: cannot be made ({error.strerror}); give another directory") from None
    with locked(directory, "dictionary"):
        if (directory / CARD).exists():
            found = Dictionary.load(directory)
            _check_same(directory, identity, {name: found.card.get(name) for name in identity})
            if progress:
                progress(settings.rows)
        else:
            found = _trained(rows, settings, directory, identity, progress)
            found.save(directory)
        (directory / STATE).unlink(missing_ok=True)
    return found


def _check(rows: Rows, settings: TrainSettings) -> None:
    if len(rows.models) > 1 and settings.architecture not in CROSSCODERS:
        raise InputError(
            f"architecture {settings.architecture}: reads one model, found {', '.join(rows.models)}; use one of "
            f"{', '.join(CROSSCODERS)}, or stack their rows"
        )
    n = len(rows.training)
    if n < settings.latents:
        raise InputError(
            f"{settings.latents} latents on {n} training rows ({int(rows.held_out.sum())} more are held out): a "
            "dictionary needs at least as many rows as latents, better ten times as many. Capture more with "
            "`fracture capture --positions all` or more prompts, or ask for fewer latents"
        )


def _check_same(directory: Path, asked: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for part in ("settings", "data"):
        if asked[part] != found[part]:
            differs = [name for name in asked[part] if asked[part][name] != (found[part] or {}).get(name)]
            raise InputError(
                f"dictionary {directory}: holds one of other {'activations' if part == 'data' else part} "
                f"({', '.join(differs)}); give another directory, or delete this one"
            )


def _trained(
    rows: Rows,
    settings: TrainSettings,
    directory: Path,
    identity: Mapping[str, Any],
    progress: Callable[[int], None] | None,
) -> Dictionary:
    batches = Batches(rows, settings.batch, settings.seed)
    steps = -(-settings.rows // batches.size)
    sae = training_sae(settings, len(rows.models), rows.width, rows.hook, steps)
    trainer = Trainer(sae, settings, steps)
    if (directory / STATE).exists():
        state, header = _read_state(directory)
        _check_same(directory, identity, header)
        trainer.resume(state, header["step"])
        if progress:
            progress(min(trainer.step * batches.size, settings.rows))
    written = time.monotonic()
    while trainer.step < steps:
        loss = trainer(batches.at(trainer.step))
        if not np.isfinite(loss):
            raise InputError(f"training into {directory}: the loss is {loss} at step {trainer.step}; use a smaller lr")
        if time.monotonic() - written >= CHECKPOINT_SECONDS:
            _write_state(directory, trainer, identity)
            written = time.monotonic()
        if progress:
            progress(min(batches.size, settings.rows - (trainer.step - 1) * batches.size))
    return _finished(sae, rows, settings, identity)


def _write_state(directory: Path, trainer: Trainer, identity: Mapping[str, Any]) -> None:
    header = {"training": json.dumps({**identity, "step": trainer.step})}
    try:
        write_whole(directory / STATE, safetensors.torch.save(trainer.state(), metadata=header))
    except OSError as error:
        raise InputError(f"dictionary {directory}: {STATE} cannot be written ({error.strerror}); make room") from None


def _read_state(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(directory / STATE, "pt") as opened:
            header = json.loads(opened.metadata()["training"])
            return {name: opened.get_tensor(name) for name in opened.keys()}, header  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"dictionary {directory}: {STATE}, an interrupted training, cannot be read ({error!r}); delete it to "
            "begin anew"
        ) from None


def _finished(sae: Any, rows: Rows, settings: TrainSettings, identity: Mapping[str, Any]) -> Dictionary:
    """The dictionary that was trained, with its threshold set and its card written."""
    from sae.twins import metrics

    bare = Dictionary(rows.models, rows.hook, rows.scales, {}, inference_sae(sae, rows.scales))
    if settings.architecture in ("batchtopk", "crosscoder"):
        set_threshold(bare, rows, settings.k)
    held_out = metrics(bare, rows)
    warnings = []
    if held_out.dead > COLLAPSE:
        warnings.append(
            f"{held_out.dead:.0%} of the {settings.latents} latents fire on none of the {held_out.n_rows} held-out "
            "rows: the dictionary has collapsed; use fewer latents, a smaller lr, or more rows"
        )
    if settings.architecture == "jumprelu" and not settings.k / 2 <= held_out.l0 <= 2 * settings.k:
        warnings.append(
            f"{held_out.l0:.1f} latents fire on a row and not {settings.k}: the penalty has had too little time; train "
            "on more rows"
        )
    card = {
        **identity,
        "rows": {"training": len(rows.training), "held_out": int(rows.held_out.sum())},
        "held_out": {
            "explained_variance": dict(held_out.explained_variance),
            "l0": float(held_out.l0),
            "dead": float(held_out.dead),
        },
        "warnings": warnings,
        "versions": {name: metadata.version(name) for name in ("torch", "sae-lens")},
    }
    return Dictionary(rows.models, rows.hook, rows.scales, card, bare.sae)


@torch.no_grad()
def inference_sae(sae: Any, scales: Float[ndarray, " model"]) -> Any:
    """sae-lens' inference class of a trained one, of raw activations: the scales are folded into its weights."""
    from sae_lens import SAE

    state = {name: value.detach().clone() for name, value in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    by_column = torch.from_numpy(scales).float().repeat_interleave(sae.cfg.d_in // len(scales))
    state["W_enc"] *= by_column[:, None]
    state["W_dec"] /= by_column
    state["b_dec"] /= by_column
    config = sae.cfg.get_inference_sae_cfg_dict()
    if "rescale_acts_by_decoder_norm" in config:
        # Decoders' norms are folded in; those of raw activations must not be divided by once more.
        config["rescale_acts_by_decoder_norm"] = False
    found = SAE.from_dict(config)
    found.load_state_dict(state)
    return found


@torch.no_grad()
def set_threshold(dictionary: Dictionary, rows: Rows, k: int) -> None:
    """Sets the one threshold of all latents so that on the held-out rows `k` of them fire in the mean.

    What sae-lens keeps while it trains is a moving average that begins at 0, and is far too low after a short training.
    """
    index = np.flatnonzero(rows.held_out)
    n = k * len(index)
    dictionary.sae.threshold.data.zero_()
    largest = torch.empty(0)
    for _, x in rows.chunks(index, max(1, 2**24 // dictionary.n_latents)):
        f = dictionary.encode(x)
        found = torch.cat([largest, f[f > 0]])
        largest = found.topk(min(n + 1, len(found)), sorted=False).values
    if len(largest) > n:
        last = largest.topk(n + 1).values[-2:].double()
        # What fires is above the threshold: halfway to the first that is not to fire, rounding is harmless.
        dictionary.sae.threshold.data.fill_(float(last.mean()))
