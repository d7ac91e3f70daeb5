"""``SVGD`` with the methods and arguments of the Python code published with Liu & Wang (2016).

Two things differ. The original's ``update`` takes a bandwidth and ignores it: its median rule has h in every iteration;
here a bandwidth that is given is used. And where more than half of the pairs coincide, a single particle included, the
median is 0 and the original divides 0 by 0, so that all particles are NaN; here the kernel is then its limit, 1 between
particles that coincide and 0 between others, without repulsion: each particle climbs log p by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from gwf_fast.measures.stein import small_svgd_direction, svgd_direction
from gwf_fast.pairs.kernels import Gaussian
from gwf_fast.pairs.reductions import kernel_gradient

__all__ = ["SVGD", "median_rule", "order_statistics"]

_FUDGE = 1e-6


class SVGD:
    """Stein variational gradient descent on NumPy arrays."""

    def svgd_kernel(self, theta: ArrayLike, h: float = -1) -> tuple[NDArray, NDArray]:
        """The kernel matrix and its repulsion, as the original has them; ``update`` stores no matrix.

        Args:
            theta: Particles [N, D].
            h: Bandwidth of exp(-r^2 / (2 h^2)); negative for the median rule.

        Returns:
            k(x_i, x_j) [N, N], and sum_j (x_i - x_j) k(x_i, x_j) / h^2 [N, D], float64.

        Raises:
            ValueError: If the shape is wrong.
        """
        x = torch.from_numpy(_particles("theta", theta))
        h = float(h) if h >= 0 else median_rule(x) if len(x) else 0.0
        if h == 0:
            group = _groups(x)
            return (group[:, None] == group).double().numpy(), np.zeros(x.shape)
        kernel = Gaussian(h)
        repulsion = kernel_gradient(x, x, kernel=kernel)
        return kernel(x, x).numpy(), repulsion.neg().numpy()

    def update(
        self,
        x0: ArrayLike,
        lnprob: Callable[[NDArray], NDArray],
        n_iter: int = 1000,
        stepsize: float = 1e-3,
        bandwidth: float = -1,
        alpha: float = 0.9,
        debug: bool = False,
    ) -> NDArray:
        """Move particles by AdaGrad with momentum along the direction of SVGD.

        Args:
            x0: Particles [N, D].
            lnprob: Maps particles [N, D] to grad log p at them, [N, D].
            n_iter: Iterations.
            stepsize: Step.
            bandwidth: h of exp(-r^2 / (2 h^2)); negative for the median rule, anew in every iteration, which is what
                the original does whatever it is given.
            alpha: Memory of the squared gradients.
            debug: Print every thousandth iteration.

        Returns:
            Particles [N, D], float64.

        Raises:
            ValueError: If x0 or lnprob is None, or a shape is wrong.
        """
        if x0 is None or lnprob is None:
            raise ValueError("x0 and lnprob must not be None")
        theta = _particles("x0", x0)
        history = np.zeros_like(theta)
        for iteration in range(n_iter):
            if debug and (iteration + 1) % 1000 == 0:
                print(f"iter {iteration + 1}")
            x, score = torch.from_numpy(theta), torch.from_numpy(np.asarray(lnprob(theta), dtype=np.float64))
            gradient = _direction(x, score, bandwidth).numpy()
            square = gradient**2
            history = square if iteration == 0 else alpha * history + (1 - alpha) * square
            theta = theta + stepsize * gradient / (_FUDGE + np.sqrt(history))
        return theta


def _direction(x: Tensor, score: Tensor, bandwidth: float) -> Tensor:
    if score.shape == x.shape and len(x) > 1:
        found = small_svgd_direction(x, score, None if bandwidth < 0 else float(bandwidth))
        if found is not None:
            return found
    if not len(x):
        return torch.zeros_like(x)
    h = median_rule(x) if bandwidth < 0 else float(bandwidth)
    if math.isnan(h):  # a particle has gone astray, and the median with it
        return torch.full_like(x, math.nan)
    return _alone(x, score) if h == 0 and score.shape == x.shape else svgd_direction(x, score, kernel=Gaussian(h))


def _alone(x: Tensor, score: Tensor) -> Tensor:
    """The direction as h falls to 0: a mean of scores over all particles, of which only those at x_i are felt."""
    group = _groups(x)
    sums = score.new_zeros(x.shape).index_add_(0, group, score)
    return sums[group] / len(x)


def _groups(x: Tensor) -> Tensor:
    """A number [N] for each place, the same for particles that coincide."""
    return torch.unique(x, dim=0, return_inverse=True)[1]


def _particles(name: str, value: ArrayLike) -> NDArray:
    theta = np.array(value, dtype=np.float64)
    if theta.ndim != 2:
        raise ValueError(f"{name} must have shape [N, D], got {list(theta.shape)}")
    return theta


def median_rule(x: Tensor) -> float:
    """sqrt(median of all N^2 squared distances / (2 log(N + 1))), the zeros of the diagonal included."""
    n = len(x)
    distances = torch.pdist(x).numpy()  # in the order of all squares, N zeros come first and each of these twice
    ranks = [(k - n) // 2 for k in ((n * n - 1) // 2, n * n // 2)]
    wanted = sorted({rank for rank in ranks if rank >= 0})
    found = dict(zip(wanted, order_statistics(distances, wanted)))
    median = sum(found.get(rank, 0.0) ** 2 for rank in ranks) / 2
    return math.sqrt(0.5 * median / math.log(n + 1))


def order_statistics(values: NDArray, ranks: list[int]) -> list[float]:
    """The values of these neighbouring ranks, from 0, in increasing order.

    Of many values only those between two quantiles of a sample are looked at, where the ranks turn out to be among
    them.
    """
    if not ranks:
        return []
    stride = len(values) // 10_000
    if stride > 10:
        sample = np.sort(values[::stride])
        first, last = ranks[0] // stride - 300, ranks[-1] // stride + 300
        low, high = sample[max(first, 0)], sample[min(last, len(sample) - 1)]
        skipped = int(np.count_nonzero(values < low))
        between = values[(values >= low) & (values <= high)]
        if skipped <= ranks[0] and ranks[-1] < skipped + len(between):
            values, ranks = between, [rank - skipped for rank in ranks]
    return [float(value) for value in np.partition(values, ranks)[ranks]]
