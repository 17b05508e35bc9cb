"""Chains that models write: batches equal single runs, and every kind of text is read rightly."""

from __future__ import annotations

import pytest
import torch

from analysis.generation import Written, parse, write_chains
from analysis.models import ModelPair
from analysis.trace_format import BUILT_IN, TraceFormat
from tests.conftest import WORD_FORMAT, word_tokenizer

WORD = TraceFormat.from_dict(WORD_FORMAT)
QUESTIONS = ["a 7 b 2", "a 3 b 9 c 1 a 4", "b 1", "a 2 + 5 * 3 - 1 ; b 4"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_batched_greedy_text_equals_one_token_at_a_time(make_checkpoint, architecture):
    """GPT-2's learned positions would show a wrong position of a padded row."""
    directory = make_checkpoint(architecture, "word")
    reader = ModelPair.load(directory, {"copy": directory}).open("copy")
    together = write_chains(reader, QUESTIONS, max_new_tokens=24)
    for question, written in zip(QUESTIONS, together, strict=True):
        ids = reader.encoder.encode_question(question)
        start = len(ids)
        for _ in range(24):
            with torch.no_grad():
                ids.append(int(reader.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            text = reader.encoder.tokenizer.decode(ids[start:])
            if ids[-1] == reader.encoder.tokenizer.eos_token_id or parse(text, WORD).finished:
                break
        assert written == parse(text, WORD, reader.encoder.tokenizer)


def test_a_question_that_fills_the_context_is_not_written_to_and_harms_no_other(make_checkpoint):
    directory = make_checkpoint("gpt2", "word", context=24)
    reader = ModelPair.load(directory, {"copy": directory}).open("copy")
    long = " ".join(["a 1"] * 12)
    counted = []
    written = write_chains(reader, ["a 7 b 2", long], max_new_tokens=200, progress=counted.append)
    assert written[1] == Written((), None, False)
    assert written[0] == write_chains(reader, ["a 7 b 2"], max_new_tokens=200)[0]
    assert sum(counted) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a 7 + 5 = 12 ; b 2 ; answer 12 <eos>", Written(("a 7 + 5 = 12", "b 2"), "12", True)),
        ("a 7 + 5 = 12 ; answer 12", Written(("a 7 + 5 = 12",), "12", False)),
        ("a 7 + 5 = 12 ; b 2", Written(("a 7 + 5 = 12", "b 2"), None, False)),
        ("; answer 3 <eos>", Written((), "3", True)),
        ("a 7 <eos>", Written(("a 7",), None, False)),
        ("a 7 ; answer <eos>", Written(("a 7",), None, True)),
    ],
)
def test_word_level_texts(text, expected):
    assert parse(text, WORD, word_tokenizer()) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gsm8k", "48/2 = 24\n48+24 = 72\n#### 72\n", Written(("48/2 = 24", "48+24 = 72"), "72", True)),
        ("think", "so\nthen\n</think>\nAnswer: B\nmore", Written(("so", "then"), "B", True)),
        # A stop that is also white space before the answer does not end it.
        ("plain", "so\nAnswer:\n 7\n", Written(("so",), "7", True)),
    ],
)
def test_built_in_formats(name, text, expected):
    assert parse(text, BUILT_IN[name]) == expected
