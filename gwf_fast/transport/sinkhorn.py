"""Entropic optimal transport and the Sinkhorn divergence, streaming; the cost is r^2 / 2."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .._validation import check_companion, check_pair
from .cost import half_self_cost, transport_cost
from .problem import Entropic
from .solve import Solution, alternate, anneal, average, bounding_diameter, schedule


@dataclass(frozen=True)
class SinkhornResult:
    """Dual potentials of entropic transport.

    Attributes:
        f: Potential at x, [*B, N].
        g: Potential at y, [*B, M].
        n_iterations: Sweeps over both sides.
        error: What is left of the marginal error [*B]: sum_j |sum_i pi_ij - b_j| over the total weight.
    """

    f: Tensor
    g: Tensor
    n_iterations: int
    error: Tensor


def sinkhorn(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    marginal_strength: float | None = None,
    scaling: float | None = None,
    start: Tensor | None = None,
) -> SinkhornResult:
    """Potentials of min_pi <pi, r^2/2> + eps KL(pi | a x b) with marginals a, b (Cuturi 2013), in the log domain.

    The plan is pi_ij = a_i b_j exp((f_i + g_j - r_ij^2/2) / eps); no N x M matrix is stored. Sweeps are over-relaxed
    once the rate of convergence is known.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        epsilon: Regularisation eps > 0, in units of r^2.
        x_weights: a [*B, N], not negative; None means 1 / N.
        y_weights: b [*B, M]; None means 1 / M.
        max_iterations: The most sweeps.
        tolerance: Marginal error at which to stop.
        marginal_strength: rho > 0 relaxes the marginals: rho KL(pi 1 | a) + rho KL(pi' 1 | b) instead of equality
            (Chizat et al. 2018).
        scaling: Factor below 1 by which a length falls from the diameter of the data to sqrt(eps) before the sweeps at
            eps itself: worth it where eps is small beside the diameter. None for none.
        start: g [*B, M] of an earlier, similar problem.

    Returns:
        Potentials without a graph; the plan's rows hold exactly, ``error`` is that of its columns.

    Raises:
        ValueError, TypeError: If an argument is out of range or does not fit the others.

    Warns:
        RuntimeWarning: If ``tolerance`` was not reached.
    """
    problem = _problem(x, y, x_weights, y_weights, marginal_strength)
    _check_numbers(epsilon, max_iterations, tolerance, scaling)
    if start is not None:
        check_companion("start", start, y, channels=False)
    with torch.no_grad():
        solution = _solve(problem.detached(), epsilon, max_iterations, tolerance, scaling, start)
    _warn(solution, tolerance)
    return SinkhornResult(*solution)


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    marginal_strength: float | None = None,
    scaling: float | None = None,
    debias: bool = True,
) -> Tensor:
    """OT_eps(a, b) - OT_eps(a, a) / 2 - OT_eps(b, b) / 2 (Genevay et al. 2018; Feydy et al. 2019).

    With ``marginal_strength`` also eps/2 (sum a - sum b)^2, which makes it positive (Sejourne et al. 2019). Second
    derivatives differentiate the optimality conditions implicitly; they are as exact as the potentials are converged.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        epsilon: Regularisation eps > 0, in units of r^2.
        x_weights: a [*B, N]; None means 1 / N.
        y_weights: b [*B, M]; None means 1 / M.
        max_iterations: The most sweeps in each of the three problems.
        tolerance: Marginal error at which to stop.
        marginal_strength: As in ``sinkhorn``.
        scaling: As in ``sinkhorn``.
        debias: False gives OT_eps(a, b) alone.

    Returns:
        [*B], differentiable twice in points and weights.

    Raises:
        ValueError, TypeError: If an argument is out of range or does not fit the others.

    Warns:
        RuntimeWarning: If ``tolerance`` was not reached.
    """
    problem = _problem(x, y, x_weights, y_weights, marginal_strength)
    _check_numbers(epsilon, max_iterations, tolerance, scaling)
    with torch.no_grad():
        fixed = problem.detached()
        solution = _solve(fixed, epsilon, max_iterations, tolerance, scaling, None)
    _warn(solution, tolerance)
    value = transport_cost(problem, epsilon, solution.f, solution.g)
    if not debias:
        return value
    for points, weights in ((problem.x, problem.a), (problem.y, problem.b)):
        own = Entropic(points, points, weights, weights, 2, marginal_strength)
        with torch.no_grad():
            solution = _solve_itself(own.detached(), epsilon, max_iterations, tolerance)
        _warn(solution, tolerance)
        value = value - half_self_cost(own, epsilon, solution.f)
    if marginal_strength is not None:
        value = value + 0.5 * epsilon * (problem.a.sum(-1) - problem.b.sum(-1)).square()
    return value


def barycentric_map(x: Tensor, y: Tensor, g: Tensor, *, epsilon: float, y_weights: Tensor | None = None) -> Tensor:
    """T(x_i) = sum_j pi_ij y_j / sum_j pi_ij [*B, N, D]: where the entropic plan sends each point on average.

    Args:
        x: Where to evaluate, [*B, N, D]: the samples that were transported, or any other points (Seguy et al. 2018).
        y: Samples [*B, M, D].
        g: Potential at y [*B, M], of ``sinkhorn``.
        epsilon: The regularisation that g belongs to.
        y_weights: b [*B, M]; None means 1 / M.

    Returns:
        [*B, N, D], differentiable in x, y and g.
    """
    check_companion("g", g, y, channels=False)
    problem = _problem(x, y, None, y_weights, None)
    _check_numbers(epsilon, 1, 0.0, None)
    centre = _centre(y)
    return problem.row_average(None, g, epsilon) + centre


def drift(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    scaling: float | None = None,
) -> Tensor:
    """Velocity T_ab(x_i) - T_aa(x_i) [*B, N, D] of the flow of the Sinkhorn divergence; ``gwf.drift.sinkhorn``.

    T_ab and T_aa are the barycentric maps of the plans from x to y and from x to itself; minus the gradient of the
    divergence in x_i, over the weight a_i. For eps -> 0 the displacement of optimal transport, for eps -> infinity the
    difference of the means.

    Args:
        x: Particles [*B, N, D].
        y: Samples [*B, M, D].
        epsilon: Regularisation eps > 0, for the cost r^2/2.
        x_weights: a [*B, N]; None means 1 / N.
        y_weights: b [*B, M]; None means 1 / M.
        max_iterations: As in ``sinkhorn``.
        tolerance: As in ``sinkhorn``.
        scaling: As in ``sinkhorn``.

    Raises:
        ValueError, TypeError: If an argument is out of range or does not fit the others.

    Warns:
        RuntimeWarning: If ``tolerance`` was not reached.
    """
    problem = _problem(x, y, x_weights, y_weights, None)
    _check_numbers(epsilon, max_iterations, tolerance, scaling)
    own = Entropic(problem.x, problem.x, problem.a, problem.a)
    with torch.no_grad():
        cross = _solve(problem.detached(), epsilon, max_iterations, tolerance, scaling, None)
        itself = _solve_itself(own.detached(), epsilon, max_iterations, tolerance)
    _warn(cross, tolerance)
    _warn(itself, tolerance)
    return problem.row_average(None, cross.g, epsilon) - own.row_average(None, itself.f, epsilon)


def _solve(
    problem: Entropic, epsilon: float, max_iterations: int, tolerance: float, scaling: float | None, g: Tensor | None
) -> Solution:
    if scaling is not None and g is None:
        diameter = bounding_diameter(problem.x, problem.y)
        blur = math.sqrt(epsilon)
        if diameter > blur:
            _, g = anneal(problem, schedule(diameter, blur, scaling, problem.p))
    return alternate(problem, epsilon, g, max_iterations=max_iterations, tolerance=tolerance)


def _solve_itself(problem: Entropic, epsilon: float, max_iterations: int, tolerance: float) -> Solution:
    return average(problem, epsilon, None, max_iterations=max_iterations, tolerance=tolerance)


def _centre(y: Tensor) -> Tensor:
    return y.detach().mean(-2, keepdim=True)


def _problem(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, strength: float | None
) -> Entropic:
    """A validated problem; its points are centred, so that float32 does not mind where the clouds are."""
    check_pair(x, y)
    for name, points in (("x", x), ("y", y)):
        if points.shape[-2] == 0:
            raise ValueError(f"{name} must have at least one point to transport, got shape {list(points.shape)}")
    if strength is not None and not (math.isfinite(strength) and strength > 0):
        raise ValueError(f"marginal_strength must be a positive number or None, got {strength!r}")
    weights = []
    for name, points, given in (("x", x, x_weights), ("y", y, y_weights)):
        if given is None:
            weights.append(points.new_full(points.shape[:-1], 1 / points.shape[-2]))
            continue
        check_companion(f"{name}_weights", given, points, channels=False, y_name=name)
        if not bool((given >= 0).all()) or not bool((given.sum(-1) > 0).all()):
            raise ValueError(f"{name}_weights must not be negative and must have a positive sum, got {_range(given)}")
        weights.append(given)
    a, b = weights
    if strength is None:
        total_a, total_b = a.detach().sum(-1), b.detach().sum(-1)
        if bool(((total_a - total_b).abs() > 1e-3 * total_a).any()):
            raise ValueError(
                "x_weights and y_weights must have the same sum where marginals hold exactly, got "
                f"{total_a.flatten()[0].item():g} and {total_b.flatten()[0].item():g}; or set marginal_strength"
            )
    centre = _centre(y)
    u = x - centre
    return Entropic(u, u if x is y else y - centre, a, b, 2, strength)


def _range(weights: Tensor) -> str:
    return f"values in {weights.min().item():g}..{weights.max().item():g}"


def _check_numbers(epsilon: float, max_iterations: int, tolerance: float, scaling: float | None) -> None:
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)):
        raise TypeError(f"epsilon must be a number, got {type(epsilon).__name__}")
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon must be positive and finite, got {epsilon!r}")
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1:
        raise ValueError(f"max_iterations must be a positive integer, got {max_iterations!r}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance!r}")
    if scaling is not None and not 0 < scaling < 1:
        raise ValueError(f"scaling must lie between 0 and 1, got {scaling!r}")


def _warn(solution: Solution, tolerance: float) -> None:
    error = float(solution.error.max()) if solution.error.numel() else 0.0
    if not error <= tolerance:
        warnings.warn(
            f"Sinkhorn stopped after {solution.n_iterations} iterations with a marginal error of {error:.1e}, "
            f"tolerance {tolerance:.1e}: raise max_iterations or epsilon, or set scaling",
            RuntimeWarning,
            stacklevel=3,
        )
