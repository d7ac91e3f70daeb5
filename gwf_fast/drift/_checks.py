"""What all drifts ask of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from gwf_fast.ops.modes import is_concrete, is_readable
from gwf_fast.ops.sharding import Sharded, count_of, total_of
from gwf_fast.pairs.ragged import exists, members
from gwf_fast.pairs.validation import check_companion, check_pair


def check_sets(x: Tensor, y: Tensor, exclude_self: bool, name: str = "y", backend: str | None = None) -> None:
    """Particles and targets, of which there are some; a particle other than itself where it does not count."""
    check_pair(x, y, name)
    if count_of(y, backend) == 0 and count_of(x, backend):
        raise ValueError(f"{name} must have at least one sample, got shape {list(y.shape)}")
    if exclude_self:
        check_others(x, backend)


def check_others(x: Tensor, backend: str | None = None) -> None:
    """Particles of which each has another."""
    if count_of(x, backend) == 1:
        raise ValueError(
            "x must have at least two particles where the pair of a particle with itself is excluded, got shape"
            f" {list(x.shape)}"
        )


def inverse_counts(
    points: Tensor, lengths: Tensor | None, excluded: int = 0, backend: str | None = None
) -> Tensor | float:
    """1 / (number of points - excluded), a number or [*B, 1, 1]."""
    if lengths is None:
        return 1.0 / max(count_of(points, backend) - excluded, 1)
    return (lengths - excluded).clamp(min=1).to(points.dtype).reciprocal()[..., None, None]


def require_grad(*tensors: Tensor | None) -> bool:
    """Whether a derivative in any of these may be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def check_log_weights(
    name: str,
    log_weights: Tensor | None,
    points: Tensor,
    points_name: str,
    lengths: Tensor | None,
    particles: int = 0,
    backend: str | None = None,
) -> None:
    """Logarithms of weights [*B, M], -inf for 0, that leave something to average over.

    Args:
        name: Of the argument.
        log_weights: What came.
        points: What it goes with, [*B, M, D].
        points_name: Of these.
        lengths: Sizes [*B] of ragged sets.
        particles: How many of the points are particles themselves, each of which does without itself.
        backend: Who computes, for weights in shards.
    """
    if log_weights is None:
        return
    check_companion(name, log_weights, points, channels=False, y_name=points_name)
    if not (is_concrete(log_weights) and is_readable(log_weights)):
        return
    if not (log_weights.numel() or isinstance(backend, Sharded)):
        return
    values = log_weights.detach()
    present = torch.ones_like(values, dtype=torch.bool) if lengths is None else exists(points, lengths)
    if bool((present & ~(values < torch.inf)).any()):
        raise ValueError(f"{name} must be less than infinity, and a number, got {_range(values)}")
    counted = present & (values > -torch.inf)
    own = total_of(counted[..., :particles].any(-1).long(), backend).clamp(max=1)
    left = total_of(counted.sum(-1), backend) - own
    if bool((left < 1).any()):
        apart = " besides the particle itself" if particles else ""
        raise ValueError(f"{name} must be above -inf somewhere in each set{apart}, got {_range(values)}")


def negative_weights(
    weights: Tensor, x: Tensor, negatives: Tensor, x_lengths: Tensor | None, lengths: Tensor | None
) -> Tensor:
    """Weights of negatives [*B, Nn], or each particle's own [*B, N, Nn]: finite, not negative; 0 beyond the lengths."""
    name, n = "negatives_weights", x.shape[-2]
    by_row = isinstance(weights, Tensor) and weights.ndim == negatives.ndim
    like = negatives[..., None, :, :].expand(*x.shape[:-1], *negatives.shape[-2:]) if by_row else negatives
    if isinstance(weights, Tensor) and weights.shape != like.shape[:-1]:
        shapes = [list(negatives.shape[:-1]), [*negatives.shape[:-2], n, negatives.shape[-2]]]
        raise ValueError(f"{name} must have shape {shapes[0]} or {shapes[1]}, got {list(weights.shape)}")
    check_companion(name, weights, like, channels=False, y_name="negatives")
    weights = members(members(weights, x_lengths).mT, lengths).mT if by_row else members(weights, lengths)
    if is_concrete(weights) and is_readable(weights) and not bool(((weights >= 0) & (weights < torch.inf)).all()):
        raise ValueError(f"{name} must be finite and not negative, got {_range(weights)}")
    return weights


def _range(values: Tensor) -> str:
    if not values.numel():
        return "none"
    return f"values in {float(values.amin()):g}..{float(values.amax()):g}"
