"""Key-value prefixes: run a text once, keep its cache, splice caches, and continue from them.

Everything is right-padded, and every call passes the attention mask and the position ids explicitly, so that a row's
result does not depend on which rows it was batched with (beyond floating-point order).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from analysis.errors import InputError


@dataclass(frozen=True)
class Prefix:
    """A batch of texts as a model has read them.

    Attributes:
        keys, values: one tensor a layer, `[row, key_value_head, slot, d_head]`.
        visible: which slots hold a token of the row and may be attended to, `[row, slot]`.
        length: number of visible tokens a row, `[row]`; the next token's position.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    visible: Bool[Tensor, "row slot"]
    length: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.length)

    def rows(self, index: Int[Tensor, " picked"]) -> Prefix:
        """The picked rows, in the order of `index`; a row may be picked more than once."""
        return Prefix(
            tuple(layer[index] for layer in self.keys),
            tuple(layer[index] for layer in self.values),
            self.visible[index],
            self.length[index],
        )

    def until(self, end: Int[Tensor, " row"]) -> Prefix:
        """The same texts cut before token `end` of each row (causal: what came after has left no trace)."""
        slots = torch.arange(self.visible.shape[1], device=self.visible.device)
        return replace(self, visible=self.visible & (slots < end[:, None]), length=end)

    def spliced(self, donor: Prefix, where: Bool[Tensor, "row slot"]) -> Prefix:
        """These texts with the donor's keys and values, at all layers, in the slots that `where` marks.

        Raises:
            ValueError: if the two do not occupy the same slots; spliced positions would not line up.
        """
        if self.visible.shape != donor.visible.shape or not torch.equal(self.visible, donor.visible):
            raise ValueError("recipient and donor prefixes must occupy the same slots to be spliced")
        mask = where[:, None, :, None]
        return replace(
            self,
            keys=tuple(torch.where(mask, new, old) for old, new in zip(self.keys, donor.keys, strict=True)),
            values=tuple(torch.where(mask, new, old) for old, new in zip(self.values, donor.values, strict=True)),
        )


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids `[row, token]`, filled up with id 0, and which of them are real `[row, token]`."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        real[index, : len(row)] = True
    return ids.to(device), real.to(device)


@torch.inference_mode()
def read(model: Any, rows: Sequence[Sequence[int]]) -> tuple[Prefix, Float[Tensor, "row vocab"]]:
    """The prefix of each text (token ids, none empty), and the logits after its last token."""
    return _forward(model, None, rows)


@torch.inference_mode()
def advance(model: Any, prefix: Prefix, rows: Sequence[Sequence[int]]) -> tuple[Prefix, Float[Tensor, "row vocab"]]:
    """The prefix after each row has read its own further tokens (none empty), and the logits after the last of them."""
    return _forward(model, prefix, rows)


def _forward(
    model: Any, prefix: Prefix | None, rows: Sequence[Sequence[int]]
) -> tuple[Prefix, Float[Tensor, "row vocab"]]:
    ids, real = pad_right(rows, model.device)
    last = real.sum(1) - 1
    with logits_only_at(model, last):
        cache, logits, visible, start = _run(model, prefix, ids, real)
    new = Prefix(
        tuple(layer.keys for layer in cache.layers),
        tuple(layer.values for layer in cache.layers),
        visible,
        start + last + 1,
    )
    return new, logits[:, 0].float()


@contextmanager
def logits_only_at(model: Any, position: Int[Tensor, " row *kept"]) -> Iterator[None]:
    """Within, the model gives logits `[row, kept, vocab]` at one position a row, or at several.

    Over a large vocabulary the logits of all positions would outweigh everything else, and the library's own
    `logits_to_keep` keeps the same positions of every row.
    """
    rows = torch.arange(len(position), device=position.device)[:, None]
    kept = position.reshape(len(position), -1)
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: (inputs[0][rows, kept], *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()


@torch.inference_mode()
def branch_logprobs(
    model: Any, prefix: Prefix, branches: Sequence[Sequence[Sequence[int]]]
) -> list[list[Float[Tensor, " token"]]]:
    """For each row and each of its branches, the log-probabilities (nats) of the branch's tokens from the second on.

    The branches of a row are continuations that do not see each other. They are read in one forward pass, one behind
    the other, each at the positions that it would have alone.
    """
    # A branch's last token is only predicted, never read.
    ids, real = pad_right([[token for tail in row for token in tail[:-1]] for row in branches], model.device)
    branch, place = torch.full_like(ids, -1), torch.zeros_like(ids)
    for row, tails in enumerate(branches):
        at = 0
        for number, tail in enumerate(tails):
            branch[row, at : at + len(tail) - 1] = number
            place[row, at : at + len(tail) - 1] = torch.arange(len(tail) - 1)
            at += len(tail) - 1
    _, logits, _, _ = _run(model, prefix, ids, real, Tree(branch, place))
    logprobs = logits.float().log_softmax(-1)
    scored = []
    for row, tails in enumerate(branches):
        at, found = 0, []
        for tail in tails:
            read = logprobs[row, at : at + len(tail) - 1]
            found.append(read.gather(-1, torch.tensor(tail[1:], device=read.device).long()[:, None]).squeeze(-1))
            at += len(tail) - 1
        scored.append(found)
    return scored


@dataclass(frozen=True)
class Tree:
    """New tokens that are several continuations of one text, of which each sees what it would see alone.

    Attributes:
        branch: which continuation each token belongs to (-1: padding).
        place: its position, counted from the prefix's end; before that it is negative.
        parent: the branch that it sees besides its own, and that stands before it; None if there are none.
        hidden: slots of the prefix that it cannot attend to; None for none.
    """

    branch: Int[Tensor, "row new"]
    place: Int[Tensor, "row new"]
    parent: Int[Tensor, "row new"] | None = None
    hidden: Bool[Tensor, "row new slot"] | None = None


@torch.inference_mode()
def tree_logits(
    model: Any, prefix: Prefix, rows: Sequence[Sequence[int]], tree: Tree, kept: Int[Tensor, "row kept"]
) -> Float[Tensor, "row kept vocab"]:
    """The logits after the kept ones of each row's new tokens, all of which are read in one forward pass."""
    ids, real = pad_right(rows, model.device)
    with logits_only_at(model, kept):
        return _run(model, prefix, ids, real, tree)[1].float()


def attention_window(model: Any) -> int | None:
    """How many positions back, its own included, the narrowest of the model's layers attends; None if all see all.

    Raises:
        InputError: for layers that keep something else than all keys and values, which cannot be cut or spliced.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if odd := kinds - {"full_attention", "sliding_attention"}:
        raise InputError(
            f"architecture {config.model_type}: has layers of the kind {min(odd)!r}, whose memory cannot be spliced; "
            "models with full or sliding attention can be read"
        )
    window = getattr(config, "sliding_window", None)
    named = getattr(config, "layer_types", None) is not None
    return window if window and (not named or "sliding_attention" in kinds) else None


def _mask(
    model: Any,
    visible: Bool[Tensor, "row slot"],
    position: Int[Tensor, "row new"],
    apart: Tree | None,
) -> Any:
    """What the model takes as its attention mask, so that the new slots, the last ones, see what their rows hold.

    The library measures a sliding window in slots. Slots that a row leaves empty would use its window up, so masks
    are then made here, from positions; so are those of branches.
    """
    window, n_new = attention_window(model), position.shape[1]
    if apart is None and (window is None or visible.shape[1] <= max(window, n_new)):
        return visible.long()
    old = visible[:, :-n_new]
    seen_before = old[:, None].expand(-1, n_new, -1)
    slots = torch.arange(n_new, device=visible.device)
    among = visible[:, None, -n_new:] & (slots <= slots[:, None])
    if apart is not None:
        related = apart.branch[:, :, None] == apart.branch[:, None]
        if apart.parent is not None:
            related = related | (apart.parent[:, :, None] == apart.branch[:, None])
        among = among & related
        if apart.hidden is not None:
            seen_before = seen_before & ~apart.hidden
    seen = torch.cat([seen_before, among], dim=2)
    everywhere = torch.cat([old.long().cumsum(1) - 1, position], dim=1)
    near = everywhere[:, None] > position[:, :, None] - (window or visible.shape[1] + 1)
    full, sliding = (
        torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
        .masked_fill(~mask, torch.finfo(model.dtype).min)
        .unsqueeze(1)
        for mask in (seen, seen & near)
    )
    if window is None:
        return full
    if getattr(model.config.get_text_config(), "layer_types", None) is None:
        return sliding
    return {"full_attention": full, "sliding_attention": sliding}


def _filled_layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    """A cache layer that holds these; `update` would copy them, and the model's own update copies once more."""
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def _run(
    model: Any, prefix: Prefix | None, ids: Tensor, real: Tensor, apart: Tree | None = None
) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
    if prefix is None:
        nothing = torch.zeros(len(ids), 0, dtype=torch.bool, device=ids.device)
        prefix = Prefix((), (), nothing, torch.zeros(len(ids), dtype=torch.long, device=ids.device))
    layers = [_filled_layer(keys, values) for keys, values in zip(prefix.keys, prefix.values, strict=True)]
    return continued(model, layers, prefix, ids, real, apart)


def continued(
    model: Any,
    layers: Sequence[DynamicLayer],
    before: Prefix,
    ids: Int[Tensor, "row new"],
    real: Bool[Tensor, "row new"],
    apart: Tree | None = None,
) -> tuple[DynamicCache, Tensor, Bool[Tensor, "row slot"], Int[Tensor, " row"]]:
    """One forward pass over new tokens behind cached ones: the cache, the logits, the slots then visible, and where
    each row's new tokens start.

    Args:
        model: Hugging Face causal language model.
        layers: the cache, a layer each; none when nothing was read before.
        before: says which slots of it are visible, and how long each row is; its keys are not looked at.
        ids, real: the new tokens, right-padded, and which of them are no padding.
        apart: for branches.
    """
    # Without a configuration every layer keeps all it has read; a sliding-window layer would drop what we splice.
    cache = DynamicCache()
    cache.layers.extend(layers)
    visible = torch.cat([before.visible, real], dim=1)
    # Padding gets the position of its row's last token: in range for learned positions, and never attended to.
    place = (real.long().cumsum(1) - 1).clamp_min(0) if apart is None else apart.place
    position = before.length[:, None] + place
    logits = model(
        input_ids=ids,
        attention_mask=_mask(model, visible, position, apart),
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
    ).logits
    return cache, logits, visible, before.length
