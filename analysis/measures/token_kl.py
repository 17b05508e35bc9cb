"""Token divergence: how far a variant's next-token distributions have moved from the base's, over the chain.

A baseline, as drift is: a harmless fine-tune moves them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch

from analysis import kv_cache
from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.measures.protocol import Measure, Measured, Quantity, Settings
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS
from analysis.models import BASE
from analysis.options import MAX_LOGITS
from analysis.traces import Trace

COLUMNS = ("id", "author", "kl", "n_tokens")


@torch.inference_mode()
def token_kl(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """One row a prompt: `kl`, the mean over the chain's tokens of `KL(base ‖ variant)` in nats, where each is
    predicted.

    The base itself has no rows. Where base and variant put another text around the question, each reads its own.
    """
    if session.name == BASE:
        return Measured(pd.DataFrame(columns=list(COLUMNS)))
    base = session.open_base()
    excluded = [Excluded(p.id, NO_STEPS, p.author) for p in prompts if not p.steps]
    having = [prompt for prompt in prompts if prompt.steps]
    pairs = [
        tuple(reader.encoder.encode(p.case.question, p.steps, None, p.case.gaps) for reader in (base, session.reader))
        for p in having
    ]
    context = [source.context for source in (base.source, session.reader.source) if source.context is not None]
    longest = min(context, default=None)
    fits = [longest is None or max(len(trace.ids) for trace in pair) <= longest for pair in pairs]
    excluded += [
        Excluded(p.id, f"longer than the context of {longest} tokens", p.author)
        for p, fit in zip(having, fits, strict=True)
        if not fit
    ]
    stage = session.stage(f"{session.name}: token divergence from base", len(having))
    rows: list[dict[str, Any]] = []
    size = base.source.vocabulary
    kept = [(p, pair) for p, pair, fit in zip(having, pairs, fits, strict=True) if fit]
    for batch in _batches(kept, max(1, MAX_LOGITS // size)):
        theirs, ours = (
            _logprobs(reader.model, [pair[which] for _, pair in batch])
            for which, reader in enumerate((base, session.reader))
        )
        for (prompt, _), p, q in zip(batch, theirs, ours, strict=True):
            # One of them may have more rows of embeddings than the other: compared over the tokens that both know.
            shared = min(p.shape[1], q.shape[1])
            p, q = (logprobs[:, :shared].log_softmax(-1) for logprobs in (p, q))
            kl = (p.exp() * (p - q)).sum(-1)
            rows.append({"id": prompt.id, "author": prompt.author, "kl": float(kl.mean()), "n_tokens": len(kl)})
        stage(len(batch))
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def _batches(
    items: Sequence[tuple[Authored, tuple[Trace, ...]]], most_tokens: int
) -> Iterator[list[tuple[Authored, tuple[Trace, ...]]]]:
    batch: list[tuple[Authored, tuple[Trace, ...]]] = []
    for item in sorted(items, key=lambda item: max(len(trace.ids) for trace in item[1])):
        if batch and max(len(trace.ids) for trace in item[1]) * (len(batch) + 1) > most_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _logprobs(model: Any, traces: Sequence[Trace]) -> list[torch.Tensor]:
    """For each text `[chain token, vocab]`, the log-probabilities from which each of the chain's tokens is
    predicted."""
    ids, real = kv_cache.pad_right([trace.ids for trace in traces], model.device)
    logits = model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
    return [
        logits[row, trace.chain[0] - 1 : trace.chain[1] - 1].double().log_softmax(-1)
        for row, trace in enumerate(traces)
    ]


MEASURE = Measure(
    name="token_kl",
    title="How far have next-token distributions moved over the chain? (a baseline)",
    run=token_kl,
    authors="headline",
    quantities=(Quantity("kl", "divergence from the base a chain token", "nats", "kl"),),
    descriptive=True,
    beside_base=True,
    tokens=lambda size: 2 * size.text,
)
