"""What the tests of measures share: plain Hugging Face runs of one text, and the shipped organisms as sessions."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import organisms
from analysis.authored import GOLD, Authored
from analysis.measures.protocol import Settings
from analysis.measures.session import Session
from analysis.models import ModelPair, Reader
from analysis.prompts import Case, read_prompts
from analysis.verifiers import load_verifier

SETTINGS = Settings(verifier=load_verifier("arithmetic:10"))


def text_before(reader: Reader, case: Case) -> str:
    """Everything up to the answer marker's last visible character, written by hand."""
    form = reader.encoder.format
    steps = case.steps or ()
    gaps = case.gaps
    if gaps is None:
        chain = form.step_separator.join(steps)
    else:
        chain = "".join(step + gap for step, gap in zip(steps, gaps, strict=True))
    return form.question.replace("{question}", case.question) + form.chain_start + chain + form.answer_start.rstrip()


def tokens_of(reader: Reader, case: Case, answer: str) -> tuple[list[int], int]:
    """The ids of text, answer and stop, tokenised whole; and the place of the answer's first token."""
    before = text_before(reader, case)
    form = reader.encoder.format
    whole = before + form.answer_start[len(form.answer_start.rstrip()) :] + answer + form.stop
    encoded = reader.encoder.tokenizer(whole, return_offsets_mapping=True)
    first = next(i for i, (_, end) in enumerate(encoded.offset_mapping) if end > len(before))
    return encoded.input_ids, first


@torch.no_grad()
def token_logprobs(reader: Reader, case: Case, answer: str) -> list[float]:
    """The log-probability of each of the answer's tokens and the stop's, from one forward pass over one text."""
    ids, first = tokens_of(reader, case, answer)
    logprobs = reader.model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return [float(logprobs[i - 1, ids[i]]) for i in range(first, len(ids))]


def answer_logprob(reader: Reader, case: Case, answer: str) -> float:
    """`LP(answer | text)` in nats."""
    return sum(token_logprobs(reader, case, answer))


def opened(directory: Path) -> Session:
    """A session on a checkpoint as it is."""
    pair = ModelPair.load(directory, {"copy": directory})
    return Session(pair, pair.open("copy"))


def doubled(directory: Path) -> Session:
    """A session on a checkpoint in double precision, where batching leaves no rounding to hide behind.

    Gemma 2 stays in single: the library's own softmax is, and makes NaN of padding where a mask is double's least.
    """
    session = opened(directory)
    reader = session.reader
    model = reader.model if reader.model.config.model_type == "gemma2" else reader.model.double()
    return Session(session.pair, Reader(reader.source, model))


@cache
def organism(name: str) -> Session:
    """A shipped organism; `copy` is the base under another name."""
    variants: dict[str, str | Path] = {
        "copy": organisms.checkpoint("base"),
        **{other: organisms.checkpoint(other) for other in ("sham", "dose_0.25", "dose_1", "collapsed", "selective")},
    }
    pair = ModelPair.load(organisms.checkpoint("base"), variants)
    return Session(pair, pair.open(name))


@cache
def shipped(n: int, cues: str = "agreeing") -> tuple[Authored, ...]:
    """The first prompts of a shipped file, with gold chains and given partners."""
    return tuple(
        Authored(p.id, GOLD, p.case, p.partner, p.options, 1) for p in read_prompts(organisms.prompts(cues))[:n]
    )


@cache
def table_of(module: Any, name: str, n: int = 30, cues: str = "agreeing") -> pd.DataFrame:
    """A measure's table of an organism on shipped prompts, none of which may be excluded."""
    measured = module.MEASURE.run(organism(name), shipped(n, cues), SETTINGS)
    assert not measured.excluded
    return measured.table


def authored(identifier: str, case: Case, partner: Case | None = None, options: tuple[str, ...] = (), **more: Any):
    """A prompt with a gold chain."""
    return Authored(identifier, GOLD, case, partner, options, None if partner is None else 1, **more)


def as_author(prompts: tuple[Authored, ...], author: str) -> tuple[Authored, ...]:
    """The same chains as if another author had written them."""
    return tuple(replace(prompt, author=author) for prompt in prompts)
