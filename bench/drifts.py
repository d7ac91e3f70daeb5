"""Drifting beside the dense PyTorch that its notebooks run."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

import gwf_fast as gwf
from bench.registry import OURS, Case, Contender, Race, Result, register


def dense_drift(x: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    """Algorithm 2 of Deng et al. (2026) as its repositories write it, [B?, N, D]."""
    n = x.shape[-2]
    distance = torch.cdist(x, torch.cat([x, y], -2))
    distance.diagonal(dim1=-2, dim2=-1).add_(1e6)
    logit = distance / -temperature
    a = (logit.softmax(-1) * logit.softmax(-2)).sqrt()
    negative, positive = a[..., :n], a[..., n:]
    return (positive * negative.sum(-1, keepdim=True)) @ y - (negative * positive.sum(-1, keepdim=True)) @ x


def notebook_drift(x: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    """``compute_drift`` as the notebooks of Deng et al. (2026) write it, [N, D]."""
    n, targets = len(x), torch.cat([x, y])
    distance = torch.cdist(x, targets)
    distance[:, :n].fill_diagonal_(1e6)
    kernel = (-distance / temperature).exp()
    kernel = kernel / (kernel.sum(-1, keepdim=True) * kernel.sum(-2, keepdim=True)).clamp_min(1e-12).sqrt()
    attraction = (kernel[:, n:] * kernel[:, :n].sum(-1, keepdim=True)) @ y
    return attraction - (kernel[:, :n] * kernel[:, n:].sum(-1, keepdim=True)) @ x


def true_drift(x: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    """The same in float64, with distances by differences."""
    x, y = x.double(), y.double()
    distance = functools.partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    within = distance(x, x)
    within.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    logit = torch.cat([within, distance(x, y)], -1) / -temperature
    a = (0.5 * (logit.log_softmax(-1) + logit.log_softmax(-2))).exp()
    negative, positive = a.split([x.shape[-2], y.shape[-2]], -1)
    return (positive @ y) * negative.sum(-1, keepdim=True) - (negative @ x) * positive.sum(-1, keepdim=True)


def gmd_race(batch: tuple[int, ...], n: int, m: int, dim: int, temperature: float, quick: bool) -> Race:
    if quick:
        batch, n, m = tuple(b // 100 for b in batch), min(n, 256), min(m, 256)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*batch, n, dim, generator=generator)
    y = torch.randn(*batch, m, dim, generator=generator)

    def contender(f: functools.partial[torch.Tensor]) -> Contender:
        def run() -> Result:
            return (f(x, y),)

        return run

    contenders = {
        OURS: lambda: contender(functools.partial(gwf.drift.gmd, temperature=temperature)),
        "torch dense": lambda: contender(functools.partial(dense_drift, temperature=temperature)),
    }
    pairs = float(n) * (n + m) * (batch[0] if batch else 1)
    return Race(contenders, truth=lambda: (true_drift(x, y, temperature),), pairs=pairs)


def released_drift(x: torch.Tensor, y: torch.Tensor, temperatures: tuple[float, ...]) -> torch.Tensor:
    """The authors' released variant, dense, [B, N, D]: joint scale, clip, RMS of each temperature."""
    n, targets = x.shape[1], torch.cat([x, y], 1)
    distance = torch.cdist(x, targets, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-4)
    scale = distance.mean()
    step = scale / x.shape[-1] ** 0.5
    normed = distance / scale
    normed.diagonal(dim1=-2, dim2=-1).add_(100)
    total = torch.zeros_like(x)
    for rate in temperatures:
        logit = normed / -rate
        a = (logit.softmax(-1) * logit.softmax(-2)).clamp(min=1e-6).sqrt()
        negative, positive = a[..., :n], a[..., n:]
        force = (positive * negative.sum(-1, keepdim=True)) @ (y / step)
        force -= (negative * positive.sum(-1, keepdim=True)) @ (x / step)
        total += force / force.square().mean().clamp(min=1e-8).sqrt()
    return total * step


def multi_race(batch: int, n: int, m: int, dim: int, quick: bool) -> Race:
    if quick:
        batch, n, m = max(1, batch // 100), min(n, 256), min(m, 256)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(batch, k, dim, generator=generator) for k in (n, m))
    temperatures = (0.02, 0.05, 0.2)
    makers: dict[str, Callable[[], Contender]] = {
        OURS: lambda: lambda: (gwf.drift.gmd_multi(x, y, temperatures=temperatures).velocity,),
        "torch dense": lambda: lambda: (released_drift(x, y, temperatures),),
    }
    truth = lambda: (released_drift(x.double(), y.double(), temperatures),)  # noqa: E731
    return Race(makers, truth=truth, pairs=float(batch) * n * (n + m))


register(
    [
        Case(
            "drift/gmd_multi/D2",
            functools.partial(multi_race, 1, 2048, 2048, 2),
            tolerance=1e-4,
            peer_tolerance=1e-3,
            facts={
                "family": "drifts",
                "reduction": "gmd_multi, 3 temperatures",
                "kernel": "Laplace",
                "D": 2,
                "N": 2048,
            },
        ),
        Case(
            "drift/gmd_multi/D64/batch",
            functools.partial(multi_race, 1000, 64, 160, 64),
            tolerance=1e-4,
            peer_tolerance=1e-3,
            facts={"family": "drifts", "reduction": "gmd_multi, 1000 problems", "kernel": "Laplace", "D": 64, "N": 64},
        ),
        Case(
            "drift/gmd/D2",
            functools.partial(gmd_race, (), 2048, 2048, 2, 0.05),
            # A distance of 5 at T = 0.05 is an exponent of 100, of which float32 keeps 1e-5: dense PyTorch is off by
            # 3.6e-5, and no time is reported where we are off by more than that.
            tolerance=3.6e-5,
            targets={"torch dense": 15.0},
            facts={"family": "drifts", "reduction": "gmd", "kernel": "Laplace", "D": 2, "N": 2048},
        ),
        Case(
            "drift/gmd/D64/batch",
            functools.partial(gmd_race, (1000,), 64, 160, 64, 1.0),
            tolerance=1e-5,
            targets={"torch dense": 3.0},
            facts={"family": "drifts", "reduction": "gmd, 1000 problems", "kernel": "Laplace", "D": 64, "N": 64},
        ),
    ]
)
