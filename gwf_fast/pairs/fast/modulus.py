"""The smooth stand-in for a distance that makes any radial kernel fit for a short Fourier series.

    rho(r) = w * sum_k binom(1/2, k) (r^2 / w^2 - 1)^k,  k = 0 .. K,  for r < w;   rho(r) = r  for r >= w

is the Taylor polynomial of sqrt about r^2 = w^2: a polynomial in r^2, so smooth at 0, that joins r with K
continuous derivatives, and is at least rho(0) > 0. Used twice. k(rho(r)) is a kernel without its singularity,
from which k differs within the radius w alone: the regularisation of Potts & Steidl (2003), which asks for no
derivative of k. And P/2 - rho(P/2 - d) is a triangle wave with rounded tops: kernels of it are periodic and
smooth whatever they do at large distances.
"""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_square(q: Tensor, width: float, degree: int) -> Tensor:
    """rho^2 as a function of q = r^2."""
    u = 1.0 - q / width**2
    binomials = [1.0]
    for k in range(1, degree + 1):
        binomials.append(-binomials[-1] * (1.5 - k) / k)
    s = torch.full_like(u, binomials[-1])
    for binomial in reversed(binomials[:-1]):
        s = s * u + binomial
    return torch.where(u > 0, (width * s) ** 2, q)


def periodic_square(d: Tensor, period: float, width: float, degree: int) -> Tensor:
    """The square of the rounded triangle wave: d^2 for |d| <= P/2 - width; of the period P.

    Args:
        d: Distances in [0, P/2].
        period: P.
        width: Of the rounding, at most P/2; 0 leaves the corner, for kernels that have vanished there.
        degree: Of the rounding.
    """
    if width == 0:
        return d**2
    from_top = period / 2 - d
    return (period / 2 - smooth_square(from_top**2, width, degree).sqrt()) ** 2
