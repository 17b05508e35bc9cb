"""Chains that a model writes itself, greedily or sampled, split into steps and an answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.errors import InputError
from analysis.models import Reader
from analysis.prompts import Case
from analysis.responses import read_response
from analysis.trace_format import TraceFormat

CUT_BY_LIMIT = "the limit of {} new tokens"
CUT_BY_CONTEXT = "the model's context of {} tokens"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, the default.

    Attributes:
        temperature: logits are divided by it.
        top_p: only the most probable tokens that together hold this much are drawn from; 1 for all.
        top_k: only so many are drawn from; 0 for all.
        seed: another seed gives another sample.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature {self.temperature}: expected 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: expected a number above 0 and at most 1")
        if self.top_k < 0:
            raise InputError(f"top_k {self.top_k}: expected 0 (all tokens) or a positive number")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: expected 0 or a positive number")


GREEDY = Sampling()


@dataclass(frozen=True)
class Written:
    """What a model wrote after a question.

    Attributes:
        steps: its chain.
        answer: the text between answer marker and stop; None if it set no marker.
        finished: whether the stop came before the token limit.
        gaps: what follows each step, so that steps and gaps are the model's own text; not compared.
        cut: what ended the text before its author did, in words; None if it ended by itself. Not compared.
    """

    steps: tuple[str, ...]
    answer: str | None
    finished: bool
    gaps: tuple[str, ...] | None = field(default=None, compare=False)
    cut: str | None = field(default=None, compare=False)


def write_chains(
    reader: Reader,
    questions: Sequence[str],
    max_new_tokens: int = 256,
    batch_tokens: int = 16384,
    progress: Callable[[int], None] | None = None,
    sampling: Sampling = GREEDY,
) -> list[Written]:
    """The chain and answer that `reader` writes after each question.

    What is written after a question does not depend on the others, nor on how they are batched, beyond floating point:
    a sample's noise is drawn for each question from the seed and the question's tokens. So a question asked twice gets
    the same text twice; another sample needs another seed. Penalties and the like in the checkpoint's generation
    settings are not applied: they are no part of the model whose answers are measured.

    Args:
        reader: the author.
        questions: as in prompts, without the format's wrapper.
        max_new_tokens: where a text that does not stop is cut; sooner where the model's context ends.
        batch_tokens: how many tokens one batch may hold.
        progress: called with the number of questions done since the last call.
        sampling: greedy by default.

    Raises:
        InputError: if a question holds the text of a special token.
    """
    prompts = [reader.encoder.encode_question(question) for question in questions]
    return _write_all(reader, prompts, [[]] * len(prompts), max_new_tokens, batch_tokens, progress, sampling)


def continue_chains(
    reader: Reader,
    begun: Sequence[Case],
    max_new_tokens: int = 256,
    batch_tokens: int = 16384,
    progress: Callable[[int], None] | None = None,
) -> list[Case | None]:
    """Each case with the chain as `reader` greedily writes on from its steps; None where it does not come to an answer.

    What is written begins behind the last step's own words, so that the model sets the separator, or the answer marker.
    """
    traces = [reader.encoder.encode(case.question, case.steps or (), None, case.gaps) for case in begun]
    prompts = [list(trace.ids[: trace.chain[1]]) for trace in traces]
    chains = [list(trace.ids[slice(*trace.chain)]) for trace in traces]
    written = _write_all(reader, prompts, chains, max_new_tokens, batch_tokens, progress, GREEDY)
    return [
        replace(case, steps=found.steps, gaps=found.gaps) if found.answer is not None and found.cut is None else None
        for case, found in zip(begun, written, strict=True)
    ]


def _write_all(
    reader: Reader,
    prompts: list[list[int]],
    begun: list[list[int]],
    max_new_tokens: int,
    batch_tokens: int,
    progress: Callable[[int], None] | None,
    sampling: Sampling,
) -> list[Written]:
    """What `reader` writes behind these token ids, of which `begun` is the part of the chain that is there already."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens {max_new_tokens}: expected a positive number of tokens")
    context = reader.source.context
    limits = [max_new_tokens if context is None else min(max_new_tokens, context - len(ids)) for ids in prompts]
    results = {
        index: Written((), None, False, (), CUT_BY_CONTEXT.format(context))
        for index, limit in enumerate(limits)
        if limit <= 0
    }
    if progress and results:
        progress(len(results))
    open_ = [index for index in range(len(prompts)) if index not in results]
    # All rows of a batch are written as far as its longest has room. The few that this cuts short are written again
    # among rows with the same room.
    for same_room in (False, True):
        short: list[int] = []
        for batch in _batches(open_, prompts, limits, batch_tokens, same_room):
            limit = min(limits[index] for index in batch)
            cut_by = CUT_BY_LIMIT.format(limit) if limit == max_new_tokens else CUT_BY_CONTEXT.format(context)
            given = [(prompts[index], begun[index]) for index in batch]
            texts = _write(reader, given, limit, cut_by, sampling)
            done = {i: text for i, text in zip(batch, texts, strict=True) if text.cut is None or limits[i] == limit}
            short += [index for index in batch if index not in done]
            results |= done
            if progress and done:
                progress(len(done))
        open_ = short
    return [results[index] for index in range(len(prompts))]


def _batches(
    rows: list[int], prompts: list[list[int]], limits: list[int], batch_tokens: int, same_room: bool
) -> Iterator[list[int]]:
    """Rows of similar length together; with `same_room` only those with the same room for new tokens."""
    batch: list[int] = []
    for index in sorted(rows, key=lambda i: len(prompts[i])):
        full = (len(prompts[index]) + limits[index]) * (len(batch) + 1) > batch_tokens
        if batch and (full or (same_room and limits[index] != limits[batch[0]])):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _write(
    reader: Reader, given: list[tuple[list[int], list[int]]], max_new_tokens: int, cut_by: str, sampling: Sampling
) -> list[Written]:
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

    tokenizer, model, trace_format = reader.encoder.tokenizer, reader.model, reader.encoder.format
    prompts = [ids for ids, _ in given]
    width = max(map(len, prompts))
    # Generation pads on the left (new tokens must follow the text); the mask makes positions right.
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)

    class AfterAnswer(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            rows = zip(given, input_ids[:, width:].tolist(), strict=True)
            texts = (tokenizer.decode(begun + row, clean_up_tokenization_spaces=False) for (_, begun), row in rows)
            return torch.tensor([parse(text, trace_format).finished for text in texts], device=input_ids.device)

    own_settings = model.generation_config
    eos = own_settings.eos_token_id
    if eos is None:
        eos = tokenizer.eos_token_id
    stops = [] if eos is None else eos if isinstance(eos, list) else [eos]
    try:
        # What `generate` is not told it takes from the checkpoint's settings: penalties, suppressed tokens, a beam.
        model.generation_config = GenerationConfig()
        output = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=stops or None,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            logits_processor=LogitsProcessorList(_processors(sampling, prompts)),
            stopping_criteria=StoppingCriteriaList([AfterAnswer()]),
        )[:, width:]
    finally:
        model.generation_config = own_settings
    written = []
    for (_, begun), row in zip(given, output.tolist(), strict=True):
        ends = [row.index(token) + 1 for token in stops if token in row]
        row = row[: min(ends, default=len(row))]
        # With the tokens before: many tokenizers leave out the space in front of a text's first token.
        text = tokenizer.decode(begun + row, clean_up_tokenization_spaces=False)
        found = parse(text, trace_format, tokenizer)
        if not ends and not found.finished:
            # The last character may have been cut in the middle of its bytes.
            found = replace(parse(text.rstrip("\ufffd"), trace_format, tokenizer), cut=cut_by)
        written.append(found)
    return written


def parse(text: str, trace_format: TraceFormat, tokenizer: Any | None = None) -> Written:
    """The steps and answer of a generated text.

    Given a tokenizer, special tokens are dropped from the answer and from the chain's end; inside the chain they stay.
    """
    response = read_response(text, trace_format)
    chain, answer = response.chain, response.answer
    if tokenizer is not None:
        special = tuple(tokenizer.all_special_tokens)
        while special and chain.rstrip().endswith(special):
            chain = chain.rstrip()
            chain = chain.removesuffix(max((token for token in special if chain.endswith(token)), key=len))
        for token in special:
            answer = answer.replace(token, "").strip() if answer is not None else None
    segments = trace_format.segment(chain)
    return Written(segments.steps, answer or None, response.finished, segments.gaps)


def _processors(sampling: Sampling, prompts: list[list[int]]) -> list[Any]:
    if sampling.temperature == 0:
        return []
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    processors: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(float(sampling.top_p)))
    return [*processors, GumbelNoise(sampling.seed, prompts)]


class GumbelNoise:
    """A logits processor after which the largest logit is a sample of the softmax (Gumbel-max trick; Maddison et al.
    2014), drawn for each row by a generator of its own, so that a row's sample does not depend on its neighbours.
    """

    def __init__(self, seed: int, prompts: Sequence[Sequence[int]]) -> None:
        self._generators = [np.random.default_rng([seed, len(ids), *ids]) for ids in prompts]

    def __call__(
        self, input_ids: Int[Tensor, "row position"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        """The scores with the noise of the next position."""
        noise = np.stack([-np.log(draw.standard_exponential(scores.shape[1])) for draw in self._generators])
        return scores + torch.from_numpy(noise).to(scores)
