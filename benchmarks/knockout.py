"""Attention knockout of every step from shared key-value prefixes, against one full forward pass a step.

A random Llama of 12 layers and width 512 reads texts of about 200 tokens with eight steps. Of each, the log-probability
of an answer of two tokens is taken behind the text as it is and with each step hidden from marker and answer. The
alternative is plain Hugging Face: text and answer are run whole, once a step, with a 4-D mask written for it, several
texts at a time as well. Both run in the same process on the same texts, and their log-probabilities must agree to 1e-5
before a ratio is printed.

    python -m benchmarks.knockout
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from analysis.masking import Mask, Text, masked_logprobs
from benchmarks.models import random_model
from benchmarks.timing import interleaved, ratio

VOCABULARY = 1024
N_TEXTS, STEPS, MARKER, ANSWER = 16, 8, 4, 2
PLAIN_ROWS = 16
REPEATS = 2


def random_texts() -> list[Text]:
    """Texts with a question of about 60 tokens, the steps, a marker and one answer, and a mask for each step."""
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(N_TEXTS):
        bounds = [int(bound) for bound in rng.integers(50, 70) + np.cumsum([0, *rng.integers(14, 20, STEPS)])]
        ids = rng.integers(3, VOCABULARY, bounds[-1] + MARKER + ANSWER).tolist()
        masks = tuple(Mask(bounds[-1], span) for span in ((0, 0), *itertools.pairwise(bounds)))
        texts.append(Text(tuple(ids[:-ANSWER]), (tuple(ids[-ANSWER:]),), masks))
    return texts


@torch.inference_mode()
def plain(model: Any, texts: Sequence[Text]) -> list[np.ndarray]:
    """The answer's log-probability for each text and mask, `[mask, 1]`: whole texts with a mask of their own each."""
    runs = [(text, mask) for text in texts for mask in text.masks]
    runs.sort(key=lambda run: len(run[0].ids))
    found: dict[tuple[Text, Mask], float] = {}
    for start in range(0, len(runs), PLAIN_ROWS):
        part = runs[start : start + PLAIN_ROWS]
        width = max(len(text.ids) + ANSWER for text, _ in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        lowest = torch.finfo(model.dtype).min
        masks = torch.full((len(part), 1, width, width), lowest).triu(1)
        for row, (text, mask) in enumerate(part):
            whole = (*text.ids, *text.options[0])
            ids[row, : len(whole)] = torch.tensor(whole)
            masks[row, 0, mask.start :, mask.hidden[0] : mask.hidden[1]] = lowest
        logprobs = model(input_ids=ids, attention_mask=masks, use_cache=False).logits.log_softmax(-1)
        for row, (text, mask) in enumerate(part):
            first = len(text.ids)
            read = logprobs[row, first - 1 : first - 1 + ANSWER].double()
            found[text, mask] = float(read.gather(1, torch.tensor(text.options[0])[:, None]).sum())
    return [np.array([[found[text, mask]] for mask in text.masks]) for text in texts]


def main() -> None:
    """Prints the median time of both, their ratio, and the largest difference between their log-probabilities."""
    torch.set_num_threads(2)
    model, texts = random_model(VOCABULARY), random_texts()
    ours, theirs = [], []
    seconds = interleaved(
        {
            "plain": lambda: theirs.append(plain(model, texts)),
            "shared": lambda: ours.append(masked_logprobs(model, texts)),
        },
        REPEATS,
    )
    worst = max(float(np.abs(one - other).max()) for one, other in zip(ours[-1], theirs[-1], strict=True))
    if worst > 1e-5:
        raise SystemExit(f"log-probabilities differ by {worst:.1e}; no ratio is reported")
    effect = max(float(np.abs(one - one[0]).max()) for one in ours[-1])
    whole, shared = (statistics.median(seconds[name]) for name in ("plain", "shared"))
    tokens = statistics.mean(len(text.ids) for text in texts)
    print(f"{N_TEXTS} texts of {tokens:.0f} tokens, {STEPS} steps hidden in turn: a full pass a step {whole:.1f} s,")
    print(
        f"shared prefixes {shared:.1f} s, ratio {ratio(seconds, 'plain', 'shared'):.1f}; largest difference {worst:.0e}"
    )
    print(f"of effects up to {effect:.1f} nats")


if __name__ == "__main__":
    main()
