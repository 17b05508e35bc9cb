"""The model that made an activation store, opened again, with the texts that it read there."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from analysis.authored import Authored, from_table
from analysis.cells import Excluded
from analysis.errors import InputError
from analysis.measures.session import Session, Stage
from analysis.models import BASE, ModelPair, random_twin, shuffled_twin
from analysis.prompts import Case
from analysis.runs import Run
from analysis.store import TEXTS
from analysis.trace_format import VERSION
from analysis.traces import TraceEncoder
from fracture.probing.training import Source
from probes.targets import MAX_CLASSES

REWRITTEN = "its text cannot be written again from the store as the model read it"


@dataclass(frozen=True)
class ModelSettings:
    """Where a store's model is, and how it is run.

    Attributes:
        checkpoint: of the model; None for the one that the study of a run had.
        base: the model that an adapter is merged into; None for the study's.
        dtype: None for the type that the store was computed in.
        device, batch_tokens, trust_remote_code: as in a study.
    """

    checkpoint: str | None = None
    base: str | None = None
    dtype: str | None = None
    device: str = "cpu"
    batch_tokens: int = 16384
    trust_remote_code: bool = False


def open_model(source: Source, settings: ModelSettings, stage: Stage) -> Session:
    """The loaded model that a store's activations are of.

    Raises:
        InputError: if the store was not captured from a model, if it is not said where the model is, or if what is
            there is another model.
    """
    store = source.store
    known = store.manifest.settings
    if store.texts is None or not {"question", "steps", "gold"} <= set(store.texts) or "format" not in known:
        raise InputError(
            f"activation store {store.directory}: keeps no texts ({TEXTS}) that a model could be run on again; causal "
            "use needs a store of `fracture capture`, or a study's run"
        )
    if settings.batch_tokens < 1:
        raise InputError(f"--batch-tokens {settings.batch_tokens}: expected a positive number of tokens")
    where, base = _places(source, settings)
    name = source.label if source.model not in (None, BASE) else "model"
    with TemporaryDirectory() as folder:
        # The texts are to be written as they were, whatever format lies beside the model by now.
        form = Path(folder) / "format.json"
        form.write_text(json.dumps({"version": VERSION, **known["format"]}), encoding="utf-8")
        pair = ModelPair.load(
            base,
            {name: where},
            format=str(form),
            dtype=settings.dtype or str(known["computed_in"]).removeprefix("torch."),
            device=settings.device,
            trust_remote_code=settings.trust_remote_code or _trusted(source),
        )
    found = pair.variants[name]
    if found.digest() != known.get("model"):
        raise InputError(
            f"--checkpoint {where}: is not the model that made the activation store {store.directory} (the SHA-256 of "
            "configuration, tokenizer and weights differs from the manifest's); give that model, or capture anew"
        )
    reader = pair.open(name)
    if "random_init" in known:
        reader = random_twin(reader, known["random_init"])
    if "shuffled" in known:
        reader = shuffled_twin(reader, known["shuffled"])
    return Session(pair, reader, settings.batch_tokens, stage=stage)


def texts_of(
    source: Source, encoder: TraceEncoder, options: Sequence[str]
) -> tuple[dict[int, Authored], list[Excluded]]:
    """The prompt of each text of a store by the text's number, and the texts that cannot be had.

    A prompt's options are those of the study, or the given ones; else all answers of the store's texts, if these are
    few; else none, and they are to be found.

    Raises:
        InputError: if no text can be had.
    """
    table = source.store.texts
    assert table is not None
    known: Mapping[tuple[str, str], Authored] = {}
    if source.model is not None:
        known = {(prompt.id, prompt.author): prompt for prompt in from_table(Run.open(source.path).traces)}
    answers = tuple(options) or _few_answers(table)
    prompts: dict[int, Authored] = {}
    excluded = []
    for line in table.to_dict("records"):
        prompt = known.get((line["id"], line["author"])) or _prompt(encoder, line, answers)
        case = prompt.case
        if encoder.encode(case.question, case.steps or (), case.answer, case.gaps).ids == tuple(line["ids"]):
            prompts[line["text"]] = prompt
        else:
            excluded.append(Excluded(line["id"], REWRITTEN, line["author"]))
    if not prompts:
        raise InputError(
            f"activation store {source.store.directory}: {len(excluded)} texts, and none can be written again as the "
            "model read it (white space between steps is not kept); run a study on these prompts, and give its run"
        )
    return prompts, excluded


def _places(source: Source, settings: ModelSettings) -> tuple[str, str]:
    """Where the model is, and its base."""
    if source.model is None:
        if settings.checkpoint is None:
            raise InputError(
                f"activation store {source.path}: does not say where its model is; give it with --checkpoint (and, for "
                "a LoRA adapter, --base)"
            )
        return settings.checkpoint, settings.base or settings.checkpoint
    study = Run.open(source.path).summary["study"]
    base = settings.base or (settings.checkpoint if source.model == BASE else None) or study["base"]
    where = settings.checkpoint or (base if source.model == BASE else study["variants"][source.model])
    return str(where), str(base)


def _trusted(source: Source) -> bool:
    return source.model is not None and bool(Run.open(source.path).summary["study"]["trust_remote_code"])


def _few_answers(texts: pd.DataFrame) -> tuple[str, ...]:
    columns = [texts[name].dropna().astype(str) for name in ("gold", "written", "own") if name in texts]
    answers = tuple(sorted(set(pd.concat(columns))))
    return answers if len(answers) <= MAX_CLASSES else ()


def _prompt(encoder: TraceEncoder, line: Mapping[Hashable, Any], options: Sequence[str]) -> Authored:
    """The prompt of a captured text; what stood between its steps is looked for in the text of its tokens."""
    steps = tuple(map(str, line["steps"]))
    written = line.get("written")
    written = None if pd.isna(written) else str(written)
    case = Case(line["question"], line["gold"], steps=steps)
    if encoder.encode(case.question, steps, case.answer).ids != tuple(line["ids"]):
        text = encoder.tokenizer.decode(list(line["ids"]), clean_up_tokenization_spaces=False)
        gaps = tuple(_gaps(text, len(encoder.question_text(case.question)), steps, encoder.format.answer_start))
        case = Case(case.question, case.answer, steps=steps, gaps=gaps) if len(gaps) == len(steps) else case
    return Authored(line["id"], line["author"], case, None, tuple(options), None, written)


def _gaps(text: str, start: int, steps: Sequence[str], answer_start: str) -> Iterator[str]:
    """What follows each step in a text; fewer than there are steps, where one is not found."""
    at = start
    for step, following in zip(steps, [*steps[1:], answer_start.rstrip()], strict=True):
        begin = text.find(step, at)
        end = begin + len(step)
        next_one = text.find(following, end) if begin >= 0 else -1
        if next_one < 0:
            return
        yield text[end:next_one]
        at = next_one
