"""The whole residual map, exact, against one forward pass a cell, and against the operations that it takes.

A random Llama of 12 layers and width 512 reads 64 texts of about 200 tokens; of each, every step is patched with
another text's stream after every layer but the last, and the next token's distribution is read. Two alternatives:

- TransformerLens, one `run_with_hooks` a cell, on some of the texts, with the time a cell taken for all;
- a bound: the multiplications that an exact answer needs (both runs of each text, and behind each patch the later
  layers at the later tokens; in the last layer keys and values of those, and the rest at one token), at the rate at
  which the plain Hugging Face forward multiplies, in the same run, at the best of several batch sizes.

Log-probabilities must agree to 1e-5 with TransformerLens before anything is printed. The largest memory is read
after the cells of one step of 16 texts, and of all.

    python -m benchmarks.patching
"""

from __future__ import annotations

import copy
import functools
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

import organisms
from analysis import kv_cache, patching, sites
from benchmarks.models import INNER, LAYERS, WIDTH, random_model

VOCABULARY = 4096
N_TEXTS, STEPS, COMPARED = 64, 6, 2
BATCH_TOKENS = 16384
TOGETHER = 16
"""Texts whose caches and streams are held at once."""
REPEATS = 1
BATCHES = (4, 16, 32)


def layouts(rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """The steps of each text, as spans of tokens: a question of about 60 tokens, six steps, a marker of four."""
    found = []
    for _ in range(N_TEXTS):
        at, spans = int(rng.integers(50, 70)), []
        for length in rng.integers(18, 26, STEPS):
            spans.append((at, at + int(length)))
            at += int(length)
        found.append(spans)
    return found


def operations(length: int, start: int, layers: int) -> float:
    """Multiplications to read tokens `start` … `length` in so many layers, of the last one what one answer needs."""
    new = length - start
    keys_and_values, others = 2 * WIDTH * WIDTH, 2 * WIDTH * WIDTH + 3 * WIDTH * INNER
    attended = 2 * WIDTH * sum(range(start + 1, length + 1))
    return (layers - 1) * (new * (keys_and_values + others) + attended) + (
        new * keys_and_values + others + 2 * WIDTH * length + WIDTH * VOCABULARY
    )


def needed(texts: Sequence[Sequence[int]], steps: Sequence[Sequence[tuple[int, int]]]) -> float:
    """Multiplications of the whole map: two runs of each text, and one a cell from where and below what it differs."""
    total = sum(2 * operations(len(ids), 0, LAYERS) for ids in texts)
    for ids, spans in zip(texts, steps, strict=True):
        total += sum(
            operations(len(ids), start, LAYERS - 1 - layer) for start, _ in spans for layer in range(LAYERS - 1)
        )
    return total


def rate(model: Any, texts: Sequence[Sequence[int]]) -> float:
    """Multiplications a second of the plain forward, at its best batch size."""
    best = 0.0
    for size in BATCHES:
        batch = sorted(texts, key=len)[:size]
        ids, real = kv_cache.pad_right(batch, model.device)
        for _ in range(2):
            begun = time.perf_counter()
            with torch.inference_mode():
                model(input_ids=ids, attention_mask=real.long(), use_cache=False, logits_to_keep=1)
            seconds = time.perf_counter() - begun
        whole = sum(
            LAYERS * (len(row) * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER) + 2 * WIDTH * sum(range(1, len(row) + 1)))
            for row in batch
        )
        best = max(best, (whole + size * WIDTH * VOCABULARY) / seconds)
    return best


def grid(
    model: Any,
    own: Sequence[Sequence[int]],
    donors: Sequence[Sequence[int]],
    steps: Sequence[Sequence[tuple[int, int]]],
) -> list[np.ndarray]:
    """The log-probabilities of some next tokens behind each cell, text by text, step by step, layer by layer."""
    found = []
    for at in range(0, len(own), TOGETHER):
        part = slice(at, at + TOGETHER)
        found += _some(model, own[part], donors[part], steps[part])
    return found


def _some(
    model: Any,
    own: Sequence[Sequence[int]],
    donors: Sequence[Sequence[int]],
    steps: Sequence[Sequence[tuple[int, int]]],
) -> list[np.ndarray]:
    """A part of the grid; what it holds is let go before the next."""
    hooks = [sites.hook_name("resid_post", layer) for layer in range(LAYERS - 1)]
    options = [[(token,) for token in range(0, VOCABULARY, 64)]] * len(own)
    donor = patching.read_texts(model, donors, options, hooks)
    texts = patching.read_texts(model, own, options)
    cells = [
        patching.Cell(row, hook, np.arange(start, end), donor.recorded[hook][row, start:end])
        for row, spans in enumerate(steps)
        for start, end in spans
        for hook in hooks
    ]
    return patching.patched(model, "random", texts, cells, BATCH_TOKENS)


def written(value: torch.Tensor, hook: Any, new: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """The activation with another's at some tokens, as TransformerLens' hooks take it."""
    value = value.clone()
    value[:, start:end] = new[:, start:end]
    return value


def one_by_one(
    bridge: Any,
    own: Sequence[Sequence[int]],
    donors: Sequence[Sequence[int]],
    steps: Sequence[Sequence[tuple[int, int]]],
) -> list[np.ndarray]:
    """The same with TransformerLens, a run a cell."""
    hooks = [sites.hook_name("resid_post", layer) for layer in range(LAYERS - 1)]
    found = []
    for ids, donor, spans in zip(own, donors, steps, strict=True):
        _, cache = bridge.run_with_cache(torch.tensor([donor]), names_filter=hooks)
        for start, end in spans:
            for hook in hooks:
                write = functools.partial(written, new=cache[hook], start=start, end=end)
                logits = bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=[(hook, write)])
                found.append(logits[0, -1].log_softmax(-1)[::64].numpy())
    return found


def peak_of(
    model: Any,
    own: Sequence[Sequence[int]],
    donors: Sequence[Sequence[int]],
    steps: Sequence[Sequence[tuple[int, int]]],
) -> float:
    """The process's largest memory so far, in MiB, after the cells of `TOGETHER` texts; twice, as the first call finds
    the allocator empty."""
    for _ in range(2):
        grid(model, own[:TOGETHER], donors[:TOGETHER], steps[:TOGETHER])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Prints both ratios, the largest difference, and the memory."""
    torch.set_num_threads(2)
    from transformer_lens.model_bridge import TransformerBridge

    model = random_model(VOCABULARY)
    # Texts are given as ids; it only asks for some tokenizer.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(organisms.checkpoint("base"))
    bridge = TransformerBridge.boot_transformers(
        "random", hf_model=copy.deepcopy(model), tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )
    rng = np.random.default_rng(0)
    steps = layouts(rng)
    lengths = [spans[-1][1] + 4 for spans in steps]
    own, donors = ([rng.integers(4, VOCABULARY, n).tolist() for n in lengths] for _ in range(2))
    cells = N_TEXTS * STEPS * (LAYERS - 1)

    few, many = (peak_of(model, own, donors, [spans[:n] for spans in steps]) for n in (1, STEPS))
    ours, bounds = [], []
    for _ in range(REPEATS):
        before = rate(model, own)
        begun = time.perf_counter()
        result = grid(model, own, donors, steps)
        ours.append(time.perf_counter() - begun)
        bounds.append(needed(own, steps) / max(before, rate(model, own)))

    some = slice(0, COMPARED)
    with torch.inference_mode():
        one_by_one(bridge, own[:1], donors[:1], [steps[0][:1]])
        begun = time.perf_counter()
        reference = one_by_one(bridge, own[some], donors[some], steps[some])
        a_cell = (time.perf_counter() - begun) / len(reference)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(result, reference, strict=False))
    if not worst <= 1e-5:
        raise SystemExit(f"results differ by {worst:.1e}; no ratio is reported")
    seconds = min(ours)
    print(f"{N_TEXTS} texts of {min(lengths)} to {max(lengths)} tokens, {STEPS} steps, {LAYERS} layers: {cells} cells")
    print(
        f"exact map {seconds:.1f} s; operations alone {max(b / s for b, s in zip(bounds, ours, strict=True)):.2f} of it"
    )
    print(
        f"TransformerLens, one run a cell: {1000 * a_cell:.0f} ms a cell, {a_cell * cells:.0f} s for all (from "
        f"{len(reference)} cells), ratio {a_cell * cells / seconds:.1f}; largest difference {worst:.0e}"
    )
    n = TOGETHER * (LAYERS - 1)
    print(f"largest memory with {TOGETHER} texts: {few:.0f} MiB after {n} cells, {many:.0f} MiB after {n * STEPS}")


if __name__ == "__main__":
    main()
