"""Losses under a cost or a kernel of the user's own: a function that gives a matrix, which is then stored.

As geomloss' backend "tensorized" has them: the cost is called on (x, y), (y, x), (x, x) and (y, y), each time with its
second argument detached, so that it need not be symmetric. The kernel is called as it stands, and must be symmetric.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Costs", "divergence", "kernel_matrices", "kernel_norm", "potentials"]

Matrix = Callable[..., Tensor]


class Costs(NamedTuple):
    """Matrices of costs between two sets of points, and of each with itself where the loss is debiased."""

    xy: Tensor  # [B, N, M]
    yx: Tensor  # [B, M, N]
    xx: Tensor | None
    yy: Tensor | None

    @classmethod
    def of(cls, cost: Matrix, x: Tensor, y: Tensor, debias: bool) -> Costs:
        """By the user's function, for points [B, N, D] and [B, M, D]."""
        pairs = [(x, y), (y, x), *([(x, x), (y, y)] if debias else [])]
        found = [_matrix("cost", cost(u, v.detach()), u, v) for u, v in pairs]
        return cls(found[0], found[1], *(found[2:] if debias else (None, None)))


def _matrix(name: str, value: Any, x: Tensor, y: Tensor) -> Tensor:
    expected = [*x.shape[:-1], y.shape[-2]]
    if not isinstance(value, Tensor) or list(value.shape) != expected:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must give a matrix [B, N, M] = {expected}, got {got}")
    return value


def kernel_matrices(kernel: Matrix, x: Tensor, y: Tensor, blur: float) -> tuple[Tensor, Tensor, Tensor]:
    """k(x, x), k(y, y), k(x, y) by the user's function, with the arguments that geomloss gives it."""
    xx, yy, xy = (
        _matrix("kernel", kernel(u, v, blur=blur, use_keops=False, ranges=None), u, v)
        for u, v in ((x, x), (y, y), (x, y))
    )
    return xx, yy, xy


def kernel_norm(matrices: tuple[Tensor, Tensor, Tensor], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Half of |a - b|_k^2 [B], and the witness at x and its negative at y; differentiable as the kernel is."""
    xx, yy, xy = matrices
    at_x = (xx @ a[..., None] - xy @ b[..., None])[..., 0]
    at_y = (yy @ b[..., None] - xy.mT @ a[..., None])[..., 0]
    return 0.5 * ((a * at_x).sum(-1) + (b * at_y).sum(-1)), at_x, at_y


def _softmin(epsilon: float, costs: Tensor, h: Tensor) -> Tensor:
    return -epsilon * (h[..., None, :] - costs / epsilon).logsumexp(-1)


def _damping(epsilon: float, strength: float | None) -> float:
    return 1.0 if strength is None else strength / (strength + epsilon)


def _log(weights: Tensor) -> Tensor:
    return weights.detach().log()


def potentials(
    costs: Costs, a: Tensor, b: Tensor, epsilons: list[float], strength: float | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """One averaged update of both sides for each epsilon; before a last update, of x and y, and of each with itself."""
    with torch.no_grad():
        own = None
        if costs.xx is not None and costs.yy is not None:
            own = tuple(_anneal(c, c, w, w, epsilons, strength)[0] for c, w in ((costs.xx, a), (costs.yy, b)))
        return _anneal(costs.xy, costs.yx, a, b, epsilons, strength), own  # type: ignore[return-value]


def _anneal(
    xy: Tensor, yx: Tensor, a: Tensor, b: Tensor, epsilons: list[float], strength: float | None
) -> tuple[Tensor, Tensor]:
    log_a, log_b = _log(a), _log(b)
    damping = _damping(epsilons[0], strength)
    f, g = damping * _softmin(epsilons[0], xy, log_b), damping * _softmin(epsilons[0], yx, log_a)
    for epsilon in epsilons:
        damping = _damping(epsilon, strength)
        new_f = damping * _softmin(epsilon, xy, log_b + g / epsilon)
        new_g = damping * _softmin(epsilon, yx, log_a + f / epsilon)
        f, g = 0.5 * (f + new_f), 0.5 * (g + new_g)
    return f, g


class _Side(NamedTuple):
    """A matrix of costs, the other side's potential and weights, and the own weights."""

    costs: Tensor
    other: Tensor
    other_weights: Tensor
    weights: Tensor

    def update(self, epsilon: float, strength: float | None) -> Tensor:
        """The best potential for the other side's."""
        h = _log(self.other_weights) + self.other / epsilon
        return _damping(epsilon, strength) * _softmin(epsilon, self.costs, h)

    def plan(self, best: Tensor, epsilon: float, strength: float | None) -> Tensor:
        """pi_ij, whose rows have the masses that the best potential leaves."""
        h = _log(self.other_weights) + self.other / epsilon
        rows = (h[..., None, :] - self.costs / epsilon).softmax(-1)
        mass = self.weights if strength is None else self.weights * torch.exp(-best / strength)
        return mass[..., None] * rows


class _Problem(NamedTuple):
    """Sides with their signs in the value, a pair of potentials, and one or two of weights."""

    epsilon: float
    strength: float | None

    def value(self, potential: Tensor) -> Tensor:
        """What a potential adds to the value, for each unit of weight; geomloss leaves products of masses out."""
        if self.strength is None:
            return potential
        return (self.strength + 0.5 * self.epsilon) * -torch.expm1(-potential / self.strength)

    def slope(self, potential: Tensor, biased: bool) -> Tensor:
        """The derivative of the optimal value in the weights."""
        if self.strength is None:
            return potential
        lost = (self.strength + self.epsilon) * -torch.expm1(-potential / self.strength)
        return lost - 0.5 * self.epsilon if biased else lost


class _Value(torch.autograd.Function):
    """The loss at potentials near the optimum; its derivatives hold them fixed (the envelope theorem)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, problem: _Problem, known: Any, *matrices: Tensor) -> Tensor:
        (f, g), own = known
        sides = [_Side(matrices[0], g, b, a), _Side(matrices[1], f, a, b)]
        if own is not None:
            sides += [_Side(matrices[2], own[0], a, a), _Side(matrices[3], own[1], b, b)]
        best = [side.update(*problem) for side in sides]
        ctx.problem, ctx.known = problem, known
        ctx.save_for_backward(a, b, *matrices, *best)
        signed = [problem.value(each) if k < 2 else -problem.value(each) for k, each in enumerate(best)]
        return sum((side.weights * each).sum(-1) for side, each in zip(sides, signed))  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
        if not torch.is_grad_enabled():
            return _Value.slopes(ctx, u)
        with torch.no_grad():
            found = _Value.slopes(ctx, u)
        inputs = u, *ctx.saved_tensors  # which the slopes depend on, in a way that nothing here knows
        return tuple(None if slope is None else _Once.apply(slope, *inputs) for slope in found)

    @staticmethod
    def slopes(ctx: Any, u: Tensor) -> tuple[Any, ...]:
        """In weights and costs: plans."""
        problem, ((f, g), own) = ctx.problem, ctx.known
        a, b, *rest = ctx.saved_tensors
        matrices, best = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        others = [(g, b, a), (f, a, b), *([(own[0], a, a), (own[1], b, b)] if own is not None else [])]
        plans = []
        for k, (costs, other, potential) in enumerate(zip(matrices, others, best)):
            sign = 1.0 if k < 2 else -1.0
            plans.append(sign * u[..., None, None] * _Side(costs, *other).plan(potential, *problem))
        slopes = [problem.slope(each, own is None) for each in best]
        if own is not None:
            slopes = [slopes[0] - slopes[2], slopes[1] - slopes[3]]
        return u[..., None] * slopes[0], u[..., None] * slopes[1], None, None, *plans


class _Once(torch.autograd.Function):
    """A derivative that has none, and says so: as a constant it would make second derivatives wrong in silence."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, *inputs: Tensor) -> Tensor:
        return slope

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
        raise NotImplementedError("a loss under a cost of your own has first derivatives only")


def divergence(
    costs: Costs, a: Tensor, b: Tensor, epsilons: list[float], strength: float | None, wants_potentials: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """The Sinkhorn divergence [B], or the transport alone, differentiable once; or the potentials."""
    known = potentials(costs, a, b, epsilons, strength)
    problem = _Problem(epsilons[-1], strength)
    matrices = [matrix for matrix in costs if matrix is not None]
    if not wants_potentials:
        value: Tensor = _Value.apply(a, b, problem, known, *matrices)
        return value
    (f, g), own = known
    at_x, at_y = _Side(costs.xy, g, b, a).update(*problem), _Side(costs.yx, f, a, b).update(*problem)
    if own is not None:
        at_x = at_x - _Side(matrices[2], own[0], a, a).update(*problem)
        at_y = at_y - _Side(matrices[3], own[1], b, b).update(*problem)
    return at_x, at_y
