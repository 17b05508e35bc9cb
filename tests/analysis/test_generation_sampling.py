"""Samples: drawn from the right distribution, each by its own question and seed alone; and what cuts a text short."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from analysis.cells import Excluded
from analysis.errors import InputError
from analysis.generation import GREEDY, GumbelNoise, Sampling, parse, write_chains
from analysis.models import ModelPair
from analysis.prompts import Case
from analysis.trace_format import BUILT_IN, TraceFormat

QUESTIONS = ["a 7 b 2", "a 3 b 9 c 1 a 4", "b 1", "a 2 + 5 * 3 - 1 ; b 4", "c 2 + 5"]


def reader_of(directory: Path):
    return ModelPair.load(directory, {"copy": directory}).open("copy")


@pytest.fixture(scope="module")
def reader(make_checkpoint):
    """Its logits are made flatter than the fixture's, so that samples differ."""
    reader = reader_of(make_checkpoint("llama", "word"))
    with torch.no_grad():
        reader.model.lm_head.weight.mul_(0.3)
    return reader


def test_noise_makes_the_argmax_a_draw_from_the_softmax():
    """Chi-square over 4000 seeds against the closed form; at half of it a draw twice as warm is refused."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5]])
    draws = [int(GumbelNoise(seed, [[5, 6]])(torch.zeros(1, 0), logits).argmax()) for seed in range(4000)]
    counts = np.bincount(draws, minlength=5)
    expected = logits[0].double().softmax(-1).numpy()
    assert stats.chisquare(counts, expected * len(draws)).pvalue > 1e-3
    warm = (logits[0].double() / 2).softmax(-1).numpy()
    assert stats.chisquare(counts, warm * len(draws)).pvalue < 1e-6


def test_first_tokens_are_drawn_from_the_model_s_own_distribution(reader):
    """End to end over 300 questions, at temperature 1.5 among the six most probable tokens.

    The surprise of a draw, −log p, has the entropy as its mean; the greedy choice falls short of it by far.
    """
    words = [word for word in reader.encoder.tokenizer.get_vocab() if word.isalnum()]
    rng = np.random.default_rng(0)
    questions = [" ".join(rng.choice(words, 4)) for _ in range(300)]
    ids = torch.tensor([reader.encoder.encode_question(question) for question in questions])
    with torch.no_grad():
        top = reader.model(ids).logits[:, -1].double().topk(6)
    # What is no step of its own (a special token, the separator) cannot be told apart in the text.
    outcomes = []
    for tokens, logits in zip(top.indices.tolist(), top.values / 1.5, strict=True):
        outcome: dict[str, float] = {}
        names = reader.encoder.tokenizer.convert_ids_to_tokens(tokens)
        for token, share in zip(names, logits.softmax(-1).tolist(), strict=True):
            shown = "" if token.startswith("<") or token == ";" else token
            outcome[shown] = outcome.get(shown, 0.0) + share
        outcomes.append(outcome)
    mean = sum(sum(-p * np.log(p) for p in outcome.values()) for outcome in outcomes)
    square = sum(
        sum(p * np.log(p) ** 2 for p in outcome.values()) - sum(p * np.log(p) for p in outcome.values()) ** 2
        for outcome in outcomes
    )

    def z(sampling):
        written = write_chains(reader, questions, max_new_tokens=1, sampling=sampling)
        surprise = sum(-np.log(o[" ".join(w.steps)]) for o, w in zip(outcomes, written, strict=True))
        return (surprise - mean) / np.sqrt(square)

    assert abs(z(Sampling(temperature=1.5, top_k=6, seed=0))) < 3.5
    assert z(GREEDY) < -10
    assert z(Sampling(temperature=0.3, top_k=6, seed=0)) < -5


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9, top_p=0.95, seed=3), Sampling(2.0, top_k=8, seed=1)])
def test_a_text_does_not_depend_on_its_batch(reader, sampling):
    def texts(questions, **options):
        return [
            "".join(step + gap for step, gap in zip(w.steps, w.gaps, strict=True))
            for w in write_chains(reader, questions, max_new_tokens=8, sampling=sampling, **options)
        ]

    together = texts(QUESTIONS)
    assert len(set(together)) > 1
    assert texts(QUESTIONS[::-1])[::-1] == together
    assert texts(QUESTIONS, batch_tokens=1) == together
    assert texts(QUESTIONS[1:2]) == together[1:2]


def test_seeds_differ_and_temperature_near_zero_is_greedy(reader):
    greedy = write_chains(reader, QUESTIONS, max_new_tokens=6)
    assert write_chains(reader, QUESTIONS, max_new_tokens=6, sampling=Sampling(1e-6, seed=5)) == greedy
    assert write_chains(reader, QUESTIONS, max_new_tokens=6, sampling=Sampling(3.0, top_k=1, seed=5)) == greedy
    one, two = (write_chains(reader, QUESTIONS, 6, sampling=Sampling(1.0, seed=seed)) for seed in (0, 1))
    assert one != two


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"top_k": -1}, "top_k -1"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_sampling(settings, message):
    with pytest.raises(InputError, match=message):
        Sampling(**settings)


def test_the_checkpoint_s_own_generation_settings_do_not_bend_what_is_written(reader):
    plain = write_chains(reader, QUESTIONS, max_new_tokens=6)
    before = reader.model.generation_config
    try:
        reader.model.generation_config = type(before)(
            **{**before.to_diff_dict(), "repetition_penalty": 5.0, "suppress_tokens": list(range(4, 20))}
        )
        assert write_chains(reader, QUESTIONS, max_new_tokens=6) == plain
    finally:
        reader.model.generation_config = before


def test_a_long_neighbour_does_not_cut_a_text_short(make_checkpoint):
    reader = reader_of(make_checkpoint("gpt2", "word", context=48))
    questions = ["a 7 b 2", " ".join(["a 1"] * 18), " ".join(["a 1"] * 30)]
    written = write_chains(reader, questions, max_new_tokens=30)
    for question, text in zip(questions, written, strict=True):
        alone = write_chains(reader, [question], max_new_tokens=30)[0]
        assert (text, text.gaps, text.cut) == (alone, alone.gaps, alone.cut)
    assert written[2].cut == "the model's context of 48 tokens"
    assert written[0].cut in (None, "the limit of 30 new tokens")


def test_generated_chains_keep_their_own_text():
    written = parse("48/2 = 24\n\n\n 48+24 = 72 \n#### 72\n", BUILT_IN["gsm8k"])
    assert written.steps == ("48/2 = 24", "48+24 = 72")
    assert written.gaps == ("\n\n\n ", "")


def test_an_option_that_is_a_special_token_excludes_its_prompt(make_checkpoint):
    from analysis.cells import Contrast, measure_cells

    reader = reader_of(make_checkpoint("llama", "word"))
    cases = Case("a 7 b 2", "12", ("a 7",)), Case("a 3 b 9", "<eos>", ("a 3",))
    (result,) = measure_cells(reader, [Contrast("p", *cases, ("12", "<eos>"))])
    assert result == Excluded("p", "an answer holds the text of the special token '<eos>'")


def test_a_format_file_may_name_the_new_fields(tmp_path):
    fields = {"question": "{question}", "chain_start": "", "step_separator": "\n", "answer_start": "A", "stop": "\n"}
    new = {"chat": True, "system": "Be brief.", "segmentation": "sentence"}
    (tmp_path / "f.json").write_text(json.dumps({"version": 1, **fields, **new}))
    assert TraceFormat.load(tmp_path / "f.json") == TraceFormat(**fields, **new)
