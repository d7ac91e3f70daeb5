"""mmd2 with its gradient beside dense PyTorch and geomloss; the Parzen score beside attention."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

import gwf_fast as gwf
from bench.measure import detached
from bench.peers import losses
from bench.problem import Problem, clouds, truth
from bench.registry import OURS, Case, Contender, Race, Result, register


def our_mmd2(problem: Problem) -> Contender:
    x = problem.x.clone().requires_grad_()
    kernel = gwf.Gaussian(problem.bandwidth)

    def contender() -> Result:
        value = gwf.mmd2(x, problem.y, kernel=kernel)
        return detached(value, *torch.autograd.grad(value, x))

    return contender


def true_mmd2(problem: Problem, chunk: int = 500) -> Result:
    """Value and gradient in float64: (2/N) [mean_l grad k(x_i, x_l) - mean_j grad k(x_i, y_j)]."""
    x, y, g = problem.x.double(), problem.y.double(), problem.g

    def parts(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean over b of k(a_i, b_j), and of its gradient in a_i."""
        means, gradients = [], []
        for rows in a.split(chunk):
            k = torch.exp(-g * torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist").square()) / len(b)
            means.append(k.sum(1))
            gradients.append(-2 * g * (rows * k.sum(1, keepdim=True) - k @ b))
        return torch.cat(means), torch.cat(gradients)

    xx, repulsion = parts(x, x)
    xy, attraction = parts(x, y)
    yy, _ = parts(y, y)
    return xx.mean() + yy.mean() - 2 * xy.mean(), 2 / len(x) * (repulsion - attraction)


def mmd_race(dim: int, quick: bool) -> Race:
    n = 1_000 if quick else 10_000
    # The clouds differ by 0.5 along each axis: the value is then no small difference of large numbers.
    problem = clouds(n, n, dim, shift=0.5)
    contenders: dict[str, Callable[[], Contender]] = {
        OURS: functools.partial(our_mmd2, problem),
        "torch dense": functools.partial(losses.dense_mmd2, problem),
        "geomloss online": functools.partial(losses.geomloss_mmd2, "online", problem),
        "geomloss tensorized": functools.partial(losses.geomloss_mmd2, "tensorized", problem),
    }
    return Race(contenders, truth=lambda: true_mmd2(problem), pairs=3.0 * n * n)


def parzen_race(quick: bool) -> Race:
    n = 1_024 if quick else 8_192
    problem = clouds(n, n, 64)

    def ours() -> Contender:
        def contender() -> Result:
            with torch.no_grad():
                return (gwf.parzen_score(problem.x, problem.y, problem.bandwidth),)

        return contender

    def true_score() -> Result:
        mean = truth(problem, "kernel_average")
        return ((mean - problem.x[problem.rows].double()) / problem.bandwidth**2,)

    return Race(
        {OURS: ours, "SDPA": functools.partial(losses.attention_score, problem)},
        truth=true_score,
        checked=lambda result: (result[0][problem.rows],),
        pairs=float(n) ** 2,
    )


register(
    Case(
        f"mmd2/value+gradient/D{dim}",
        functools.partial(mmd_race, dim),
        targets={"torch dense": 40.0, "geomloss online": 15.0} if dim == 2 else {},
        facts={"family": "discrepancies", "reduction": "mmd2, gradient", "kernel": "Gaussian", "D": dim, "N": 10_000},
    )
    for dim in (2, 16)
)
register(
    [
        Case(
            "parzen_score/D64",
            parzen_race,
            targets={"SDPA": 1.3},
            facts={"family": "discrepancies", "reduction": "parzen_score", "kernel": "Gaussian", "D": 64, "N": 8_192},
        )
    ]
)
