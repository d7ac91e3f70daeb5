"""Directions of steepest descent, a chunk of particles at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 1 << 16
"""Rows differentiated at once: bounds the memory of the activations."""


def descent_direction(objective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """-grad of f at each row of x [N, D], for an objective that is the mean of f over the rows it is given."""
    out = torch.empty_like(x)
    for rows, result in zip(x.detach().split(CHUNK), out.split(CHUNK), strict=True):
        with torch.enable_grad():
            points = rows.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(points), points)
        torch.mul(gradient, -len(rows), out=result)
    return out
