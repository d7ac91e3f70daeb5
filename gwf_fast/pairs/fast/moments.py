"""Even powers of the distance: exact sums by moments of the sources, whatever their number.

|x - y|^2 = A(x) . B(y) with A = (|x|^2, -2 x, 1) and B = (1, y, |y|^2); its m-th power is the product of their m-fold
tensor powers, and sum_j w_j B(y_j)^m are the moments. In float64; points should be centred.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gwf_fast.kernels.table.profile_numbers import profile_id
from gwf_fast.ops.sharding import spread, total_of

CHUNK = 1 << 15
"""Points whose features are held at a time."""

LARGEST = 3
"""m, at most: there are (D + 2)^m moments."""

Spec = tuple[float, ...]


def split(spec: Spec) -> tuple[Spec, Spec]:
    """The terms that moments sum, and the others."""
    power = profile_id("power")
    parts: tuple[list[float], list[float]] = ([], [])
    for k in range(0, len(spec), 4):
        even = spec[k] == power and spec[k + 3] in [2.0 * m for m in range(1, LARGEST + 1)]
        parts[not even].extend(spec[k : k + 4])
    return tuple(parts[0]), tuple(parts[1])


def moment_sum(x: Tensor, y: Tensor, weights: Tensor, spec: Spec, order: int, backend: str | None = None) -> Tensor:
    """sum_j w_jc k(x_i - y_j), [N, C, 1], or its gradient, [N, C, D], for a kernel of even powers; float64.

    Differentiable by autograd to any order.
    """
    x, y, weights = x.double(), y.double(), weights.double()
    out = x.new_zeros(x.shape[0], weights.shape[1], 1 if order == 0 else x.shape[1])
    for k in range(0, len(spec), 4):
        _, coefficient, bandwidth, power = spec[k : k + 4]
        m = round(power / 2)
        factor = coefficient / bandwidth**power
        if order == 0:
            out = out + factor * _power_sum(x, y, weights, m, backend)[..., None]
        else:  # 2 m sum_j w_j r^(2 m - 2) (x - y)
            carried = torch.cat([weights, (weights[:, :, None] * y[:, None, :]).flatten(1)], 1)
            sums = _power_sum(x, y, carried, m - 1, backend)
            plain, moved = sums[:, : weights.shape[1]], sums[:, weights.shape[1] :]
            gradient = plain[..., None] * x[:, None, :] - moved.unflatten(1, (-1, x.shape[1]))
            out = out + 2 * m * factor * gradient
    return out


def _power_sum(x: Tensor, y: Tensor, weights: Tensor, m: int, backend: str | None) -> Tensor:  # [N, C]
    """sum_j w_jc |x_i - y_j|^(2 m)."""
    if m == 0:
        return spread(total_of(weights.sum(0), backend), backend).expand(x.shape[0], -1)
    moments = x.new_zeros((x.shape[1] + 2) ** m, weights.shape[1])
    for points, w in zip(y.split(CHUNK), weights.split(CHUNK), strict=True):
        square = (points**2).sum(1, keepdim=True)
        b = torch.cat([torch.ones_like(square), points, square], 1)
        features = b
        for _ in range(m - 1):
            features = (features[:, :, None] * b[:, None, :]).flatten(1)
        moments = moments + features.T @ w
    moments = spread(total_of(moments, backend), backend)
    parts = []
    for points in x.split(CHUNK):
        square = (points**2).sum(1, keepdim=True)
        a = torch.cat([square, -2 * points, torch.ones_like(square)], 1)
        total = a @ moments.view(a.shape[1], -1)
        for _ in range(m - 1):
            total = torch.einsum("nf,nfr->nr", a, total.unflatten(1, (a.shape[1], -1)))
        parts.append(total)
    return torch.cat(parts)
