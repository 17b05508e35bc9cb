"""Counterfactual partners for a prompt file, from the command line."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.errors import InputError, reason
from analysis.files import write_whole
from analysis.partners import TIER_NAMES, PartneredPrompt, assign_partners
from analysis.prompt_fields import Asked
from analysis.prompts import Case, read_prompts


def make_partners(prompts: str, out: Path | None, seed: int, annotations: str) -> str:
    """A table of where the partners of a prompt file's prompts come from, and why the rest have none.

    With `out`, writes the prompts as JSONL, those that have or got a partner with it; all of the file or nothing.

    Raises:
        InputError: for prompts that cannot be read, or an output that exists or cannot be written.
    """
    if out is not None and out.exists():
        raise InputError(f"--out {out}: exists already; choose another file")
    assigned = assign_partners(read_prompts(prompts, annotations=annotations), seed)
    if out is not None:
        lines = [_line(item) for item in assigned]
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_whole(out, "".join(lines).encode())
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None
    counts = Counter(TIER_NAMES[item.tier] if item.tier else f"none: {item.reason}" for item in assigned)
    width = max(map(len, counts))
    return "\n".join(f"{outcome:<{width}}  {n:>6}  {n / len(assigned):>5.1%}" for outcome, n in counts.most_common())


def _line(item: PartneredPrompt) -> str:
    try:
        return json.dumps(_record(item), allow_nan=False) + "\n"
    except (ValueError, TypeError) as error:
        raise InputError(f"prompt {item.prompt.id!r}: its 'meta' cannot be written as JSON ({reason(error)})") from None


def _record(item: PartneredPrompt) -> dict[str, Any]:
    prompt = item.prompt
    record = {"id": prompt.id, **_fields(prompt.case)}
    if prompt.options:
        record["options"] = list(prompt.options)
    if prompt.partner is not None:
        record["counterfactual"] = _fields(prompt.partner)
    record |= _asked(prompt.case.asked)
    if prompt.meta:
        record["meta"] = dict(prompt.meta)
    return record


def _fields(case: Case) -> dict[str, Any]:
    given = asdict(case)
    # An unanswerable prompt may have no answer.
    keys = ("question", "steps", "chain", "response", *(("answer",) if case.answer else ()))
    return {key: given[key] for key in keys if given[key] is not None}


def _asked(asked: Asked) -> dict[str, Any]:
    """What a prompt asks beyond its question, as a file has it."""
    found = {name: value for name, value in asdict(asked).items() if value not in ((), None, True)}
    if asked.partial:
        found["partial"] = dict(asked.partial)
    if asked.shifted is not None and asked.shifted.steps is None:
        del found["shifted"]["steps"]
    return found
