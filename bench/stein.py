"""The kernel Stein discrepancy and SVGD beside tiled PyTorch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

import gwf_fast as gwf
from bench.registry import OURS, Case, Contender, Race, Result, register

H = 4.0
TILE = 64  # rows; larger ones page-fault


def samples(n: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a Gaussian, with the score of another: the discrepancy is then no small difference of large numbers."""
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(0))
    return x, -1.2 * (x - 0.2)


def tiled_ksd2(x: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """The Gaussian's Stein kernel in product form, TILE rows at a time."""
    n, dim = x.shape
    g = 1 / H**2
    norm, own = x.square().sum(1), (x * score).sum(1)
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(n).split(TILE):
        q = (norm[rows, None] + norm - 2 * (x[rows] @ x.T)).clamp_(min=0)
        mixed = own[rows, None] + own - score[rows] @ x.T - x[rows] @ score.T
        u = torch.exp(-0.5 * g * q) * (score[rows] @ score.T + g * (mixed + dim) - g * g * q)
        u[torch.arange(len(rows)), rows] = 0
        total += u.sum(dtype=torch.float64)
    return total / (n * (n - 1))


def tiled_svgd(x: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """The direction with a Gaussian kernel, TILE rows at a time."""
    norm, out = x.square().sum(1), torch.empty_like(x)
    for rows in torch.arange(len(x)).split(TILE):
        k = torch.exp(-0.5 / H**2 * (norm[rows, None] + norm - 2 * (x[rows] @ x.T)).clamp_(min=0))
        out[rows] = (k @ score + (x[rows] * k.sum(1, keepdim=True) - k @ x) / H**2) / len(x)
    return out


def prepare(name: str, n: int, dim: int, quick: bool) -> Race:
    x, score = samples(n // 10 if quick else n, dim)
    kernel = gwf.Gaussian(H)
    ours = functools.partial(gwf.ksd2 if name == "ksd2" else gwf.svgd_direction, x, score, kernel=kernel)
    theirs = functools.partial(tiled_ksd2 if name == "ksd2" else tiled_svgd, x, score)

    def contender(call: functools.partial) -> Contender:
        def run() -> Result:
            with torch.no_grad():
                return (call(),)

        return run

    def truth() -> Result:
        function = tiled_ksd2 if name == "ksd2" else tiled_svgd
        return (function(x.double(), score.double()),)

    makers: dict[str, Callable[[], Contender]] = {OURS: functools.partial(contender, ours)}
    large = len(x) > 50_000  # a minute for PyTorch, and more for the truth
    if not large:
        makers["torch tiled"] = functools.partial(contender, theirs)
    pairs = math.comb(len(x), 2) if name == "ksd2" else len(x) ** 2
    return Race(makers, truth=None if large else truth, pairs=float(pairs))


register(
    Case(
        f"stein/{name}/N{n}/D{dim}",
        functools.partial(prepare, name, n, dim),
        tolerance=2e-6,
        facts={"family": "stein", "reduction": name, "kernel": "Gaussian", "D": dim, "N": n},
    )
    for name, n, dim in (("ksd2", 10_000, 64), ("ksd2", 100_000, 64), ("svgd_direction", 10_000, 64))
)
