"""Means over directions of what sorting solves in one dimension, as differentiable functions of points and weights."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gwf_fast.kernels.reference.sliced import forces as forces_by_torch
from gwf_fast.kernels.reference.sliced import sliced as sliced_by_torch
from gwf_fast.measures.discrepancy import mmd2
from gwf_fast.ops.dispatch import load, resolve
from gwf_fast.ops.modes import is_concrete
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.fast.exponentials import power_of_distance
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
    """Mean over directions [B] in float64; its gradients come from the same pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, problem: Problem
    ) -> tuple[Tensor, Tensor]:
        values, *gradients = problem.gradients(x, y, a, b, wanted=ctx.needs_input_grad[:4])
        ctx.problem = problem
        ctx.save_for_backward(x, y, a, b, *gradients)
        ctx.mark_non_differentiable(values)
        return values.mean(-1), values  # in float64: a root may follow

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, a, b, *gradients = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradients = _Gradient.apply(x, y, a, b, *gradients, ctx.problem)
        factor = grads[0][:, None]
        of_points = [None if g is None else factor[..., None].to(g.dtype) * g for g in gradients[:2]]
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
    root: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean over directions [*B], or its root of the power, and the value of each [*B, P] in float64, without a graph.

    Directions that require grad are each a problem of its own, on a line: P x N numbers are stored.
    """
    sets = Sets.of(x, y, x_weights, y_weights, x_lengths, y_lengths, backend)
    unit = sets.unit() if root and power != 1 else None  # powers leave the range of floats, their roots do not
    if unit is not None:
        sets = sets._replace(x=sets.x / unit, y=sets.y / unit)
    theta = directions.to(sets.x.dtype).contiguous()
    if not is_concrete(sets.x, sets.y, sets.a, sets.b, theta) or sets.backend == "torch":
        # Plain PyTorch is what a compiler can work on, and a transform.
        u, v, a, b = sets.padded()
        tiles = [_portable(kind, u, v, tile, power, a, b) for tile in theta.split(_REFERENCE_TILE)]
        values = torch.cat(tiles, -1)
        mean, values = values.double().mean(-1), values.detach().double()
    elif theta.requires_grad and torch.is_grad_enabled():
        values = on_lines(kind, theta @ sets.x.mT, theta @ sets.y.mT, power, sets)  # [B, P]
        mean, values = values.mean(-1), values.detach()
    else:
        problem = Problem(kind, power, theta.detach(), sets.lengths, load(sets.backend, "sliced"))
        mean, values = _Mean.apply(sets.x, sets.y, sets.a, sets.b, problem)
    if root and power != 1:
        mean = rooted(mean, power)
        mean = mean if unit is None else mean * unit[:, 0, 0].double()
    if unit is not None:
        values = values * unit[:, 0].double() ** power
    return mean.view(x.shape[:-2]).to(x.dtype), values.view(*x.shape[:-2], len(theta))


class Sets(NamedTuple):
    """Both sets with one batch dimension, in a wide type, about a common origin; weights sum to 1, None are equal.

    Attributes:
        x: [B, N, D].
        y: [B, M, D].
        a: [B, N], float64.
        b: [B, M], float64.
        lengths: Sizes [B] of both where they are ragged.
        backend: Who serves.
    """

    x: Tensor
    y: Tensor
    a: Tensor | None
    b: Tensor | None
    lengths: tuple[Tensor | None, Tensor | None]
    backend: BackendName

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        backend: BackendName | None,
        centred: bool = True,
    ) -> Sets:
        """From a user's arguments.

        Raises:
            ValueError, TypeError: If they do not fit each other.
        """
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        backend = resolve(backend, x.device, wide, False, "sliced", x.shape[-1])
        # differences of projections do not mind where the origin is
        centre = centre_of(y, y_lengths).to(wide) if centred else 0.0
        u, v = (
            (points.to(wide) - centre).reshape(math.prod(points.shape[:-2]), *points.shape[-2:]).contiguous()
            for points in (x, y)
        )
        lengths = _lengths("x_lengths", x_lengths, x), _lengths("y_lengths", y_lengths, y)
        a = _normalised("x_weights", x_weights, x, "x", lengths[0])
        b = _normalised("y_weights", y_weights, y, "y", lengths[1])
        return cls(u, v, a, b, lengths, backend)

    def unit(self) -> Tensor:
        """A power of two near the largest coordinate of both sets [B, 1, 1]; a constant."""
        with torch.no_grad():
            sides = zip((self.x, self.y), self.lengths, strict=True)
            large = [members(t, n).abs().flatten(1).amax(1) for t, n in sides]
            largest = torch.maximum(*large)
            power = largest / (2 * largest.frexp().mantissa)
            return torch.where(power.isfinite() & (power > 0), power, 1.0)[:, None, None]

    def padded(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """x, y, a and b without lengths: zeros, of no weight, beyond them."""
        x, a = _padded(self.x, self.a, self.lengths[0])
        y, b = _padded(self.y, self.b, self.lengths[1])
        return x, y, a, b


def on_lines(kind: str, u: Tensor, v: Tensor, power: float, sets: Sets) -> Tensor:
    """The value [B, P] of each pair of lines u [B, P, N] and v [B, P, M], with the weights and lengths of the sets.

    Weights may be those of a line, [B, P, N] and [B, P, M], too. Differentiable in all of these; points of ``sets`` are
    not looked at.
    """
    lines = _Lines.of(u, v, sets)
    if lines.compiled is None:
        theta = u.new_ones(1, 1)
        values = _portable(kind, lines.u, lines.v, theta, power, lines.a, lines.b)
    else:
        values, _ = _Mean.apply(lines.u, lines.v, lines.a, lines.b, lines.problem(kind, power))
    return values.view(u.shape[:2])


def forces(u: Tensor, v: Tensor, power: float, sets: Sets) -> tuple[Tensor, Tensor, Tensor]:
    """The transport cost of each pair of lines [B, P], and its derivatives in u and v; without a graph."""
    lines = _Lines.of(u, v, sets)
    if lines.compiled is None:
        value, of_u, of_v = forces_by_torch(lines.u[..., 0], lines.v[..., 0], power, lines.a, lines.b)
    else:
        problem, weights = lines.problem("wasserstein", power), (lines.a, lines.b)
        value, of_u, of_v, *_ = problem.gradients(lines.u, lines.v, *weights, wanted=(True, True, False, False))
    return value.view(u.shape[:2]), of_u.view(u.shape), of_v.view(v.shape)


class _Lines(NamedTuple):
    """Pairs of lines as a batch of problems in one dimension; without lengths where PyTorch does the work."""

    u: Tensor  # [B P, N, 1]
    v: Tensor  # [B P, M, 1]
    a: Tensor | None
    b: Tensor | None
    lengths: tuple[Tensor | None, Tensor | None]
    compiled: ModuleType | None

    @classmethod
    def of(cls, u: Tensor, v: Tensor, sets: Sets) -> _Lines:
        count = u.shape[1]
        u, v = (line.reshape(len(line) * count, line.shape[-1], 1).contiguous() for line in (u, v))
        a, b = (w if w is None else _each(w if w.ndim == 3 else w[:, None], count) for w in (sets.a, sets.b))
        x_lengths, y_lengths = (None if n is None else n.repeat_interleave(count) for n in sets.lengths)
        if is_concrete(u, v, a, b) and sets.backend != "torch":
            return cls(u, v, a, b, (x_lengths, y_lengths), load(sets.backend, "sliced"))
        u, a = _padded(u, a, x_lengths)
        v, b = _padded(v, b, y_lengths)
        return cls(u, v, a, b, (None, None), None)

    def problem(self, kind: str, power: float) -> Problem:
        assert self.compiled is not None
        return Problem(kind, power, self.u.new_ones(1, 1), self.lengths, self.compiled)


def _each(weights: Tensor, count: int) -> Tensor:  # [B, P or 1, N] -> [B P, N]
    return weights.expand(-1, count, -1).reshape(len(weights) * count, weights.shape[-1]).contiguous()


def rooted(mean: Tensor, power: float) -> Tensor:
    """mean^(1 / power); at 0, where the root has no slope, that of the mean is taken, which is 0."""
    positive = mean > 0
    return torch.where(positive, torch.where(positive, mean, 1.0) ** (1 / power), mean)


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
