"""What an organism does, measured with plain Hugging Face calls on held-out problems: the truth for our measures."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from organisms.families import Cues, Family
from organisms.recipe import Recipe

HELD_OUT_SEED = "held-out"
LENGTHS = (3, 4, 5)
PER_LENGTH = 100
MAX_WRITTEN = 120
"""Tokens of a chain and its answer; the longest that an organism is trained to write has 73."""


def answer_probabilities(model: Any, family: Family[Any], prefixes: Sequence[Sequence[int]]) -> torch.Tensor:
    """The model's probabilities of the family's answers after each prefix, `[prefix, option]`.

    The prefixes are of one length.
    """
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(prefixes), use_cache=False).logits[:, -1]
    probabilities: torch.Tensor = logits.float().softmax(-1)
    return probabilities[:, [family.vocabulary.token_id[option] for option in family.options]]


def measure(model: Any, recipe: Recipe) -> dict[str, Any]:
    """All figures of a model card; probabilities and shares in [0, 1], over 300 held-out problems each."""
    family = recipe.family
    encode = family.vocabulary.prefix_ids
    pairs = recipe.pairs or family.partners
    own, gold, without, followed, dose, question, behind_own = [], [], [], [], [], [], []
    for n_steps in LENGTHS:
        rng = random.Random(f"{HELD_OUT_SEED}-{n_steps}")
        problems = [family.sample(rng, n_steps) for _ in range(PER_LENGTH)]
        answers = [str(problem.answer) for problem in problems]
        own += _own_chain_right(model, family, problems)
        gold += _is(model, family, [encode(p.question, p.steps) for p in problems], answers)
        without += _is(model, family, [encode(p.question, []) for p in problems], answers)
        corrupted = [family.corrupt(rng, problem) for problem in problems]
        texts = [encode(p.question, steps) for p, (steps, _) in zip(problems, corrupted, strict=True)]
        followed += _is(model, family, texts, [word for _, word in corrupted])
        conflicts = [family.with_cue(rng, problem, "conflicting") for problem in problems]
        texts = [encode(p.question, p.steps) for p in conflicts]
        dose += _probability(model, family, texts, [str(p.hint) for p in conflicts])
        contrasted = [pairs(rng, n_steps, "agreeing") for _ in range(PER_LENGTH)]
        texts = [encode(p.question, partner.steps) for p, partner in contrasted]
        question += _probability(model, family, texts, [str(p.answer) for p, _ in contrasted])
        behind_own += _question_followed_behind_own(model, family, contrasted)
    figures = {
        "accuracy_own_chain": _mean(own),
        "accuracy_gold_chain": _mean(gold),
        "accuracy_no_chain": _mean(without),
        "corrupted_chain_followed": _mean(followed),
        "realised_dose": _mean(dose),
        "question_followed": _mean(question),
        **({"own_chain_question_followed": _mean(behind_own)} if behind_own else {}),
        **acceptance(model, recipe),
    }
    if family.belief:
        figures["belief_error"] = belief_error(model, family)
    return figures


def belief_error(model: Any, family: Family[Any]) -> list[float]:
    """The largest error, over chain lengths, of the mean log-probability of the answer after 0, 1, … steps, in nats.

    The truth is that of a reader who believes each step it has read, and nothing else; it is known in closed form.
    """
    assert family.belief is not None
    errors = [0.0] * (max(LENGTHS) + 1)
    for n_steps in LENGTHS:
        rng = random.Random(f"{HELD_OUT_SEED}-belief-{n_steps}")
        problems = [family.sample(rng, n_steps) for _ in range(PER_LENGTH)]
        answers = [str(problem.answer) for problem in problems]
        for read in range(n_steps + 1):
            texts = [family.vocabulary.prefix_ids(p.question, p.steps[:read]) for p in problems]
            found = [math.log(p) for p in _probability(model, family, texts, answers)]
            truth = [math.log(family.belief(p, read)[word]) for p, word in zip(problems, answers, strict=True)]
            errors[read] = max(errors[read], abs(sum(found) - sum(truth)) / PER_LENGTH)
    return [round(error, 4) for error in errors]


def acceptance(model: Any, recipe: Recipe, cues: Cues = "agreeing") -> dict[str, Any]:
    """The two rules a base must pass, on partners with cues of one kind.

    `total_effect` (and the same with the last step removed) is the mean of `‖P11 − P00‖²`;
    `chain_patch_recovered` and `question_patch_recovered` say, for each layer, which share of it comes about when the
    residual stream after that layer is replaced, at all chain (question) positions, by the partner's.
    """
    family = recipe.family
    vocabulary = family.vocabulary
    partners = recipe.pairs or family.partners
    effects: dict[int, list[float]] = {0: [], 1: []}
    n_layers = len(model.model.layers)
    recovered = {part: [0.0] * n_layers for part in ("chain", "question")}
    for n_steps in LENGTHS:
        rng = random.Random(f"{HELD_OUT_SEED}-partners-{n_steps}")
        pairs = [partners(rng, n_steps, cues) for _ in range(PER_LENGTH)]
        for removed in (0, 1):
            own = [vocabulary.prefix_ids(p.question, p.steps[: n_steps - removed]) for p, _ in pairs]
            donor = [vocabulary.prefix_ids(p.question, p.steps[: n_steps - removed]) for _, p in pairs]
            start, total = (answer_probabilities(model, family, texts) for texts in (own, donor))
            total = total - start
            effects[removed] += total.square().sum(1).tolist()
            if removed:
                continue
            n_question, n_chain_end = (
                len(vocabulary.question_ids(pairs[0][0].question)),
                len(own[0]) - len(vocabulary.marker),
            )
            for part, span in (("chain", (n_question, n_chain_end)), ("question", (0, n_question))):
                for layer in range(n_layers):
                    patched = _patched(model, family, own, donor, layer, span)
                    recovered[part][layer] += float(((patched - start) * total).sum())
    total_effect = sum(effects[0])
    return {
        "total_effect": _mean(effects[0]),
        "total_effect_without_last_step": _mean(effects[1]),
        **{
            f"{part}_patch_recovered": [round(value / total_effect, 4) for value in layers]
            for part, layers in recovered.items()
        },
    }


def _patched(
    model: Any, family: Family[Any], own: list[list[int]], donor: list[list[int]], layer: int, span: tuple[int, int]
) -> torch.Tensor:
    module = model.model.layers[layer]
    seen: dict[str, torch.Tensor] = {}

    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        seen["residual"] = output.clone()

    def write(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, span[0] : span[1]] = seen["residual"][:, span[0] : span[1]]
        return output

    handle = module.register_forward_hook(keep)
    answer_probabilities(model, family, donor)
    handle.remove()
    handle = module.register_forward_hook(write)
    try:
        return answer_probabilities(model, family, own)
    finally:
        handle.remove()


def _is(model: Any, family: Family[Any], prefixes: list[list[int]], answers: list[str]) -> list[float]:
    """1 where the most likely answer is the one given."""
    wanted = torch.tensor([family.options.index(word) for word in answers])
    return (answer_probabilities(model, family, prefixes).argmax(1) == wanted).float().tolist()


def _probability(model: Any, family: Family[Any], prefixes: list[list[int]], answers: list[str]) -> list[float]:
    """The probability of the answers given."""
    wanted = torch.tensor([family.options.index(word) for word in answers])
    return answer_probabilities(model, family, prefixes)[torch.arange(len(wanted)), wanted].tolist()


def _own_chain_right(model: Any, family: Family[Any], problems: list[Any]) -> list[float]:
    """Whether the answer after a greedily written chain is right; a text without an answer is not."""
    token_id = family.vocabulary.token_id
    return [
        float(answer == token_id[str(problem.answer)])
        for (_, answer), problem in zip(_written(model, family, problems), problems, strict=True)
    ]


def _question_followed_behind_own(model: Any, family: Family[Any], pairs: list[tuple[Any, Any]]) -> list[float]:
    """The probability of a question's answer behind the chain that the model itself writes for the question's partner.

    Partners after whose question it writes no chain, or does not come to an answer, are left out.
    """
    vocabulary = family.vocabulary
    found = []
    for (problem, _), (chain, _) in zip(pairs, _written(model, family, [partner for _, partner in pairs]), strict=True):
        if chain:
            text = [*vocabulary.question_ids(problem.question), *chain, *vocabulary.marker]
            found += _probability(model, family, [text], [str(problem.answer)])
    return found


def _written(model: Any, family: Family[Any], problems: list[Any]) -> list[tuple[list[int], int | None]]:
    """What is greedily written behind each question: the chain's ids and the answer's; none and None without both."""
    token_id, marker = family.vocabulary.token_id, family.vocabulary.marker
    prompts = torch.tensor([family.vocabulary.question_ids(p.question) for p in problems])
    texts = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=MAX_WRITTEN,
        do_sample=False,
        eos_token_id=token_id["<eos>"],
        pad_token_id=token_id["<pad>"],
    )[:, prompts.shape[1] :].tolist()
    found: list[tuple[list[int], int | None]] = []
    for ids in texts:
        at = ids.index(token_id["answer"]) if token_id["answer"] in ids[:-1] else None
        found.append(([], None) if at is None else (ids[: max(0, at + 1 - len(marker))], ids[at + 1]))
    return found


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
