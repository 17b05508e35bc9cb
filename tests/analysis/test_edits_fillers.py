"""Fillers of an exact length, counted in place by real tokenizers that were trained here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from analysis.edits import UNITS, filler
from tests.conftest import word_tokenizer


def byte_level(add_dots: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["So she has 3 eggs .\nThen 3 + 4 = 7.\n"]
    corpus += ["wait .. then .... and ........ and ... so ... or ... and ... now"] if add_dots else []
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus * 20, trainer)
    return tokenizer


def counter(tokenizer: Tokenizer, before: str, after: str) -> Callable[[str], int]:
    """How many tokens hold characters of a text between two others."""

    def count(text: str) -> int:
        encoded = tokenizer.encode(before + text + after, add_special_tokens=False)
        start, end = len(before), len(before) + len(text)
        if any(token == "<unk>" for token in encoded.tokens):
            return -1
        return sum(first < end and last > start for first, last in encoded.offsets)

    return count


DOTTED, UNDOTTED = byte_level(True), byte_level(False)
PLACES = [("Q: how many?\n", "\nThe answer is "), ("So x", "x then"), ("So ", " ; answer ")]


def test_the_trained_tokenizer_merges_dots() -> None:
    assert len(DOTTED.encode("....").ids) < 4 == len(UNDOTTED.encode("....").ids)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("units", [UNITS, ("...",), (".",), (" …", "."), tuple(reversed(UNITS))])
@pytest.mark.parametrize("tokenizer", [DOTTED, UNDOTTED], ids=["merged", "not merged"])
def test_a_filler_has_exactly_the_tokens_that_were_asked(tokenizer: Tokenizer, units, place) -> None:
    count = counter(tokenizer, *place)
    for n in (*range(1, 25), 60):
        text = filler(n, count, units)
        if text is None:
            # By all repetitions of one unit up to a length that no filler of n tokens has here.
            assert all(count((unit * times).strip()) != n for unit in units for times in range(1, 4 * n))
            continue
        assert count(text) == n
        assert text == text.strip()
        assert set(text) <= set("".join(units))
    if units == UNITS:
        assert all(filler(n, count) is not None for n in range(1, 40))


def test_unknown_words_are_not_used() -> None:
    tokenizer = word_tokenizer().backend_tokenizer
    count = counter(tokenizer, "Q 3 think ", " ; answer ")
    assert [filler(n, count) for n in (1, 2, 5)] == [".", ". .", ". . . . ."]
    assert count("...") == -1
    assert filler(3, count, ("...", "…")) is None


def test_a_second_unit_makes_up_what_one_alone_cannot() -> None:
    def count(text: str) -> int:
        return 2 * text.count("a") + 3 * text.count("b")

    assert filler(6, count, ("a", "b")) == "aaa"
    assert filler(3, count, ("a", "b")) == "b"
    assert filler(7, count, ("a", "b")) == "aab"
    assert filler(1, count, ("a", "b")) is None
    assert filler(7, count, ("a",)) is None
    assert filler(0, count) is None


def test_a_tokenizer_with_one_token_a_repetition_is_asked_once() -> None:
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return len(text.split())

    assert filler(50, count) == " ".join(["..."] * 50)
    assert len(asked) == 1


@pytest.mark.parametrize("length", [lambda text: 0, lambda text: 10**6, lambda text: 2 * len(text), lambda text: 5])
def test_the_work_is_bounded_whatever_the_tokenizer_says(length: Callable[[str], int]) -> None:
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return length(text)

    assert filler(31, count) is None
    assert len(asked) <= 1600 + 20 * 32
