"""The blob method for diffusion (Carrillo, Craig & Patacchini, Calc. Var. 2019): particles that repel by their density.

An entropy E f(P)/P, with f(u) = u^m / (m - 1) or u log u for m = 1, is not defined for particles. Regularised, with
rho = phi * P and phi the normal density of standard deviation ``bandwidth``, it is E f(rho)/rho, whose flow moves
particles by exact gradients of sums over pairs. As N grows and the bandwidth falls, more slowly than the distances
between neighbours, it becomes dP/dt = lap P^m.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gwf_fast.errors import renamed
from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.kernels import Gaussian
from gwf_fast.pairs.methods import Method, method_options
from gwf_fast.pairs.passes import times
from gwf_fast.pairs.reductions import kernel_gradient, kernel_sum
from gwf_fast.pairs.validation import as_number, as_positive, check_companion, check_pair, check_points

Form = Literal["energy", "density"]
FORMS: tuple[Form, ...] = get_args(Form)


@entry
@renamed(masses="weights")
@method_options
def blob_density(
    x: Tensor,
    bandwidth: float,
    *,
    sources: Tensor | None = None,
    weights: Tensor | None = None,
    method: Method = "exact",
    backend: BackendName | None = None,
) -> Tensor:
    """rho(x_i) = sum_j m_j N(x_i; s_j, bandwidth^2 I).

    Args:
        x: Points [*B, N, D].
        bandwidth: Standard deviation of the mollifier, positive.
        sources: The particles [*B, M, D]; None means x.
        weights: m [*B, M], the masses of the particles; None for 1/M each.
        method: Of the sums, as in ``kernel_sum``.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N], differentiable.

    Raises:
        ValueError, TypeError: If an argument does not fit, or as ``kernel_sum``.
    """
    bandwidth = as_positive("bandwidth", bandwidth)
    sources, weights, scale = _particles(x, bandwidth, sources, weights)
    return scale * kernel_sum(x, sources, weights, kernel=Gaussian(bandwidth), method=method, backend=backend)


@entry
@method_options
@widens
def blob_energy(
    x: Tensor, bandwidth: float, *, m: float = 1.0, method: Method = "exact", backend: BackendName | None = None
) -> Tensor:
    """E f(rho)/rho over particles x [*B, N, D] of equal mass: mean rho^(m-1) / (m-1), or mean log rho for m = 1; [*B].

    Raises:
        ValueError, TypeError: As :func:`blob_density`.
    """
    m = as_number("m", m, "a number >= 1", least=1)
    sources, _, scale = _particles(x, bandwidth, None, None)
    total = kernel_sum(x, sources, kernel=Gaussian(bandwidth), method=method, backend=backend)  # rho / scale
    if m == 1:
        return total.log().mean(-1) + math.log(scale)
    return times((total ** (m - 1)).mean(-1), _power(scale, m - 1) / (m - 1))


@entry
@renamed(masses="weights")
@method_options
@widens
def blob_velocity(
    x: Tensor,
    bandwidth: float,
    *,
    m: float = 1.0,
    sources: Tensor | None = None,
    weights: Tensor | None = None,
    form: Form = "energy",
    method: Method = "exact",
    backend: BackendName | None = None,
) -> Tensor:
    """How diffusion dP/dt = lap P^m moves particles, without noise.

    ``form="energy"`` is -grad of the first variation of the regularised entropy, so that its energy decays:
    v_i = -sum_j m_j (g_i + g_j) grad phi(x_i - s_j), with g = rho^(m-2). ``form="density"`` is -f''(rho) grad rho =
    -m rho^(m-2) grad rho (for m = 1 the method of Degond & Mustieles 1990). They agree for m = 2, and in the limit.

    Args:
        x: Points [*B, N, D].
        bandwidth: Standard deviation of the mollifier, positive.
        m: The exponent, >= 1.
        sources: The particles [*B, M, D]; None means x.
        weights: m_j [*B, M], the masses of the particles; None for 1/M each.
        form: "energy" or "density".
        method: Of the sums, as in ``kernel_sum``: with "auto" a step takes about O(N) in D <= 3.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, D], differentiable. Where rho vanishes to rounding, far from all particles, it is not finite for m < 2.

    Raises:
        ValueError, TypeError: If an argument does not fit, or as ``kernel_gradient``.
    """
    m = as_number("m", m, "a number >= 1", least=1)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    bandwidth = as_positive("bandwidth", bandwidth)
    particles, weights, scale = _particles(x, bandwidth, sources, weights)
    sums: dict[str, Any] = {"kernel": Gaussian(bandwidth), "method": method, "backend": backend}
    plain = kernel_gradient(x, particles, weights, **sums)
    if m == 2:  # g = 1: both forms, and no density needed
        return times(plain, -2 * scale)
    # The height of the kernel, of which powers are out of range in many dimensions, is taken out: scale^(m - 1) of all.
    total = kernel_sum(x, particles, weights, **sums)
    own = _times_power(plain, total[..., None], m - 2)
    if form == "density":
        return times(own, -m * _power(scale, m - 1))
    if sources is not None:
        total = kernel_sum(particles, particles, weights, **sums)
    at_particles = total ** (m - 2)
    carried = at_particles if weights is None else weights * at_particles
    weighted = kernel_gradient(x, particles, carried, **sums)
    return times(weighted + own, -_power(scale, m - 1))


# ---------------------------------------------------------------------------------------------- helpers


def _particles(
    x: Tensor, bandwidth: float, sources: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor | None, float]:
    """The particles, their weights, and the factor that makes the kernel a density (and equal weights 1/M)."""
    if sources is None:
        check_points("x", x)
        sources = x
    else:
        check_pair(x, sources, "sources")
    if sources.shape[-2] == 0:
        raise ValueError(f"sources must have at least one particle, got shape {list(sources.shape)}")
    dim = x.shape[-1]
    exponent = -dim * (math.log(bandwidth) + 0.5 * math.log(2 * math.pi))
    if abs(exponent) > math.log(torch.finfo(x.dtype).max):
        raise ValueError(
            f"bandwidth must leave (2 pi bandwidth^2)^(-{dim}/2) in the range of {x.dtype}, got {bandwidth!r}"
        )
    scale = (math.sqrt(2 * math.pi) * bandwidth) ** -dim  # exp(exponent) would round as the exponent does
    if weights is None:
        return sources, None, scale / sources.shape[-2]
    check_companion("weights", weights, sources, channels=False, y_name="sources")
    return sources, weights, scale


def _times_power(values: Tensor, base: Tensor, exponent: float) -> Tensor:
    """values * base^exponent, exponent > -2; the values are of the base's size, and may vanish with it."""
    if exponent > 0:
        return values * base**exponent
    ratio = values / base  # whose derivative, unlike that of base^-1, forms no square of what is large
    return ratio if exponent == -1 else ratio * base ** (exponent + 1)


def _power(scale: float, exponent: float) -> float:
    """scale^exponent, infinite where it overflows."""
    try:
        return scale**exponent
    except OverflowError:
        return math.inf
