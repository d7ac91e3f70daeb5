"""``mix_rbf_mmd2`` and ``mix_rbf_mmd2_and_ratio`` with the arguments of MMD-GAN's (Li et al. 2017) published code."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

from torch import Tensor

from gwf_fast.measures.discrepancy import mmd2
from gwf_fast.pairs.kernels import Gaussian, Kernel
from gwf_fast.pairs.reductions import kernel_sum
from gwf_fast.pairs.validation import check_pair

__all__ = ["mix_rbf_mmd2", "mix_rbf_mmd2_and_ratio"]

_LEAST_VARIANCE = 1e-8


def mix_rbf_mmd2(X: Tensor, Y: Tensor, sigma_list: Sequence[float], biased: bool = True) -> Tensor:
    """Squared MMD under sum_s exp(-r^2 / (2 s^2)), in one pass over the pairs for all bandwidths.

    Args:
        X: [N, D].
        Y: [M, D]; the original asks for M = N.
        sigma_list: Bandwidths s, such as [1, 2, 4, 8, 16].
        biased: Whether the diagonals count.

    Returns:
        A scalar, differentiable twice.

    Raises:
        ValueError: If there is no bandwidth.
    """
    return mmd2(X, Y, kernel=_mixture(_bandwidths(sigma_list)), unbiased=not biased)


def mix_rbf_mmd2_and_ratio(
    X: Tensor, Y: Tensor, sigma_list: Sequence[float], biased: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The squared MMD over its standard deviation: what the power of the test grows with (Sutherland et al. 2017).

    Sums of squares of the kernel are sums of another mixture, of products of Gaussians: nothing is stored N x N.

    Args:
        X: [N, D].
        Y: [N, D].
        sigma_list: Bandwidths s, as in ``mix_rbf_mmd2``.
        biased: Whether the diagonals count in the squared MMD; in the variance they never do.

    Returns:
        mmd2 / sqrt(max(variance, 1e-8)), mmd2, and the variance, by the unbiased estimate that the original code has,
        which may be negative. Scalars, differentiable twice.

    Raises:
        ValueError: If there is no bandwidth, the sets are not of one size, or have fewer than two points.
    """
    bandwidths = _bandwidths(sigma_list)
    check_pair(X, Y)
    if X.ndim != 2 or X.shape != Y.shape or len(X) < 2:
        raise ValueError(
            f"X and Y must have one shape [N, D] with N >= 2 for a variance, got {list(X.shape)} and {list(Y.shape)}"
        )
    value = mmd2(X, Y, kernel=_mixture(bandwidths), unbiased=not biased)
    variance = _variance(X, Y, _mixture(bandwidths), _squared(bandwidths)).to(X.dtype)
    return value / variance.clamp(min=_LEAST_VARIANCE).sqrt(), value, variance


def _variance(x: Tensor, y: Tensor, kernel: Kernel, squared: Kernel) -> Tensor:
    """The estimate of the variance of the U-statistic, from row sums; those of a set with itself without diagonals."""
    n = len(x)
    x, y = x.double(), y.double()  # terms of 1 / N cancel down to what is left, of 1 / N^2 where the sets are alike
    xx = kernel_sum(x, x, kernel=kernel, exclude_self=True)
    yy = kernel_sum(y, y, kernel=kernel, exclude_self=True)
    xy, yx = kernel_sum(x, y, kernel=kernel), kernel_sum(y, x, kernel=kernel)
    squares = sum(kernel_sum(points, points, kernel=squared, exclude_self=True).sum() for points in (x, y))
    cross = kernel_sum(x, y, kernel=squared).sum()
    total, across = xx.sum() + yy.sum(), xy.sum()
    return (
        2 / (n**2 * (n - 1) ** 2) * (2 * (xx @ xx + yy @ yy) - squares)
        - (4 * n - 6) / (n**3 * (n - 1) ** 3) * (xx.sum() ** 2 + yy.sum() ** 2)
        + 4 * (n - 2) / (n**3 * (n - 1) ** 2) * (xy @ xy + yx @ yx)
        - 4 * (n - 3) / (n**3 * (n - 1) ** 2) * cross
        - (8 * n - 12) / (n**5 * (n - 1)) * across**2
        + 8 / (n**3 * (n - 1)) * (total * across / n - xx @ xy - yy @ yx)
    )


def _bandwidths(sigma_list: Sequence[float]) -> tuple[float, ...]:
    if len(sigma_list) == 0:  # arrays have no truth value
        raise ValueError("sigma_list must have at least one bandwidth, got none")
    return tuple(float(s) for s in sigma_list)


@functools.lru_cache(maxsize=64)
def _mixture(bandwidths: tuple[float, ...]) -> Kernel:
    return functools.reduce(operator.add, [Gaussian(h) for h in bandwidths])


@functools.lru_cache(maxsize=64)
def _squared(bandwidths: tuple[float, ...]) -> Kernel:
    """The square of the mixture: exp(-r^2 / (2 s^2)) exp(-r^2 / (2 t^2)) has the bandwidth s t / sqrt(s^2 + t^2)."""
    terms = [
        (2.0 if i < j else 1.0) * Gaussian(s * t / (s * s + t * t) ** 0.5)
        for j, t in enumerate(bandwidths)
        for i, s in enumerate(bandwidths[: j + 1])
    ]
    return functools.reduce(operator.add, terms)
