"""Interaction steps of many particles, and the blob method beside dense NumPy."""

from __future__ import annotations

import math

import numpy as np
import torch

import gwf_fast as gwf
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


FAST = {"method": "nufft", "tolerance": 1e-5}
register(
    [
        velocity_case("forward/exact/D2", 1_000_000, 10_000, 2, {}, 1e-5, 3.0),
        velocity_case("all/nufft/D2", 1_000_000, 1_000_000, 2, FAST, 1e-5, 2.0),
        velocity_case("all/nufft/D3", 1_000_000, 1_000_000, 3, FAST, 1e-5, None),
        velocity_case("all/nufft/log/D2", 1_000_000, 1_000_000, 2, FAST, 1e-5, None),
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
        return lambda: (gwf.blob_velocity(x, h, masses=mass),)

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
