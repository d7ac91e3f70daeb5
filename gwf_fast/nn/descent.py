"""Steps that train networks: gradients, descents, moving averages.

``JKOFlow``, ``DriftingModel``, the critics of explicit steps and ``drift.LearnedCritic`` are made of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def differentiate(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Put the gradient of a loss into ``grad`` of parameters; of one that it does not depend on, None.

    Args:
        loss: A scalar.
        parameters: No other gradient is computed.

    Returns:
        The gradients that there are.
    """
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient
    return [gradient for gradient in found if gradient is not None]


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[Tensor], clip: float | None = None
) -> None:
    """One step down a loss, by some of the parameters that it depends on.

    Args:
        optimizer: Takes the step.
        loss: A scalar.
        parameters: Those of the optimiser; no other gradient is computed.
        clip: Largest norm of their gradient; None for no clipping.
    """
    differentiate(loss, parameters)
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def step_unless(failed: Tensor, optimizer: torch.optim.Optimizer, is_ours: bool) -> None:
    """A step by the gradients that are there; parameters and moments stay as they are where ``failed`` is 1.

    Args:
        failed: 0 or 1, float32, a scalar on the device.
        optimizer: Takes the step.
        is_ours: Whether it is this package's Adam, which needs no look at the device for it.
    """
    if is_ours:
        optimizer.found_inf = failed  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif not failed:
        optimizer.step()


@torch.no_grad()
def average_into(means: Sequence[Tensor], values: Sequence[Tensor], decay: float, failed: Tensor | None = None) -> None:
    """One step of moving averages of parameters.

    Args:
        means: Are changed.
        values: What they follow.
        decay: Of the averages.
        failed: Where it is 1, nothing changes; a scalar on the device.
    """
    if not means:
        return
    weight = 1 - decay
    if failed is None:
        torch._foreach_lerp_(list(means), [value.detach() for value in values], weight)
        return
    for mean, value in zip(means, values, strict=True):
        mean.lerp_(value, weight * (1 - failed.to(mean.dtype)))


@torch.no_grad()
def follow(kept: Sequence[Tensor], current: Sequence[Tensor], failed: Tensor) -> None:
    """Copies of buffers (statistics of batches, counters), which are not averaged; nothing where ``failed`` is 1."""
    for copy_, now in zip(kept, current, strict=True):
        copy_.copy_(torch.where(failed == 1, copy_, now))
