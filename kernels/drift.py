"""Drifting for batches of small problems in compiled C++ (csrc/drift.h), and whether a call is one."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 1 << 17
"""Pairs of a problem whose distances stay in the second-level cache of a core."""


def serves(x: Tensor, columns: int) -> bool:
    """Whether problems x [B, N, D] with so many targets each are small, on the CPU, in float32 or float64."""
    small = 0 < x.shape[1] * columns <= LARGEST and x.shape[1] <= columns
    return small and x.is_cpu and x.dtype in (torch.float32, torch.float64)


def forces(
    x: Tensor,  # [B, N, D]
    targets: Tensor,  # [B, M, D]: negatives, then positives
    weights: Tensor | None,  # [B, M]
    split: int,
    temperatures: Tensor,  # [K, B], in units of distance
    own: Tensor | None,  # [B], added to the distance of row i and column i
    floor: float,  # least squared distance
    clip: float,  # least product of the softmaxes
) -> Tensor:
    """V of Algorithm 2 (Deng et al. 2026) at each temperature, [K, B, N, D]."""
    from .cpp import _address, _cpu  # only when called: other backends do without the extension

    x, targets, temperatures = x.contiguous(), targets.contiguous(), temperatures.contiguous()
    weights = None if weights is None else weights.contiguous()
    own = None if own is None else own.contiguous()
    rates = len(temperatures)
    out = x.new_empty(rates, *x.shape)
    sizes = [len(x), x.shape[1], targets.shape[1], split, x.shape[2], rates]
    tensors = [_address(tensor) for tensor in (x, targets, weights, temperatures, own, out)]
    _cpu.drift(x.dtype is torch.float64, sizes, [*tensors, 0], floor, clip)
    return out
