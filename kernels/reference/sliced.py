"""Sliced discrepancies in PyTorch operations, on any device, differentiable by autograd."""

from __future__ import annotations

from typing import NamedTuple

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
    u, v = (w if w is None else w.to(p)[:, None].expand_as(p) for p, w in ((a, x_weights), (b, y_weights)))
    if kind == "energy":  # 2 int (F - G)^2
        z, order = torch.cat([a, b], -1).sort(-1)
        charges = [_masses(a, u), -_masses(b, v)]
        gap = torch.cat(charges, -1).gather(-1, order).cumsum(-1)[..., :-1]
        return 2 * (gap.square() * z.diff(dim=-1)).sum(-1)
    if a.shape == b.shape and x_weights is None and y_weights is None:
        return (a.sort(-1).values - b.sort(-1).values).abs().pow(power).mean(-1)
    pieces, i, j = plan(a, b, u, v)
    return (pieces * (a.gather(-1, i) - b.gather(-1, j)).abs().pow(power)).sum(-1)


class Plan(NamedTuple):
    """Pieces of mass [..., N + M], which go from a point to another."""

    mass: Tensor
    source: Tensor
    target: Tensor


def plan(a: Tensor, b: Tensor, u: Tensor | None, v: Tensor | None) -> Plan:
    """Optimal transport between numbers a [..., N] and b [..., M] with masses, or equal ones, that sum to 1."""
    order_a, order_b = a.argsort(-1), b.argsort(-1)
    above_a, above_b = (
        _masses(p, w).gather(-1, order).cumsum(-1) for p, w, order in ((a, u, order_a), (b, v, order_b))
    )
    levels = torch.cat([above_a, above_b], -1).sort(-1).values
    i = torch.searchsorted(above_a, levels).clamp(max=a.shape[-1] - 1)
    j = torch.searchsorted(above_b, levels).clamp(max=b.shape[-1] - 1)
    pieces = levels.diff(dim=-1, prepend=torch.zeros_like(levels[..., :1]))
    return Plan(pieces, order_a.gather(-1, i), order_b.gather(-1, j))


def forces(a: Tensor, b: Tensor, power: float, u: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The cost [L] of :func:`plan` and its derivatives in a [L, N] and b [L, M]."""
    mass, source, target = plan(a, b, u, v)
    d = a.gather(-1, source) - b.gather(-1, target)
    force = mass * power * d.abs().pow(power - 1) * d.sign()
    of_a = torch.zeros_like(a).scatter_add(-1, source, force)
    of_b = torch.zeros_like(b).scatter_add(-1, target, -force)
    return (mass * d.abs().pow(power)).sum(-1), of_a, of_b


def _masses(points: Tensor, weights: Tensor | None) -> Tensor:
    return torch.full_like(points, 1 / points.shape[-1]) if weights is None else weights.to(points)
