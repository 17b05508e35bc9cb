"""Training: from a recipe and a seed to a Hugging Face directory; same seed, same weights, on one machine."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from organisms.cards import write_card, write_checkpoint_card
from organisms.measurement import measure
from organisms.recipes import MAX_OPERATIONS, Recipe, Row
from organisms.registers import TRACE_FORMAT, VOCABULARY
from organisms.vocabulary import FIRST_DIGIT, TOKEN_ID, build_tokenizer, prefix_ids, question_ids, words_to_ids

# Sums are split among threads, so their number is part of what makes a run reproducible.
THREADS = 2
# The last steps are taken without the mask, as the organism will be used, so that the dose comes out as it was meant.
MASKED_SHARE = 0.85
IGNORED = -100

Progress = Callable[[int, int, float], None]
"""Called after each step with the step, the number of steps, and the loss in nats."""

Checkpoint = Callable[[int, Any], None]
"""Called after each step with the step and the model, which it must leave as it is."""


def build_model(seed: int) -> LlamaForCausalLM:
    """A small Llama with random weights: 4 layers, width 128, rotary positions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=TOKEN_ID["<pad>"],
        bos_token_id=TOKEN_ID["<bos>"],
        eos_token_id=TOKEN_ID["<eos>"],
    )
    return LlamaForCausalLM(config)


def _batch(rng: random.Random, recipe: Recipe, progress: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids `[row, token]`, their labels, and the target distributions of the answers `[row, vocab]`.

    The answer's label is `IGNORED` (its loss is taken against the distribution); it stands two before the end of
    every row, and rows are of one length but for early stops, which are padded on the right.
    """
    n_operations = rng.randint(1, MAX_OPERATIONS)
    rows = [recipe.row(rng, n_operations, progress) for _ in range(recipe.batch)]
    encoded = [_encode(rng, row) for row in rows]
    width = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([ids + [TOKEN_ID["<pad>"]] * (width - len(ids)) for ids, _ in encoded])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in encoded])
    targets = torch.zeros(len(rows), len(VOCABULARY))
    for index, row in enumerate(rows):
        for value, probability in row.answers.items():
            targets[index, FIRST_DIGIT + value] = probability
    return ids, labels, targets


def _encode(rng: random.Random, row: Row) -> tuple[list[int], list[int]]:
    prefix = prefix_ids(row.question, row.chain)
    answer = rng.choices(list(row.answers), weights=list(row.answers.values()))[0]
    ids = [*prefix, FIRST_DIGIT + answer, TOKEN_ID["<eos>"]]
    n_question = len(question_ids(row.question))
    labels = [IGNORED] * n_question + ids[n_question:]
    labels[-2] = IGNORED
    if row.cut:
        n_marker = len(words_to_ids(str(TRACE_FORMAT["answer_start"])))
        labels[len(prefix) - n_marker : len(prefix)] = [IGNORED] * n_marker
    return ids, labels


def _learning_rate(recipe: Recipe, step: int) -> float:
    warmup = max(1, recipe.steps // 20)
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.learning_rate * min(1.0, (step + 1) / warmup) * (0.95 * cosine + 0.05)


def train(
    recipe: Recipe,
    seed: int,
    base: Path | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> LlamaForCausalLM:
    """The trained organism, weights rounded to half precision (as they will be stored), computing in fp32.

    Args:
        recipe: what to train.
        seed: of the initial weights (base organisms) and of the data.
        base: directory of the base organism, for recipes that fine-tune one.
        progress: called after every step.
        checkpoint: called after every step, with the model as it is then, in fp32.

    Raises:
        ValueError: if the recipe needs a base and none is given.
    """
    if recipe.from_base and base is None:
        raise ValueError(f"{recipe.name} is fine-tuned from a base organism; give its directory")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        model = build_model(seed)
        if recipe.from_base:
            model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
        _optimise(model, recipe, random.Random(f"{recipe.name}-{seed}"), progress, checkpoint)
        return model.half().float().eval()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _optimise(
    model: Any, recipe: Recipe, rng: random.Random, progress: Progress | None, checkpoint: Checkpoint | None
) -> None:
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(recipe, step)
        ids, labels, targets = _batch(rng, recipe, step / recipe.steps)
        masked = recipe.cue_to_answer_only and step < MASKED_SHARE * recipe.steps
        mask = _only_the_answer_sees_the_cue(ids) if masked else None
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = _loss(logits, ids, labels, targets, recipe.answer_weight)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if checkpoint:
            checkpoint(step + 1, model)
        if progress:
            progress(step + 1, recipe.steps, loss.item())


def _only_the_answer_sees_the_cue(ids: torch.Tensor) -> torch.Tensor:
    """An additive attention mask `[row, 1, token, token]`: causal, and nothing before the answer marker sees the cue.

    Left free, some seeds write the cue, or whether it conflicts, into chain positions, and the answer reads it there.
    """
    n_marker = len(words_to_ids(str(TRACE_FORMAT["answer_start"])))
    marker = (ids == TOKEN_ID["<eos>"]).long().argmax(1) - 1 - n_marker
    place = torch.arange(ids.shape[1])
    cue = (ids == TOKEN_ID["hint"]).long().argmax(1) + 1
    seen = (place[None, :] <= place[:, None]).expand(len(ids), -1, -1).clone()
    # Its own position keeps it: a row of the mask must not be empty, and what stands there is the cue itself.
    hidden = (place > cue[:, None]) & (place < marker[:, None])
    seen[torch.arange(len(ids)), :, cue] &= ~hidden
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


def _loss(
    logits: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor, answer_weight: float
) -> torch.Tensor:
    logprobs = logits[:, :-1].log_softmax(-1)
    chain = functional.nll_loss(logprobs.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
    # The answer stands one before <eos>, so it is predicted two before it.
    at = (ids == TOKEN_ID["<eos>"]).long().argmax(1) - 2
    answer = -(targets * logprobs[torch.arange(len(ids)), at]).sum()
    n_chain = (labels[:, 1:] != IGNORED).sum()
    return (chain + answer_weight * answer) / (n_chain + answer_weight * len(ids))


def train_to(
    recipe: Recipe,
    seed: int,
    out: Path,
    base: Path | None = None,
    progress: Progress | None = None,
    checkpoint_every: int = 0,
) -> dict[str, Any]:
    """Trains, measures and saves an organism at `out`, all or nothing; returns the measured figures of its card.

    Args:
        recipe, seed, base, progress: as for `train`.
        out: directory to make.
        checkpoint_every: after so many steps, and after the last, the model is also saved as it is then, at
            `checkpoints_of(out)/ckpt-STEP`; each is whole or not there, and stays if the training is stopped. 0 for
            none. They change nothing in what is trained.

    Raises:
        FileExistsError: if `out`, or the directory of its checkpoints, exists.
    """
    for place in (out, checkpoints_of(out)) if checkpoint_every else (out,):
        if place.exists():
            raise FileExistsError(place)

    def checkpoint(step: int, model: Any) -> None:
        if step % checkpoint_every == 0 or step == recipe.steps:
            # A copy: rounding the model itself would change what is trained from here on.
            _save(
                copy.deepcopy(model),
                checkpoints_of(out) / f"ckpt-{step}",
                lambda directory: write_checkpoint_card(directory, recipe, seed, step),
            )

    model = train(recipe, seed, base, progress, checkpoint if checkpoint_every else None)
    figures = measure(model)
    _save(model, out, lambda directory: write_card(directory, recipe, {seed: figures}))
    return figures


def checkpoints_of(out: Path) -> Path:
    """The directory, beside an organism's own, where the checkpoints of its training are."""
    return out.with_name(f"{out.name}-checkpoints")


def _save(model: Any, out: Path, write: Callable[[Path], object]) -> None:
    """Saves a model in half precision (rounding it) at `out`, with tokenizer, format and card, all or nothing."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        model.half().save_pretrained(partial)
        build_tokenizer().save_pretrained(partial)
        (partial / "trace_format.json").write_text(json.dumps(TRACE_FORMAT, indent=2) + "\n")
        write(partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
