"""Drifting (Deng et al. 2026): Algorithm 2 as published, without the N x M matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gwf_fast import ops
from gwf_fast.drift._checks import check_sets, require_grad
from gwf_fast.drift.joint import EXCLUDED, Targets, join
from gwf_fast.kernels.cpp import drift as drift_cpp
from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.modes import is_concrete
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.kernels import Laplace
from gwf_fast.pairs.passes import centre_of
from gwf_fast.pairs.ragged import members
from gwf_fast.pairs.validation import as_positive, check_counts


@entry
@widens
def gmd(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float,
    negatives: Tensor | None = None,
    clip: float | None = None,
    exclude_self: bool | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    negatives_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """The drift of Algorithm 2 (Deng et al. 2026): affinities normalised over rows and over columns.

    With L = -[|x - y_pos|, |x - y_neg|] / T on the joint set of targets, A = sqrt(softmax_rows(L) softmax_columns(L)):
    V_i = (sum_neg A_i) (sum_pos A_ij y_j) - (sum_pos A_i) (sum_neg A_ij y_j).

    Nothing of size N x M is stored: a first pass takes the logarithms of the columns' sums, c_j, a second those of
    the rows, r_i, and the averages with weights e^(L_ij - c_j / 2).

    Args:
        x: Particles [*B, N, D].
        y: Positives [*B, P, D].
        temperature: T > 0, in units of distance.
        negatives: [*B, Nn, D]; None means the particles themselves.
        clip: Least value of softmax_rows softmax_columns, as in the released code (1e-6 there); the result is then a
            constant to autograd. None for none.
        exclude_self: Drop the pair of a particle with itself; None means where the negatives are x itself.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to P.
        negatives_lengths: Sizes [*B], int64, of ragged negatives; those of x where the negatives are x.
        backend: None picks; a name asks for one (see ``gwf_fast.backends()``).

    Returns:
        [*B, N, D].

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, T is not positive, or no negative is left.
    """
    same = negatives is None or negatives is x
    if negatives is None:
        negatives = x
    exclude_self = same if exclude_self is None else bool(exclude_self)
    if same and negatives_lengths is None:
        negatives_lengths = x_lengths
    check_sets(x, y, exclude_self)
    check_sets(x, negatives, exclude_self, "negatives")
    temperature = as_positive("temperature", temperature)
    check_counts("x_lengths", x_lengths, x, 1 + exclude_self)
    check_counts("y_lengths", y_lengths, y, 1)
    check_counts("negatives_lengths", negatives_lengths, negatives, 1 + exclude_self)
    if exclude_self and negatives.shape != x.shape:
        raise ValueError(
            f"exclude_self=True needs as many negatives as particles, got x {list(x.shape)} and negatives"
            f" {list(negatives.shape)}"
        )
    if clip is not None:
        clip = as_positive("clip", clip)
        if (backend or "").partition(":")[0] not in ("", "cpp", "triton", "torch"):
            raise ValueError(f'clip is served by backend "cpp", "triton" or "torch", got {backend!r}')
    backend = ops.resolve(backend, x.device, x.dtype)
    n, p, m = (None if lengths is None else lengths.flatten() for lengths in (x_lengths, y_lengths, negatives_lengths))
    if clip is not None or _is_fused(backend, x, y, negatives):
        usual = backend == "cpp" and n is None and p is None and m is None and x.ndim <= 4
        if usual and x.numel() and 1e-30 < temperature < 1e30 and is_concrete(x, y, negatives):
            found = drift_cpp.gmd(x, y, negatives, temperature, clip or 0.0, exclude_self)
            if found is not None:
                return found
        with torch.no_grad():
            count = math.prod(x.shape[:-2])
            particles, positive, negative = (t.reshape(count, *t.shape[-2:]) for t in (x, y, negatives))
            joint = join(particles, n, [Targets(negative, None, m)], Targets(positive, None, p), floored=False)
            kind = x.dtype if 1e-30 < temperature < 1e30 else torch.float64  # until it is in units of the points
            temperatures = particles.new_full((1, count), float(temperature), dtype=kind)
            own = particles.new_full((len(particles),), EXCLUDED) if exclude_self else None
            return joint.forces(temperatures, own, floor=0.0, clip=clip or 0.0, backend=backend)[0].view(x.shape)
    kernel = Laplace(temperature)
    centre = centre_of(y, y_lengths)  # differences of means do not mind where the origin is
    u, positive = _fold(x - centre), _fold(y - centre)
    negative = u if negatives is x else _fold(negatives - centre)
    rows, logs, means = [], [], []
    for points, lengths, excluded in ((positive, p, False), (negative, m, exclude_self)):
        columns = ops.pair_logsumexp(points, u, None, kernel.spec, excluded, lengths, n, backend)  # c_j
        symmetric = points is u and lengths is n
        rows.append(
            columns if symmetric else ops.pair_logsumexp(u, points, None, kernel.spec, excluded, n, lengths, backend)
        )
        log_weights = torch.where(columns == -torch.inf, 0.0, -0.5 * columns)  # a column beyond the lengths
        mean, log = ops.pair_average(u, points, None, log_weights, kernel.spec, excluded, n, lengths, backend)
        means.append(mean)
        logs.append(log)
    most = 0.5 * math.log(y.shape[-2] * negatives.shape[-2])  # P Nn e^-r_i by Cauchy-Schwarz: rounding can't exceed it
    # logsumexp: the second derivative of logaddexp is infinity over infinity where its arguments differ by 88
    strength = (logs[0] + logs[1] - torch.stack(rows).logsumexp(0)).clamp(max=most).exp()  # e^-r_i P Nn
    velocity = strength[..., None] * (means[0] - means[1])
    velocity = members(velocity, n)
    return velocity.view(x.shape)


def _is_fused(backend: str, x: Tensor, y: Tensor, negatives: Tensor) -> bool:
    """Whether the forces are computed as one: without derivatives, on a GPU or for what a core's cache holds."""
    if not is_concrete(x, y, negatives) or require_grad(x, y, negatives):
        return False
    small = drift_cpp.in_cache(x.shape[-2], negatives.shape[-2] + y.shape[-2])
    return backend.startswith("triton") or (small and backend == "cpp")


def _fold(points: Tensor) -> Tensor:  # [*B, N, D] -> [B?, N, D]
    return points if points.ndim <= 3 else points.flatten(0, -3)
