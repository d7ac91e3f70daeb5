"""Sets of different sizes in one batch: padded to a common size, with their lengths beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from gwf_fast.pairs.validation import check_kind, check_weights


def exists(points: Tensor, lengths: Tensor) -> Tensor:
    """Which points [*B, N, D] are within the lengths [*B]; [*B, N]."""
    return torch.arange(points.shape[-2], device=points.device) < lengths[..., None]


def members(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Values [*B, N] or [*B, N, D] with zeros beyond the lengths [*B]."""
    if lengths is None:
        return values
    pointwise = values.ndim == lengths.ndim + 1
    present = exists(values[..., None] if pointwise else values, lengths)
    return torch.where(present if pointwise else present[..., None], values, 0.0)


def member_weights(name: str, weights: Tensor, points: Tensor, points_name: str, lengths: Tensor | None) -> Tensor:
    """Weights [*B, N] with zeros beyond the lengths; the rest finite and not negative, with a positive sum."""
    check_kind(name, weights)
    if weights.shape == points.shape[:-1]:
        weights = members(weights, lengths)
    check_weights(name, weights, points, points_name)
    return weights
