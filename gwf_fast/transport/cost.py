"""The optimal value of an entropic problem as a differentiable function, to second order.

First derivatives hold the potentials fixed, as they may at an optimum (the envelope theorem):
    d/dx_i = m_i (x_i - T_i) for the cost r^2/2, T the barycentric map and m the row masses of the plan.
Second derivatives need how the potentials move: the optimality conditions are differentiated implicitly, which takes
one linear system with the plan, solved by conjugate gradients whose products are streaming averages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gwf_fast.pairs.passes import over, times
from gwf_fast.transport.problem import Entropic


def optimal_value(problem: Entropic, epsilon: float, f: Tensor, g: Tensor) -> Tensor:
    """Optimal value [*B], given potentials [*B, N], [*B, M] near the optimum; differentiable in x, y, a and b."""
    return _Cost.apply(problem.x, problem.y, problem.a, problem.b, f, g, epsilon, problem)


def half_self_cost(problem: Entropic, epsilon: float, f: Tensor) -> Tensor:
    """Half of the optimal value [*B] of a sample with itself; differentiable in x and a."""
    return _HalfSelfCost.apply(problem.x, problem.a, f, epsilon, problem)


def moving_potential(problem: Entropic, epsilon: float, g: Tensor) -> Tensor:
    """The optimal g [*B, M], given one near it, as a function of x, y, a and b; differentiable once."""
    return _Potential.apply(problem.x, problem.y, problem.a, problem.b, g, epsilon, problem)


def moving_own_potential(problem: Entropic, epsilon: float, f: Tensor) -> Tensor:
    """The same of a sample with itself, as a function of x and a."""
    return _SelfPotential.apply(problem.x, problem.a, f, epsilon, problem)


def _rebuilt(problem: Entropic, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Entropic:
    return replace(problem, x=x, y=y, a=a, b=b)


def _point_gradient(problem: Entropic, f: Tensor, g: Tensor, epsilon: float) -> Tensor:
    """sum_j pi_ij grad_x c(x_i, y_j) [*B, N, D], where f is the row update for g."""
    return problem.row_mass(f)[..., None] * problem.row_slope(g, epsilon)


def _weight_gradient(problem: Entropic, f: Tensor, epsilon: float, other_mass: Tensor) -> Tensor:
    """The derivative [*B, N] in a."""
    if problem.strength is None:
        return f
    lost = -torch.expm1(-over(f, problem.strength))
    return times(lost, problem.strength + epsilon) + times(other_mass - 1, epsilon)


class _Cost(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, epsilon: float, problem: Entropic
    ) -> Tensor:
        ctx.save_for_backward(x, y, a, b, f, g)
        ctx.epsilon, ctx.problem = epsilon, problem
        return problem.dual(problem.row_update(g, epsilon), problem.swapped().row_update(f, epsilon), epsilon)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
        x, y, a, b, f, g = ctx.saved_tensors
        epsilon, problem = ctx.epsilon, _rebuilt(ctx.problem, x, y, a, b)
        other = problem.swapped()
        if torch.is_grad_enabled():  # somebody will differentiate once more
            g = moving_potential(problem, epsilon, g)
            f = problem.row_update(g, epsilon)
        best_f, best_g = problem.row_update(g, epsilon), other.row_update(f, epsilon)
        needs, u = ctx.needs_input_grad, u[..., None]
        gx = u[..., None] * _point_gradient(problem, best_f, g, epsilon) if needs[0] else None
        gy = u[..., None] * _point_gradient(other, best_g, f, epsilon) if needs[1] else None
        ga = u * _weight_gradient(problem, best_f, epsilon, b.sum(-1, keepdim=True)) if needs[2] else None
        gb = u * _weight_gradient(other, best_g, epsilon, a.sum(-1, keepdim=True)) if needs[3] else None
        return gx, gy, ga, gb, None, None, None, None


class _HalfSelfCost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, f: Tensor, epsilon: float, problem: Entropic) -> Tensor:
        ctx.save_for_backward(x, a, f)
        ctx.epsilon, ctx.problem = epsilon, problem
        best = problem.row_update(f, epsilon)
        return 0.5 * problem.dual(best, best, epsilon)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
        x, a, f = ctx.saved_tensors
        epsilon, problem = ctx.epsilon, _rebuilt(ctx.problem, x, x, a, a)
        if torch.is_grad_enabled():
            f = moving_own_potential(problem, epsilon, f)
        best = problem.row_update(f, epsilon)
        needs, u = ctx.needs_input_grad, u[..., None]
        gx = u[..., None] * _point_gradient(problem, best, f, epsilon) if needs[0] else None
        ga = u * _weight_gradient(problem, best, epsilon, a.sum(-1, keepdim=True)) if needs[1] else None
        return gx, ga, None, None, None


class _Potential(torch.autograd.Function):
    """The optimal g as a function of x, y, a, b.

    Its rows eliminated, the dual is J(g); J_g = (marginal wanted) - q with q the column masses, and
    J_gg w = -(q / (eps d)) (w - d^2 A'A w) with A, A' the row and column averages and d the damping.
    Then dg = -J_gg^-1 d(J_g), and <J_g, w> is a sum of streaming averages.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor, g: Tensor, epsilon: float, problem: Entropic
    ) -> Tensor:
        ctx.save_for_backward(x, y, a, b, g)
        ctx.epsilon, ctx.problem = epsilon, problem
        return g.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        *inputs, g = ctx.saved_tensors
        with torch.no_grad():
            gradients = _Potential.gradients(ctx, v, inputs, g)
        return *_once(gradients, v, *inputs), None, None, None

    @staticmethod
    def gradients(ctx: Any, v: Tensor, inputs: list[Tensor], g: Tensor) -> list[Tensor | None]:
        """In x, y, a and b."""
        epsilon = ctx.epsilon
        fixed = _rebuilt(ctx.problem, *inputs)
        other, damping = fixed.swapped(), fixed.damping(epsilon)
        f = fixed.row_update(g, epsilon)
        q = other.row_mass(g)

        def product(w: Tensor) -> Tensor:
            rows = fixed.row_average(w[..., None], g, epsilon)
            return q * (w - damping**2 * other.row_average(rows, f, epsilon)[..., 0])

        # Where marginals hold exactly constants are in the kernel, and what is asked of g is orthogonal to them.
        w = _conjugate_gradients(product, times(v, -epsilon * damping), q, constants=fixed.strength is None)
        inputs = [t.detach().requires_grad_(need) for t, need in zip(inputs, ctx.needs_input_grad, strict=False)]
        with torch.enable_grad():
            moving = _rebuilt(ctx.problem, *inputs)
            mass = moving.row_mass(moving.row_update(g, epsilon))
            rows = moving.row_average(w[..., None], g, epsilon)[..., 0]
            slope = (mass * rows).sum() - (w * moving.swapped().row_mass(g)).sum()
        return _gradients(slope, inputs)


class _SelfPotential(torch.autograd.Function):
    """The optimal f of a sample with itself: f = d update(f), so (1 + d A) df = d(update) at fixed f."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, f: Tensor, epsilon: float, problem: Entropic) -> Tensor:
        ctx.save_for_backward(x, a, f)
        ctx.epsilon, ctx.problem = epsilon, problem
        return f.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        x, a, f = ctx.saved_tensors
        with torch.no_grad():
            gradients = _SelfPotential.gradients(ctx, v, x, a, f)
        return *_once(gradients, v, x, a), None, None, None

    @staticmethod
    def gradients(ctx: Any, v: Tensor, x: Tensor, a: Tensor, f: Tensor) -> list[Tensor | None]:
        """In x and a."""
        epsilon = ctx.epsilon
        fixed = _rebuilt(ctx.problem, x, x, a, a)
        mass = fixed.row_mass(f)

        def product(z: Tensor) -> Tensor:
            return mass * (z + fixed.damping(epsilon) * fixed.row_average(z[..., None], f, epsilon)[..., 0])

        w = mass * _conjugate_gradients(product, v, mass)
        x, a = x.detach().requires_grad_(ctx.needs_input_grad[0]), a.detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad():
            slope = (w * _rebuilt(ctx.problem, x, x, a, a).row_update(f, epsilon)).sum()
        return _gradients(slope, [x, a])


class _Once(torch.autograd.Function):
    """A value that nobody may differentiate, where it is a function of some inputs.

    PyTorch's ``once_differentiable`` is silent where ``torch.autograd.grad`` is asked for inputs by name: what it puts
    into the graph lies on no path to them, and its part is missing.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, *_: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        raise NotImplementedError("derivatives through the potentials of a transport problem are implemented once")


def _once(gradients: list[Tensor | None], *inputs: Tensor) -> list[Tensor | None]:
    if not torch.is_grad_enabled():
        return gradients
    return [None if t is None else _Once.apply(t, *inputs) for t in gradients]


def _gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(value, wanted) if wanted else ())
    return [next(found) if t.requires_grad else None for t in inputs]


_PATIENCE = 20  # steps without a smaller residual, after which there is none


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, diagonal: Tensor, constants: bool = False
) -> Tensor:
    """Solve a symmetric system for each element of the batch, with the diagonal as preconditioner.

    Where ``constants`` are in the kernel, residuals are kept orthogonal to them: else what rounding leaves there grows
    without bound. The answer is that of the smallest residual.
    """
    tolerance = 1e-12 if right.dtype == torch.float64 else 1e-6
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0.0)

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(-1, keepdim=True)

    def reachable(v: Tensor) -> Tensor:
        return v - diagonal * (v.sum(-1, keepdim=True) / diagonal.sum(-1, keepdim=True)) if constants else v

    w, residual = torch.zeros_like(right), reachable(right)
    z = inverse * residual
    direction, rho = z, dot(residual, z)
    enough, best, least, idle = tolerance**2 * rho, w, rho, 0
    for _ in range(1000):
        if idle >= _PATIENCE or bool((least <= enough).all()):
            break
        image = product(direction)
        curvature = dot(direction, image)
        step = torch.where(curvature > 0, rho / curvature, 0.0)
        w, residual = w + step * direction, reachable(residual - step * image)
        z = inverse * residual
        rho, before = dot(residual, z), rho
        smaller = rho < least
        best, least = torch.where(smaller, w, best), torch.where(smaller, rho, least)
        idle = 0 if bool(smaller.any()) else idle + 1
        direction = z + torch.where(before > 0, rho / before, 0.0) * direction
    return best
