"""Flows of sliced discrepancies."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sliced import sliced_energy_distance, sliced_wasserstein2


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    n_projections: int | None = None,
    generator: torch.Generator | None = None,
    sampling: str = "normal",
    directions: Tensor | None = None,
) -> Tensor:
    """The flow of SW_2^2 / 2: v = E_theta theta (Q_y(F_x(theta . x)) - theta . x) (Bonneel et al. 2015).

    A shift of the whole set by delta gives v = delta / D on average: steps of size D are stable.

    Args:
        x: Particles [*B, N, D].
        y: Targets [*B, M, D].
        n_projections: Directions to average over.
        generator: Source of the directions; None means torch's global one.
        sampling: "normal", "orthogonal" or "quasi", as in ``sliced_wasserstein2``.
        directions: [P, D] to use instead.

    Returns:
        [*B, N, D].

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    options: dict[str, object] = {
        "n_projections": n_projections,
        "generator": generator,
        "sampling": sampling,
        "directions": directions,
    }
    return _velocity(sliced_wasserstein2, x, y, options)


def sliced_energy(x: Tensor, y: Tensor, n_projections: int) -> Tensor:
    """The flow of half the energy distance, by slices (Hertrich et al. 2024); [*B, N, D]."""
    return _velocity(sliced_energy_distance, x, y, {"n_projections": n_projections})


def _velocity(discrepancy, x: Tensor, y: Tensor, options: dict[str, object]) -> Tensor:  # type: ignore[no-untyped-def]
    """-N/2 times the gradient in x; differentiable again where x or y requires grad."""
    keep = torch.is_grad_enabled() and isinstance(x, Tensor) and (x.requires_grad or y.requires_grad)
    with torch.enable_grad():
        points = x if isinstance(x, Tensor) and x.requires_grad else x.detach().requires_grad_()
        value = discrepancy(points, y if keep else y.detach(), **options).sum()
        (gradient,) = torch.autograd.grad(value, points, create_graph=keep)
    return gradient * (-0.5 * x.shape[-2])
