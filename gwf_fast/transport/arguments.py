"""From the arguments of a user to a transport problem."""

from __future__ import annotations

import math

from torch import Tensor

from gwf_fast.ops.modes import is_readable
from gwf_fast.pairs.passes import centre_of
from gwf_fast.pairs.ragged import exists, member_weights, members
from gwf_fast.pairs.validation import check_counts, check_pair
from gwf_fast.transport.problem import Entropic


def make_problem(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    strength: float | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    backend: str | None = None,
) -> Entropic:
    """A validated problem; its points are centred, so that float32 does not mind where the clouds are."""
    check_pair(x, y)
    for name, points in (("x", x), ("y", y)):
        if points.shape[-2] == 0:
            raise ValueError(f"{name} must have at least one point to transport, got shape {list(points.shape)}")
    if strength is not None and not (math.isfinite(strength) and strength > 0):
        raise ValueError(f"marginal_strength must be a positive number or None, got {strength!r}")
    sides = ("x", x, x_weights, x_lengths), ("y", y, y_weights, y_lengths)
    same = x is y and x_weights is y_weights and x_lengths is y_lengths
    a = masses(*sides[0])
    b = a if same else masses(*sides[1])
    given = x_weights is not None or y_weights is not None
    if strength is None and not same and given and is_readable(a):
        total_a, total_b = a.detach().sum(-1), b.detach().sum(-1)
        if bool(((total_a - total_b).abs() > 1e-3 * total_a).any()):
            raise ValueError(
                "x_weights and y_weights must have the same sum where marginals hold exactly, got "
                f"{total_a.flatten()[0].item():g} and {total_b.flatten()[0].item():g}; or set marginal_strength"
            )
    origin = centre_of(y, y_lengths)
    u = members(x - origin, x_lengths)  # points beyond the lengths have no weight, and lie at the centre
    return Entropic(u, u if same else members(y - origin, y_lengths), a, b, 2, strength, backend)


def masses(name: str, points: Tensor, weights: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Weights [*B, N] as given, or equal ones of sum 1; 0 beyond the lengths."""
    check_counts(f"{name}_lengths", lengths, points, 1)
    if weights is None:
        if lengths is None:
            return points.new_full(points.shape[:-1], 1 / points.shape[-2])
        return exists(points, lengths) / lengths[..., None].to(points.dtype)
    return member_weights(f"{name}_weights", weights, points, name, lengths)


def check_numbers(epsilon: float, max_iterations: int, tolerance: float, scaling: float | None) -> None:
    """The numbers that all solvers take."""
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
