"""Tiny random models and tokenizers, built here, saved as ordinary Hugging Face directories."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Threads that spin while they wait slow each other down tenfold when two processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
WORDS = (*SPECIAL, *(str(i) for i in range(30)), *"+-*=;:.", "a", "b", "c", "Q", "think", "answer", "so", "then")
WORD_FORMAT = {
    "version": 1,
    "question": "Q {question}",
    "chain_start": " think ",
    "step_separator": " ; ",
    "answer_start": " ; answer ",
    "stop": "<eos>",
}
BPE_FORMAT = {
    "version": 1,
    "question": "Question: {question}\n",
    "chain_start": "Let us think.\n",
    "step_separator": "\n",
    "answer_start": "\nThe answer is ",
    "stop": "\n",
}
CORPUS = [
    "Question: Tom has 12 apples and buys 34 more.\nLet us think.\n12 + 34 = 46\nSo he has 46.\nThe answer is 46\n",
    "Question: A café sells 7 cakes at 3 each.\nLet us think.\n7 * 3 = 21\nThe answer is 21\n",
]


def word_tokenizer(words: tuple[str, ...] = WORDS) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return fast(tokenizer)


def bpe_tokenizer(append_eos: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>" if append_eos else "<bos> $A", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return fast(tokenizer)


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, in units of the largest value of `theirs` or of 1.

    Sums of floating-point numbers taken in another order differ in these units, whatever a single element is.
    """
    return float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))


ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma", "gemma2", "gemma3_text", "mistral")
"""Two of them (Gemma 2 and 3) alternate full and sliding attention, Mistral slides in every layer."""


def random_model(architecture: str, vocabulary: int, seed: int = 0, context: int = 256, **changes: Any) -> Any:
    """A tiny model of an architecture, its weights scaled up so that its logits are not flat."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if architecture == "gpt2":
        settings: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": context}
    else:
        settings = {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": context,
        }
        if architecture != "gpt_neox":
            settings["num_key_value_heads"] = 2
        if architecture.startswith(("gemma", "qwen3")):
            settings["head_dim"] = 8
        if architecture in ("gemma2", "gemma3_text"):
            settings["query_pre_attn_scalar"] = 8
        if architecture in ("gemma2", "gemma3_text", "mistral"):
            settings["sliding_window"] = 8
    config = transformers.AutoConfig.for_model(architecture, vocab_size=vocabulary, **{**settings, **ids, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(16.0)
    return model


def save_checkpoint(directory: Path, model: Any, tokenizer: Any, trace_format: dict[str, Any] | None) -> Path:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if trace_format is not None:
        (directory / "trace_format.json").write_text(json.dumps(trace_format))
    return directory


MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """`make_checkpoint(architecture, tokenizer_kind, seed)`: the directory of a tiny random model; made once each."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(architecture: str = "llama", kind: str = "word", seed: int = 0, context: int = 256) -> Path:
        key = (architecture, kind, seed, context)
        if key not in made:
            tokenizer = word_tokenizer() if kind == "word" else bpe_tokenizer()
            directory = tmp_path_factory.mktemp(f"{architecture}-{kind}-{seed}")
            model = random_model(architecture, len(tokenizer), seed, context)
            made[key] = save_checkpoint(directory, model, tokenizer, WORD_FORMAT if kind == "word" else BPE_FORMAT)
        return made[key]

    return make


DataFile = Callable[[str], Path]


@pytest.fixture(scope="session")
def data() -> DataFile:
    """`data(name)`: real material in the folder FRACTURE_DATA, or beside the repository; else the test is skipped."""
    folder = Path(os.environ.get("FRACTURE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"no {name} at hand; name its folder in FRACTURE_DATA")
        return folder / name

    return find


@pytest.fixture(autouse=True)
def _threads() -> None:
    """Two cores, or one for each of the processes that share them."""
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
