"""The effect of the chain on being right: tests by closed forms and SciPy, texts by plain forward passes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.measures import chain_effect as module
from analysis.measures import session as session_module
from analysis.measures.chain_effect import MEASURE, chain_effect, summarise
from analysis.measures.estimates import scorable as is_scorable
from analysis.prompts import Case
from fracture import summary
from tests.analysis.measures.oracles import SETTINGS, answer_logprob, authored, doubled, table_of

CONDITIONS = ("intact", "no_chain", "foreign", "foreign_question")


def right_table(**columns) -> pd.DataFrame:
    """Rows of simulated prompts; a column for each condition."""
    rows = [
        {"id": f"p{i:03d}", "author": "gold", "condition": condition, "right": float(columns[condition][i])}
        for i in range(len(columns["intact"]))
        for condition in CONDITIONS
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=1)


def simulated(seed: int = 0, n: int = 60, **probabilities) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (rng.random(n) < probabilities[name]).astype(float) for name in CONDITIONS}


def test_effects_are_their_closed_forms():
    columns = simulated(intact=0.8, no_chain=0.3, foreign=0.4, foreign_question=0.75)
    found = summarise(right_table(**columns))["effects"]
    for name, condition in (("chain", "foreign"), ("question", "foreign_question"), ("any_chain", "no_chain")):
        default, treated = columns["intact"], columns[condition]
        gained, lost = int(((default == 1) & (treated == 0)).sum()), int(((default == 0) & (treated == 1)).sum())
        effect = found[name]
        assert (effect["only_default"], effect["only_treated"]) == (gained, lost)
        assert effect["p"] == pytest.approx(stats.binomtest(gained, gained + lost, 0.5).pvalue)
        assert effect["ate"]["estimate"] == pytest.approx(default.mean() - treated.mean())
        assert effect["ate"]["n"] == len(default)
        assert effect["relative"] == pytest.approx(1 - treated.sum() / default.sum())
        odds = [(right.sum() + 0.5) / ((1 - right).sum() + 0.5) for right in (default, treated)]
        assert effect["log_odds"] == pytest.approx(math.log(odds[0] / odds[1]))


def test_a_chain_that_helps_has_a_positive_effect_and_one_that_harms_a_negative_one():
    helping = summarise(right_table(**simulated(intact=1.0, no_chain=0.1, foreign=0.0, foreign_question=1.0)))
    harming = summarise(right_table(**simulated(intact=0.1, no_chain=1.0, foreign=1.0, foreign_question=0.1)))
    for name in ("chain", "any_chain"):
        assert helping["effects"][name]["ate"]["low"] > 0
        assert helping["effects"][name]["log_odds"] > 0
        assert harming["effects"][name]["ate"]["high"] < 0
        assert harming["effects"][name]["log_odds"] < 0
    assert harming["structure"].startswith("isolation")  # no edge is seen where the other chain does better


@pytest.mark.parametrize(
    ("foreign", "foreign_question", "structure"),
    [(0.1, 0.9, "chain:"), (0.1, 0.1, "full connection:"), (0.9, 0.1, "common cause:"), (0.9, 0.9, "isolation:")],
)
def test_the_four_structures(foreign, foreign_question, structure):
    columns = simulated(intact=0.9, no_chain=0.5, foreign=foreign, foreign_question=foreign_question)
    assert summarise(right_table(**columns))["structure"].startswith(structure)


def test_a_reader_that_is_never_right_has_no_relative_effect():
    columns = simulated(intact=0.0, no_chain=0.1, foreign=0.1, foreign_question=0.0)
    found = summarise(right_table(**columns))
    assert found["effects"]["chain"]["relative"] is None
    assert math.isfinite(found["effects"]["chain"]["log_odds"])


OPTIONS = ("12", "8", "6")
PROMPTS = (
    authored("p", Case("a 7 b 2", "12", ("a 7 + 5 = 12",)), Case("a 3 b 9", "8", ("a 3 + 5 = 8",)), OPTIONS),
    authored("q", Case("c 1", "6", ("c 1 * 6 = 6", "so 6")), None, OPTIONS),
    authored("r", Case("b 8", "8", ("b 8",)), Case("b 3 ; c 4", "6", ("b 6",)), OPTIONS),
)


def test_the_four_texts_are_the_question_and_the_chain_each_own_or_anothers(make_checkpoint, monkeypatch):
    monkeypatch.setattr(session_module, "MIN_OPTION_MASS", 0.0)
    session = doubled(make_checkpoint("llama", "word"))
    prompts = (*PROMPTS[:2], replace(PROMPTS[2], tier=3))
    rows = chain_effect(session, prompts, SETTINGS).table.set_index(["id", "condition"])
    assert len(rows) == 4 * len(prompts)
    for prompt in prompts:
        others = [other for other in prompts if other.id != prompt.id]
        nearest = min(abs(len(other.steps) - len(prompt.steps)) for other in others)
        donors = [other for other in others if abs(len(other.steps) - len(prompt.steps)) == nearest]
        asked = (
            [prompt.partner.question]
            if prompt.partner is not None and prompt.tier != 3
            else [donor.case.question for donor in donors]
        )
        texts = {
            "intact": [prompt.case],
            "no_chain": [replace(prompt.case, steps=())],
            "foreign": [replace(prompt.case, steps=donor.steps) for donor in donors],
            "foreign_question": [replace(prompt.case, question=question) for question in asked],
        }
        y = int(np.argmax([answer_logprob(session.reader, prompt.case, option) for option in OPTIONS]))
        for condition, cases in texts.items():
            row = rows.loc[(prompt.id, condition)]
            scores = [[answer_logprob(session.reader, case, option) for option in OPTIONS] for case in cases]
            at = int(np.argmin([abs(score[y] - row["logprob"]) for score in scores]))
            assert row["logprob"] == pytest.approx(scores[at][y], abs=1e-5)
            assert row["right"] == float(OPTIONS[int(np.argmax(scores[at]))] == prompt.case.answer)


def test_the_base_hangs_on_the_chain_and_dose_1_on_the_question():
    found = {
        name: summarise(table_of(module, name))["structure"].split(":")[0] for name in ("base", "dose_1", "collapsed")
    }
    assert found == {"base": "chain", "dose_1": "common cause", "collapsed": "isolation"}


@pytest.mark.parametrize(("name", "cues"), [("collapsed", "agreeing"), ("dose_1", "random")])
def test_of_a_reader_that_is_hardly_ever_right_no_share_of_right_answers_is_weighed(name, cues):
    """Behind another question's chain it is right less often because it is right less often altogether.

    The collapsed organism reads nothing, and dose 1 follows cues that are wrong here: all shares of right answers fall,
    whatever the answer hangs on (accuracy is not the verdict). The text tests call such a reader not scorable.
    """
    tables = [table_of(module, reader, cues=cues) for reader in ("base", name)]
    assert is_scorable(tables[0])
    assert not is_scorable(tables[1])
    reported = summary._changes(MEASURE, *tables)
    for quantity in MEASURE.quantities:
        if quantity.detached:
            assert not isinstance(reported[quantity.name], dict), (quantity.name, reported[quantity.name])
