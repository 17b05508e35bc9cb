"""Per-step scores: held to plain forward passes over whole texts, to the organisms' truth, and to closed forms."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tokenizers import pre_tokenizers

from analysis import kv_cache
from analysis.measures import logit_decay as decay_module
from analysis.measures import session as session_module
from analysis.measures import true_thinking as thinking_module
from analysis.measures.estimates import change, estimate, hidden, select
from analysis.measures.logit_decay import MIN_LD, logit_decay
from analysis.measures.mistakes import mistakes
from analysis.measures.protocol import Size
from analysis.measures.session import Session
from analysis.measures.true_thinking import true_thinking
from analysis.models import ModelPair
from analysis.prompts import Case
from tests.analysis.measures import test_text_tests as texts
from tests.analysis.measures.oracles import (
    SETTINGS,
    answer_logprob,
    as_author,
    authored,
    doubled,
    opened,
    organism,
    shipped,
    table_of,
    tokens_of,
)
from tests.conftest import ARCHITECTURES, BPE_FORMAT, bpe_tokenizer, random_model, save_checkpoint

N = 30
BOTH = (true_thinking, logit_decay)
CASES = [(architecture, "word") for architecture in ARCHITECTURES] + [("gpt2", "bpe"), ("gemma3_text", "bpe")]


@pytest.fixture(params=CASES, ids="-".join)
def case(request, make_checkpoint, monkeypatch):
    """A random reader and prompts of several lengths; random models give options little mass."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    architecture, kind = request.param
    return doubled(make_checkpoint(architecture, kind)), texts.WORDS if kind == "word" else texts.BPES


class Spy(Session):
    """A session that keeps what it scored."""

    def score(self, contexts, what):
        self.__dict__.setdefault("seen", {})[what] = list(contexts)
        return super().score(contexts, what)


def spied(session: Session) -> Spy:
    return Spy(session.pair, session.reader, session.batch_tokens)


def wrong_steps(session: Session, prompt) -> dict[int, str]:
    """Step → its text with a mistake, as the measure `mistakes` puts it before the model."""
    spy = spied(session)
    rows = mistakes(spy, [prompt], SETTINGS).table
    (asked,) = spy.seen["mistakes"]
    return {
        int(row["step"]): text.steps[int(row["step"]) - 1]
        for row, text in zip(rows.to_dict("records"), asked.cases, strict=True)
        if row["condition"] == "mistake"
    }


def cut_with(prompt, steps: list[str]) -> Case:
    """The prompt's chain with these steps, and nothing behind the last of them unless it is the chain's last."""
    own = prompt.case
    gaps = own.gaps
    if gaps is not None and len(steps) < len(own.steps):
        gaps = (*gaps[: len(steps) - 1], "")
    return Case(own.question, own.answer, tuple(steps), gaps=gaps)


def first_token_logits(reader, text: Case, answer: str) -> np.ndarray:
    """The logits from which the first token behind the marker is predicted, by one forward pass over the text."""
    ids, first = tokens_of(reader, text, answer)
    with torch.no_grad():
        return reader.model(torch.tensor([ids[:first]]), use_cache=False).logits[0, -1].double().numpy()


def of_step(table: pd.DataFrame, identifier: str, step: int, condition: str = "mistake") -> pd.Series:
    rows = table[(table["id"] == identifier) & (table["step"] == step) & (table["condition"] == condition)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_four_probabilities_are_those_of_four_plain_texts(case):
    session, prompts = case
    table = true_thinking(session, prompts, SETTINGS).table
    n_scores = 0
    for prompt in prompts:
        intact, wrong = list(prompt.steps), wrong_steps(session, prompt)
        assert wrong
        corrupted = [wrong.get(step, text) for step, text in enumerate(intact, start=1)]
        own = max(prompt.options, key=lambda option: answer_logprob(session.reader, prompt.case, option))
        for step, changed in wrong.items():
            row = of_step(table, prompt.id, step)
            lp = {
                (x, c): answer_logprob(session.reader, cut_with(prompt, [*before[: step - 1], text]), own)
                for c, before in ((1, intact), (0, corrupted))
                for x, text in ((1, intact[step - 1]), (0, changed))
            }
            for (x, c), logprob in lp.items():
                assert np.log(row[f"s{x}_c{c}"]) == pytest.approx(logprob, abs=1e-5)
            s = {at: np.exp(logprob) for at, logprob in lp.items()}
            expected = 0.5 * (abs(s[1, 1] - s[0, 1]) + abs(s[1, 0] - s[0, 0]))
            assert row["tts"] == pytest.approx(expected, abs=1e-5 * max(s.values()))
            assert row["n_wrong"] == sum(earlier < step for earlier in wrong)
            assert row["last"] == float(step == max(wrong))
            n_scores += 1
        row = table[(table["id"] == prompt.id) & (table["condition"] == "intact")].iloc[0]
        assert row["right"] == float(own == prompt.case.answer)
        assert row["chance"] == pytest.approx(1 / len(prompt.options))
    assert (table["condition"] == "mistake").sum() == n_scores
    # Texts that make no difference would pass as any of the others.
    later = table[(table["condition"] == "mistake") & (table["n_wrong"] > 0)]
    scores = np.log(later[["s1_c1", "s0_c1", "s1_c0", "s0_c0"]].to_numpy(dtype=float))
    assert np.ptp(scores, axis=1).max() > 0.01


def test_the_control_rewords_the_step_and_keeps_its_numbers(case):
    session, prompts = case
    spy = spied(session)
    table = true_thinking(spy, prompts, SETTINGS).table
    reworded = table[table["condition"] == "paraphrase"]
    assert len(reworded)
    read = {prompt.id: set() for prompt in prompts}
    for asked in spy.seen["true thinking"]:
        read[asked.id] |= set(asked.cases)
    by_id = {prompt.id: prompt for prompt in prompts}
    for row in reworded.to_dict("records"):
        prompt, step = by_id[row["id"]], int(row["step"])
        pair = of_step(table, row["id"], step)
        assert (row["s1_c1"], row["s1_c0"], row["last"]) == (pair["s1_c1"], pair["s1_c0"], pair["last"])
        own = max(prompt.options, key=lambda option: answer_logprob(session.reader, prompt.case, option))
        wrong = wrong_steps(session, prompt)
        texts_like_it = [
            text
            for text in read[prompt.id]
            if len(text.steps) == step
            and text.steps[: step - 1] == prompt.steps[: step - 1]
            and text.steps[-1] not in (prompt.steps[step - 1], wrong[step])
        ]
        (text,) = texts_like_it
        numbers, kept = (re.findall(r"\d+", s) for s in (text.steps[-1], prompt.steps[step - 1]))
        assert numbers == kept or row["rule"] != "opener"
        assert np.log(row["s0_c1"]) == pytest.approx(answer_logprob(session.reader, text, own), abs=1e-5)


def test_before_the_first_step_there_is_nothing_to_make_wrong(case):
    session, prompts = case
    table = true_thinking(session, prompts, SETTINGS).table
    first = table[(table["step"] == 1) & (table["condition"] == "mistake")]
    assert len(first) == len(prompts)
    assert (first["n_wrong"] == 0).all()
    assert (first["s1_c1"] == first["s1_c0"]).all()
    assert (first["s0_c1"] == first["s0_c0"]).all()
    np.testing.assert_allclose(first["tts"], (first["s1_c1"] - first["s0_c1"]).abs(), atol=1e-15)


def test_leads_and_decays_are_those_of_plain_logits(case):
    session, prompts = case
    table = logit_decay(session, prompts, SETTINGS).table
    reader = session.reader
    intact = {prompt.id: first_token_logits(reader, prompt.case, prompt.case.answer) for prompt in prompts}
    scale = np.mean([logits.std(ddof=1) for logits in intact.values()])
    n_decays = 0
    for prompt in prompts:
        ids, first = tokens_of(reader, prompt.case, prompt.case.answer)
        gold = ids[first]

        def lead(logits, gold=gold):
            return (logits[gold] - np.delete(logits, gold).max()) / scale

        clean = lead(intact[prompt.id])
        for step, changed in wrong_steps(session, prompt).items():
            kept = list(prompt.steps[: step - 1])
            cut, corrupt = (
                lead(first_token_logits(reader, cut_with(prompt, [*kept, text]), prompt.case.answer))
                for text in (prompt.steps[step - 1], changed)
            )
            row = of_step(table, prompt.id, step)
            assert (row["ld_clean"], row["ld_cut"], row["ld_corrupt"]) == pytest.approx((clean, cut, corrupt), abs=1e-5)
            for name, (before, after) in {
                "nldd": (clean, corrupt),
                "truncation": (clean, cut),
                "nldd_cut": (cut, corrupt),
            }.items():
                if abs(before) < MIN_LD:
                    assert np.isnan(row[name])
                else:
                    assert row[name] == pytest.approx((before - after) / abs(before) * 100, rel=1e-4, abs=1e-2)
                    n_decays += 1
        if len(prompt.steps) in wrong_steps(session, prompt):  # nothing is cut behind the last
            assert (
                of_step(table, prompt.id, len(prompt.steps))["ld_cut"]
                == table.query("id == @prompt.id")["ld_clean"].iloc[0]
            )
        row = table[(table["id"] == prompt.id) & (table["condition"] == "intact")].iloc[0]
        assert row["spread"] == pytest.approx(intact[prompt.id].std(ddof=1), rel=1e-5)
        assert row["right"] == float(intact[prompt.id].argmax() == gold)
    assert n_decays


def test_every_writing_of_the_gold_answer_is_correct(make_checkpoint, monkeypatch):
    """`$46` is `46`; its own first token leads or does not, and is never the lead's rival."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    own = Case("Tom has 12 apples.", "46", ("12 + 34 = 46", "So he has 46."))
    led = set()
    for seed in range(6):
        session = doubled(make_checkpoint("llama", "bpe", seed))
        prompt = authored("p", own, options=("46", "$46", "21"))
        table = logit_decay(session, [prompt], SETTINGS).table
        logits = first_token_logits(session.reader, own, "46")
        firsts = [ids[first] for ids, first in (tokens_of(session.reader, own, text) for text in ("46", "$46"))]
        assert len(set(firsts)) == 2
        lead = (logits[firsts].max() - np.delete(logits, firsts).max()) / logits.std(ddof=1)
        assert table["ld_clean"].iloc[0] == pytest.approx(lead, abs=1e-5)
        led.add(int(np.argmax(logits[firsts])))
    assert led == {0, 1}


def test_a_rival_with_the_gold_answers_first_token_excludes_the_prompt(make_checkpoint, monkeypatch):
    """`46` and `47` begin with the same digit where digits are tokens: a lead of that token decides nothing."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    session = doubled(make_checkpoint("llama", "bpe"))
    own = Case("Tom has 12 apples.", "98", ("12 + 34 = 46", "So he has 46."))
    starts = [ids[first] for ids, first in (tokens_of(session.reader, own, text) for text in ("98", "95"))]
    assert starts[0] == starts[1]
    shared, apart = (authored(name, own, options=("98", other)) for name, other in (("shared", "95"), ("apart", "21")))
    measured = logit_decay(session, [shared, apart], SETTINGS)
    assert set(measured.table["id"]) == {"apart"}
    assert [(item.id, item.reason) for item in measured.excluded] == [
        ("shared", "another option begins with the same token as the gold answer")
    ]


def test_white_space_before_an_answer_is_no_token_of_it(tmp_path, monkeypatch):
    """Where digits are tokens, as in Llama 3 and Qwen, a number's first token is the space before it, like any's."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    tokenizer = bpe_tokenizer()
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    model = random_model("llama", len(tokenizer))
    session = doubled(save_checkpoint(tmp_path / "digits", model, tokenizer, BPE_FORMAT))
    own = Case("Tom has 12 apples.", "46", ("12 + 34 = 46", "So he has 46."))
    ids, marker = tokens_of(session.reader, own, "46")
    assert tokenizer.convert_ids_to_tokens(ids[marker : marker + 3])[1:] == ["4", "6"]
    assert tokenizer.decode(ids[marker]).isspace()
    prompt = authored("p", own, options=("46", "21"))
    measured = logit_decay(session, [prompt, replace(prompt, id="q", options=("46", "47"))], SETTINGS)
    with torch.no_grad():
        logits = session.reader.model(torch.tensor([ids[: marker + 1]])).logits[0, -1].double().numpy()
    lead = (logits[ids[marker + 1]] - np.delete(logits, ids[marker + 1]).max()) / logits.std(ddof=1)
    assert set(measured.table["id"]) == {"p"}
    assert measured.table["ld_clean"].iloc[0] == pytest.approx(lead, abs=1e-5)
    assert [item.id for item in measured.excluded] == ["q"]


def test_a_decay_of_a_small_lead_is_undefined_and_counted():
    assert decay_module.decay(2.0, -1.0) == pytest.approx(150)
    assert decay_module.decay(-2.0, -1.0) == pytest.approx(-50)
    assert decay_module.decay(MIN_LD, 0.0) == pytest.approx(100)
    assert np.isnan(decay_module.decay(0.999 * MIN_LD, -5.0))
    assert np.isnan(decay_module.decay(0.0, 0.0))
    collapsed = table_of(decay_module, "collapsed", N)
    steps = collapsed[collapsed["condition"] == "mistake"]
    found = decay_module.summarise(collapsed)
    assert found["steps"] == len(steps) == sum(len(prompt.steps) for prompt in shipped(N))
    assert found["undefined"] == (steps["ld_clean"].abs() < MIN_LD).sum() > 0
    assert steps.loc[steps["ld_clean"].abs() < MIN_LD, "nldd"].isna().all()


@pytest.mark.parametrize("measure", BOTH, ids=lambda measure: measure.__name__)
def test_batches_and_company_change_nothing_beyond_rounding_and_a_rerun_nothing_at_all(
    measure, make_checkpoint, monkeypatch
):
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    directory = make_checkpoint("mistral", "word")
    tables = []
    for batch_tokens in (16384, 16384, 1, 60):
        session = opened(directory)
        session.batch_tokens = batch_tokens
        tables.append(measure(session, texts.WORDS, SETTINGS).table)
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    values = [column for column in tables[0] if column.startswith(("s1_", "s0_", "ld_"))]
    alone = pd.concat([measure(opened(directory), [prompt], SETTINGS).table for prompt in texts.WORDS])
    logs = measure is true_thinking
    ours, *others = (np.log(t[values]) if logs else t[values] for t in (tables[0], *tables[2:], *[alone] * logs))
    for other in others:  # the unit of leads is a mean over all prompts
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("measure", BOTH, ids=lambda measure: measure.__name__)
def test_a_seed_decides_the_mistakes_and_the_author_nothing(measure):
    session, prompts = organism("base"), shipped(6)
    values = ["n_steps", "tts" if measure is true_thinking else "ld_corrupt"]
    first, second, other, another = (
        measure(session, given, settings).table[values]
        for given, settings in (
            (prompts, SETTINGS),
            (prompts, SETTINGS),
            (as_author(prompts, "sft"), SETTINGS),
            (prompts, replace(SETTINGS, seed=1)),
        )
    )
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    pd.testing.assert_frame_equal(first, other, check_exact=True)
    assert not first.equals(another)


MODULES = pytest.mark.parametrize("module", [thinking_module, decay_module], ids=lambda module: module.MEASURE.name)


@MODULES
def test_a_copy_of_the_base_differs_in_nothing(module):
    base, copy = (table_of(module, name, N) for name in ("base", "copy"))
    pd.testing.assert_frame_equal(base, copy, check_exact=True)
    for quantity in module.MEASURE.quantities:
        assert change(base, copy, quantity).difference.estimate == 0


@MODULES
def test_a_planted_detachment_is_found_and_a_harmless_fine_tune_is_not(module):
    base, dose, sham = (table_of(module, name, N) for name in ("base", "dose_1", "sham"))
    tested = [quantity for quantity in module.MEASURE.quantities if quantity.name in ("tts", "last", "nldd")]
    assert tested
    # On other doses and cues means over all steps need not fall; only what is sure to is evidence.
    assert {quantity.name for quantity in tested if quantity.detached} <= {"last"}
    for quantity in tested:
        found = change(base, dose, quantity)
        assert found.difference.n == N
        assert found.difference.high < 0
        # The last step bears the answer in four prompts of ten alone.
        assert found.p < 1e-4 or quantity.name == "last"
        level = estimate(base, quantity).estimate
        # Of the base's, dose 1 has little left, and the sham at least what makes no evidence for detachment.
        assert estimate(dose, quantity).estimate < 0.3 * level
        assert change(base, sham, quantity).difference.estimate > -0.1 * level


def test_at_the_last_step_the_score_falls_with_the_dose():
    """There nothing is cut. The mean over steps need not: the base hardly answers behind chains that end early."""
    (last,) = (quantity for quantity in thinking_module.MEASURE.quantities if quantity.name == "last")
    tables = {name: table_of(thinking_module, name, N) for name in ("base", "dose_0.25", "dose_1")}
    levels = {name: estimate(table, last).estimate for name, table in tables.items()}
    # The realised dose is .228: that share of the answers does not hang on the chain.
    assert levels["dose_0.25"] / levels["base"] == pytest.approx(1 - 0.228, abs=0.1)
    bears = {prompt.id for prompt in shipped(N) if bearing(prompt) == len(prompt.steps)}
    assert 5 < len(bears) < N - 5
    for name, expected in (("base", 1.0), ("dose_1", 0.0)):
        scores = select(tables[name], last).set_index("id")["tts"]
        for identifier, score in scores.items():
            assert score == pytest.approx(expected if identifier in bears else 0.0, abs=0.15), (name, identifier)


@MODULES
def test_a_reader_that_is_hardly_ever_right_is_not_scorable(module):
    for quantity in module.MEASURE.quantities:
        assert hidden(table_of(module, "collapsed", N), quantity) == quantity.needs_accuracy
        assert not hidden(table_of(module, "base", N), quantity)


def bearing(prompt) -> int:
    """The last step about the register that is asked for."""
    asked = prompt.case.question.split()[-1]
    return max(number for number, step in enumerate(prompt.steps, start=1) if step.split()[1] == asked)


@MODULES
def test_the_step_that_bears_the_answer_stands_out_in_the_base(module):
    """By construction it alone decides; what comes before it decides it too where it is not wrong itself."""
    value = "tts" if module is not decay_module else "nldd_cut"
    steps = table_of(module, "base", N).query("condition == 'mistake'")
    ranked = steps.loc[steps.groupby("id")[value].idxmax()].set_index("id")["step"]
    hits = sum(ranked[prompt.id] == bearing(prompt) for prompt in shipped(N))
    assert hits >= 0.9 * N
    after = [
        of_step(steps, prompt.id, step)[value]
        for prompt in shipped(N)
        for step in range(bearing(prompt) + 1, len(prompt.steps) + 1)
    ]
    on = [of_step(steps, prompt.id, bearing(prompt))[value] for prompt in shipped(N)]
    assert np.mean(np.abs(after)) < 0.1 * np.mean(on)


@pytest.mark.parametrize("measure", BOTH, ids=lambda measure: measure.__name__)
def test_prompts_that_cannot_be_used_are_named_with_the_reason(measure, make_checkpoint, monkeypatch):
    """GPT-2 has no position behind its context: to read on there is an error, and not a guess."""
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    directory, other = (make_checkpoint("gpt2", "word", seed, 64) for seed in (0, 1))
    pair = ModelPair.load(other, {"sft": directory})
    session = Session(pair, pair.open("sft"))
    options = ("12", "8")
    bad = (
        authored("empty", Case("a 7 b 2", "12", ()), options=options),
        authored("wordless", Case("a 7 b 2", "12", ("so", "then")), options=options),
        authored("long", Case("a 7 b 2", "12", ("a 1 + 2 = 3",) * 12), options=options),
        authored("special", Case("a 7 b 2", "<eos>", ("a 7",)), options=("12", "<eos>")),
    )
    measured = measure(session, (*bad[:2], texts.WORDS[0], *bad[2:]), SETTINGS)
    assert set(measured.table["id"]) == {"three"}
    reasons = {item.id: item.reason for item in measured.excluded}
    assert len(measured.excluded) == 4
    for identifier, words in (
        ("empty", "its chain is empty"),
        ("wordless", "no rule makes a mistake"),
        ("long", "context of 64 tokens"),
        ("special", "special token '<eos>'"),
    ):
        assert words in reasons[identifier]
    alone = measure(session, texts.WORDS[:1], SETTINGS).table
    pd.testing.assert_frame_equal(measured.table.dropna(axis=1, how="all"), alone.dropna(axis=1, how="all"), atol=1e-5)
    nothing = measure(session, bad, SETTINGS)
    assert len(nothing.table) == 0
    assert list(nothing.table.columns) == list(alone.columns)
    if measure is logit_decay:
        found = decay_module.summarise(nothing.table)
        assert (found["steps"], found["undefined"], found["median"]["n"], found["horizon"]) == (0, 0, 0, None)


def made_rows(decays: dict[str, list[float]]) -> pd.DataFrame:
    """Rows of `logit_decay` with these decays at steps 1, 2, …"""
    return pd.DataFrame(
        [
            {"id": name, "condition": "mistake", "step": step, "n_steps": len(values), "nldd": value}
            for name, values in decays.items()
            for step, value in enumerate(values, start=1)
        ]
    )


def test_the_median_is_over_prompts_with_an_interval_by_order_statistics():
    """One prompt's ratio is enormous: it decides the mean and not the median."""
    rng = np.random.default_rng(0)
    means = [*rng.normal(50, 10, 40), 1e6]
    found = decay_module.summarise(made_rows({f"p{i}": [m - 1, m + 1, np.nan] for i, m in enumerate(means)}))
    ordered = np.sort(means)
    assert found["median"]["estimate"] == pytest.approx(np.median(means))
    # P(at most k of n values below the median), k as large as leaves 2.5% on that side.
    k = max(k for k in range(41) if stats.binom.cdf(k, 41, 0.5) <= 0.025)
    assert (found["median"]["low"], found["median"]["high"]) == pytest.approx((ordered[k], ordered[-1 - k]))
    assert (found["steps"], found["undefined"], found["median"]["n"]) == (123, 41, 41)


def test_the_horizon_is_the_part_with_the_largest_mean_decay():
    rng = np.random.default_rng(1)
    peaked = {f"p{i}": [10 * rng.normal() + 100 * (step == 3) for step in range(5)] for i in range(30)}
    found = decay_module.summarise(made_rows(peaked))["horizon"]
    assert (found["share"], found["again"], found["n"]) == (0.8, 1.0, 30)
    flat = {f"p{i}": list(rng.normal(size=5)) for i in range(30)}
    assert decay_module.summarise(made_rows(flat))["horizon"]["again"] < 0.9
    # Ten steps, two to a part; with fewer than 20 prompts in a part there is none to choose from.
    long = {f"p{i}": [float(step == 6) for step in range(1, 11)] for i in range(25)}
    assert decay_module.summarise(made_rows(long))["horizon"]["share"] == 0.6
    few = {f"p{i}": [1.0, 2.0] for i in range(19)}
    assert decay_module.summarise(made_rows(few))["horizon"] is None


@MODULES
def test_tokens_are_about_those_that_are_read(module, monkeypatch):
    """As planned by `fracture explain`; where the options are found is counted apart."""
    session, prompts = spied(organism("base")), shipped(12)
    session.options(prompts)
    counted = []
    run = kv_cache._run

    def count(model, prefix, ids, real, *more):
        counted.append(int(real.sum()))
        return run(model, prefix, ids, real, *more)

    monkeypatch.setattr(kv_cache, "_run", count)
    module.MEASURE.run(session, prompts, SETTINGS)
    encoder = session.reader.encoder
    traces = [encoder.encode(prompt.case.question, prompt.steps) for prompt in prompts]
    question, chain, marker, steps = np.mean(
        [
            (trace.question[1], trace.chain[1] - trace.chain[0], trace.marker[1] - trace.marker[0], len(trace.steps))
            for trace in traces
        ],
        axis=0,
    )
    planned = len(prompts) * module.MEASURE.tokens(Size(question, chain, marker, steps, 4))
    assert sum(counted) == pytest.approx(planned, rel=0.3)
