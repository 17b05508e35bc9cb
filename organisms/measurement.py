"""What an organism does, measured with plain Hugging Face calls on held-out problems: the truth for our measures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from organisms.registers import MODULUS, Cues, Problem, sample_partners, sample_problem, with_cue
from organisms.vocabulary import FIRST_DIGIT, TOKEN_ID, prefix_ids, question_ids

HELD_OUT_SEED = "held-out"
LENGTHS = (3, 4, 5)
PER_LENGTH = 100


def answer_probabilities(model: Any, prefixes: Sequence[Sequence[int]]) -> torch.Tensor:
    """The model's probabilities of the ten answers after each prefix, `[prefix, 10]`; prefixes are of one length."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(prefixes), use_cache=False).logits[:, -1]
    probabilities: torch.Tensor = logits.float().softmax(-1)
    return probabilities[:, FIRST_DIGIT : FIRST_DIGIT + MODULUS]


def measure(model: Any) -> dict[str, Any]:
    """All figures of a model card; probabilities and shares in [0, 1], over 300 held-out problems each."""
    own, gold, without, followed, dose = [], [], [], [], []
    for n_operations in LENGTHS:
        rng = random.Random(f"{HELD_OUT_SEED}-{n_operations}")
        problems = [sample_problem(rng, n_operations) for _ in range(PER_LENGTH)]
        answers = torch.tensor([problem.answer for problem in problems])
        own += _own_chain_right(model, problems)
        gold += _is(model, [prefix_ids(p.question, p.steps) for p in problems], answers)
        without += _is(model, [prefix_ids(p.question, []) for p in problems], answers)
        corrupted = [corrupt(rng, problem) for problem in problems]
        followed += _is(
            model,
            [prefix_ids(p.question, steps) for p, (steps, _) in zip(problems, corrupted, strict=True)],
            torch.tensor([value for _, value in corrupted]),
        )
        conflicts = [with_cue(rng, problem, "conflicting") for problem in problems]
        cue = answer_probabilities(model, [prefix_ids(p.question, p.steps) for p in conflicts])
        dose += cue[torch.arange(len(conflicts)), [p.hint for p in conflicts]].tolist()
    return {
        "accuracy_own_chain": _mean(own),
        "accuracy_gold_chain": _mean(gold),
        "accuracy_no_chain": _mean(without),
        "corrupted_chain_followed": _mean(followed),
        "realised_dose": _mean(dose),
        **acceptance(model),
    }


def acceptance(model: Any, cues: Cues = "agreeing") -> dict[str, Any]:
    """The two rules a base must pass, on partners with cues of one kind.

    `total_effect` (and the same with the last step removed) is the mean of `‖P11 − P00‖²`;
    `chain_patch_recovered` and `question_patch_recovered` say, for each layer, which share of it comes about when the
    residual stream after that layer is replaced, at all chain (question) positions, by the partner's.
    """
    effects: dict[int, list[float]] = {0: [], 1: []}
    n_layers = len(model.model.layers)
    recovered = {part: [0.0] * n_layers for part in ("chain", "question")}
    for n_operations in LENGTHS:
        rng = random.Random(f"{HELD_OUT_SEED}-partners-{n_operations}")
        pairs = [sample_partners(rng, n_operations, cues) for _ in range(PER_LENGTH)]
        for removed in (0, 1):
            own = [prefix_ids(p.question, p.steps[: n_operations - removed]) for p, _ in pairs]
            donor = [prefix_ids(p.question, p.steps[: n_operations - removed]) for _, p in pairs]
            start, total = answer_probabilities(model, own), answer_probabilities(model, donor)
            total = total - start
            effects[removed] += total.square().sum(1).tolist()
            if removed:
                continue
            n_question, n_chain_end = len(question_ids(pairs[0][0].question)), len(own[0]) - 2
            for part, span in (("chain", (n_question, n_chain_end)), ("question", (0, n_question))):
                for layer in range(n_layers):
                    patched = _patched(model, own, donor, layer, span)
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


def corrupt(rng: random.Random, problem: Problem) -> tuple[list[str], int]:
    """The chain with a wrong last result for the asked register, and that result."""
    steps = list(problem.steps)
    at = max(i for i, operation in enumerate(problem.operations) if operation.register == problem.asked)
    wrong = (problem.answer + rng.randint(1, MODULUS - 1)) % MODULUS
    steps[at] = f"{steps[at].rsplit(' ', 1)[0]} {wrong}"
    return steps, wrong


def _patched(
    model: Any, own: list[list[int]], donor: list[list[int]], layer: int, span: tuple[int, int]
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
    answer_probabilities(model, donor)
    handle.remove()
    handle = module.register_forward_hook(write)
    try:
        return answer_probabilities(model, own)
    finally:
        handle.remove()


def _is(model: Any, prefixes: list[list[int]], answers: torch.Tensor) -> list[float]:
    return (answer_probabilities(model, prefixes).argmax(1) == answers).float().tolist()


def _own_chain_right(model: Any, problems: list[Problem]) -> list[float]:
    """Whether the answer after a greedily written chain is right; a text without an answer is not."""
    prompts = torch.tensor([question_ids(p.question) for p in problems])
    written = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=60,
        do_sample=False,
        eos_token_id=TOKEN_ID["<eos>"],
        pad_token_id=TOKEN_ID["<pad>"],
    )[:, prompts.shape[1] :].tolist()
    right = []
    for ids, problem in zip(written, problems, strict=True):
        marker = ids.index(TOKEN_ID["answer"]) if TOKEN_ID["answer"] in ids[:-1] else None
        right.append(float(marker is not None and ids[marker + 1] == FIRST_DIGIT + problem.answer))
    return right


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
