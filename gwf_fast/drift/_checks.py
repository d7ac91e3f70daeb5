"""What all drifts ask of their arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from gwf_fast.pairs.validation import check_pair


def check_sets(x: Tensor, y: Tensor, exclude_self: bool, name: str = "y") -> None:
    """Particles and targets, of which there are some; a particle other than itself where it does not count."""
    check_pair(x, y, name)
    if y.shape[-2] == 0 and x.shape[-2]:
        raise ValueError(f"{name} must have at least one sample, got shape {list(y.shape)}")
    if exclude_self and x.shape[-2] == 1:
        raise ValueError(
            "x must have at least two particles where the pair of a particle with itself is excluded, got shape"
            f" {list(x.shape)}"
        )


def inverse_counts(points: Tensor, lengths: Tensor | None, excluded: int = 0) -> Tensor | float:
    """1 / (number of points - excluded), a number or [*B, 1, 1]."""
    if lengths is None:
        return 1.0 / max(points.shape[-2] - excluded, 1)
    return (lengths - excluded).clamp(min=1).to(points.dtype).reciprocal()[..., None, None]


def require_grad(*tensors: Tensor | None) -> bool:
    """Whether a derivative in any of these may be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
