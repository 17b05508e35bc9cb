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


HIDDEN = ((1, 2, 3, 9), (0, 5, 6, 7, 8, 20, 27, 29), (4,), tuple(range(17)))
"""Of texts of 12, 31, 6 and 17 tokens, within a window of 8 as well; the last one is hidden whole."""
HIDDEN_LENGTHS = (12, 31, 6, 17)


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


def hidden_prefix(model, seed=5):
    """A padded batch with `HIDDEN` hidden, and its rows."""
    rows = texts(*HIDDEN_LENGTHS, seed=seed)
    prefix, _ = kv_cache.read(model, rows)
    where = torch.zeros_like(prefix.visible)
    for row, places in enumerate(HIDDEN):
        where[row, list(places)] = True
    return rows, prefix.hiding(where)


def test_the_masks_of_the_oracle_say_what_the_library_does_by_itself(model):
    """With nothing hidden they give the plain forward pass, also where layers slide; hidden tokens change it."""
    (ids,) = texts(31)
    torch.testing.assert_close(masked_logits(model, ids, 31, ()), plain_logits(model, ids), atol=1e-4, rtol=0)
    # The last token's window of 8 holds tokens 23 to 30.
    hidden = masked_logits(model, ids, 29, (25, 26))
    assert (hidden[-1] - plain_logits(model, ids)[-1]).abs().max() > 1e-2
    torch.testing.assert_close(hidden[:29], plain_logits(model, ids)[:29], atol=1e-4, rtol=0)


def test_what_is_hidden_is_attended_to_by_nothing_read_later(model):
    rows, prefix = hidden_prefix(model)
    tails = ((7, 8, 9), (10, 11, 12, 13), (14, 15), (16, 17, 18))
    prefix, first = kv_cache.advance(model, prefix, [tail[:1] for tail in tails])
    order = torch.tensor([3, 1, 0, 2, 1])
    prefix, last = kv_cache.advance(model, prefix.rows(order), [tails[i][1:] for i in order])
    assert prefix.length.tolist() == [20, 35, 15, 8, 35]
    for found, read, picked in ((first, 1, range(4)), (last, None, order.tolist())):
        for logits, i in zip(found, picked, strict=True):
            expected = masked_logits(model, [*rows[i], *tails[i][:read]], len(rows[i]), HIDDEN[i])[-1]
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_branches_do_not_see_what_is_hidden(model):
    rows, prefix = hidden_prefix(model)
    # Of several lengths, so that there is padding beside a prefix of which nothing can be seen.
    branches = [[(7, 8, 9), (7, 4)], [(10, 11)], [(12, 13, 14, 15, 16, 17)], [(9, 8), (6, 5, 4), (9, 9)]]
    for i, found in enumerate(kv_cache.branch_logprobs(model, prefix, branches)):
        for tail, logprobs in zip(branches[i], found, strict=True):
            expected = masked_logits(model, [*rows[i], *tail], len(rows[i]), HIDDEN[i]).log_softmax(-1)
            expected = [expected[len(rows[i]) + k, tail[k + 1]] for k in range(len(tail) - 1)]
            torch.testing.assert_close(logprobs, torch.stack(expected), atol=1e-4, rtol=0)


def test_hiding_counts_slots_of_a_cut_prefix_and_adds_to_what_was_hidden_before(model):
    """Rows of different lengths are cut and read on, so that slots are no positions; then more is hidden."""
    rows = texts(14, 22, seed=6)
    prefix, _ = kv_cache.read(model, rows)
    slots = torch.arange(22)
    prefix = prefix.hiding(((slots >= 2) & (slots < 4)).expand(2, -1)).until(torch.tensor([6, 19]))
    prefix, _ = kv_cache.advance(model, prefix, [[5, 6, 7], [8]])
    # The first row's three new tokens have slots 22 to 24 and positions 6 to 8; the second's one slot 22, position 19.
    more = torch.zeros(2, 25, dtype=torch.bool)
    more[0, 23] = more[1, 18] = True
    _, last = kv_cache.advance(model, prefix.hiding(more), [[9, 10], [11, 12]])
    for row, logits, cut, middle, tail, late in zip(
        rows, last, (6, 19), ([5, 6, 7], [8]), ([9, 10], [11, 12]), (7, 18), strict=True
    ):
        ids = [*row[:cut], *middle, *tail]
        expected = two_masks(model, ids, (cut, {2, 3}), (cut + len(middle), {2, 3, late}))[-1]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def two_masks(model, ids, first, second):
    """As `masked_logits`, where more is hidden from a later token on: token by token through the library's own cache,
    each with its own row of the mask."""
    cache = DynamicCache()
    window, kinds = getattr(model.config, "sliding_window", None), getattr(model.config, "layer_types", None)
    logits = []
    for q, token in enumerate(ids):
        hidden = second[1] if q >= second[0] else first[1] if q >= first[0] else set()

        def row(reach, q=q, hidden=hidden):
            seen = [0.0 if q - k < reach and k not in hidden else torch.finfo(model.dtype).min for k in range(q + 1)]
            return torch.tensor(seen)[None, None, None]

        if kinds and "sliding_attention" in kinds:
            mask = {"full_attention": row(len(ids)), "sliding_attention": row(window)}
        else:
            mask = row(len(ids) if kinds or not window else window)
        logits.append(model(torch.tensor([[token]]), attention_mask=mask, past_key_values=cache).logits[0, 0])
    return torch.stack(logits)


def test_hiding_nothing_changes_nothing(model):
    rows = texts(9, 31, 17)
    prefix, _ = kv_cache.read(model, rows)
    _, plain = kv_cache.advance(model, prefix, [[5, 6], [7], [8, 9]])
    _, hidden = kv_cache.advance(model, prefix.hiding(torch.zeros_like(prefix.visible)), [[5, 6], [7], [8, 9]])
    torch.testing.assert_close(hidden, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_not_one_bit_of_what_is_hidden_is_read(architecture, dtype):
    """In half precision too, other keys and values in hidden slots leave every logit as it is; elsewhere not."""
    model = random_model(architecture, VOCABULARY).to(dtype)
    _, prefix = hidden_prefix(model)
    other, _ = kv_cache.read(model, texts(*HIDDEN_LENGTHS, seed=9))
    tails = [(7, 8, 9), (10, 11), (12, 13, 14, 15), (16,)]
    branches = [[(7, 8), (9, 10, 11)], [(4, 5)], [(4, 5, 6, 7)], [(5, 5), (6, 6)]]
    assert prefix.hidden is not None
    # The last row is hidden whole, so that elsewhere is nowhere but in its padding.
    for where, same in ((prefix.hidden, [True] * 4), (~prefix.hidden, [False, False, False, True])):
        spliced = prefix.spliced(other, where)
        results = []
        for each in (prefix, spliced):
            read, last = kv_cache.advance(model, each, tails)
            scored = kv_cache.branch_logprobs(model, read, branches)
            results.append([[logits, *tails] for logits, tails in zip(last, scored, strict=True)])
        for row, (ours, theirs) in enumerate(zip(*results, strict=True)):
            assert all(tensor.isfinite().all() for tensor in ours)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)) == same[row]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prefix_that_is_hidden_whole_gives_finite_numbers_and_positions(architecture):
    """Beside padding and in half precision; the first token read sees itself alone, where it stands."""
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, None)):
        model = random_model(architecture, VOCABULARY).to(dtype)
        rows = texts(3, 25, seed=8)
        prefix, _ = kv_cache.read(model, rows)
        read, last = kv_cache.advance(model, prefix.hiding(prefix.visible), [[5], [6, 7, 8]])
        (found,), _ = kv_cache.branch_logprobs(model, read, [[(9, 10, 11)], [(4, 5)]])
        assert last.isfinite().all()
        assert found.isfinite().all()
        for key, value in zip(read.keys, read.values, strict=True):
            assert key.isfinite().all()
            assert value.isfinite().all()
        if tolerance:
            for row, tail, logits in zip(rows, ([5], [6, 7, 8]), last, strict=True):
                expected = masked_logits(model, [*row, *tail], len(row), range(len(row)))[-1]
                torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
