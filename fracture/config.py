"""The settings of a study, checked where they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.errors import InputError
from fracture.verdict import MARGIN

AUTHORS = ("gold", "base")


@dataclass(frozen=True)
class StudyConfig:
    """Everything that decides a study's results.

    Attributes:
        base, variants, prompts: where they are.
        out: run directory to make.
        format: trace format for all models; None for each model's own.
        author: whose chains are read, `gold` (given with the prompts) or `base` (written greedily by the base);
            None for gold chains if every prompt and partner has one, else the base's.
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
    margin: float = MARGIN
    max_chain_tokens: int = 256
    batch_tokens: int = 16384
    dtype: str = "float32"
    device: str = "cpu"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.author is not None and self.author not in AUTHORS:
            raise InputError(f"author {self.author!r}: expected {' or '.join(AUTHORS)}")
        if not 0 < self.margin < 1:
            raise InputError(f"margin {self.margin}: expected a number between 0 and 1")
        for name in ("max_chain_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: expected a positive number of tokens")
