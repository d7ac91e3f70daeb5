"""The Stein kernel's sum and its derivatives in PyTorch, for any device, a tile of rows at a time.

Same functions as ``stein_sum`` and ``stein_sum_gradients`` of ``cpp/pairs.py``; the formulas are in csrc/stein/stein.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.kernels.reference.profiles import kernel_derivatives

_PAIRS = 1 << 22  # of a tile


class _Tile(NamedTuple):
    rows: slice
    d: Tensor  # x_i - x_j [B, n, N, D]
    q: Tensor  # its square [B, n, N]
    difference: Tensor  # s_i - s_j [B, n, N, D]
    products: Tensor  # s_i.s_j [B, n, N]
    phi: list[Tensor]  # derivatives of the kernel in q


def _tiles(x: Tensor, score: Tensor, spec: Sequence[float], order: int, diagonal: bool) -> Iterator[_Tile]:
    batch, n, dim = x.shape
    step = max(1, _PAIRS // max(batch * n * dim, 1))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        d = x[:, rows, None] - x[:, None]
        q = d.square().sum(-1)
        phi = kernel_derivatives(q, spec, order)
        if not diagonal:
            own = torch.arange(start, rows.stop, device=x.device)
            for f in phi:
                f[:, own - start, own] = 0
        difference = score[:, rows, None] - score[:, None]
        yield _Tile(rows, d, q, difference, score[:, rows] @ score.mT, phi)


def stein_sum(x: Tensor, score: Tensor, spec: Sequence[float], diagonal: bool) -> Tensor:
    """sum_ij of the Stein kernel, [B] in float64; x, score [B, N, D]."""
    dim = x.shape[-1]
    total = x.new_zeros(x.shape[0], dtype=torch.float64)
    wide = torch.promote_types(x.dtype, torch.float32)  # half precisions are computed in float32
    x, score = x.to(wide), score.to(wide)
    for _, d, q, difference, products, (f0, f1, f2) in _tiles(x, score, spec, 2, diagonal):
        u = f0 * products - 2 * f1 * ((difference * d).sum(-1) + dim) - 4 * q * f2
        total += u.double().sum((1, 2))
    return total


def stein_sum_gradients(x: Tensor, score: Tensor, spec: Sequence[float], diagonal: bool) -> tuple[Tensor, Tensor]:
    """The derivatives of ``stein_sum`` in x and score, [B, N, D] each."""
    dim = x.shape[-1]
    gx, gs = torch.empty_like(x), torch.empty_like(score)
    for rows, d, q, difference, products, (f0, f1, f2, f3) in _tiles(x, score, spec, 3, diagonal):
        c = f1 * products - 2 * f2 * ((difference * d).sum(-1) + dim + 2) - 4 * q * f3
        gx[:, rows] = 4 * (c[..., None] * d - f1[..., None] * difference).sum(2)
        gs[:, rows] = 2 * (f0 @ score - 2 * (f1[..., None] * d).sum(2))
    return gx, gs
