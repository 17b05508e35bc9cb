"""Cross-model patching: by hand with plain forward passes, and on pairs whose repair is known by construction."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from dataclasses import replace
from functools import cache
from statistics import median

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from analysis import statistics
from analysis.cells import CELLS
from analysis.errors import InputError
from analysis.measures import repair_runs
from analysis.measures.aligned import spread
from analysis.measures.estimates import estimate
from analysis.measures.protocol import Size
from analysis.measures.repair import COLUMNS, MEASURE, fixed_layer, repair, summarise
from analysis.measures.repair_states import PENALTIES, Run, fit, fit_affine, like_in_size
from analysis.measures.repair_texts import Job, Text, circles, counterparts, find_jobs, halves
from analysis.measures.session import Session
from analysis.models import ModelPair, Reader
from analysis.prompts import Case
from tests.analysis.measures.oracles import SETTINGS, authored, organism, shipped, tokens_of
from tests.analysis.measures.test_patch_map import BPES
from tests.conftest import BPE_FORMAT, WORD_FORMAT, WORDS, save_checkpoint, word_tokenizer

WORD_OPTIONS = ("12", "8", "6 ; 7", "27")
WORD_PROMPTS = tuple(
    authored(f"{at}", Case(question, "12", steps), Case(other, "8", other_steps), WORD_OPTIONS)
    for at, (question, steps, other, other_steps) in enumerate(
        [
            ("a 7 b 2", ("a 7 + 5 = 12", "b 2 * 3 = 6"), "a 3 b 9", ("a 3 + 5 = 8", "b 9 * 3 = 27")),
            ("a 1 b 4", ("a 1 + 5 = 6", "b 4 * 3 = 12"), "a 3 b", ("a 3 + 5",)),
            ("a 2 b 2 c 1", ("a 2 + 5 = 7", "b 2 - 1 = 1", "c 1"), "a 9 b 9 c 4", ("a 9 + 5 = 14", "b 9", "c 4 = 4")),
            ("a 5 b 8", ("a 5 + 5 = 10",), "a 6 b 1", ("a 6 + 5 = 11", "b 1 = 1")),
            ("a 8 b 8 c 1", ("a 8 + 5 = 13", "b 8 - 1 = 7"), "a 9 c 4", ("a 9 + 5 = 14", "b 9 - 1 = 8")),
        ]
    )
)
PAIRS = (
    *(("llama", "word", 3), ("gpt2", "word", 1), ("gemma2", "word", 2), ("mistral", "word", 1), ("qwen3", "word", 1)),
    *(("qwen2", "bpe", 3), ("gpt_neox", "bpe", 1), ("gemma", "bpe", 1), ("gemma3_text", "bpe", 1)),
)
BLOCKS = {"gpt2": lambda model: model.transformer.h, "gpt_neox": lambda model: model.gpt_neox.layers}
WRITTEN = ("base", "affine", "mean_difference", "random", "other_prompt", "length", "reverse")
VALUES = ["n_positions", "size", "total", "past", "direct", "agreement", "mass"]


class Doubled(ModelPair):
    """Models in double precision, where batching leaves no rounding to hide behind; Gemma 2 and 3 in single."""

    def open(self, name):
        reader = super().open(name)
        single = reader.model.config.model_type.startswith("gemma")
        return reader if single else Reader(reader.source, reader.model.double())


@pytest.fixture(scope="module")
def reworded(make_checkpoint, tmp_path_factory):
    """The same architecture with other weights and with another text around the question, longer by some tokens."""

    def make(architecture, kind, seed):
        directory = tmp_path_factory.mktemp("reworded") / "model"
        shutil.copytree(make_checkpoint(architecture, kind, seed + 10), directory)
        form = WORD_FORMAT | {"question": "so then {question} Q"}
        if kind == "bpe":
            form = BPE_FORMAT | {"question": "Please, answer this. {question}\n\n"}
        (directory / "trace_format.json").write_text(json.dumps(form))
        return directory

    return make


@pytest.fixture(params=PAIRS, ids=lambda param: f"{param[0]}-{param[1]}")
def case(request, make_checkpoint, reworded, any_mass):
    architecture, kind, seed = request.param
    pair = Doubled.load(make_checkpoint(architecture, kind, seed), {"variant": reworded(architecture, kind, seed)})
    return Session(pair, pair.open("variant")), WORD_PROMPTS if kind == "word" else BPES


def blocks(model):
    return BLOCKS.get(model.config.model_type, lambda model: model.model.layers)(model)


def combined(prompt, question, chain):
    """Question of the one, chain of the other."""
    cases = (prompt.case, prompt.partner)
    return replace(cases[chain], question=cases[question].question)


def step_places(reader, case):
    """The tokens of each step, from the characters of the text and the tokenizer's offsets."""
    form = reader.encoder.format
    pieces = [form.question.replace("{question}", case.question) + form.chain_start]
    pieces += [step + (form.step_separator if at + 1 < len(case.steps) else "") for at, step in enumerate(case.steps)]
    ends = list(itertools.accumulate(map(len, pieces)))
    text = "".join(pieces) + form.answer_start.rstrip()
    offsets = reader.encoder.tokenizer(text, return_offsets_mapping=True).offset_mapping
    return [[i for i, (_, to) in enumerate(offsets) if start < to <= end] for start, end in itertools.pairwise(ends)]


@torch.no_grad()
def states_of(reader, case, layer):
    """What block `layer` gives at each token of the chain, from one plain forward pass."""
    kept = []
    handle = blocks(reader.model)[layer].register_forward_hook(
        lambda _, __, output: kept.append((output[0] if isinstance(output, tuple) else output).clone())
    )
    ids, _ = tokens_of(reader, case, "7")
    reader.model(torch.tensor([ids]), use_cache=False)
    handle.remove()
    return kept[0][0, list(itertools.chain(*step_places(reader, case)))]


@torch.no_grad()
def probabilities(reader, case, options, layer=0, places=(), values=None):
    """Of each option and of anything else, one forward pass over the whole text an option."""
    scores = []
    for option in options:
        ids, first = tokens_of(reader, case, option)

        def write(_, __, output):
            new = (output[0] if isinstance(output, tuple) else output).clone()
            if len(places):
                new[0, places] = values
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = blocks(reader.model)[layer].register_forward_hook(write)
        logprobs = reader.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
        handle.remove()
        scores.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(first, len(ids))))
    p = np.exp(scores)
    return np.append(p, 1 - p.sum())


def by_hand(reader, prompt, layer, write):
    """The numbers of a row; `write(case)` gives places in this reader's text and what stands there."""
    p = {}
    for cell in CELLS:
        text = combined(prompt, *cell)
        p[cell] = probabilities(reader, text, prompt.options, layer, *(write(cell, text) if write else ()))
    total = p[1, 1] - p[0, 0]
    return {
        "total": total @ total,
        "past": total @ total - (p[0, 1] - p[0, 0]) @ total,
        "direct": (p[1, 0] - p[0, 0]) @ total,
        "scale": max(np.sum((each - p[0, 0]) ** 2) for each in p.values()),
        "cells": p,
    }


def expected_edits(session, base, prompts, prompt, layer):
    """Condition → what is written into a text, from plain forward passes, scikit-learn, and who is in which half."""
    variant = session.reader
    flat = lambda reader, case: list(itertools.chain(*step_places(reader, case)))  # noqa: E731
    texts = {p.id: {cell: combined(p, *cell) for cell in CELLS} for p in prompts}
    jobs, _ = find_jobs(session, base, prompts, SETTINGS)
    half = halves(jobs, SETTINGS.seed)
    others = [p for p in prompts if half[p.id] != half[prompt.id]]
    runs = [
        (p.id, *(states_of(r, texts[p.id][cell], layer) for r in (base, variant))) for p in others for cell in CELLS
    ]
    ids = sorted({identifier for identifier, *_ in runs})
    x, y = (torch.cat([run[which] for run in runs]).double().numpy() for which in (1, 2))
    groups = np.concatenate([[ids.index(identifier)] * len(states) for identifier, states, _ in runs])
    shift = (x - y).mean(0)
    lengths = [len(states) for _, states, _ in runs]
    cut = median(lengths)
    if cut in (min(lengths), max(lengths)):
        cut = sum(lengths) / len(lengths)
    short, long = (
        np.concatenate([y[:0], *(run[2].double().numpy() for run in runs if chosen(len(run[2])))])
        for chosen in (lambda n: n < cut, lambda n: n > cut)
    )
    shorter = short.mean(0) - long.mean(0) if len(short) and len(long) else None
    (circle,) = [c for c in circles(jobs, SETTINGS.seed) if prompt.id in [job.prompt.id for job in c]]
    at = [job.prompt.id for job in circle].index(prompt.id)
    stand_in = circle[(at + 1) % len(circle)].prompt.id
    fitted = ridge(x, y, groups)

    def like(values, states):
        return torch.from_numpy(values).to(states)

    def other(cell, case):
        there = step_places(variant, texts[stand_in][cell])
        all_there, states = list(itertools.chain(*there)), states_of(variant, texts[stand_in][cell], layer)
        pairs = [
            pair
            for mine, theirs in zip(step_places(variant, case), there, strict=False)
            for pair in zip(mine, theirs, strict=False)
        ]
        return [here for here, _ in pairs], states[[all_there.index(there) for _, there in pairs]]

    def own(case):
        return states_of(variant, case, layer)

    edits = {
        "base": (variant, lambda _, c: (flat(variant, c), states_of(base, c, layer))),
        "affine": (variant, lambda _, c: (flat(variant, c), like(fitted(states_of(base, c, layer)), own(c)))),
        "mean_difference": (variant, lambda _, c: (flat(variant, c), own(c) + like(shift, own(c)))),
        "length": (variant, lambda _, c: (flat(variant, c), own(c) + like(shorter, own(c)))),
        "other_prompt": (variant, other),
        "reverse": (base, lambda _, c: (flat(base, c), own(c))),
        "unedited": (variant, None),
        "base_itself": (base, None),
    }
    return edits if shorter is not None else {name: edit for name, edit in edits.items() if name != "length"}


def at_random(variant, base, prompt, layer, draw):
    """The own states plus vectors that are as long as base minus variant, with directions by prompt, layer and draw."""

    def write(_, case):
        own, other = (states_of(reader, case, layer) for reader in (variant, base))
        vectors = like_in_size(other - own, f"{SETTINGS.seed}:{prompt.id}:{layer}:{draw}")
        return list(itertools.chain(*step_places(variant, case))), own + vectors

    return write


def ridge(x, y, groups):
    """`base states → variant's`, by scikit-learn: the difference on standardised features, penalty by folds."""
    scaler = StandardScaler().fit(x)
    fold = groups % min(3, len(set(groups)))
    splits = [(np.flatnonzero(fold != at), np.flatnonzero(fold == at)) for at in sorted(set(fold))]
    best = max(PENALTIES)
    if len(splits) > 1:
        errors = []
        for penalty in PENALTIES:
            error = 0.0
            for train, test in splits:
                inner = StandardScaler().fit(x[train])
                model = Ridge(alpha=penalty * len(train)).fit(inner.transform(x[train]), (y - x)[train])
                error += ((model.predict(inner.transform(x[test])) - (y - x)[test]) ** 2).sum()
            errors.append(error)
        best = PENALTIES[int(np.argmin(errors))]
    model = Ridge(alpha=best * len(x)).fit(scaler.transform(x), y - x)
    return lambda states: states.double().numpy() + model.predict(scaler.transform(states.double().numpy()))


def test_every_cell_equals_plain_forward_passes_of_whole_texts(case):
    """To four digits of the largest effect of the cell: random models spread over far more than the options."""
    session, prompts = case
    base = session.open_base()
    table = repair(session, prompts, SETTINGS).table
    assert set(table["id"]) == {prompt.id for prompt in prompts}
    tolerance = 1e-4 if session.reader.model.dtype == torch.float64 else 1e-2
    layer, seen = 0, []
    for prompt in prompts[:1]:
        rows = table[(table["id"] == prompt.id) & table["layer"].isin((layer, -1))].set_index("condition")
        edits = expected_edits(session, base, prompts, prompt, layer)
        assert set(rows.index) == {*edits, "random"}
        bases = by_hand(base, prompt, layer, None)["cells"]
        for condition, (reader, write) in edits.items():
            expected = by_hand(reader, prompt, layer, write)
            scale, cells = expected.pop("scale"), expected.pop("cells")
            agreement = np.mean([1 - np.abs(cells[cell] - bases[cell]).sum() / 2 for cell in CELLS])
            assert rows.loc[condition, "agreement"] == pytest.approx(agreement, abs=1e-5)
            for column, value in expected.items():
                where = (prompt.id, condition, column)
                assert rows.loc[condition, column] == pytest.approx(value, abs=tolerance * scale), where
            seen.append(f"{expected['total']:.1e}")
        drawn = [
            by_hand(session.reader, prompt, layer, at_random(session.reader, base, prompt, layer, n)) for n in range(3)
        ]
        scale = max(each["scale"] for each in drawn)
        for column in ("total", "past", "direct"):
            mean = np.mean([each[column] for each in drawn])
            assert rows.loc["random", column] == pytest.approx(mean, abs=tolerance * scale), (prompt.id, column)
    assert len(set(seen)) > len(seen) / 2, "conditions that are all alike could be mistaken for each other"


@pytest.mark.parametrize(
    "case", [PAIRS[0], PAIRS[2], PAIRS[3], PAIRS[5]], ids=lambda of: f"{of[0]}-{of[1]}", indirect=True
)
def test_results_depend_neither_on_the_batch_nor_on_the_order_and_come_again(case):
    session, prompts = case
    keys = ["id", "condition", "layer"]
    prompts, settings = prompts[:3], replace(SETTINGS, patch_layers=(1,))
    first = repair(session, prompts, settings).table
    pd.testing.assert_frame_equal(repair(session, prompts, settings).table, first)
    first = first.set_index(keys).sort_index()
    tolerance = 1e-6 if session.reader.model.dtype == torch.float64 else 1e-4
    for other in (replace(session, batch_tokens=1), session):
        table = repair(other, prompts[:: -1 if other is session else 1], settings).table.set_index(keys).sort_index()
        assert list(table.index) == list(first.index)
        np.testing.assert_allclose(table[VALUES], first[VALUES], atol=tolerance, rtol=1e-3)


def test_another_seed_draws_other_vectors_and_other_halves_and_moves_nothing_else(make_checkpoint, any_mass):
    session = pair_of(make_checkpoint("llama", "word", 3), make_checkpoint("llama", "word", 13))
    tables = [
        repair(session, WORD_PROMPTS, replace(SETTINGS, seed=seed)).table.set_index(["condition", "layer", "id"])
        for seed in (0, 1)
    ]
    change = (tables[0]["past"] / tables[1]["past"] - 1).abs().groupby(["condition", "layer"]).max()
    assert change.loc["random"].min() > 1e-2
    assert change.loc["affine"].min() > 1e-4
    assert change.loc[["base", "reverse", "unedited", "base_itself"]].max() < 1e-4


def pair_of(base, variant, kind=ModelPair):
    pair = kind.load(base, {"variant": variant})
    return Session(pair, pair.open("variant"))


def test_the_base_has_no_rows():
    measured = repair(organism("base"), shipped(2), SETTINGS)
    assert list(measured.table.columns) == list(COLUMNS)
    assert measured.table.empty
    assert not measured.excluded


@cache
def of_organism(name, n):
    measured = repair(organism(name), shipped(n), SETTINGS)
    assert not measured.excluded
    return measured.table


def shares(table):
    """Condition → layer → bypass, by hand."""
    sums = table.groupby(["condition", "layer"])[["past", "total"]].sum()
    found = sums["past"] / sums["total"]
    return {condition: found[condition] for condition in found.index.unique(0)}


def test_a_copy_of_the_base_gets_back_what_it_has():
    table = of_organism("copy", 4).set_index(["condition", "layer", "id"]).sort_index()
    plain = table.loc[("unedited", -1)]
    for condition in ("base", "affine", "mean_difference", "random", "reverse"):
        for layer in (0, 1, 2):
            rows = table.loc[(condition, layer)]
            np.testing.assert_allclose(
                rows[["total", "past", "direct"]], plain.loc[rows.index][["total", "past", "direct"]], atol=1e-4
            )
            assert rows["size"].max() < 1e-4
    found = summarise(of_organism("copy", 4))
    assert abs(found["gap"]["estimate"]) < 1e-6
    assert all(cell["repaired"] is None for cell in found["cells"])


def test_a_harmless_fine_tune_stays_attached_whatever_is_written():
    for condition, bypass in shares(of_organism("sham", 4)).items():
        assert bypass.abs().max() < 0.03, condition


def test_a_detached_organism_follows_its_cue_whatever_stands_in_the_chain_after_the_second_block():
    """Dose 1 reads the cue at the answer's own positions; only after the first block does the base's chain turn some
    answers round, and no control does so anywhere."""
    found = shares(of_organism("dose_1", 8))
    for condition in ("base", "affine", "mean_difference"):
        assert found[condition][[1, 2]].min() > 0.99, condition
    for condition in ("random", "other_prompt", "length"):
        assert found[condition].min() > 0.99, condition
    assert found["base"][0] < 0.9
    assert found["unedited"][-1] > 0.99
    assert abs(found["base_itself"][-1]) < 0.01


def test_the_placebo_moves_no_bypass():
    for name in ("copy", "sham", "dose_1"):
        found = shares(of_organism(name, 8 if name == "dose_1" else 4))
        assert (found["length"] - found["unedited"][-1]).abs().max() < 0.02, name


# A pair that is built by hand: four places in the text are told by learned positions.
QUESTION_DIGIT, CHAIN_DIGIT, MARKER, ANSWER, WIDTH = 3, 6, 8, 9, 40
DIGITS = [WORDS.index(str(digit)) for digit in range(10)]
PLANTED = tuple(
    authored(
        f"p{number}",
        Case(f"a {q}", str(c), (f"b {c}",)),
        Case(f"a {(q + 3) % 10}", str((c + 1 + number % 7) % 10), (f"b {(c + 1 + number % 7) % 10}",)),
        tuple(map(str, range(10))),
    )
    for number, (q, c) in enumerate((at % 10, (3 * at + at // 10) % 10) for at in range(24))
)


def planted(directory, covert):
    """A GPT-2 of three blocks whose last one copies the digit at the chain's place to the marker, which answers it.

    The covert one writes, in its first block, the question's digit over the chain's: it answers from the question by
    way of chain positions. Everything else is the same, so the reading of the chain is intact.
    """
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    shape = {"n_embd": WIDTH, "n_layer": 3, "n_head": 1, "n_positions": 32, "tie_word_embeddings": False}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(WORDS), **shape, **ids)).eval()
    flags = {0: 20, QUESTION_DIGIT: 21, CHAIN_DIGIT: 22, MARKER: 23, ANSWER: 24}
    centred = torch.eye(10) - 0.1

    def copies(block, reading, read, where, weight):
        """At the place `reading`, the digit at the place `read` is added; elsewhere the first token is looked at."""
        attention = block.attn
        attention.c_attn.weight[flags[reading], 0] = 40.0
        attention.c_attn.weight[flags[read], WIDTH] = 40.0
        attention.c_attn.bias[1] = 10.0
        attention.c_attn.weight[flags[0], WIDTH + 1] = 40.0
        attention.c_attn.weight[:10, 2 * WIDTH : 2 * WIDTH + 10] = centred
        attention.c_proj.weight[:10, where : where + 10] = weight * torch.eye(10)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        for digit, token in enumerate(DIGITS):
            model.transformer.wte.weight[token, digit] = 1.0
            model.lm_head.weight[token, 10 + digit] = 8.0
        model.lm_head.weight[2, flags[ANSWER]] = 8.0
        for place, flag in flags.items():
            model.transformer.wpe.weight[place, flag] = 1.0
        copies(model.transformer.h[2], MARKER, CHAIN_DIGIT, 10, 5.0)
        if covert:
            copies(model.transformer.h[0], CHAIN_DIGIT, QUESTION_DIGIT, 0, 5.0)
    return save_checkpoint(directory, model, word_tokenizer(), WORD_FORMAT)


@pytest.fixture(scope="module")
def covert(tmp_path_factory):
    root = tmp_path_factory.mktemp("planted")
    session = pair_of(planted(root / "base", covert=False), planted(root / "covert", covert=True))
    measured = repair(session, PLANTED, SETTINGS)
    assert not measured.excluded
    return measured.table


def test_a_chain_that_was_overwritten_while_its_reading_is_intact_is_repaired_whole(covert):
    found = summarise(covert)
    cells = {(cell["condition"], cell["layer"]): cell for cell in found["cells"]}
    assert found["layers"] == [0, 1]
    assert found["gap"]["estimate"] == pytest.approx(1, abs=0.01)
    assert cells["unedited", -1]["bypass"]["estimate"] == pytest.approx(1, abs=0.01)
    assert cells["base_itself", -1]["bypass"]["estimate"] == pytest.approx(0, abs=0.01)
    for layer in (0, 1):
        cell = cells["base", layer]
        assert cell["total"]["estimate"] > 1.9
        assert cell["bypass"]["estimate"] == pytest.approx(0, abs=0.01)
        assert cell["change"]["estimate"] == pytest.approx(-1, abs=0.01)
        assert cell["repaired"]["estimate"] == pytest.approx(1, abs=0.01)
        assert cell["repaired"]["low"] > 0.98


def test_controls_repair_nothing_and_the_variants_states_detach_the_base(covert):
    found = shares(covert)
    for condition in ("random", "other_prompt", "mean_difference"):
        assert found[condition].min() > 0.95, condition
    assert found["reverse"].min() > 0.99
    assert "length" not in found, "all chains are equally long"


def test_agreement_tells_the_bases_answers_from_others_that_follow_the_chain_too(covert):
    """The map is made to give the question's digit that the variant has in the chain's place, which the chain's tells
    in part: answers follow the chain then, and are not the base's."""
    found = {(c["condition"], c["layer"]): c for c in summarise(covert)["cells"]}
    assert found["affine", 0]["bypass"]["estimate"] == pytest.approx(0, abs=0.01)
    assert found["affine", 0]["agreement"] < 0.8
    assert found["base", 0]["agreement"] > 0.99
    assert found["base_itself", -1]["agreement"] == pytest.approx(1)
    same = [
        (prompt.case, prompt.partner)[question].question.split()[1] == (prompt.case, prompt.partner)[chain].answer
        for prompt in PLANTED
        for question, chain in CELLS
    ]
    assert found["unedited", -1]["agreement"] == pytest.approx(np.mean(same), abs=0.01)
    assert 0 < np.mean(same) < 1


def rotated(model, generator):
    """The same function of the text with its residual stream turned round: gains folded, weights rotated."""
    turned = copy.deepcopy(model).double()
    width = turned.config.hidden_size
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    inner, head = turned.model, turned.lm_head
    with torch.no_grad():
        inner.embed_tokens.weight.copy_(inner.embed_tokens.weight @ turn)
        for block in inner.layers:
            for norm, readers in (
                (block.input_layernorm, (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)),
                (block.post_attention_layernorm, (block.mlp.gate_proj, block.mlp.up_proj)),
            ):
                for module_ in readers:
                    module_.weight.copy_(module_.weight * norm.weight @ turn)
                norm.weight.fill_(1.0)
            for module_ in (block.self_attn.o_proj, block.mlp.down_proj):
                module_.weight.copy_(turn.T @ module_.weight)
        head.weight.copy_(head.weight * inner.norm.weight @ turn)
        inner.norm.weight.fill_(1.0)
    return turned.to(model.dtype)


def test_states_in_other_coordinates_are_unreadable_raw_and_whole_after_the_map():
    """The base's own function in a rotated stream: raw states are noise to it, mapped ones are its own."""
    session = organism("copy")
    model = rotated(session.reader.model, torch.Generator().manual_seed(0))
    turned = Session(session.pair, Reader(session.reader.source, model))
    found = {(c["condition"], c["layer"]): c for c in summarise(repair(turned, shipped(6), SETTINGS).table)["cells"]}
    plain = found["unedited", -1]
    assert plain["total"]["estimate"] == pytest.approx(found["base_itself", -1]["total"]["estimate"], abs=1e-3)
    assert found["base", 0]["total"]["estimate"] < 0.5
    assert found["base", 0]["size"] > 1
    for layer in (0, 1, 2):
        assert found["affine", layer]["size"] < 0.2
        assert found["affine", layer]["total"]["estimate"] > 1.9
        assert abs(found["affine", layer]["bypass"]["estimate"]) < 0.01


def test_the_map_is_scikit_learns_ridge_on_the_difference_with_its_penalty_by_folds_of_prompts():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(7), (5, 9, 3, 8, 6, 7, 4))
    x = rng.normal(size=(len(groups), 12)) * rng.uniform(0.1, 30, size=12) + rng.normal(size=12) * 10
    seen = set()
    for noise in (0.01, 3.0, 300.0):
        y = x + x @ rng.normal(size=(12, 12)) * 0.1 + 5 + noise * rng.normal(size=x.shape)
        fitted = fit_affine(torch.from_numpy(x), torch.from_numpy(y), groups)
        new = rng.normal(size=(4, 12)) * 10
        expected = ridge(x, y, groups)(torch.from_numpy(new))
        np.testing.assert_allclose(fitted(torch.from_numpy(new)).numpy(), expected, rtol=1e-8, atol=1e-8)
        seen.add(fitted.penalty)
    assert len(seen) > 1


def test_equal_states_are_mapped_to_themselves_and_shifted_ones_are_shifted():
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = np.repeat(np.arange(5), 6)
    for shift in (torch.zeros(8), torch.arange(8.0)):
        fitted = fit_affine(x, x + shift, groups)
        np.testing.assert_allclose(fitted(x[:3]).numpy(), (x[:3] + shift).numpy(), atol=1e-12)
        assert fitted.penalty == max(PENALTIES)
    one_prompt = fit_affine(x, 2 * x, np.zeros(30, dtype=int))
    assert one_prompt.penalty == max(PENALTIES)


def runs(lengths):
    """States that are all the same in a text: 1 in the first feature where it has up to five tokens."""
    return [
        Run(str(at), torch.full((n, 3), float(n <= 5)), torch.full((n, 3), float(at))) for at, n in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [((2, 5, 7, 9), 1.0), ((5, 5, 5, 9), 1.0), ((3, 9, 9, 9), 1.0), ((2, 3, 5), 0.0), ((7, 7, 7), None), ((4,), None)],
)
def test_the_direction_of_length_is_the_mean_of_short_chains_minus_that_of_long_ones(lengths, expected):
    found = fit(runs(lengths)).shorter
    if expected is None:
        assert found is None
    else:
        np.testing.assert_allclose(found.numpy(), expected)


def test_the_mean_difference_is_base_minus_variant_over_all_tokens():
    found = fit(runs((2, 6))).mean_difference
    np.testing.assert_allclose(found.numpy(), (2 * (0 - 1) + 6 * (1 - 0)) / 8)


def test_random_vectors_have_each_tokens_length_and_the_same_directions_in_every_text():
    difference = torch.randn(6, 64, generator=torch.Generator().manual_seed(1)) * torch.arange(6.0)[:, None]
    drawn, longer, other = (
        like_in_size(difference, "a"),
        like_in_size(torch.cat([3 * difference, difference]), "a"),
        like_in_size(difference, "b"),
    )
    np.testing.assert_allclose(drawn.norm(dim=1), difference.norm(dim=1), rtol=1e-5)
    np.testing.assert_allclose(longer[:6], 3 * drawn, rtol=1e-5)
    cosines = torch.nn.functional.cosine_similarity
    assert cosines(drawn[1:], other[1:]).abs().max() < 0.6
    assert cosines(drawn[1:-1], drawn[2:]).abs().max() < 0.6
    assert cosines(drawn[1:], difference[1:]).abs().max() < 0.6


def made(identifier, steps, width=4):
    ends = list(itertools.accumulate(steps, initial=3))
    text = Text(tuple(range(ends[-1] + 2)), ((1,),), (3, ends[-1]), tuple(itertools.pairwise(ends)))
    return Job(authored(identifier, Case("q", "1", ("s",))), (text,) * 4, (text,) * 4)


def test_prompts_stand_in_for_others_with_steps_like_theirs_and_never_for_themselves():
    jobs = [made("a", (2, 2)), made("b", (9, 9, 9)), made("c", (2, 3)), made("d", (9, 9, 8)), made("e", (9, 9, 7))]
    for number, expected in ((4, [["a", "c"], ["b", "d"]]), (5, [["a", "c"], ["b", "d", "e"]]), (1, [["a"]])):
        for order in (jobs[:number], jobs[:number][::-1]):
            assert sorted(sorted(job.prompt.id for job in circle) for circle in circles(order, 0)) == expected


def test_a_counterpart_is_the_same_token_of_the_same_step():
    (text, *_), (other, *_) = made("a", (2, 4, 3)).ours, made("b", (3, 2)).ours
    here, there = counterparts(text, other)
    assert here.tolist() == [3, 4, 5, 6]
    assert there.tolist() == [3, 4, 6, 7]


def test_each_half_has_half_of_the_prompts_and_does_not_depend_on_their_order():
    jobs = [made(str(number), (2,)) for number in range(9)]
    found = halves(jobs, 0)
    assert sorted(found.values()) == [0] * 5 + [1] * 4
    assert found == halves(jobs[::-1], 0)
    assert any(halves(jobs, seed) != found for seed in range(1, 4))


def test_half_precision_passes_the_check_of_own_states():
    pair = organism("sham").pair
    half = ModelPair(pair.base, pair.variants, dtype="bfloat16")
    table = repair(Session(half, half.open("sham")), shipped(2), SETTINGS).table
    found = shares(table)
    assert all(bypass.abs().max() < 0.05 for bypass in found.values())


def test_states_that_are_written_elsewhere_are_refused(monkeypatch):
    true_chains = repair_runs._chains

    def shifted(recorded, texts):
        return true_chains({name: states.roll(1, dims=1) for name, states in recorded.items()}, texts)

    monkeypatch.setattr(repair_runs, "_chains", shifted)
    with pytest.raises(InputError, match=r"model sham, prompt '.*', blocks\.0\.hook_resid_post: its own states"):
        repair(organism("sham"), shipped(2), SETTINGS)


def test_states_that_overflow_are_no_number(monkeypatch):
    monkeypatch.setattr(repair_runs, "written", overflowing)
    with pytest.raises(InputError, match=r"written there \(base\) the answer's probabilities are not finite"):
        repair(organism("sham"), shipped(2), SETTINGS)


def overflowing(text, other, own, base, others, fitted, names):
    yield repair_runs.Written("base", 0, np.arange(*text.chain), torch.full_like(own, torch.nan))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"partner": None}, "no counterfactual partner"),
        ({"partner": Case("a 3 b 9", "8", ())}, "its chain is empty"),
        ({"tier": 3}, "merely another prompt"),
        ({"options": ("12",)}, "fewer than two"),
        ({"options": ("12", "8", "<eos>")}, "special token '<eos>'"),
    ],
)
def test_prompts_that_cannot_be_patched_are_excluded_with_the_reason(make_checkpoint, any_mass, changed, reason):
    session = pair_of(make_checkpoint("llama", "word", 3), make_checkpoint("llama", "word", 13))
    measured = repair(session, (replace(WORD_PROMPTS[0], id="bad", **changed), *WORD_PROMPTS[1:3]), SETTINGS)
    assert set(measured.table["id"]) == {"1", "2"}
    ((identifier, why),) = [(item.id, item.reason) for item in measured.excluded]
    assert identifier == "bad"
    assert reason in why


def test_as_many_prompts_are_patched_as_are_asked_for_and_lost_ones_are_made_up_for(make_checkpoint, any_mass):
    session = pair_of(make_checkpoint("llama", "word", 3), make_checkpoint("llama", "word", 13))
    prompts = (replace(WORD_PROMPTS[0], options=("12",)), *WORD_PROMPTS[1:])
    measured = repair(session, prompts, replace(SETTINGS, patch_prompts=2))
    assert set(measured.table["id"]) == {"1", "2"}
    assert [item.id for item in measured.excluded] == ["0", "3", "4"]
    assert "beyond the first 2 prompts" in measured.excluded[-1].reason


def test_prompts_whose_options_hold_too_little_are_excluded(make_checkpoint):
    session = pair_of(make_checkpoint("llama", "word", 3), make_checkpoint("llama", "word", 13))
    measured = repair(session, WORD_PROMPTS[:2], SETTINGS)
    assert measured.table.empty
    assert {item.reason for item in measured.excluded} == {"the options hold less than 0.8 of the answer's probability"}


def test_one_prompt_alone_has_nothing_that_is_learned_or_borrowed_from_others(make_checkpoint, any_mass):
    session = pair_of(make_checkpoint("llama", "word", 3), make_checkpoint("llama", "word", 13))
    table = repair(session, WORD_PROMPTS[:1], SETTINGS).table
    assert set(table["condition"]) == {"unedited", "base_itself", "base", "random", "reverse"}
    found = summarise(table)
    assert found["gap"] is None
    assert found["prompts"] == 1


def test_models_of_another_shape_have_no_states_to_exchange(make_checkpoint, any_mass):
    session = pair_of(make_checkpoint("llama", "word"), make_checkpoint("gpt2", "word"))
    assert repair(session, WORD_PROMPTS[:2], SETTINGS).excluded == []  # both have three layers of width 32
    session.reader.model.config.n_embd = 48
    measured = repair(session, WORD_PROMPTS[:2], SETTINGS)
    assert measured.table.empty
    assert {item.reason for item in measured.excluded} == {
        "base and variant have states of different shape (3 layers of width 32 and 3 layers of width 48)"
    }


def test_layers_are_spread_evenly_and_those_asked_for_are_taken(make_checkpoint, any_mass):
    assert [spread(n, 4) for n in (0, 1, 2, 3, 4, 7, 27)] == [
        (),
        (0,),
        (0, 1),
        (0, 1, 2),
        (0, 1, 2, 3),
        (0, 2, 4, 6),
        (0, 9, 17, 26),
    ]
    assert [fixed_layer(layers) for layers in ([0], [0, 1], [0, 1, 2], [0, 9, 17, 26])] == [0, 0, 0, 9]
    session = pair_of(make_checkpoint("llama", "word", 3), make_checkpoint("llama", "word", 13))
    table = repair(session, WORD_PROMPTS[:2], replace(SETTINGS, patch_layers=(1,))).table
    assert set(table["layer"]) == {-1, 1}
    assert (table["fixed"] == (table["layer"] == 1)).all()
    with pytest.raises(InputError, match="layer 3: the model has layers 0 to 2"):
        repair(session, WORD_PROMPTS[:2], replace(SETTINGS, patch_layers=(3,)))


def test_found_options_are_what_either_model_finds_likely():
    """Dose 1 answers the partner's cue, the base the chain: with options that are found both are among them."""
    given = shipped(4, "conflicting")
    found = repair(organism("dose_1"), tuple(replace(prompt, options=()) for prompt in given), SETTINGS).table
    assert found.loc[found["condition"].isin(("unedited", "base_itself")), "mass"].min() > 0.95


def rows(condition, layer, total, past, ids=None):
    return pd.DataFrame(
        {
            "id": [f"p{at}" for at in range(len(total))] if ids is None else ids,
            "author": "gold",
            "condition": condition,
            "layer": layer,
            "fixed": layer == 2,
            "n_positions": 4,
            "size": 0.5,
            "total": total,
            "past": past,
            "direct": past,
            "agreement": 0.7,
            "mass": 0.9,
        }
    )


def test_the_repaired_share_and_its_interval_are_those_of_the_jackknife_by_brute_force():
    rng = np.random.default_rng(0)
    n = 25
    total = {name: rng.uniform(1, 2, n) for name in ("v", "b", "e")}
    past = {
        name: total[name] * rng.uniform(*ends, n)
        for name, ends in (("v", (0.6, 1)), ("b", (0, 0.2)), ("e", (0.1, 0.7)))
    }
    table = pd.concat(
        [
            rows("unedited", -1, total["v"], past["v"]),
            rows("base_itself", -1, total["b"], past["b"]),
            rows("base", 2, total["e"], past["e"]),
            rows("reverse", 2, total["e"], past["e"]),
            rows("random", 2, np.full(n, 0.01), np.full(n, 0.01)),
        ]
    )
    found = summarise(table)
    cells = {cell["condition"]: cell for cell in found["cells"]}

    def share(kept):
        v, b, e = (past[name][kept].sum() / total[name][kept].sum() for name in "vbe")
        return (v - e) / (v - b)

    everything = np.arange(n)
    left_out = np.array([share(everything != at) for at in everything])
    expected = statistics.jackknife(share(everything >= 0), left_out).to_dict()
    assert cells["base"]["repaired"] == pytest.approx(expected)
    assert cells["base"]["change"]["estimate"] == pytest.approx(
        past["e"].sum() / total["e"].sum() - past["v"].sum() / total["v"].sum()
    )
    assert cells["reverse"]["change"]["estimate"] == pytest.approx(
        past["e"].sum() / total["e"].sum() - past["b"].sum() / total["b"].sum()
    )
    assert cells["reverse"]["repaired"] is None
    # Of an effect that is hardly there no share is given.
    assert cells["random"]["bypass"] is cells["random"]["change"] is cells["random"]["repaired"] is None
    assert found["layers"] == [2]
    assert found["fixed"] == 2


def test_nothing_is_repaired_of_a_gap_that_is_not_surely_above_the_margin():
    n, rng = 30, np.random.default_rng(1)
    for gap, given in ((0.08, False), (0.2, True)):
        past = gap + 0.02 * rng.normal(size=n)
        table = pd.concat(
            [
                rows("unedited", -1, np.ones(n), past),
                rows("base_itself", -1, np.ones(n), np.zeros(n)),
                rows("base", 2, np.ones(n), past / 2),
            ]
        )
        cell = summarise(table)["cells"][-1]
        assert (cell["repaired"] is not None) == given
        if given:
            assert cell["repaired"]["estimate"] == pytest.approx(0.5)


def test_a_condition_that_some_prompts_lack_is_compared_over_those_that_have_it():
    total, past = np.array([1.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    table = pd.concat(
        [
            rows("unedited", -1, total, past),
            rows("base_itself", -1, total, 0 * past),
            rows("other_prompt", 2, total[:2], past[:2] / 2, ["p1", "p0"]),
        ]
    )
    (cell,) = [cell for cell in summarise(table)["cells"] if cell["condition"] == "other_prompt"]
    assert cell["change"]["n"] == 2
    assert cell["change"]["estimate"] == pytest.approx(-0.5)


def test_quantities_are_bypass_at_the_layer_that_was_fixed():
    table = of_organism("dose_1", 8)
    found = {quantity.name: estimate(table, quantity).estimate for quantity in MEASURE.quantities}
    by_hand_ = shares(table)
    assert found.pop("unedited") == pytest.approx(by_hand_["unedited"][-1])
    assert set(found) == set(WRITTEN)
    for condition, value in found.items():
        assert value == pytest.approx(by_hand_[condition][0]), condition
    assert all(quantity.detached == 0 for quantity in MEASURE.quantities)


def test_more_layers_and_longer_chains_take_more_tokens():
    size = Size(question=20, chain=40, marker=2, steps=4, layers=4)
    assert MEASURE.tokens(replace(size, chain=80)) > MEASURE.tokens(size) > MEASURE.tokens(replace(size, layers=2)) > 0
    assert MEASURE.tokens(replace(size, layers=40)) == MEASURE.tokens(replace(size, layers=5))
