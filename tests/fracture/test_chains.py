"""Every prompt with the chain of every author: what is kept, what is left out and why."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from analysis.authored import Authored, from_table, to_table
from analysis.cells import Contrast, Excluded
from analysis.measures.routes import without_conclusion
from analysis.models import ModelPair
from analysis.partners import PartneredPrompt
from analysis.prompts import Case, Prompt
from fracture.chains import assemble, choose_author, write
from fracture.config import StudyConfig
from fracture.progress import Progress

QUESTIONS = ["a 7 b 2", "a 3", "c 9 ; b 4 ; a 1"]


def study(**options) -> StudyConfig:
    return StudyConfig(base="b", variants={"v": "v"}, prompts="p", out="o", **options)


@pytest.fixture(scope="module")
def pair(make_checkpoint):
    model = make_checkpoint("llama", "word")
    return ModelPair.load(model, {"v": make_checkpoint("llama", "word", seed=1)})


def given(*prompts: Prompt) -> list[PartneredPrompt]:
    return [PartneredPrompt(prompt, None if prompt.partner is None else 1) for prompt in prompts]


def written(pair, prompts, author, **options):
    return {name: write(pair.open(name), prompts, author, study(**options), Progress()) for name in ("base", "v")}


def test_chains_that_the_limit_cuts_are_excluded_and_counted(pair):
    prompts = given(*(Prompt(q, Case(q, "12"), Case(f"c {q}", "8")) for q in QUESTIONS))
    chains = assemble(pair, prompts, "base", written(pair, prompts, "base", max_chain_tokens=3))
    for author in ("base", "v"):
        kept = [prompt for prompt in chains.prompts if prompt.author == author]
        lost = [item for item in chains.excluded if item.author == author]
        assert len(kept) + len(lost) == len(QUESTIONS)
        assert any(
            f"the chain that {author} wrote was cut by the limit of 3 new tokens" in item.reason for item in lost
        )


def test_given_chains_keep_their_own_gaps_and_bad_ones_are_named(pair):
    own = Case("a 7 b 2", "12", response="a 7 + 5 = 12 ;  b 2 * 3 = 6 ; answer 12 <eos>")
    partner = Case("a 3 b 9", "8", chain=" a 3 + 5 = 8 ; ; b 9 * 3 = 27 ")
    unmarked = Case("a 7 b 2", "12", response="a 7 + 5 = 12 ; b 2")
    special = Case("a 7 b 2", "12", chain="a 7 <bos> ; b 2")
    prompts = given(
        Prompt("whole", own, partner),
        Prompt("unmarked", unmarked, partner),
        Prompt("special", special, partner),
        Prompt("empty", Case("a", "1", chain=" "), partner),
        Prompt("one", Case("a 1", "1", chain="a 1"), partner),
        Prompt("half", Case("a 1", "1", chain="a 1"), replace(partner, chain=" ")),
        Prompt("same", Case("a 3 b 9", "1", chain="a 1"), partner),
        Prompt("alone", Case("a 1", "1", chain="a 1")),
    )
    chains = assemble(pair, prompts, "gold", {})
    assert [prompt.id for prompt in chains.prompts] == ["whole", "unmarked", "one", "half", "same", "alone"]
    assert [prompt.case.answered for prompt in chains.prompts] == [True, False, True, True, True, True]
    assert chains.excluded == (
        Excluded("special", "its chain holds the text of the special token '<bos>'", "gold"),
        Excluded("empty", "its chain is empty", "gold"),
    )
    assert chains.without_partner == (
        Excluded("half", "the partner: its chain is empty", "gold"),
        Excluded("same", "the partner has the same question", "gold"),
        Excluded("alone", "no counterfactual partner", "gold"),
    )
    first = chains.prompts[0]
    assert (first.case.gaps, first.partner.gaps, first.tier) == ((" ;  ", ""), (" ; ; ", ""), 1)
    assert [prompt.tier for prompt in chains.prompts[3:]] == [None, None, None]
    contrasts = [Contrast(p.id, p.case, p.partner) for p in chains.prompts if p.partner]
    shortened = without_conclusion(contrasts)
    assert [contrast.id for contrast in shortened] == ["whole", "unmarked"]
    assert (shortened[0].partner.steps, shortened[0].partner.gaps) == (("a 3 + 5 = 8",), ("",))


def test_a_model_that_writes_the_gold_chain_reads_it_once(pair):
    """Its separators, written out, are the format's: the case must be the same object, to be scored once."""
    gold = Case("a 7", "12", steps=("a 7 + 5 = 12", "b 2"))
    prompts = given(Prompt("1", gold), Prompt("2", gold), Prompt("3", gold))
    rows = [
        {"id": "1", "whose": "own", "steps": list(gold.steps), "gaps": [" ; ", ""], "answer": "12", "cut": None},
        {"id": "2", "whose": "own", "steps": list(gold.steps), "gaps": [" ;  ", ""], "answer": None, "cut": None},
        {"id": "3", "whose": "own", "steps": ["a 7 + 5 = 12"], "gaps": [""], "answer": "5", "cut": None},
    ]
    chains = assemble(pair, prompts, "gold", {"v": pd.DataFrame(rows)})
    read = {(prompt.author, prompt.id): prompt for prompt in chains.prompts}
    assert read["v", "1"].case is read["gold", "1"].case
    assert read["v", "2"].case.gaps == (" ;  ", "")
    assert not read["v", "2"].case.answered
    assert read["v", "3"].case.steps == ("a 7 + 5 = 12",)
    assert [read["v", name].written for name in "123"] == ["12", None, "5"]
    assert read["gold", "1"].written is None


def test_whose_chains_are_read_by_default():
    both = Prompt("1", Case("a", "1", steps=("a",)), Case("b", "2", steps=("b",)))
    lacking = Prompt("2", Case("a", "1", steps=("a",)), Case("b", "2"))
    assert choose_author(study(), [both]) == "gold"
    assert choose_author(study(), [both, lacking]) == "base"
    assert choose_author(study(author="base"), [both]) == "base"


def test_authored_prompts_survive_their_table(tmp_path):
    prompts = [
        Authored(
            "1", "gold", Case("q", "a", ("s", "t"), gaps=(" ", "")), Case("q2", "a2", ("u",)), ("a", "a2"), 1, None
        ),
        Authored("2", "sft", Case("q", "a", ("s",), answered=False), Case("q2", "a2"), (), 2, "a"),
        Authored("3", "sft", Case("q", "a", ("s",))),
    ]
    to_table(prompts).to_parquet(tmp_path / "t.parquet")
    assert from_table(pd.read_parquet(tmp_path / "t.parquet")) == prompts
