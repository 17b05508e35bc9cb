"""Making and looking at activation stores from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from analysis.capture import Text, capture, known
from analysis.cells import Excluded
from analysis.errors import InputError
from analysis.generation import Sampling, write_chains
from analysis.models import BASE, ModelPair, Reader, random_twin
from analysis.positions import check_positions
from analysis.prompts import Case, Prompt, read_prompts
from analysis.responses import segmented
from analysis.sites import blocks, check_site_names
from analysis.store import DTYPES, Store
from analysis.store_writer import check_output
from fracture.chains import known_texts, with_chain
from fracture.progress import Progress

AUTHORS = ("gold", "self")


def capture_to_store(
    model: str,
    prompts: str,
    out: Path,
    *,
    base: str | None,
    format: str | None,
    annotations: str,
    author: str | None,
    site_names: Sequence[str],
    layers: str,
    positions: Sequence[str],
    stored: str | None,
    sampling: Sampling,
    max_chain_tokens: int,
    batch_tokens: int,
    dtype: str,
    device: str,
    trust_remote_code: bool,
    random_init: int | None,
    progress: Progress,
) -> Store:
    """Runs one model over a prompt file's texts and keeps what was asked for.

    With `random_init`, its twin of that seed reads the texts; chains that the model writes are written before.

    Raises:
        InputError: for anything about model, prompts or settings that cannot be used.
    """
    if author is not None and author not in AUTHORS:
        raise InputError(f"author {author!r}: expected {' or '.join(AUTHORS)}")
    check_site_names(site_names)
    check_positions(positions)
    given = [p for p in read_prompts(prompts, annotations=annotations) if p.case.asked.answerable]
    name = Path(model).name
    name = name if re.fullmatch(r"[A-Za-z0-9][\w.\-]*", name) and name != BASE else "model"
    pair = ModelPair.load(
        base or model,
        {name: model},
        format=format,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    lacking = next((prompt.id for prompt in given if not prompt.case.has_chain), None)
    if author == "gold" and lacking is not None:
        raise InputError(
            f"prompt file {prompts}: prompt {lacking!r} has no chain, so its gold chain cannot be read; give the "
            "chain, or use --author self"
        )
    if max_chain_tokens < 1:
        raise InputError(f"max_chain_tokens {max_chain_tokens}: expected a positive number of tokens")
    if stored is not None and stored not in DTYPES:
        raise InputError(f"dtype {stored!r}: expected {', '.join(DTYPES)}")
    check_output(out)
    whose = author or ("gold" if lacking is None else "self")
    pair.check_texts(known_texts(given, whose, pair.base.encoder.format))
    reader = pair.open(name)
    chosen = _layers(layers, len(blocks(reader.model)))
    cases, left_out = _cases(reader, given, whose, sampling, max_chain_tokens, batch_tokens, progress)
    texts = [
        Text(
            prompt.id,
            whose,
            reader.encoder.encode(case.question, case.steps or (), case.answer, case.gaps),
            known(case, prompt.meta, written),
        )
        for prompt, case, written in cases
    ]
    return capture(
        reader if random_init is None else random_twin(reader, random_init),
        texts,
        out,
        site_names=site_names,
        layers=chosen,
        positions=positions,
        dtype=stored,
        batch_tokens=batch_tokens,
        left_out=left_out,
        progress=progress.stage("capturing", len(texts)),
    )


def _cases(
    reader: Reader,
    prompts: Sequence[Prompt],
    author: str,
    sampling: Sampling,
    max_chain_tokens: int,
    batch_tokens: int,
    progress: Progress,
) -> tuple[list[tuple[Prompt, Case, str | None]], list[Excluded]]:
    """Each prompt with the chain that is to be read and the answer set behind that, and the prompts left out."""
    cases = [segmented(prompt.case, reader.encoder.format) for prompt in prompts]
    cut: list[str | None] = [None] * len(prompts)
    answers: list[str | None] = [None] * len(prompts)
    if author == "self":
        stage = progress.stage("writing chains", len(prompts))
        questions = [prompt.case.question for prompt in prompts]
        written = write_chains(reader, questions, max_chain_tokens, batch_tokens, stage, sampling)
        cases = [with_chain(case, chain) for case, chain in zip(cases, written, strict=True)]
        cut = [chain.cut for chain in written]
        answers = [chain.answer for chain in written]
    kept, left_out = [], []
    for prompt, case, cut_by, answer in zip(prompts, cases, cut, answers, strict=True):
        special = reader.encoder.special_token_in(case.question, *(case.steps or ()), *(case.gaps or ()), case.answer)
        if cut_by is not None:
            left_out.append(
                Excluded(prompt.id, f"the chain that the model wrote was cut by {cut_by} before its answer")
            )
        elif special is not None:
            left_out.append(Excluded(prompt.id, f"its text holds the text of the special token {special!r}"))
        else:
            kept.append((prompt, case, answer))
    return kept, left_out


def _layers(text: str, n_layers: int) -> list[int] | None:
    """`all`, or numbers and ranges such as `0,4-7`; None for all.

    Raises:
        InputError: for anything else.
    """
    if text == "all":
        return None
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not all(re.fullmatch("[0-9]{1,6}", number) for number in (first, last)) or int(first) > int(last):
            raise InputError(f"--layers {text!r}: expected all, or numbers and ranges such as 0,4-7")
        if int(last) >= n_layers:
            raise InputError(f"--layers {text!r}: layer {last} is not there; the model has layers 0 to {n_layers - 1}")
        layers += range(int(first), int(last) + 1)
    return layers


def describe(store: Store) -> str:
    """What a store holds, in a few lines."""
    rows = store.rows
    lines = [
        f"store     {store.directory}",
        f"rows      {len(store)} of {rows['id'].nunique()} prompts; columns {', '.join(map(str, rows.columns))}",
        f"hooks     {len(store.hooks)}, {store.manifest.dtype}, from {store.hooks[0]} to {store.hooks[-1]}",
        f"size      {sum(path.stat().st_size for path in store.directory.iterdir()) / 2**20:.1f} MiB in "
        f"{len(store.manifest.shards)} shards",
    ]
    reasons = store.excluded["reason"].value_counts()
    lines += [f"left out  {n} × {reason}" for reason, n in reasons.items()]
    return "\n".join(lines)
