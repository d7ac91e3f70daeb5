"""The nearest sources of each target, on the CPU. Float32 or float64; the batch dimension is there or not."""

from __future__ import annotations

import torch
from torch import Tensor

from gwf_fast.kernels.cpp.pairs import _cpu


def nearest(
    x: Tensor,  # [B?, N, D]
    y: Tensor,  # [B?, M, D]
    count: int,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Squared distances, ascending, and indices of the ``count`` nearest sources, [B?, N, count]."""
    shape = (*x.shape[:-1], count)
    squares, indices = x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)
    _cpu.nearest(x, y, exclude_self, x_lengths, y_lengths, squares, indices)
    return squares, indices
