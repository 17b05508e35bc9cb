"""Chains that a model writes itself, greedily, split into steps and an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from analysis.models import Reader
from analysis.trace_format import TraceFormat


@dataclass(frozen=True)
class Written:
    """What a model wrote after a question.

    Attributes:
        steps: its chain.
        answer: the text between answer marker and stop; None if it set no marker.
        finished: whether the stop came before the token limit.
    """

    steps: tuple[str, ...]
    answer: str | None
    finished: bool


def write_chains(
    reader: Reader,
    questions: Sequence[str],
    max_new_tokens: int = 256,
    batch_tokens: int = 16384,
    progress: Callable[[int], None] | None = None,
) -> list[Written]:
    """The chain and answer that `reader` writes after each question, greedily.

    Args:
        reader: the author.
        questions: as in prompts, without the format's wrapper.
        max_new_tokens: where a text that does not stop is cut; sooner where the model's context ends.
        batch_tokens: how many tokens one batch may hold.
        progress: called with the number of questions done since the last call.
    """
    prompts = [reader.encoder.encode_question(question) for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    results: dict[int, Written] = {}
    if reader.source.context is not None:
        full = [i for i in order if len(prompts[i]) >= reader.source.context]
        results |= dict.fromkeys(full, Written((), None, False))
        order = order[: len(order) - len(full)]
        if progress:
            progress(len(full))
    while order:
        size = max(1, batch_tokens // (len(prompts[order[-1]]) + max_new_tokens))
        batch, order = order[:size], order[size:]
        for index, written in zip(batch, _write(reader, [prompts[i] for i in batch], max_new_tokens), strict=True):
            results[index] = written
        if progress:
            progress(len(batch))
    return [results[index] for index in range(len(prompts))]


def _write(reader: Reader, prompts: list[list[int]], max_new_tokens: int) -> list[Written]:
    from transformers import StoppingCriteria, StoppingCriteriaList

    tokenizer, model, trace_format = reader.encoder.tokenizer, reader.model, reader.encoder.format
    width = max(map(len, prompts))
    if reader.source.context is not None:
        max_new_tokens = min(max_new_tokens, reader.source.context - width)
    # Generation pads on the left (new tokens must follow the text); the mask makes positions right.
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)

    class AfterAnswer(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            texts = (tokenizer.decode(row[width:], clean_up_tokenization_spaces=False) for row in input_ids)
            return torch.tensor([parse(text, trace_format).finished for text in texts], device=input_ids.device)

    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = tokenizer.eos_token_id
    stops = [] if eos is None else eos if isinstance(eos, list) else [eos]
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        stopping_criteria=StoppingCriteriaList([AfterAnswer()]),
    )[:, width:]
    written = []
    for row in output.tolist():
        ends = [row.index(token) + 1 for token in stops if token in row]
        row = row[: min(ends, default=len(row))]
        written.append(parse(tokenizer.decode(row, clean_up_tokenization_spaces=False), trace_format, tokenizer))
    return written


def parse(text: str, trace_format: TraceFormat, tokenizer: Any | None = None) -> Written:
    """The steps and answer of a generated text; special tokens are dropped from the chain if a tokenizer is given."""
    marker = trace_format.answer_start.strip() or trace_format.answer_start
    at = text.find(marker)
    answer, finished = None, False
    chain = text
    if at >= 0:
        chain, rest = text[:at], text[at + len(marker) :]
        start = len(rest) - len(rest.lstrip())
        end = rest.find(trace_format.stop, start)
        finished = end >= 0
        answer = (rest[:end] if finished else rest).strip()
    if tokenizer is not None:
        for special in tokenizer.all_special_tokens:
            chain = chain.replace(special, "")
            answer = answer.replace(special, "").strip() if answer is not None else None
    return Written(trace_format.split(chain), answer or None, finished)
