"""Chains: what every model wrote, and every prompt with the chains of every author, ready to be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis.authored import GOLD, Authored
from analysis.cells import Excluded
from analysis.errors import InputError
from analysis.generation import Written, write_chains
from analysis.models import BASE, ModelPair, Reader
from analysis.partners import PartneredPrompt
from analysis.prompts import Case, Prompt
from analysis.responses import segmented
from analysis.trace_format import TraceFormat
from fracture.config import StudyConfig
from fracture.progress import Progress

OWN, PARTNERS = "own", "partner"
NO_PARTNER = "partner"
"""Under `measure` in `excluded.parquet`: the prompt is read, but has no counterfactual partner."""


@dataclass(frozen=True)
class Chains:
    """All prompts with all authors' chains, and what was left out for every reader."""

    prompts: tuple[Authored, ...]
    excluded: tuple[Excluded, ...]
    without_partner: tuple[Excluded, ...]


def choose_author(config: StudyConfig, prompts: Sequence[Prompt]) -> str:
    """Whose chains all models read: as configured, else gold where every prompt and partner has one, else the base's.

    Raises:
        InputError: if gold chains are asked for and one is missing.
    """
    lacking = next(
        (p.id for p in prompts for case in (p.case, p.partner) if case and not case.has_chain),
        None,
    )
    if config.author == GOLD and lacking is not None:
        raise InputError(
            f"prompt file {config.prompts}: prompt {lacking!r} or its partner has no 'steps', so its gold chain cannot "
            "be read; give the steps, or use --author base"
        )
    return config.author or (GOLD if lacking is None else BASE)


def split(prompt: Prompt, trace_format: TraceFormat) -> Prompt:
    """The prompt with its chain, if it came with one, as steps."""
    return replace(prompt, case=segmented(prompt.case, trace_format)) if prompt.case.has_chain else prompt


def known_texts(prompts: Sequence[Prompt], author: str, trace_format: TraceFormat) -> Iterator[tuple[str, Case]]:
    """Every text that is known before a model is loaded, and where it is from: with gold chains, or with none."""
    for prompt in prompts:
        for case, whose in ((prompt.case, ""), (prompt.partner, "the partner of ")):
            if case is not None:
                bare = Case(case.question, case.answer, steps=())
                yield f"{whose}prompt {prompt.id!r}", segmented(case, trace_format) if author == GOLD else bare
        asked = prompt.case.asked
        for name, question in asked.partial:
            yield f"partial question {name!r} of prompt {prompt.id!r}", Case(question, prompt.case.answer, steps=())
        if asked.shifted is not None:
            shifted = Case(asked.shifted.question, asked.shifted.answer, steps=asked.shifted.steps or ())
            yield f"shifted question of prompt {prompt.id!r}", shifted


def write(
    reader: Reader, prompts: Sequence[PartneredPrompt], author: str, config: StudyConfig, progress: Progress
) -> pd.DataFrame:
    """What a model writes after every question, and, as the author whom all read, after every partner's question.

    Columns: `id`, `whose` (`own` or `partner`), `steps`, `gaps`, `answer`, `cut`.
    """
    asked = [(item.prompt.id, OWN, item.prompt.case) for item in prompts]
    if author == reader.name:
        asked += [(p.prompt.id, PARTNERS, p.prompt.partner) for p in prompts if p.prompt.partner is not None]
    stage = progress.stage(f"{reader.name}: writing chains", len(asked))
    written = write_chains(
        reader,
        [case.question for _, _, case in asked],
        config.max_chain_tokens,
        config.batch_tokens,
        stage,
        config.sampling,
    )
    rows = [
        {
            "id": identifier,
            "whose": whose,
            "steps": list(chain.steps),
            "gaps": list(chain.gaps or ()),
            "answer": chain.answer,
            "cut": chain.cut,
        }
        for (identifier, whose, _), chain in zip(asked, written, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["id", "whose", "steps", "gaps", "answer", "cut"])
    return table.astype({"id": "string", "whose": "string", "answer": "string", "cut": "string"})


def assemble(
    pair: ModelPair, prompts: Sequence[PartneredPrompt], author: str, written: Mapping[str, pd.DataFrame]
) -> Chains:
    """Every prompt with the headline author's chain, then with the chain of each model that wrote another.

    Raises:
        InputError: if the models split one of these texts into different tokens.
    """
    texts = {name: _written(table) for name, table in written.items()}
    kept: dict[tuple[str, str], Authored] = {}
    excluded: list[Excluded] = []
    alone: list[Excluded] = []
    for whose in dict.fromkeys((author, *written)):
        for item in prompts:
            case = _case(pair, item.prompt.case, item.prompt.id, OWN, whose, texts)
            if isinstance(case, str):
                excluded.append(Excluded(item.prompt.id, case, whose))
                continue
            given = item.prompt.partner
            partner: Case | str | None = None
            if given is not None and whose == author:
                partner = _case(pair, given, item.prompt.id, PARTNERS, whose, texts)
            elif given is not None:  # of the headline's author alone the partner's chain is read, too
                partner = Case(given.question, given.answer)
            if isinstance(partner, str) or partner is None or partner.question == case.question:
                if whose == author:
                    alone.append(Excluded(item.prompt.id, _no_partner(item, partner), whose))
                partner = None
            headline = kept.get((author, item.prompt.id))
            if headline is not None and _same_text(pair, headline.case, case):
                case = headline.case  # the same chain is read once
            said = texts.get(whose, {}).get((item.prompt.id, OWN))
            kept[whose, item.prompt.id] = Authored(
                item.prompt.id,
                whose,
                case,
                partner,
                item.prompt.options,
                None if partner is None else item.tier,
                said.answer if said else None,
            )
    pair.check_texts(
        (f"prompt {prompt.id!r}, chain by {prompt.author},", case)
        for prompt in kept.values()
        for case in (prompt.case, prompt.partner)
        if case and case.has_chain
    )
    return Chains(tuple(kept.values()), tuple(excluded), tuple(alone))


def _same_text(pair: ModelPair, first: Case, second: Case) -> bool:
    """Whether two chains are the same steps and the same text, however they came."""
    if first.steps != second.steps:
        return False
    texts = (
        pair.base.encoder.encode(case.question, case.steps or (), None, case.gaps).text for case in (first, second)
    )
    return next(texts) == next(texts)


def _no_partner(item: PartneredPrompt, partner: Case | str | None) -> str:
    """Why a prompt has no partner that could be read."""
    if isinstance(partner, str):
        return f"the partner: {partner}"
    if partner is not None:
        return "the partner has the same question"
    return "no counterfactual partner" + (f": {item.reason}" if item.reason else "")


def _written(table: pd.DataFrame) -> dict[tuple[str, str], Written]:
    """What a model wrote, by prompt and by whose question it was."""
    return {
        (row["id"], row["whose"]): Written(
            tuple(row["steps"]),
            None if pd.isna(row["answer"]) else row["answer"],
            pd.isna(row["cut"]),
            tuple(row["gaps"]),
            None if pd.isna(row["cut"]) else row["cut"],
        )
        for row in table.to_dict("records")
    }


def _case(
    pair: ModelPair,
    case: Case,
    identifier: str,
    whose: str,
    author: str,
    texts: Mapping[str, Mapping[tuple[str, str], Written]],
) -> Case | str:
    """The case with the author's chain, or why it cannot be read."""
    if author == GOLD:
        case = segmented(case, pair.base.encoder.format)
    else:
        written = texts[author][identifier, whose]
        if written.cut is not None:
            return f"the chain that {author} wrote was cut by {written.cut} before its answer"
        case = with_chain(case, written)
    if not case.steps:
        return "its chain is empty"
    special = pair.base.encoder.special_token_in(*case.steps, *(case.gaps or ()))
    return f"its chain holds the text of the special token {special!r}" if special is not None else case


def with_chain(case: Case, written: Written) -> Case:
    """The case with the chain that a model wrote for it."""
    return Case(
        case.question,
        case.answer,
        steps=written.steps,
        gaps=written.gaps,
        answered=written.answer is not None,
        ended=written.cut is None,
        asked=case.asked,
    )


def as_written(prompts: Sequence[Prompt], written: Mapping[str, pd.DataFrame]) -> list[Authored]:
    """Every prompt with what each model wrote behind its question, whether or not it can be read as a chain."""
    return [
        Authored(
            prompt.id,
            author,
            with_chain(prompt.case, said := texts[prompt.id, OWN]),
            options=prompt.options,
            written=said.answer,
        )
        for author, table in written.items()
        for texts in [_written(table)]
        for prompt in prompts
    ]
