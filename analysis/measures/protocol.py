"""What a measure is: two protocols, the numbers that it reports, and the settings that all measures share.

A *prompt measure* reads prompts with one loaded model; a *store measure* reads stored activations of all models. Both
return a tidy table and know nothing of files, of the report, or of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pandas as pd

from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.generation import GREEDY, Sampling
from analysis.measures.session import Session
from analysis.store import Store
from analysis.verifiers import StepVerifier


@dataclass(frozen=True)
class Settings:
    """What decides a measure's result beside model and prompts.

    Attributes:
        seed: of everything drawn: mistakes, foreign chains, control positions, permutations.
        headline: the author whose chains all models read: `gold` or `base`.
        verifier: checks the claims of steps, for the knowledge index.
        continue_mistakes: also let the reader write on from a step with a mistake.
        patch_prompts: how many prompts measures take that patch activations (`Measure.capped`); None for all.
        patch_layers: which layers it takes, counted from 0; None for all but the last.
        max_chain_tokens: where a chain that a model writes is cut.
        sampling: how it is written.
        twin: activations of the base's architecture with random weights on the same texts; None if there are none.
    """

    verifier: StepVerifier
    seed: int = 0
    headline: str = "gold"
    continue_mistakes: bool = False
    patch_prompts: int | None = None
    patch_layers: tuple[int, ...] | None = None
    max_chain_tokens: int = 256
    sampling: Sampling = GREEDY
    twin: Store | None = None


@dataclass(frozen=True)
class Measured:
    """A measure's table, and the prompts that it could not use.

    The table of a prompt measure has columns `id`, `author`, keys (`condition`, `step`, `layer`, …) and values;
    `reader` is put in front by whoever runs it. That of a store measure has `reader` in its place.
    """

    table: pd.DataFrame
    excluded: Sequence[Excluded] = ()


@dataclass(frozen=True)
class Size:
    """How long one prompt's text is, in tokens, and how many layers read it; for estimates of what a measure takes."""

    question: float
    chain: float
    marker: float
    steps: float
    layers: int

    @property
    def text(self) -> float:
        """Everything before the answer."""
        return self.question + self.chain + self.marker

    @property
    def later(self) -> float:
        """What is behind a step, summed over the steps: to be read again when each of them in turn is changed."""
        return self.steps * (self.chain * (1 + 1 / max(self.steps, 1)) / 2 + self.marker)


class PromptMeasure(Protocol):
    """Reads prompts with one loaded model; one prompt may come several times, with chains of several authors."""

    def __call__(self, session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
        """The measure's table for this model."""
        ...


class StoreMeasure(Protocol):
    """Reads stored activations, the base's and the variants', by name."""

    def __call__(self, stores: Mapping[str, Store], settings: Settings) -> Measured:
        """The measure's table for all models."""
        ...


@dataclass(frozen=True)
class Quantity:
    """A number that a measure reports for a reader: the mean over prompts of a column, or a ratio of two sums.

    Attributes:
        name: key in `summary.json`.
        label: in words, as tables and evidence name it.
        unit: nats, probability, share …
        value: column; a prompt's rows are averaged (summed, for a ratio).
        over: the column of the denominator, for a ratio of sums over prompts.
        where: column → value of the rows that count.
        detached: sign of the change from base to variant that speaks for detachment; 0 where it speaks for neither.
        binary: values are 0 or 1 (one row a prompt), so that differences are tested by McNemar's test.
        needs_accuracy: meaningless for a reader that is hardly ever right ("not scorable" below the floor).
        mute_if_unchanged: that it did not change is no evidence against detachment: what can be read need not be used.
    """

    name: str
    label: str
    unit: str
    value: str
    over: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    detached: Literal[-1, 0, 1] = 0
    binary: bool = False
    needs_accuracy: bool = False
    mute_if_unchanged: bool = False


@dataclass(frozen=True)
class Measure:
    """An entry of the registry.

    Attributes:
        name: as in `study.yaml`, of its table, and in `summary.json`.
        title: what it asks, in a few words.
        quantities: the numbers it reports; each is estimated for every reader and author, and compared with the base.
        run: the measure of a prompt; None for a store measure.
        run_store: the measure of stores; None for a prompt measure.
        authors: whose chains it reads: `all` pairs of reader and author, the headline's and the reader's `own`, or
            the `headline`'s alone.
        needs_partner: it uses only prompts that have a counterfactual partner.
        summarise: further results for `summary.json`, of one reader and author, from their rows and a seed; for what no
            mean over prompts can say.
        compare: further results, of a variant against the base, from the rows of each (base's first).
        descriptive: it locates or describes, and is no evidence for or against by itself.
        beside_base: it has the base loaded beside each model, and no rows of the base itself.
        capped: it reads at most `Settings.patch_prompts` prompts.
        tokens: about how many tokens a model reads for one prompt and author, the answers' own left out.
    """

    name: str
    title: str
    quantities: tuple[Quantity, ...] = ()
    run: PromptMeasure | None = None
    run_store: StoreMeasure | None = None
    authors: Literal["all", "own", "headline"] = "own"
    needs_partner: bool = False
    summarise: Callable[[pd.DataFrame, int], dict[str, Any]] | None = None
    compare: Callable[[pd.DataFrame, pd.DataFrame], dict[str, Any]] | None = None
    descriptive: bool = False
    beside_base: bool = False
    capped: bool = False
    tokens: Callable[[Size], float] = lambda size: size.text
