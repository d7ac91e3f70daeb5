"""The squared MMD with its gradient in x, and the Parzen score, by other means."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from bench.measure import detached, fastest, labelled
from bench.peers import keops
from bench.problem import Problem
from bench.registry import Contender


def dense_mmd2(problem: Problem) -> Contender:
    """Three whole matrices and autograd; the product form of the distance, the fastest dense one."""
    x = problem.x.clone().requires_grad_()

    def mean_kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        r2 = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * (a @ b.T)
        return torch.exp(-problem.g * r2).mean()

    def contender() -> tuple[torch.Tensor, ...]:
        y = problem.y
        value = mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
        return detached(value, *torch.autograd.grad(value, x))

    return contender


def geomloss_mmd2(backend: str, problem: Problem) -> Contender:
    """The kernel loss of geomloss (Feydy et al., AISTATS 2019), which is half the squared MMD."""
    if backend == "online":
        keops.load()
    from geomloss import SamplesLoss

    x = problem.x.clone().requires_grad_()
    loss = SamplesLoss("gaussian", blur=problem.bandwidth, backend=backend)

    def contender() -> tuple[torch.Tensor, ...]:
        value = 2 * loss(x, problem.y)
        return detached(value, *torch.autograd.grad(value, x))

    return contender


def attention_score(problem: Problem) -> Contender:
    """Mean shift is attention: softmax_j(x_i.y_j / h^2 - |y_j|^2 / (2 h^2)) y_j, one head, no N x M matrix.

    The second term goes in as a mask that is broadcast over the rows, or as one more coordinate.
    """
    x, y, h = problem.x, problem.y, problem.bandwidth
    bias = -problem.g * y.square().sum(1)  # [M]

    def score(mean: torch.Tensor) -> tuple[torch.Tensor]:
        return ((mean - x) / h**2,)

    def with_mask() -> tuple[torch.Tensor]:
        q, k = x[None, None], y[None, None]  # [1, 1, N, D]
        return score(scaled_dot_product_attention(q, k, k, attn_mask=bias[None, None, None], scale=1 / h**2)[0, 0])

    def with_coordinate() -> tuple[torch.Tensor]:
        q = torch.cat([x, torch.ones_like(x[:, :1])], 1)[None, None]  # [1, 1, N, D + 1]
        k = torch.cat([y, h**2 * bias[:, None]], 1)[None, None]
        return score(scaled_dot_product_attention(q, k, y[None, None], scale=1 / h**2)[0, 0])

    label, call = fastest({"broadcast mask": with_mask, "extra coordinate": with_coordinate})
    return labelled(call, label)
