"""The residual map, cell by cell: one plain forward pass with a hook of its own for every cell and option."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import organisms
from analysis import statistics
from analysis.errors import InputError
from analysis.measures import patch_map as module
from analysis.measures import session as session_module
from analysis.measures.estimates import estimate
from analysis.measures.patch_map import MEASURE, patch_map, summarise
from analysis.models import ModelPair
from analysis.prompts import Case
from fracture import summary
from tests.analysis.measures.oracles import SETTINGS, authored, doubled, opened, organism, shipped, table_of, tokens_of
from tests.conftest import WORD_FORMAT, random_model, save_checkpoint, word_tokenizer

WORD_OPTIONS = ("12", "8", "6 ; 7", "27")
WORDS = (
    authored(
        "two",
        Case("a 7 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6")),
        Case("a 3 b 9", "8", ("a 3 + 5 = 8", "b 9 * 3 = 27")),
        WORD_OPTIONS,
    ),
    # Longer than any window of the tests' models, so that there is padding beside it.
    authored(
        "three",
        Case("a 7 b 2 c 9 a 1 b 2", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6", "c 9 - 1 = 8")),
        Case("a 1 b 4 c 9 a 1 b 2", "8", ("a 1 + 5 = 6", "b 4 * 3 = 12", "c 9 - 1 = 8")),
        WORD_OPTIONS,
    ),
)
BPES = (
    authored(
        "two",
        Case("Tom has 12 apples.", "46", ("12 + 34 = 46", "So he has 46.")),
        Case("Tom has 21 apples.", "34", ("21 + 46 = 34", "So he has 34.")),
        ("46", "34", "123"),
    ),
    authored(
        "one",
        Case("Ann has 7 cakes?", "21", ("7 * 3 = 21",)),
        Case("Ann has 3 cakes?", "12", ("3 * 7 = 12",)),
        ("21", "12"),
    ),
)
# Seeds with which the two runs differ, so that there is an effect to be wrong about.
READERS = (
    ("llama", "word", 3),
    ("gpt2", "word", 1),
    ("gemma2", "word", 2),
    ("mistral", "word", 1),
    ("qwen2", "bpe", 3),
    ("gpt_neox", "bpe", 1),
)
LAYERS = (0, 1)
"""Of three: what is written after the last block is read by nothing but its own logits."""
BLOCKS = {"gpt2": lambda model: model.transformer.h, "gpt_neox": lambda model: model.gpt_neox.layers}


def blocks(model):
    return BLOCKS.get(model.config.model_type, lambda model: model.model.layers)(model)


@torch.no_grad()
def stream(reader, layer, ids):
    """What block `layer` gives, from one plain forward pass."""
    kept = []

    def keep(_, __, output):
        kept.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = blocks(reader.model)[layer].register_forward_hook(keep)
    reader.model(torch.tensor([ids]), use_cache=False)
    handle.remove()
    return kept[0][0]


@torch.no_grad()
def patched_logprobs(reader, case, options, layer, donor, positions):
    """`LP(option)` with the donor's stream at these positions of the text: one forward pass an option, whole texts."""
    scores = []
    for option in options:
        ids, first = tokens_of(reader, case, option)

        def write(_, __, output):
            old = output[0] if isinstance(output, tuple) else output
            new = old.clone()
            new[0, positions] = donor[positions]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = blocks(reader.model)[layer].register_forward_hook(write)
        logprobs = reader.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
        handle.remove()
        scores.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(first, len(ids))))
    return np.array(scores)


def softmax(scores):
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


def by_hand(reader, prompt, layer, positions):
    """`effect`, `total`, `logit_effect`, `logit_total` of one cell."""
    nowhere = stream(reader, layer, tokens_of(reader, prompt.case, prompt.options[0])[0])
    donor_ids, _ = tokens_of(reader, prompt.partner, prompt.options[0])
    donor = stream(reader, layer, donor_ids)
    own = patched_logprobs(reader, prompt.case, prompt.options, layer, nowhere, [])
    other = patched_logprobs(reader, prompt.partner, prompt.options, layer, nowhere, [])
    patched = patched_logprobs(reader, prompt.case, prompt.options, layer, donor, positions)
    p00, p11, p = softmax(own), softmax(other), softmax(patched)
    y, y_partner = int(own.argmax()), int(other.argmax())
    logit = [scores[y_partner] - scores[y] for scores in (own, other, patched)]
    scored = y != y_partner and logit[1] - logit[0] >= 1
    return {
        "effect": float((p - p00) @ (p11 - p00)),
        "total": float((p11 - p00) @ (p11 - p00)),
        "logit_effect": logit[2] - logit[0] if scored else np.nan,
        "logit_total": logit[1] - logit[0] if scored else np.nan,
    }


def spans_of(reader, prompt):
    """Token positions of every part, from the characters of the text and the tokenizer's offsets."""
    form = reader.encoder.format
    pieces = [form.question.replace("{question}", prompt.case.question) + form.chain_start]
    steps = prompt.case.steps
    pieces += [step + (form.step_separator if i + 1 < len(steps) else "") for i, step in enumerate(steps)]
    ends = list(itertools.accumulate(map(len, pieces)))
    marker = form.answer_start.rstrip()
    offsets = reader.encoder.tokenizer("".join(pieces) + marker, return_offsets_mapping=True).offset_mapping
    spans = {"question": [i for i, (_, end) in enumerate(offsets) if end <= ends[0]]}
    for number, (start, end) in enumerate(itertools.pairwise(ends), start=1):
        spans[f"step {number}"] = [i for i, (_, to) in enumerate(offsets) if start < to <= end]
    spans["chain"] = [i for i, (_, to) in enumerate(offsets) if ends[0] < to <= ends[-1]]
    return spans


@pytest.fixture(params=READERS, ids=lambda param: f"{param[0]}-{param[1]}")
def case(request, make_checkpoint, any_mass):
    architecture, kind, seed = request.param
    return doubled(make_checkpoint(architecture, kind, seed)), WORDS if kind == "word" else BPES


def test_every_cell_equals_one_hooked_forward(case):
    session, prompts = case
    reader = session.reader
    table = patch_map(session, prompts, SETTINGS).table
    assert len(table) == len(LAYERS) * sum(3 + len(prompt.steps) for prompt in prompts)
    assert table["total"].max() > 0.05
    for prompt in prompts:
        spans = spans_of(reader, prompt)
        for layer in LAYERS:
            for name, positions in spans.items():
                part, _, step = name.partition(" ")
                rows = table[(table["id"] == prompt.id) & (table["layer"] == layer) & (table["part"] == part)]
                (row,) = rows[rows["step"] == int(step or 0)].to_dict("records")
                assert row["n_positions"] == len(positions)
                for column, expected in by_hand(reader, prompt, layer, positions).items():
                    assert row[column] == pytest.approx(expected, abs=1e-5, nan_ok=True), (prompt.id, layer, name)


def test_a_layer_or_a_position_off_by_one_would_be_seen(case):
    """The same cells by hand, shifted: on a random model the difference is far above the tolerance."""
    session, prompts = case
    reader, prompt = session.reader, prompts[0]
    # In a sliding window of 8 most of the first step is out of the answer's sight.
    positions = spans_of(reader, prompt)[f"step {len(prompt.steps)}"]
    here = by_hand(reader, prompt, 1, positions)["effect"]
    shifted = {
        "layer before": by_hand(reader, prompt, 0, positions),
        "layer after": by_hand(reader, prompt, 2, positions),
        "position before": by_hand(reader, prompt, 1, [at - 1 for at in positions]),
        "position after": by_hand(reader, prompt, 1, [at + 1 for at in positions]),
        "one position less": by_hand(reader, prompt, 1, positions[:-1]),
    }
    for name, other in shifted.items():
        assert abs(other["effect"] - here) > 1e-4, name


def test_results_do_not_depend_on_the_batch_or_the_order(case):
    session, prompts = case
    keys = ["id", "layer", "part", "step"]
    whole = patch_map(session, prompts, SETTINGS).table.set_index(keys).sort_index()
    for other in (
        patch_map(replace(session, batch_tokens=1), prompts, SETTINGS),
        patch_map(session, prompts[::-1], SETTINGS),
    ):
        table = other.table.set_index(keys).sort_index()
        for column in ("effect", "total", "logit_effect", "logit_total", "n_positions"):
            np.testing.assert_allclose(table[column], whole[column], atol=1e-5, rtol=0)


def test_a_partner_that_is_the_prompt_itself_has_exactly_no_effect(case):
    session, prompts = case
    same = tuple(replace(prompt, partner=replace(prompt.case, answer=prompt.partner.answer)) for prompt in prompts)
    table = patch_map(session, same, SETTINGS).table
    assert len(table)
    assert (table[["effect", "total"]].abs() <= 1e-12).all(axis=None)


@pytest.mark.parametrize(("architecture", "kind", "seed"), READERS[:2] + READERS[4:])
def test_answers_of_several_tokens_have_a_map(make_checkpoint, monkeypatch, architecture, kind, seed):
    """Every answer has two tokens at least, with its stop, and those after the first are read behind the own text.

    The donor's stream everywhere gives the donor's first token, and no more: so it is in single forward passes with
    hooks of their own. A check that asks for more refuses sound models.
    """
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    monkeypatch.setattr(module, "MIN_OPTION_MASS", 0.0)
    session, prompts = opened(make_checkpoint(architecture, kind, seed)), WORDS if kind == "word" else BPES
    try:
        table = patch_map(session, prompts, SETTINGS).table
    except InputError as error:
        pytest.fail(f"a sound model is refused: {error}")
    row = table[(table["id"] == "two") & (table["layer"] == 1) & (table["part"] == "chain")].iloc[0]
    expected = by_hand(session.reader, prompts[0], 1, spans_of(session.reader, prompts[0])["chain"])
    assert row["effect"] == pytest.approx(expected["effect"], abs=1e-4)


def test_a_hook_that_writes_elsewhere_is_refused(monkeypatch):
    """The shipped base passes its own checks; with a stream shifted by one position it must not."""
    session, prompts = organism("base"), shipped(3)
    assert len(patch_map(session, prompts, SETTINGS).table)
    true_recorded = module.sites.recorded

    def shifted(model, names, pick=None):
        return true_recorded(model, names, lambda value: value.roll(1, dims=1))

    monkeypatch.setattr(module.sites, "recorded", shifted)
    with pytest.raises(InputError, match="prompt"):
        patch_map(session, prompts, SETTINGS)


@pytest.fixture(scope="module")
def organism_maps():
    return {name: table_of(module, name) for name in ("base", "dose_1")}


def test_everything_but_the_marker_carries_all_in_the_first_layer_or_is_shared_out(organism_maps):
    """Question and chain are all that differs before the marker: after the first layer their shares sum to 1."""
    for table in organism_maps.values():
        first = table[table["layer"] == 0].pivot_table(index="id", columns="part", values="effect", sort=False)
        total = table.groupby("id", sort=False)["total"].first()
        shares = (first["question"] + first["chain"]).sum() / total.sum()
        assert shares == pytest.approx(1.0, abs=0.02)


def test_the_planted_route_is_found_where_it_was_planted(organism_maps):
    """The base reads the last result of the asked register in the chain, dose 1 the cue in the question."""
    shares = {name: {q.name: estimate(table, q) for q in MEASURE.quantities} for name, table in organism_maps.items()}
    assert shares["base"]["chain"].low > 0.95
    assert abs(shares["base"]["question"].estimate) < 0.02
    assert abs(shares["dose_1"]["chain"].estimate) < 0.02
    assert shares["dose_1"]["question"].low > 0.95


def bearing_of(prompt):
    """The step that gives the asked register its last value."""
    asked = prompt.case.question.split()[-1]
    return max(n for n, step in enumerate(prompt.steps, start=1) if step.split()[1] == asked)


def test_the_route_is_found_prompt_by_prompt(organism_maps):
    """After the first layer the base's bearing step stands first in all but one of twenty, before the question as a
    whole and every other step; in dose 1 the question does, and no step has an effect."""
    first = {"base": 0, "dose_1": 0}
    for name, table in organism_maps.items():
        table = table[table["layer"] == 0]
        for prompt in shipped(30):
            mine = table[table["id"] == prompt.id]
            shares = (mine["effect"] / mine["total"]).set_axis(pd.MultiIndex.from_frame(mine[["part", "step"]]))
            places = shares[shares.index.get_level_values("part").isin(["question", "step"])]
            assert len(places) == 1 + len(prompt.steps)
            part, step = places.idxmax()
            if name == "base":
                first[name] += (part, step) == ("step", bearing_of(prompt))
                assert abs(places["question"].item()) <= 0.05
            else:
                first[name] += part == "question"
                assert places["step"].abs().max() <= 0.05
    assert min(first.values()) >= 29


def test_a_step_of_the_same_length_that_bears_nothing_has_no_effect(organism_maps):
    base = organism_maps["base"]
    bearing = {prompt.id: bearing_of(prompt) for prompt in shipped(30)}
    steps = base[(base["layer"] == 0) & (base["part"] == "step")]
    steps = steps[steps["step"] != steps["id"].map(bearing)]
    of_prompts = steps.groupby("id")[["effect", "total"]].mean()
    share = statistics.ratio(of_prompts["effect"].to_numpy(), of_prompts["total"].to_numpy())
    assert share.n >= 25
    assert abs(share.estimate) <= 0.02
    assert share.low <= 0 <= share.high or max(abs(share.low), abs(share.high)) <= 0.02


def test_prompts_that_a_mean_hides_are_flagged_in_the_layer_where_they_are():
    """Planted: of forty prompts five (an eighth) lie far out in the first layer; in the next no share is high."""

    def rows(layer, shares):
        return pd.DataFrame(
            {
                "id": [f"p{at}" for at in range(len(shares))],
                "layer": layer,
                "part": "chain",
                "step": 0,
                "effect": 1.0,
                "total": 2.0,
                "logit_effect": [4 * share for share in shares],
                "logit_total": 4.0,
            }
        )

    calm, wild, low = [0.9] * 40, [0.85] * 35 + [-0.5] * 2 + [2.0] * 3, [0.1] * 35 + [-0.5] * 5
    for first, flagged in ((calm, False), (wild, True)):
        found = summarise(pd.concat([rows(0, first), rows(1, low)], ignore_index=True))
        assert found["outliers"] == flagged
        layers = found["distribution"]
        assert [layer["layer"] for layer in layers] == [0, 1]
        for layer, shares in zip(layers, (first, low), strict=True):
            assert layer["mean"] == pytest.approx(np.mean(shares))
            assert [layer[f"q{q:02}"] for q in (5, 50, 95)] == pytest.approx(np.percentile(shares, [5, 50, 95]))
            assert layer["outside"] == pytest.approx(np.mean([share < 0 or share > 1.5 for share in shares]))


def test_found_options_hold_what_the_partners_run_answers():
    """Dose 1 answers the partner's cue, which no text of the prompt's own makes likely: the ten digits are all there
    are, and the total effect is the same whether the file lists them or they are found (as the routes find it)."""
    given = shipped(12, "random")
    found = tuple(replace(prompt, options=()) for prompt in given)
    totals = [
        patch_map(organism("dose_1"), prompts, SETTINGS).table.groupby("id")["total"].first()
        for prompts in (given, found)
    ]
    both = pd.concat(totals, axis=1, join="inner")
    assert len(both) > 6
    np.testing.assert_allclose(both.iloc[:, 1], both.iloc[:, 0], atol=0.05)


def test_a_cell_equals_what_a_transformer_bridge_gives():
    """Another library's hooks: TransformerLens, on the shipped base, at every layer, chain and question."""
    pair = ModelPair.load(organisms.checkpoint("base"), {"copy": organisms.checkpoint("base")})
    bridge = pair.bridge("copy")
    prompt = shipped(1)[0]
    reader = organism("base").reader
    spans = spans_of(reader, prompt)
    table = patch_map(organism("base"), [prompt], SETTINGS).table
    own, donor = (
        torch.tensor([tokens_of(reader, case, option)[0] for option in prompt.options])
        for case in (prompt.case, prompt.partner)
    )
    first = tokens_of(reader, prompt.case, "1")[1]

    def scores(logits, ids):
        logprobs = logits.double().log_softmax(-1)
        return sum(logprobs[torch.arange(len(ids)), at - 1, ids[:, at]] for at in range(first, ids.shape[1])).numpy()

    with torch.no_grad():
        p00, (donor_logits, cache) = softmax(scores(bridge(own), own)), bridge.run_with_cache(donor)
        p11 = softmax(scores(donor_logits, donor))
        for layer, part in itertools.product(range(bridge.cfg.n_layers - 1), ("chain", "question")):
            name = f"blocks.{layer}.hook_resid_post"

            def write(value, hook, name=name, part=part):
                value = value.clone()
                value[:, spans[part]] = cache[name][:, spans[part]]
                return value

            patched = softmax(scores(bridge.run_with_hooks(own, fwd_hooks=[(name, write)]), own))
            row = table[(table["layer"] == layer) & (table["part"] == part)].iloc[0]
            assert row["effect"] == pytest.approx(float((patched - p00) @ (p11 - p00)), abs=1e-5)
            assert row["total"] == pytest.approx(float((p11 - p00) @ (p11 - p00)), abs=1e-5)


def test_control_positions_are_as_many_as_a_step_has_and_another_seed_draws_others(any_mass, make_checkpoint):
    session = doubled(make_checkpoint("llama", "word"))
    tables = [patch_map(session, WORDS, replace(SETTINGS, seed=seed)).table for seed in (0, 0, 1, 2)]
    controls = [table[table["part"] == "control"].reset_index(drop=True) for table in tables]
    pd.testing.assert_frame_equal(controls[0], controls[1])
    assert any(np.abs(controls[0]["effect"] - other["effect"]).max() > 1e-3 for other in controls[2:])
    for prompt in WORDS:
        spans = spans_of(session.reader, prompt)
        mean = len(spans["chain"]) / len(prompt.steps)
        assert (controls[0][controls[0]["id"] == prompt.id]["n_positions"] == round(mean)).all()


@pytest.mark.parametrize(
    ("partner", "reason"),
    [
        (Case("a 3 b 9 c", "8", ("a 3 + 5 = 8", "b 9 * 3 =")), "same token positions"),
        (Case("a 3 b 9", "8", ("a 3 + 5 = 8 ; b 9 * 3 = 27",)), "same token positions"),
        (Case("a 3 b 9", "8", ()), "its chain is empty"),
        (None, "no counterfactual partner"),
    ],
)
def test_prompts_without_an_aligned_partner_are_excluded_with_the_reason(any_mass, make_checkpoint, partner, reason):
    session = doubled(make_checkpoint("llama", "word"))
    bad = replace(WORDS[0], id="bad", partner=partner)
    measured = patch_map(session, (bad, WORDS[0]), SETTINGS)
    assert set(measured.table["id"]) == {"two"}
    ((identifier, why),) = [(item.id, item.reason) for item in measured.excluded]
    assert identifier == "bad"
    assert reason in why


def test_the_summary_puts_every_share_and_p_at_its_own_cell():
    """Simulated cells of five prompts, not all of which have a second step; one cell is far above the others."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        total = rng.uniform(0.5, 2)
        for layer, (part, step) in itertools.product(
            (1, 0), [("question", 0), ("chain", 0), ("step", 2), ("step", 1), ("control", 0)]
        ):
            if part == "step" and step == 2 and number == 3:
                continue
            strong = (layer, part, step) == (1, "step", 2)
            rows.append(
                {
                    "id": f"p{number}",
                    "author": "gold",
                    "layer": layer,
                    "part": part,
                    "step": step,
                    "effect": 0.9 * total if strong else rng.normal(0, 0.1),
                    "total": total,
                    "logit_effect": np.nan,
                    "logit_total": np.nan,
                }
            )
    table = pd.DataFrame(rows)
    found = summarise(table)
    assert found["prompts"] == 12
    assert len(found["cells"]) == 10
    for cell in found["cells"]:
        mine = table[
            (table["layer"] == cell["layer"]) & (table["part"] == cell["part"]) & (table["step"] == cell["step"])
        ]
        assert cell["share"]["estimate"] == pytest.approx(mine["effect"].sum() / mine["total"].sum())
        assert cell["share"]["n"] == len(mine)
        strong = (cell["layer"], cell["part"], cell["step"]) == (1, "step", 2)
        assert (cell["p"] < 0.005) == strong, cell
    # The p of a cell by itself, by enumeration: the family's is never below it.
    for cell in found["cells"]:
        mine = table[
            (table["layer"] == cell["layer"]) & (table["part"] == cell["part"]) & (table["step"] == cell["step"])
        ]
        assert cell["p"] >= statistics.sign_flip(mine["effect"].to_numpy(), seed=0) - 0.02


def test_a_model_of_one_block_has_no_map(tmp_path, any_mass):
    """Behind its only block a token is read by nothing but its own logits."""
    tokenizer = word_tokenizer()
    model = random_model("llama", len(tokenizer), num_hidden_layers=1)
    session = opened(save_checkpoint(tmp_path / "one", model, tokenizer, WORD_FORMAT))
    measured = patch_map(session, WORDS, SETTINGS)
    assert measured.table.empty
    assert {item.reason for item in measured.excluded} == {
        "the model has a single block, behind which nothing reads what is written"
    }


def first_layer_rows(question, chain, total, n=12):
    """Rows of a made-up reader whose question and chain carry these effects after the first layer."""
    return pd.DataFrame(
        [
            {"id": f"p{i}", "layer": 0, "part": part, "effect": effect, "total": total}
            for i in range(n)
            for part, effect in (("question", question), ("chain", chain), ("control", 0.1))
        ]
    )


@pytest.mark.parametrize(
    ("question", "chain", "total", "expected"),
    [
        (0.0, 2.0, 2.0, False),
        (1.0, 1.0, 2.0, False),
        (0.0, 0.0, 2.0, True),
        (0.3, 0.6, 2.0, True),
        (0.0, 0.0, 0.1, False),
    ],
)
def test_where_the_first_layer_has_read_the_answer_no_change_is_given(question, chain, total, expected):
    """Shares of 0 behind it say nothing of the route; a reader without an effect is another matter."""
    attached, other = first_layer_rows(0.0, 2.0, 2.0), first_layer_rows(question, chain, total)
    for pair in ((attached, other), (other, attached)):
        assert MEASURE.compare(*pair) == {"read_before": expected}
        changes = summary._changes(MEASURE, *pair)
        assert all(
            (found == "read in the first layer already") == expected
            for name, found in changes.items()
            if name != "details"
        )


def test_rows_stand_in_the_order_of_the_prompts_whatever_the_batch(case):
    session, prompts = case
    for batch_tokens in (1, 16384):
        table = patch_map(replace(session, batch_tokens=batch_tokens), prompts, SETTINGS).table
        assert list(dict.fromkeys(table["id"])) == [prompt.id for prompt in prompts]
        assert table.groupby("id", sort=False)["layer"].apply(lambda layers: layers.is_monotonic_increasing).all()
