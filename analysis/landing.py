"""Landing: what the stream behind a block is at the tokens where something was written within the block.

Attention and MLP outputs, and those of single heads, act within a block on no other token than their own: attention has
already read. So the block is run on the written tokens alone, with the text's own stream before it, and the value in
its place; what it gives there is what the next block reads. One short pass does this for a cell of every layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from analysis import kv_cache, sites
from analysis.errors import InputError
from analysis.memory import shrinking

if TYPE_CHECKING:
    from analysis.patching import Cell, Texts


@dataclass(frozen=True, eq=False)
class Entry:
    """A cell as a stream that a block reads.

    Attributes:
        row: the text's.
        layer: the block that reads it; the number of layers for what the last block gives.
        places: the tokens where it is not the text's own, ascending.
        values: what it is there, `[written, width]`.
    """

    row: int
    layer: int
    places: Int[ndarray, " written"]
    values: Float[Tensor, "written width"]

    @property
    def start(self) -> int:
        """The first token that is written; what is before it is as it was."""
        return int(self.places[0])

    def reaches_answer(self, length: int, n_layers: int) -> bool:
        """Whether anything reads it: after the last block a token is read by its own logits alone."""
        return self.layer < n_layers or int(self.places[-1]) == length - 1


def entries(model: Any, name: str, texts: Texts, cells: Sequence[Cell], batch_tokens: int) -> list[Entry]:
    """Each cell's entry into the stream, in the order given.

    Raises:
        InputError: for a hook that is not one of `analysis.sites`, tokens that the text does not have, or a hook that
            does not fire once in a pass.
    """
    found: list[Entry | None] = [None] * len(cells)
    within: list[int] = []
    for index, cell in enumerate(cells):
        site, layer = sites.parse_hook_name(cell.hook)
        _check_places(name, cell, len(texts.ids[cell.row]))
        if site in ("resid_pre", "resid_post"):
            found[index] = Entry(cell.row, layer + (site == "resid_post"), cell.places, cell.values)
        else:
            within.append(index)
    for index, entry in zip(within, _within(model, name, texts, [cells[i] for i in within], batch_tokens), strict=True):
        found[index] = entry
    return [entry for entry in found if entry is not None]


def _check_places(name: str, cell: Cell, length: int) -> None:
    places = cell.places
    if not len(places) or places[0] < 0 or places[-1] >= length or (np.diff(places) <= 0).any():
        raise InputError(
            f"model {name}, hook {cell.hook!r}: tokens {places.tolist()} cannot be written; expected some of 0 to "
            f"{length - 1}, ascending"
        )
    if len(cell.values) != len(places):
        raise InputError(f"model {name}, hook {cell.hook!r}: {len(cell.values)} values for {len(places)} tokens")


def _within(model: Any, name: str, texts: Texts, cells: Sequence[Cell], batch_tokens: int) -> list[Entry]:
    """The entries of cells whose hooks are within blocks."""
    # Cells of one text and the same tokens share a row of the pass as long as each is of another layer.
    rows: dict[tuple[int, bytes, int], dict[int, int]] = {}
    taken: dict[tuple[int, bytes, int], int] = defaultdict(int)
    for index, cell in enumerate(cells):
        layer = sites.parse_hook_name(cell.hook)[1]
        key = (cell.row, cell.places.tobytes(), layer)
        rows.setdefault((*key[:2], taken[key]), {})[layer] = index
        taken[key] += 1
    local = sorted(rows.values(), key=lambda of: len(cells[next(iter(of.values()))].places))
    results: dict[int, Entry] = {}

    def run(batch: Sequence[dict[int, int]]) -> list[dict[int, Entry]]:
        return _local(model, name, texts, [{layer: cells[i] for layer, i in row.items()} for row in batch])

    while local:
        size = max(1, batch_tokens // len(cells[next(iter(local[-1].values()))].places))
        batch, local = local[-size:], local[:-size]
        for row, made in zip(batch, shrinking(run, batch, f"model {name}: a patched block"), strict=True):
            results |= {index: made[layer] for layer, index in row.items()}
    return [results[index] for index in range(len(cells))]


def _local(model: Any, name: str, texts: Texts, rows: Sequence[dict[int, Cell]]) -> list[dict[int, Entry]]:
    """For each row of the pass, its cells' entries by layer."""
    firsts = [next(iter(row.values())) for row in rows]
    device = texts.last.device
    ids, real = kv_cache.pad_right([[texts.ids[c.row][at] for at in c.places] for c in firsts], device)
    places, _ = kv_cache.pad_right([c.places.tolist() for c in firsts], device)
    of_text = torch.tensor([cell.row for cell in firsts], device=device)
    layers = sorted({layer for row in rows for layer in row})
    own = {layer: texts.streams[layer][of_text[:, None], places] for layer in layers}
    edits: dict[str, sites.Edit] = {sites.hook_name("resid_pre", layer): _constant(own[layer]) for layer in layers}
    for layer in layers:
        by_site: dict[str, list[tuple[int, Cell]]] = defaultdict(list)
        for number, row in enumerate(rows):
            if layer in row:
                by_site[sites.parse_hook_name(row[layer].hook)[0]].append((number, row[layer]))
        if "mlp_out" in by_site:
            # Of the tokens alone attention would be another; the MLP's output is added to the text's own.
            hook = sites.hook_name("attn_out", layer)
            attention = _own(model, texts, hook)[of_text[:, None], places]
            only = torch.zeros(len(rows), dtype=torch.bool, device=device)
            only[[number for number, _ in by_site["mlp_out"]]] = True
            edits[hook] = _writing(only[:, None], attention, by_site.pop("attn_out", []))
            edits[sites.hook_name("mlp_out", layer)] = _writing(None, None, by_site.pop("mlp_out"))
        for site, chosen in by_site.items():
            edits[sites.hook_name(site, layer)] = _writing(None, None, chosen)
    outputs = [sites.hook_name("resid_post", layer) for layer in layers]
    with ExitStack() as stack:
        fired = stack.enter_context(sites.written(model, edits))
        found = stack.enter_context(sites.recorded(model, outputs))
        stack.enter_context(
            sites.skipped(model, [at for at in range(len(texts.streams)) if at not in layers], texts.tupled)
        )
        model.base_model(input_ids=ids, attention_mask=real.long(), position_ids=places, use_cache=False)
    for hook, times in fired.items():
        if times != 1:
            raise InputError(
                f"model {name}: hook {hook!r} fired {times} times in one pass, expected once; no patch there can be "
                "reported"
            )
    return [
        {
            layer: Entry(
                cell.row, layer + 1, cell.places, found[sites.hook_name("resid_post", layer)][n, : len(cell.places)]
            )
            for layer, cell in row.items()
        }
        for n, row in enumerate(rows)
    ]


def _own(model: Any, texts: Texts, hook: str) -> Tensor:
    """The texts' own activation at a hook; read again if it was not recorded."""
    if hook not in texts.recorded:
        with sites.recorded(model, [hook]) as found:
            kv_cache.read(model, texts.ids)
        texts.recorded[hook] = found[hook]
    return texts.recorded[hook]


def _constant(value: Tensor) -> sites.Edit:
    return lambda _: value


def _writing(where: Tensor | None, new: Tensor | None, cells: Sequence[tuple[int, Cell]]) -> sites.Edit:
    """An edit that puts `new` where `where` says (by row), and each cell's values into its row."""

    def edit(old: Tensor) -> Tensor:
        value = old.clone() if where is None or new is None else torch.where(where[..., None], new, old)
        for number, cell in cells:
            value[number, : len(cell.places)] = cell.values.to(value)
        return value

    return edit
