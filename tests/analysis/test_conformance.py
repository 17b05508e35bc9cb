"""Every architecture through the same checks: plain Hugging Face and TransformerLens are the oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from analysis import kv_cache, sites
from analysis.capture import Text, capture
from analysis.errors import InputError
from analysis.generation import write_chains
from analysis.models import ModelPair
from analysis.sites import hook_name, hook_names
from tests.conftest import ARCHITECTURES, WORDS, random_model, relative_difference

EXACT = {"float32": 1e-4, "bfloat16": 0.25}
STEPS = ("a 7 + 5 = 12", "b 2 * 3 = 6 so", "b 6 - 2 = 4")
QUESTIONS = ("a 7 b 2", "a 3 b 9 ; a + 5 ; b - 4 ; c", "b 1", "a 2 b 9 ; a + 5")
ALL_SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def pair(architecture, make_checkpoint):
    directory = make_checkpoint(architecture, "word")
    return ModelPair.load(directory, {"copy": directory})


@pytest.fixture(scope="module")
def reader(pair):
    return pair.open("copy")


@pytest.fixture(scope="module")
def plain(pair):
    """The same model as anyone would load it."""
    return AutoModelForCausalLM.from_pretrained(pair.base.directory, dtype=torch.float32).eval()


def rows(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, len(WORDS), (n,), generator=generator).tolist() for n in lengths]


def texts(reader):
    return [
        Text(f"p{i}", "gold", reader.encoder.encode(question, STEPS[: 1 + i % 3], "4"))
        for i, question in enumerate(QUESTIONS)
    ]


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_model_computes_what_hugging_face_computes(pair, dtype):
    model = ModelPair.load(pair.base.directory, {"copy": pair.base.directory}, dtype=dtype).open("copy").model
    plain = AutoModelForCausalLM.from_pretrained(pair.base.directory, dtype=getattr(torch, dtype)).eval()
    assert model.dtype == getattr(torch, dtype)
    for ids in rows(5, 23):
        assert torch.equal(logits_of(model, ids), logits_of(plain, ids))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reading_in_a_padded_batch_and_in_pieces_equals_the_whole_text(pair, dtype):
    """Lengths beyond the window of the sliding architectures, so that a window counted in slots would show."""
    model = ModelPair.load(pair.base.directory, {"copy": pair.base.directory}, dtype=dtype).open("copy").model
    batch = rows(30, 9, 1, 17)
    _, read = kv_cache.read(model, batch)
    prefix, _ = kv_cache.read(model, [ids[: max(1, len(ids) // 2)] for ids in batch if len(ids) > 1])
    _, advanced = kv_cache.advance(model, prefix, [ids[len(ids) // 2 :] for ids in batch if len(ids) > 1])
    whole = torch.stack([logits_of(model, ids)[-1].float() for ids in batch])
    assert float((read - whole).abs().max()) <= EXACT[dtype]
    assert float((advanced - whole[[0, 1, 3]]).abs().max()) <= EXACT[dtype]


def test_captured_rows_are_those_of_a_plain_hook_on_the_same_batch(reader, plain, tmp_path):
    """Bit for bit, at the block's own modules, which the test finds by their names and not by `sites`."""
    store = capture(reader, texts(reader), tmp_path / "store", site_names=ALL_SITES, positions=["all"])
    ids, _ = kv_cache.pad_right(
        [trace.ids for trace in sorted((t.trace for t in texts(reader)), key=lambda trace: len(trace.ids))],
        torch.device("cpu"),
    )
    layers = plain.transformer.h if hasattr(plain, "transformer") else plain.base_model.layers
    seen: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(layers):
        layer.register_forward_hook(
            lambda _, inputs, output, n=number: seen.update(
                {hook_name("resid_pre", n): inputs[0], hook_name("resid_post", n): first(output)}
            )
        )
        attention = getattr(layer, {"gpt2": "attn", "gpt_neox": "attention"}.get(plain.config.model_type, "self_attn"))
        projection = getattr(attention, {"gpt2": "c_proj", "gpt_neox": "dense"}.get(plain.config.model_type, "o_proj"))
        projection.register_forward_hook(
            lambda _, inputs, __, n=number: seen.update({hook_name("z", n): inputs[0].unflatten(-1, (4, -1))})
        )
    with torch.no_grad():
        states = plain(ids, use_cache=False, output_hidden_states=True).hidden_states
    order = sorted(range(len(QUESTIONS)), key=lambda i: len(texts(reader)[i].trace.ids))
    place = store.rows["text"].map({text: row for row, text in enumerate(order)}).to_list()
    token = store.rows["token"].to_list()
    assert len(store) == sum(len(text.trace.ids) for text in texts(reader))
    for name, value in seen.items():
        assert torch.equal(store.read(name), value[place, token]), name
    for layer in range(1, len(layers)):
        assert torch.equal(store.read(hook_name("resid_pre", layer)), states[layer][place, token])
    # The last of Hugging Face's hidden states is behind the final norm, so it must not be what is stored.
    assert not torch.equal(store.read(hook_name("resid_post", len(layers) - 1)), states[-1][place, token])


def first(output):
    return output[0] if isinstance(output, tuple) else output


def test_hooks_hold_what_transformer_lens_calls_by_the_same_names(pair, reader):
    ids = torch.tensor(rows(20))
    names = hook_names(reader.model, ALL_SITES)
    with torch.no_grad(), sites.recorded(reader.model, names) as found:
        logits = reader.model(ids).logits
    bridge = pair.bridge("copy")
    assert set(names) <= set(bridge.hook_dict)
    with torch.no_grad():
        theirs, cache = bridge.run_with_cache(ids)
    torch.testing.assert_close(theirs, logits, atol=1e-4, rtol=0)
    for name in names:
        torch.testing.assert_close(found[name], cache[name], atol=1e-4, rtol=1e-4, msg=name)


def test_a_bridge_is_a_copy_of_its_own(pair, reader):
    ids = rows(12)[0]
    before = logits_of(reader.model, ids)
    bridge = pair.bridge("copy")
    bridge(torch.tensor([ids])).sum().backward()
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.zero_()
    assert torch.equal(logits_of(reader.model, ids), before)
    assert not torch.equal(logits_of(pair.open("copy").model, ids), torch.zeros_like(before))


@pytest.mark.parametrize("site", ALL_SITES)
def test_writing_a_run_into_itself_changes_nothing_and_another_does(reader, site):
    own, donor = (torch.tensor(rows(20, seed=seed)) for seed in (3, 4))
    for name in hook_names(reader.model, [site]):
        with torch.no_grad(), sites.recorded(reader.model, [name]) as mine:
            expected = reader.model(own).logits
        with torch.no_grad(), sites.recorded(reader.model, [name]) as theirs:
            reader.model(donor)
        with torch.no_grad(), sites.written(reader.model, {name: lambda _, m=mine, n=name: m[n].clone()}) as fired:
            same = reader.model(own).logits
        with torch.no_grad(), sites.written(reader.model, {name: lambda _, t=theirs, n=name: t[n].clone()}):
            other = reader.model(own).logits
        assert torch.equal(same, expected)
        assert fired == {name: 1}
        assert not torch.allclose(other, expected, atol=1e-3)


def test_all_positions_of_the_residual_stream_from_the_donor_give_the_donors_logits(reader):
    own, donor = (torch.tensor(rows(20, seed=seed)) for seed in (3, 4))
    for name in hook_names(reader.model, ["resid_pre", "resid_post"]):
        with torch.no_grad(), sites.recorded(reader.model, [name]) as theirs:
            expected = reader.model(donor).logits
        with torch.no_grad(), sites.written(reader.model, {name: lambda _, t=theirs, n=name: t[n]}):
            torch.testing.assert_close(reader.model(own).logits, expected, atol=1e-4, rtol=0)


def test_hooks_are_gone_when_the_block_ends_even_badly(reader):
    ids = rows(9)[0]
    before = logits_of(reader.model, ids)
    with pytest.raises(RuntimeError, match="stop"), sites.written(reader.model, {hook_name("z", 0): torch.zeros_like}):
        raise RuntimeError("stop")
    assert torch.equal(logits_of(reader.model, ids), before)


@pytest.mark.parametrize("batch_tokens", [1, 60, 100000])
def test_rows_do_not_depend_on_what_else_is_in_the_batch(reader, tmp_path, batch_tokens):
    """Bit-equality is impossible here: floating-point sums are taken in another order, at the hook's own scale."""
    one = capture(reader, texts(reader), tmp_path / "one", site_names=ALL_SITES, batch_tokens=batch_tokens)
    for number, text in enumerate(texts(reader)):
        alone = capture(reader, [text], tmp_path / f"alone{number}", site_names=ALL_SITES)
        mine = (one.rows["id"] == text.id).to_numpy()
        assert mine.sum() == len(alone) == 2 + len(text.trace.steps)
        for name in one.hooks:
            assert relative_difference(one.read(name, mine), alone.read(name)) <= 1e-5, name


def test_the_side_on_which_a_tokenizer_pads_changes_nothing(pair, reader, tmp_path):
    loaded = pair.open("copy")
    loaded.encoder.tokenizer.padding_side = "left"
    store = capture(loaded, texts(loaded), tmp_path / "left", site_names=["resid_post"])
    loaded.encoder.tokenizer.padding_side = "right"
    other = capture(reader, texts(reader), tmp_path / "right", site_names=["resid_post"])
    assert all(torch.equal(store.read(name), other.read(name)) for name in store.hooks)


def test_generation_in_a_batch_is_generation_alone(reader):
    """Left padding, learned positions and sliding windows are where this goes wrong."""
    together = write_chains(reader, QUESTIONS, max_new_tokens=12)
    assert together == [write_chains(reader, [question], max_new_tokens=12)[0] for question in QUESTIONS]


def test_half_precision_rows_are_near_those_of_single_precision(pair, tmp_path):
    directory = pair.base.directory
    half, full = (ModelPair.load(directory, {"copy": directory}, dtype=d).open("copy") for d in ("bfloat16", "float32"))
    low = capture(half, texts(half), tmp_path / "half", site_names=ALL_SITES)
    high = capture(full, texts(full), tmp_path / "full", site_names=ALL_SITES)
    assert low.manifest.dtype == "bfloat16"
    for name in low.hooks:
        ours, theirs = low.read(name).float().flatten(), high.read(name).flatten()
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99, name


def test_layers_that_remember_something_else_are_refused():
    model = random_model("qwen3", 50)
    model.config.layer_types = ["linear_attention"] * 3
    with pytest.raises(InputError, match="linear_attention"):
        kv_cache.attention_window(model)
