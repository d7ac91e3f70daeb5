"""Interaction steps of many particles beside KeOps, the blob method beside dense NumPy, sliced sums beside direct ones.

``python -m bench.interactions D`` measures how the time of all against all grows to 10^7 particles, and its memory.
"""

from __future__ import annotations

import json
import math
import sys
import time

import numpy as np
import torch

import gwf_fast as gwf
from bench import memory
from bench.measure import labelled
from bench.peers import keops
from bench.registry import OURS, Case, Contender, Race, Result, register

CHECKED = 1000
KERNEL = gwf.Gaussian(1 / math.sqrt(2)) * (-1 / math.pi)  # W = -e^(-r^2) / pi


def _cloud(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def _velocity(x: torch.Tensor, s: torch.Tensor, log: bool) -> torch.Tensor:
    """-mean_j grad W, in float64, written out."""
    out = []
    for rows in x.double().split(10):
        d = rows[:, None] - s.double()
        r2 = d.square().sum(-1, keepdim=True)
        slope = 1 - 1 / r2.clamp(min=1e-300) if log else 2 / math.pi * torch.exp(-r2)  # W' / r
        out.append(-(torch.where(r2 > 0, slope, 0.0) * d).mean(1))
    return torch.cat(out)


def velocity_case(name: str, n: int, m: int, dim: int, method: dict, tolerance: float, limit: float | None) -> Case:
    log = "log" in name
    kernel = gwf.PowerLaw(2, 0) if log else KERNEL

    def prepare(quick: bool) -> Race:
        count = n // 10 if quick else n
        x = _cloud(count, dim)
        s = _cloud(m, dim, 1) if m != n else x
        rows = torch.arange(0, count, count // CHECKED)[:CHECKED]

        def make() -> Contender:
            def call() -> Result:
                return (gwf.interaction_velocity(x, s, kernel=kernel, **method),)

            return call

        return Race(
            {OURS: make},
            truth=lambda: (_velocity(x[rows], s, log),),
            checked=lambda result: (result[0][rows],),
            pairs=float(count) * len(s),
        )

    facts = {"family": "interactions", "D": dim, "N": n, "M": m}
    return Case(f"interactions/{name}", prepare, tolerance=tolerance, limit=limit, facts=facts)


FAST = {"method": gwf.NUFFT(1e-5)}
register(
    [
        velocity_case("forward/exact/D2", 1_000_000, 10_000, 2, {}, 1e-5, 3.0),
        velocity_case("all/nufft/D2", 1_000_000, 1_000_000, 2, FAST, 1e-5, 2.0),
        velocity_case("all/nufft/D3", 1_000_000, 1_000_000, 3, FAST, 1e-5, None),
        velocity_case("all/nufft/log/D2", 1_000_000, 1_000_000, 2, FAST, 1e-5, None),
        velocity_case("all/nufft/log/D3", 1_000_000, 1_000_000, 3, FAST, 1e-5, None),
    ]
)


def blob_race(quick: bool) -> Race:
    """One step for m = 1 of 136^2 particles on a grid, the size of a published code, with h = spacing^0.95."""
    side = 40 if quick else 136
    axis = torch.linspace(-2, 2, side)
    x = torch.cartesian_prod(axis, axis)
    h = float(4 / side) ** 0.95
    mass = torch.exp(-x.square().sum(1) / 2)
    mass = mass / mass.sum()

    def dense(x: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """By differences, as published codes write it, a block of rows at a time: N x N need not fit."""
        d = x[rows, None] - x[None]
        k = np.exp(-np.square(d).sum(-1) / (2 * h**2)) / (2 * np.pi * h**2)
        return d, k

    def numpy_step(x: np.ndarray, mass: np.ndarray) -> np.ndarray:
        blocks = [slice(i, i + 256) for i in range(0, len(x), 256)]
        rho = np.concatenate([dense(x, rows)[1] @ mass for rows in blocks])
        out = []
        for rows in blocks:
            d, k = dense(x, rows)
            pair = k * mass * (1 / rho[rows, None] + 1 / rho[None]) / h**2
            out.append(np.einsum("ij,ijd->id", pair, d))
        return np.concatenate(out)

    def ours() -> Contender:
        return lambda: (gwf.blob_velocity(x, h, weights=mass),)

    def peer() -> Contender:
        points, weights = x.numpy(), mass.numpy()
        return lambda: (torch.from_numpy(numpy_step(points, weights)),)

    return Race(
        {OURS: ours, "NumPy dense": peer},
        truth=lambda: (torch.from_numpy(numpy_step(x.double().numpy(), mass.double().numpy())),),
        pairs=float(len(x)) ** 2,
    )


register(
    [Case("interactions/blob/D2", blob_race, tolerance=1e-5, facts={"family": "interactions", "D": 2, "N": 18496})]
)


def forward_race(quick: bool) -> Race:
    """A tenth of 10^6 particles against 10^4 sources: all of them take KeOps, and us, ten times as long."""
    n, m = (10_000, 1_000) if quick else (100_000, 10_000)
    x, s = _cloud(n, 2), _cloud(m, 2, 1)
    rows = torch.arange(0, n, n // CHECKED)[:CHECKED]

    def peer() -> Contender:
        keops.load()
        from pykeops.torch import Genred

        # 2/pi e^(-r^2) (s - x), summed: minus the gradient of W = -e^(-r^2) / pi
        step = Genred("Exp(-SqDist(x, s)) * (s - x)", ["x = Vi(2)", "s = Vj(2)"], reduction_op="Sum", axis=1)
        return lambda: (step(x, s, backend="CPU") * (2 / math.pi / m),)

    return Race(
        {OURS: lambda: lambda: (gwf.interaction_velocity(x, s, kernel=KERNEL),), "KeOps": peer},
        truth=lambda: (_velocity(x[rows], s, False),),
        checked=lambda result: (result[0][rows],),
        pairs=float(n) * m,
    )


def sliced_race(quick: bool) -> Race:
    """Values at 10^5 points in 64 dimensions by 256 directions, beside the direct sum."""
    n, dim = (5_000 if quick else 100_000), 64
    x = _cloud(n, dim)
    kernel = gwf.Gaussian(math.sqrt(dim))
    rows = torch.arange(0, n, n // CHECKED)[:CHECKED]

    def method() -> gwf.Sliced:
        return gwf.Sliced(256, generator=torch.Generator().manual_seed(0))

    def ours() -> Contender:
        _, error = gwf.with_error(gwf.kernel_sum, x, x, kernel=kernel, method=method())
        calls = lambda: (gwf.kernel_sum(x, x, kernel=kernel, method=method()),)  # noqa: E731
        return labelled(calls, f"256 orthogonal directions, reported error {float(error):.1e}")

    return Race(
        {OURS: ours, "direct": lambda: lambda: (gwf.kernel_sum(x, x, kernel=kernel),)},
        truth=lambda: (gwf.kernel_sum(x[rows].double(), x.double(), kernel=kernel),),
        checked=lambda result: (result[0][rows],),
    )


register(
    [
        Case(
            "interactions/forward/KeOps/D2",
            forward_race,
            tolerance=1e-5,
            targets={"KeOps": 20.0},
            facts={"family": "interactions", "D": 2, "N": 100_000, "M": 10_000},
        ),
        Case(
            "interactions/sliced/D64",
            sliced_race,
            tolerance=2e-2,
            facts={"family": "interactions", "D": 64, "N": 100_000, "M": 100_000},
        ),
    ]
)


# ---------------------------------------------------------------------------------------------- scaling


def scaling(dim: int = 2, tolerance: float = 1e-5, sizes: tuple[int, ...] = (10**5, 10**6, 10**7)) -> dict[str, object]:
    """Seconds of all against all by nufft at each size, their log-log slope, and the peak memory of the process."""
    seconds = []
    for n in sizes:
        x = _cloud(n, dim)
        repeats = max(1, 10**6 // n)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            for _ in range(repeats):
                gwf.interaction_velocity(x, kernel=KERNEL, method=gwf.NUFFT(tolerance))
            times.append((time.perf_counter() - start) / repeats)
        seconds.append(min(times))
    slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    return {
        "D": dim,
        "sizes": sizes,
        "seconds": seconds,
        "slope": float(slope),
        "peak_gib": memory.status("VmHWM") / 1024,
    }


if __name__ == "__main__":
    print(json.dumps(scaling(int(sys.argv[1]) if sys.argv[1:] else 2)))
