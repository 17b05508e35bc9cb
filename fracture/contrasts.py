"""Contrasts: each prompt and its partner, with the chains that every model will read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from analysis.cells import Contrast, Excluded
from analysis.errors import InputError
from analysis.generation import Written, write_chains
from analysis.models import Reader
from analysis.prompts import Case, Prompt
from analysis.responses import segmented
from analysis.trace_format import TraceFormat
from fracture.config import StudyConfig
from fracture.progress import Progress


def choose_author(config: StudyConfig, prompts: Sequence[Prompt]) -> str:
    """Whose chains are read: as configured, else gold where every prompt and partner has one, else the base's.

    Raises:
        InputError: if gold chains are asked for and one is missing.
    """
    lacking = next(
        (p.id for p in prompts for case in (p.case, p.partner) if case and not case.has_chain),
        None,
    )
    if config.author == "gold" and lacking is not None:
        raise InputError(
            f"prompt file {config.prompts}: prompt {lacking!r} or its partner has no 'steps', so its gold chain cannot "
            "be read; give the steps, or use --author base"
        )
    return config.author or ("gold" if lacking is None else "base")


def known_texts(prompts: Sequence[Prompt], author: str, trace_format: TraceFormat) -> Iterator[tuple[str, Case]]:
    """Every text that is known before a model is loaded, and where it is from: with gold chains, or with none."""
    for prompt in prompts:
        for case, whose in ((prompt.case, ""), (prompt.partner, "the partner of ")):
            if case is not None:
                bare = Case(case.question, case.answer, steps=())
                yield f"{whose}prompt {prompt.id!r}", segmented(case, trace_format) if author == "gold" else bare


def make_contrasts(
    reader: Reader, prompts: Sequence[Prompt], author: str, config: StudyConfig, progress: Progress
) -> tuple[list[Contrast], list[Excluded]]:
    """The contrasts of all prompts that have a partner, and the prompts that give none; `reader` is the base."""
    pairs = [(prompt, prompt.case, prompt.partner) for prompt in prompts if prompt.partner]
    if author == "base":
        questions = [case.question for _, *cases in pairs for case in cases]
        written = write_chains(
            reader,
            questions,
            config.max_chain_tokens,
            config.batch_tokens,
            progress.stage("base: writing the chains to be read", len(questions)),
            config.sampling,
        )
        pairs = [
            (prompt, with_chain(own, written[2 * i]), with_chain(partner, written[2 * i + 1]))
            for i, (prompt, own, partner) in enumerate(pairs)
        ]
        cut = [written[2 * i].cut or written[2 * i + 1].cut for i in range(len(pairs))]
    else:
        cut = [None] * len(pairs)
    contrasts, lost = [], []
    for (prompt, *cases), cut_by in zip(pairs, cut, strict=True):
        own, partner = (segmented(case, reader.encoder.format) for case in cases)
        special = reader.encoder.special_token_in(*(text for case in (own, partner) for text in case.steps or ()))
        if cut_by is not None:
            lost.append(Excluded(prompt.id, f"a chain that base wrote was cut by {cut_by} before its answer"))
        elif special is not None:
            lost.append(Excluded(prompt.id, f"a chain holds the text of the special token {special!r}"))
        elif not own.steps or not partner.steps:
            lost.append(Excluded(prompt.id, "the prompt or its partner has an empty chain"))
        elif own.question == partner.question:
            lost.append(Excluded(prompt.id, "the partner has the same question"))
        else:
            contrasts.append(Contrast(prompt.id, own, partner, prompt.options))
    return contrasts, lost


def count_unanswered(contrasts: Sequence[Contrast]) -> int:
    """How many contrasts read a chain behind which its author set no answer, so that the marker is the suite's own."""
    return sum(not (contrast.own.answered and contrast.partner.answered) for contrast in contrasts)


def without_conclusion(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The contrasts with the last step removed from both chains; those with a chain of one step are left out."""
    return [
        replace(
            contrast,
            own=contrast.own.first(len(contrast.own.steps) - 1),
            partner=contrast.partner.first(len(contrast.partner.steps) - 1),
        )
        for contrast in contrasts
        if contrast.own.steps
        and contrast.partner.steps
        and min(map(len, (contrast.own.steps, contrast.partner.steps))) > 1
    ]


def with_chain(case: Case, written: Written) -> Case:
    """The case with the chain that a model wrote for it."""
    return Case(case.question, case.answer, steps=written.steps, gaps=written.gaps, answered=written.answer is not None)
