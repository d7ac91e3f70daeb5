"""Sliced Wasserstein and energy distances beside POT and straightforward PyTorch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

import gwf_fast as gwf
from bench.measure import detached
from bench.problem import clouds
from bench.registry import OURS, Case, Contender, Race, Result, register


def unit(count: int, dim: int) -> Tensor:
    normals = torch.randn(count, dim, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(normals, dim=-1)


def with_gradient(value: Callable[[Tensor], Tensor], x: Tensor) -> Contender:
    """A call that returns value(x) and its gradient."""
    leaf = x.clone().requires_grad_()

    def contender() -> Result:
        result = value(leaf)
        return detached(result, *torch.autograd.grad(result, leaf))

    return contender


def wasserstein_by_torch(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """Sets of one size."""
    a, b = ((points @ theta.to(points).mT).sort(0).values for points in (x, y))
    return (a - b).square().mean()


def wasserstein_by_pot(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    import ot

    return ot.sliced.sliced_wasserstein_distance(x, y, projections=theta.mT) ** 2


def wasserstein_race(quick: bool) -> Race:
    n = 5_000 if quick else 100_000
    problem, theta = clouds(n, n, 16, shift=0.5), unit(100, 16)
    x, y = problem.x, problem.y
    ours = lambda leaf: gwf.sliced_wasserstein2(leaf, y, directions=theta)  # noqa: E731
    return Race(
        {
            OURS: lambda: with_gradient(ours, x),
            "POT": lambda: with_gradient(lambda leaf: wasserstein_by_pot(leaf, y, theta), x),
            "torch sort": lambda: with_gradient(lambda leaf: wasserstein_by_torch(leaf, y, theta), x),
        },
        truth=lambda: with_gradient(lambda leaf: wasserstein_by_torch(leaf, y.double(), theta), x.double())(),
    )


def energy_by_torch(x: Tensor, y: Tensor, theta: Tensor, tile: int) -> Tensor:
    """Velocity [N, D]: ranks of one sort of both sets, a tile of directions at a time."""
    n, m, dim = len(x), len(y), x.shape[1]
    out = torch.zeros_like(x)
    for part in theta.to(x).split(tile):
        a, b = part @ x.mT, part @ y.mT  # [T, N]
        rank = a.argsort(-1).argsort(-1)
        both = torch.cat([a, b], -1).argsort(-1).argsort(-1)[:, :n]
        force = (2 * (both - rank) - m) / (n * m) - (2 * rank - n + 1) / n**2
        out.addmm_(force.to(x.dtype).mT, part)
    constant = math.sqrt(math.pi) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
    return out * (-n * constant / len(theta))


def riesz_race(quick: bool) -> Race:
    """e = 1.5: nothing sorts it, so the peer sums all pairs of each direction."""
    n, count, exponent = (500, 8, 1.5) if quick else (2_000, 32, 1.5)
    problem, theta = clouds(n, n, 16, shift=0.5), unit(count, 16)
    x, y = problem.x, problem.y
    constant = math.sqrt(math.pi) * math.gamma((16 + exponent) / 2) / math.gamma(8) / math.gamma((exponent + 1) / 2)

    def by_pairs(x: Tensor, y: Tensor) -> Result:
        """Value and gradient; a direction's graph is dropped before the next, or 64 of them fill the memory."""
        total, gradient = x.new_zeros(()), torch.zeros_like(x)
        for t in theta.to(x):
            leaf = x.clone().requires_grad_()
            a, b = leaf @ t, y @ t
            powers = [(u[:, None] - v).abs().pow(exponent).mean() for u, v in ((a, b), (a, a), (b, b))]
            value = constant / count * (2 * powers[0] - powers[1] - powers[2])
            gradient += torch.autograd.grad(value, leaf)[0]
            total += value.detach()
        return total, gradient

    ours = lambda leaf: gwf.sliced_energy_distance(leaf, y, exponent=exponent, directions=theta)  # noqa: E731
    return Race(
        {OURS: lambda: with_gradient(ours, x), "torch pairs": lambda: functools.partial(by_pairs, x, y)},
        truth=lambda: by_pairs(x.double(), y.double()),
    )


def energy_race(quick: bool) -> Race:
    n, count = (1_000, 50) if quick else (20_000, 1_000)
    problem, theta = clouds(n, n, 784, shift=0.5), unit(count, 784)
    x, y = problem.x, problem.y

    def ours() -> Contender:
        leaf = x.clone().requires_grad_()

        def contender() -> Result:
            value = gwf.sliced_energy_distance(leaf, y, directions=theta)
            return (torch.autograd.grad(value, leaf)[0] * (-n / 2),)

        return contender

    return Race(
        {OURS: ours, "torch sort": lambda: functools.partial(lambda: (energy_by_torch(x, y, theta, 32),))},
        truth=lambda: (energy_by_torch(x.double(), y.double(), theta, 32),),
    )


register(
    [
        Case(
            "sliced/wasserstein/D16",
            wasserstein_race,
            tolerance=1e-4,
            peer_tolerance=1e-3,  # POT adds up its weights in float32: 8e-4 at this size
            targets={"POT": 5.0},
            facts={"family": "sliced", "D": 16, "N": 100_000, "directions": 100},
        ),
        Case(
            "sliced/riesz1.5/D16",
            riesz_race,
            tolerance=1e-4,
            peer_tolerance=1e-3,
            facts={"family": "sliced", "reduction": "Riesz 1.5", "D": 16, "N": 2_000, "directions": 32},
        ),
        Case(
            "sliced/energy_flow/D784",
            energy_race,
            tolerance=1e-4,
            facts={"family": "sliced", "D": 784, "N": 20_000, "directions": 1_000},
        ),
    ]
)
