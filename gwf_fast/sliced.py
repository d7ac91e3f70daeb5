"""Sliced discrepancies: averages over directions of what sorting solves in one dimension, in O(P (N + M) D) time."""

from __future__ import annotations

import functools
import importlib
import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._validation import check_companion, check_pair
from .directions import SAMPLINGS, draw_directions
from .kernels.sliced_reference import sliced as sliced_by_torch

_REFERENCE_TILE = 32  # directions at a time, where PyTorch does the work


@functools.cache
def _compiled() -> ModuleType:
    """The compiled sort, loaded on first use."""
    return importlib.import_module("gwf_fast.kernels.sliced_cpp")


class Problem(NamedTuple):
    """What does not change under differentiation."""

    kind: str
    power: float
    directions: Tensor
    weights: tuple[Tensor | None, Tensor | None]

    def gradients(self, x: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Values [B, P] and the gradients of their mean over directions."""
        scale = 1 / len(self.directions)
        return _compiled().sliced(
            self.kind, x, y, self.directions, power=self.power, scale=scale, weights=self.weights, **options
        )


class _Mean(torch.autograd.Function):
    """Mean over directions [B]; its gradients come from the same pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        values, *gradients = problem.gradients(x, y, wanted=ctx.needs_input_grad[:2])
        ctx.problem = problem
        ctx.save_for_backward(x, y, *gradients)
        ctx.mark_non_differentiable(values)
        return values.mean(-1).to(x.dtype), values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, y, of_x, of_y = ctx.saved_tensors
        if torch.is_grad_enabled():
            of_x, of_y = _Gradient.apply(x, y, of_x, of_y, ctx.problem)
        factor = grads[0][:, None, None]
        return None if of_x is None else factor * of_x, None if of_y is None else factor * of_y, None


class _Gradient(torch.autograd.Function):
    """The gradients already known, as functions of x and y: the order is locally constant."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, of_x: Tensor | None, of_y: Tensor | None, problem: Problem
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.problem = problem
        ctx.save_for_backward(x, y)
        return (None if of_x is None else of_x.view_as(of_x)), (None if of_y is None else of_y.view_as(of_y))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_x: Tensor | None, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        tangents = tuple(
            torch.zeros_like(points) if grad is None else grad.contiguous()
            for points, grad in ((x, grad_x), (y, grad_y))
        )
        _, *second = ctx.problem.gradients(x, y, tangents=tangents, wanted=ctx.needs_input_grad[:2])
        return (*second, None, None, None)


def sliced_wasserstein2(
    x: Tensor,
    y: Tensor,
    *,
    n_projections: int | None = None,
    generator: torch.Generator | None = None,
    sampling: str = "normal",
    directions: Tensor | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:
    """SW_2^2 = E_theta W_2^2(theta . x, theta . y), theta uniform on the sphere (Bonneel et al. 2015).

    Sets of different sizes, or with weights, are matched by their quantile functions.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        n_projections: P, the directions to average over, the same for the whole batch.
        generator: Source of the directions; None means torch's global one.
        sampling: "normal" (independent), "orthogonal" (in blocks of D) or "quasi" (quasi-Monte Carlo: equal angles in
            two dimensions, scrambled Sobol points beyond); each direction is uniform in all three.
        directions: [P, D] to use as they are, instead of drawn ones.
        x_weights: [*B, N], not negative; each set is scaled to sum to 1. None means 1 / N.
        y_weights: [*B, M], likewise.

    Returns:
        [*B], in units of |x|^2; differentiable twice in x and y, where no two projections coincide.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    theta = choose_directions(x, y, n_projections, generator, sampling, directions)
    return directional("wasserstein", x, y, theta, 2.0, x_weights, y_weights)[0]


def sliced_energy_distance(
    x: Tensor,
    y: Tensor,
    *,
    n_projections: int | None = None,
    generator: torch.Generator | None = None,
    sampling: str = "normal",
    directions: Tensor | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:
    """The energy distance in O(P (N + M) D): c_D times the mean of the projections' (Hertrich et al. 2024).

    |x| = c_D E_theta |theta . x|, c_D = sqrt(pi) Gamma((D + 1)/2) / Gamma(D/2): an unbiased estimate of
    ``energy_distance``, never negative.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        n_projections: P, the directions to average over, the same for the whole batch.
        generator: Source of the directions; None means torch's global one.
        sampling: "normal", "orthogonal" or "quasi", as in ``sliced_wasserstein2``.
        directions: [P, D] of unit length, instead of drawn ones.
        x_weights: [*B, N], not negative; each set is scaled to sum to 1. None means 1 / N.
        y_weights: [*B, M], likewise.

    Returns:
        [*B], in units of |x|; differentiable in x and y, the second derivative is 0 almost everywhere.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    theta = choose_directions(x, y, n_projections, generator, sampling, directions)
    return slicing_constant(x.shape[-1]) * directional("energy", x, y, theta, 1.0, x_weights, y_weights)[0]


def slicing_constant(dim: int) -> float:
    """c_D of |x| = c_D E |theta . x|."""
    return math.sqrt(math.pi) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))


def choose_directions(
    x: Tensor,
    y: Tensor,
    n_projections: int | None,
    generator: torch.Generator | None,
    sampling: str,
    directions: Tensor | None,
) -> Tensor:
    """Directions [P, D] for x and y, drawn or given."""
    check_pair(x, y)
    for name, points in (("x", x), ("y", y)):
        if not points.shape[-2]:
            raise ValueError(f"{name} must have at least one sample, got shape {list(points.shape)}")
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    if n_projections is not None and (isinstance(n_projections, bool) or not isinstance(n_projections, int)):
        raise TypeError(f"n_projections must be an integer, got {type(n_projections).__name__}")
    if n_projections is not None and n_projections < 1:
        raise ValueError(f"n_projections must be at least 1, got {n_projections}")
    if directions is None:
        if n_projections is None:
            raise TypeError("n_projections must be given where directions are not")
        return draw_directions(n_projections, x.detach(), sampling, generator)
    if not isinstance(directions, Tensor) or directions.dtype != x.dtype or directions.device != x.device:
        raise TypeError(f"directions must be a tensor of x's dtype {x.dtype} on {x.device}, got {_kind(directions)}")
    if directions.ndim != 2 or directions.shape[1] != x.shape[-1] or not len(directions):
        raise ValueError(
            f"directions must have shape [P, D] with P >= 1 and D = {x.shape[-1]}, got {list(directions.shape)}"
        )
    if n_projections not in (None, len(directions)):
        raise ValueError(f"n_projections must be the number of directions, {len(directions)}, got {n_projections}")
    if directions.requires_grad:
        raise ValueError("directions must not require grad: only points are differentiated")
    return directions


def _kind(value: object) -> str:
    return f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__


def directional(
    kind: str,
    x: Tensor,
    y: Tensor,
    directions: Tensor,
    power: float,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean over directions [*B], and the value of each [*B, P] in float64, without a graph."""
    batch = x.shape[:-2]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    u, v = (points.reshape(math.prod(batch), *points.shape[-2:]).to(wide).contiguous() for points in (x, y))
    weights = (_normalised("x_weights", x_weights, x, "x"), _normalised("y_weights", y_weights, y, "y"))
    theta = directions.to(wide).contiguous()
    if u.is_cpu:
        mean, values = _Mean.apply(u, v, Problem(kind, power, theta, weights))
    else:
        tiles = [sliced_by_torch(kind, u, v, tile, power, *weights) for tile in theta.split(_REFERENCE_TILE)]
        values = torch.cat(tiles, -1)
        mean, values = values.mean(-1), values.detach().double()
    return mean.view(batch).to(x.dtype), values.view(*batch, len(theta))


def _normalised(name: str, weights: Tensor | None, points: Tensor, points_name: str) -> Tensor | None:
    """Weights [B, N] in float64 that sum to 1."""
    if weights is None:
        return None
    check_companion(name, weights, points, channels=False, y_name=points_name)
    if weights.requires_grad:
        raise ValueError(f"{name} must not require grad: only points are differentiated")
    w = weights.double().reshape(-1, points.shape[-2])
    total = w.sum(-1, keepdim=True)
    if not (torch.isfinite(w).all() and (w >= 0).all() and (total > 0).all()):
        raise ValueError(f"{name} must be finite and not negative, with a positive sum for each set")
    return (w / total).contiguous()
