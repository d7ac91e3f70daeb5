"""The near field: sums over neighbours within a radius, by sorting points into the cells of a grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_ORDER = 2  # of derivatives


def near_sum(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    weights: Tensor,  # [M, C]
    spec: tuple[float, ...],
    radius: float,
    degree: int,
    order: int,
) -> Tensor:  # [N, C, A], float64
    """sum_j w_jc d^a (k - k_far)(x_i - y_j) over |x_i - y_j| < radius; with degree 0, of k itself.

    Derivatives up to the second. Neighbours are summed in the order of their cells, whatever the number of threads.
    """
    if order > MAX_ORDER:
        raise NotImplementedError(
            'method="nufft": third derivatives of a kernel that is not smooth at x = y are not implemented, and fourth'
            " ones of others only where a transform serves"
        )
    if not x.is_cpu:  # only where a series was given up, and for second derivatives
        return near_sum(x.cpu(), y.cpu(), weights.cpu(), spec, radius, degree, order).to(x.device)
    from gwf_fast.kernels.cpp import pairs as cpp  # here: importing the package loads no compiled module

    x, y, weights = x.double(), y.double(), weights.double()
    low = torch.minimum(x.amin(0), y.amin(0))
    extent = torch.maximum(x.amax(0), y.amax(0)) - low
    dim, points = x.shape[1], x.shape[0] + y.shape[0]
    # Two cells a radius waste little, but there should not be more cells than points.
    volume = math.prod(max(float(e), radius) for e in extent)
    side = max(radius / 2, (volume / points) ** (1 / dim))
    grid = [int(e / side) + 1 for e in extent.tolist()]
    columns = _cells(y, low, side, grid)
    columns, order_y = columns.sort(stable=True)
    start = torch.zeros(math.prod(grid) + 1, dtype=torch.int64)
    start[1:] = torch.bincount(columns, minlength=math.prod(grid)).cumsum(0)
    rows, order_x = _cells(x, low, side, grid).sort(stable=True)  # neighbours in turn: their sources are in the cache
    out = torch.stack(
        [
            cpp.near_field(
                x[order_x], rows, y[order_y], w, start, grid, math.ceil(radius / side), spec, radius, degree, order
            )
            for w in weights[order_y].T
        ],
        1,
    )
    return torch.empty_like(out).index_copy_(0, order_x, out)


def _cells(points: Tensor, low: Tensor, side: float, grid: list[int]) -> Tensor:  # [N, D] -> [N]
    position = ((points - low) / side).long()
    out = torch.zeros(points.shape[0], dtype=torch.int64)
    for axis, size in enumerate(grid):
        out = out * size + position[:, axis].clamp(max=size - 1)
    return out
