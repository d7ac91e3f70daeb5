"""Flows of sliced discrepancies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gwf_fast.drift._checks import inverse_counts
from gwf_fast.measures.sliced import sliced_energy_distance, sliced_wasserstein2
from gwf_fast.ops.ambient import entry
from gwf_fast.ops.modes import is_eager
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.fast.directions import DEFAULT_SAMPLING, Sampling
from gwf_fast.pairs.ragged import members


@entry(differentiates=True)
def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    n_projections: int | None = None,
    generator: torch.Generator | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    directions: Tensor | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """The flow of SW_2^2 / 2: v = E_theta theta (Q_y(F_x(theta . x)) - theta . x) (Bonneel et al. 2015).

    A shift of the whole set by delta gives v = delta / D on average: steps of size D are stable.

    Args:
        x: Particles [*B, N, D].
        y: Targets [*B, M, D].
        n_projections: Directions to average over.
        generator: Source of the directions; None means torch's global one.
        sampling: "orthogonal", "normal" or "quasi", as in ``sliced_wasserstein2``.
        directions: [P, D] to use instead.
        x_weights: [*B, N], not negative; each set is scaled to sum to 1. None means 1 / N.
        y_weights: [*B, M], likewise.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, D]; 0 where a weight is 0.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    options: dict[str, object] = {
        "n_projections": n_projections,
        "generator": generator,
        "sampling": sampling,
        "directions": directions,
        "x_weights": x_weights,
        "y_weights": y_weights,
        "x_lengths": x_lengths,
        "y_lengths": y_lengths,
        "backend": backend,
    }
    return _velocity(sliced_wasserstein2, x, y, options)


@entry(differentiates=True)
def sliced_energy(x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """The flow of half the energy distance by slices, with options of ``sliced_energy_distance``; [*B, N, D]."""
    return _velocity(sliced_energy_distance, x, y, options)


def _velocity(discrepancy: Callable[..., Tensor], x: Tensor, y: Tensor, options: dict[str, Any]) -> Tensor:
    """-1/2 times the gradient in x over the weight; differentiable again where an argument requires grad."""
    if is_eager():
        gradient = _gradient(discrepancy, x, y, options)
    else:  # traced, or under a transform
        gradient = torch.func.grad(lambda points: discrepancy(points, y, **options).sum())(x)
    weights, lengths = options.get("x_weights"), options["x_lengths"]
    if weights is None:
        return gradient * (-0.5 / inverse_counts(x, lengths))
    weights = members(weights, lengths)
    share = weights / weights.sum(-1, keepdim=True)
    return torch.where(share > 0, -0.5 / share, 0.0)[..., None] * gradient


def _gradient(discrepancy: Callable[..., Tensor], x: Tensor, y: Tensor, options: dict[str, Any]) -> Tensor:
    """The gradient in x, with a graph where one is asked for."""
    tensors = (x, y, options.get("directions"), options.get("x_weights"), options.get("y_weights"))
    keep = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
    if not keep:
        x, y = (t.detach() if isinstance(t, Tensor) else t for t in (x, y))
        options = {name: t.detach() if isinstance(t, Tensor) else t for name, t in options.items()}
    with torch.enable_grad():
        points = x if not isinstance(x, Tensor) or x.requires_grad else x.detach().requires_grad_()
        value = discrepancy(points, y, **options).sum()
        return torch.autograd.grad(value, points, create_graph=keep)[0]
