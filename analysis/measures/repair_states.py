"""What is written at a chain's positions: the base's states, as they are or mapped to the variant's, and controls.

What has to be fitted is fitted on the half of the prompts that it is not written into.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from analysis.measures.repair_texts import Text, counterparts

OWN, RAW, AFFINE, MEAN = "own", "base", "affine", "mean_difference"
RANDOM, OTHER, LENGTH = "random", "other_prompt", "length"
REVERSE = "reverse"
"""What is written into the variant; and the variant's states, written into the base."""
UNEDITED, BASE_ITSELF, NO_LAYER = "unedited", "base_itself", -1
"""The two models with nothing written."""
PENALTIES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Per training token and standardised feature: scikit-learn's `alpha` is the penalty times the number of tokens."""
FOLDS = 3
_FLAT = 1e-6
"""Of the mean variance: a feature that varies less is standardised as if it varied so much."""


@dataclass(frozen=True)
class Run:
    """One text of one prompt: the states of its chain in both models, `[token, width]`."""

    prompt: str
    variant: Float[Tensor, "token width"]
    base: Float[Tensor, "token width"]


@dataclass(frozen=True)
class Written:
    """States written into one text, `[written, width]` at these tokens of it, ascending."""

    condition: str
    draw: int
    places: Int[ndarray, " written"]
    values: Float[Tensor, "written width"]


@dataclass(frozen=True)
class AffineMap:
    """The base's states in the variant's coordinates: `x + (x − mean) @ coef + shift`, in double precision.

    Attributes:
        mean, shift: `[width]`.
        coef: `[width, width]`; all 0 where the two models differ by a constant.
        penalty: of `PENALTIES`, by which it was fitted.
    """

    mean: Float[Tensor, " width"]
    coef: Float[Tensor, "width width"]
    shift: Float[Tensor, " width"]
    penalty: float

    def __call__(self, x: Float[Tensor, "token width"]) -> Float[Tensor, "token width"]:
        """The states, as the type that they had."""
        double = x.to(self.coef)
        return (double + (double - self.mean) @ self.coef + self.shift).to(x)


@dataclass(frozen=True)
class Fitted:
    """What is learned of one half of the prompts at one layer.

    Attributes:
        affine: brings base states to where the variant's are.
        mean_difference: base minus variant, mean over all chain tokens, `[width]`.
        shorter: the variant's mean state in chains below the median length minus that in chains above it, `[width]`;
            None where all are equally long.
    """

    affine: AffineMap
    mean_difference: Float[Tensor, " width"]
    shorter: Float[Tensor, " width"] | None


def fit(runs: Sequence[Run]) -> Fitted:
    """The map, the mean difference and the direction of length of these texts' chains (at least one)."""
    variant, base = (torch.cat([getattr(run, which).double() for run in runs]) for which in ("variant", "base"))
    numbers = np.unique([run.prompt for run in runs], return_inverse=True)[1]
    groups = np.repeat(numbers, [len(run.variant) for run in runs])
    return Fitted(fit_affine(base, variant, groups), (base - variant).mean(0), _shorter(runs))


def _shorter(runs: Sequence[Run]) -> Tensor | None:
    lengths = np.array([len(run.variant) for run in runs])
    if lengths.min() == lengths.max():
        return None
    cut = float(np.median(lengths))
    if cut in (lengths.min(), lengths.max()):
        cut = float(lengths.mean())  # with so many ties nothing would be beyond the median on one side
    short, long = (
        torch.cat([run.variant.double() for run, chosen in zip(runs, where, strict=True) if chosen]).mean(0)
        for where in (lengths < cut, lengths > cut)
    )
    return short - long


def fit_affine(
    base: Float[Tensor, "token width"], variant: Float[Tensor, "token width"], groups: Int[ndarray, " token"]
) -> AffineMap:
    """The map from base to variant, by ridge regression of `variant − base` on standardised base states.

    Shrinking the difference, not the map, leaves base states as they are where nothing is to be learned: a copy of the
    base gets the identity. The penalty is the one of `PENALTIES` with the least squared error in `FOLDS` folds of
    prompts, the largest if there is but one prompt.

    Args:
        base, variant: states of the same tokens, in double precision.
        groups: the number of each token's prompt, from 0 up.

    Source: Hoerl & Kennard 1970; shrunk towards the identity.
    """
    mean = base.mean(0)
    x, difference = base - mean, variant - base
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    n_folds = min(FOLDS, int(groups.max()) + 1)
    fold = torch.from_numpy(groups % n_folds).to(x.device)
    gram, cross = (
        torch.stack([x[fold == at].T @ right[fold == at] for at in range(n_folds)]) for right in (x, difference)
    )
    penalty = PENALTIES[-1]
    if n_folds > 1:
        errors = []
        for candidate in PENALTIES:
            error = 0.0
            for at in range(n_folds):
                coef = _solved(gram.sum(0) - gram[at], cross.sum(0) - cross[at], candidate)
                error += float((coef * (gram[at] @ coef - 2 * cross[at])).sum())
            errors.append(error)
        penalty = PENALTIES[len(errors) - 1 - int(np.argmin(errors[::-1]))]
    coef = _solved(gram.sum(0), cross.sum(0), penalty)
    return AffineMap(mean, coef[:-1], coef[-1], penalty)


def _solved(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """Ridge coefficients from moments, features first and the constant, which is not penalised, last."""
    n, sums, targets = gram[-1, -1], gram[-1, :-1], cross[-1]
    scatter = gram[:-1, :-1] - torch.outer(sums, sums) / n
    variance = scatter.diagonal() / n
    variance = variance.clamp_min(_FLAT * float(variance.mean()) or 1.0)
    coef = torch.linalg.solve(scatter + torch.diag(penalty * n * variance), cross[:-1] - torch.outer(sums, targets) / n)
    return torch.cat([coef, ((targets - sums @ coef) / n)[None]])


def written(
    text: Text,
    other: Text,
    own: Float[Tensor, "token width"],
    base: Float[Tensor, "token width"],
    others: Float[Tensor, "token width"],
    fitted: Fitted | None,
    names: Sequence[str],
) -> Iterator[Written]:
    """All that is written into one text of the variant's at one layer.

    Args:
        text, other: the text, and the one that stands in for it; the same where there is none.
        own, base: the states of the text's chain in both models.
        others: the variant's states of the other's chain.
        fitted: what the other half of the prompts taught; None if there is none.
        names: of random draws, the same for all texts of a prompt: an edit that differs between them by chance alone
            would look like an effect.
    """
    places = np.arange(*text.chain)
    yield Written(OWN, 0, places, own)
    yield Written(RAW, 0, places, base)
    if fitted is not None:
        yield Written(AFFINE, 0, places, fitted.affine(base))
        yield Written(MEAN, 0, places, (own + fitted.mean_difference).to(own))
        if fitted.shorter is not None:
            yield Written(LENGTH, 0, places, (own + fitted.shorter).to(own))
    for draw, name in enumerate(names):
        yield Written(RANDOM, draw, places, own + like_in_size(base - own, name))
    here, there = counterparts(text, other)
    if other is not text and len(here):
        yield Written(OTHER, 0, here, others[torch.from_numpy(there - other.chain[0]).to(others.device)])


def like_in_size(difference: Float[Tensor, "token width"], name: str) -> Float[Tensor, "token width"]:
    """Random vectors, each as long as that token's difference; their directions depend on `name` and place alone."""
    generator = np.random.default_rng(list(random.Random(name).randbytes(16)))
    directions = torch.from_numpy(generator.standard_normal(tuple(difference.shape), dtype=np.float32))
    directions = torch.nn.functional.normalize(directions.to(difference.device), dim=-1)
    sizes = torch.linalg.vector_norm(difference.float(), dim=-1, keepdim=True)
    vectors: Tensor = sizes * directions
    return vectors.to(difference)
