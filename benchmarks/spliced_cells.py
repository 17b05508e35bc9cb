"""The seven cells of a prompt from shared key-value prefixes, against one full forward pass a cell and option.

The alternative does the same work the plain way: for the text cells, every option is written out behind every text and
the whole is run; for the inside cells, donor and recipient are run once and every option is continued, one row at a
time, from a cache spliced for it. Both run in the same process on the same prompts, and their probabilities must agree
to 1e-5 before a ratio is printed.

    python -m benchmarks.spliced_cells
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from transformers import DynamicCache

import organisms
from analysis.cells import CELLS, Cells, Contrast, measure_cells
from analysis.models import ModelPair, Reader
from analysis.prompts import Case, read_prompts

N_PROMPTS = 24
REPEATS = 3


@torch.inference_mode()
def plain_text_cells(reader: Reader, contrast: Contrast) -> np.ndarray:
    """`P_ab` by text, `[2, 2, option]`, one unpadded forward pass a cell and option."""
    cases = (contrast.own, contrast.partner)
    cells = []
    for a, b in CELLS:
        scores = []
        for option in contrast.options:
            trace = reader.encoder.encode(cases[a].question, cases[b].steps or (), option, cases[b].gaps)
            ids = torch.tensor([trace.ids])
            logprobs = reader.model(ids, use_cache=False).logits[0].log_softmax(-1)
            scores.append(sum(float(logprobs[i - 1, trace.ids[i]]) for i in range(*trace.answer)))
        cells.append(np.exp(scores) / np.exp(scores).sum())
    return np.stack(cells).reshape(2, 2, -1)


@torch.inference_mode()
def plain_inside_cells(reader: Reader, contrast: Contrast) -> np.ndarray:
    """`P01`, `P10` and `P11` by spliced caches, `[3, option]`, one continuation a cell and option."""
    cases = (contrast.own, contrast.partner)
    traces = [reader.encoder.encode(case.question, case.steps or (), gaps=case.gaps) for case in cases]
    (_, question_end), (_, chain_end) = traces[0].question, traces[0].chain
    runs = [reader.model(torch.tensor([t.ids[:chain_end]]), use_cache=True).past_key_values.layers for t in traces]
    cells = []
    for question, chain in ((0, 1), (1, 0), (1, 1)):
        scores = []
        for option in contrast.options:
            cache = DynamicCache()
            for layer, (q, c) in enumerate(zip(runs[question], runs[chain], strict=True)):
                keys = torch.cat([q.keys[:, :, :question_end], c.keys[:, :, question_end:]], dim=2)
                values = torch.cat([q.values[:, :, :question_end], c.values[:, :, question_end:]], dim=2)
                cache.update(keys, values, layer)
            trace = reader.encoder.encode(contrast.own.question, contrast.own.steps or (), option, contrast.own.gaps)
            rest = trace.ids[chain_end:]
            logprobs = reader.model(torch.tensor([rest]), past_key_values=cache).logits[0].log_softmax(-1)
            first = trace.answer[0] - chain_end
            scores.append(sum(float(logprobs[i - 1, rest[i]]) for i in range(first, len(rest))))
        cells.append(np.exp(scores) / np.exp(scores).sum())
    return np.stack(cells)


def main() -> None:
    """Prints the median time of both, their ratio, and the largest difference between their probabilities."""
    torch.set_num_threads(2)
    pair = ModelPair.load(organisms.checkpoint("base"), {"dose": organisms.checkpoint("dose_0.5")})
    reader = pair.open("dose")
    contrasts = [
        Contrast(prompt.id, prompt.case, prompt.partner or Case("", ""), prompt.options)
        for prompt in read_prompts(organisms.prompts("agreeing"))[:N_PROMPTS]
    ]
    ours, plain = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        cells = measure_cells(reader, contrasts)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        reference = [(plain_text_cells(reader, c), plain_inside_cells(reader, c)) for c in contrasts]
        plain.append(time.perf_counter() - start)
    worst = 0.0
    for result, (text, inside) in zip(cells, reference, strict=True):
        if not isinstance(result, Cells) or result.inside is None:
            raise SystemExit(f"prompt {result.id} was not scored")
        # P11 inside is a check that reports its own error.
        spliced = result.inside.reshape(4, -1)[[1, 2]]
        worst = max(worst, np.abs(result.text - text).max(), np.abs(spliced - inside[:2]).max(), result.splice_error)
    if worst > 1e-5:
        raise SystemExit(f"results differ by {worst:.1e}; no ratio is reported")
    ratio = statistics.median(plain) / statistics.median(ours)
    print(
        f"{N_PROMPTS} prompts, seven cells, ten options: one pass a cell and option {statistics.median(plain):.2f} s,"
    )
    print(f"shared prefixes {statistics.median(ours):.2f} s, ratio {ratio:.1f}; largest difference {worst:.0e}")


if __name__ == "__main__":
    main()
