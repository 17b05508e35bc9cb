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
from organisms.recipe import Recipe, Row
from organisms.vocabulary import Vocabulary

THREADS = 2
"""Set for every training: sums may be split among threads, so their number is part of what makes it reproducible."""
# The last steps are taken without the mask, as the organism will be used, so that the dose comes out as it was meant.
MASKED_SHARE = 0.85
IGNORED = -100

Progress = Callable[[int, int, float], None]
"""Called after each step with the step, the number of steps, and the loss in nats."""

Checkpoint = Callable[[int, Any], None]
"""Called after each step with the step and the model, which it must leave as it is."""


def build_model(vocabulary: Vocabulary, seed: int) -> LlamaForCausalLM:
    """A small Llama with random weights: 4 layers, width 128, rotary positions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary.words),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=vocabulary.token_id["<pad>"],
        bos_token_id=vocabulary.token_id["<bos>"],
        eos_token_id=vocabulary.token_id["<eos>"],
    )
    return LlamaForCausalLM(config)


def _batch(rng: random.Random, recipe: Recipe, progress: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids `[row, token]`, their labels, and the target distributions of the answers `[row, vocab]`.

    The answer's label is `IGNORED` (its loss is taken against the distribution); it stands before `<eos>`, the last
    token of every row that is not padding on the right.
    """
    vocabulary = recipe.family.vocabulary
    n_steps = rng.randint(1, recipe.family.max_steps)
    rows = [recipe.row(rng, n_steps, progress) for _ in range(recipe.batch)]
    encoded = [_encode(rng, vocabulary, row) for row in rows]
    width = max(len(ids) for ids, _ in encoded)
    ids = torch.tensor([ids + [vocabulary.token_id["<pad>"]] * (width - len(ids)) for ids, _ in encoded])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in encoded])
    targets = torch.zeros(len(rows), len(vocabulary.words))
    for index, row in enumerate(rows):
        for word, probability in row.answers.items():
            targets[index, vocabulary.token_id[word]] = probability
    return ids, labels, targets


def _encode(rng: random.Random, vocabulary: Vocabulary, row: Row) -> tuple[list[int], list[int]]:
    prefix = vocabulary.prefix_ids(row.question, row.chain)
    answer = rng.choices(list(row.answers), weights=list(row.answers.values()))[0]
    ids = [*prefix, vocabulary.token_id[answer], vocabulary.token_id["<eos>"]]
    n_given = len(prefix) if row.given else len(vocabulary.question_ids(row.question))
    labels = [IGNORED] * n_given + ids[n_given:]
    labels[-2] = IGNORED
    if row.cut:
        n_marker = len(vocabulary.marker)
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
    threads: int = THREADS,
) -> LlamaForCausalLM:
    """The trained organism, weights rounded to half precision (as they will be stored), computing in fp32.

    Args:
        recipe: what to train.
        seed: of the initial weights (base organisms) and of the data.
        base: directory of the base organism, for recipes that fine-tune one.
        progress: called after every step.
        checkpoint: called after every step, with the model as it is then, in fp32.
        threads: of torch; one gives the same weights as two, as the tests see.

    Raises:
        ValueError: if the recipe needs a base and none is given.
    """
    if recipe.base and base is None:
        raise ValueError(f"{recipe.name} is fine-tuned from {recipe.base}; give its directory")
    before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        model = build_model(recipe.family.vocabulary, seed)
        if recipe.base:
            model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
        _optimise(model, recipe, random.Random(f"{recipe.name}-{seed}"), progress, checkpoint)
        return model.half().float().eval()
    finally:
        torch.set_num_threads(before)
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
        masked = recipe.hidden and step < MASKED_SHARE * recipe.steps
        mask = _mask(recipe, ids) if masked else None
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = _loss(recipe, logits, ids, labels, targets)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if checkpoint:
            checkpoint(step + 1, model)
        if progress:
            progress(step + 1, recipe.steps, loss.item())


def _mask(recipe: Recipe, ids: torch.Tensor) -> torch.Tensor:
    """An additive attention mask `[row, 1, token, token]`: causal, and without what the recipe hides.

    Left free, some seeds of a dose write the cue, or whether it conflicts, into chain positions, and the answer reads
    it there. A row of the mask is never empty: the cue keeps itself, and `<bos>` is seen by all.
    """
    vocabulary = recipe.family.vocabulary
    place = torch.arange(ids.shape[1])
    end = _first(ids, vocabulary.token_id["<eos>"])
    marker = end - 1 - len(vocabulary.marker)
    seen = (place[None, :] <= place[:, None]).expand(len(ids), -1, -1).clone()
    if recipe.hidden == "cue":
        cue = _first(ids, vocabulary.token_id["hint"]) + 1
        hidden = (place > cue[:, None]) & (place < marker[:, None])
        seen[torch.arange(len(ids)), :, cue] &= ~hidden
    else:
        chain = _first(ids, vocabulary.token_id["think"]) + 1
        question = (place > 0) & (place < chain[:, None])
        seen &= ~((place >= marker[:, None])[:, :, None] & question[:, None, :])
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


def _first(ids: torch.Tensor, token: int) -> torch.Tensor:
    """The place of each row's first such token, `[row]`."""
    return (ids == token).long().argmax(1)


def _loss(
    recipe: Recipe, logits: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """The mean loss in nats, of the chain's tokens and of the answers, which weigh `recipe.answer_weight` each."""
    logprobs = logits[:, :-1].log_softmax(-1)
    chain = functional.nll_loss(logprobs.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
    # The answer stands one before <eos>, so it is predicted two before it.
    at = _first(ids, recipe.family.vocabulary.token_id["<eos>"]) - 2
    answer = -(targets * logprobs[torch.arange(len(ids)), at]).sum()
    n_chain = (labels[:, 1:] != IGNORED).sum()
    return (chain + recipe.answer_weight * answer) / (n_chain + recipe.answer_weight * len(ids))


def train_to(
    recipe: Recipe,
    seed: int,
    out: Path,
    base: Path | None = None,
    progress: Progress | None = None,
    checkpoint_every: int = 0,
    threads: int = THREADS,
) -> dict[str, Any]:
    """Trains, measures and saves an organism at `out`, all or nothing; returns the measured figures of its card.

    Args:
        recipe, seed, base, progress, threads: as for `train`.
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
                recipe,
                copy.deepcopy(model),
                checkpoints_of(out) / f"ckpt-{step}",
                lambda directory: write_checkpoint_card(directory, recipe, seed, step),
            )

    model = train(recipe, seed, base, progress, checkpoint if checkpoint_every else None, threads)
    figures = measure(model, recipe)
    _save(recipe, model, out, lambda directory: write_card(directory, recipe, {seed: figures}))
    return figures


def checkpoints_of(out: Path) -> Path:
    """The directory, beside an organism's own, where the checkpoints of its training are."""
    return out.with_name(f"{out.name}-checkpoints")


def _save(recipe: Recipe, model: Any, out: Path, write: Callable[[Path], object]) -> None:
    """Saves a model in half precision (rounding it) at `out`, with tokenizer, format and card, all or nothing."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        model.half().save_pretrained(partial)
        recipe.family.vocabulary.tokenizer().save_pretrained(partial)
        (partial / "trace_format.json").write_text(json.dumps(recipe.family.vocabulary.trace_format, indent=2) + "\n")
        write(partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
