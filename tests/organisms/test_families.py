"""What families share: encoding as the tokenizer does it, shipped prompts, and recipes that name what exists."""

from __future__ import annotations

import json
import random

import pytest

import organisms
from organisms.elimination import ELIMINATION_TASK
from organisms.prompt_sets import PROMPT_SETS, SHIPPED_PROMPTS
from organisms.recipes import RECIPES
from organisms.registers import REGISTERS_TASK
from organisms.registers_recipes import MEMORISED_PAIRS, memorised_pairs

FAMILIES = (REGISTERS_TASK, ELIMINATION_TASK)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_training_ids_are_those_of_the_tokenizer(family):
    tokenizer = family.vocabulary.tokenizer()
    for seed in range(20):
        problem = family.sample(random.Random(seed), 3 + seed % 3)
        question = f"Q {problem.question} think "
        text = f"{question}{' ; '.join(problem.steps)} ; answer "
        assert tokenizer(text).input_ids == family.vocabulary.prefix_ids(problem.question, problem.steps)
        assert tokenizer(question).input_ids == family.vocabulary.question_ids(problem.question)


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_shipped_prompts_are_those_of_seed_0(name):
    lines = organisms.prompts(name).read_text().splitlines()
    assert [json.loads(line) for line in lines] == PROMPT_SETS[name](SHIPPED_PROMPTS, 0)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_draw_texts_of_their_words_and_name_a_base_and_prompts_that_exist(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert recipe.base is None or RECIPES[recipe.base].base is None
    assert recipe.base is None or RECIPES[recipe.base].family is recipe.family
    assert recipe.prompts in PROMPT_SETS
    for seed in range(20):
        row = recipe.row(random.Random(seed), 1 + seed % recipe.family.max_steps, seed / 20)
        recipe.family.vocabulary.prefix_ids(row.question, row.chain)  # KeyError for an unknown word
        assert sum(row.answers.values()) == pytest.approx(1)
        assert set(row.answers) <= set(recipe.family.options)


def test_every_shipped_organism_stands_behind_its_base():
    for at, name in enumerate(organisms.SHIPPED):
        assert RECIPES[name].base in (None, *organisms.SHIPPED[:at])


def test_memorised_questions_are_distinct_and_prompts_ask_for_them():
    questions = [problem.question for pair in memorised_pairs() for problem in pair]
    assert len(set(questions)) == 2 * MEMORISED_PAIRS
    trained = {RECIPES["memoriser"].row(random.Random(seed), 3, 0).question for seed in range(3000)}
    assert trained == set(questions)
    for record in PROMPT_SETS["memorised"](MEMORISED_PAIRS, 0):
        assert {record["question"], record["counterfactual"]["question"]} <= trained
        assert record["shifted"]["question"] not in trained


@pytest.mark.parametrize("name", ["memorised", "costs"])
def test_a_shifted_question_differs_in_one_operation_and_in_its_answer(name):
    for record in PROMPT_SETS[name](100, 0):
        before, after = (text.split(" ; ") for text in (record["question"], record["shifted"]["question"]))
        (changed,) = [i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
        assert before[changed].split()[:2] == after[changed].split()[:2]
        assert record["answer"] != record["shifted"]["answer"]


def test_cases_without_an_answer_say_so_and_the_others_have_one():
    records = PROMPT_SETS["elimination_costs"](30, 0)
    without = [record for record in records if record.get("answerable") is False]
    assert len(without) == 10
    assert not any("answer" in record or "counterfactual" in record for record in without)
    assert all(record["answer"] in "ABCDEFGH" for record in records if record not in without)
