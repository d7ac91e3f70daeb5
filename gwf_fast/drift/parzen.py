"""Flows of f-divergences between Parzen (Gaussian kernel) estimates of both densities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gwf_fast.drift._checks import check_sets, inverse_counts
from gwf_fast.nn.divergences import SMOOTH, ParametricName, SmoothName, split_name
from gwf_fast.nn.divergences import divergence as row_of
from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.kernels import Gaussian
from gwf_fast.pairs.passes import centre_of, over
from gwf_fast.pairs.ragged import members
from gwf_fast.pairs.reductions import kernel_average, kernel_logsumexp
from gwf_fast.pairs.validation import as_positive, check_counts


@entry
@widens
def parzen_kl(
    x: Tensor,
    y: Tensor,
    bandwidth: float,
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """grad log p_h - grad log q_h, the flow of KL(q|p) between Parzen estimates: (m_p - m_q) / h^2, m mean shifts.

    Where h is small beside the distances between particles, the particle's own kernel is all of q_h and the
    repulsion dies; ``exclude_self=True`` leaves it out.

    Args:
        x: Particles [*B, N, D], samples of q.
        y: Targets [*B, M, D], samples of p.
        bandwidth: h > 0.
        exclude_self: Estimate q_h at x_i from the other particles.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``gwf_fast.backends()``).

    Returns:
        [*B, N, D].

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is too small, or h is not positive.
    """
    check_sets(x, y, exclude_self, backend=backend)
    check_counts("x_lengths", x_lengths, x, 1 + exclude_self)
    check_counts("y_lengths", y_lengths, y, 1)
    h = as_positive("bandwidth", bandwidth)
    kernel = Gaussian(h)
    # Both means are near x; what is left of their difference does not mind where the origin is.
    centre = centre_of(y, y_lengths, backend)
    u, v = x - centre, y - centre
    towards = kernel_average(u, v, kernel=kernel, x_lengths=x_lengths, y_lengths=y_lengths, backend=backend)
    away = kernel_average(
        u, u, kernel=kernel, exclude_self=exclude_self, x_lengths=x_lengths, y_lengths=x_lengths, backend=backend
    )
    return over(towards - away, h**2)


@entry
@widens
def f_divergence(
    x: Tensor,
    y: Tensor,
    bandwidth: float,
    *,
    divergence: SmoothName | tuple[ParametricName, float],
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """-grad f'(q_h / p_h) = r f''(r) (grad log p_h - grad log q_h), r = q_h / p_h, of Parzen estimates.

    The flow of D_f(q|p) = E_p f(q/p) with the densities replaced by their estimates; it is the gradient of the first
    variation, without the second convolution that the exact flow of D_f(k*q|k*p) has.

    Args:
        x: Particles [*B, N, D], samples of q.
        y: Targets [*B, M, D], samples of p.
        bandwidth: h > 0.
        divergence: A smooth row of ``gwf_fast.nn.divergences``, with the model q first: "kl" (of q from p),
            "reverse_kl", "pearson" (chi-squared), "neyman", "js", "jeffreys" (the sum of both KL), "log_d" (Gao et al.
            2019), "squared_hellinger", ("alpha", a) or ("generalized_entropy", m).
        exclude_self: Estimate q_h at x_i from the other particles.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``gwf_fast.backends()``).

    Returns:
        [*B, N, D]; infinite where a factor such as 1/r overflows, far from all targets.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, or for an unknown divergence.
    """
    name, parameter = split_name(divergence, "divergence")
    if name not in SMOOTH:
        raise ValueError(f"divergence must be one of {', '.join(SMOOTH)}, got {divergence!r}")
    slope_of = row_of(name, parameter).slope
    assert slope_of is not None
    options: dict[str, Any] = {"x_lengths": x_lengths, "backend": backend}
    check_sets(x, y, exclude_self, backend=backend)
    h = as_positive("bandwidth", bandwidth)
    if x.is_cpu and x.dtype == y.dtype == torch.float32 and not 1e-15 < h < 1e15:  # infinity less infinity
        wide = f_divergence(
            x.double(), y.double(), h, divergence=divergence, exclude_self=exclude_self, y_lengths=y_lengths, **options
        )
        return wide.to(x.dtype)
    velocity = parzen_kl(x, y, bandwidth, exclude_self=exclude_self, y_lengths=y_lengths, **options)
    if name == "kl":
        return velocity
    kernel = Gaussian(h)
    log_q = kernel_logsumexp(x, x, kernel=kernel, exclude_self=exclude_self, y_lengths=x_lengths, **options)
    log_p = kernel_logsumexp(x, y, kernel=kernel, y_lengths=y_lengths, **options)
    # The estimates' other constants are the same.
    share = inverse_counts(x, x_lengths, int(exclude_self), backend) / inverse_counts(y, y_lengths, 0, backend)
    log_share = math.log(share) if isinstance(share, float) else share[..., 0].log()
    # In double: a factor may leave the range of float32, and its product with a small difference not. A row that
    # overflows there too is a constant: a loss that leaves it out has a gradient, and not 0 times infinity.
    log_ratio = (log_q - log_p + log_share).double()
    factor = slope_of(log_ratio.detach())
    infinite = factor.isinf()
    slope = members(slope_of(torch.where(infinite, 0.0, log_ratio))[..., None], x_lengths)
    overflown = members(factor[..., None], x_lengths) * velocity.detach()
    return torch.where(infinite[..., None], overflown, slope * velocity).to(x.dtype)
