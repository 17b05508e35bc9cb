"""A session: one loaded model while measures run on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from analysis import kv_cache
from analysis.authored import Authored
from analysis.cells import MIN_OPTION_MASS, Excluded
from analysis.models import BASE, ModelPair, Reader
from analysis.options import distinct_answers, likely_answers
from analysis.prompts import Case
from analysis.scoring import Contexts, answer_logprobs

Stage = Callable[[str, int], Callable[[int], None]]


def _silent(description: str, total: int) -> Callable[[int], None]:
    return lambda done: None


@dataclass(eq=False)
class Session:
    """One loaded model of a pair, and how it is to be run.

    Attributes:
        pair: the models of the study.
        reader: the loaded one.
        batch_tokens: how many tokens one forward pass may hold.
        known: prompts whose answers are looked for together, when the first of them is asked about; what is batched
            with what then depends on no measure.
        stage: `stage(description, total)` starts a line of progress and returns what to call with the items done.
    """

    pair: ModelPair
    reader: Reader
    batch_tokens: int = 16384
    known: tuple[Authored, ...] = ()
    stage: Stage = _silent
    _options: dict[Authored, tuple[str, ...] | Excluded] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The model's name in the study."""
        return self.reader.name

    def open_base(self) -> Reader:
        """The base, loaded beside this model if it is not this model."""
        return self.reader if self.name == BASE else self.pair.open(BASE)

    def accepts(self, text: str) -> bool:
        """Whether a text that replaces a step is read as what it says: no unknown token, no special token's text."""
        encoder = self.reader.encoder
        if encoder.special_token_in(text) is not None:
            return False
        unknown = encoder.tokenizer.unk_token_id
        return unknown is None or unknown not in encoder.tokenizer(text, add_special_tokens=False)["input_ids"]

    def tokens(self, text: str) -> int:
        """How many tokens a text has by itself; -1 if it cannot stand for a step (see `accepts`)."""
        if not self.accepts(text):
            return -1
        return len(self.reader.encoder.tokenizer(text, add_special_tokens=False)["input_ids"])

    def length(self, case: Case) -> int:
        """How many tokens a text has up to the answer."""
        return len(self.reader.encoder.encode(case.question, case.steps or (), None, case.gaps).ids)

    def fits(self, case: Case, answer: str) -> bool:
        """Whether a text with this answer is within the model's context."""
        context = self.reader.source.context
        trace = self.reader.encoder.encode(case.question, case.steps or (), answer, case.gaps)
        return context is None or len(trace.ids) <= context

    def answer_tokens(self, case: Case) -> int:
        """How many tokens the case's answer has behind its chain, its stop included."""
        start, end = self.reader.encoder.encode(case.question, case.steps or (), case.answer, case.gaps).answer
        return end - start

    def score(self, contexts: Sequence[Contexts], what: str) -> list[Float[ndarray, "text answer"] | Excluded]:
        """`analysis.scoring.answer_logprobs`; texts that two authors have in common are read once."""
        first: dict[tuple[tuple[str, ...], tuple[Case, ...]], int] = {}
        for index, item in enumerate(contexts):
            first.setdefault((item.answers, item.cases), index)
        distinct = sorted(first.values())
        stage = self.stage(f"{self.name}: {what}", len(distinct))
        scored = answer_logprobs(self.reader, [contexts[i] for i in distinct], self.batch_tokens, stage)
        by_index = dict(zip(distinct, scored, strict=True))
        results = []
        for item in contexts:
            found = by_index[first[item.answers, item.cases]]
            results.append(Excluded(item.id, found.reason) if isinstance(found, Excluded) else found)
        return results

    def options(self, prompts: Sequence[Authored]) -> list[tuple[str, ...] | Excluded]:
        """For each prompt the answers to choose from: those given with it, else all that the model finds likely.

        Without given options they are both gold answers, and every answer with probability ≥ `LIKELY` behind the whole
        chain, behind none, or after the partner's text. Excluded are prompts whose options hold less than
        `MIN_OPTION_MASS` of the probability behind the whole chain.
        """
        missing = tuple(dict.fromkeys(prompt for prompt in prompts if prompt not in self._options))
        if missing:
            together = self.known if set(missing) <= set(self.known) else missing
            self._options |= dict(zip(together, self._find_options(together), strict=True))
        return [self._options[prompt] for prompt in prompts]

    def widened(self, asked: Sequence[tuple[Authored, tuple[str, ...], Sequence[Case]]]) -> list[tuple[str, ...]]:
        """For each prompt its options and, where none were given with it, all that is likely behind these texts as
        well.

        A changed text may lead to an answer that no other text leads to; without it the old one would seem to stay.
        """
        open_ = [at for at, (prompt, _, _) in enumerate(asked) if not prompt.options]
        texts = list(dict.fromkeys(case for at in open_ for case in asked[at][2]))
        likely = dict(zip(texts, self._likely(texts), strict=True))
        results = [options for _, options, _ in asked]
        for at in open_:
            prompt, options, cases = asked[at]
            more = (answer for case in cases for answer in likely[case])
            results[at] = distinct_answers(self.reader, prompt.case, (*options, *more))
        return results

    def _find_options(self, prompts: Sequence[Authored]) -> list[tuple[str, ...] | Excluded]:
        found = self.widened([(prompt, self._known(prompt), _texts(prompt)) for prompt in prompts])
        contexts = [Contexts(p.id, options, (p.case,)) for p, options in zip(prompts, found, strict=True)]
        results: list[tuple[str, ...] | Excluded] = []
        for prompt, options, scored in zip(prompts, found, self.score(contexts, "finding the answers"), strict=True):
            if isinstance(scored, Excluded):
                results.append(scored)
            elif np.exp(scored[0]).sum() < MIN_OPTION_MASS:
                reason = f"the options hold less than {MIN_OPTION_MASS} of the answer's probability"
                results.append(Excluded(prompt.id, reason))
            else:
                results.append(options)
        return results

    @staticmethod
    def _known(prompt: Authored) -> tuple[str, ...]:
        partner = (prompt.partner.answer,) if prompt.partner else ()
        return prompt.options or tuple(dict.fromkeys((prompt.case.answer, *partner)))

    def _likely(self, cases: Sequence[Case]) -> list[list[str]]:
        encoder = self.reader.encoder
        rows = [encoder.encode(case.question, case.steps or (), None, case.gaps).ids for case in cases]
        context = self.reader.source.context
        results: list[list[str]] = [[] for _ in rows]
        fitting = [i for i, row in enumerate(rows) if context is None or len(row) < context]
        fitting.sort(key=lambda i: len(rows[i]))
        while fitting:
            size = max(1, self.batch_tokens // max(len(rows[i]) for i in fitting))
            part, fitting = fitting[:size], fitting[size:]
            prefix, last = kv_cache.read(self.reader.model, [rows[i] for i in part])
            for i, answers in zip(part, likely_answers(self.reader, prefix, last, self.batch_tokens), strict=True):
                results[i] = answers
        return results


def _texts(prompt: Authored) -> list[Case]:
    """Where the answers of a prompt are looked for: behind its chain, behind none, and behind its partner's."""
    partner = [prompt.partner] if prompt.partner is not None and prompt.partner.has_chain else []
    return [prompt.case, prompt.case.first(0), *partner]
