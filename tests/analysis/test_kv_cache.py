"""Reading in pieces, in padded batches and from spliced caches, held to one plain forward pass a text."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from analysis import kv_cache
from tests.conftest import ARCHITECTURES, random_model

VOCABULARY = 50


def texts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def plain_logits(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return random_model(request.param, VOCABULARY)


def test_random_models_are_not_flat(model):
    """Agreement between flat distributions would show nothing."""
    probabilities = plain_logits(model, texts(20)[0]).softmax(-1)
    assert probabilities.max(-1).values.mean() > 0.2


def test_read_is_independent_of_padding_and_neighbours(model):
    rows = texts(9, 31, 1, 17)
    _, last = kv_cache.read(model, rows)
    for row, logits in zip(rows, last, strict=True):
        torch.testing.assert_close(logits, plain_logits(model, row)[-1], atol=1e-4, rtol=0)


def test_advance_twice_equals_the_whole_text(model):
    rows = texts(9, 31, 2, 17)
    cuts = ((4, 6), (20, 29), (1, 1), (5, 16))
    prefix, _ = kv_cache.read(model, [row[:a] for row, (a, _) in zip(rows, cuts, strict=True)])
    picked = torch.tensor([0, 1, 3])
    prefix = prefix.rows(picked)
    prefix, _ = kv_cache.advance(model, prefix, [rows[i][cuts[i][0] : cuts[i][1]] for i in picked])
    prefix, last = kv_cache.advance(model, prefix, [rows[i][cuts[i][1] :] for i in picked])
    assert prefix.length.tolist() == [9, 31, 17]
    for i, logits in zip(picked, last, strict=True):
        torch.testing.assert_close(logits, plain_logits(model, rows[i])[-1], atol=1e-4, rtol=0)


def test_branches_are_scored_as_if_each_stood_alone(model):
    rows = texts(12, 25, 8)
    cuts = (7, 3, 5)
    prefix, _ = kv_cache.read(model, [row[:cut] for row, cut in zip(rows, cuts, strict=True)])
    order = torch.tensor([2, 0, 1, 0])
    # One token: nothing left to score. Two branches that begin alike must not see each other.
    branches = [
        [rows[2][5:]],
        [rows[0][7:], [7], [9, 8, 7, 6, 5]],
        [rows[1][3:], [*rows[1][3:20], 5, 6]],
        [[11, 12], [11, 13, 14]],
    ]
    scored = kv_cache.branch_logprobs(model, prefix.rows(order), branches)
    for i, tails, found in zip(order, branches, scored, strict=True):
        for tail, logprobs in zip(tails, found, strict=True):
            expected = plain_logits(model, [*rows[i][: cuts[i]], *tail]).log_softmax(-1)
            expected = torch.tensor([expected[cuts[i] + k, tail[k + 1]] for k in range(len(tail) - 1)])
            torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)


def test_until_forgets_what_came_after(model):
    rows = texts(14, 22)
    prefix, _ = kv_cache.read(model, rows)
    end = torch.tensor([6, 19])
    _, last = kv_cache.advance(model, prefix.until(end), [[5, 6], [7]])
    for row, cut, tail, logits in zip(rows, end, ([5, 6], [7]), last, strict=True):
        torch.testing.assert_close(logits, plain_logits(model, [*row[:cut], *tail])[-1], atol=1e-4, rtol=0)


def test_splicing_everything_gives_the_donor_and_nothing_the_recipient(model):
    own, donor = texts(15, 11, seed=1), texts(15, 11, seed=2)
    prefix, _ = kv_cache.read(model, own)
    other, _ = kv_cache.read(model, donor)
    slots = torch.ones_like(prefix.visible)
    for where, expected in ((slots, donor), (~slots, own)):
        _, last = kv_cache.advance(model, prefix.spliced(other, where), [[9], [9]])
        for row, logits in zip(expected, last, strict=True):
            torch.testing.assert_close(logits, plain_logits(model, [*row, 9])[-1], atol=1e-4, rtol=0)


def test_splicing_a_span_equals_a_cache_assembled_by_hand(model):
    """The oracle builds one unpadded cache, layer by layer, position by position."""
    own, donor = texts(13, seed=3)[0], texts(13, seed=4)[0]
    start, end = 4, 9
    # Without the configuration a cache keeps all positions, also those that a sliding window has left behind.
    runs = [model(torch.tensor([ids]), past_key_values=DynamicCache()).past_key_values for ids in (own, donor)]
    assembled = DynamicCache()
    for layer, (ours, theirs) in enumerate(zip(runs[0].layers, runs[1].layers, strict=True)):
        kv = []
        for name in ("keys", "values"):
            mine, other = getattr(ours, name).detach(), getattr(theirs, name).detach()
            kv.append(torch.cat([mine[:, :, :start], other[:, :, start:end], mine[:, :, end:]], dim=2))
        assembled.update(kv[0], kv[1], layer)
    with torch.no_grad():
        expected = model(torch.tensor([[7, 8]]), past_key_values=assembled).logits[0, -1]

    # Batched with a longer text, so that there is padding.
    prefix, _ = kv_cache.read(model, [own, texts(30)[0]])
    other, _ = kv_cache.read(model, [donor, texts(30)[0]])
    slots = torch.arange(prefix.visible.shape[1])
    where = ((slots >= start) & (slots < end)).expand_as(prefix.visible)
    _, last = kv_cache.advance(model, prefix.spliced(other, where), [[7, 8], [9]])
    torch.testing.assert_close(last[0], expected, atol=1e-4, rtol=0)


def test_splicing_misaligned_texts_is_refused(model):
    prefix, _ = kv_cache.read(model, texts(15, 11))
    other, _ = kv_cache.read(model, texts(15, 12))
    with pytest.raises(ValueError, match="same slots"):
        prefix.spliced(other, torch.ones_like(prefix.visible))


@torch.no_grad()
def masked_logits(model, ids, start, hidden):
    """One plain forward pass over the whole text with masks written out pair by pair: from token `start` on none of
    `hidden` is attended to. Where layers slide, theirs also ends `sliding_window` tokens back."""
    window = getattr(model.config, "sliding_window", None)
    kinds = getattr(model.config, "layer_types", None)

    def mask(reach):
        lowest = torch.finfo(model.dtype).min
        rows = [
            [0.0 if k <= q and q - k < reach and not (q >= start and k in hidden) else lowest for k in range(len(ids))]
            for q in range(len(ids))
        ]
        return torch.tensor(rows, dtype=model.dtype)[None, None]

    if kinds and "sliding_attention" in kinds:
        masks = {"full_attention": mask(len(ids)), "sliding_attention": mask(window)}
    else:
        masks = mask(len(ids) if kinds or not window else window)
    return model(torch.tensor([ids]), attention_mask=masks, use_cache=False).logits[0]


def test_the_masks_of_the_oracle_say_what_the_library_does_by_itself(model):
    """With nothing hidden they give the plain forward pass, also where layers slide; hidden tokens change it."""
    (ids,) = texts(31)
    torch.testing.assert_close(masked_logits(model, ids, 31, ()), plain_logits(model, ids), atol=1e-4, rtol=0)
    # The last token's window of 8 holds tokens 23 to 30.
    hidden = masked_logits(model, ids, 29, (25, 26))
    assert (hidden[-1] - plain_logits(model, ids)[-1]).abs().max() > 1e-2
    torch.testing.assert_close(hidden[:29], plain_logits(model, ids)[:29], atol=1e-4, rtol=0)
