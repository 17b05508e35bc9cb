"""Joining: patched runs of several texts and layers in one forward pass, each row entering at the block that reads it.

Below that block, and before its first written token, a patched run is the text's own run, so its row is not there yet:
keys and values of earlier tokens come from the text's cache, which rows share, and the row's stream is put beside those
of the other rows when its block is reached. The model's own forward does everything else. In the last block only keys
and values are needed of all tokens: what follows attention is computed where the answer is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from analysis import kv_cache, sites
from analysis.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from analysis.landing import Entry
    from analysis.patching import Texts


@dataclass(frozen=True, eq=False)
class Read:
    """Patched runs, in the order of their entries.

    Attributes:
        last: the logits after each text's last token.
        prefix: the runs' caches; without keys and values if they were not to be kept.
    """

    last: Float[Tensor, "entry vocab"]
    prefix: kv_cache.Prefix


class _SharedLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer whose rows are continuations of texts, several of the same one; it is read once and not grown."""

    def __init__(self, keys: Tensor, values: Tensor, of_text: Int[Tensor, " row"], width: int, keep: bool) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys[:, :, :width], values[:, :, :width]
        self._of_text, self._width, self._keep = of_text, width, keep
        self.joined: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        both = (
            torch.cat([old[self._of_text], new], dim=-2)
            for old, new in ((self.keys, key_states), (self.values, value_states))
        )
        keys, values = both
        if self._keep:
            self.joined = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        return self._width


@dataclass(frozen=True, eq=False)
class _Plan:
    """How the entries are laid out: sorted by layer, on base rows that are a text and a first token each."""

    order: list[int]
    layers: list[int]
    base: Int[Tensor, " entry"]
    base_text: list[int]
    base_start: list[int]

    def joined_by(self, layer: int) -> int:
        """How many of the sorted entries have joined when block `layer` runs."""
        return sum(joins <= layer for joins in self.layers)


def run(model: Any, name: str, texts: Texts, entries: Sequence[Entry], keep: bool) -> Read:
    """One pass for all these entries.

    Args:
        model, name: the model.
        texts: as it has read them.
        entries: at least one, each of which reaches the answer.
        keep: whether the caches are wanted, for what is read behind.

    Raises:
        InputError: if a block is not run exactly once.
    """
    device, n_layers = texts.last.device, len(texts.streams)
    plan = _plan(entries, device)
    text, start = (torch.tensor(of, device=device) for of in (plan.base_text, plan.base_start))
    ids, real = kv_cache.pad_right(
        [texts.ids[t][s:] for t, s in zip(plan.base_text, plan.base_start, strict=True)], device
    )
    width = max(plan.base_start)
    slots = torch.arange(width, device=device)
    before = kv_cache.Prefix((), (), slots < start[:, None], start)
    first = min(plan.layers)
    # Models that read along (sae.paired) have layers of their own in front; they read the base rows.
    along = len(texts.prefix.keys) - n_layers
    cached = list(zip(texts.prefix.keys, texts.prefix.values, strict=True))
    shared = [
        _SharedLayer(*cached[along + at], text[plan.base[: plan.joined_by(at)]], width, keep) for at in range(n_layers)
    ]
    layers = [_SharedLayer(keys, values, text, width, False) for keys, values in cached[:along]] + shared
    scored = (real.sum(1) - 1)[plan.base]
    streams = _Streams(texts, [entries[at] for at in plan.order], plan, ids.shape[1], first)
    with ExitStack() as stack:
        stack.enter_context(sites.skipped(model, range(min(first, n_layers)), texts.tupled))
        ran = stack.enter_context(streams.joining(model))
        if first < n_layers:
            stack.enter_context(_cut(model, scored[: plan.joined_by(n_layers - 1)]))
        stack.enter_context(kv_cache.logits_only_at(model, scored))
        _, logits, visible, _ = kv_cache.continued(model, layers, before, ids, real)
    for layer, times in ran.items():
        if times != 1:
            raise InputError(
                f"model {name}: block {layer} was run {times} times in one pass, expected once; no patch there can be "
                "reported"
            )
    back = torch.empty(len(entries), dtype=torch.long, device=device)
    back[plan.order] = torch.arange(len(entries), device=device)
    keys, values = _kept(texts, plan, shared, visible, first) if keep else ((), ())
    prefix = kv_cache.Prefix(keys, values, visible[plan.base], (start + real.sum(1))[plan.base])
    return Read(logits[:, 0].float()[back], prefix.rows(back))


def _plan(entries: Sequence[Entry], device: torch.device) -> _Plan:
    order = sorted(range(len(entries)), key=lambda at: entries[at].layer)
    keys = [(entries[at].row, entries[at].start) for at in order]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return _Plan(
        order,
        [entries[at].layer for at in order],
        torch.tensor([numbers[key] for key in keys], device=device),
        [row for row, _ in numbers],
        [start for _, start in numbers],
    )


class _Streams:
    """Puts each entry's stream beside the others when its block is reached."""

    def __init__(self, texts: Texts, entries: Sequence[Entry], plan: _Plan, width: int, first: int) -> None:
        self._texts, self._entries, self._plan, self._width, self._first = texts, entries, plan, width, first

    @contextmanager
    def joining(self, model: Any) -> Iterator[dict[int, int]]:
        """Within, rows join; gives how often each block was run."""
        blocks = sites.blocks(model)
        ran = dict.fromkeys(range(self._first, len(blocks)), 0)
        with ExitStack() as stack:
            for layer in ran:
                hook = blocks[layer].register_forward_pre_hook(self._before(layer, ran), with_kwargs=True)
                stack.callback(hook.remove)
            hook = blocks[-1].register_forward_hook(self._after_last)
            stack.callback(hook.remove)
            yield ran

    def _before(self, layer: int, ran: dict[int, int]) -> Callable[..., tuple[Any, Any]]:
        rows = self._plan.base[: self._plan.joined_by(layer)]
        n_base = len(self._plan.base_text)

        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            ran[layer] += 1
            named = "hidden_states" in kwargs
            stream = self._joined(kwargs["hidden_states"] if named else args[0], layer)
            rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            others = tuple(_of_rows(value, rows, n_base) for value in (args if named else args[1:]))
            keywords = {key: _of_rows(value, rows, n_base) for key, value in rest.items()}
            return (others, {**keywords, "hidden_states": stream}) if named else ((stream, *others), keywords)

        return hook

    def _after_last(self, _: Any, __: Any, output: Any) -> Any:
        n_layers = len(self._texts.streams)
        if self._plan.layers[-1] < n_layers:
            return output
        if isinstance(output, tuple):
            return (self._joined(output[0], n_layers), *output[1:])
        return self._joined(output, n_layers)

    def _joined(self, stream: Tensor, layer: int) -> Tensor:
        """The rows that are there, and behind them those that enter here."""
        new = [
            self._stream(entry, base, stream)
            for entry, base in zip(self._entries, self._plan.base.tolist(), strict=True)
            if entry.layer == layer
        ]
        # Below the first entry there are only base rows, which are nobody's run.
        parts = [] if layer <= self._first else [stream]
        return torch.cat([*parts, *([torch.stack(new)] if new else [])])

    def _stream(self, entry: Entry, base: int, like: Tensor) -> Tensor:
        """What the block reads of this entry, `[new token, width]`; the text's own but where it is written."""
        start = self._plan.base_start[base]
        stream = like.new_zeros(self._width, like.shape[-1])
        if entry.layer < len(self._texts.streams):
            own = self._texts.streams[entry.layer][entry.row, start : len(self._texts.ids[entry.row])]
            stream[: len(own)] = own
        stream[torch.from_numpy(entry.places - start).to(like.device)] = entry.values.to(stream)
        return stream


def _of_rows(value: Any, rows: Int[Tensor, " row"], n_base: int) -> Any:
    """What a block is given beside its stream (masks, positions), for the rows that are there.

    What has one row is the same for all; tensors of one dimension are by token.
    """
    if isinstance(value, Tensor):
        return value[rows] if value.ndim > 1 and len(value) == n_base and n_base > 1 else value
    if isinstance(value, tuple | list):
        return type(value)(_of_rows(item, rows, n_base) for item in value)
    return value


@contextmanager
def _cut(model: Any, scored: Int[Tensor, " row"]) -> Iterator[None]:
    """Within, the last block computes what follows attention at one token a row.

    It is added to the stream of all tokens, which is right at that token, and elsewhere nothing that is read.
    """
    rows = torch.arange(len(scored), device=scored.device)

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (args[0][rows, scored][:, None], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"][rows, scored][:, None]}

    with ExitStack() as stack:
        for module in sites.after_attention(model, len(sites.blocks(model)) - 1):
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _kept(
    texts: Texts, plan: _Plan, shared: Sequence[_SharedLayer], visible: Tensor, first: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Keys and values of the sorted entries, layer by layer: their own from their layer on, below it their text's."""
    device = visible.device
    start, text = (torch.tensor(of, device=device)[plan.base] for of in (plan.base_start, plan.base_text))
    width = max(plan.base_start)
    slots = torch.arange(visible.shape[1], device=device)
    # The slot of each token in the text's own cache; padding is invisible, whatever stands there.
    source = torch.where(slots < width, slots, start[:, None] + slots - width).clamp_max(
        texts.prefix.visible.shape[1] - 1
    )
    along = len(texts.prefix.keys) - len(shared)

    def of_text(cached: Tensor, rows: slice) -> Tensor:
        return cached[text[rows, None], :, source[rows]].transpose(1, 2)

    keys: list[Tensor] = []
    values: list[Tensor] = []
    for at, (own_keys, own_values) in enumerate(zip(texts.prefix.keys, texts.prefix.values, strict=True)):
        joined = shared[at - along].joined if at >= along + first else None
        n = 0 if joined is None else len(joined[0])
        for found, cached, own in zip((keys, values), joined or (None, None), (own_keys, own_values), strict=True):
            below = of_text(own, slice(n, None))
            found.append(below if cached is None else torch.cat([cached, below]))
    return tuple(keys), tuple(values)
