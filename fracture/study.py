"""The study: a base and its variants on one prompt file, stage by stage, from prompts to verdicts and a report."""

from __future__ import annotations

import gc
import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.authored import Authored, from_table, to_table
from analysis.capture import Text, capture, known
from analysis.cells import Excluded
from analysis.errors import InputError
from analysis.files import parquet_bytes
from analysis.measures.protocol import Measure, Measured, Settings
from analysis.measures.session import Session
from analysis.models import BASE, ModelPair, random_twin
from analysis.partners import TIER_NAMES, PartneredPrompt, assign_partners
from analysis.prompt_files import file_digest
from analysis.prompts import Prompt, read_prompts
from analysis.runs import ACTIVATIONS, EXCLUDED, MEASURES, SUMMARY, TRACES, TWIN, WORK, Run
from analysis.store import Store
from analysis.verifiers import load_verifier
from fracture import catalogue
from fracture.chains import NO_PARTNER, as_written, assemble, choose_author, known_texts, split, write
from fracture.config import PARTNERS, StudyConfig
from fracture.progress import Progress
from fracture.run_directory import CHAINS_STAGE, TRACES_STAGE, RunDirectory, check_output, opened
from fracture.summary import summarise

EVERYONE = "all"
UNANSWERABLE = "marked as unanswerable: there is no answer to measure"
_PROMPTS = f"{WORK}/prompts.json"
_WRITTEN = f"{WORK}/written.parquet"
_TWIN_STAGE = "activations: the base's random twin"


def run_study(config: StudyConfig, progress: Progress | None = None, overwrite: bool = False) -> Run:
    """The finished run of a study, made, or gone on with where an earlier call was stopped.

    A stopped and resumed run ends with the same bytes as an undisturbed one, in all files but `run.json`.

    Args:
        config: the settings.
        progress: where stages are shown; None to show nothing.
        overwrite: replace the run of another study at the same place.

    Raises:
        InputError: for anything about models, prompts or settings that cannot be used; nothing is left on disk then.
    """
    progress = progress or Progress()
    check_output(config, overwrite)
    read = read_prompts(config.prompts, annotations=config.annotations)[: config.max_prompts or None]
    pair = ModelPair.load(
        config.base,
        config.variants,
        format=config.format,
        dtype=config.dtype,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
    )
    settings = Settings(
        verifier=load_verifier(config.verifier),
        seed=config.seed,
        continue_mistakes=bool(config.continue_mistakes),
        patch_prompts=config.patch_prompts or None,
        max_chain_tokens=config.max_chain_tokens,
        sampling=config.sampling,
    )
    answerable = [prompt for prompt in read if prompt.case.asked.answerable]
    unanswerable = [prompt for prompt in read if not prompt.case.asked.answerable]
    prompts = assign_partners(
        [split(prompt, pair.base.encoder.format) for prompt in answerable], config.seed, PARTNERS[config.partners]
    )
    author = choose_author(config, [item.prompt for item in prompts])
    pair.check_texts(known_texts([item.prompt for item in prompts], author, pair.base.encoder.format))
    pair.check_texts(known_texts(unanswerable, BASE, pair.base.encoder.format))
    with opened(config, _inputs(config, pair), overwrite) as run:
        if not run.complete:
            _Study(config, settings, pair, prompts, unanswerable, author, run, progress).make()
        run.finish()
    return Run.open(config.out)


class _Study:
    """The stages of one study."""

    def __init__(
        self,
        config: StudyConfig,
        settings: Settings,
        pair: ModelPair,
        prompts: Sequence[PartneredPrompt],
        unanswerable: Sequence[Prompt],
        author: str,
        run: RunDirectory,
        progress: Progress,
    ) -> None:
        self._config, self._settings, self._pair = config, settings, pair
        self._prompts, self._unanswerable, self._author = prompts, unanswerable, author
        self._run, self._progress = run, progress
        self._measures = {name: catalogue.measure(name) for name in config.measures or ()}

    def make(self) -> None:
        """Makes every stage that is not done."""
        names = [source.name for source in self._pair.sources()]
        for name in names:
            if not self._run.done(TRACES_STAGE):
                self._run.stage(CHAINS_STAGE + name, partial(self._write_chains, name))
                # Before the next model is loaded, so that only one is in memory.
                gc.collect()
        self._run.stage(TRACES_STAGE, self._traces)
        authored = from_table(pd.read_parquet(self._run.path / TRACES))
        for name in names:
            self._measure(name, authored)
            gc.collect()
        for name, measure in self._measures.items():
            if measure.run_store is not None:
                self._run.stage(name, partial(self._measure_stores, measure))
        self._run.stage("tables", self._tables)
        self._run.stage("summary", self._summary)
        self._run.stage("figures and report", self._outputs)

    def _write_chains(self, name: str) -> dict[str, bytes]:
        reader = self._pair.open(name)
        asked = [*self._prompts, *(PartneredPrompt(prompt, None) for prompt in self._unanswerable)]
        return {_chains_file(name): parquet_bytes(write(reader, asked, self._author, self._config, self._progress))}

    def _traces(self) -> dict[str, bytes]:
        written = {
            source.name: pd.read_parquet(self._run.path / _chains_file(source.name)) for source in self._pair.sources()
        }
        chains = assemble(self._pair, self._prompts, self._author, written)
        headline = [prompt for prompt in chains.prompts if prompt.author == self._author]
        if not headline:
            raise InputError(
                f"prompt file {self._config.prompts}: none of its {len(self._prompts)} prompts has a chain that can be "
                f"read ({_counted(chains.excluded)})"
            )
        authors = dict.fromkeys((self._author, *written))
        apart = [Excluded(prompt.id, UNANSWERABLE, whose) for whose in authors for prompt in self._unanswerable]
        left_out = [*chains.excluded, *apart]
        with_partner = [prompt for prompt in headline if prompt.partner is not None]
        lost = [item for item in left_out if item.author == self._author] + list(chains.without_partner)
        accounts = {
            "read": len(self._prompts) + len(self._unanswerable),
            "partners": {
                TIER_NAMES[tier]: n for tier, n in sorted(Counter(p.tier for p in with_partner if p.tier).items())
            },
            "chains_without_answer": sum(
                not (p.case.answered and (p.partner is None or p.partner.answered)) for p in headline
            ),
            "excluded": dict(sorted(Counter(item.reason for item in lost).items())),
        }
        texts = as_written([*(item.prompt for item in self._prompts), *self._unanswerable], written)
        excluded = [*_rows(left_out, EVERYONE, ""), *_rows(chains.without_partner, EVERYONE, NO_PARTNER)]
        return {
            TRACES: parquet_bytes(to_table(chains.prompts)),
            _WRITTEN: parquet_bytes(to_table(texts)),
            _excluded_file("traces", EVERYONE): parquet_bytes(_excluded_table(excluded)),
            _PROMPTS: json.dumps(accounts, ensure_ascii=False).encode(),
        }

    def _measure(self, name: str, authored: Sequence[Authored]) -> None:
        """All prompt measures of one model, and its activations."""
        missing = [m for m in self._measures.values() if m.run is not None and not self._run.done(f"{m.name}: {name}")]
        keeps = self._config.keeps_activations and not self._run.done(f"activations: {name}")
        twins = self._config.keeps_twin and name == BASE and not self._run.done(_TWIN_STAGE)
        if not missing and not keeps and not twins:
            return
        read = {m.name: self._read_by(name, m, authored) for m in self._measures.values() if m.run is not None}
        readable = [prompts for measure, prompts in read.items() if measure not in catalogue.AS_WRITTEN]
        session = Session(
            self._pair,
            self._pair.open(name),
            self._config.batch_tokens,
            known=tuple(dict.fromkeys(prompt for prompts in readable for prompt in prompts)),
            stage=self._progress.stage,
        )
        for measure in missing:
            make = partial(_run_measure, measure, session, read[measure.name], self._settings)
            self._run.stage(f"{measure.name}: {name}", make)
        if keeps:
            self._run.stage(f"activations: {name}", partial(self._capture, session, authored))
        if twins:
            self._run.stage(_TWIN_STAGE, partial(self._capture, session, authored, twin=True))

    def _read_by(self, name: str, measure: Measure, authored: Sequence[Authored]) -> list[Authored]:
        """The prompts that a model reads for a measure: whose chains is for the measure to say."""
        if measure.name in catalogue.AS_WRITTEN:
            texts = from_table(pd.read_parquet(self._run.path / _WRITTEN))
            return [prompt for prompt in texts if prompt.author == name]
        if measure.name in catalogue.OWN_CHAINS:
            return [prompt for prompt in authored if prompt.author == name]
        authors = [self._author]
        if measure.authors != "headline":
            authors.append(name)
        if measure.authors == "all":
            authors += [source.name for source in self._pair.sources()] if name == BASE else [BASE]
        wanted = list(dict.fromkeys(authors))
        return [prompt for author in wanted for prompt in authored if prompt.author == author]

    def _capture(self, session: Session, authored: Sequence[Authored], twin: bool = False) -> dict[str, bytes]:
        """The activations of the model, or of its twin with random weights."""
        encoder = session.reader.encoder
        answers = pd.read_parquet(self._run.path / _table_file("accuracy_and_calibration", session.name))
        own = answers[answers["author"] == self._author].set_index("id")["answer"].dropna().to_dict()
        meta = {item.prompt.id: item.prompt.meta for item in self._prompts}
        texts = [
            Text(
                p.id,
                p.author,
                encoder.encode(p.case.question, p.steps, p.case.answer, p.case.gaps),
                known(p.case, meta[p.id], p.written, own.get(p.id)),
            )
            for p in authored
            if p.author == self._author
        ]
        whose = f"{session.name}'s random twin" if twin else session.name
        capture(
            random_twin(session.reader, self._config.seed) if twin else session.reader,
            texts,
            self._run.path / (TWIN if twin else f"{ACTIVATIONS}/{session.name}"),
            site_names=self._config.sites,
            positions=self._config.positions,
            batch_tokens=self._config.batch_tokens,
            progress=self._progress.stage(f"{whose}: capturing activations", len(texts)),
        )
        # The store keeps its own account of what it holds.
        return {}

    def _measure_stores(self, measure: Measure) -> dict[str, bytes]:
        stores = {
            source.name: Store.open(self._run.path / ACTIVATIONS / source.name) for source in self._pair.sources()
        }
        assert measure.run_store is not None
        stage = self._progress.stage(measure.title, 1)
        twin = Store.open(self._run.path / TWIN) if measure.name in catalogue.TWIN_MEASURES else None
        measured = measure.run_store(stores, replace(self._settings, twin=twin))
        stage(1)
        return _files(measure.name, EVERYONE, measured)

    def _tables(self) -> dict[str, bytes]:
        """What was measured model by model, as one table a measure."""
        names = [source.name for source in self._pair.sources()]
        files, excluded = {}, [pd.read_parquet(self._run.path / _excluded_file("traces", EVERYONE))]
        for measure in self._measures.values():
            readers = names if measure.run is not None else [EVERYONE]
            parts = []
            for name in readers:
                table = pd.read_parquet(self._run.path / _table_file(measure.name, name))
                if measure.run is not None:
                    table.insert(0, "reader", name)
                parts.append(table)
                excluded.append(pd.read_parquet(self._run.path / _excluded_file(measure.name, name)))
            # A part without rows has no types either.
            parts = [part for part in parts if len(part)] or parts[:1]
            files[f"{MEASURES}/{measure.name}.parquet"] = parquet_bytes(pd.concat(parts, ignore_index=True))
        return {**files, EXCLUDED: parquet_bytes(_excluded_table(pd.concat(excluded, ignore_index=True)))}

    def _summary(self) -> dict[str, bytes]:
        tables = {name: pd.read_parquet(self._run.path / MEASURES / f"{name}.parquet") for name in self._measures}
        accounts = json.loads((self._run.path / _PROMPTS).read_text(encoding="utf-8"))
        excluded = pd.read_parquet(self._run.path / EXCLUDED)
        summary = summarise(self._config, self._author, accounts, tables, excluded)
        return {SUMMARY: (json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()}

    def _outputs(self) -> dict[str, bytes]:
        from fracture.report.page import outputs

        return outputs(Run.open(self._run.path))


def _run_measure(
    measure: Measure, session: Session, prompts: Sequence[Authored], settings: Settings
) -> dict[str, bytes]:
    assert measure.run is not None
    return _files(measure.name, session.name, measure.run(session, prompts, settings))


def _files(measure: str, reader: str, measured: Measured) -> dict[str, bytes]:
    return {
        _table_file(measure, reader): parquet_bytes(measured.table),
        _excluded_file(measure, reader): parquet_bytes(_excluded_table(_rows(measured.excluded, reader, measure))),
    }


def _rows(excluded: Sequence[Excluded], reader: str, measure: str) -> list[dict[str, str]]:
    return [
        {
            "id": item.id,
            "reader": item.reader or reader,
            "measure": measure,
            "author": item.author,
            "reason": item.reason,
        }
        for item in excluded
    ]


def _excluded_table(rows: Any) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["id", "reader", "measure", "author", "reason"]).astype("string")


def _chains_file(name: str) -> str:
    return f"{WORK}/chains.{name}.parquet"


def _table_file(measure: str, reader: str) -> str:
    return f"{WORK}/{measure}.{reader}.parquet"


def _excluded_file(measure: str, reader: str) -> str:
    return f"{WORK}/{measure}.{reader}.excluded.parquet"


def _counted(excluded: Sequence[Excluded]) -> str:
    return ", ".join(f"{n} × {reason}" for reason, n in Counter(item.reason for item in excluded).items())


def _inputs(config: StudyConfig, pair: ModelPair) -> dict[str, Any]:
    """What a run must have been begun with to be gone on with."""
    inputs: dict[str, Any] = {
        **{name: metadata.version(name) for name in ("fracture-suite", "torch", "transformers", "numpy")},
        "python": platform.python_version(),
        "prompts": file_digest(config.prompts),
        **{f"model {source.name}": source.digest() for source in pair.sources()},
    }
    if Path(config.verifier).is_file():
        inputs["verifier"] = file_digest(config.verifier)
    return inputs
