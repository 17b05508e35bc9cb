"""Attribution: an estimate, from gradients, of what patching each of many activations would do, all at once.

The plain estimate is the gradient at the own run times the difference to the donor's activation. It misses what is flat
where it looks: attention that is saturated in both runs, or paths that cancel at first. So the gradient is followed
from the own run to the donor's: the input to the network is moved from one to the other in steps, and each activation's
gradient is summed along the way that it takes itself (integrated gradients). Neither bounds the truth: what is screened
so must be confirmed exactly, and what was passed over sampled.

Source: Nanda 2023 (attribution patching); Hanna et al. 2024 (arXiv 2403.17806) on integrated gradients of the input;
Kramár et al. 2024 (arXiv 2403.00745) on what the plain gradient misses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Network = Callable[[Tensor], tuple[Float[Tensor, " row"], Mapping[str, Tensor]]]
"""Takes the input `[row, …]`, and gives a number for each row, and activations by name that it was computed from."""

STEPS = 8


@dataclass(frozen=True, eq=False)
class Attribution:
    """Estimates for each activation, of its own shape: how much each of its elements adds to the change.

    Attributes:
        plain: the gradient at the own run times the difference.
        integrated: the gradient along the way from the own run to the donor's.
    """

    plain: dict[str, Tensor]
    integrated: dict[str, Tensor]


def attribute(network: Network, own: Float[Tensor, " row *shape"], donor: Tensor, steps: int = STEPS) -> Attribution:
    """What writing the donor's activations into the own run changes, estimated from `steps` + 1 gradients.

    Args:
        network: what is attributed; rows must not depend on each other.
        own, donor: the input in both runs.
        steps: into how many parts the way between them is cut; trapezoids between its ends.
    """
    plain: dict[str, Tensor] = {}
    integrated: dict[str, Tensor] = {}
    before: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
    first: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
    for step in range(steps + 1):
        values, gradients = _gradients(network, own + (donor - own) * (step / steps))
        if before is not None:
            for name, value in values.items():
                part = (gradients[name] + before[1][name]) / 2 * (value - before[0][name])
                integrated[name] = integrated[name] + part if name in integrated else part
        before = values, gradients
        first = first or before
    assert before is not None
    assert first is not None
    for name, value in before[0].items():
        plain[name] = first[1][name] * (value - first[0][name])
    return Attribution(plain, integrated)


def _gradients(network: Network, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with torch.enable_grad():
        metric, activations = network(x.detach().requires_grad_())
        names = list(activations)
        found = torch.autograd.grad(metric.sum(), [activations[name] for name in names])
    # Sums of products in half precision would lose what they are made of.
    wide = [torch.promote_types(activations[name].dtype, torch.float32) for name in names]
    return (
        {name: activations[name].detach().to(dtype) for name, dtype in zip(names, wide, strict=True)},
        {name: gradient.to(dtype) for name, gradient, dtype in zip(names, found, wide, strict=True)},
    )
