"""Token divergence, drift, accuracy, steps by rule, and chains written on: each by a plain run or by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analysis.capture import Text, capture
from analysis.generation import continue_chains, parse
from analysis.measures import drift as drift_module
from analysis.measures import session as session_module
from analysis.measures.accuracy_and_calibration import accuracy_and_calibration
from analysis.measures.drift import drift
from analysis.measures.estimates import estimate
from analysis.measures.knowledge_index import MEASURE as KNOWLEDGE
from analysis.measures.knowledge_index import knowledge_index
from analysis.measures.mistakes import mistakes
from analysis.measures.session import Session
from analysis.measures.token_kl import token_kl
from analysis.models import ModelPair
from analysis.prompts import Case
from analysis.verifiers import load_verifier
from tests.analysis.measures.oracles import (
    SETTINGS,
    answer_logprob,
    as_author,
    authored,
    doubled,
    organism,
    shipped,
    text_before,
)
from tests.conftest import WORD_FORMAT, random_model, save_checkpoint, word_tokenizer

WORDS = (
    authored("long", Case("a 7 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6", "c 4 so 12", "then b"))),
    authored("short", Case("c", "8", ("c 3",))),
    authored("gaps", Case("c 3 b 9", "8", ("c 3 + 5 = 8", "b 9"), gaps=(" . ", " ; "))),
)
BPES = (
    authored("two", Case("Tom has 12 apples.", "46", ("12 + 34 = 46", "So he has 46."))),
    authored("gaps", Case("Ann has 3?", "21", ("7 * 3 = 21", "3 cakes", "So 21."), gaps=("\n\n", " ", "  "))),
)


def chain_tokens(reader, case):
    """The ids of the text up to the marker, and the places of the chain's tokens, by the characters they end at."""
    text = text_before(reader, case)
    form = reader.encoder.format
    start = len(form.question.replace("{question}", case.question) + form.chain_start)
    end = len(text) - len(form.answer_start.rstrip())
    encoded = reader.encoder.tokenizer(text, return_offsets_mapping=True)
    return encoded.input_ids, [i for i, (_, to) in enumerate(encoded.offset_mapping) if start < to <= end]


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "word"), ("mistral", "word"), ("gpt2", "bpe"), ("gemma2", "bpe")]
)
def test_token_divergence_is_the_mean_over_the_chains_tokens(make_checkpoint, architecture, kind):
    """PyTorch's own `kl_div` on two plain forward passes, at the tokens from which the chain's are predicted."""
    directories = [make_checkpoint(architecture, kind, seed) for seed in (0, 1)]
    pair = ModelPair.load(directories[0], {"sft": directories[1]})
    session, prompts = Session(pair, pair.open("sft")), WORDS if kind == "word" else BPES
    base = pair.open("base")
    table = token_kl(session, prompts, SETTINGS).table.set_index("id")
    assert len(table) == len(prompts)
    for prompt in prompts:
        ids, places = chain_tokens(base, prompt.case)
        with torch.no_grad():
            theirs, ours = (
                reader.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
                for reader in (base, session.reader)
            )
        at = [place - 1 for place in places]
        each = torch.nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
        assert table.loc[prompt.id, "n_tokens"] == len(places)
        assert table.loc[prompt.id, "kl"] == pytest.approx(float(each[at].mean()), abs=1e-5)
        # Of the base from the variant, or one token later, it is another number.
        turned = torch.nn.functional.kl_div(theirs, ours, reduction="none", log_target=True).sum(-1)
        assert table.loc[prompt.id, "kl"] != pytest.approx(float(turned[at].mean()), rel=1e-3)
        assert table.loc[prompt.id, "kl"] != pytest.approx(float(each[places].mean()), rel=1e-3)


def test_token_divergence_does_not_depend_on_the_batch(monkeypatch):
    from analysis.measures import token_kl as module

    session, prompts = organism("dose_1"), shipped(12)
    whole = token_kl(session, prompts, SETTINGS).table.set_index("id")["kl"]
    monkeypatch.setattr(module, "MAX_LOGITS", 1)
    alone = token_kl(session, prompts[::-1], SETTINGS).table.set_index("id")["kl"]
    np.testing.assert_allclose(alone[whole.index], whole, atol=1e-6, rtol=0)


def test_models_with_rows_for_more_tokens_than_the_tokenizer_has_are_compared(tmp_path):
    """One of two models is often padded to a round number of tokens: a number or a reason, either way around."""
    tokenizer = word_tokenizer()
    small, large = (
        save_checkpoint(tmp_path / f"{extra}", random_model("llama", len(tokenizer) + extra), tokenizer, WORD_FORMAT)
        for extra in (0, 8)
    )
    for base, variant in ((small, large), (large, small)):
        pair = ModelPair.load(base, {"sft": variant})
        measured = token_kl(Session(pair, pair.open("sft")), WORDS, SETTINGS)
        kl = measured.table["kl"]
        assert len(kl) + len(measured.excluded) == len(WORDS)
        assert np.isfinite(kl).all()
        assert (kl >= 0).all()


def store_of(reader, prompts, directory):
    texts = [Text(p.id, p.author, reader.encoder.encode(p.case.question, p.steps, p.case.answer)) for p in prompts]
    return capture(reader, texts, directory)


class Shuffled:
    """A store with its rows in another order."""

    def __init__(self, store, seed):
        self.order = np.random.default_rng(seed).permutation(len(store.rows))
        self._store, self.hooks = store, store.hooks
        self.rows = store.rows.iloc[self.order].reset_index(drop=True)

    def read(self, hook, rows):
        return self._store.read(hook, self.order[np.asarray(rows)])


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return {
        name: store_of(organism(name).reader, shipped(30), tmp_path_factory.mktemp(name) / "store")
        for name in ("base", "dose_1")
    }


EXACT = ("n_prompts", "n_rows", "cka", "norm_sensitivity", "procrustes", "angle", "norm_ratio")


def test_rows_are_paired_by_what_they_are_and_not_by_their_place(stores):
    expected = drift(stores, SETTINGS).table
    for names in (("base",), ("dose_1",), ("base", "dose_1")):
        turned = {name: Shuffled(store, 3) if name in names else store for name, store in stores.items()}
        found = drift(turned, SETTINGS).table
        assert found[["site", "layer", "position"]].equals(expected[["site", "layer", "position"]])
        for column in EXACT:
            np.testing.assert_allclose(found[column], expected[column], atol=1e-8, err_msg=f"{column} {names}")
        # The null is drawn anew; from 100 draws its mean moves by less than this.
        np.testing.assert_allclose(found["null_mean"], expected["null_mean"], atol=0.05)


def plain_states(reader, prompt):
    """Hidden states of one plain forward pass, before each block and after the last one's norm."""
    trace_ids = reader.encoder.tokenizer(text_before(reader, prompt.case) + " " + prompt.case.answer).input_ids
    with torch.no_grad():
        states = reader.model(torch.tensor([trace_ids]), output_hidden_states=True, use_cache=False).hidden_states
    return trace_ids, [state[0].double().numpy() for state in states]


def debiased(x, y):
    """Debiased linear CKA by its definition, with loops (Song et al. 2012, the unbiased HSIC)."""

    def hsic(left, right):
        n = len(left)
        left, right = left - np.diag(np.diag(left)), right - np.diag(np.diag(right))
        one = np.ones(n)
        sums = one @ left @ one * (one @ right @ one) / ((n - 1) * (n - 2))
        return (np.trace(left @ right) + sums - 2 / (n - 2) * (one @ left @ right @ one)) / (n * (n - 3))

    ours, theirs = x @ x.T, y @ y.T
    return hsic(ours, theirs) / np.sqrt(hsic(ours, ours) * hsic(theirs, theirs))


def test_drift_compares_the_residual_streams_after_each_block_at_the_named_tokens(stores):
    """By hand, from hidden states of plain forward passes of base and variant."""
    from scipy.linalg import orthogonal_procrustes

    prompts = shipped(30)
    table = drift(stores, SETTINGS).table
    readers = [organism(name).reader for name in ("base", "dose_1")]
    states = [[plain_states(reader, prompt) for prompt in prompts] for reader in readers]
    marker = readers[0].encoder.tokenizer.convert_tokens_to_ids("answer")
    think = readers[0].encoder.tokenizer.convert_tokens_to_ids("think")
    for layer in range(len(states[0][0][1]) - 2):  # the last entry is after the final norm
        for position, token in (("answer", marker), ("question_end", think)):
            x, y = (np.stack([s[layer + 1][list(ids).index(token)] for ids, s in mine]) for mine in states)
            row = table[(table["layer"] == layer) & (table["position"] == position)].iloc[0]
            assert row["site"] == "resid_post"
            assert row["n_rows"] == row["n_prompts"] == 30
            if position == "answer":
                assert row["cka"] == pytest.approx(debiased(x, y), abs=1e-5)
                centred = [(z - z.mean(0)) / np.linalg.norm(z - z.mean(0)) for z in (x, y)]
                _, nuclear = orthogonal_procrustes(*centred)
                assert row["procrustes"] == pytest.approx(np.sqrt(max(0.0, 1 - nuclear)), abs=1e-4)
            norms = [np.linalg.norm(z, axis=1).mean() for z in (x, y)]
            assert row["norm_ratio"] == pytest.approx(norms[1] / norms[0], abs=1e-5)


def test_the_prompts_that_drift_is_computed_on_are_no_selection_by_length(stores, monkeypatch):
    """Stores are in the order of running, shortest texts first: the first so many are the shortest chains."""
    monkeypatch.setattr(drift_module, "MAX_PROMPTS", 12)
    chosen = set()
    true_compared = drift_module._compared

    def spy(x, y, prompts, seed):
        chosen.update([] if prompts is None else prompts)
        return true_compared(x, y, prompts, seed)

    monkeypatch.setattr(drift_module, "_compared", spy)
    drift(stores, SETTINGS)
    assert len(chosen) == 12
    lengths = {prompt.id: len(prompt.steps) for prompt in shipped(30)}
    kept = [lengths[name] for name in chosen]
    left = [length for name, length in lengths.items() if name not in chosen]
    assert stats.mannwhitneyu(kept, left).pvalue > 0.001, (sorted(kept), sorted(left))


def test_prompts_that_one_model_lacks_are_named(stores, tmp_path):
    fewer = store_of(organism("dose_1").reader, shipped(30)[:28], tmp_path / "store")
    measured = drift({"base": stores["base"], "dose_1": fewer}, SETTINGS)
    assert sorted(item.id for item in measured.excluded) == sorted(prompt.id for prompt in shipped(30)[28:])
    assert (measured.table["n_prompts"] <= 28).all()


@pytest.mark.parametrize(
    ("architecture", "kind", "seed"),
    [("llama", "word", 0), ("gpt2", "word", 0), ("mistral", "word", 1), ("llama", "bpe", 0)],
)
def test_chains_are_written_on_as_by_a_plain_greedy_loop(make_checkpoint, architecture, kind, seed):
    directory = make_checkpoint(architecture, kind, seed)
    pair = ModelPair.load(directory, {"copy": directory})
    compare_with_greedy(pair.open("copy"), [prompt.case for prompt in (WORDS if kind == "word" else BPES)], 24)


def test_the_shipped_base_writes_on_and_comes_to_an_answer():
    reader = organism("base").reader
    begun = [prompt.case.first(n) for prompt in shipped(6) for n in range(1, len(prompt.steps))]
    found = compare_with_greedy(reader, begun, 64)
    assert all(case is not None for case in found)
    whole = {prompt.case.question: prompt.case.steps for prompt in shipped(6)}
    right = [case.steps == whole[case.question] for case in found]
    assert np.mean(right) > 0.9


def compare_with_greedy(reader, begun, limit):
    """A loop of one token at a time, from behind the last step's own tokens; the text is read from the chain's start
    on."""
    together = continue_chains(reader, begun, max_new_tokens=limit)
    eos, form = reader.encoder.tokenizer.eos_token_id, reader.encoder.format
    for case, found in zip(begun, together, strict=True):
        ids, places = chain_tokens(reader, case)
        row, start, finished = ids[: places[-1] + 1], places[0], False
        for _ in range(limit):
            with torch.no_grad():
                row.append(int(reader.model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
            finished = row[-1] == eos or parse(reader.encoder.tokenizer.decode(row[start:]), form).finished
            if finished:
                break
        written = parse(reader.encoder.tokenizer.decode(row[start:]), form, reader.encoder.tokenizer)
        if not finished or written.answer is None:
            assert found is None
        else:
            assert (found.question, found.answer) == (case.question, case.answer)
            assert (found.steps, found.gaps) == (written.steps, written.gaps)
            chain = "".join(step + gap for step, gap in zip(found.steps, found.gaps, strict=True))
            said = "".join(
                step + gap
                for step, gap in zip(
                    case.steps, case.gaps or [form.step_separator] * (len(case.steps) - 1) + [""], strict=True
                )
            )
            assert chain.startswith(said.strip())
    return together


def test_the_answer_after_writing_on_is_read_behind_what_was_written():
    session, prompts = organism("base"), shipped(5)
    table = mistakes(session, prompts, replace(SETTINGS, continue_mistakes=True)).table
    rows = table[table["condition"] == "mistake_continued"]
    assert len(rows) > 5
    kept = table[table["condition"] == "mistake"].set_index(["id", "step"])
    assert len(rows) <= len(kept)
    # A mistake that is carried on leads elsewhere at least as often as one that the rest of the chain contradicts.
    same = kept.loc[list(zip(rows["id"], rows["step"], strict=True)), "same"]
    assert rows["same"].mean() <= same.mean()


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_accuracy_confidence_entropy_and_brier_by_hand(make_checkpoint, monkeypatch, kind):
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    session = doubled(make_checkpoint("gpt2", kind))
    options = ("12", "8", "6 ; 7") if kind == "word" else ("46", "21", "123 apples")
    gold = tuple(replace(prompt, options=options) for prompt in (WORDS if kind == "word" else BPES))
    own = tuple(
        replace(prompt, written=written)
        for prompt, written in zip(as_author(gold, "copy"), ("12.", None, "8"), strict=False)
    )
    assert session.name == "copy"
    table = accuracy_and_calibration(session, (*gold, *own), SETTINGS).table
    for prompt in gold:
        scores = np.array([answer_logprob(session.reader, prompt.case, option) for option in options])
        p = np.exp(scores) / np.exp(scores).sum()
        right = options.index(prompt.case.answer)
        row = table[(table["id"] == prompt.id) & (table["author"] == "gold")].iloc[0]
        assert row["right"] == float(p.argmax() == right)
        assert row["confidence"] == pytest.approx(p.max(), abs=1e-6)
        assert row["entropy"] == pytest.approx(stats.entropy(p), abs=1e-6)
        assert row["brier"] == pytest.approx(sum((q - (i == right)) ** 2 for i, q in enumerate(p)), abs=1e-6)
        assert np.isnan(row["written_right"])
        assert np.isnan(row["unanswered"])
    mine = table[table["author"] == "copy"]
    assert mine["written_right"].tolist() == [
        float(p.written is not None and p.written.rstrip(".") == p.case.answer) for p in own
    ]
    assert mine["unanswered"].tolist() == [float(p.written is None) for p in own]


class Scripted(Session):
    """A session whose answers are written by hand."""

    def options(self, prompts):
        return [("46", "46.", "8") for _ in prompts]

    def score(self, contexts, what):
        return [np.log([[0.5, 0.4, 0.1]]) for _ in contexts]


def test_one_answer_written_in_two_ways_is_no_error_of_calibration():
    """`46` and `46.` share the probability: both are right, and a Brier score that calls one wrong is no score."""
    prompt = authored("p", Case("q", "46", ("s",)), options=("46", "46.", "8"))
    session = Scripted(organism("base").pair, organism("base").reader)
    (row,) = accuracy_and_calibration(session, [prompt], SETTINGS).table.to_dict("records")
    assert row["right"] == 1.0
    assert row["confidence"] == pytest.approx(0.9)
    assert row["brier"] == pytest.approx(0.1**2 + 0.1**2)


def test_the_knowledge_index_counts_true_steps_among_those_that_can_be_checked():
    settings = replace(SETTINGS, verifier=load_verifier("arithmetic"))
    steps = {
        "one": ("2 + 3 = 5", "so it goes", "2 * 3 = 7", "1 + 1 = 2 and 2 + 2 = 5"),
        "two": ("hm", "well"),
        "three": ("4 - 1 = 3",),
    }
    prompts = [authored(name, Case("q", "5", mine)) for name, mine in steps.items()]
    measured = knowledge_index(None, [*prompts, authored("none", Case("q", "5", ()))], settings)
    table = measured.table
    assert table["true"].tolist() == [1, 0, 0, 0, 0, 0, 1]
    assert table["checkable"].tolist() == [1, 0, 1, 1, 0, 0, 1]
    index, checkable = (estimate(table, quantity) for quantity in KNOWLEDGE.quantities)
    assert index.estimate == pytest.approx(2 / 4)
    assert checkable.estimate == pytest.approx(4 / 7)
    assert [(item.id, item.reason) for item in measured.excluded] == [("none", "its chain is empty")]


def test_mistakes_lower_the_knowledge_index_and_by_as_much_as_there_are():
    """Planted truth: every third chain of the shipped prompts has one wrong result."""
    prompts, wrong = [], 0
    for number, prompt in enumerate(shipped(30)):
        steps = list(prompt.steps)
        if number % 3 == 0:
            head, result = steps[0].rsplit(" ", 1)
            steps[0] = f"{head} {(int(result) + 1) % 10}"
            wrong += 1
        prompts.append(replace(prompt, case=replace(prompt.case, steps=tuple(steps))))
    total = sum(len(prompt.steps) for prompt in prompts)
    table = knowledge_index(None, prompts, SETTINGS).table
    assert estimate(table, KNOWLEDGE.quantities[0]).estimate == pytest.approx(1 - wrong / total)
    assert table["checkable"].all()
    assert isinstance(table, pd.DataFrame)
