"""The optimal value of an entropic problem as a differentiable function, to second order.

First derivatives hold the potentials fixed, as they may at an optimum (the envelope theorem):
    d/dx_i = m_i (x_i - T_i) for the cost r^2/2, T the barycentric map and m the row masses of the plan.
Second derivatives need how the potentials move: the optimality conditions are differentiated implicitly, which takes
one linear system with the plan, solved by conjugate gradients whose products are streaming averages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gwf_fast.ops.modes import is_transformed
from gwf_fast.ops.once import batched, last
from gwf_fast.pairs.passes import over, times
from gwf_fast.transport import implicit
from gwf_fast.transport.problem import Entropic


def optimal_value(problem: Entropic, epsilon: float, f: Tensor, g: Tensor) -> Tensor:
    """Optimal value [*B], given potentials [*B, N], [*B, M] near the optimum; differentiable in x, y, a and b."""
    function = _TransformedCost if is_transformed() else _Cost
    return function.apply(problem.x, problem.y, problem.a, problem.b, f, g, epsilon, problem)


def half_self_cost(problem: Entropic, epsilon: float, f: Tensor) -> Tensor:
    """Half of the optimal value [*B] of a sample with itself; differentiable in x and a."""
    function = _TransformedHalfSelfCost if is_transformed() else _HalfSelfCost
    return function.apply(problem.x, problem.a, f, epsilon, problem)


def moving_potential(problem: Entropic, epsilon: float, g: Tensor) -> Tensor:
    """The optimal g [*B, M], given one near it, as a function of x, y, a and b; differentiable once."""
    function = _TransformedPotential if is_transformed() else _Potential
    return function.apply(problem.x, problem.y, problem.a, problem.b, g, epsilon, problem)


def moving_own_potential(problem: Entropic, epsilon: float, f: Tensor) -> Tensor:
    """The same of a sample with itself, as a function of x and a."""
    function = _TransformedSelfPotential if is_transformed() else _SelfPotential
    return function.apply(problem.x, problem.a, f, epsilon, problem)


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
        slopes = _slopes(problem, epsilon, f, g, ctx.needs_input_grad)
        return *_times(u, slopes), None, None, None, None

    @staticmethod
    def along(ctx: Any, *tangents: Tensor | None) -> Tensor:
        *inputs, f, g = ctx.saved_tensors
        problem = _rebuilt(ctx.problem, *inputs)
        return _along(_slopes(problem, ctx.epsilon, f, g, [t is not None for t in tangents[:4]]), tangents)


def _slopes(problem: Entropic, epsilon: float, f: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """The derivatives of the optimal value in x, y, a and b, those that are needed."""
    other = problem.swapped()
    if torch.is_grad_enabled():  # somebody will differentiate once more
        g = moving_potential(problem, epsilon, g)
        f = problem.row_update(g, epsilon)
    best_f, best_g = problem.row_update(g, epsilon), other.row_update(f, epsilon)
    total_a, total_b = (w.sum(-1, keepdim=True) for w in (problem.a, problem.b))
    return [
        _point_gradient(problem, best_f, g, epsilon) if needs[0] else None,
        _point_gradient(other, best_g, f, epsilon) if needs[1] else None,
        _weight_gradient(problem, best_f, epsilon, total_b) if needs[2] else None,
        _weight_gradient(other, best_g, epsilon, total_a) if needs[3] else None,
    ]


def _times(u: Tensor, slopes: list[Tensor | None]) -> list[Tensor | None]:
    """u [*B] times derivatives [*B, N, D] and [*B, N]."""
    return [None if t is None else u.reshape(*u.shape, *[1] * (t.ndim - u.ndim)) * t for t in slopes]


def _along(slopes: list[Tensor | None], tangents: Sequence[Tensor | None]) -> Tensor:
    """The derivative [*B] along tangents of points [*B, N, D] and weights [*B, N], which come after these."""
    half = len(slopes) // 2
    parts = [
        (slope * tangent).sum((-2, -1) if at < half else -1)
        for at, (slope, tangent) in enumerate(zip(slopes, tangents, strict=False))
        if slope is not None and tangent is not None
    ]
    return sum(parts[1:], parts[0])


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
        slopes = _own_slopes(_rebuilt(ctx.problem, x, x, a, a), ctx.epsilon, f, ctx.needs_input_grad)
        return *_times(u, slopes), None, None, None

    @staticmethod
    def along(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, a, f = ctx.saved_tensors
        needs = [t is not None for t in tangents[:2]]
        return _along(_own_slopes(_rebuilt(ctx.problem, x, x, a, a), ctx.epsilon, f, needs), tangents)


def _own_slopes(problem: Entropic, epsilon: float, f: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """The derivatives of half the value of a sample with itself in x and a."""
    if torch.is_grad_enabled():
        f = moving_own_potential(problem, epsilon, f)
    best = problem.row_update(f, epsilon)
    return [
        _point_gradient(problem, best, f, epsilon) if needs[0] else None,
        _weight_gradient(problem, best, epsilon, problem.a.sum(-1, keepdim=True)) if needs[1] else None,
    ]


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
        return *_moved("potential", ctx, v, inputs, g), None, None, None

    @staticmethod
    def along(ctx: Any, *tangents: Tensor | None) -> Tensor:
        *inputs, g = ctx.saved_tensors
        return _motion("potential", ctx, tangents, inputs, g)


class _SelfPotential(torch.autograd.Function):
    """The optimal f of a sample with itself: f = d update(f), so (1 + d A) df = d(update) at fixed f."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, f: Tensor, epsilon: float, problem: Entropic) -> Tensor:
        ctx.save_for_backward(x, a, f)
        ctx.epsilon, ctx.problem = epsilon, problem
        return f.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        *inputs, f = ctx.saved_tensors
        return *_moved("own_potential", ctx, v, inputs, f), None, None, None

    @staticmethod
    def along(ctx: Any, *tangents: Tensor | None) -> Tensor:
        *inputs, f = ctx.saved_tensors
        return _motion("own_potential", ctx, tangents, inputs, f)


_ONCE = "derivatives through the potentials of a transport problem are implemented once"


def _moved(kind: str, ctx: Any, v: Tensor, inputs: list[Tensor], potential: Tensor) -> list[Tensor | None]:
    """The gradients of <potential, v> in points and weights."""
    problem, needs = ctx.problem, ctx.needs_input_grad[: len(inputs)]
    numbers = ctx.epsilon, problem.p, problem.strength, problem.backend, problem.formula
    with torch.no_grad():
        if is_transformed():
            gradients = implicit.SLOPES[kind](v, *inputs, potential, *numbers)
        else:
            gradients = implicit.FORMULAS[kind].slopes(v, *inputs, potential, *numbers, needs=needs)
    if not torch.is_grad_enabled():
        return list(gradients)
    return [None if t is None or not need else last(t, _ONCE, v, *inputs) for t, need in zip(gradients, needs)]


def _motion(kind: str, ctx: Any, tangents: Sequence[Tensor | None], inputs: list[Tensor], potential: Tensor) -> Tensor:
    """How a potential moves along tangents of points and weights."""
    problem = ctx.problem
    along = [torch.zeros_like(t) if d is None else d for t, d in zip(inputs, tangents, strict=False)]
    numbers = ctx.epsilon, problem.p, problem.strength, problem.backend, problem.formula
    out = implicit.MOTIONS[kind](*along, *inputs, potential, *numbers)
    return last(out, _ONCE, *along, *inputs)


# ---------------------------------------------------------------------------------------------- under transforms


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.epsilon, ctx.problem = inputs
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _transformed(function: Any, forward: Callable[..., Tensor]) -> Any:
    name = f"{function.__name__}_transformed"
    return batched(name, forward=forward, setup_context=_setup, backward=function.backward, jvp=function.along)


def _value(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, epsilon: float, problem: Entropic
) -> Tensor:
    problem = _rebuilt(problem, x, y, a, b)
    return problem.dual(problem.row_update(g, epsilon), problem.swapped().row_update(f, epsilon), epsilon)


def _half_own_value(x: Tensor, a: Tensor, f: Tensor, epsilon: float, problem: Entropic) -> Tensor:
    problem = _rebuilt(problem, x, x, a, a)
    best = problem.row_update(f, epsilon)
    return 0.5 * problem.dual(best, best, epsilon)


def _third_last(*args: Any) -> Tensor:
    """The potential among tensors, a number and a problem."""
    return args[-3].clone()


_TransformedCost = _transformed(_Cost, _value)
_TransformedHalfSelfCost = _transformed(_HalfSelfCost, _half_own_value)
_TransformedPotential = _transformed(_Potential, _third_last)
_TransformedSelfPotential = _transformed(_SelfPotential, _third_last)
