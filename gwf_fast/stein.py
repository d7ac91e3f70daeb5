"""Stein variational gradient descent: its direction, streaming."""

from __future__ import annotations

from torch import Tensor

from ._validation import check_companion, check_points
from .pairwise import kernel_gradient, kernel_sum
from .radial import Kernel


def svgd_direction(x: Tensor, score: Tensor, *, kernel: Kernel, backend: str | None = None) -> Tensor:
    """phi(x_i) = mean_j [k(x_j, x_i) score_j + grad_{x_j} k(x_j, x_i)] (Liu & Wang 2016, equation 8).

    Args:
        x: Particles [*B, N, D].
        score: grad log p at the particles, [*B, N, D].
        kernel: The kernel k; ``gwf.Gaussian(gwf.median_bandwidth(x))`` is the paper's.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, D]; ``x + step * phi`` is one iteration. Differentiable in x, score and bandwidth.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, or there is no particle.
    """
    check_points("x", x)
    check_companion("score", score, x, channels=True, y_name="x")
    if score.shape != x.shape:
        raise ValueError(f"score must have the shape of x, {list(x.shape)}, got {list(score.shape)}")
    if x.shape[-2] == 0:
        raise ValueError(f"x must have at least one particle, got shape {list(x.shape)}")
    driving = kernel_sum(x, x, score, kernel=kernel, backend=backend)
    repulsion = kernel_gradient(x, x, kernel=kernel, backend=backend)  # k is symmetric: grad in x_j is minus this
    return (driving - repulsion) / x.shape[-2]
