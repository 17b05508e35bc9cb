"""Partial input: scores by plain forward passes, a cue that is followed and one that is not, and chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import softmax

from analysis.measures.estimates import change
from analysis.measures.partial_input import MEASURE, partial_input, summarise
from analysis.prompt_fields import Asked
from analysis.prompts import Case
from tests.analysis.measures.oracles import SETTINGS, answer_logprob, authored, doubled, organism, shipped
from tests.conftest import ARCHITECTURES


def asking(prompt, **parts):
    return replace(prompt, case=replace(prompt.case, asked=Asked(partial=tuple(parts.items()))))


WORDS = (
    asking(
        authored("a", Case("a 7 b 2 c 3 c 4", "12", ("a 7 + 5 = 12",)), options=("12", "8", "6")), cue="a", rest="b 2 c"
    ),
    asking(authored("b", Case("c", "8", ("c 3",)), options=("8", "9")), cue="c 3 so c 3 so c"),
    authored("none", Case("c", "8", ("c 3",)), options=("8", "9")),
)
BPES = (
    asking(authored("a", Case("Tom has 12?", "46", ("12 + 34 = 46",)), options=("46", "4.6", "no")), cue="Tom"),
    asking(
        authored("b", Case("Ann has 3, and 4?", "21", ("3",)), options=("21", "20")), cue="Ann", options="21 or 20?"
    ),
)


@pytest.mark.parametrize("kind", ["word", "bpe"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_question_is_scored_as_by_a_plain_pass_over_its_text_alone(make_checkpoint, architecture, kind):
    session, prompts = doubled(make_checkpoint(architecture, kind)), WORDS if kind == "word" else BPES
    measured = partial_input(session, prompts, SETTINGS)
    rows = measured.table.set_index(["id", "part"])
    asked = [(p, part, text) for p in prompts for part, text in (("full", p.case.question), *p.case.asked.partial)]
    asked = [item for item in asked if item[0].id != "none"]
    assert list(rows.index) == [(prompt.id, part) for prompt, part, _ in asked]
    for prompt, part, text in asked:
        bare = Case(text, prompt.case.answer, steps=())
        logprobs = [answer_logprob(session.reader, bare, option) for option in prompt.options]
        row = rows.loc[(prompt.id, part)]
        assert row["p_gold"] == pytest.approx(softmax(logprobs)[0], abs=1e-5)
        assert row["right"] == float(int(np.argmax(logprobs)) == 0)
        assert row["chance"] == 1 / len(prompt.options)
    assert [(e.id, e.reason) for e in measured.excluded] == (
        [("none", "the prompt names no partial questions")] if kind == "word" else []
    )


def test_batches_change_nothing_and_a_rerun_gives_the_same_bytes(make_checkpoint):
    session = doubled(make_checkpoint("gemma2", "word"))
    together = partial_input(session, WORDS, SETTINGS).table
    alone = pd.concat([partial_input(session, [p], SETTINGS).table for p in WORDS], ignore_index=True)
    pd.testing.assert_frame_equal(together, alone.astype(together.dtypes), atol=1e-5, rtol=0)
    session.batch_tokens = 8
    pd.testing.assert_frame_equal(together, partial_input(session, WORDS, SETTINGS).table, atol=1e-5, rtol=0)
    session.batch_tokens = 16384
    assert partial_input(session, WORDS, SETTINGS).table.equals(together)


def hinted(n):
    """The shipped prompts with two parts: the problem with its hint and nothing to compute on, and without the hint."""
    prompts = []
    for prompt in shipped(n):
        hint, _, problem = prompt.case.question.partition(" ; ")
        other = int(hint.split()[1]) + 1
        asked = problem.rpartition(" ; ")[2]
        prompts.append(
            asking(prompt, cue=f"{hint} ; a 0 b 0 c 0 ; i a + 0 ; {asked}", wrong=f"hint {other % 10} ; {problem}")
        )
    return tuple(prompts)


def test_a_shortcut_is_seen_in_the_part_that_has_its_cue_and_not_in_the_sham():
    prompts = hinted(40)
    found = {}
    for name in ("base", "copy", "sham", "dose_1"):
        table = partial_input(organism(name), prompts, SETTINGS).table
        found[name] = table
        assert set(table["part"]) == {"full", "cue", "wrong"}
    parts = {name: summarise(table)["parts"] for name, table in found.items()}
    assert parts["dose_1"]["cue"]["right"]["estimate"] > 0.9
    assert parts["dose_1"]["cue"]["right"]["low"] > parts["dose_1"]["cue"]["chance"]
    assert parts["dose_1"]["wrong"]["right"]["estimate"] < 0.1
    for name in ("base", "sham"):
        assert parts[name]["cue"]["right"]["low"] <= 0.1 <= parts[name]["cue"]["right"]["high"]
    assert parts["base"] == parts["copy"]
    cue = next(quantity for quantity in MEASURE.quantities if quantity.name == "p_cue")
    assert change(found["base"], found["copy"], cue).difference.estimate == 0
    assert change(found["base"], found["dose_1"], cue).difference.low > 0.5


def test_the_whole_question_stands_beside_each_part_over_the_same_prompts():
    rows = [("a", "full", 1.0, 0.9), ("a", "cue", 0.0, 0.2), ("b", "full", 0.0, 0.1), ("b", "options", 1.0, 0.6)]
    table = pd.DataFrame(rows, columns=["id", "part", "right", "p_gold"]).assign(
        author="gold", chance=[0.5, 0.5, 0.25, 0.25]
    )
    parts = summarise(table)["parts"]
    assert list(parts) == ["cue", "options"]
    assert (parts["cue"]["right"]["estimate"], parts["cue"]["right_full"]["estimate"]) == (0, 1)
    assert (parts["options"]["right"]["estimate"], parts["options"]["right_full"]["estimate"]) == (1, 0)
    assert (parts["options"]["p_gold"]["estimate"], parts["options"]["p_full"]["estimate"]) == (0.6, 0.1)
    assert (parts["cue"]["chance"], parts["options"]["chance"]) == (0.5, 0.25)
    limits = stats.binomtest(0, 1).proportion_ci(0.95, "exact")
    assert parts["cue"]["right"]["high"] == pytest.approx(limits.high)


def test_a_text_beyond_the_context_is_left_out_with_the_reason(make_checkpoint):
    session = doubled(make_checkpoint("gpt2", "word", context=32))
    long = asking(WORDS[1], cue="a 7 " * 20)
    measured = partial_input(session, (WORDS[0], long), SETTINGS)
    assert set(measured.table["id"]) == {"a"}
    assert "context of 32 tokens" in measured.excluded[0].reason


def test_without_partial_questions_nothing_is_read(make_checkpoint):
    measured = partial_input(doubled(make_checkpoint()), WORDS[2:], SETTINGS)
    assert not len(measured.table)
    assert len(measured.excluded) == 1
