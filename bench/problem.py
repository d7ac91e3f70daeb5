"""The inputs of a pairwise benchmark, its formulas, and the truth in float64.

Nothing here is shared with the library: a formula is written out again for the truth and for each peer,
so that an error in the library's table can't hide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

CHECKED_ROWS = 2048


@dataclass(frozen=True)
class Formula:
    """One radial kernel, written for the truth (of r^2 and g) and for KeOps; g follows from the bandwidth."""

    value: Callable[[torch.Tensor, float], torch.Tensor]
    keops: str
    rate: Callable[[float], float]


FORMULAS = {
    "Gaussian": Formula(lambda r2, g: torch.exp(-g * r2), "Exp(-g*SqDist(x,y))", lambda h: 0.5 / h**2),
    "Laplace": Formula(lambda r2, g: torch.exp(-g * r2.sqrt()), "Exp(-g*Sqrt(SqDist(x,y)))", lambda h: 1 / h),
    "IMQ": Formula(lambda r2, g: (1 + g * r2) ** -0.5, "Rsqrt(IntCst(1)+g*SqDist(x,y))", lambda h: 1 / h**2),
    "Riesz": Formula(lambda r2, g: -g * r2.sqrt(), "-g*Sqrt(SqDist(x,y))", lambda h: 1.0),
}


@dataclass(frozen=True)
class Problem:
    """Two standard normal clouds, positive weights, and a bandwidth in proportion to their diameter.

    h = 0.5 sqrt(D): a typical pair has |x - y|^2 = 2 D, so k = exp(-4) for the Gaussian in every dimension,
    neither all ones nor all zeros.
    """

    x: torch.Tensor  # [N, D]
    y: torch.Tensor  # [M, D]
    weights: torch.Tensor  # [M], uniform on [0, 1]
    kernel: str
    bandwidth: float

    @property
    def formula(self) -> Formula:
        return FORMULAS[self.kernel]

    @property
    def g(self) -> float:
        return self.formula.rate(self.bandwidth)

    @property
    def rows(self) -> torch.Tensor:
        """The rows compared with the truth: evenly spread, the first and the last among them."""
        n = len(self.x)
        return torch.linspace(0, n - 1, min(n, CHECKED_ROWS), dtype=torch.float64).round().long()


def clouds(n: int, m: int, dim: int, kernel: str = "Gaussian", seed: int = 0, shift: float = 0.0) -> Problem:
    """A problem of n targets and m sources; ``shift`` moves the sources along every axis."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator)
    y = torch.randn(m, dim, generator=generator) + shift
    return Problem(x, y, torch.rand(m, generator=generator), kernel, 0.5 * math.sqrt(dim))


def squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """|x_i - y_j|^2 by differences, not by the product form."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def truth(problem: Problem, reduction: str, chunk: int = 256) -> torch.Tensor:
    """The reduction on the checked rows, in float64, a chunk of rows at a time."""
    x, y, w = problem.x[problem.rows].double(), problem.y.double(), problem.weights.double()
    return torch.cat([_reduce(problem, reduction, part, y, w) for part in x.split(chunk)])


def _reduce(problem: Problem, reduction: str, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    r2 = squared_distances(x, y)  # [chunk, M]
    if reduction == "kernel_sum":
        return problem.formula.value(r2, problem.g) @ w
    # The other three are benchmarked for the Gaussian only.
    logits = -problem.g * r2
    if reduction == "kernel_logsumexp":
        return logits.logsumexp(1)
    if reduction == "kernel_average":
        return logits.softmax(1) @ y
    if reduction == "kernel_gradient":
        k = logits.exp() * w
        return -2 * problem.g * (x * k.sum(1, keepdim=True) - k @ y)
    raise ValueError(f"bench: unknown reduction {reduction!r}")
