"""The chains that a reader writes itself: those of the study, and those that a measure asks it for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.generation import write_chains
from analysis.measures.protocol import Settings
from analysis.measures.session import Session
from analysis.measures.text_tests import NO_STEPS
from analysis.prompts import Case

NOT_OWN = "not written by this model: only its own chains are looked at"


def own_chains(session: Session, prompts: Sequence[Authored]) -> tuple[list[Authored], list[Excluded]]:
    """The prompts whose chains this reader wrote itself, and the others as excluded."""
    own = [prompt for prompt in prompts if prompt.author == session.name]
    return own, [Excluded(p.id, NOT_OWN, p.author) for p in prompts if p.author != session.name]


def own_steps(session: Session, prompts: Sequence[Authored]) -> tuple[list[Authored], list[Excluded]]:
    """The prompts whose chains this reader wrote itself with a step in them, and the others as excluded."""
    own, excluded = own_chains(session, prompts)
    excluded += [Excluded(prompt.id, NO_STEPS, prompt.author) for prompt in own if not prompt.steps]
    return [prompt for prompt in own if prompt.steps], excluded


def written_by(session: Session, cases: Sequence[Case], settings: Settings, whose: str) -> list[Case | str]:
    """Each case with the chain that the reader writes behind its question, or why that cannot be read.

    No answer is needed there, the marker is appended; a chain without a step is one. Questions that come twice are
    asked once.

    Args:
        session: the reader.
        cases: whose questions are asked.
        settings: where chains are cut, and how they are sampled.
        whose: the questions' kind, for progress and reasons, such as `shifted question`.
    """
    questions = list(dict.fromkeys(case.question for case in cases))
    stage = session.stage(f"{session.name}: writing chains for {whose}s", len(questions))
    texts = write_chains(
        session.reader, questions, settings.max_chain_tokens, session.batch_tokens, stage, settings.sampling
    )
    written = dict(zip(questions, texts, strict=True))
    results: list[Case | str] = []
    for case in cases:
        found = written[case.question]
        special = session.reader.encoder.special_token_in(*found.steps, *(found.gaps or ()))
        if found.cut is not None:
            results.append(f"the chain written for the {whose} was cut by {found.cut} before its answer")
        elif special is not None:
            results.append(f"the chain written for the {whose} holds the text of the special token {special!r}")
        else:
            results.append(replace(case, steps=found.steps, gaps=found.gaps, answered=found.answer is not None))
    return results
