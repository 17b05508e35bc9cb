"""Answer options: how likely each is, all tokens and the stop counted, and which there are when none are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.kv_cache import Prefix, advance, branch_logprobs
from analysis.models import Reader
from analysis.prompts import Case

LIKELY = 0.02
"""An answer at least this probable in some cell becomes an option of a prompt that names none."""
MAX_ANSWER_TOKENS = 24
MAX_LOGITS = 2**26
"""How many logits one pass over answers may hold: 256 MB."""


def option_logprobs(
    model: Any,
    prefix: Prefix,
    last: Float[Tensor, "row vocab"],
    options: Sequence[Sequence[Sequence[int]]],
) -> list[Float[Tensor, " option"]]:
    """For each row of `prefix`, `LP(option | row)` in nats: the sum over all of the option's tokens.

    Args:
        model: Hugging Face causal language model.
        prefix: the texts up to and including the answer marker.
        last: the logits after each of them.
        options: for each row, the token ids of its options, each with its stop.
    """
    first = last.log_softmax(-1)
    total = [
        first[row, torch.tensor([option[0] for option in row_options], device=last.device)].double()
        for row, row_options in enumerate(options)
    ]
    longer = [row for row, row_options in enumerate(options) if any(len(option) > 1 for option in row_options)]
    width = max((sum(len(option) - 1 for option in options[row]) for row in longer), default=0)
    # Logits are made at every token of every option.
    size = max(1, MAX_LOGITS // max(1, width * last.shape[1]))
    for rows in _parts(longer, size):
        part = prefix if len(rows) == len(prefix) else prefix.rows(_index(rows, prefix))
        for row, scored in zip(rows, branch_logprobs(model, part, [options[row] for row in rows]), strict=True):
            total[row] += torch.stack([tokens.double().sum() for tokens in scored])
    return total


def distinct_answers(reader: Reader, case: Case, answers: Sequence[str]) -> tuple[str, ...]:
    """The answers without those that are, behind this case's chain, the same tokens as an earlier one."""
    known = tuple(dict.fromkeys(answers))
    traces = reader.encoder.encode_answers(case.question, case.steps or (), known, case.gaps)
    tokens: dict[tuple[int, ...], str] = {}
    for trace, answer in zip(traces, known, strict=True):
        tokens.setdefault(trace.ids, answer)
    return tuple(tokens.values())


def likely_answers(
    reader: Reader,
    prefix: Prefix,
    last: Float[Tensor, "row vocab"],
    batch_tokens: int,
    floor: float = LIKELY,
) -> list[list[str]]:
    """For each row, the texts of all answers with probability ≥ `floor`, most probable first.

    Found by following every continuation that is still that probable until the stop; there can be at most 1/`floor`.
    Greedy answers alone would lose the second of two answers a reader is torn between.
    """
    tokenizer, stop = reader.encoder.tokenizer, reader.encoder.format.stop
    context = reader.source.context
    room = [MAX_ANSWER_TOKENS if context is None else context - length for length in prefix.length.tolist()]
    found: list[list[tuple[float, str]]] = [[] for _ in range(len(prefix))]
    # Open continuations: row, tokens so far, their log-probability, and the distribution of the next token.
    open_: list[tuple[int, list[int], float]] = [(row, [], 0.0) for row in range(len(prefix))]
    following = last.log_softmax(-1)
    threshold = float(torch.tensor(floor).log())
    for _ in range(MAX_ANSWER_TOKENS):
        grown: list[tuple[int, list[int], float]] = []
        for (row, ids, logprob), distribution in zip(open_, following, strict=True):
            joint = distribution + logprob
            for token in (joint >= threshold).nonzero().flatten().tolist():
                longer, total = [*ids, token], float(joint[token])
                answer = _finished(tokenizer.decode(longer), stop)
                if answer is None:
                    if len(longer) <= room[row]:
                        grown.append((row, longer, total))
                elif answer:
                    found[row].append((total, answer))
        if not grown:
            break
        open_ = grown
        following = torch.cat(
            [
                advance(reader.model, prefix.rows(_index([g[0] for g in part], prefix)), [g[1] for g in part])[
                    1
                ].log_softmax(-1)
                for part in _parts(open_, max(1, batch_tokens // (prefix.visible.shape[1] + MAX_ANSWER_TOKENS)))
            ]
        )
    return [list(dict.fromkeys(text for _, text in sorted(row, reverse=True))) for row in found]


def _finished(text: str, stop: str) -> str | None:
    """The answer in a decoded continuation, or None if its stop has not come."""
    # A stop such as "\n" may follow leading white space that the tokenizer puts before any answer.
    start = len(text) - len(text.lstrip())
    at = text.find(stop, start)
    return None if at < 0 else text[:at].strip()


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _index(rows: list[int], prefix: Prefix) -> Int[Tensor, " picked"]:
    return torch.tensor(rows, device=prefix.length.device)
