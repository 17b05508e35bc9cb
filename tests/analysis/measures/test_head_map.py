"""The head map, cell by cell: plain forward and backward passes over whole texts, with hooks set by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.attribution import STEPS
from analysis.errors import InputError
from analysis.measures import head_map as module
from analysis.measures import session as session_module
from analysis.measures.head_map import MARKER, SAMPLE, TOP, head_map, summarise
from analysis.prompts import Case
from tests.analysis.measures.oracles import (
    SETTINGS,
    answer_logprob,
    as_author,
    authored,
    doubled,
    organism,
    shipped,
    table_of,
    tokens_of,
)
from tests.analysis.measures.test_patch_map import BPES, WORDS, spans_of
from tests.conftest import WORD_FORMAT, random_model, save_checkpoint, word_tokenizer

KEYS = ["layer", "head", "part", "step"]
WORD_OPTIONS = (*map(str, range(30)), "6 7", "6 8", "6 7 1")
BPE_OPTIONS = ("46", "34", "123", "7", "9", "21", "47", "463", "5 cakes", "5 apples")
ALIKE, BPE_ALIKE = WORD_OPTIONS[-3:], ("5 cakes", "5 apples", "5 more")
"""Answers whose first token says nothing; of the first and the last not even the second does."""
LONG = authored(
    "long",
    Case("a 7 b 2 c 9 a 1", "12", ("a 7 + 5 = 12", "b 2 * 3 = 6", "c 9 - 1 = 8")),
    Case("a 1 b 4 c 3 a 2", "8", ("a 1 + 5 = 6", "b 4 * 3 = 12", "c 3 - 2 = 1")),
)
TOM = authored(
    "tom",
    Case("Tom has 12 cakes and buys 7 more.", "21", ("12 + 7 = 21", "He has 21.", "So 21.")),
    Case("Tom has 34 cakes and buys 3 more.", "46", ("12 + 3 = 46", "He has 46.", "So 46.")),
)
PROMPTS = {
    "word": [
        replace(prompt, id=f"{prompt.id} of {len(options)}", options=options)
        for prompt in (*WORDS, LONG)
        for options in (WORD_OPTIONS, ALIKE)
    ],
    "bpe": [
        replace(prompt, id=f"{prompt.id} of {len(options)}", options=options)
        for prompt in (*BPES, TOM)
        for options in (BPE_OPTIONS, BPE_ALIKE)
    ],
}
"""Texts of several lengths, so that there is padding; few of them have an effect in any one random model."""
# Seeds with which several prompts have an effect, some behind a token that the answers share.
READERS = (
    ("llama", "word", 6),
    ("gpt2", "word", 1),
    ("gemma2", "word", 6),
    ("gemma3_text", "word", 2),
    ("mistral", "word", 6),
    ("qwen3", "word", 6),
    ("qwen2", "bpe", 9),
    ("gpt_neox", "bpe", 6),
)


def projection(model, layer):
    """The module whose input the heads' outputs are, one behind the other."""
    if model.config.model_type == "gpt2":
        return model.transformer.h[layer].attn.c_proj
    if model.config.model_type == "gpt_neox":
        return model.gpt_neox.layers[layer].attention.dense
    return model.model.layers[layer].self_attn.o_proj


def logits(model, ids, layer=None, write=None, embedded=None):
    """The logits behind the last token, and the input of every output projection, from one plain pass.

    `write` replaces that input at a layer; `embedded` stands for the tokens.
    """
    kept, handles = {}, []
    for at in range(model.config.num_hidden_layers):

        def hook(_, args, at=at):
            value = write(args[0]) if at == layer else args[0]
            kept[at] = value
            return (value, *args[1:])

        handles.append(projection(model, at).register_forward_pre_hook(hook))
    given = {"input_ids": torch.tensor([ids])} if embedded is None else {"inputs_embeds": embedded}
    found = model(**given, use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return found, kept


class ByHand:
    """What one prompt's cells are, from whole texts without padding or caches."""

    def __init__(self, reader, prompt):
        self.model, self.prompt = reader.model, prompt
        scores = [[answer_logprob(reader, case, o) for o in prompt.options] for case in (prompt.case, prompt.partner)]
        own, other = (prompt.options[int(np.argmax(of))] for of in scores)
        (here, first), (there, _) = tokens_of(reader, prompt.case, own), tokens_of(reader, prompt.case, other)
        self.same = own == other
        part = first
        while not self.same and here[part] == there[part]:
            part += 1
        self.ids, self.pair = here[:part], (here[part], there[part])
        self.donor_ids = [*tokens_of(reader, prompt.partner, own)[0][:first], *here[first:part]]
        self.parts = spans_of(reader, prompt)
        with torch.no_grad():
            self.undisturbed = self.difference(logits(self.model, self.ids)[0])
            end, self.donor = logits(self.model, self.donor_ids)
        self.total = float(self.difference(end) - self.undisturbed)
        self.parts[MARKER] = list(range(max(self.parts["chain"]) + 1, part))

    def difference(self, found):
        return found[self.pair[1]] - found[self.pair[0]]

    @torch.no_grad()
    def effect(self, layer, head, places):

        def write(value):
            value = value.clone()
            size = value.shape[-1] // self.model.config.num_attention_heads
            where = slice(head * size, (head + 1) * size)
            value[0, places, where] = self.donor[layer][0, places, where]
            return value

        found, _ = logits(self.model, self.ids, layer, write)
        return float(self.difference(found) - self.undisturbed)

    def plain(self):
        """`[layer][token, head]`: gradient times difference."""
        found, own = logits(self.model, self.ids)
        gradients = torch.autograd.grad(self.difference(found), list(own.values()))
        products = [gradient * (self.donor[at] - own[at].detach()) for at, gradient in enumerate(gradients)]
        return [self.by_head(product) for product in products]

    def integrated(self, steps=STEPS):
        """The same along the way of the embeddings, by trapezoids."""
        table = self.model.get_input_embeddings()
        own, donor = (table(torch.tensor([ids])).detach() for ids in (self.ids, self.donor_ids))
        path = []
        for step in range(steps + 1):
            found, kept = logits(self.model, None, embedded=own + (donor - own) * step / steps)
            path.append((kept, torch.autograd.grad(self.difference(found), list(kept.values()))))
        return [
            self.by_head(
                sum(
                    (first[1][at] + second[1][at]) / 2 * (second[0][at] - first[0][at])
                    for first, second in itertools.pairwise(path)
                )
            )
            for at in range(self.model.config.num_hidden_layers)
        ]

    def by_head(self, value):
        return value.detach()[0].unflatten(-1, (self.model.config.num_attention_heads, -1)).sum(-1).numpy()


def name_of(row):
    return f"step {row['step']}" if row["part"] == "step" else row["part"]


@pytest.fixture(params=READERS, ids=lambda param: f"{param[0]}-{param[1]}")
def case(request, make_checkpoint, any_mass):
    architecture, kind, seed = request.param
    return doubled(make_checkpoint(architecture, kind, seed)), PROMPTS[kind]


def test_every_estimate_total_and_confirmed_effect_equals_plain_passes_with_hooks(case):
    session, prompts = case
    measured = head_map(session, prompts, SETTINGS)
    table, reasons = measured.table, {item.id: item.reason for item in measured.excluded}
    n_layers = session.reader.model.config.num_hidden_layers
    lengths = []
    for prompt in prompts:
        hand = ByHand(session.reader, prompt)
        rows = table[table["id"] == prompt.id].to_dict("records")
        assert (prompt.id in reasons) == (not rows)
        if hand.same or hand.total < 1:
            assert ("same answer" if hand.same else "at least 1 nats nearer") in reasons[prompt.id]
            continue
        lengths.append(len(hand.ids))
        # Layers but the last, 4 heads, question, chain and marker and steps; of the last layer the marker alone.
        assert len(rows) == 4 * ((n_layers - 1) * (3 + len(prompt.steps)) + 1)
        plain = hand.plain()
        for row in rows:
            places = hand.parts[name_of(row)]
            assert row["n_positions"] == len(places)
            assert row["total"] == pytest.approx(hand.total, abs=1e-4)
            by_hand = plain[row["layer"]][places, row["head"]].sum()
            assert row["plain"] == pytest.approx(by_hand, rel=1e-4, abs=1e-4), name_of(row)
            assert (row["chosen"] == "") == np.isnan(row["effect"])
            if row["chosen"]:
                effect = hand.effect(row["layer"], row["head"], places)
                assert row["effect"] == pytest.approx(effect, abs=1e-4), (row["layer"], row["head"], name_of(row))
    assert lengths, "no prompt had an effect to be wrong about"
    assert table["effect"].abs().max() > 0.5
    assert {TOP, SAMPLE} <= set(table["chosen"])


def test_results_do_not_depend_on_the_batch_or_the_order(case):
    session, prompts = case
    keys = ["id", *KEYS]
    whole = head_map(session, prompts, SETTINGS).table.set_index(keys).sort_index()
    for other in (
        head_map(replace(session, batch_tokens=1), prompts, SETTINGS),
        head_map(session, prompts[::-1], SETTINGS),
    ):
        table = other.table.set_index(keys).sort_index()
        assert table["chosen"].equals(whole["chosen"])
        for column in ("plain", "integrated", "effect", "total"):
            np.testing.assert_allclose(table[column], whole[column], atol=1e-5, rtol=1e-6)


@pytest.fixture
def llama(make_checkpoint, any_mass):
    return doubled(make_checkpoint("llama", "word", 6))


def test_the_integrated_estimate_is_that_of_embeddings_moved_by_hand(llama):
    """Through the library's own `inputs_embeds`, trapezoids written out."""
    table = head_map(llama, PROMPTS["word"], SETTINGS).table
    far = 0.0
    for prompt in PROMPTS["word"]:
        rows = table[table["id"] == prompt.id].to_dict("records")
        hand = ByHand(llama.reader, prompt)
        integrated = hand.integrated() if rows else []
        for row in rows:
            expected = integrated[row["layer"]][hand.parts[name_of(row)], row["head"]].sum()
            assert row["integrated"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
            far = max(far, abs(row["integrated"] - row["plain"]))
    assert table["id"].nunique() == 6
    assert far > 1, "both estimates say the same"


@pytest.mark.parametrize(("seed", "name"), [(9, "two of 33"), (8, "two of 3"), (6, "long of 3")])
def test_the_head_that_does_most_in_a_saturated_model_is_confirmed_and_the_gradient_alone_would_pass_it_over(
    tmp_path, any_mass, monkeypatch, seed, name
):
    """Llamas whose later blocks attend sharply. Which head does most is found by one plain pass for every cell."""
    tokenizer = word_tokenizer()
    model = random_model("llama", len(tokenizer), seed)
    with torch.no_grad():
        for layer in (1, 2):
            model.model.layers[layer].self_attn.q_proj.weight.mul_(8)
    session = doubled(save_checkpoint(tmp_path, model, tokenizer, WORD_FORMAT))
    monkeypatch.setattr(module, "TOP_CELLS", 5)
    monkeypatch.setattr(module, "MIN_SAMPLE", 1)
    (prompt,) = (p for p in PROMPTS["word"] if p.id == name)
    hand = ByHand(session.reader, prompt)
    table = head_map(session, [prompt], SETTINGS).table
    by_hand = [hand.effect(row["layer"], row["head"], hand.parts[name_of(row)]) for row in table.to_dict("records")]
    largest = int(np.abs(by_hand).argmax())
    planted = table.iloc[largest]
    assert (table["plain"].abs() > abs(planted["plain"])).sum() >= 5
    assert planted["chosen"] == TOP
    assert planted["effect"] == pytest.approx(by_hand[largest], abs=1e-4)
    assert (table["chosen"] == TOP).sum() == 5


def test_a_hook_that_fires_twice_is_refused(make_checkpoint, any_mass):
    session = doubled(make_checkpoint("llama", "word", 6))
    attention = session.reader.model.model.layers[1].self_attn
    once = attention.forward

    def twice(*args, **kwargs):
        attention.o_proj(torch.zeros(1, 1, 32, dtype=torch.float64))
        return once(*args, **kwargs)

    attention.forward = twice
    with pytest.raises(InputError, match=r"hook 'blocks\.1\.attn\.hook_z' fired 2 times in one pass, expected once"):
        head_map(session, PROMPTS["word"], SETTINGS)


def test_the_marker_reaches_over_what_the_answers_have_in_common(llama):
    table = head_map(llama, PROMPTS["word"], SETTINGS).table
    sizes = table[table["part"] == MARKER].groupby("id")["n_positions"].first()
    # `; answer`, and the 6 that both answers begin with.
    assert sizes["two of 33"] == 2
    assert sizes["two of 3"] == 3


@pytest.mark.parametrize(("seed", "name"), [(3, "three of 33"), (1, "two of 33"), (5, "long of 3")])
def test_an_answer_that_is_nearer_only_in_its_later_tokens_has_no_denominator(make_checkpoint, any_mass, seed, name):
    """Whole answers, with their stops, are nats nearer in the partner's run; the tokens that tell them apart are not,
    or are farther."""
    session = doubled(make_checkpoint("llama", "word", seed))
    (prompt,) = (p for p in PROMPTS["word"] if p.id == name)
    scores = [
        {option: answer_logprob(session.reader, case, option) for option in prompt.options}
        for case in (prompt.case, prompt.partner)
    ]
    y, other = (max(of, key=of.get) for of in scores)
    assert scores[1][other] - scores[1][y] - scores[0][other] + scores[0][y] > 1
    assert ByHand(session.reader, prompt).total < 0.1
    measured = head_map(session, [prompt], SETTINGS)
    assert measured.table.empty
    assert "at least 1 nats nearer" in measured.excluded[0].reason


def test_a_partner_that_is_the_prompt_itself_has_no_map(case):
    session, prompts = case
    same = tuple(replace(prompt, partner=replace(prompt.case, answer=prompt.partner.answer)) for prompt in prompts)
    measured = head_map(session, same, SETTINGS)
    assert measured.table.empty
    assert {item.reason for item in measured.excluded} == {"the partner's run gives the same answer"}
    assert len(measured.excluded) == len(prompts)


def test_a_partners_answer_that_the_options_hardly_hold_has_no_map(make_checkpoint, monkeypatch):
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    session = doubled(make_checkpoint("llama", "word", 6))
    measured = head_map(session, PROMPTS["word"], SETTINGS)
    assert measured.table.empty
    assert {item.reason for item in measured.excluded} == {"the options hold less than 0.8 of the partner's answer"}


def test_two_authors_of_one_prompt_keep_their_own_effects(llama):
    """The same id, with another chain."""
    ours = [p for p in PROMPTS["word"] if p.id in ("two of 33", "three of 33")]
    theirs = as_author((replace(ours[1], id=ours[0].id),), "sft")
    table = head_map(llama, [ours[0], *theirs], SETTINGS).table
    alone = head_map(llama, theirs, SETTINGS).table.set_index(KEYS)["effect"]
    mine = table[table["author"] == "sft"].set_index(KEYS)["effect"]
    both = pd.concat([mine, alone], axis=1).dropna()
    assert len(both) > 20
    np.testing.assert_allclose(both.iloc[:, 0], both.iloc[:, 1], atol=1e-6)


@pytest.fixture(scope="module")
def organism_maps():
    return {name: table_of(module, name, 20) for name in ("base", "copy", "dose_1")}


@pytest.mark.parametrize("name", ["base", "dose_1"])
def test_three_heads_at_the_marker_carry_the_answer_of_the_organisms(organism_maps, name):
    """Found by hand before there was a map: 1.1, 1.2 and 1.3; no other cell does anything."""
    found = summarise(organism_maps[name])
    shares = {tuple(cell[key] for key in KEYS): cell["share"]["estimate"] for cell in found["cells"]}
    three = {(1, head, MARKER, 0) for head in (1, 2, 3)}
    assert {tuple(cell[key] for key in KEYS) for cell in found["cells"][:3]} == three
    assert all(cell["share"]["estimate"] > 0.05 for cell in found["cells"][:3])
    assert max(abs(share) for key, share in shares.items() if key not in three) < 0.02
    assert all(cell["chosen"] == TOP for cell in found["cells"][:3])
    assert found["screen"]["missed"] == 0
    # The gradient alone sees less than half of what they do; the way between, all of it.
    for cell in found["cells"][:3]:
        assert cell["plain"] < cell["share"]["estimate"] / 2
        assert cell["integrated"] > 0.9 * cell["share"]["estimate"]
    assert found["prompts"] == 20


def test_a_copy_of_the_base_has_its_map_and_a_rerun_the_same_bytes(organism_maps):
    pd.testing.assert_frame_equal(organism_maps["base"], organism_maps["copy"], check_exact=True)
    again = head_map(organism("base"), shipped(20), SETTINGS).table
    pd.testing.assert_frame_equal(again, organism_maps["base"], check_exact=True)


def test_a_model_that_reads_nothing_has_no_prompt():
    measured = head_map(organism("collapsed"), shipped(8), SETTINGS)
    assert measured.table.empty
    assert list(measured.table.columns) == list(module.COLUMNS)
    assert len(measured.excluded) == 8


def test_the_summary_holds_shares_errors_and_estimates_by_hand():
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"p{prompt}", "author": "gold", "layer": cell // 3, "head": cell % 3, "part": "chain", "step": 0}
        | {"chosen": "" if cell > 7 else "sample" if cell > 3 else "top", "total": float(rng.uniform(1, 5))}
        | dict(zip(("plain", "integrated", "effect"), rng.normal(0.3, 1, 3), strict=True))
        for prompt in range(12)
        for cell in range(10)
        if (prompt, cell) != (3, 1)
    ]
    table = pd.DataFrame(rows)
    table.loc[table["chosen"] == "", "effect"] = np.nan
    found = summarise(table)
    by_cell = {}
    for (layer, head), mine in table.groupby(["layer", "head"]):
        by_cell[layer, head] = [
            mine[column].sum() / mine["total"].sum() for column in ("effect", "plain", "integrated")
        ]
    assert len(found["cells"]) == 8
    for cell in found["cells"]:
        share, plain, integrated = by_cell[cell["layer"], cell["head"]]
        assert (cell["share"]["estimate"], cell["plain"], cell["integrated"]) == pytest.approx(
            (share, plain, integrated)
        )
        assert cell["share"]["n"] == (11 if (cell["layer"], cell["head"]) == (0, 1) else 12)
    sizes = [abs(cell["share"]["estimate"]) for cell in found["cells"]]
    assert sizes == sorted(sizes, reverse=True)
    exact = np.array([by_cell[cell // 3, cell % 3] for cell in range(8)])
    assert found["screen"]["error"]["plain"] == pytest.approx(np.abs(exact[:, 1] - exact[:, 0]).max())
    assert found["screen"]["error"]["integrated"] == pytest.approx(np.abs(exact[:, 2] - exact[:, 0]).max())
    # Spearman without ties, from squared differences of ranks.
    ranks = exact.argsort(0).argsort(0)
    rho = 1 - 6 * ((ranks[:, 1] - ranks[:, 0]) ** 2).sum() / (8 * 63)
    assert found["screen"]["correlation"]["plain"] == pytest.approx(rho)
    assert found["screen"]["missed"] == (np.abs(exact[4:, 0]) >= 0.1).sum()
    assert found["screen"]["largest"] == pytest.approx(np.abs(exact[4:, 0]).max())
