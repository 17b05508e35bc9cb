"""Masked texts: the log-probability of answers behind texts of which a span cannot be attended to.

A mask acts from one token on, in all layers: what is read from there, the answer included, attends to nothing of its
span. Positions stay as they are, and what earlier tokens have read in the span they keep. What stands before that token
is read once a text; the rest is read once a mask, all masks of a text in one row, so that no keys and values are copied
for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from analysis import kv_cache
from analysis.options import MAX_LOGITS
from analysis.traces import Span

TOGETHER = 512
"""Tokens of one text that are read in one row at most; they are compared with each other though masked, so that more of
them would cost more than they save."""
T = TypeVar("T")


@dataclass(frozen=True)
class Mask:
    """From token `start` on the text attends to no token of the span `hidden`, which ends there or before."""

    start: int
    hidden: Span


@dataclass(frozen=True)
class Text:
    """Token ids up to where the answer begins, those of each answer with its stop, and how the text is read."""

    ids: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    masks: tuple[Mask, ...]

    @property
    def trunk(self) -> tuple[int, ...]:
        """What is read once for all masks."""
        return self.ids[: max(mask.start for mask in self.masks)]

    @property
    def scored(self) -> int:
        """How many distributions of a next token the options take behind one mask."""
        return 1 + sum(len(option) - 1 for option in self.options)


def masked_logprobs(
    model: Any,
    texts: Sequence[Text],
    batch_tokens: int = 16384,
    progress: Callable[[int], None] | None = None,
) -> list[Float[ndarray, "mask option"]]:
    """For each text `LP(option | masked text)` in nats, over all of an option's tokens; they are masked as well.

    Args:
        model: Hugging Face causal language model.
        texts: each with at least one mask; every start is past the first token and before the end.
        batch_tokens: how many tokens one forward pass may hold, cached ones included.
        progress: called with the number of texts done since the last call.
    """
    results: dict[int, Float[ndarray, "mask option"]] = {}
    by_length = sorted(range(len(texts)), key=lambda at: len(texts[at].ids))
    for batch in _batches(by_length, lambda at: (len(texts[at].trunk), 1), batch_tokens):
        found = _score(model, [texts[at] for at in batch], batch_tokens)
        results |= dict(zip(batch, found, strict=True))
        if progress:
            progress(len(batch))
    return [results[at] for at in range(len(texts))]


def _score(model: Any, texts: Sequence[Text], batch_tokens: int) -> list[Float[ndarray, "mask option"]]:
    trunk, last = kv_cache.read(model, [text.trunk for text in texts])
    slots, vocabulary = trunk.visible.shape[1], last.shape[1]
    pieces = [_Piece(row, text, masks) for row, text in enumerate(texts) for masks in _together(text, vocabulary)]
    scores: list[list[Float[Tensor, "mask option"]]] = [[] for _ in texts]
    for batch in _batches(
        pieces, lambda piece: (slots + len(piece.tokens), vocabulary * len(piece.kept)), batch_tokens
    ):
        rows = [piece.row for piece in batch]
        whole = rows == list(range(len(texts)))
        prefix = trunk if whole else trunk.rows(torch.tensor(rows, device=trunk.length.device))
        for row, found in zip(rows, _score_pieces(model, prefix, batch), strict=True):
            scores[row].append(found)
    return [torch.cat(found).cpu().numpy() for found in scores]


def _together(text: Text, vocabulary: int) -> Iterator[tuple[Mask, ...]]:
    """A text's masks, as many together as take at most `TOGETHER` tokens and `MAX_LOGITS` logits; at least one."""
    masks: tuple[Mask, ...] = ()
    for mask in text.masks:
        tokens = sum(len(text.ids) - each.start + text.scored - 1 for each in (*masks, mask))
        if masks and (tokens > TOGETHER or vocabulary * text.scored * (len(masks) + 1) > MAX_LOGITS):
            yield masks
            masks = ()
        masks = (*masks, mask)
    yield masks


def _batches(items: Sequence[T], size: Callable[[T], tuple[int, int]], batch_tokens: int) -> Iterator[list[T]]:
    """Neighbouring items, as many as a pass may hold; `size` gives the tokens of one and its logits."""
    batch: list[T] = []
    widest = most = 0
    for item in items:
        tokens, logits = size(item)
        widest, most = max(widest, tokens), max(most, logits)
        if batch and ((len(batch) + 1) * widest > batch_tokens or (len(batch) + 1) * most > MAX_LOGITS):
            yield batch
            batch, widest, most = [], tokens, logits
        batch.append(item)
    if batch:
        yield batch


class _Piece:
    """A text's end and its options behind each of some masks, as new tokens one behind the other.

    Attributes:
        row: the text's.
        shape: number of masks and of options.
        tokens: of each new token its id, branch, the branch that it sees besides, its position, and of its mask the
            `start` and the ends of `hidden`.
        kept: the tokens at which something is predicted.
        predicted: which of `kept`, the token predicted there, and which of masks × options it belongs to.
    """

    def __init__(self, row: int, text: Text, masks: Sequence[Mask]) -> None:
        self.row, self.shape = row, (len(masks), len(text.options))
        self.tokens: list[tuple[int, ...]] = []
        self.kept: list[int] = []
        self.predicted: list[tuple[int, int, int]] = []
        branches, owners = itertools.count(), itertools.count()
        for mask in masks:
            stem, limits = next(branches), (mask.start, *mask.hidden)
            self.tokens += [(text.ids[at], stem, stem, at, *limits) for at in range(mask.start, len(text.ids))]
            behind = len(self.kept)
            self.kept.append(len(self.tokens) - 1)
            for option in text.options:
                branch, owner = next(branches), next(owners)
                self.predicted.append((behind, option[0], owner))
                # An option's last token is only predicted, never read.
                for place, (token, following) in enumerate(itertools.pairwise(option), start=len(text.ids)):
                    self.predicted.append((len(self.kept), following, owner))
                    self.kept.append(len(self.tokens))
                    self.tokens.append((token, branch, stem, place, *limits))


def _score_pieces(model: Any, prefix: kv_cache.Prefix, pieces: Sequence[_Piece]) -> list[Float[Tensor, "mask option"]]:
    """For each piece, whose text is that row of the prefix, the log-probabilities of the options behind its masks."""
    device, slots = prefix.length.device, torch.arange(prefix.visible.shape[1], device=prefix.length.device)
    rows = [[token for token, *_ in piece.tokens] for piece in pieces]
    branch, parent, position, start, low, high = columns = torch.zeros(
        6, len(rows), max(map(len, rows)), dtype=torch.long, device=device
    )
    # Padding belongs to no branch, has a position in range, and sees its text, so that its softmax is one.
    branch[:], parent[:], position[:], start[:] = -1, -1, prefix.length[:, None] - 1, len(slots)
    for row, piece in enumerate(pieces):
        columns[:, row, : len(piece.tokens)] = torch.tensor(piece.tokens, device=device).T[1:]
    hidden = (slots >= start[..., None]) | ((slots >= low[..., None]) & (slots < high[..., None]))
    kept, _ = kv_cache.pad_right([piece.kept for piece in pieces], device)
    tree = kv_cache.Tree(branch, position - prefix.length[:, None], parent, hidden)
    logprobs = kv_cache.tree_logits(model, prefix, rows, tree, kept).log_softmax(-1)
    scored = []
    for row, piece in enumerate(pieces):
        at, token, owner = torch.tensor(piece.predicted, device=device).T
        found = torch.zeros(piece.shape[0] * piece.shape[1], dtype=torch.double, device=device)
        scored.append(found.index_add_(0, owner, logprobs[row, at, token].double()).view(piece.shape))
    return scored
