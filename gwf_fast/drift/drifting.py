"""Drifting (Deng et al. 2026): Algorithm 2 as published, without the N x M matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gwf_fast import ops
from gwf_fast.drift import plans
from gwf_fast.drift._checks import require_grad
from gwf_fast.drift.joint import EXCLUDED, Targets, join
from gwf_fast.drift.sides import Samples, Side, check_sides, folded
from gwf_fast.drift.temperatures import Normalization, added_up, as_temperatures, check_normalization
from gwf_fast.kernels.cpp import drift as drift_cpp
from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.modes import is_concrete
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.kernels import Laplace
from gwf_fast.pairs.ragged import members
from gwf_fast.pairs.validation import as_positive


@entry
@widens
def gmd(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Sequence[float],
    negatives: Tensor | None = None,
    y_log_weights: Tensor | None = None,
    negatives_log_weights: Tensor | None = None,
    clip: float | None = None,
    normalization: Normalization | None = None,
    exclude_self: bool | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    negatives_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """The drift of Algorithm 2 (Deng et al. 2026): affinities normalised over rows and over columns.

    With L = -[|x - y_pos|, |x - y_neg|] / T + log w on the joint set of targets, A = sqrt(softmax_rows(L)
    softmax_columns(L)): V_i = (sum_neg A_i) (sum_pos A_ij y_j) - (sum_pos A_i) (sum_neg A_ij y_j).

    Nothing of size N x M is stored: a first pass takes the logarithms of the columns' sums, c_j, a second those of
    the rows, r_i, and the averages with weights e^(L_ij - c_j / 2).

    Guidance without a classifier has negatives from all classes, of weight w, behind the particles themselves:
        ``drift.gmd(x, y, temperature=0.1, negatives=torch.cat([x, others], -2), negatives_log_weights=log_w,
        exclude_self=True)``

    Args:
        x: Particles [*B, N, D].
        y: Positives [*B, P, D].
        temperature: T > 0, in units of distance. Several in a list: their drifts are added up, from distances that
            are computed once where a problem is small.
        negatives: [*B, Nn, D]; None means the particles themselves.
        y_log_weights: log w [*B, P] of the positives, -inf for those that do not count; None means zeros.
        negatives_log_weights: The same of the negatives, [*B, Nn].
        clip: Least value of softmax_rows softmax_columns, as in the released code (1e-6 there), but of targets that do
            not count; the result is then a constant to autograd. None for none.
        normalization: "problem" divides the drift at each temperature by the root of its mean square over the
            particles and coordinates of a problem, so that its length says nothing; one that underflows stays 0. None
            for not.
        exclude_self: Drop the pair of particle i with negative i, of which there may be more than particles; None means
            where the negatives are x itself.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to P.
        negatives_lengths: Sizes [*B], int64, of ragged negatives; those of x where the negatives are x.
        backend: None picks; a name asks for one (see ``gwf_fast.backends()``).

    Returns:
        [*B, N, D].

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, T is not positive, or no positive or negative is
            left.
    """
    if exclude_self is None:
        exclude_self = negatives is None or negatives is x
    positive, negative = check_sides(
        x, y, negatives, bool(exclude_self), y_log_weights, negatives_log_weights, x_lengths, y_lengths,
        negatives_lengths, backend,
    )  # fmt: skip
    temperatures = as_temperatures(temperature)
    check_normalization(normalization)
    if clip is not None:
        clip = as_positive("clip", clip)
        if (backend or "").partition(":")[0] not in ("", "cpp", "triton", "torch"):
            raise ValueError(f'clip is served by backend "cpp", "triton" or "torch", got {backend!r}')
    backend = ops.resolve(backend, x.device, x.dtype)
    tensors = x, positive.points, negative.points, positive.log_weights, negative.log_weights
    concrete = is_concrete(*tensors)
    if clip is not None or (concrete and not require_grad(*tensors) and _is_fused(backend, x, positive, negative)):
        forces = _fused(x, x_lengths, positive, negative, temperatures, clip or 0.0, concrete, backend)
        return added_up(forces, normalization, x_lengths)
    u, n, samples = folded(x, x_lengths, (positive, negative), backend)

    def force(temperature: float) -> Tensor:
        spec = Laplace(temperature).spec
        return members(plans.two_sided([Side(u, n, each, spec, backend) for each in samples], joint=True), n)

    return added_up(map(force, temperatures), normalization, n, backend).view(x.shape)


def _fused(
    x: Tensor,
    x_lengths: Tensor | None,
    positive: Samples,
    negative: Samples,
    temperatures: list[float],
    clip: float,
    concrete: bool,
    backend: BackendName | None,
) -> Sequence[Tensor]:
    """The forces [*B, N, D] at each temperature, computed as one; without a graph."""
    excluded = negative.excluded
    (y, y_logs, y_lengths, _), (negatives, negatives_logs, negatives_lengths, _) = positive, negative
    usual = concrete and backend == "cpp" and x_lengths is y_lengths is negatives_lengths is None and x.ndim <= 4
    representable = 1e-30 < min(temperatures) <= max(temperatures) < 1e30
    if usual and representable and x.numel():
        found = drift_cpp.gmd(x, (y, y_logs), (negatives, negatives_logs), temperatures, clip, excluded)
        if found is not None:
            return found
    with torch.no_grad():
        count = math.prod(x.shape[:-2])
        particles = x.reshape(count, *x.shape[-2:])

        def targets(samples: Samples) -> Targets:
            points, logs, lengths, _ = samples
            logs = None if logs is None else logs.reshape(count, points.shape[-2])
            points = particles if points is x else points.reshape(count, *points.shape[-2:])
            return Targets(points, None, None if lengths is None else lengths.flatten(), logs)

        lengths = None if x_lengths is None else x_lengths.flatten()
        joint = join(particles, lengths, [targets(negative)], targets(positive), floored=False)
        kind = x.dtype if representable else torch.float64  # until they are in units of the points
        at = torch.stack([particles.new_full((count,), t, dtype=kind) for t in temperatures])
        own = particles.new_full((count,), EXCLUDED) if excluded else None
        return joint.forces(at, own, floor=0.0, clip=clip, backend=backend).view(len(temperatures), *x.shape).unbind()


def _is_fused(backend: str, x: Tensor, positive: Samples, negative: Samples) -> bool:
    """Whether forces without derivatives are computed as one: on a GPU, or of what a core's cache holds."""
    small = drift_cpp.in_cache(x.shape[-2], negative.points.shape[-2] + positive.points.shape[-2])
    if backend == "cpp":
        return small
    return backend.startswith("triton") and positive.log_weights is negative.log_weights is None
