"""What a study would do: stages, prompts, tokens and memory, from configurations and texts; no weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import checkpoints
from analysis.authored import GOLD
from analysis.checkpoints import Source
from analysis.measures.protocol import Measure, Size
from analysis.models import BASE, ModelPair
from analysis.partners import TIER_NAMES, PartneredPrompt, assign_partners
from analysis.positions import token_rows
from analysis.prompts import read_prompts
from fracture import catalogue
from fracture.chains import choose_author, split
from fracture.config import PARTNERS, StudyConfig

_FIELDS = {"rule_shift": "shifted", "partial_input": "partial"}
"""Measure → the field that its prompts have."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class _Model:
    """A checkpoint's size, as its files say."""

    parameters: int
    layers: int
    width: int
    kv_width: int


def explain(config: StudyConfig) -> str:
    """The plan of a study in words: what would be run on how many prompts, about how many tokens, how much memory.

    Raises:
        InputError: as the study itself would, for settings, prompts and checkpoints that cannot be used.
    """
    prompts = read_prompts(config.prompts, annotations=config.annotations)[: config.max_prompts or None]
    pair = ModelPair.load(config.base, config.variants, format=config.format, dtype=config.dtype)
    answerable = [prompt for prompt in prompts if prompt.case.asked.answerable]
    assigned = assign_partners(
        [split(prompt, pair.base.encoder.format) for prompt in answerable], config.seed, PARTNERS[config.partners]
    )
    author = choose_author(config, [item.prompt for item in assigned])
    model = _model(pair.base)
    size = _size(pair.base, assigned, author, config, model.layers)
    tiers = [item.tier for item in assigned if item.tier is not None]
    counts = ", ".join(f"{tiers.count(tier)} {TIER_NAMES[tier]}" for tier in sorted(set(tiers)))
    known = "" if author == GOLD else f" (chains not written yet: taken as {config.max_chain_tokens} tokens)"
    lines = [
        f"study      {config.out} (digest {config.digest()[:12]}, preset {config.preset})",
        f"models     base and {len(config.variants)}: {', '.join(config.variants)}",
        f"prompts    {len(prompts)} read, {len(tiers)} with a partner{f' ({counts})' if counts else ''}",
        f"chains     of author {author}; on average {size.text:.0f} tokens in {size.steps:.1f} steps{known}",
        "",
        f"{'stage':<26} {'models':>6} {'prompts':>8} {'tokens':>9}",
        *_stages(config, assigned, len(prompts), author, size),
        "",
        *_memory(config, model, len(prompts), size, pair.base, assigned),
    ]
    return "\n".join(lines)


def _stages(
    config: StudyConfig, prompts: Sequence[PartneredPrompt], asked: int, author: str, size: Size
) -> Iterator[str]:
    readers = 1 + len(config.variants)
    written = asked * readers + (sum(p.prompt.partner is not None for p in prompts) if author == BASE else 0)
    total = written * (size.question + size.chain)
    yield _line("writing chains", readers, asked, total)
    for name in config.measures or ():
        measure = catalogue.measure(name)
        if measure.run is None:
            continue
        n = sum(item.tier is not None for item in prompts) if measure.needs_partner else len(prompts)
        if name in _FIELDS:
            n = sum(bool(getattr(item.prompt.case.asked, _FIELDS[name])) for item in prompts)
        elif name in catalogue.AS_WRITTEN:
            n = asked
        if measure.capped and config.patch_prompts:
            n = min(n, config.patch_prompts)
        tokens = n * _texts(measure, len(config.variants), author) * measure.tokens(size)
        total += tokens
        yield _line(name, readers, n, tokens)
    if config.keeps_activations:
        models = readers + config.keeps_twin
        tokens = len(prompts) * models * size.text
        total += tokens
        yield _line("activations", models, len(prompts), tokens)
    yield _line("all", readers, len(prompts), total)


def _texts(measure: Measure, variants: int, author: str) -> int:
    """How many chains of one prompt are read, over all models."""
    apart = int(author != BASE)
    if measure.authors == "headline" or measure.name in catalogue.OWN_CHAINS:
        return 1 + variants
    own = (1 + apart) + 2 * variants
    return own if measure.authors == "own" else own + variants + variants * apart


def _line(name: str, models: int, prompts: int, tokens: float) -> str:
    return f"{name:<26} {models:>6} {prompts:>8} {_short(tokens):>9}"


def _memory(
    config: StudyConfig, model: _Model, prompts: int, size: Size, source: Source, assigned: Sequence[PartneredPrompt]
) -> Iterator[str]:
    width = _BYTES[config.dtype]
    weights = model.parameters * width
    loaded = 2 if any(catalogue.measure(name).beside_base for name in config.measures or ()) else 1
    cache = config.batch_tokens * model.layers * 2 * model.kv_width * width
    yield f"weights    {_size_text(weights)} a model in {config.dtype}, at most {loaded} in memory at once"
    yield f"batch      {_size_text(cache)} of keys and values for {config.batch_tokens} tokens (--batch-tokens)"
    if config.keeps_activations:
        cases = [item.prompt.case for item in assigned if item.prompt.case.steps]
        rows = [
            len(
                token_rows(
                    source.encoder.encode(case.question, case.steps or (), case.answer, case.gaps), config.positions
                )
            )
            for case in cases[:50]
        ]
        each = sum(rows) / len(rows) if rows else size.steps + 2
        kept = prompts * each * model.layers * len(config.sites) * model.width * width
        kept *= 1 + len(config.variants) + config.keeps_twin
        yield f"disk       {_size_text(kept)} of activations"


def _size(source: Source, prompts: Sequence[PartneredPrompt], author: str, config: StudyConfig, layers: int) -> Size:
    """The mean size of a prompt's text, in the base's tokens."""
    encoder = source.encoder
    traces = []
    for item in prompts:
        case = item.prompt.case
        steps, gaps = (case.steps or (), case.gaps) if author == GOLD else ((), None)
        traces.append(encoder.encode(case.question, steps, None, gaps))
    n = len(traces)
    chain = sum(trace.chain[1] - trace.chain[0] for trace in traces) / n
    steps_mean = sum(len(trace.steps) for trace in traces) / n
    return Size(
        question=sum(trace.question[1] for trace in traces) / n,
        chain=chain if author == GOLD else config.max_chain_tokens,
        marker=sum(trace.marker[1] - trace.marker[0] for trace in traces) / n,
        # A chain that is not written yet has some number of steps; one for 16 tokens is usual.
        steps=steps_mean if author == GOLD else config.max_chain_tokens / 16,
        layers=layers,
    )


def _model(source: Source) -> _Model:
    from transformers import AutoConfig

    origin = source.adapted or source
    settings = AutoConfig.from_pretrained(origin.directory, local_files_only=True).get_text_config()
    heads = settings.num_attention_heads
    d_head = getattr(settings, "head_dim", None) or settings.hidden_size // heads
    kv_heads = getattr(settings, "num_key_value_heads", None) or heads
    return _Model(_parameters(origin), settings.num_hidden_layers, settings.hidden_size, kv_heads * d_head)


def _parameters(source: Source) -> int:
    """The number of weights, from the headers of the safetensors files."""
    total = 0
    for file in checkpoints.weights(source.directory):
        with Path(file).open("rb") as stream:
            header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for side in tensor["shape"]:
                    count *= side
                total += count
    return total


def _short(tokens: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.1f}{unit}"
    return f"{tokens:.0f}"


def _size_text(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
