"""The settings of a study, checked where they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.errors import InputError
from analysis.generation import Sampling
from analysis.partners import Tier
from analysis.prompts import ANNOTATIONS
from fracture.verdict import MARGIN

AUTHORS = ("gold", "base")
PARTNERS: dict[str, tuple[Tier, ...]] = {"given": (1,), "changed": (1, 2), "any": (1, 2, 3)}
"""Which counterfactual partners are used: given with the prompt; else one number changed; else another prompt."""


@dataclass(frozen=True)
class StudyConfig:
    """Everything that decides a study's results.

    Attributes:
        base, variants, prompts: where they are.
        out: run directory to make.
        format: trace format for all models; None for each model's own.
        author: whose chains are read, `gold` (given with the prompts) or `base` (written greedily by the base);
            None for gold chains if every prompt and partner has one, else the base's.
        partners: which partners are used, a key of `PARTNERS`; prompts whose partner is merely another prompt are
            described, and count for no verdict.
        annotations: GSM8K's calculator annotations (`<<48/2=24>>`) in chains: `keep` or `drop`.
        temperature, top_p, top_k: how models write chains; temperature 0 is greedy.
        seed: of samples and of changed numbers.
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
    partners: str = "changed"
    annotations: str = "keep"
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    margin: float = MARGIN
    max_chain_tokens: int = 256
    batch_tokens: int = 16384
    dtype: str = "float32"
    device: str = "cpu"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.author is not None and self.author not in AUTHORS:
            raise InputError(f"author {self.author!r}: expected {' or '.join(AUTHORS)}")
        if self.partners not in PARTNERS:
            raise InputError(f"partners {self.partners!r}: expected {', '.join(PARTNERS)}")
        if self.annotations not in ANNOTATIONS:
            raise InputError(f"annotations {self.annotations!r}: expected {' or '.join(ANNOTATIONS)}")
        _ = self.sampling
        if not 0 < self.margin < 1:
            raise InputError(f"margin {self.margin}: expected a number between 0 and 1")
        for name in ("max_chain_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: expected a positive number of tokens")

    @property
    def sampling(self) -> Sampling:
        """How models write chains.

        Raises:
            InputError: for settings that no sampling has.
        """
        return Sampling(self.temperature, self.top_p, self.top_k, self.seed)
