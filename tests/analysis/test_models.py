"""Loading: what a reader computes is what plain Hugging Face computes, and unsound models are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from analysis import kv_cache
from analysis.errors import InputError
from analysis.models import BASE, ModelPair
from analysis.prompts import Case
from tests.conftest import BPE_FORMAT, bpe_tokenizer, random_model, save_checkpoint

IDS = [1, 5, 9, 30, 12, 7, 7, 22]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_those_of_plain_hugging_face(make_checkpoint, architecture, dtype):
    directory = make_checkpoint(architecture, "word")
    reader = ModelPair.load(directory, {"copy": directory}, dtype=dtype).open("copy")
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        assert torch.equal(reader.model(torch.tensor([IDS])).logits, plain(torch.tensor([IDS])).logits)
    _, last = kv_cache.read(reader.model, [IDS])
    assert last.dtype == torch.float32


def test_checkpoints_stored_in_half_precision_compute_in_fp32(tmp_path):
    tokenizer = bpe_tokenizer()
    directory = save_checkpoint(tmp_path / "half", random_model("llama", len(tokenizer)).half(), tokenizer, BPE_FORMAT)
    assert ModelPair.load(directory, {"copy": directory}).open(BASE).model.dtype == torch.float32


def test_tokenizer_is_the_saved_one_even_where_the_library_would_replace_it(tmp_path):
    """transformers rebuilds the tokenizer of a `qwen2` checkpoint and splits its digits, without a word."""
    from transformers import AutoTokenizer

    tokenizer = bpe_tokenizer()
    directory = save_checkpoint(tmp_path / "qwen", random_model("llama", len(tokenizer)), tokenizer, BPE_FORMAT)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    text = "12 + 34 = 46"
    assert AutoTokenizer.from_pretrained(directory)(text).input_ids != tokenizer(text).input_ids, "no longer a trap"
    loaded = ModelPair.load(directory, {"copy": directory}).base.encoder.tokenizer
    assert loaded(text).input_ids == tokenizer(text).input_ids


def test_padding_and_truncation_that_a_tokenizer_file_asks_for_are_ignored(tmp_path):
    tokenizer = bpe_tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.backend_tokenizer.enable_truncation(max_length=4)
    directory = save_checkpoint(tmp_path / "padding", random_model("llama", len(tokenizer)), tokenizer, BPE_FORMAT)
    encoder = ModelPair.load(directory, {"copy": directory}).base.encoder
    plain = PreTrainedTokenizerFast(tokenizer_object=bpe_tokenizer().backend_tokenizer)
    text = "Question: Tom has 12?\nLet us think.\n"
    assert encoder.encode_question("Tom has 12?") == plain(text).input_ids


def test_a_variant_without_a_format_takes_the_bases(tmp_path, make_checkpoint):
    base = make_checkpoint("llama", "word")
    variant = tmp_path / "variant"
    shutil.copytree(base, variant)
    (variant / "trace_format.json").unlink()
    pair = ModelPair.load(base, {"sft": variant})
    assert pair.variants["sft"].encoder.format == pair.base.encoder.format


def test_a_wrapper_of_its_own_around_the_question_is_allowed_if_the_chain_is_the_same(tmp_path, make_checkpoint):
    base = make_checkpoint("llama", "word")
    variant = tmp_path / "variant"
    shutil.copytree(base, variant)
    form = json.loads((variant / "trace_format.json").read_text())
    (variant / "trace_format.json").write_text(json.dumps({**form, "question": "so Q {question} then"}))
    pair = ModelPair.load(base, {"sft": variant})
    pair.check_texts([("prompt 'p'", Case("a 7", "12", ("a 7 + 5 = 12",)))])


def test_a_cache_that_cannot_be_continued_is_found_at_load(make_checkpoint, monkeypatch):
    directory = make_checkpoint("llama", "word")
    monkeypatch.setattr(kv_cache, "_filled_layer", lambda keys, values: kv_cache.DynamicLayer())
    with pytest.raises(InputError, match="cannot be spliced"):
        ModelPair.load(directory, {"copy": directory}).open("copy")


def test_an_unknown_architecture_is_one_message(tmp_path, make_checkpoint):
    directory = tmp_path / "unknown"
    shutil.copytree(make_checkpoint("llama", "word"), directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "no_such_model"}))
    with pytest.raises(InputError, match="cannot be loaded"):
        ModelPair.load(directory, {"copy": directory}).open("copy")


def test_digest_follows_the_weights(make_checkpoint):
    one, other = make_checkpoint("llama", "word", 0), make_checkpoint("llama", "word", 1)
    pair = ModelPair.load(one, {"same": one, "other": other})
    assert pair.base.digest() == pair.variants["same"].digest() != pair.variants["other"].digest()
