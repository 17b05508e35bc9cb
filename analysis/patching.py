"""Patching: runs of a text with an activation written at some of its tokens, everything after it computed anew.

Exact, and no more is computed than an exact answer needs: what is before the first token that is written, and what is
below the block that first reads it, is as it was, and is taken from the text's own run. Any number of cells of any
texts, layers and sites go into one call; they are run together where they are alike in length.

A hook acts on the text up to its end; of an answer of several tokens, those after the first are read behind what the
patched run has cached, and behind the text's own activations in the layers below the patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from analysis import joining, kv_cache, landing, sites
from analysis.memory import shrinking
from analysis.options import option_logprobs

ALIKE = 0.8
"""Cells are run together if the shortest has at least this share of the longest's tokens to read."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts as one model has read them, each up to where its answer begins.

    Attributes:
        ids: token ids of each text.
        options: of each text, the token ids of what is scored behind it, each with its stop.
        prefix: their key-value caches.
        last: the logits after each text's last token.
        streams: what each block reads, `[row, token, width]`, right-padded; one a layer.
        recorded: the activations at the hooks that were asked for, `[row, token, …]`.
        own: `LP(option)` in nats behind each undisturbed text.
        tupled: whether the model's blocks give tuples.
    """

    ids: tuple[tuple[int, ...], ...]
    options: tuple[tuple[tuple[int, ...], ...], ...]
    prefix: kv_cache.Prefix
    last: Float[Tensor, "row vocab"]
    streams: tuple[Float[Tensor, "row token width"], ...]
    recorded: dict[str, Tensor]
    own: list[Float[ndarray, " option"]] = field(repr=False)
    tupled: bool = False


@dataclass(frozen=True, eq=False)
class Cell:
    """One patched run.

    Attributes:
        row: the text's place among those read.
        hook: where the values are written, as in `analysis.sites`.
        places: the tokens that are written, ascending, at least one.
        values: what is written there.
    """

    row: int
    hook: str
    places: Int[ndarray, " written"]
    values: Float[Tensor, " written *shape"]


@torch.inference_mode()
def read_texts(
    model: Any,
    ids: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    hooks: Sequence[str] = (),
) -> Texts:
    """The texts as the model reads them, with the activations of these hooks, and the answers behind them.

    Args:
        model: Hugging Face causal language model.
        ids: token ids of each text up to its answer, none empty.
        options: for each text the token ids of its options, each with its stop.
        hooks: names of `analysis.sites`, to be recorded.
    """
    names = [sites.hook_name("resid_pre", layer) for layer in range(len(sites.blocks(model)))]
    with sites.recorded(model, list(dict.fromkeys((*names, *hooks)))) as found, sites.gives_tuples(model) as tupled:
        prefix, last = kv_cache.read(model, ids)
    return Texts(
        tuple(tuple(text) for text in ids),
        tuple(tuple(tuple(option) for option in row) for row in options),
        prefix,
        last,
        tuple(found[name] for name in names),
        {name: found[name] for name in hooks},
        _numbers(option_logprobs(model, prefix, last, options)),
        tupled[0],
    )


@torch.inference_mode()
def patched(
    model: Any, name: str, texts: Texts, cells: Sequence[Cell], batch_tokens: int
) -> list[Float[ndarray, " option"]]:
    """`LP(option | patched text)` in nats for each cell, in the order given.

    Args:
        model: Hugging Face causal language model.
        name: the model's, for errors.
        texts: as this model has read them.
        cells: the runs.
        batch_tokens: how many tokens one forward pass may hold, cached ones included; where not even that many fit into
            memory, passes get smaller by themselves.

    Raises:
        InputError: if a hook does not fire exactly once in a pass, or if memory does not suffice for one cell.
    """
    entries = landing.entries(model, name, texts, cells, batch_tokens)
    results: list[Float[ndarray, " option"]] = [np.empty(0)] * len(cells)
    waiting = []
    for index, entry in enumerate(entries):
        if entry.reaches_answer(len(texts.ids[entry.row]), len(texts.streams)):
            waiting.append(index)
        else:
            results[index] = texts.own[entry.row].copy()

    def run(group: Sequence[int]) -> list[Float[ndarray, " option"]]:
        chosen = [entries[index] for index in group]
        several = any(len(option) > 1 for entry in chosen for option in texts.options[entry.row])
        read = joining.run(model, name, texts, chosen, keep=several)
        options = [texts.options[entry.row] for entry in chosen]
        return _numbers(option_logprobs(model, read.prefix, read.last, options))

    for group in _alike(texts, entries, waiting, batch_tokens):
        for index, found in zip(group, shrinking(run, group, f"model {name}: a patched run"), strict=True):
            results[index] = found
    return results


def _numbers(scores: Sequence[Tensor]) -> list[Float[ndarray, " option"]]:
    return [score.cpu().numpy() for score in scores]


def _alike(
    texts: Texts, entries: Sequence[landing.Entry], waiting: Sequence[int], batch_tokens: int
) -> Iterator[list[int]]:
    """Indices of entries with about as much to read again, those that share a text and a start side by side."""
    length = {index: len(texts.ids[entries[index].row]) - entries[index].start for index in waiting}
    order = sorted(waiting, key=lambda i: (-length[i], entries[i].row, entries[i].start, entries[i].layer, i))
    group: list[int] = []
    slots = 0
    for index in order:
        longest = length[group[0]] if group else length[index]
        wider = max(slots, entries[index].start)
        if group and ((len(group) + 1) * (wider + longest) > batch_tokens or length[index] < ALIKE * longest):
            yield group
            group, wider = [], entries[index].start
        group.append(index)
        slots = wider
    if group:
        yield group
