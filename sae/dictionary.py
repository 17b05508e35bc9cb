"""Dictionaries: trained or published sparse autoencoders and crosscoders behind one interface, in raw activation space.

A dictionary is a directory in sae-lens' own format with a card beside it:

    cfg.json                 sae-lens' configuration; `SAE.load_from_disk(directory)` reads it and the weights
    sae_weights.safetensors  weights that take the raw activations of all models side by side, `[model 0 | model 1 | …]`
    card.json                models, hook, scales, settings, measures on held-out rows; with a digest over all three
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from analysis.errors import InputError
from analysis.sealed import CARD, DIGEST, Sealed
from sae.published import CONFIG, WEIGHTS, from_disk, from_hub, make_linear

VERSION = 1
_OWN = ("version", DIGEST, "models", "hook", "scales")

_FORMAT = Sealed(
    what="dictionary",
    version=VERSION,
    files=(WEIGHTS, CONFIG),
    give="give the directory of a dictionary whose training was finished",
    again="train it again",
)


@dataclass(frozen=True, eq=False)
class Dictionary:
    """A sparse autoencoder of one model's activations, or a crosscoder of several models'.

    Attributes:
        models: names, in the order of the axis `model`.
        hook: where it reads.
        scales: what each model's activations were multiplied by in training; undone in all that this class gives.
        card: what JSON can hold: how it was trained, or where it is from, and its measures on held-out rows.
        sae: the sae-lens autoencoder of the concatenated raw activations; its decoding is linear.
    """

    models: tuple[str, ...]
    hook: str
    scales: Float[ndarray, " model"]
    card: Mapping[str, Any]
    sae: Any

    def __post_init__(self) -> None:
        if taken := sorted(set(self.card) & set(_OWN)):
            raise InputError(f"dictionary: the card has {', '.join(taken)}, which the format itself writes; rename it")
        self.sae.requires_grad_(False).eval()

    @property
    def n_latents(self) -> int:
        """How many latents it has."""
        return int(self.sae.cfg.d_sae)

    @property
    def width(self) -> int:
        """Of one model's activations."""
        return int(self.sae.cfg.d_in) // len(self.models)

    @property
    def decoder(self) -> Float[Tensor, "latent model width"]:
        """What a unit of each latent writes into each model's raw activations."""
        out: Tensor = self.sae.W_dec.data.view(self.n_latents, len(self.models), self.width)
        return out

    @property
    def bias(self) -> Float[Tensor, "model width"]:
        """The reconstruction where no latent fires."""
        out: Tensor = self.sae.b_dec.data.view(len(self.models), self.width)
        return out

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row model width"]) -> Float[Tensor, "row latent"]:
        """The latents of raw activations, 0 where one does not fire; on the device of `x`.

        Raises:
            InputError: for activations of another shape.
        """
        if x.ndim != 3 or x.shape[1:] != (len(self.models), self.width):
            raise InputError(
                f"dictionary of {', '.join(self.models)} at {self.hook}: activations have shape {list(x.shape)}, "
                f"expected [row, {len(self.models)}, {self.width}]"
            )
        self._at(x)
        f: Tensor = self.sae.encode(x.reshape(len(x), -1))
        return f

    @torch.no_grad()
    def decode(self, f: Float[Tensor, "row latent"]) -> Float[Tensor, "row model width"]:
        """The reconstruction of raw activations: `bias + Σ_j f_j decoder[j]`."""
        self._at(f)
        out: Tensor = f @ self.sae.W_dec + self.sae.b_dec
        return out.view(len(f), len(self.models), self.width)

    def _at(self, x: Tensor) -> None:
        if self.sae.W_dec.device != x.device:
            self.sae.to(x.device)

    def save(self, directory: str | Path) -> None:
        """Writes the dictionary, over an earlier one if there is one; other files there are left alone.

        Raises:
            InputError: if the card holds what JSON cannot, or the directory cannot be written.
        """
        directory = Path(directory)
        state = {name: value.detach().cpu().contiguous() for name, value in self.sae.state_dict().items()}
        self.sae.process_state_dict_for_saving(state)
        weights = safetensors.torch.save(state)
        config = (json.dumps({**self.sae.cfg.to_dict(), "device": "cpu"}, indent=1) + "\n").encode()
        scales = [float(scale) for scale in self.scales]
        card = {"models": list(self.models), "hook": self.hook, "scales": scales, **self.card}
        _FORMAT.write(directory, card, [weights, config])

    @classmethod
    def load(cls, directory: str | Path) -> Dictionary:
        """The dictionary in a directory that `save` or `sae.training.train` made.

        Raises:
            InputError: if there is none, or it is not what was written.
        """
        directory = Path(directory)
        card, _ = _FORMAT.read(directory)
        try:
            models, hook, scales = tuple(card["models"]), card["hook"], np.array(card["scales"], dtype=np.float64)
        except (ValueError, KeyError, TypeError) as error:
            raise _FORMAT.damaged(directory, error) from None
        return cls(models, hook, scales, {k: v for k, v in card.items() if k not in _OWN}, from_disk(directory))

    @classmethod
    def published(cls, source: str | Path, hook: str, width: int) -> Dictionary:
        """A dictionary that someone else trained, for activations of this hook and width.

        Args:
            source: a directory, of `Dictionary.save` or of sae-lens, or RELEASE/ID of sae-lens' list of published
                ones, which is fetched from its hub.
            hook: that it is to read.
            width: of the activations there.

        Raises:
            InputError: if it cannot be had, is for another hook or width, or does not decode linearly.
        """
        where = f"dictionary {source}"
        directory = Path(source)
        if (directory / CARD).is_file():
            found = cls.load(directory)
        else:
            sae = from_disk(directory) if directory.is_dir() else from_hub(str(source))
            make_linear(sae, where)
            metadata = sae.cfg.metadata
            card = {"source": str(source), "architecture": sae.cfg.architecture()}
            name = metadata.model_name or "published"
            found = cls((str(name),), metadata.hook_name or hook, np.ones(1), card, sae)
        if found.width != width:
            raise InputError(
                f"{where}: reads activations of width {found.width}, and those of hook {hook} are {width} wide; use "
                "one that was trained on this model"
            )
        if found.hook != hook:
            raise InputError(
                f"{where}: was trained on hook {found.hook}, not on {hook}; capture that hook, or use another "
                "dictionary"
            )
        return found
