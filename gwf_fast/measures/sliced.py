"""Sliced discrepancies: averages over directions of what sorting solves in one dimension, in O(P (N + M) D) time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gwf_fast.measures.directional import directional
from gwf_fast.ops.ambient import entry
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.fast.directions import DEFAULT_SAMPLING, Sampling, checked_directions
from gwf_fast.pairs.validation import as_number, check_pair


@entry
def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    p: float = 2.0,
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
    """SW_p = (E_theta W_p^p(theta . x, theta . y))^(1/p), theta uniform on the sphere (Bonneel et al. 2015).

    A distance, as POT's ``sliced_wasserstein_distance``; ``sliced_wasserstein2`` is the square of p = 2, without the
    root, which has no slope where the sets are the same: there the gradient is 0.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        p: Power of the cost |theta . (x - y)|^p, at least 1.
        n_projections: P, the directions to average over, the same for the whole batch.
        generator: Source of the directions; None means torch's global one.
        sampling: "orthogonal", "normal" or "quasi", as in ``sliced_wasserstein2``.
        directions: [P, D] of unit length, instead of drawn ones. Where they require grad, P (N + M) numbers are stored.
        x_weights: [*B, N], not negative; each set is scaled to sum to 1. None means 1 / N.
        y_weights: [*B, M], likewise.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B], in units of |x|; differentiable twice in x, y and directions, where no two projections coincide, and once
        in weights.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    p = as_number("p", p, "a number >= 1", least=1)
    theta = choose_directions(x, y, n_projections, generator, sampling, directions, unit=True)
    options = (x_weights, y_weights, x_lengths, y_lengths, backend)
    return directional("wasserstein", x, y, theta, p, *options, root=True)[0]


@entry
def sliced_wasserstein2(
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
    """SW_2^2 = E_theta W_2^2(theta . x, theta . y), theta uniform on the sphere (Bonneel et al. 2015).

    Sets of different sizes, or with weights, are matched by their quantile functions.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        n_projections: P, the directions to average over, the same for the whole batch.
        generator: Source of the directions; None means torch's global one.
        sampling: "orthogonal" (in blocks of D), "normal" (independent) or "quasi" (quasi-Monte Carlo: equal angles in
            two dimensions, scrambled Sobol points beyond); each direction is uniform in all three.
        directions: [P, D] to use as they are, of any length, instead of drawn ones.
        x_weights: [*B, N], not negative; each set is scaled to sum to 1. None means 1 / N.
        y_weights: [*B, M], likewise.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B], in units of |x|^2; differentiable twice in x, y and directions, where no two projections coincide, and
        once in weights (Kantorovich's potentials; where two partial sums of the weights coincide, one of several).

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    theta = choose_directions(x, y, n_projections, generator, sampling, directions)
    return directional("wasserstein", x, y, theta, 2.0, x_weights, y_weights, x_lengths, y_lengths, backend)[0]


@entry
def sliced_energy_distance(
    x: Tensor,
    y: Tensor,
    *,
    exponent: float = 1.0,
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
    """2 E|x - y|^e - E|x - x'|^e - E|y - y'|^e by slices: c times the mean of the projections' (Hertrich et al. 2024).

    |x|^e = c E_theta |theta . x|^e, c = sqrt(pi) Gamma((D + e)/2) / (Gamma(D/2) Gamma((e + 1)/2)): an unbiased
    estimate, never negative but for rounding. For e = 1 of ``energy_distance``, by one sort a direction,
    O(P (N + M) D); for others by a sort and a sum of 86 exponentials over the sorted points, of error 2e-10.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        exponent: e, 0 < e < 2.
        n_projections: P, the directions to average over, the same for the whole batch.
        generator: Source of the directions; None means torch's global one.
        sampling: "orthogonal", "normal" or "quasi", as in ``sliced_wasserstein2``.
        directions: [P, D] of unit length, instead of drawn ones.
        x_weights: [*B, N], not negative; each set is scaled to sum to 1. None means 1 / N.
        y_weights: [*B, M], likewise.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B], in units of |x|^e; differentiable twice in x, y and directions (for e = 1 the second derivative in points
        is 0 almost everywhere), once in weights. Coincident projections exert no force.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    exponent = as_number("exponent", exponent, "a number between 0 and 2", above=0, below=2)
    theta = choose_directions(x, y, n_projections, generator, sampling, directions, unit=True)
    kind = "energy" if exponent == 1 else "power"
    mean, _ = directional(kind, x, y, theta, exponent, x_weights, y_weights, x_lengths, y_lengths, backend)
    return slicing_constant(x.shape[-1], exponent) * mean


def slicing_constant(dim: int, exponent: float = 1.0) -> float:
    """c of |x|^e = c E |theta . x|^e."""
    logarithm = math.lgamma((dim + exponent) / 2) - math.lgamma(dim / 2) - math.lgamma((exponent + 1) / 2)
    return math.sqrt(math.pi) * math.exp(logarithm)


def choose_directions(
    x: Tensor,
    y: Tensor,
    n_projections: int | None = None,
    generator: torch.Generator | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    directions: Tensor | None = None,
    unit: bool = False,
) -> Tensor:
    """Directions [P, D] for x and y, drawn or given; of unit length where they must be."""
    check_samples(x, y)
    return checked_directions(x, n_projections, generator, sampling, directions, unit)


def check_samples(x: Tensor, y: Tensor) -> None:
    """Samples of the same kind, one at least on either side."""
    check_pair(x, y)
    for name, points in (("x", x), ("y", y)):
        if not points.shape[-2]:
            raise ValueError(f"{name} must have at least one sample, got shape {list(points.shape)}")
