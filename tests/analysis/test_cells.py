"""The four cells, held to texts written and scored one by one, and to caches assembled by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from analysis import kv_cache
from analysis.cells import Cells, Contrast, Excluded, find_options, measure_cells
from analysis.errors import InputError
from analysis.models import ModelPair
from analysis.options import LIKELY
from analysis.prompts import Case
from tests.conftest import BPE_FORMAT, bpe_tokenizer, random_model, save_checkpoint

WORD = Contrast(
    "p",
    Case("a 7 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6")),
    Case("a 3 b 9", "8", ("a 3 + 5 = 8", "b 9 * 3 = 27")),
    ("12", "8", "6", "27"),
)
BPE = Contrast(
    "p",
    Case("Tom has 12 apples.", "46", ("12 + 34 = 46", "So he has 46.")),
    Case("Tom has 21 apples.", "34", ("21 + 46 = 34", "So he has 34.")),
    ("46", "34", "123"),
)
# The same length in tokens under the tests' BPE tokenizer, and long enough to be padded beside the others.
LONG = Contrast(
    "long",
    Case("a 7 b 2 c 9 a 1 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6", "c 9 - 1 = 8", "a 1 * 3 = 3")),
    Case("a 1 b 4 c 9 a 1 b 2", "6", ("a 1 + 5 = 6", "b 4 * 3 = 12", "c 9 - 1 = 8", "a 1 * 3 = 3")),
    ("12", "6"),
)
KINDS = {"word": WORD, "bpe": BPE}


def reader_of(make_checkpoint, architecture, kind, **options):
    directory = make_checkpoint(architecture, kind)
    return ModelPair.load(directory, {"copy": directory}, **options).open("copy")


@pytest.fixture(params=itertools.product(("llama", "gpt2"), ("word", "bpe")), ids="-".join)
def case(request, make_checkpoint, monkeypatch):
    """A reader and a contrast; random models give their answers little mass, so the floor is lifted."""
    monkeypatch.setattr("analysis.cells.MIN_OPTION_MASS", 0.0)
    architecture, kind = request.param
    return reader_of(make_checkpoint, architecture, kind), KINDS[kind]


@torch.no_grad()
def answer_logprob(reader, question: str, steps, option: str) -> float:
    """`LP(option + stop)` from one text, its answer located by the length of the text before it."""
    form = reader.encoder.format
    before = form.question.format(question=question) + form.chain_start + form.step_separator.join(steps)
    before += form.answer_start.rstrip()
    tokenizer = reader.encoder.tokenizer
    whole = tokenizer(before + " " + option + form.stop, return_offsets_mapping=True)
    ids, offsets = whole.input_ids, whole.offset_mapping
    logprobs = reader.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids)) if offsets[i][1] > len(before))


def test_text_cells_equal_texts_scored_one_by_one(case):
    reader, contrast = case
    (cells,) = measure_cells(reader, [contrast])
    both = (contrast.own, contrast.partner)
    for a, b in itertools.product((0, 1), repeat=2):
        scores = np.array([answer_logprob(reader, both[a].question, both[b].steps, o) for o in contrast.options])
        assert cells.mass[a, b] == pytest.approx(np.exp(scores).sum(), abs=1e-5)
        np.testing.assert_allclose(cells.text[a, b], np.exp(scores) / np.exp(scores).sum(), atol=1e-5)


@torch.no_grad()
def test_inside_cells_equal_caches_assembled_by_hand(make_checkpoint, monkeypatch):
    monkeypatch.setattr("analysis.cells.MIN_OPTION_MASS", 0.0)
    for architecture in ("llama", "gpt2"):
        reader = reader_of(make_checkpoint, architecture, "word")
        cells = measure_cells(reader, [WORD, LONG])
        for result, contrast in zip(cells, (WORD, LONG), strict=True):
            traces = [reader.encoder.encode(c.question, c.steps) for c in (contrast.own, contrast.partner)]
            (_, q), (_, end) = traces[0].question, traces[0].chain
            runs = [reader.model(torch.tensor([t.ids[:end]]), use_cache=True).past_key_values.layers for t in traces]
            for cell, donors in {(0, 1): (0, 1), (1, 0): (1, 0), (1, 1): (1, 1)}.items():
                scores = []
                for option in contrast.options:
                    cache = DynamicCache()
                    for layer in range(len(runs[0])):
                        keys, values = (
                            torch.cat(
                                [
                                    getattr(runs[donors[0]][layer], name)[:, :, :q],
                                    getattr(runs[donors[1]][layer], name)[:, :, q:],
                                ],
                                dim=2,
                            )
                            for name in ("keys", "values")
                        )
                        cache.update(keys, values, layer)
                    full = reader.encoder.encode(contrast.own.question, contrast.own.steps, option)
                    rest = list(full.ids[end:])
                    logprobs = reader.model(torch.tensor([rest]), past_key_values=cache).logits[0].log_softmax(-1)
                    first = full.answer[0] - end
                    scores.append(sum(float(logprobs[i - 1, rest[i]]) for i in range(first, len(rest))))
                expected = np.exp(scores) / np.exp(scores).sum()
                np.testing.assert_allclose(result.inside[cell], expected, atol=1e-5)
            assert np.array_equal(result.inside[0, 0], result.text[0, 0])
            assert result.splice_error < 1e-5


def test_inside_differs_from_text_where_it_should(case):
    """A random model carries something of the question into chain positions: equal cells would mean no splice."""
    reader, contrast = case
    (cells,) = measure_cells(reader, [contrast])
    assert np.abs(cells.inside[0, 1] - cells.text[0, 1]).max() > 1e-4
    assert np.abs(cells.inside[0, 1] - cells.inside[1, 0]).max() > 1e-4


def test_results_do_not_depend_on_batch_or_order(case):
    reader, contrast = case
    others = [replace(contrast, id=f"p{i}", own=contrast.partner, partner=contrast.own) for i in range(5)]
    together = measure_cells(reader, [*others, contrast])[-1]
    (alone,) = measure_cells(reader, [contrast], batch_tokens=1)
    np.testing.assert_allclose(together.text, alone.text, atol=1e-5)
    np.testing.assert_allclose(together.inside, alone.inside, atol=1e-5)


def test_a_partner_that_is_the_prompt_itself_has_no_effect(case):
    reader, contrast = case
    (cells,) = measure_cells(reader, [replace(contrast, partner=contrast.own)])
    assert np.abs(cells.text - cells.text[0, 0]).max() <= 1e-6
    assert np.abs(cells.inside - cells.text[0, 0]).max() <= 1e-5


def test_misaligned_partners_have_text_cells_only(make_checkpoint, monkeypatch):
    monkeypatch.setattr("analysis.cells.MIN_OPTION_MASS", 0.0)
    reader = reader_of(make_checkpoint, "llama", "word")
    longer_question = replace(WORD.partner, question="a 3 b 9 c 1")
    longer_chain = replace(WORD.partner, steps=(*WORD.partner.steps, "c 1"))
    for partner in (longer_question, longer_chain):
        (cells,) = measure_cells(reader, [replace(WORD, partner=partner)])
        assert cells.inside is None
        assert np.isnan(cells.splice_error)
        assert np.isfinite(cells.text).all()


def test_equal_length_is_not_alignment(make_checkpoint, monkeypatch):
    """A question one token longer and a chain one token shorter fill the same slots with other parts."""
    monkeypatch.setattr("analysis.cells.MIN_OPTION_MASS", 0.0)
    reader = reader_of(make_checkpoint, "llama", "word")
    partner = Case("a 3 b 9 c", "8", ("a 3 + 5 = 8", "b 9 * 3 ="))
    (cells,) = measure_cells(reader, [replace(WORD, partner=partner)])
    assert cells.inside is None


def test_a_splice_that_does_not_reproduce_the_partner_stops_the_run(make_checkpoint, monkeypatch):
    monkeypatch.setattr("analysis.cells.MIN_OPTION_MASS", 0.0)
    monkeypatch.setattr(kv_cache.Prefix, "spliced", lambda self, donor, where: self)
    reader = reader_of(make_checkpoint, "llama", "word")
    with pytest.raises(InputError, match="differs from the partner's own run"):
        measure_cells(reader, [WORD])


def test_options_that_miss_the_mass_exclude_the_prompt(make_checkpoint):
    reader = reader_of(make_checkpoint, "llama", "word")
    (result,) = measure_cells(reader, [replace(WORD, options=("12", "8"))])
    assert isinstance(result, Excluded)
    assert "0.8" in result.reason


def test_texts_over_the_context_are_excluded(make_checkpoint):
    directory = make_checkpoint("gpt2", "word", context=23)
    reader = ModelPair.load(directory, {"copy": directory}).open("copy")
    (result,) = measure_cells(reader, [WORD])
    assert isinstance(result, Excluded)
    assert "context of 23 tokens" in result.reason


def test_options_with_the_same_tokens_exclude_the_prompt(make_checkpoint):
    reader = reader_of(make_checkpoint, "llama", "word")
    (result,) = measure_cells(reader, [replace(WORD, options=("unknown", "words", "12", "8"))])
    assert result == Excluded("p", "two options are the same tokens")


def test_found_options_are_all_answers_above_the_floor(make_checkpoint):
    """Oracle: every one- and two-token answer of the word vocabulary, scored one by one."""
    reader = reader_of(make_checkpoint, "llama", "word")
    contrast = replace(WORD, options=())
    (found,) = find_options(reader, [contrast], 16384)
    words = [w for w in reader.encoder.tokenizer.get_vocab() if w not in reader.encoder.tokenizer.all_special_tokens]
    likely = set()
    both = (contrast.own, contrast.partner)
    for a, b in itertools.product((0, 1), repeat=2):
        trace = reader.encoder.encode(both[a].question, both[b].steps)
        with torch.no_grad():
            first = reader.model(torch.tensor([trace.ids]), use_cache=False).logits[0, -1].softmax(-1)
        ids = reader.encoder.tokenizer.get_vocab()
        likely |= {
            word
            for word in words
            if first[ids[word]] > LIKELY
            and answer_logprob(reader, both[a].question, both[b].steps, word) > np.log(LIKELY * 1.001)
        }
    assert likely <= set(found)
    assert set(found[:2]) == {"12", "8"}


def test_without_options_cells_are_over_what_was_found(make_checkpoint, monkeypatch):
    monkeypatch.setattr("analysis.cells.MIN_OPTION_MASS", 0.0)
    reader = reader_of(make_checkpoint, "llama", "word")
    (cells,) = measure_cells(reader, [replace(WORD, options=())])
    assert isinstance(cells, Cells)
    (found,) = find_options(reader, [replace(WORD, options=())], 16384)
    assert cells.options == found


def test_a_marker_without_a_token_of_its_own_excludes_its_prompt(tmp_path):
    tokenizer = bpe_tokenizer()
    form = {**BPE_FORMAT, "answer_start": " "}
    directory = save_checkpoint(tmp_path / "m", random_model("llama", len(tokenizer)), tokenizer, form)
    reader = ModelPair.load(directory, {"copy": directory}).open("copy")
    own, partner = Case("Tom?", "46", ("12 + 34 = 46",)), Case("Ann?", "21", ("7 * 3 = 21",))
    (found,) = measure_cells(reader, [Contrast("p", own, partner, ("46", "21"))])
    assert isinstance(found, Excluded)
    assert "has no token of its own" in found.reason
