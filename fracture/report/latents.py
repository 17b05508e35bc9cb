"""Latents for the report, as a person reads them: where they fire, on which words, and what they write."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fracture.features.comparison import DIFFERENT
from fracture.report.numbers import interval, number
from sae.differences import ARTEFACT, BASE_ONLY, DEAD, SHARED, VARIANT_ONLY

CONTEXTS, ANSWERS = 3, 3
"""So many contexts of a latent are shown, and of the answers that it promotes, and suppresses."""
SIGNIFICANT = 0.05
CLASSES = {
    VARIANT_ONLY: "the variant has them and the base has hardly any of them (latent scaling)",
    BASE_ONLY: "the base has them and the variant has hardly any of them (latent scaling)",
    DIFFERENT: "they fire more, or less, in the variant; the largest differences",
    ARTEFACT: "of one model by their decoder's norms, and of both by latent scaling",
    SHARED: "of both models",
    DEAD: "they fire on hardly a row",
}
"""What the classes mean, in the order in which they are listed."""
OWN = (VARIANT_ONLY, BASE_ONLY, DIFFERENT)
PARTS = {"question": "question", "step": "steps", "marker": "answer marker", "answer": "answer"}


@dataclass(frozen=True)
class Context:
    """A text on which a latent fires: where it is from, and the words before, of, and after its token."""

    where: str
    before: str
    marked: str
    after: str

    @property
    def intraword(self) -> bool:
        """Whether Markdown's asterisks would not be read as bold here, between a word and a punctuation mark."""
        pairs = ((self.before[-1:], self.marked[:1]), (self.after[:1], self.marked[-1:]))
        return any(
            not inner.isalnum() and outer not in " " and outer not in string.punctuation for outer, inner in pairs
        )


@dataclass(frozen=True)
class Latent:
    """A latent as a person reads it."""

    head: str
    norm: str
    seeds: str
    flag: str
    where: Sequence[str]
    contexts: Sequence[Context]
    promotes: Sequence[str]
    suppresses: Sequence[str]


@dataclass(frozen=True)
class LatentTable:
    """Latents by class; `writes` heads the column that says where."""

    title: str
    writes: str
    with_norms: bool
    groups: Sequence[tuple[str, Sequence[Latent]]]

    @property
    def size(self) -> int:
        """How many latents it lists."""
        return sum(len(latents) for _, latents in self.groups)


def latent_table(summary: Mapping[str, Any], kinds: Sequence[str], title: str) -> LatentTable:
    """The latents of some classes, named ones first, and of them those first whose difference is largest."""
    lines = [line for line in summary["latents"] if line["class"] in kinds]
    fires = any(item["quantity"] == "fires" for line in lines for item in line["differences"])
    n_seeds = None if summary["agreement"] is None else summary["agreement"]["seeds"]
    groups = []
    for kind in kinds:
        of_kind = [line for line in lines if line["class"] == kind]
        of_kind.sort(key=lambda line: (not line["named"], -_size(line), line["latent"]))
        if of_kind:
            head = f"{kind}: {CLASSES[kind]}" if kind in CLASSES else kind
            groups.append((head, [_latent(line, n_seeds, "fires" if fires else "writes") for line in of_kind]))
    what = "positions that it fires on" if fires else "the activations' norm that it writes"
    with_norms = any(line.get("relative_norm") is not None for line in lines)
    return LatentTable(title, f"share of {what}, base → variant", with_norms, groups)


def _size(line: Mapping[str, Any]) -> float:
    return max((abs(item["difference"]) for item in line["differences"]), default=0.0)


def _latent(line: Mapping[str, Any], n_seeds: int | None, quantity: str) -> Latent:
    where = [f"fires on {_rate(line['density'])} of all positions"]
    for item in line["differences"]:
        if item["quantity"] == quantity and (item["base"] or item["variant"]):
            place = PARTS.get(item["part"], item["part"])
            unclear = quantity == "fires" and not item["p_adjusted"] < SIGNIFICANT
            rates = f"{_rate(item['base'])} → {_rate(item['variant'])}"
            doubt = " (no clear difference)" if unclear else ""
            where.append(f"{place} {_whole(rates)}{doubt}")
    contexts = dict.fromkeys(map(_context, line["contexts"]))
    return Latent(
        str(line["latent"]),
        number(line.get("relative_norm")),
        "one seed" if n_seeds is None else f"{line['seeds']} of {n_seeds} seeds",
        "" if line["named"] else "not to be named",
        where,
        list(contexts)[:CONTEXTS],
        _answers(line["answers"], 1),
        _answers(line["answers"], -1),
    )


def _whole(numbers: str) -> str:
    """Numbers that no line breaks."""
    return numbers.replace(" ", "\N{NO-BREAK SPACE}")


def _rate(share: float) -> str:
    return "under 0.1%" if 0 < share < 0.001 else f"{100 * share:.1f}%"


def _context(item: Mapping[str, Any]) -> Context:
    step = f"step {item['step']}" if item.get("step") else PARTS.get(item.get("part", ""), item.get("part", ""))
    where = ", ".join(filter(None, (item["id"], step)))
    if item["marked"] is None:
        return Context(where, "(its text was not kept)", "", "")
    before, marked, after = (_visible(item[name]) for name in ("before", "marked", "after"))
    bare = marked.strip(" ")
    # Blanks stand outside of the mark: a marked blank cannot be seen, and Markdown has no bold that begins with one.
    if not bare:
        return Context(where, before, "␣", after)
    lead, _, tail = marked.partition(bare)
    return Context(where, before + lead, bare, tail + after)


def _visible(text: str) -> str:
    """A text on one line: breaks as ↵, all blanks alike, control characters as the sign of what cannot be shown."""
    text = re.sub(r"\s", " ", re.sub(r"\r\n|[\n\r\u2028\u2029]", "↵", text))
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def _answers(lines: Sequence[Mapping[str, Any]], sign: int) -> list[str]:
    """The answers that a latent promotes (1) or suppresses (−1) for sure, the strongest first."""
    clear = [line for line in lines if None not in (line["low"], line["high"]) and _side(line) == sign]
    clear.sort(key=lambda line: -abs(line["effect"]))
    effects = (interval({**line, "estimate": line["effect"]}, "nats", signed=True) for line in clear)
    return [f"{line['answer']}:{_whole(f' {effect}')}" for line, effect in zip(clear[:ANSWERS], effects, strict=False)]


def _side(line: Mapping[str, Any]) -> int:
    return 1 if line["low"] > 0 else -1 if line["high"] < 0 else 0
