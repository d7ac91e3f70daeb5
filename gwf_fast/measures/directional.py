"""Means over directions of what sorting solves in one dimension, as differentiable functions of points and weights."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gwf_fast.kernels.reference.sliced import sliced as sliced_by_torch
from gwf_fast.measures.discrepancy import mmd2
from gwf_fast.measures.exponentials import power_of_distance
from gwf_fast.ops.dispatch import load, resolve
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.kernels import Riesz
from gwf_fast.pairs.passes import centre_of
from gwf_fast.pairs.ragged import exists, member_weights, members
from gwf_fast.pairs.validation import check_counts

_REFERENCE_TILE = 32  # directions at a time, where PyTorch does the work


class Problem(NamedTuple):
    """What does not change under differentiation."""

    kind: str
    power: float
    directions: Tensor
    lengths: tuple[Tensor | None, Tensor | None]
    compiled: ModuleType

    def gradients(self, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, **options: Any) -> Any:
        """Values [B, P] and the gradients of their mean over directions."""
        if self.kind == "power":
            options["exponentials"] = power_of_distance(self.power)
        options |= {"scale": 1 / len(self.directions), "weights": (a, b), "lengths": self.lengths}
        return self.compiled.sliced(self.kind, x, y, self.directions, power=self.power, **options)


class _Mean(torch.autograd.Function):
    """Mean over directions [B]; its gradients come from the same pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, problem: Problem
    ) -> tuple[Tensor, Tensor]:
        values, *gradients = problem.gradients(x, y, a, b, wanted=ctx.needs_input_grad[:4])
        ctx.problem = problem
        ctx.save_for_backward(x, y, a, b, *gradients)
        ctx.mark_non_differentiable(values)
        return values.mean(-1).to(x.dtype), values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, a, b, *gradients = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradients = _Gradient.apply(x, y, a, b, *gradients, ctx.problem)
        factor = grads[0][:, None]
        of_points = [None if g is None else factor[..., None] * g for g in gradients[:2]]
        return *of_points, *(None if g is None else factor.to(g.dtype) * g for g in gradients[2:]), None


class _Gradient(torch.autograd.Function):
    """The gradients already known, as functions of x and y: the order is locally constant."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, ...]:
        *tensors, problem = inputs
        ctx.problem = problem
        ctx.save_for_backward(*tensors[:4])
        return tuple(None if g is None else g.view_as(g) for g in tensors[4:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, y, a, b = ctx.saved_tensors
        if any(ctx.needs_input_grad[2:4]) or any(g is not None for g in grads[2:]):
            raise NotImplementedError("sliced discrepancies: second derivatives are of points, not of weights")
        tangents = tuple(
            torch.zeros_like(points) if grad is None else grad.contiguous()
            for points, grad in ((x, grads[0]), (y, grads[1]))
        )
        wanted = (*ctx.needs_input_grad[:2], False, False)
        second = ctx.problem.gradients(x, y, a, b, tangents=tangents, wanted=wanted)
        return second.x, second.y, *[None] * 7


def directional(
    kind: str,
    x: Tensor,
    y: Tensor,
    directions: Tensor,
    power: float,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean over directions [*B], and the value of each [*B, P] in float64, without a graph."""
    batch = x.shape[:-2]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    backend = resolve(backend, x.device, wide, False, "sliced", x.shape[-1])
    centre = centre_of(y, y_lengths).to(wide)  # differences of projections do not mind where the origin is
    u, v = ((points.to(wide) - centre).reshape(math.prod(batch), *points.shape[-2:]).contiguous() for points in (x, y))
    lengths = _lengths("x_lengths", x_lengths, x), _lengths("y_lengths", y_lengths, y)
    a = _normalised("x_weights", x_weights, x, "x", lengths[0])
    b = _normalised("y_weights", y_weights, y, "y", lengths[1])
    theta = directions.to(wide).contiguous()
    if backend != "torch" and not torch.compiler.is_compiling():  # traced, plain PyTorch is what a compiler can work on
        mean, values = _Mean.apply(u, v, a, b, Problem(kind, power, theta, lengths, load(backend, "sliced")))
    else:
        u, a = _padded(u, a, lengths[0])
        v, b = _padded(v, b, lengths[1])
        tiles = [_portable(kind, u, v, tile, power, a, b) for tile in theta.split(_REFERENCE_TILE)]
        values = torch.cat(tiles, -1)
        mean, values = values.mean(-1), values.detach().double()
    return mean.view(batch).to(x.dtype), values.view(*batch, len(theta))


def _portable(
    kind: str, u: Tensor, v: Tensor, theta: Tensor, power: float, a: Tensor | None, b: Tensor | None
) -> Tensor:  # [B, P]
    if kind != "power":
        return sliced_by_torch(kind, u, v, theta, power, a, b)
    lines = [(points @ theta.mT).mT[..., None] for points in (u, v)]  # [B, P, N, 1]
    weights = [w if w is None else w.to(u.dtype)[:, None].expand(line.shape[:3]) for w, line in zip((a, b), lines)]
    return mmd2(*lines, kernel=Riesz(power), x_weights=weights[0], y_weights=weights[1])


def _lengths(name: str, lengths: Tensor | None, points: Tensor) -> Tensor | None:
    check_counts(name, lengths, points, 1)
    return None if lengths is None else lengths.flatten().contiguous()


def _padded(points: Tensor, weights: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The same with zeros, of no weight, beyond the lengths."""
    if lengths is None:
        return points, weights
    if weights is None:
        weights = exists(points, lengths) / lengths[:, None].double()
    return members(points, lengths), weights


def _normalised(
    name: str, weights: Tensor | None, points: Tensor, points_name: str, lengths: Tensor | None
) -> Tensor | None:
    """Weights [B, N] in float64 that sum to 1 over the members of each set."""
    if weights is None:
        return None
    shaped = None if lengths is None else lengths.view(points.shape[:-2])
    w = member_weights(name, weights, points, points_name, shaped).double().reshape(-1, points.shape[-2])
    return (w / w.sum(-1, keepdim=True)).contiguous()
