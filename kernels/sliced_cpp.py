"""Sliced discrepancies on the CPU. No checks: contiguous float32 or float64 tensors, x [B, N, D], y [B, M, D]."""

from __future__ import annotations

import torch
from torch import Tensor

from .cpp import _cpu

KINDS = ("wasserstein", "energy")


def sliced(
    kind: str,
    x: Tensor,
    y: Tensor,
    directions: Tensor,  # [P, D]
    *,
    power: float = 2.0,
    scale: float = 1.0,
    weights: tuple[Tensor | None, Tensor | None] = (None, None),  # float64, [B, N] and [B, M], sums 1
    tangents: tuple[Tensor, Tensor] | None = None,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Values of each direction [B, P] in float64, and ``scale`` times the gradients of their sum over directions.

    With ``tangents`` the derivative of the gradients along them is returned instead.
    """
    batch, n, d = x.shape
    values = torch.empty(batch, len(directions), dtype=torch.float64)
    gradients = [torch.empty_like(points) if wish else None for points, wish in zip((x, y), wanted, strict=True)]
    inputs = (x, y, directions, *weights, *(tangents or (None, None)), *gradients, values)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in inputs]
    sizes = (batch, n, y.shape[1], d, len(directions))
    _cpu.sliced(x.dtype is torch.float64, KINDS.index(kind), power, scale, sizes, addresses)
    return values, gradients[0], gradients[1]
