"""The case list that drives every backend: kernels with independent closed forms, sizes, tolerances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import gwf_fast as gwf

H = 0.8
"""The bandwidth of the cases below."""


class KernelCase(NamedTuple):
    """A kernel with its closed form and derivative as functions of r, written here and not taken from the package."""

    kernel: gwf.Kernel
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]  # dk/dr, for r > 0


def _matern32(r: Tensor) -> Tensor:
    u = math.sqrt(3) * r / H
    return (1 + u) * torch.exp(-u)


def _matern52(r: Tensor) -> Tensor:
    u = math.sqrt(5) * r / H
    return (1 + u + u**2 / 3) * torch.exp(-u)


def _matern52_slope(r: Tensor) -> Tensor:
    u = math.sqrt(5) * r / H
    return -math.sqrt(5) / H * u * (1 + u) / 3 * torch.exp(-u)


KERNELS = {
    "gaussian": KernelCase(
        gwf.Gaussian(H),
        lambda r: torch.exp(-(r**2) / (2 * H**2)),
        lambda r: -r / H**2 * torch.exp(-(r**2) / (2 * H**2)),
    ),
    "laplace": KernelCase(gwf.Laplace(H), lambda r: torch.exp(-r / H), lambda r: -torch.exp(-r / H) / H),
    "imq": KernelCase(gwf.IMQ(H), lambda r: (1 + r**2 / H**2) ** -0.5, lambda r: -r / H**2 * (1 + r**2 / H**2) ** -1.5),
    "rational_quadratic": KernelCase(
        gwf.RationalQuadratic(H, 1.7),
        lambda r: (1 + r**2 / (3.4 * H**2)) ** -1.7,
        lambda r: -r / H**2 * (1 + r**2 / (3.4 * H**2)) ** -2.7,
    ),
    "matern32": KernelCase(gwf.Matern32(H), _matern32, lambda r: -3 * r / H**2 * torch.exp(-math.sqrt(3) * r / H)),
    "matern52": KernelCase(gwf.Matern52(H), _matern52, _matern52_slope),
    "riesz": KernelCase(gwf.Riesz(), lambda r: -r, lambda r: -torch.ones_like(r)),
    "riesz_1.3": KernelCase(gwf.Riesz(1.3), lambda r: -(r**1.3), lambda r: -1.3 * r**0.3),
    "power_4_1": KernelCase(gwf.PowerLaw(4, 1), lambda r: r**4 / 4 - r, lambda r: r**3 - 1),
    "power_2_0": KernelCase(
        gwf.PowerLaw(2, 0),
        lambda r: torch.where(r == 0, 0.0, r**2 / 2 - torch.log(r)),
        lambda r: r - 1 / r,
    ),
    "power_3_-1": KernelCase(
        gwf.PowerLaw(3, -1), lambda r: torch.where(r == 0, 0.0, r**3 / 3 + 1 / r), lambda r: r**2 - 1 / r**2
    ),
    "morse": KernelCase(
        gwf.Morse(1.0, 0.5, 0.6, 2.0),
        lambda r: torch.exp(-r / 0.5) - 0.6 * torch.exp(-r / 2),
        lambda r: -2 * torch.exp(-r / 0.5) + 0.3 * torch.exp(-r / 2),
    ),
    "mixture": KernelCase(
        0.5 * gwf.Gaussian(H) + gwf.Laplace(2.0),
        lambda r: 0.5 * torch.exp(-(r**2) / (2 * H**2)) + torch.exp(-r / 2),
        lambda r: -0.5 * r / H**2 * torch.exp(-(r**2) / (2 * H**2)) - 0.5 * torch.exp(-r / 2),
    ),
}

POSITIVE = [name for name, case in KERNELS.items() if case.kernel.positive]

DIMENSIONS = (1, 2, 3, 5, 17, 64, 130)

TOLERANCE = {  # relative error in the 2-norm, against float64 on the same inputs
    ("value", torch.float32): 1e-6,
    ("value", torch.float64): 1e-13,
    ("gradient", torch.float32): 3e-6,
    ("gradient", torch.float64): 1e-13,
    ("jet", torch.float32): 1e-5,
    ("jet", torch.float64): 1e-12,
    ("discrepancy", torch.float32): 1e-5,
    ("discrepancy", torch.float64): 1e-12,
}


def backends() -> list[str]:
    """The backends that run here; test_backends.py counts the others aloud, once each."""
    return [name for name in gwf.backends() if why_not(name) is None]


def why_not(backend: str) -> str | None:
    """Why a backend does not run in these tests; None if it does."""
    from gwf_fast.ops import BACKENDS

    if backend == "keops":
        return "compiles each formula for seconds, so it has a selection of its own in tests/gpu/test_keops.py"
    state = gwf.backends()[backend]
    devices = BACKENDS[backend].devices
    if state == "available" and devices is not None and "cpu" not in devices:
        return "does not serve the CPU"
    return None if state == "available" else state


def points(
    n: int = 63, m: int = 500, dim: int = 2, *, dtype: torch.dtype, shift: float = 0.0, batch: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Two clouds whose typical distance does not depend on the dimension, with three coincident pairs."""
    generator = torch.Generator().manual_seed(1000 * dim + n)
    x = torch.randn(*batch, n, dim, generator=generator, dtype=torch.float64) / math.sqrt(dim) + shift
    y = torch.randn(*batch, m, dim, generator=generator, dtype=torch.float64) / math.sqrt(dim) + shift
    same = min(3, n, m)
    y[..., :same, :] = x[..., :same, :]
    return x.to(dtype), y.to(dtype)


def dense(case: KernelCase, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """k [*B, N, M] and grad_x k [*B, N, M, D] in float64, from the closed forms."""
    d = x.double()[..., :, None, :] - y.double()[..., None, :, :]
    r = d.norm(dim=-1)
    slope = torch.where(r == 0, 0.0, case.slope(r) / r)
    return case.value(r), slope[..., None] * d


def error(got: Tensor, want: Tensor) -> float:
    """Relative error in the 2-norm; NaN is an infinite error."""
    assert got.shape == want.shape, f"shape {list(got.shape)}, expected {list(want.shape)}"
    difference = float((got.double() - want).norm() / want.norm().clamp(min=1e-300))
    return math.inf if math.isnan(difference) else difference


def cloud(n: int, dim: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    """Standard normal points."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
