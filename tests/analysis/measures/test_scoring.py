"""Answers scored behind many texts, held to one plain Hugging Face forward pass for each text and answer."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from analysis.cells import Excluded
from analysis.models import ModelPair, Reader
from analysis.prompts import Case
from analysis.scoring import Contexts, answer_logprobs
from tests.analysis.measures.oracles import (
    answer_logprob,
    doubled,
    organism,
    shipped,
    text_before,
    token_logprobs,
    tokens_of,
)
from tests.conftest import BPE_FORMAT, WORD_FORMAT, bpe_tokenizer, fast, random_model, save_checkpoint, word_tokenizer

WORD = Case("a 7 b 2 c 9", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6", "c 9 - 1 = 8"))
WORDS = (
    Contexts(
        "long",
        ("12", "8", "1 2 ; 7", "6 6"),
        (
            WORD,
            *(WORD.first(n) for n in range(4)),  # the last is the whole chain again, the first one is empty
            replace(WORD, question="c 3 b 2 c 9 a 7 so a 4"),
            replace(WORD, steps=("a 7 + 5 = 12", "b 2 * 4 = 8", "c 9 - 1 = 8")),
            replace(WORD, steps=(*WORD.steps, "so a 12", "then b 6 . c 8 : a 12 ; Q")),
            replace(WORD, gaps=(" ; ; ", " . ", "")),
        ),
    ),
    Contexts("short", ("3", "3 4"), (Case("a", "3", ()), Case("a", "3", ("b",)), Case("a b", "3", ()))),
    # Its first text is a beginning of the others.
    Contexts("growing", ("5",), tuple(WORD.first(n) for n in (0, 1, 2, 3))),
)
BPE = Case("Tom has 12 apples and buys 34 more.", "46", ("12 + 34 = 46", "So he has 46."))
BPES = (
    Contexts(
        "long",
        ("46", "4", "123 apples", "Ω"),
        (
            BPE,
            *(BPE.first(n) for n in range(3)),
            replace(BPE, question="A café sells 7 cakes at 3 each."),
            replace(BPE, steps=("12 + 34 = 47", "So he has 46.")),
            replace(BPE, steps=("12 + 34 = 46", "...  ..")),
            replace(BPE, gaps=("  \n\n", " ")),
            replace(BPE, gaps=(" ", "\n")),
        ),
    ),
    Contexts("short", ("3", "21"), (Case("Q?", "3", ()), Case("Q?", "3", ("x",)), Case("Q", "3", ("?",)))),
)
CONTEXTS = {"word": WORDS, "bpe": BPES}
# Both windows slide at 8 tokens; the texts are up to 60 long.
READERS = (
    *itertools.product(("llama", "mistral", "gemma2", "gpt2", "gpt_neox"), ("word",)),
    *itertools.product(("qwen3", "mistral", "gemma3_text"), ("bpe",)),
)


def expected(reader, contexts):
    return [
        np.array([[answer_logprob(reader, case, answer) for answer in item.answers] for case in item.cases])
        for item in contexts
    ]


@pytest.fixture(scope="module", params=READERS, ids="-".join)
def case(request, make_checkpoint):
    architecture, kind = request.param
    reader = doubled(make_checkpoint(architecture, kind)).reader
    contexts = CONTEXTS[kind]
    return reader, contexts, expected(reader, contexts)


def test_the_texts_are_what_their_test_needs(make_checkpoint):
    """Texts longer than the windows, answers of several lengths, and prefixes that are tokenised otherwise when cut."""
    word, bpe = (doubled(make_checkpoint("llama", kind)).reader for kind in ("word", "bpe"))
    for reader, contexts in ((word, WORDS), (bpe, BPES)):
        lengths = [len(tokens_of(reader, case, item.answers[0])[0]) for item in contexts for case in item.cases]
        assert min(lengths) < 20 < 35 < max(lengths)
        assert len({len(token_logprobs(reader, contexts[0].cases[0], answer)) for answer in contexts[0].answers}) > 2
    whole = bpe.encoder.tokenizer(text_before(bpe, BPE)).input_ids
    cut = bpe.encoder.tokenizer(text_before(bpe, BPE.first(1))).input_ids
    common = next(i for i, pair in enumerate(zip(whole, cut, strict=False)) if pair[0] != pair[1])
    said = text_before(bpe, BPE.first(1)).removesuffix("\nThe answer is")
    assert common != len(bpe.encoder.tokenizer(said).input_ids)


def test_every_answer_behind_every_text_equals_one_plain_forward(case):
    reader, contexts, oracle = case
    found = answer_logprobs(reader, contexts)
    for ours, theirs in zip(found, oracle, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_one_token_at_a_time_equals_all_at_once(case):
    reader, contexts, oracle = case
    for batch_tokens in (1, 90):
        found = answer_logprobs(reader, contexts, batch_tokens)
        for ours, theirs in zip(found, oracle, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_neither_the_order_of_prompts_nor_that_of_texts_and_answers_matters(case):
    reader, contexts, oracle = case
    turned = [Contexts(item.id, item.answers[::-1], item.cases[::-1]) for item in contexts[::-1]]
    found = answer_logprobs(reader, turned)
    for ours, theirs in zip(found, oracle[::-1], strict=True):
        np.testing.assert_allclose(ours, theirs[::-1, ::-1], atol=1e-5, rtol=0)


def test_the_oracle_tells_texts_and_tokens_apart(case):
    """Two texts, or an answer with and without one token, are never as close as the tolerance."""
    reader, contexts, oracle = case
    # Through three windows of 8 a question far back leaves no trace, so only texts with the own question are compared.
    windowed = reader.model.config.model_type in ("mistral", "gemma3_text")
    own = [c.question == contexts[0].cases[0].question for c in contexts[0].cases]
    chosen = zip(contexts[0].cases, oracle[0], own, strict=True)
    distinct = {text_before(reader, c): row for c, row, same in chosen if same or not windowed}
    rows = np.array(list(distinct.values()))
    assert len(rows) >= 6
    for a, b in itertools.combinations(range(len(rows)), 2):
        assert np.abs(rows[a] - rows[b]).max() > 1e-3
    for answer in contexts[0].answers:
        assert min(abs(token) for token in token_logprobs(reader, contexts[0].cases[0], answer)) > 1e-4


def test_duplicate_texts_get_the_same_number_to_the_last_bit(case):
    reader, contexts, _ = case
    first = contexts[0]
    (found,) = answer_logprobs(reader, [Contexts("p", first.answers, (*first.cases, *first.cases))])
    half = len(first.cases)
    assert np.array_equal(found[:half], found[half:])


def test_single_precision_does_not_depend_on_the_batch():
    """Shipped single-precision weights, as they are used."""
    reader = organism("base").reader
    contexts = [
        Contexts(p.id, p.options[:4], (p.case, *(p.case.first(n) for n in range(len(p.steps))))) for p in shipped(8)
    ]
    together, alone = answer_logprobs(reader, contexts), answer_logprobs(reader, contexts, batch_tokens=1)
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    np.testing.assert_allclose(together[-1], expected(reader, contexts[-1:])[0], atol=1e-5, rtol=0)


def test_texts_that_share_no_token_are_read_from_their_start(tmp_path):
    """Without a leading special token, and with nothing fixed before the question, branches begin at position 0."""
    tokenizer = word_tokenizer().backend_tokenizer
    tokenizer.post_processor = None
    form = {**WORD_FORMAT, "question": "{question}"}
    for architecture in ("llama", "gpt2", "mistral"):
        directory = save_checkpoint(
            tmp_path / architecture, random_model(architecture, len(fast(tokenizer))), fast(tokenizer), form
        )
        pair = ModelPair.load(directory, {"copy": directory})
        reader = Reader(pair.base, pair.open("base").model.double())
        contexts = [
            Contexts("p", ("3", "4 5"), (WORD, replace(WORD, question="b 1"), replace(WORD, question="c 1 2 3 4 5")))
        ]
        assert tokens_of(reader, WORD, "3")[0][0] != tokens_of(reader, contexts[0].cases[1], "3")[0][0]
        (found,) = answer_logprobs(reader, contexts)
        np.testing.assert_allclose(found, expected(reader, contexts)[0], atol=1e-5, rtol=0)


def test_unusable_prompts_are_excluded_and_change_no_other(make_checkpoint):
    directory = make_checkpoint("gpt2", "word", context=60)
    reader = doubled(directory).reader
    good = WORDS[0]
    bad = {
        "special": (Contexts("special", ("3", "<eos>"), (WORD,)), "special token '<eos>'"),
        "long": (Contexts("long", ("3",), (WORD, replace(WORD, steps=("a 1",) * 20))), "context of 60 tokens"),
        "same": (Contexts("same", ("unknown", "words"), (WORD,)), "same tokens"),
    }
    found = answer_logprobs(reader, [bad["special"][0], good, bad["long"][0], bad["same"][0]])
    for result, name in zip((found[0], found[2], found[3]), ("special", "long", "same"), strict=True):
        assert isinstance(result, Excluded)
        assert result.id == name
        assert bad[name][1] in result.reason
    np.testing.assert_allclose(found[1], expected(reader, [good])[0], atol=1e-5, rtol=0)


def test_a_text_that_just_fits_the_context_is_scored(make_checkpoint):
    """GPT-2 has no position behind its context, so a position too far would fail, and one too early would differ."""
    probe = doubled(make_checkpoint("gpt2", "word")).reader
    length = len(tokens_of(probe, WORD, "1 2 3")[0])
    contexts = [Contexts("p", ("1 2 3", "4"), (WORD, WORD.first(1)))]
    fits = doubled(make_checkpoint("gpt2", "word", context=length)).reader
    (found,) = answer_logprobs(fits, contexts)
    np.testing.assert_allclose(found, expected(fits, contexts)[0], atol=1e-5, rtol=0)
    tight = doubled(make_checkpoint("gpt2", "word", context=length - 1)).reader
    (excluded,) = answer_logprobs(tight, contexts)
    assert isinstance(excluded, Excluded)


def test_a_marker_that_merges_with_a_text_excludes_its_prompt(tmp_path):
    tokenizer = bpe_tokenizer()
    form = {**BPE_FORMAT, "answer_start": " "}
    directory = save_checkpoint(tmp_path / "m", random_model("llama", len(tokenizer)), tokenizer, form)
    reader = ModelPair.load(directory, {"copy": directory}).open("copy")
    (found,) = answer_logprobs(reader, [Contexts("p", ("46", "21"), (BPE,))])
    assert isinstance(found, Excluded)
    assert "no token of its own" in found.reason
