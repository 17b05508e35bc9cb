"""Erasing and steering against plain hooked passes over whole texts, and on organisms whose use of a cue is known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import kv_cache, sites
from analysis.errors import InputError
from analysis.measures import session as session_module
from analysis.prompts import Case
from probes.causal_use import erasure_use, random_directions, steering_use
from probes.erasure import Eraser, leace, random_erasers
from tests.analysis.measures.oracles import authored, doubled, organism, shipped, tokens_of

OPTIONS = ("12", "8", "6 ; 7", "27")
WORDS = (
    authored("two", Case("a 7 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6")), None, OPTIONS),
    authored("long", Case("a 7 b 2 c 9 a 1 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6", "c 9 - 1 = 8")), None, OPTIONS),
    authored("one", Case("b 4", "12", ("b 4 * 3 = 12",)), None, OPTIONS),
)
WIDTH = 32
# Each with tokens of the three texts; after the last block only the token before the answer acts.
PLACES = {
    "blocks.0.hook_resid_pre": (1, 5, 3),
    "blocks.1.hook_resid_post": (9, 4, 2),
    "blocks.2.hook_resid_post": (-1, -1, -1),
}


@pytest.fixture(autouse=True)
def _any_mass(monkeypatch):
    """Random models spread over more than the options; the organisms' options hold all there is."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(make_checkpoint):
    return doubled(make_checkpoint("llama", "word", 3))


def tokens_at(session, hook):
    ends = [tokens_of(session.reader, prompt.case, "12")[1] for prompt in WORDS]
    return [end + place if place < 0 else place for end, place in zip(ends, PLACES[hook], strict=True)]


@torch.no_grad()
def by_hand(reader, prompt, hook, token, change):
    """`LP` among the options with a changed activation: one whole text an option, a plain hook, no cache."""
    site, layer = sites.parse_hook_name(hook)
    block = reader.model.model.layers[layer]
    scores = []
    for option in prompt.options:
        ids, first = tokens_of(reader, prompt.case, option)

        def write(stream):
            new = stream.clone()
            new[0, token] = torch.from_numpy(change(stream[0, token].numpy()))
            return new

        if site == "resid_pre":
            handle = block.register_forward_pre_hook(
                lambda _, args, kwargs, write=write: ((write(args[0]), *args[1:]), kwargs), with_kwargs=True
            )
        else:
            handle = block.register_forward_hook(lambda _, __, output, write=write: write(output))
        logprobs = reader.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        handle.remove()
        scores.append(sum(float(logprobs[at - 1, ids[at]]) for at in range(first, len(ids))))
    scores = np.array(scores)
    return scores - np.log(np.exp(scores).sum())


def some_erasers(n, rank=2, seed=0):
    """Maps of no meaning, all of which remove much; as large in the mean as one another."""
    rng = np.random.default_rng(seed)
    return [
        Eraser(np.ones(WIDTH), rng.standard_normal((WIDTH, rank)), rng.standard_normal((rank, WIDTH))) for _ in range(n)
    ]


def matched(session, hook, erasers):
    """The same maps, scaled so that all remove from these activations as much as the first."""
    x = activations_at(session, WORDS, hook, tokens_at(session, hook))
    first = erasers[0].removed_variance(x)
    return [Eraser(e.mean, e.left * np.sqrt(first / e.removed_variance(x)), e.right) for e in erasers]


@torch.no_grad()
def activations_at(session, prompts, hook, tokens):
    """The activation of each prompt at its token, each text alone."""
    found = []
    for prompt, token in zip(prompts, tokens, strict=True):
        ids, first = tokens_of(session.reader, prompt.case, prompt.case.answer)
        with sites.recorded(session.reader.model, [hook]) as kept:
            kv_cache.read(session.reader.model, [ids[:first]])
        found.append(kept[hook][0, token].double().numpy())
    return np.array(found)


@pytest.mark.parametrize("hook", PLACES)
def test_erasure_equals_plain_hooks_on_whole_texts(tiny, hook):
    erasers, tokens = matched(tiny, hook, some_erasers(21)), tokens_at(tiny, hook)
    effects, distances = np.empty((3, 21)), np.empty((3, 21))
    answers = []
    for row, (prompt, token) in enumerate(zip(WORDS, tokens, strict=True)):
        own = by_hand(tiny.reader, prompt, hook, token, lambda x: x)
        answers.append(OPTIONS[own.argmax()])
        for column, eraser in enumerate(erasers):
            new = by_hand(tiny.reader, prompt, hook, token, lambda x, e=eraser: e.erase(x[None])[0])
            effects[row, column] = own[own.argmax()] - new[own.argmax()]
            distances[row, column] = np.abs(np.exp(new) - np.exp(own)).sum() / 2
    assert np.abs(effects).max() > 0.1
    for batch_tokens in (16384, 1):
        used = erasure_use(replace(tiny, batch_tokens=batch_tokens), WORDS, tokens, hook, erasers[0], erasers[1:])
        table = used.table
        assert list(table["id"]) == [prompt.id for prompt in WORDS]
        assert list(table["answer"]) == answers
        assert list(table["token"]) == tokens
        np.testing.assert_allclose(table["effect"], effects[:, 0], atol=1e-4)
        np.testing.assert_allclose(table["distance"], distances[:, 0], atol=1e-4)
        np.testing.assert_allclose(table["control_effect"], effects[:, 1:].mean(1), atol=1e-4)
        np.testing.assert_allclose(table["control_distance"], distances[:, 1:].mean(1), atol=1e-4)
        np.testing.assert_allclose(used.controls, effects[:, 1:].mean(0), atol=1e-4)
        assert used.effect.estimate == pytest.approx(effects[:, 0].mean(), abs=1e-4)
        assert used.excess.estimate == pytest.approx((effects[:, 0] - effects[:, 1:].mean(1)).mean(), abs=1e-4)
        # Of 20 draws the 95th percentile is the largest.
        assert used.threshold == pytest.approx(effects[:, 1:].mean(0).max(), abs=1e-4)
        assert used.p == ((effects[:, 1:].mean(0) >= effects[:, 0].mean()).sum() + 1) / 21


@pytest.mark.parametrize("hook", PLACES)
def test_steering_equals_plain_hooks_on_whole_texts(tiny, hook):
    tokens = tokens_at(tiny, hook)
    x = activations_at(tiny, WORDS, hook, tokens)
    vectors = np.random.default_rng(0).standard_normal((3, WIDTH)) * 2
    controls = random_directions(x, vectors, 20, seed=0)
    own = [by_hand(tiny.reader, p, hook, token, lambda x: x) for p, token in zip(WORDS, tokens, strict=True)]
    # The least probable option is never the reader's own.
    targets = [OPTIONS[scores.argmin()] for scores in own]
    used = steering_use(tiny, WORDS, tokens, hook, vectors, targets, controls)
    for row, (prompt, token, before) in enumerate(zip(WORDS, tokens, own, strict=True)):
        effects, moved = [], []
        for added in (vectors[row], *controls[:, row]):
            after = by_hand(tiny.reader, prompt, hook, token, lambda x, added=added: x + added)
            to, of = before.argmin(), before.argmax()
            effects.append((after[to] - after[of]) - (before[to] - before[of]))
            moved.append(after.argmax() == to)
        found = used.table.iloc[row]
        assert found["effect"] == pytest.approx(effects[0], abs=1e-4)
        assert found["control_effect"] == pytest.approx(np.mean(effects[1:]), abs=1e-4)
        assert found["moved"] == moved[0]
        assert found["control_moved"] == pytest.approx(np.mean(moved[1:]))
        assert found["norm"] == pytest.approx(np.linalg.norm(vectors[row]))
        assert found["control_norm"] == pytest.approx(found["norm"])
    assert used.moved.estimate == used.table["moved"].mean()


def test_an_eraser_that_removes_nothing_has_no_effect(tiny):
    nothing = [Eraser(np.ones(WIDTH), np.zeros((WIDTH, 0)), np.zeros((0, WIDTH)))] * 21
    identity = [Eraser(np.ones(WIDTH), np.zeros((WIDTH, 2)), np.ones((2, WIDTH)))] * 21
    for hook in PLACES:
        for erasers in (nothing, identity):
            used = erasure_use(tiny, WORDS, tokens_at(tiny, hook), hook, erasers[0], erasers[1:])
            assert (used.table[["effect", "distance", "norm"]].abs() <= 1e-5).all(axis=None)
            assert not used.used


def one_hot(values):
    return np.eye(10)[np.array(values)]


def hint(prompt):
    return int(prompt.case.question.split()[1])


HINT = 3
"""`<bos> Q hint 7`: the cue's token."""


@cache
def hint_use(name, hook):
    """Erasing the cue at its own token, in an early layer; 12 prompts, the eraser fitted on others.

    There are only ten activations at that token: controls come from the covariance of all tokens of the question.
    """
    session = organism(name)
    prompts, training = shipped(60, "random")[:12], shipped(60, "random")[12:]
    with sites.recorded(session.reader.model, [hook]) as kept:
        kv_cache.read(session.reader.model, [tokens_of(session.reader, p.case, "1")[0][:20] for p in training])
    streams = kept[hook].double().numpy()
    eraser = leace(streams[:, HINT], one_hot([hint(p) for p in training]))
    assert eraser.rank == 9
    x = activations_at(session, prompts, hook, [HINT] * 12)
    controls = random_erasers(x, eraser, 30, seed=0, within=streams[:, 1:].reshape(-1, streams.shape[-1]))
    return erasure_use(session, prompts, [HINT] * 12, hook, eraser, controls)


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"])
def test_the_cue_is_used_by_the_reader_that_was_trained_to_follow_it_and_not_by_the_base(hook):
    follows, base = hint_use("dose_1", hook), hint_use("base", hook)
    assert [row["answer"] for row in follows.table.to_dict("records")] == [
        str(hint(prompt)) for prompt in shipped(60, "random")[:12]
    ]
    assert follows.used
    assert follows.effect.low > 2
    assert follows.p == pytest.approx(1 / 31)
    assert follows.table["distance"].mean() > 0.7
    assert not base.used
    assert abs(base.effect.estimate) < 1e-2
    assert base.table["distance"].max() < 1e-2


@cache
def answer_activations(hook):
    """The base's activations where the answer is read, of training and of held-out prompts, with the held-out ends."""
    base = organism("base")
    everything = (*shipped(12, "random"), *shipped(200, "conflicting"), *shipped(200, "agreeing"))
    rows = [tokens_of(base.reader, p.case, "1") for p in everything]
    found = []
    for start in range(0, len(rows), 50):
        part = rows[start : start + 50]
        with sites.recorded(base.reader.model, [hook]) as kept:
            kv_cache.read(base.reader.model, [ids[:first] for ids, first in part])
        found += [kept[hook][at, first - 1].double().numpy() for at, (_, first) in enumerate(part)]
    labels = [int(p.case.answer) for p in everything]
    return np.array(found[12:]), np.array(labels[12:]), np.array(found[:12]), [first - 1 for _, first in rows[:12]]


ANSWER_HOOK = "blocks.2.hook_resid_post"


def test_erasing_the_answer_where_it_is_read_moves_it_and_random_erasers_do_not():
    training, labels, x, ends = answer_activations(ANSWER_HOOK)
    eraser = leace(training, one_hot(labels))
    controls = random_erasers(x, eraser, 30, seed=0, within=training)
    used = erasure_use(organism("base"), shipped(12, "random"), ends, ANSWER_HOOK, eraser, controls)
    assert used.used
    assert used.effect.estimate > 2 * used.threshold
    assert used.table["distance"].mean() > 2 * used.table["control_distance"].mean()
    # A random eraser among the others is one of them.
    null = erasure_use(organism("base"), shipped(12, "random"), ends, ANSWER_HOOK, controls[0], controls[1:])
    assert not null.used
    assert null.p > 0.05


def test_erasers_matched_on_other_rows_than_are_erased_are_refused():
    """Random subspaces overfit: matched on few training rows they take out more of new ones."""
    training, labels, _, ends = answer_activations(ANSWER_HOOK)
    eraser = leace(training[:150], one_hot(labels[:150]))
    controls = random_erasers(training[:150], eraser, 20, seed=0)
    with pytest.raises(InputError, match="times as much"):
        erasure_use(organism("base"), shipped(12, "random"), ends, ANSWER_HOOK, eraser, controls)


def test_steering_leads_to_the_target_and_directions_of_equal_norm_do_not():
    training, labels, _, ends = answer_activations(ANSWER_HOOK)
    means = np.array([training[labels == value].mean(0) for value in range(10)])
    prompts = shipped(12, "random")
    truth = np.array([int(p.case.answer) for p in prompts])
    targets = (truth + 3) % 10
    vectors = means[targets] - means[truth]
    controls = random_directions(training, vectors, 30, seed=0)
    used = steering_use(
        organism("base"), prompts, ends, ANSWER_HOOK, vectors, [str(value) for value in targets], controls
    )
    assert used.used
    assert used.moved.estimate == 1
    assert used.table["control_moved"].max() < 0.1
    assert used.effect.low > used.threshold
    null = steering_use(
        organism("base"), prompts, ends, ANSWER_HOOK, controls[0], [str(value) for value in targets], controls[1:]
    )
    assert null.moved.estimate == 0
    assert null.effect.high < 0.3 * used.effect.low


def test_random_directions_are_as_long_orthogonal_and_where_activations_vary():
    rng = np.random.default_rng(0)
    scales = np.array([3.0, 1.0, 0.5, 0.0])
    x = rng.standard_normal((4000, 4)) * scales + 5
    like = np.array([[1.0, 0, 0, 0], [0, 2.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 0]])
    draws = random_directions(x, like, 4000, seed=1)
    np.testing.assert_allclose(np.linalg.norm(draws, axis=2), np.broadcast_to([1, 2, 1, 0], (4000, 4)), atol=1e-9)
    np.testing.assert_allclose((draws * like).sum(2), 0, atol=1e-9)
    np.testing.assert_allclose(draws[:, :, 3], 0, atol=1e-9)
    np.testing.assert_array_equal(draws[:, 0], draws[:, 2])
    # Beside the first axis the second and third remain: for a normal pair of deviations s and t the mean squared
    # cosine is s / (s + t).
    assert np.mean(draws[:, 0, 1] ** 2) == pytest.approx(1 / 1.5, abs=0.02)
    assert np.mean(draws[:, 1, 0] ** 2) / 4 == pytest.approx(3 / 3.5, abs=0.02)
    assert abs(np.mean(draws[:, 0, 1])) < 0.05
    np.testing.assert_array_equal(random_directions(x, like, 2, seed=1), draws[:2])
    assert np.abs(random_directions(x, like, 1, seed=2) - draws[:1]).max() > 1e-3


def test_directions_that_no_activation_has_are_refused():
    line = np.outer(np.arange(5.0), [1.0, 2.0])
    with pytest.raises(InputError, match="along a vector only"):
        random_directions(line, np.array([[1.0, 2.0]]), 3, seed=0)
    with pytest.raises(InputError, match=r"must be \[row, width\]"):
        random_directions(line, np.ones((2, 3)), 3, seed=0)


def test_prompts_without_a_choice_or_a_new_target_are_excluded_with_the_reason(tiny):
    hook = "blocks.1.hook_resid_post"
    erasers = matched(tiny, hook, some_erasers(21))
    single = replace(WORDS[0], id="single", options=("12",))
    used = erasure_use(tiny, (single, *WORDS), [3, *tokens_at(tiny, hook)], hook, erasers[0], erasers[1:])
    assert [(item.id, item.reason) for item in used.excluded] == [
        ("single", "fewer than two different answers to choose from")
    ]
    assert used.effect.n == 3
    assert used.effect.n_excluded == 1
    vectors = np.ones((3, WIDTH))
    controls = random_directions(np.random.default_rng(0).standard_normal((99, WIDTH)), vectors, 20, seed=0)
    own = dict(zip(used.table["id"], used.table["answer"], strict=True))
    other = next(option for option in OPTIONS if option != own["one"])
    steered = steering_use(tiny, WORDS, [3] * 3, hook, vectors, [own["two"], "99", other], controls)
    assert {item.id: item.reason for item in steered.excluded} == {
        "two": "the target is its own answer",
        "long": "the target is not among its options",
    }
    assert list(steered.table["target"]) == [other]


def test_vectors_follow_their_prompts_past_those_that_are_excluded(tiny):
    hook, tokens = "blocks.1.hook_resid_post", tokens_at(tiny, "blocks.1.hook_resid_post")
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((3, WIDTH))
    controls = random_directions(rng.standard_normal((99, WIDTH)), vectors, 20, seed=0)
    own = erasure_use(tiny, WORDS, tokens, hook, *(lambda e: (e[0], e[1:]))(matched(tiny, hook, some_erasers(21))))
    targets = [next(o for o in OPTIONS if o != answer) for answer in own.table["answer"]]
    whole = steering_use(tiny, WORDS, tokens, hook, vectors, targets, controls).table
    fewer = steering_use(tiny, WORDS, tokens, hook, vectors, ["99", *targets[1:]], controls).table
    pd.testing.assert_frame_equal(fewer, whole.iloc[1:].reset_index(drop=True), atol=1e-6)


def test_an_activation_that_is_not_what_stood_there_is_refused(monkeypatch):
    """Recorded one token off: written back it changes the answer."""
    training, labels, x, ends = answer_activations(ANSWER_HOOK)
    eraser = leace(training, one_hot(labels))
    controls = random_erasers(x, eraser, 20, seed=0, within=training)
    real = sites.recorded

    def shifted(model, names, pick=None):
        return real(model, names, lambda value: value.roll(1, dims=1))

    monkeypatch.setattr(sites, "recorded", shifted)
    with pytest.raises(InputError, match="written back changes its answer"):
        erasure_use(organism("base"), shipped(12, "random"), ends, ANSWER_HOOK, eraser, controls)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook": "blocks.1.hook_mlp_out"}, "expected resid_pre or resid_post"),
        ({"hook": "blocks.3.hook_resid_post"}, "layers 0 to 2"),
        ({"hook": "blocks.2.hook_resid_post"}, "nothing else reads token 3"),
        ({"tokens": (3, 3, 60)}, "not before its answer"),
        ({"tokens": (3, -1, 3)}, "not before its answer"),
        ({"tokens": (3, 3)}, "2 tokens for 3 prompts"),
        ({"prompts": (WORDS[0], *WORDS[:2])}, "different ids"),
        ({"n": 20}, "19 controls"),
        ({"rank": 3}, "rank 2"),
    ],
)
def test_what_cannot_be_tested_is_refused(tiny, changes, message):
    given = {"prompts": WORDS, "tokens": (3, 3, 3), "hook": "blocks.1.hook_resid_post", "n": 21, "rank": 2} | changes
    erasers = some_erasers(given["n"])
    first = some_erasers(1, given["rank"])[0]
    with pytest.raises(InputError, match=message):
        erasure_use(tiny, given["prompts"], given["tokens"], given["hook"], first, erasers[1:])


@pytest.mark.parametrize(
    ("vectors", "controls", "length", "message"),
    [
        ((3, 32), (20, 3, 32), 2, "as long as"),
        ((3, 32), (20, 2, 32), 1, "expected"),
        ((3, 32), (3, 32), 1, "expected"),
        ((4, 32), (20, 4, 32), 1, "expected"),
        ((3, 1), (20, 3, 1), 1, "expected"),
    ],
)
def test_vectors_and_controls_that_do_not_match_are_refused(tiny, vectors, controls, length, message):
    with pytest.raises(InputError, match=message):
        steering_use(
            tiny,
            WORDS,
            [3] * 3,
            "blocks.1.hook_resid_post",
            np.ones(vectors),
            OPTIONS[:3],
            np.full(controls, float(length)),
        )
