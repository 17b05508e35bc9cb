"""The study: a base and its variants on one prompt file, from prompts to verdicts and the files of a run."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells import Cells, Contrast, Excluded, measure_cells
from analysis.errors import InputError
from analysis.generation import write_chains
from analysis.models import BASE, ModelPair, Reader
from analysis.prompts import Case, Prompt, read_prompts
from analysis.routes import FORMS, detachment, effects_table, routes
from fracture.progress import Progress
from fracture.summary import ReaderResult, summarise
from fracture.verdict import MARGIN, Form

AUTHORS = ("gold", "base")
WHOLE, NO_CONCLUSION = "whole", "no_conclusion"


@dataclass(frozen=True)
class StudyConfig:
    """Everything that decides a study's results.

    Attributes:
        base, variants, prompts: where they are.
        out: run directory to make.
        format: trace format for all models; None for each model's own.
        author: whose chains are read, `gold` (given with the prompts) or `base` (written greedily by the base);
            None for gold chains if every prompt and partner has one, else the base's.
        margin: δ, the change of bypass that counts.
        max_chain_tokens: where a chain that a model writes is cut.
        batch_tokens: how many tokens one forward pass may hold.
    """

    base: str
    variants: Mapping[str, str]
    prompts: str
    out: str
    format: str | None = None
    author: str | None = None
    margin: float = MARGIN
    max_chain_tokens: int = 256
    batch_tokens: int = 16384
    dtype: str = "float32"
    device: str = "cpu"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.author is not None and self.author not in AUTHORS:
            raise InputError(f"author {self.author!r}: expected {' or '.join(AUTHORS)}")
        if not 0 < self.margin < 1:
            raise InputError(f"margin {self.margin}: expected a number between 0 and 1")
        for name in ("max_chain_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: expected a positive number of tokens")


@dataclass
class _Measured:
    """One reader's tables: effects with the whole chain and without its concluding step, and its accuracy."""

    tables: dict[str, pd.DataFrame]
    accuracy: dict[str, float | None]
    excluded: list[Excluded] = field(default_factory=list)


def run_study(config: StudyConfig, progress: Progress, overwrite: bool = False) -> dict[str, Any]:
    """Runs a study, writes its run directory (all of it or nothing), and returns the summary.

    The run directory holds `summary.json` (see docs/summary.md), `effects.parquet` (one row a prompt, reader and form
    of the chain), `excluded.parquet` (every prompt that was dropped, for whom and why), `figures/` and `run.json`
    (versions, digests, timings: the one file that differs between reruns).

    Raises:
        InputError: for anything about models, prompts or settings that cannot be used; nothing is left on disk.
    """
    started = time.time()
    out = Path(config.out)
    _check_out(out, overwrite)
    prompts = read_prompts(config.prompts)
    pair = ModelPair.load(
        config.base,
        config.variants,
        format=config.format,
        dtype=config.dtype,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )
    paired = [prompt for prompt in prompts if prompt.partner is not None]
    if not paired:
        raise InputError(
            f"prompt file {config.prompts}: none of its {len(prompts)} prompts has a 'counterfactual', so no effect "
            "can be measured; give each prompt a partner: {question, steps, answer}, or the id of another prompt"
        )
    dropped = [Excluded(prompt.id, "no counterfactual partner") for prompt in prompts if prompt.partner is None]
    author = _author(config, paired)
    written: dict[str, list[Any]] = {}
    measured: dict[str, _Measured] = {}
    contrasts: list[Contrast] = []
    pair.check_texts(_texts(pair, paired, author))
    for source in pair.sources():
        reader = pair.open(source.name)
        if source.name == BASE:
            contrasts, lost = _contrasts(reader, paired, author, config, progress)
            dropped += lost
            if author == "base":
                pair.check_texts((f"prompt {c.id!r}", case) for c in contrasts for case in (c.own, c.partner))
        written[source.name] = write_chains(
            reader,
            [prompt.case.question for prompt in paired],
            config.max_chain_tokens,
            config.batch_tokens,
            progress.stage(f"{source.name}: writing chains", len(paired)),
        )
        measured[source.name] = _measure(reader, contrasts, paired, written[source.name], config, progress)
        # Before the next model is loaded, so that only one is in memory.
        del reader
        gc.collect()
    summary = summarise(
        study={**asdict(config), "author": author, "variants": dict(config.variants)},
        n_prompts=len(prompts),
        excluded=Counter(item.reason for item in dropped),
        base=_result(measured[BASE]),
        variants={name: (_result(measured[name]), *_forms(measured[BASE], measured[name])) for name in config.variants},
        margin=config.margin,
    )
    with _new_directory(out, overwrite) as directory:
        _write_run(directory, config, pair, measured, dropped, summary, started)
    return summary


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise InputError(f"output {out}: exists already; choose another --out, or give --overwrite to replace it")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]) and not (out / "summary.json").is_file():
        raise InputError(f"output {out}: is not the run of a study, so it is not overwritten; choose another --out")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"output {out}: {parent} is not a directory that can be written to")


def _author(config: StudyConfig, prompts: Sequence[Prompt]) -> str:
    """Whose chains are read; gold chains are only possible where they are given."""
    lacking = next(
        (p.id for p in prompts for case in (p.case, p.partner) if case and case.steps is None and case.chain is None),
        None,
    )
    if config.author == "gold" and lacking is not None:
        raise InputError(
            f"prompt file {config.prompts}: prompt {lacking!r} or its partner has no 'steps', so its gold chain cannot "
            "be read; give the steps, or use --author base"
        )
    return config.author or ("gold" if lacking is None else "base")


def _texts(pair: ModelPair, prompts: Sequence[Prompt], author: str) -> Iterator[tuple[str, Case]]:
    """Every text known before a model is loaded."""
    for prompt in prompts:
        for case, whose in ((prompt.case, ""), (prompt.partner, "the partner of ")):
            assert case is not None
            yield f"{whose}prompt {prompt.id!r}", _split(pair, case) if author == "gold" else _bare(case)


def _split(pair: ModelPair, case: Case) -> Case:
    if case.steps is not None or case.chain is None:
        return case
    return Case(case.question, case.answer, pair.base.encoder.format.split(case.chain))


def _bare(case: Case) -> Case:
    return Case(case.question, case.answer, ())


def _contrasts(
    reader: Reader, prompts: Sequence[Prompt], author: str, config: StudyConfig, progress: Progress
) -> tuple[list[Contrast], list[Excluded]]:
    """Each prompt and its partner with the chains that all readers will read."""
    cases: list[tuple[Case, Case]] = [(p.case, p.partner) for p in prompts if p.partner]
    if author == "base":
        questions = [case.question for both in cases for case in both]
        chains = write_chains(
            reader,
            questions,
            config.max_chain_tokens,
            config.batch_tokens,
            progress.stage("base: writing the chains to be read", len(questions)),
        )
        cases = [
            (
                Case(own.question, own.answer, chains[2 * i].steps),
                Case(partner.question, partner.answer, chains[2 * i + 1].steps),
            )
            for i, (own, partner) in enumerate(cases)
        ]
    contrasts, lost = [], []
    trace_format = reader.encoder.format
    for prompt, both in zip(prompts, cases, strict=True):
        own, partner = (
            case if case.steps is not None else Case(case.question, case.answer, trace_format.split(case.chain or ""))
            for case in both
        )
        if not own.steps or not partner.steps:
            lost.append(Excluded(prompt.id, "the prompt or its partner has an empty chain"))
        elif own.question == partner.question:
            lost.append(Excluded(prompt.id, "the partner has the same question"))
        else:
            contrasts.append(Contrast(prompt.id, own, partner, prompt.options))
    return contrasts, lost


def _measure(
    reader: Reader,
    contrasts: Sequence[Contrast],
    prompts: Sequence[Prompt],
    written: Sequence[Any],
    config: StudyConfig,
    progress: Progress,
) -> _Measured:
    excluded: list[Excluded] = []
    tables = {}
    shortened = [_without_conclusion(contrast) for contrast in contrasts if _can_be_shortened(contrast)]
    for chain, items in ((WHOLE, contrasts), (NO_CONCLUSION, shortened)):
        label = "the four cells" if chain == WHOLE else "the same without the concluding step"
        results = measure_cells(
            reader, items, config.batch_tokens, progress.stage(f"{reader.name}: {label}", len(items))
        )
        tables[chain] = effects_table([cells for cells in results if isinstance(cells, Cells)])
        if chain == WHOLE:
            excluded = [item for item in results if isinstance(item, Excluded)]
            given = _given_accuracy(contrasts, results)
    right = [float(w.answer == p.case.answer) for w, p in zip(written, prompts, strict=True)]
    accuracy = {
        "own_chain": sum(right) / len(right),
        "own_chain_without_answer": sum(w.answer is None for w in written) / len(written),
        "given_chain": given,
    }
    return _Measured(tables, accuracy, excluded)


def _given_accuracy(contrasts: Sequence[Contrast], results: Sequence[Cells | Excluded]) -> float | None:
    right = [
        cells.options[int(cells.text[0, 0].argmax())] == contrast.own.answer
        for contrast, cells in zip(contrasts, results, strict=True)
        if isinstance(cells, Cells)
    ]
    return sum(right) / len(right) if right else None


def _can_be_shortened(contrast: Contrast) -> bool:
    return len(contrast.own.steps or ()) > 1 and len(contrast.partner.steps or ()) > 1


def _without_conclusion(contrast: Contrast) -> Contrast:
    def cut(case: Case) -> Case:
        return Case(case.question, case.answer, (case.steps or ())[:-1])

    return Contrast(contrast.id, cut(contrast.own), cut(contrast.partner), contrast.options)


def _result(measured: _Measured) -> ReaderResult:
    return ReaderResult(
        routes={chain: {form: routes(table, form) for form in FORMS} for chain, table in measured.tables.items()},
        accuracy=measured.accuracy,
        excluded=Counter(item.reason for item in measured.excluded),
        splice_error=float(measured.tables[WHOLE]["splice_error"].max()),
    )


def _forms(base: _Measured, variant: _Measured) -> tuple[dict[str, Form], dict[str, Form]]:
    """For each form, base and variant over the prompts that both have: with the whole chain, and without its end."""

    def compared(chain: str) -> dict[str, Form]:
        ours, theirs = base.tables[chain], variant.tables[chain]
        shared = set(ours["id"]) & set(theirs["id"])
        ours, theirs = (table[table["id"].isin(shared)].reset_index(drop=True) for table in (ours, theirs))
        return {form: Form(routes(ours, form), routes(theirs, form), detachment(ours, theirs, form)) for form in FORMS}

    return compared(WHOLE), compared(NO_CONCLUSION)


@contextmanager
def _new_directory(out: Path, overwrite: bool) -> Iterator[Path]:
    """A directory beside `out` that takes its place only when all of it has been written."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        if overwrite and out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise InputError(f"output {out}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_run(
    directory: Path,
    config: StudyConfig,
    pair: ModelPair,
    measured: Mapping[str, _Measured],
    dropped: Sequence[Excluded],
    summary: Mapping[str, Any],
    started: float,
) -> None:
    from figures import save
    from figures.routes import routes_figure

    (directory / "summary.json").write_text(dump_json(summary), encoding="utf-8")
    effects = [
        table.assign(reader=name, chain=chain)
        for name, result in measured.items()
        for chain, table in result.tables.items()
    ]
    pd.concat(effects, ignore_index=True).to_parquet(directory / "effects.parquet", index=False)
    rows = [{"id": item.id, "reader": "all", "reason": item.reason} for item in dropped]
    rows += [
        {"id": item.id, "reader": name, "reason": item.reason}
        for name, result in measured.items()
        for item in result.excluded
    ]
    excluded = pd.DataFrame(rows, columns=["id", "reader", "reason"]).astype("string")
    excluded.to_parquet(directory / "excluded.parquet", index=False)
    save(routes_figure(summary), directory / "figures" / "routes")
    run = {
        "versions": {name: metadata.version(name) for name in ("fracture-suite", "torch", "transformers", "numpy")},
        "python": platform.python_version(),
        "models": {source.name: source.digest() for source in pair.sources()},
        "prompts": hashlib.sha256(Path(config.prompts).read_bytes()).hexdigest(),
        "seconds": round(time.time() - started, 1),
    }
    (directory / "run.json").write_text(dump_json(run), encoding="utf-8")


def dump_json(data: Mapping[str, Any]) -> str:
    """Indented JSON; NaN, which JSON has no word for, is an error."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
