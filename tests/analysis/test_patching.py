"""Patched runs against plain forward passes over whole texts, without any cache, with hooks set by hand."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from analysis import kv_cache, patching, sites
from analysis.errors import InputError
from analysis.memory import shrinking
from tests.analysis.measures.oracles import doubled
from tests.conftest import ARCHITECTURES, random_model

TEXTS = (
    (1, 34, 11, 5, 42, 9, 30),
    (1, 34, 7, 43, 12, 30, 36, 9, 41),
    (1, *range(20, 41), 7),
)
OPTIONS = (((5, 2), (12, 30, 2), (9,)), ((4,), (7,)), ((5, 2, 6), (6, 2)))
WRITTEN = ((1, (3,)), (0, (0, 2, 5)), (2, (6, 7, 8, 9)), (0, (6,)), (1, (1, 8)), (1, (3,)), (2, tuple(range(23))))
"""Text and tokens: several at the same tokens, with gaps, the first token, the last, all."""


@contextmanager
def by_hand(model, site, layer, write):
    """Replaces what `site` of a layer holds, by PyTorch's own hooks on a Llama's modules."""
    block = model.model.layers[layer]

    def before(module, args, kwargs):
        return (write(args[0]), *args[1:]), kwargs

    def after(module, args, output):
        return (write(output[0]), *output[1:]) if isinstance(output, tuple) else write(output)

    handle = {
        "resid_pre": lambda: block.register_forward_pre_hook(before, with_kwargs=True),
        "resid_post": lambda: block.register_forward_hook(after),
        "attn_out": lambda: block.self_attn.register_forward_hook(after),
        "mlp_out": lambda: block.mlp.register_forward_hook(after),
        "z": lambda: block.self_attn.o_proj.register_forward_pre_hook(before, with_kwargs=True),
    }[site]()
    yield
    handle.remove()


def written_by_hand(model, hook, write):
    site, layer = sites.parse_hook_name(hook)
    if model.config.model_type == "llama":
        return by_hand(model, site, layer, lambda value: write(value, flat=True))
    # The other architectures' sites are held to TransformerLens in test_conformance.
    return sites.written(model, {hook: lambda value: write(value, flat=False)})


@torch.no_grad()
def expected(model, cell, ids, options):
    """`LP(option)` of each option: one whole text a pass."""
    found = []
    for option in options:

        def write(value, flat):
            new = value.clone()
            written = cell.values.to(value)
            new[0, list(cell.places)] = written.flatten(1) if flat else written
            return new

        whole = [*ids, *option]
        with written_by_hand(model, cell.hook, write):
            logprobs = model(torch.tensor([whole]), use_cache=False).logits[0].float().log_softmax(-1)
        found.append(sum(float(logprobs[at - 1, whole[at]]) for at in range(len(ids), len(whole))))
    return np.array(found)


def cells_of(model, chosen=sites.SITES, size=3.0):
    """Cells of every layer at these sites; values as large as a stream's."""
    config = model.config.get_text_config()
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    generator = torch.Generator().manual_seed(0)
    return [
        patching.Cell(
            row,
            sites.hook_name(site, layer),
            np.array(places),
            size * torch.randn(len(places), *((heads, head) if site == "z" else (width,)), generator=generator),
        )
        for site in chosen
        for layer in range(len(sites.blocks(model)))
        for row, places in WRITTEN
    ]


@pytest.fixture(scope="module")
def model(make_checkpoint):
    return doubled(make_checkpoint("llama", "word", 3)).reader.model


@pytest.mark.parametrize("site", sites.SITES)
@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_every_cell_equals_a_plain_pass_with_a_hook_set_by_hand(model, site, batch_tokens):
    texts = patching.read_texts(model, TEXTS, OPTIONS)
    cells = cells_of(model, [site])
    found = patching.patched(model, "tiny", texts, cells, batch_tokens)
    moved = []
    for cell, scores in zip(cells, found, strict=True):
        oracle = expected(model, cell, TEXTS[cell.row], OPTIONS[cell.row])
        np.testing.assert_allclose(scores, oracle, atol=1e-9)
        moved.append(np.abs(oracle - texts.own[cell.row]).max())
    # Else a hook that does nothing would pass; after the last block only the last token is read by anything.
    n_dead = sum(
        sites.parse_hook_name(cell.hook)[1] == 2 and site != "resid_pre" and cell.places[-1] < len(TEXTS[cell.row]) - 1
        for cell in cells
    )
    assert sum(size > 1e-2 for size in moved) == len(cells) - n_dead


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_with_all_sites_in_one_call(architecture):
    """Sliding windows, fused projections, parallel and normalised branches, learned positions."""
    model = random_model(architecture, 50)
    # In double precision nothing hides behind rounding; Gemma 2's own softmax is single.
    model = model if architecture == "gemma2" else model.double()
    texts = patching.read_texts(model, TEXTS, OPTIONS)
    cells = cells_of(model)
    for cell, scores in zip(cells, patching.patched(model, "tiny", texts, cells, 400), strict=True):
        oracle = expected(model, cell, TEXTS[cell.row], OPTIONS[cell.row])
        np.testing.assert_allclose(scores, oracle, atol=1e-4 if architecture == "gemma2" else 1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_patched_with_itself_is_itself_and_with_all_of_another_is_the_other(architecture, dtype):
    """At every site and layer, padded among longer texts. All sites at once: the MLP's and attention's outputs of all
    tokens do not make the other run, but the streams do."""
    model = random_model(architecture, 50).to(dtype)
    own = ((1, 5, 9, 13, 17, 21, 25), (1, *range(20, 38)))
    other = ((1, 6, 8, 12, 40, 22, 26), (1, *range(3, 21)))
    options = [[(token,) for token in range(50)]] * 2
    hooks = sites.hook_names(model, tuple(sites.SITES))
    texts, donor = (patching.read_texts(model, ids, options, hooks) for ids in (own, other))
    everywhere = [np.arange(len(ids)) for ids in own]
    some = [np.array([2, 3]), np.array([5])]

    def cells(of, places):
        return [
            patching.Cell(row, hook, places[row], of.recorded[hook][row, places[row]])
            for hook in hooks
            for row in range(2)
        ]

    # In fp32 log-probabilities are held, and not only probabilities, of which a small one could be anything.
    exact = dtype == torch.float32
    held = (lambda logprobs: logprobs) if exact else np.exp
    same, tolerance = (1e-5, 1e-4) if exact else (0.05, 0.05)
    for places in (everywhere, some):
        mine = cells(texts, places)
        for cell, scores in zip(mine, patching.patched(model, "tiny", texts, mine, 10_000), strict=True):
            np.testing.assert_allclose(held(scores), held(texts.own[cell.row]), atol=same, rtol=0)
    theirs = [cell for cell in cells(donor, everywhere) if "resid" in cell.hook]
    for cell, scores in zip(theirs, patching.patched(model, "tiny", texts, theirs, 10_000), strict=True):
        np.testing.assert_allclose(held(scores), held(donor.own[cell.row]), atol=tolerance, rtol=0)
        assert np.abs(np.exp(donor.own[cell.row]) - np.exp(texts.own[cell.row])).max() > 0.1


def test_results_depend_on_no_batch(model):
    model = model.float()
    cells = cells_of(model)
    alone = patching.patched(model, "tiny", patching.read_texts(model, TEXTS, OPTIONS), cells, 1)
    together = patching.patched(model, "tiny", patching.read_texts(model, TEXTS, OPTIONS), cells, 10**6)
    model.double()
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(np.exp(one), np.exp(other), atol=1e-5)


def test_the_same_cells_give_the_same_bytes(model):
    cells = cells_of(model)
    runs = [patching.patched(model, "tiny", patching.read_texts(model, TEXTS, OPTIONS), cells, 300) for _ in range(2)]
    assert [scores.tobytes() for scores in runs[0]] == [scores.tobytes() for scores in runs[1]]


def test_a_pass_holds_no_more_tokens_than_it_may(model, monkeypatch):
    texts = patching.read_texts(model, TEXTS, [[(5,)]] * 3)
    sizes = []
    plain = patching.joining.run

    def counted(model, name, texts, entries, keep):
        length = [len(texts.ids[entry.row]) - entry.start for entry in entries]
        sizes.append(len(entries) * (max(entry.start for entry in entries) + max(length)))
        return plain(model, name, texts, entries, keep)

    monkeypatch.setattr(patching.joining, "run", counted)
    patching.patched(model, "tiny", texts, cells_of(model, ["resid_post"]) * 5, 60)
    assert max(sizes) <= 60
    assert len(sizes) > 5


def test_rows_join_at_their_layer_and_read_only_what_comes_after(model, monkeypatch):
    """The tokens that each block computes, counted in its MLP: that is what the engine saves."""
    counts: dict[int, int] = {}

    def count(layer):
        return lambda _, args: counts.__setitem__(layer, counts.get(layer, 0) + args[0].shape[0] * args[0].shape[1])

    texts = patching.read_texts(model, TEXTS, [[(5,)]] * 3)
    cells = [
        patching.Cell(2, f"blocks.{layer}.hook_resid_pre", np.array([18]), torch.ones(1, 32)) for layer in range(3)
    ]
    handles = [block.mlp.register_forward_pre_hook(count(i)) for i, block in enumerate(model.model.layers)]
    patching.patched(model, "tiny", texts, cells, 10_000)
    for handle in handles:
        handle.remove()
    # Five tokens are read again; the last block's MLP hook here counts before the cut to one token.
    assert counts == {0: 1 * 5, 1: 2 * 5, 2: 3 * 5}


def test_no_cell_gives_no_result(model):
    assert patching.patched(model, "tiny", patching.read_texts(model, TEXTS, OPTIONS), [], 100) == []


def test_nothing_of_the_engine_stays_in_the_model(model):
    before = model(torch.tensor([TEXTS[0]])).logits
    texts = patching.read_texts(model, TEXTS, OPTIONS)
    patching.patched(model, "tiny", texts, cells_of(model), 400)
    assert torch.equal(model(torch.tensor([TEXTS[0]])).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("places", [(), (3, 3), (4, 2), (-1,), (7,)])
def test_tokens_that_cannot_be_written_are_named(model, places):
    texts = patching.read_texts(model, TEXTS, OPTIONS)
    cell = patching.Cell(0, "blocks.1.hook_resid_post", np.array(places, dtype=int), torch.ones(len(places), 32))
    with pytest.raises(InputError, match=r"model tiny, hook 'blocks.1.hook_resid_post': tokens .* 0 to 6, ascending"):
        patching.patched(model, "tiny", texts, [cell], 100)


class Past(torch.nn.Module):
    """Calls another module past its hooks."""

    def __init__(self, inner):
        super().__init__()
        self.forward = inner.forward


def test_a_hook_that_does_not_fire_is_refused(model, monkeypatch):
    texts = patching.read_texts(model, TEXTS, OPTIONS)
    inner = model.model.layers[1].mlp
    monkeypatch.setitem(model.model.layers[1]._modules, "mlp", Past(inner))
    monkeypatch.setattr(
        patching.sites, "_child", lambda module, names: inner if "mlp" in names else getattr(module, names[0])
    )
    with pytest.raises(InputError, match=r"model tiny: hook 'blocks.0.hook_mlp_out' fired 0 times"):
        patching.patched(model, "tiny", texts, cells_of(model, ["mlp_out"]), 100)


def test_a_block_that_is_not_run_is_refused(model, monkeypatch):
    texts = patching.read_texts(model, TEXTS, OPTIONS)
    blocks = model.model.layers
    monkeypatch.setitem(blocks._modules, "1", Past(blocks[1]))
    monkeypatch.setattr(patching.sites, "blocks", lambda _: [blocks[0], torch.nn.Identity(), blocks[2]])
    cell = patching.Cell(0, "blocks.0.hook_resid_post", np.array([2]), torch.ones(1, 32))
    with pytest.raises(InputError, match=r"model tiny: block 1 was run 0 times in one pass, expected once"):
        patching.patched(model, "tiny", texts, [cell], 100)


def test_passes_shrink_where_memory_does_not_suffice(model, monkeypatch):
    texts = patching.read_texts(model, TEXTS, OPTIONS)
    cells = cells_of(model, ["resid_post"])
    expected = patching.patched(model, "tiny", texts, cells, 10_000)
    plain, sizes = patching.joining.run, []

    def narrow(model, name, texts, entries, keep):
        sizes.append(len(entries))
        if len(entries) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return plain(model, name, texts, entries, keep)

    monkeypatch.setattr(patching.joining, "run", narrow)
    found = patching.patched(model, "tiny", texts, cells, 10_000)
    assert max(sizes) > 2
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_where_not_one_run_fits_into_memory_the_error_says_what_to_do():
    def never(items):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")

    with pytest.raises(InputError, match=r"^a run does not fit into memory .*not enough memory.*use a smaller dtype"):
        shrinking(never, [1, 2, 3], "a run")


def test_an_error_that_is_not_about_memory_is_not_swallowed():
    def broken(items):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        shrinking(broken, [1, 2], "a run")


def test_memory_does_not_grow_with_the_cells(model):
    """What a pass holds in its last block stays within what it may, for ten and for a thousand cells a text."""
    texts = patching.read_texts(model, TEXTS, [[(5,)]] * 3)
    cells = cells_of(model, ["resid_post"])
    held = []
    plain = kv_cache.continued

    def watched(model, layers, before, ids, real, apart=None):
        result = plain(model, layers, before, ids, real, apart)
        held.append(len(result[1]) * result[2].shape[1])
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "continued", watched)
        for repeats in (1, 100):
            held.clear()
            patching.patched(model, "tiny", texts, cells * repeats, 400)
            assert max(held) <= 400
    assert len(held) > 20
