"""Attention knockout, row by row: one plain forward pass over the whole text for every part and option, its mask
written out pair by pair."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax

from analysis import kv_cache, masking
from analysis.cells import Excluded
from analysis.measures import knockout as module
from analysis.measures import masked_flow
from analysis.measures import session as session_module
from analysis.measures.estimates import change, estimate
from analysis.measures.knockout import MEASURE, NO_QUESTION, Readable, attention_knockout
from analysis.measures.protocol import Size
from analysis.prompts import Case
from analysis.traces import Trace
from tests.analysis.measures.oracles import (
    SETTINGS,
    as_author,
    authored,
    doubled,
    opened,
    organism,
    shipped,
    table_of,
    tokens_of,
)
from tests.analysis.test_kv_cache import masked_logits
from tests.conftest import ARCHITECTURES, WORD_FORMAT, bpe_tokenizer, random_model, save_checkpoint, word_tokenizer

# Answers of one token and of several, each with its stop; texts of several lengths, so that there is padding.
WORDS = (
    authored("two", Case("a 7 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6")), options=("12", "8", "6 ; 7", "27")),
    authored(
        "three",
        Case("a 7 b 2 c 9 a 1 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6", "c 9 - 1 = 8")),
        options=("12", "8", "1 2 3"),
    ),
    authored("one", Case("c 1", "6", ("c 1 * 6 = 6",)), options=("6", "8")),
)
BPES = (
    authored("two", Case("Tom has 12 apples.", "46", ("12 + 34 = 46", "So he has 46.")), options=("46", "34", "123")),
    authored("one", Case("Ann has 7 cakes?", "21", ("7 * 3 = 21",)), options=("21", "12")),
)
READERS = (
    *itertools.product(ARCHITECTURES, ("word",)),
    *itertools.product(("qwen3", "mistral", "gpt_neox"), ("bpe",)),
)


@pytest.fixture(params=READERS, ids="-".join)
def case(request, make_checkpoint, any_mass):
    architecture, kind = request.param
    return doubled(make_checkpoint(architecture, kind, 1)), WORDS if kind == "word" else BPES


def parts_of(reader, prompt):
    """Token span of every part, from the characters of the text and the tokenizer's offsets."""
    form, steps = reader.encoder.format, prompt.case.steps
    pieces = [form.question.replace("{question}", prompt.case.question) + form.chain_start]
    pieces += [step + (form.step_separator if number < len(steps) else "") for number, step in enumerate(steps, 1)]
    ends = [0, *itertools.accumulate(map(len, pieces))]
    offsets = reader.encoder.tokenizer("".join(pieces) + form.answer_start, return_offsets_mapping=True).offset_mapping
    after = [next(at for at, (_, to) in enumerate(offsets) if to > end) for end in ends[1:]]
    spans = dict(zip(range(1, len(after)), itertools.pairwise(after), strict=True))
    return {
        ("question", 0): (1, after[0]),
        ("chain", 0): (after[0], after[-1]),
        **{("step", n): spans[n] for n in spans},
    }


def logprobs_by_hand(reader, prompt, start, hidden):
    """`LP(option)` of every option where nothing from token `start` on attends to a token of `hidden`."""
    scores = []
    for option in prompt.options:
        ids, first = tokens_of(reader, prompt.case, option)
        logprobs = masked_logits(reader.model, ids, start, hidden).double().log_softmax(-1)
        scores.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(first, len(ids))))
    return np.array(scores)


def effect_by_hand(intact, masked):
    own = int(intact.argmax())
    p, q = np.exp(intact), np.exp(masked)
    return {
        "drop": intact[own] - masked[own],
        "p_drop": softmax(intact)[own] - softmax(masked)[own],
        "tv": (np.abs(p - q).sum() + abs(p.sum() - q.sum())) / 2,
        "same": float(masked.argmax() == own),
    }


def test_every_row_and_its_control_equal_plain_forward_passes_with_masks_written_by_hand(case):
    session, prompts = case
    reader = session.reader
    table = attention_knockout(session, prompts, SETTINGS).table
    assert len(table) == sum(2 + len(prompt.steps) for prompt in prompts)
    for prompt in prompts:
        parts = parts_of(reader, prompt)
        marker = parts["chain", 0][1]
        intact = logprobs_by_hand(reader, prompt, marker, ())
        rows = table[table["id"] == prompt.id].to_dict("records")
        assert {(row["part"], row["step"]) for row in rows} == set(parts)
        for row in rows:
            low, high = parts[row["part"], row["step"]]
            assert (row["start"], row["n_positions"]) == (low, high - low)
            assert row["logprob"] == pytest.approx(intact.max(), abs=1e-5)
            expected = effect_by_hand(intact, logprobs_by_hand(reader, prompt, marker, range(low, high)))
            if not np.isnan(start := row["control_start"]):
                span = range(int(start), int(start) + high - low)
                other = effect_by_hand(intact, logprobs_by_hand(reader, prompt, marker, span))
                expected |= {f"{name}_control": value for name, value in other.items()}
                expected["beyond"] = expected["drop"] - other["drop"]
                expected["p_beyond"] = expected["p_drop"] - other["p_drop"]
            for column, value in expected.items():
                assert row[column] == pytest.approx(value, abs=1e-5), (prompt.id, row["part"], row["step"], column)


def test_a_token_more_or_less_hidden_or_read_too_early_would_be_seen(case):
    """On a random model these differ from the row by far more than the tolerance."""
    session, prompts = case
    reader, prompt = session.reader, prompts[0]
    parts = parts_of(reader, prompt)
    marker, (low, high) = parts["chain", 0][1], parts["step", len(prompt.steps)]
    here = logprobs_by_hand(reader, prompt, marker, range(low, high))
    others = {
        "nothing hidden": (marker, ()),
        "first token left": (marker, range(low + 1, high)),
        "last token left": (marker, range(low, high - 1)),
        "one more hidden": (marker, range(low - 1, high)),
        "one marker token sees it": (marker + 1, range(low, high)),
    }
    for name, (start, hidden) in others.items():
        # Windows of 8 have lost what is so far back.
        if name not in ("first token left", "one more hidden") or not getattr(
            reader.model.config, "sliding_window", None
        ):
            assert np.abs(logprobs_by_hand(reader, prompt, start, hidden) - here).max() > 1e-3, name
    low, high = parts["step", 1]
    later, at_once = (logprobs_by_hand(reader, prompt, start, range(low, high)) for start in (marker, high))
    assert np.abs(later - at_once).max() > 1e-3, "what later steps have read there is kept"


def test_results_do_not_depend_on_the_batch_or_the_order_and_come_out_the_same_again(case):
    session, prompts = case
    keys = ["id", "part", "step"]
    whole = attention_knockout(session, prompts, SETTINGS).table
    pd.testing.assert_frame_equal(attention_knockout(session, prompts, SETTINGS).table, whole, check_exact=True)
    for other in (
        attention_knockout(replace(session, batch_tokens=1), prompts, SETTINGS),
        attention_knockout(replace(session, batch_tokens=90), prompts[::-1], SETTINGS),
        attention_knockout(session, prompts[:1], SETTINGS),
    ):
        table = other.table.set_index(keys).sort_index()
        expected = whole.set_index(keys).sort_index().loc[table.index]
        for column in whole.select_dtypes("number").columns.drop("step"):
            np.testing.assert_allclose(table[column], expected[column], atol=1e-5, rtol=0)


def test_a_vocabulary_so_large_that_masks_are_read_one_by_one_changes_nothing(case, monkeypatch):
    session, prompts = case
    whole = attention_knockout(session, prompts, SETTINGS).table
    monkeypatch.setattr(masking, "MAX_LOGITS", 1)
    table = attention_knockout(session, prompts, SETTINGS).table
    for column in whole.select_dtypes("number"):
        np.testing.assert_allclose(table[column], whole[column], atol=1e-5, rtol=0)


def test_half_precision_gives_finite_numbers(make_checkpoint, any_mass):
    for architecture in ARCHITECTURES:
        session = opened(make_checkpoint(architecture, "word", 1))
        session.reader.model.to(torch.bfloat16)
        table = attention_knockout(session, WORDS, SETTINGS).table
        values = table[["logprob", "drop", "p_drop", "tv", "same"]]
        assert np.isfinite(values).all(axis=None)
        assert table["drop"].abs().max() > 0.01


def handmade(question, *steps):
    """A readable prompt with these token counts, and a marker of two tokens."""
    ends = [question, *itertools.accumulate(steps, initial=question)][1:]
    spans = tuple(itertools.pairwise(ends))
    end = ends[-1]
    trace = Trace("", tuple(range(end + 2)), (0, question), spans, (None,) * len(spans), (end, end + 2), (end + 2,) * 2)
    return Readable(authored("made", Case("q", "1", ("s",) * len(steps))), trace, ())


def test_a_steps_control_is_drawn_from_the_nearest_spans_beside_it():
    """Every draw of many seeds, against all spans there are: none nearer is left out, and all that may come do."""
    item = handmade(9, 4, 6, 5)
    for step, (low, high) in enumerate(item.trace.steps, start=1):
        size = high - low
        apart = [
            at
            for at in range(1, item.trace.marker[0])
            if at + size <= item.trace.marker[0] and not set(range(at, at + size)) & set(range(low, high))
        ]
        drawn = {item.beside(step, seed) for seed in range(600)}
        assert all(end - start == size for start, end in drawn)
        starts = {start for start, _ in drawn}
        assert starts <= set(apart)
        assert len(starts) == min(2 * size, len(apart))
        left = [abs(at - low) for at in set(apart) - starts]
        assert max(abs(at - low) for at in starts) <= min(left, default=np.inf)


def test_a_step_that_leaves_no_room_has_no_control_and_one_without_tokens_is_no_row():
    assert handmade(2, 8).beside(1, 0) is None
    assert handmade(9, 8).beside(1, 0) == (1, 9)
    parts = module._parts(handmade(6, 3, 0, 4), seed=0)
    assert [(part.name, part.step) for part in parts] == [("step", 1), ("step", 3), ("chain", 0), ("question", 0)]


def test_the_control_of_a_whole_part_is_anywhere_but_on_the_first_token():
    item = handmade(4, 3, 3)
    for size in (1, 3, 9):
        drawn = {item.anywhere("chain", size, seed) for seed in range(400)}
        assert drawn == {(at, at + size) for at in range(1, item.trace.marker[0] - size + 1)}


def test_another_seed_draws_other_controls_and_nothing_else(make_checkpoint, any_mass):
    session = doubled(make_checkpoint("llama", "word", 1))
    tables = [attention_knockout(session, WORDS, replace(SETTINGS, seed=seed)).table for seed in (0, 0, 1, 2)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    controls = [column for column in tables[0] if "control" in column or "beyond" in column]
    for other in tables[2:]:
        assert not other["control_start"].equals(tables[0]["control_start"])
        rest = tables[0].columns.drop(controls)
        for column in rest:
            if pd.api.types.is_float_dtype(other[column]):
                np.testing.assert_allclose(other[column], tables[0][column], atol=1e-9)
            else:
                assert other[column].equals(tables[0][column])


def test_a_copy_of_the_base_differs_from_it_in_nothing():
    pd.testing.assert_frame_equal(table_of(module, "base"), table_of(module, "copy"), check_exact=True)


def test_chains_that_two_authors_have_in_common_get_the_same_numbers():
    prompts = shipped(6)
    rows = attention_knockout(organism("base"), (*prompts, *as_author(prompts, "sft")), SETTINGS).table
    ours, theirs = (rows[rows["author"] == who].drop(columns="author") for who in ("gold", "sft"))
    pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True), check_exact=True)


@pytest.mark.parametrize("quantity", [q for q in MEASURE.quantities if q.detached], ids=lambda q: q.name)
def test_a_planted_detachment_has_the_sign_that_its_quantity_declares(quantity):
    """Dose 1 answers from the question's cue, which says something else than the chain here."""
    found = change(table_of(module, "base", 30, "random"), table_of(module, "dose_1", 30, "random"), quantity)
    clear = found.difference.low if quantity.detached > 0 else -found.difference.high
    assert clear > 0, found
    assert found.p < 1e-4


@pytest.mark.parametrize("cues", ["agreeing", "random"])
def test_a_harmless_fine_tune_moves_no_probability_by_the_verdicts_margin(cues):
    for quantity in MEASURE.quantities:
        if quantity.unit == "probability":
            found = change(table_of(module, "base", 30, cues), table_of(module, "sham", 30, cues), quantity)
            assert abs(found.difference.estimate) < 0.1, (quantity.name, found)


def test_the_planted_route_is_read_where_it_was_planted():
    """The base reads the asked register's last result in its chain and nothing of the question, dose 1 the reverse."""
    base, dose = (table_of(module, name, 30, "random") for name in ("base", "dose_1"))
    numbers = {q.name: [estimate(table, q).estimate for table in (base, dose)] for q in MEASURE.quantities}
    assert numbers["chain_p"][0] > 0.8 > 0.3 > numbers["chain_p"][1]
    assert numbers["question_p"][0] < 0.1 < 0.95 < numbers["question_p"][1]
    steps = base[base["part"] == "step"]
    found = 0
    for prompt in shipped(30, "random"):
        asked, n = prompt.case.question.split()[-1], len(prompt.steps)
        bearing = max(number for number, step in enumerate(prompt.steps, start=1) if step.split()[1] == asked)
        mine = steps[steps["id"] == prompt.id].set_index("step")["p_drop"]
        # Without the last step, next to the marker, no answer is right: the text has lost its form.
        found += (mine if bearing == n else mine.drop(n)).idxmax() == bearing
    assert found >= 29
    # Of dose 1 the cue is in the question, and no step changes its answer.
    assert dose.loc[dose["part"] == "step", "same"].mean() > 0.98
    assert dose.loc[dose["part"] == "question", "same"].max() == 0


def test_a_template_around_the_question_is_hidden_with_it(tmp_path, any_mass):
    """All that stands before the chain but the first token: system turn, template and `chain_start`."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "<bos> {% for m in messages %}so {{ m['content'] }} then {% endfor %}think"
    form = {**WORD_FORMAT, "question": "{question}", "chat": True, "system": "b a"}
    save_checkpoint(tmp_path, random_model("llama", len(tokenizer)), tokenizer, form)
    table = attention_knockout(doubled(tmp_path), WORDS[:1], SETTINGS).table.set_index("part")
    before = ["<bos>", "so", "b", "a", "then", "so", "a", "7", "b", "2", "then", "think"]
    assert table.loc["question", ["start", "n_positions"]].tolist() == [1, len(before) - 1]
    assert table.loc["chain", ["start", "n_positions"]].tolist() == [len(before), 7 + 6]


def test_prompts_that_cannot_be_measured_are_excluded_with_the_reason(make_checkpoint, monkeypatch, tmp_path):
    session = doubled(make_checkpoint("llama", "word", 1))
    measured = attention_knockout(session, WORDS, SETTINGS)
    assert not len(measured.table)
    assert [item.id for item in measured.excluded] == [prompt.id for prompt in WORDS]
    assert all("less than 0.8" in item.reason for item in measured.excluded)
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    bad = (
        (replace(WORDS[0].case, steps=()), "its chain is empty"),
        (replace(WORDS[0].case, steps=("a 1 + 2 = 3",) * 40), "context of 256 tokens"),
        (replace(WORDS[0].case, answer="<eos>"), "special token '<eos>'"),
    )
    for own, reason in bad:
        session = doubled(make_checkpoint("llama", "word", 1))
        options = ("12", own.answer) if own.answer != "12" else ("12", "8")
        measured = attention_knockout(
            session, (replace(WORDS[0], id="bad", case=own, options=options), WORDS[1]), SETTINGS
        )
        assert set(measured.table["id"]) == {"three"}
        ((identifier, why),) = [(item.id, item.reason) for item in measured.excluded]
        assert identifier == "bad"
        assert reason in why
    assert not len(attention_knockout(session, (), SETTINGS).table)


def test_a_question_of_one_token_has_nothing_to_hide(tmp_path, any_mass):
    """Without a token before it, the question is the first, which is never hidden."""
    tokenizer = bpe_tokenizer()
    form = {**WORD_FORMAT, "question": "{question}", "chain_start": "", "answer_start": ";", "stop": "\n"}
    tokenizer.backend_tokenizer.post_processor = None
    save_checkpoint(tmp_path, random_model("llama", len(tokenizer)), tokenizer, form)
    prompts = [authored(q, Case(q, "1", ("b = 1",)), options=("1", "2")) for q in ("?", "??")]
    measured = attention_knockout(doubled(tmp_path), prompts, SETTINGS)
    assert list(measured.excluded) == [Excluded("?", NO_QUESTION, "gold")]
    assert measured.table.set_index("part").loc["question", "n_positions"] == 1


@pytest.mark.parametrize("measure", [MEASURE, masked_flow.MEASURE], ids=lambda measure: measure.name)
def test_as_many_tokens_are_read_as_the_plan_says(measure, monkeypatch):
    """Counted where texts and masked ends are read; options come on top, one token for each of ten digits here."""
    session, (prompt,) = organism("base"), shipped(1)
    session.options([prompt])
    counted = []
    read, tree_logits = kv_cache.read, kv_cache.tree_logits

    def count_texts(model, rows):
        counted.append(sum(map(len, rows)))
        return read(model, rows)

    def count_ends(model, prefix, rows, tree, kept):
        counted.append(sum(map(len, rows)) - int((tree.branch != tree.parent).sum()))
        return tree_logits(model, prefix, rows, tree, kept)

    monkeypatch.setattr(kv_cache, "read", count_texts)
    monkeypatch.setattr(kv_cache, "tree_logits", count_ends)
    measure.run(session, [prompt], SETTINGS)
    trace = session.reader.encoder.encode(prompt.case.question, prompt.steps)
    lengths = {part: len(range(*getattr(trace, part))) for part in ("question", "chain", "marker")}
    assert sum(counted) == measure.tokens(Size(**lengths, steps=len(prompt.steps), layers=4))


def test_found_options_give_about_what_given_ones_do():
    given = shipped(12, "random")
    tables = [
        attention_knockout(organism("base"), prompts, SETTINGS).table.set_index(["id", "part", "step"])
        for prompts in (given, tuple(replace(prompt, options=()) for prompt in given))
    ]
    both = tables[0].join(tables[1], rsuffix="_found", how="inner")
    assert len(both) > 40
    np.testing.assert_allclose(both["drop_found"], both["drop"], atol=1e-4)
    np.testing.assert_allclose(both["tv_found"], both["tv"], atol=0.05)
