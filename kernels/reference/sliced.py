"""Sliced discrepancies in PyTorch operations, on any device, differentiable by autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def sliced(
    kind: str,
    x: Tensor,
    y: Tensor,
    directions: Tensor,
    power: float,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
) -> Tensor:
    """Value of each direction [B, P]; x [B, N, D], y [B, M, D], weights [B, N], [B, M] sum to 1."""
    a, b = ((points @ directions.mT).mT for points in (x, y))
    u, v = (
        torch.full_like(p, 1 / p.shape[-1]) if w is None else w.to(p)[:, None].expand_as(p)
        for p, w in ((a, x_weights), (b, y_weights))
    )
    if kind == "energy":  # 2 int (F - G)^2
        z, order = torch.cat([a, b], -1).sort(-1)
        gap = torch.cat([u, -v], -1).gather(-1, order).cumsum(-1)[..., :-1]
        return 2 * (gap.square() * z.diff(dim=-1)).sum(-1)
    a, order_a = a.sort(-1)
    b, order_b = b.sort(-1)
    if a.shape == b.shape and x_weights is None and y_weights is None:
        return (a - b).abs().pow(power).mean(-1)
    above_a, above_b = u.gather(-1, order_a).cumsum(-1), v.gather(-1, order_b).cumsum(-1)
    levels = torch.cat([above_a, above_b], -1).sort(-1).values
    i = torch.searchsorted(above_a, levels).clamp(max=a.shape[-1] - 1)
    j = torch.searchsorted(above_b, levels).clamp(max=b.shape[-1] - 1)
    pieces = levels.diff(dim=-1, prepend=torch.zeros_like(levels[..., :1]))
    return (pieces * (a.gather(-1, i) - b.gather(-1, j)).abs().pow(power)).sum(-1)
