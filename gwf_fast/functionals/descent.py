"""Directions of steepest descent, a chunk of particles at a time, and moves that are no descent."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gwf_fast.errors import NonFiniteError

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


_FARTHEST = 4096
"""Particles that a step is judged by: those that it moved most."""


def require_descent(log_q: Callable[[Tensor], Tensor], before: Tensor, moved: Tensor, step_size: float) -> None:
    """Raise NonFiniteError for particles thrown out of the cloud, in a run that is otherwise unsuspicious.

    In a flow of KL(P | Q) nothing holds the map outside the samples: log mu falls as r^2 / (2 s^2) there, s the
    narrowest spread of P_k, and the critic, which should make up for it, is linear. Where 1 / s^2 exceeds 1 / a and the
    curvature of -log Q, few particles that come outside are drawn on, to 10^4 within some steps. At a minimiser
    |T x - x|^2 / (2 a) + log P(T x) - log Q(T x) does not exceed what it is at rest, so that the transport and
    -log Q may rise by no more than log P can fall.

    Args:
        log_q: log Q, [N, D] -> [N].
        before: x, [N, D].
        moved: T x, likewise.
        step_size: a.
    """
    costs = (moved - before).square().sum(-1) / (2 * step_size)
    rows = costs.topk(min(len(costs), _FARTHEST)).indices
    x, tx = before[rows], moved[rows]
    with torch.no_grad():
        rises = costs[rows] + log_q(x) - log_q(tx)
    worst = int(rises.nan_to_num(-math.inf).argmax())
    if rises[worst] > 100 + 20 * x.shape[1]:
        raise NonFiniteError(
            f"a particle was thrown from {_shown(x[worst])} to {_shown(tx[worst])}, where -log Q and the transport"
            f" are {float(rises[worst]):.3g} more than at rest; try a larger batch_size or a smaller lr"
        )


def _shown(point: Tensor) -> str:
    numbers = [f"{value:.4g}" for value in point[:4].tolist()]
    return "(" + ", ".join([*numbers, "..."][: 5 if len(point) > 4 else len(point)]) + ")"
