"""Dense float64 truths of entropic transport: one problem, arguments as the function's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.fuzz.dense import origin, pairs, softmax
from tests.fuzz.radial import at_positive
from tests.fuzz.rounding import Rounding

Kind = tuple[int, str | None]
"""p, and a cost in its place."""


def ground(R: Rounding, x, y, kind: Kind) -> Tensor:
    """The costs [N, M]."""
    p, cost = kind
    if cost == "cosine":
        same = x is y
        x = R(x / x.norm(dim=1, keepdim=True))
        y = x if same else R(y / y.norm(dim=1, keepdim=True))
    square = pairs(R, x, y)[1]
    return square / 2 if p == 2 else at_positive(square, torch.sqrt)


def _soft(cost, log_b, g, epsilon: float) -> Tensor:
    return -epsilon * ((g[None] - cost) / epsilon + log_b[None]).logsumexp(1)


def _potentials(
    R: Rounding, x, y, a, b, epsilon: float, rho: float | None, same: bool, kind: Kind = (2, None)
) -> tuple[Tensor, Tensor]:
    """Constants of autograd: some sweeps, then Newton's method on the dual, to the last digits."""
    with torch.no_grad():
        cost, damping = ground(R, x, y, kind).detach(), 1.0 if rho is None else rho / (rho + epsilon)
        log_a, log_b, g, n = a.log(), b.log(), torch.zeros_like(b), len(a)
        for _ in range(4):
            for _ in range(20):
                f = damping * _soft(cost, log_b, g, epsilon)
                g = damping * _soft(cost.T, log_a, f, epsilon)
            for _ in range(60):
                plan = ((f[:, None] + g[None] - cost) / epsilon + log_a[:, None] + log_b[None]).exp()
                rows, columns = plan.sum(1), plan.sum(0)
                wanted = torch.cat((a, b) if rho is None else (a * (-f / rho).exp(), b * (-g / rho).exp()))
                curvature = torch.cat((rows, columns)) / epsilon + (0 if rho is None else wanted / rho)
                system = torch.diag(curvature)
                system[:n, n:], system[n:, :n] = plan / epsilon, plan.T / epsilon
                # scaled to a unit diagonal; the free constant is left alone, and points without weight
                root = torch.where(curvature > 0, curvature.rsqrt(), 0.0)
                scaled = root[:, None] * system * root[None]
                gap = wanted - torch.cat((rows, columns))
                step = root * (torch.linalg.pinv(scaled, rtol=1e-14, hermitian=True) @ (root * gap))
                size = float(step.abs().max())
                step = step * min(1.0, 2 * epsilon / size) if size > 0 else step
                f, g = f + step[:n], g + step[n:]
                if size <= 1e-14 * (epsilon + float(f.abs().max())):
                    break
            # masses that hardly meet are a second constant to the inverse: sweeps move them
            if size <= 1e-9 * (epsilon + float(f.abs().max())) and bool((gap.abs() <= 1e-9 * wanted).all()):
                break
            for _ in range(500):
                f = damping * _soft(cost, log_b, g, epsilon)
                g = damping * _soft(cost.T, log_a, f, epsilon)
        else:  # no truth then
            f, g = f * math.nan, g * math.nan
        f = damping * _soft(cost, log_b, g, epsilon)
        return ((f + g) / 2,) * 2 if same else (f, g)


def _cost(R: Rounding, x, y, a, b, epsilon: float, rho: float | None, same: bool, kind: Kind = (2, None)) -> Tensor:
    """The optimal value; its gradient holds the potentials on the other side fixed (the envelope theorem)."""
    f, g = _potentials(R, x, y, a, b, epsilon, rho, same, kind)
    cost = ground(R, x, y, kind)
    plan = ((f[:, None] + g[None] - cost) / epsilon).exp() * a[:, None] * b[None]
    if rho is None:  # <a, f> + <b, g> - eps (sum pi - sum a sum b)
        value = (a * f).sum() + (b * g).sum() - epsilon * (R(plan).sum() - a.sum() * b.sum())
    else:
        lost = -(a * torch.expm1(-f / rho)).sum() - (b * torch.expm1(-g / rho)).sum()
        value = rho * lost - epsilon * (R(plan).sum() - a.sum() * b.sum())
    return value


def _masses(x, y, x_weights, y_weights, rho: float | None = None) -> tuple[Tensor, Tensor]:
    """Weights; where marginals hold exactly, of one sum to the last digit, which no float32 has."""
    a = torch.full((len(x),), 1 / len(x), dtype=x.dtype) if x_weights is None else x_weights
    b = torch.full((len(y),), 1 / len(y), dtype=x.dtype) if y_weights is None else y_weights
    return a, b if rho is not None else b * (a.sum() / b.sum())


def sinkhorn(R: Rounding, x, y, x_weights=None, y_weights=None, *, epsilon, marginal_strength=None, **_) -> Tensor:
    """The plan [N, M], which the potentials' free constant leaves alone."""
    a, b = _masses(x, y, x_weights, y_weights, marginal_strength)
    f, g = _potentials(R, x, y, a, b, epsilon, marginal_strength, False)
    return plan_of(R, x, y, f, g, a, b, epsilon)


def plan_of(R: Rounding, x, y, f, g, a, b, epsilon: float, kind: Kind = (2, None)) -> Tensor:
    exponent = (f[:, None] + g[None] - ground(R, x, y, kind)) / epsilon
    return R.moved(exponent, 1 + exponent.detach().abs()).exp() * a[:, None] * b[None]


def sinkhorn_divergence(
    R: Rounding, x, y, x_weights=None, y_weights=None, *, epsilon, marginal_strength=None, debias=True, p=2, cost=None,
    **_,
) -> Tensor:  # fmt: skip
    a, b = _masses(x, y, x_weights, y_weights, marginal_strength)
    value = R(_cost(R, x, y, a, b, epsilon, marginal_strength, False, (p, cost)))
    if debias:
        value = value - 0.5 * R(_cost(R, x, x, a, a, epsilon, marginal_strength, True, (p, cost)))
        value = value - 0.5 * R(_cost(R, y, y, b, b, epsilon, marginal_strength, True, (p, cost)))
        if marginal_strength is not None:
            value = value + 0.5 * epsilon * (a.sum() - b.sum()) ** 2
    return value


def transport_cost(
    R: Rounding, x, y, x_weights=None, y_weights=None, *, epsilon, form, marginal_strength=None, p=2, cost=None, **_
) -> Tensor:
    a, b = _masses(x, y, x_weights, y_weights, marginal_strength)
    if form == "entropic":
        return R(_cost(R, x, y, a, b, epsilon, marginal_strength, False, (p, cost)))
    f, g = _potentials(R, x, y, a, b, epsilon, marginal_strength, False, (p, cost))
    costs, rho = ground(R, x, y, (p, cost)), marginal_strength
    plan = ((f[:, None] + g[None] - costs) / epsilon).exp() * a[:, None] * b[None]
    # One more step of Newton's, which is 0, has the derivative of the potentials in the points.
    wanted = torch.cat((a, b) if rho is None else (a * (-f / rho).exp(), b * (-g / rho).exp()))
    sums, n = torch.cat((plan.sum(1), plan.sum(0))), len(a)
    curvature = (sums / epsilon + (0 if rho is None else wanted / rho)).detach()
    system = torch.diag(curvature)
    system[:n, n:], system[n:, :n] = plan.detach() / epsilon, plan.detach().T / epsilon
    root = torch.where(curvature > 0, curvature.rsqrt(), 0.0)
    inverse = torch.linalg.pinv(root[:, None] * system * root[None], rtol=1e-14, hermitian=True)
    step = root * (inverse @ (root * (wanted - sums)))
    step = step - step.detach()
    plan = plan * ((step[:n, None] + step[None, n:]) / epsilon).exp()
    return (R(plan) * costs).sum()


def barycentric_map(R: Rounding, x, y, g, y_weights=None, *, epsilon: float, p: int = 2, cost=None) -> Tensor:
    b = torch.full((len(y),), 1 / len(y), dtype=x.dtype) if y_weights is None else y_weights
    exponent = (R(g[None] + 0 * x[:, :1]) - R(ground(R, x, y, (p, cost)))) / epsilon + b.log()[None]
    share = softmax(R, R(exponent), 1)
    if not R.eps:
        return x + (share[..., None] * (y[None] - x[:, None])).sum(1)
    middle = origin(x, y)
    return R(R(share[..., None] * (y - middle)[None]).sum(1) + middle)


def drift_sinkhorn(
    R: Rounding, x, y, x_weights=None, y_weights=None, *, epsilon, marginal_strength=None, p=2, cost=None, **_
) -> Tensor:
    a, b = _masses(x, y, x_weights, y_weights, marginal_strength)
    cross = _potentials(R, x, y, a, b, epsilon, marginal_strength, False, (p, cost))
    own = _potentials(R, x, x, a, a, epsilon, marginal_strength, True, (p, cost))
    moves = []
    for points, w, (f, g) in ((y, b, cross), (x, a, own)):
        plan = plan_of(R, x, points, f, g, torch.ones_like(a), w, epsilon, (p, cost))
        if marginal_strength is None:
            plan = plan / plan.sum(1, keepdim=True)
        if p == 2 and cost is None:
            moves.append((plan[..., None] * R(points[None] - x[:, None])).sum(1))
        else:
            moves.append(_pull(R, x, points, plan, (p, cost)))
    return moves[0] - moves[1]


def _pull(R: Rounding, x, points, plan, kind: Kind) -> Tensor:
    """Minus the gradient in x of sum_j p_ij c(x_i, y_j), the points of the other side fixed."""
    with torch.enable_grad():
        at, other = x.detach().requires_grad_(), points.detach().clone()
        total = (plan.detach() * ground(R, at, other, kind)).sum()
        return -torch.autograd.grad(total, at)[0]
