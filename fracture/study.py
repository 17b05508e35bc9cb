"""The study: a base and its variants on one prompt file, from prompts to verdicts and the files of a run."""

from __future__ import annotations

import gc
import hashlib
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells import Cells, Contrast, Excluded, measure_cells
from analysis.errors import InputError
from analysis.generation import Written, write_chains
from analysis.models import BASE, ModelPair, Reader
from analysis.prompts import Prompt, read_prompts
from analysis.routes import FORMS, detachment, effects_table, routes
from fracture.config import StudyConfig
from fracture.contrasts import choose_author, known_texts, make_contrasts, without_conclusion
from fracture.progress import Progress
from fracture.run_directory import new_run_directory, write_effects, write_excluded, write_json
from fracture.summary import ReaderResult, summarise
from fracture.verdict import Form

WHOLE, NO_CONCLUSION = "whole", "no_conclusion"


@dataclass(frozen=True)
class _Measured:
    """One reader's tables: effects with the whole chain and without its concluding step, accuracy, lost prompts."""

    tables: dict[str, pd.DataFrame]
    accuracy: dict[str, float | None]
    excluded: list[Excluded]


def run_study(config: StudyConfig, progress: Progress, overwrite: bool = False) -> dict[str, Any]:
    """Runs a study, writes its run directory (all of it or nothing), and returns the summary.

    The run directory holds `summary.json` (see docs/summary.md), `effects.parquet` (one row a prompt, reader and form
    of the chain), `excluded.parquet` (every prompt that was dropped, for whom and why), `figures/` and `run.json`
    (versions, digests, timings: the one file that differs between reruns).

    Raises:
        InputError: for anything about models, prompts or settings that cannot be used; nothing is left on disk.
    """
    started = time.time()
    with new_run_directory(Path(config.out), overwrite) as directory:
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
                f"prompt file {config.prompts}: none of its {len(prompts)} prompts has a 'counterfactual', so no "
                "effect can be measured; give each prompt a partner: {question, steps, answer}, or another prompt's id"
            )
        author = choose_author(config, paired)
        pair.check_texts(known_texts(paired, author, pair.base.encoder.format))
        measured, lost = _measure_all(pair, paired, author, config, progress)
        dropped = [Excluded(prompt.id, "no counterfactual partner") for prompt in prompts if prompt.partner is None]
        dropped += lost
        summary = summarise(
            study={**asdict(config), "author": author, "variants": dict(config.variants)},
            n_prompts=len(prompts),
            excluded=Counter(item.reason for item in dropped),
            base=_result(measured[BASE]),
            variants={
                name: (
                    _result(measured[name]),
                    _compared(measured, name, WHOLE),
                    _compared(measured, name, NO_CONCLUSION),
                )
                for name in config.variants
            },
            margin=config.margin,
        )
        _write(directory, summary, measured, dropped)
        write_json(directory / "run.json", _provenance(config, pair, started))
    return summary


def _measure_all(
    pair: ModelPair, prompts: Sequence[Prompt], author: str, config: StudyConfig, progress: Progress
) -> tuple[dict[str, _Measured], list[Excluded]]:
    """Each model's results by name, and the prompts that gave no contrast; the base comes first, as the author."""
    measured: dict[str, _Measured] = {}
    contrasts: list[Contrast] = []
    lost: list[Excluded] = []
    for source in pair.sources():
        reader = pair.open(source.name)
        if source.name == BASE:
            contrasts, lost = make_contrasts(reader, prompts, author, config, progress)
            if author == BASE:
                pair.check_texts((f"prompt {c.id!r}", case) for c in contrasts for case in (c.own, c.partner))
        measured[source.name] = _measure(reader, contrasts, prompts, config, progress)
        # Before the next model is loaded, so that only one is in memory.
        del reader
        gc.collect()
    return measured, lost


def _measure(
    reader: Reader, contrasts: Sequence[Contrast], prompts: Sequence[Prompt], config: StudyConfig, progress: Progress
) -> _Measured:
    written = write_chains(
        reader,
        [prompt.case.question for prompt in prompts],
        config.max_chain_tokens,
        config.batch_tokens,
        progress.stage(f"{reader.name}: writing chains", len(prompts)),
    )
    stage = progress.stage(f"{reader.name}: the four cells", len(contrasts))
    whole = measure_cells(reader, contrasts, config.batch_tokens, stage)
    shortened = without_conclusion(contrasts)
    stage = progress.stage(f"{reader.name}: the same without the concluding step", len(shortened))
    no_conclusion = measure_cells(reader, shortened, config.batch_tokens, stage)
    return _Measured(
        tables={
            chain: effects_table([cells for cells in results if isinstance(cells, Cells)])
            for chain, results in ((WHOLE, whole), (NO_CONCLUSION, no_conclusion))
        },
        accuracy=_accuracy(prompts, written, contrasts, whole),
        excluded=[item for item in whole if isinstance(item, Excluded)],
    )


def _accuracy(
    prompts: Sequence[Prompt],
    written: Sequence[Written],
    contrasts: Sequence[Contrast],
    whole: Sequence[Cells | Excluded],
) -> dict[str, float | None]:
    given = [
        cells.options[int(cells.text[0, 0].argmax())] == contrast.own.answer
        for contrast, cells in zip(contrasts, whole, strict=True)
        if isinstance(cells, Cells)
    ]
    return {
        "own_chain": _share([w.answer == p.case.answer for w, p in zip(written, prompts, strict=True)]),
        "own_chain_without_answer": _share([w.answer is None for w in written]),
        "given_chain": _share(given),
    }


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _result(measured: _Measured) -> ReaderResult:
    return ReaderResult(
        routes={chain: {form: routes(table, form) for form in FORMS} for chain, table in measured.tables.items()},
        accuracy=measured.accuracy,
        excluded=Counter(item.reason for item in measured.excluded),
        splice_error=float(measured.tables[WHOLE]["splice_error"].max()),
    )


def _compared(measured: dict[str, _Measured], name: str, chain: str) -> dict[str, Form]:
    """For each form, base and variant over the prompts that both have."""
    ours, theirs = measured[BASE].tables[chain], measured[name].tables[chain]
    shared = set(ours["id"]) & set(theirs["id"])
    ours, theirs = (table[table["id"].isin(shared)].reset_index(drop=True) for table in (ours, theirs))
    return {form: Form(routes(ours, form), routes(theirs, form), detachment(ours, theirs, form)) for form in FORMS}


def _write(
    directory: Path, summary: dict[str, Any], measured: dict[str, _Measured], dropped: Sequence[Excluded]
) -> None:
    from figures import save
    from figures.routes import routes_figure

    write_json(directory / "summary.json", summary)
    write_effects(directory / "effects.parquet", {name: result.tables for name, result in measured.items()})
    write_excluded(
        directory / "excluded.parquet", {"all": dropped} | {name: result.excluded for name, result in measured.items()}
    )
    save(routes_figure(summary), directory / "figures" / "routes")


def _provenance(config: StudyConfig, pair: ModelPair, started: float) -> dict[str, Any]:
    return {
        "versions": {name: metadata.version(name) for name in ("fracture-suite", "torch", "transformers", "numpy")},
        "python": platform.python_version(),
        "models": {source.name: source.digest() for source in pair.sources()},
        "prompts": hashlib.sha256(Path(config.prompts).read_bytes()).hexdigest(),
        "seconds": round(time.time() - started, 1),
    }
