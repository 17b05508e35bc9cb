"""The study: a base and its variants on one prompt file, from prompts to verdicts and the files of a run."""

from __future__ import annotations

import gc
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.answers import same_answer
from analysis.cells import Cells, Contrast, Excluded, measure_cells
from analysis.errors import InputError
from analysis.generation import Written, write_chains
from analysis.models import BASE, ModelPair, Reader
from analysis.partners import TIER_NAMES, PartneredPrompt, Tier, assign_partners
from analysis.prompt_files import file_digest
from analysis.prompts import Prompt, read_prompts
from analysis.responses import segmented
from analysis.routes import FORMS, detachment, effects_table, routes
from analysis.trace_format import TraceFormat
from fracture.config import PARTNERS, StudyConfig
from fracture.contrasts import choose_author, count_unanswered, known_texts, make_contrasts, without_conclusion
from fracture.progress import Progress
from fracture.run_directory import new_run_directory, write_effects, write_excluded, write_json
from fracture.summary import ReaderResult, summarise
from fracture.verdict import Form

WHOLE, NO_CONCLUSION = "whole", "no_conclusion"
DESCRIPTIVE = 3


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
        prompts = read_prompts(config.prompts, annotations=config.annotations)
        pair = ModelPair.load(
            config.base,
            config.variants,
            format=config.format,
            dtype=config.dtype,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
        )
        split = [_split(prompt, pair.base.encoder.format) for prompt in prompts]
        assigned = assign_partners(split, config.seed, PARTNERS[config.partners])
        tiers = {item.prompt.id: item.tier for item in assigned if item.tier is not None}
        paired = [item.prompt for item in assigned if item.tier is not None]
        unpaired = [Excluded(item.prompt.id, _no_partner(item)) for item in assigned if item.tier is None]
        if not paired:
            reasons = ", ".join(f"{n} × {reason}" for reason, n in Counter(item.reason for item in unpaired).items())
            raise InputError(
                f"prompt file {config.prompts}: none of its {len(prompts)} prompts has a counterfactual partner "
                f"({reasons}), so no effect can be measured; give each prompt a 'counterfactual': {{question, steps, "
                "answer}, or another prompt's id"
            )
        author = choose_author(config, paired)
        pair.check_texts(known_texts(paired, author, pair.base.encoder.format))
        measured, lost, n_unanswered = _measure_all(pair, paired, tiers, author, config, progress)
        dropped = unpaired + lost
        summary = summarise(
            study={**asdict(config), "author": author, "variants": dict(config.variants)},
            prompts={
                "read": len(prompts),
                "partners": {TIER_NAMES[tier]: n for tier, n in sorted(Counter(tiers.values()).items())},
                "chains_without_answer": n_unanswered,
                "excluded": dict(sorted(Counter(item.reason for item in dropped).items())),
            },
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


def _split(prompt: Prompt, trace_format: TraceFormat) -> Prompt:
    """The prompt with its chain, if it came with one, as steps."""
    return replace(prompt, case=segmented(prompt.case, trace_format)) if prompt.case.has_chain else prompt


def _measure_all(
    pair: ModelPair,
    prompts: Sequence[Prompt],
    tiers: Mapping[str, Tier],
    author: str,
    config: StudyConfig,
    progress: Progress,
) -> tuple[dict[str, _Measured], list[Excluded], int]:
    """Each model's results by name, the prompts that gave no contrast, the number of chains without an answer.

    The base comes first, as the author.
    """
    measured: dict[str, _Measured] = {}
    contrasts: list[Contrast] = []
    lost: list[Excluded] = []
    for source in pair.sources():
        reader = pair.open(source.name)
        if source.name == BASE:
            contrasts, lost = make_contrasts(reader, prompts, author, config, progress)
            if author == BASE:
                pair.check_texts((f"prompt {c.id!r}", case) for c in contrasts for case in (c.own, c.partner))
        measured[source.name] = _measure(reader, contrasts, prompts, tiers, config, progress)
        # Before the next model is loaded, so that only one is in memory.
        del reader
        gc.collect()
    return measured, lost, count_unanswered(contrasts)


def _measure(
    reader: Reader,
    contrasts: Sequence[Contrast],
    prompts: Sequence[Prompt],
    tiers: Mapping[str, Tier],
    config: StudyConfig,
    progress: Progress,
) -> _Measured:
    written = write_chains(
        reader,
        [prompt.case.question for prompt in prompts],
        config.max_chain_tokens,
        config.batch_tokens,
        progress.stage(f"{reader.name}: writing chains", len(prompts)),
        config.sampling,
    )
    stage = progress.stage(f"{reader.name}: the four cells", len(contrasts))
    whole = measure_cells(reader, contrasts, config.batch_tokens, stage)
    shortened = without_conclusion(contrasts)
    stage = progress.stage(f"{reader.name}: the same without the concluding step", len(shortened))
    no_conclusion = measure_cells(reader, shortened, config.batch_tokens, stage)
    return _Measured(
        tables={
            chain: _with_tiers(effects_table([cells for cells in results if isinstance(cells, Cells)]), tiers)
            for chain, results in ((WHOLE, whole), (NO_CONCLUSION, no_conclusion))
        },
        accuracy=_accuracy(prompts, written, contrasts, whole),
        excluded=[item for item in whole if isinstance(item, Excluded)],
    )


def _with_tiers(table: pd.DataFrame, tiers: Mapping[str, Tier]) -> pd.DataFrame:
    table.insert(1, "tier", table["id"].map(tiers).astype("int64"))
    return table


def _counted(table: pd.DataFrame) -> pd.DataFrame:
    """The prompts that count: those whose partner is a counterfactual, not merely another prompt."""
    return table[table["tier"] < DESCRIPTIVE].reset_index(drop=True)


def _no_partner(item: PartneredPrompt) -> str:
    return "no counterfactual partner" + (f": {item.reason}" if item.reason else "")


def _accuracy(
    prompts: Sequence[Prompt],
    written: Sequence[Written],
    contrasts: Sequence[Contrast],
    whole: Sequence[Cells | Excluded],
) -> dict[str, float | None]:
    given = [
        same_answer(cells.options[int(cells.text[0, 0].argmax())], contrast.own.answer)
        for contrast, cells in zip(contrasts, whole, strict=True)
        if isinstance(cells, Cells)
    ]
    return {
        "own_chain": _share(
            [
                w.answer is not None and same_answer(w.answer, p.case.answer)
                for w, p in zip(written, prompts, strict=True)
            ]
        ),
        "own_chain_without_answer": _share([w.answer is None for w in written]),
        "given_chain": _share(given),
    }


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _result(measured: _Measured) -> ReaderResult:
    whole = measured.tables[WHOLE]
    others = whole[whole["tier"] == DESCRIPTIVE]
    return ReaderResult(
        routes={
            chain: {form: routes(_counted(table), form) for form in FORMS} for chain, table in measured.tables.items()
        },
        described=routes(others, "text") if len(others) else None,
        accuracy=measured.accuracy,
        excluded=Counter(item.reason for item in measured.excluded),
        splice_error=float(measured.tables[WHOLE]["splice_error"].max()),
    )


def _compared(measured: dict[str, _Measured], name: str, chain: str) -> dict[str, Form]:
    """For each form, base and variant over the prompts that both have."""
    ours, theirs = _counted(measured[BASE].tables[chain]), _counted(measured[name].tables[chain])
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
        "prompts": file_digest(config.prompts),
        "seconds": round(time.time() - started, 1),
    }
