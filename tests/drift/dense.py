"""Drifts along couplings as papers write them, with every matrix, in float64: the truth of their tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

F64 = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def exponents(x: Tensor, y: Tensor, temperature: float, metric: str = "l2", own: bool = False) -> Tensor:
    """-d / T [N, M] of one problem; -inf for a particle and itself."""
    square = (x[:, None] - y[None]).square().sum(-1)
    off = ~torch.eye(*square.shape, dtype=torch.bool) if own else torch.ones_like(square, dtype=torch.bool)
    distance = torch.where(square > 0, square, 1.0).sqrt() * (square > 0) if metric == "l2" else square
    return torch.where(off, -distance / temperature, -math.inf)


def plan(logits: Tensor, logs: Tensor, coupling: str, n_sweeps: int) -> Tensor:
    """A [N, M], of the kernel's exponents and logarithms of the targets' weights."""
    if coupling == "sinkhorn":
        masses = logs.exp() / logs.exp().sum()
        u, v = torch.zeros(len(logits), 1, dtype=F64), torch.zeros(1, len(logs), dtype=F64)
        kernel = logits.exp() * masses / len(logits)
        for _ in range(n_sweeps):
            u = -(kernel * v.exp()).sum(1, keepdim=True).log() - math.log(len(logits))
            v = torch.where(masses > 0, masses / (kernel * u.exp()).sum(0, keepdim=True), 1.0).log()
        return kernel * (u + v).exp()
    weighted = logits + logs
    rows = weighted.softmax(1)
    if coupling == "row":
        return rows
    columns = torch.where(logs == -math.inf, 0.0, weighted).softmax(0)
    product = rows * columns
    return torch.where(product > 0, product, 1.0).sqrt() * (product > 0)


def drift(
    x: Tensor,
    y: Tensor,
    negatives: Tensor,
    temperature: float,
    *,
    y_logs: Tensor | None = None,
    negatives_logs: Tensor | None = None,
    coupling: str = "two_sided",
    metric: str = "l2",
    form: str = "joint",
    n_sweeps: int = 20,
    own: bool = False,
) -> Tensor:
    """V [N, D] of one problem."""
    y_logs = y.new_zeros(len(y)) if y_logs is None else y_logs
    negatives_logs = y.new_zeros(len(negatives)) if negatives_logs is None else negatives_logs
    pull, push = exponents(x, y, temperature, metric), exponents(x, negatives, temperature, metric, own)
    if form == "split":
        positive, negative = plan(pull, y_logs, coupling, n_sweeps), plan(push, negatives_logs, coupling, n_sweeps)
        return positive @ y / positive.sum(1, keepdim=True) - negative @ negatives / negative.sum(1, keepdim=True)
    both = plan(torch.cat((push, pull), 1), torch.cat((negatives_logs, y_logs)), coupling, n_sweeps)
    negative, positive = both.split([len(negatives), len(y)], 1)
    return negative.sum(1, keepdim=True) * (positive @ y) - positive.sum(1, keepdim=True) * (negative @ negatives)


def unit(force: Tensor) -> Tensor:
    """Of mean square 1."""
    return force / force.square().mean().sqrt()
