"""Entropic transport written out: costs as matrices, the textbook's sweeps, the plan, in float64 and differentiable."""

from __future__ import annotations

from typing import Any, NamedTuple

import sympy as sp
import torch
from torch import Tensor

_s, _r = sp.symbols("s r")
COSTS: dict[str, dict[str, Any]] = {
    "r^2/2": {},
    "r": {"p": 1},
    "cosine": {"cost": "cosine"},
    "r^2": {"cost": _s},
    "3 r": {"cost": 3 * _r},
    "hyperbola": {"cost": sp.sqrt(1 + _s) - 1},
    "r^1.5": {"cost": _r ** sp.Rational(3, 2)},
    "bounded": {"cost": 1 - sp.exp(-_s)},
}
"""Options that ask for a cost."""

FORMULAS = ("hyperbola", "r^1.5", "bounded")


def cost_matrix(name: str, x: Tensor, y: Tensor) -> Tensor:
    """The costs [*B, N, M]."""
    if name == "cosine":
        return 1 - torch.nn.functional.cosine_similarity(x[..., :, None, :], y[..., None, :, :], dim=-1)
    s = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    r = torch.where(s == 0, 0.0, torch.where(s == 0, 1.0, s).sqrt())
    if name == "r^1.5":
        return torch.where(s == 0, 0.0, torch.where(s == 0, 1.0, s) ** 0.75)
    return {
        "r^2/2": s / 2,
        "r": r,
        "r^2": s,
        "3 r": 3 * r,
        "hyperbola": (1 + s).sqrt() - 1,
        "bounded": 1 - (-s).exp(),
    }[name]


class Dense(NamedTuple):
    """A problem after some sweeps."""

    f: Tensor  # [*B, N]
    g: Tensor  # [*B, M]
    plan: Tensor  # [*B, N, M]
    linear: Tensor  # [*B]
    entropic: Tensor  # [*B]


def sweeps(
    cost: Tensor, a: Tensor, b: Tensor, epsilon: float, count: int, g: Tensor | None = None, rho: float | None = None
) -> Dense:
    """f, then g, from 0 or a g: the alternate log-sum-exps of the textbook (Peyre & Cuturi 2019, 4.4)."""
    damping = 1.0 if rho is None else rho / (rho + epsilon)
    g = torch.zeros_like(b) if g is None else g
    f = torch.zeros_like(a)
    for _ in range(count):
        f = -epsilon * damping * torch.logsumexp((g[..., None, :] - cost) / epsilon + b.log()[..., None, :], -1)
        g = -epsilon * damping * torch.logsumexp((f[..., :, None] - cost) / epsilon + a.log()[..., :, None], -2)
    plan = a[..., :, None] * b[..., None, :] * ((f[..., :, None] + g[..., None, :] - cost) / epsilon).exp()
    return Dense(f, g, plan, (plan * cost).sum((-1, -2)), (a * f).sum(-1) + (b * g).sum(-1))


def own_value(cost: Tensor, a: Tensor, epsilon: float, count: int = 300) -> Tensor:
    """The optimal value [*B] of a sample with itself, by averaged updates (Feydy et al. 2019)."""
    f = torch.zeros_like(a)
    for _ in range(count):
        f = (f - epsilon * torch.logsumexp((f[..., None, :] - cost) / epsilon + a.log()[..., None, :], -1)) / 2
    return 2 * (a * f).sum(-1)


def problem(
    *batch: int, n: int = 6, m: int = 5, dim: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, a, b; one weight is 0."""
    generator = torch.Generator().manual_seed(n + 7 * m + 11 * dim)
    x, y = (torch.randn(*batch, k, dim, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.rand(*batch, k, generator=generator, dtype=torch.float64) + 0.2 for k in (n, m))
    a, b = (w / w.sum(-1, keepdim=True) for w in (a, b))
    return x.to(dtype), (y + 0.4).to(dtype), a.to(dtype), b.to(dtype)
