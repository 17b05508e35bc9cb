"""Information gain, held to two plain forward passes, to other cuts of one text, and to texts that tell nothing."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from analysis.answers import same_answer
from analysis.measures import estimates
from analysis.measures.information_gain import CONTROLS, MEASURE, information_gain, masked
from analysis.prompts import Case
from tests.analysis.measures.oracles import (
    SETTINGS,
    answer_logprob,
    authored,
    doubled,
    organism,
    shipped,
    token_logprobs,
    tokens_of,
)
from tests.conftest import BPE_FORMAT, bpe_tokenizer, random_model, save_checkpoint

WORDS = (
    authored("three", Case("a 7 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6", "c 4 so 12"))),
    authored("two", Case("c 3 b 9", "8 ; 1", ("c 3 + 5 = 8", "b 9"), gaps=(" . ", " ; "))),
    authored("one", Case("b 1", "6", ("b 1 * 6 = 6",))),
)
BPES = (
    authored("two", Case("Tom has 12 apples.", "46", ("12 + 34 = 46", "So he has 46."))),
    authored("three", Case("Ann has 3 cakes?", "21", ("7 * 3 = 21", "3 cakes", "So 21."), gaps=("\n\n", " ", "  "))),
)


@pytest.fixture(scope="module", params=[("llama", "word"), ("gemma2", "word"), ("qwen2", "bpe")], ids="-".join)
def case(request, make_checkpoint):
    architecture, kind = request.param
    return doubled(make_checkpoint(architecture, kind)), WORDS if kind == "word" else BPES


def rows_of(session, prompts, identifier, condition):
    table = information_gain(session, prompts, SETTINGS).table
    return table[(table["id"] == identifier) & (table["condition"] == condition)].sort_values("step")


def test_every_gain_is_the_difference_of_two_plain_forwards(case):
    session, prompts = case
    for prompt in prompts:
        curve = [
            answer_logprob(
                session.reader, Case(prompt.case.question, "", prompt.steps[:n], gaps=gaps), prompt.case.answer
            )
            for n in range(len(prompt.steps) + 1)
            for gaps in [None if prompt.case.gaps is None else cut_gaps(prompt.case.gaps, n)]
        ]
        (chain,) = rows_of(session, prompts, prompt.id, "chain").to_dict("records")
        steps = rows_of(session, prompts, prompt.id, "step")
        assert chain["gain"] == pytest.approx(curve[-1] - curve[0], abs=1e-5)
        assert chain["logprob"] == pytest.approx(curve[-1], abs=1e-5)
        assert steps["step"].tolist() == list(range(1, len(prompt.steps) + 1))
        assert steps["gain"].tolist() == pytest.approx(np.diff(curve).tolist(), abs=1e-5)
        assert steps["logprob"].tolist() == pytest.approx(curve[1:], abs=1e-5)
        assert steps["gain"].sum() == pytest.approx(chain["gain"], abs=1e-9)


def cut_gaps(gaps, n):
    """The last step of a cut chain has nothing behind it; that of the whole chain keeps what stood there."""
    return gaps if n == len(gaps) else (*gaps[: max(0, n - 1)], *[""] * min(n, 1))


def test_the_published_form_is_the_drop_of_the_answers_perplexity_a_step(case):
    """By hand: the mean over the answer's tokens and its stop, its exponential, the difference, over t (not t + 1)."""
    session, prompts = case
    for prompt in prompts:
        perplexities = []
        for text in (Case(prompt.case.question, "", ()), prompt.case):
            tokens = token_logprobs(session.reader, text, prompt.case.answer)
            perplexities.append(math.exp(-sum(tokens) / len(tokens)))
        (chain,) = rows_of(session, prompts, prompt.id, "chain").to_dict("records")
        expected = (perplexities[0] - perplexities[1]) / len(prompt.steps)
        assert chain["paper"] == pytest.approx(expected, rel=1e-5)


CHAIN = "12 + 34 = 46\n\nSo he has 46.  Then 46 apples \nand that is all."


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_the_same_text_cut_otherwise_has_the_same_total(make_checkpoint, kind):
    """In one, in two and in many steps, with what stands between them kept; the answer behind it is the same text's."""
    chain = "a 7 + 5 = 12 ; b 2 * 3 = 6 . so c 4 ; ; then 12" if kind == "word" else CHAIN
    session = doubled(make_checkpoint("llama", kind))
    places = [at for at, character in enumerate(chain) if character.isspace()]
    rng = random.Random(0)
    cuts = [[], [places[3]], [places[5], places[6]], *(sorted(rng.sample(places, k)) for k in (3, 5, 8))]
    prompts = []
    for number, at in enumerate(cuts):
        pieces = [chain[start:end] for start, end in zip([0, *at], [*at, len(chain)], strict=True)]
        # A step has no white space at its ends; what there was is its gap's, or the one's before.
        steps, gaps = [], []
        for piece in pieces:
            body = piece.strip()
            lead = piece[: len(piece) - len(piece.lstrip())]
            if gaps:
                gaps[-1] += lead
            if body:
                steps.append(body)
                gaps.append(piece[len(piece.rstrip()) :])
            elif gaps:
                gaps[-1] += piece.lstrip()
        case = Case("a 7 b 2", "12", tuple(steps), gaps=tuple(gaps))
        assert "".join(s + g for s, g in zip(steps, gaps, strict=True)) == chain
        prompts.append(authored(f"p{number}", case))
    table = information_gain(session, prompts, SETTINGS).table
    totals = table[table["condition"] == "chain"].set_index("id")
    assert len(totals) == len(prompts)
    assert totals["n_steps"].nunique() >= 4
    np.testing.assert_allclose(totals["gain"], totals["gain"].iloc[0], atol=1e-6, rtol=0)
    by_steps = table[table["condition"] == "step"].groupby("id")["gain"].sum()
    np.testing.assert_allclose(by_steps, totals["gain"].iloc[0], atol=1e-6, rtol=0)
    # Published form: the same text is worth less a step, the more steps it is called.
    np.testing.assert_allclose(totals["paper"] * totals["n_steps"], totals["paper"].iloc[0], rtol=1e-5)


def test_how_probable_the_chain_itself_is_does_not_enter(case):
    """Whole-text perplexity, the fault of the published code, would differ by far."""
    session, prompts = case
    prompt = prompts[0]
    (chain,) = rows_of(session, prompts, prompt.id, "chain").to_dict("records")
    whole = []
    for text in (Case(prompt.case.question, "", ()), prompt.case):
        ids, _ = tokens_of(session.reader, text, prompt.case.answer)
        with torch.no_grad():
            logprobs = session.reader.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        whole.append(float(logprobs[:-1].gather(-1, torch.tensor(ids[1:])[:, None]).sum()))
    assert abs(chain["gain"] - (whole[1] - whole[0])) > 1.0


def test_controls_are_the_texts_that_they_are_said_to_be(case):
    """Each control's log-probability by one plain forward over a text that is written here."""
    session, prompts = case
    table = information_gain(session, prompts, SETTINGS).table
    for prompt in prompts:
        rows = table[table["id"] == prompt.id].set_index("condition")
        bare = answer_logprob(session.reader, Case(prompt.case.question, "", ()), prompt.case.answer)
        others = [other for other in prompts if other.id != prompt.id]
        nearest = min(abs(len(other.steps) - len(prompt.steps)) for other in others)
        texts = {
            "question": [Case(prompt.case.question, "", (prompt.case.question,))],
            "foreign": [
                Case(prompt.case.question, "", other.steps, gaps=other.case.gaps)
                for other in others
                if abs(len(other.steps) - len(prompt.steps)) == nearest
            ],
        }
        for name, cases in texts.items():
            scores = [answer_logprob(session.reader, text, prompt.case.answer) for text in cases]
            assert min(abs(rows.loc[name, "logprob"] - score) for score in scores) < 1e-5
            assert rows.loc[name, "gain"] == pytest.approx(rows.loc[name, "logprob"] - bare, abs=1e-5)


def test_the_chain_tells_of_the_answer_and_what_stands_in_for_it_does_not():
    """Forty prompts of the shipped base: its own chain is clearly above 0, no control is (95% intervals)."""
    table = information_gain(organism("base"), shipped(40), SETTINGS).table
    found = {q.name: estimates.estimate(table, q) for q in MEASURE.quantities if q.name in ("total", *CONTROLS)}
    assert all(estimate.n == 40 for estimate in found.values())
    assert found["total"].low > 1.0
    for name in CONTROLS:
        assert found[name].low <= 0, (name, found[name])
    # What these controls do to this reader: without the answer's step it is led to another answer.
    assert all(found[name].high < 0 for name in ("masked", "foreign", "filler"))


@pytest.mark.parametrize(
    ("answer", "step", "left"),
    [
        ("12", "7 + 5 = 12", []),
        ("12", "12 * 1 = 12, so 12.", []),
        ("12", "12 of 112 and 12.5 and 1,012 and a12", ["112", "12.5", "1,012", "a12"]),
        ("yes", "Yes, it is. Yesterday", ["Yesterday"]),
        ("1200", "the total is 1,200 or $1,200.00", []),
        ("1,200", "the total is 1200", []),
    ],
)
def test_the_answer_is_masked_however_the_chain_writes_it(tmp_path_factory, answer, step, left):
    """What the suite takes for the same answer (`same_answer`) must be gone; longer words and numbers must stay."""
    tokenizer = bpe_tokenizer()
    directory = save_checkpoint(
        tmp_path_factory.mktemp("m"), random_model("llama", len(tokenizer)), tokenizer, BPE_FORMAT
    )
    session = doubled(directory)
    found = masked(session, Case("q", answer, (step,)))
    words = [word.rstrip(",.;") for word in found.steps[0].split()]
    assert not any(same_answer(word, answer) for word in words), found.steps
    assert all(word in words for word in left), found.steps


def test_a_chain_that_never_says_its_answer_has_no_masked_control(make_checkpoint):
    """Nothing was masked, so there is no control: the unchanged chain must not stand in its place."""
    session = doubled(make_checkpoint("llama", "word"))
    prompts = [authored("p", Case("a 7", "12", ("a 7 + 5",))), authored("q", Case("b 7", "3", ("so 3",)))]
    table = information_gain(session, prompts, SETTINGS).table
    assert table[(table["condition"] == "masked") & (table["id"] == "q")]["gain"].notna().all()
    assert not len(table[(table["condition"] == "masked") & (table["id"] == "p")])
