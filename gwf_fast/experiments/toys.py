"""Two-dimensional data sets by formula, each n -> samples [n, 2] with mean 0 and coordinates of mean variance 1."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gwf_fast.randomness.seeded import reproducible


def _eight_gaussians(n: int) -> Tensor:
    angle = torch.randint(8, (n,)) * (math.pi / 4)
    return 2 * _on_circle(angle) + 0.1 * torch.randn(n, 2)


def _circles(n: int) -> Tensor:
    radius = torch.where(torch.rand(n) < 0.5, 1.0, 2.0)
    return radius[:, None] * _on_circle(2 * math.pi * torch.rand(n)) + 0.05 * torch.randn(n, 2)


def _pinwheel(n: int) -> Tensor:
    """Five arms: points beside the first axis, turned by an angle that grows with their distance (Johnson 2016)."""
    along, across = 1 + 0.3 * torch.randn(n), 0.1 * torch.randn(n)
    angle = torch.randint(5, (n,)) * (2 * math.pi / 5) + 0.25 * along.exp()
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack((cosine * along - sine * across, sine * along + cosine * across), 1)


def _swissroll(n: int) -> Tensor:
    t = 1.5 * math.pi * (1 + 2 * torch.rand(n))
    return t[:, None] * _on_circle(t) / 5 + 0.05 * torch.randn(n, 2)


def _moons(n: int) -> Tensor:
    arc = _on_circle(math.pi * torch.rand(n))
    lower = torch.rand(n) < 0.5
    return torch.where(lower[:, None], torch.tensor([1.0, 0.5]) - arc, arc) + 0.06 * torch.randn(n, 2)


def _checkerboard(n: int) -> Tensor:
    """Uniform on the eight dark squares of four by four."""
    column = torch.randint(4, (n,))
    row = 2 * torch.randint(2, (n,)) + column % 2
    return torch.stack((column, row), 1) + torch.rand(n, 2)


def _on_circle(angle: Tensor) -> Tensor:
    return torch.stack((angle.cos(), angle.sin()), 1)


_SAMPLERS: dict[str, Callable[[int], Tensor]] = {
    "8gaussians": _eight_gaussians,
    "circles": _circles,
    "pinwheel": _pinwheel,
    "swissroll": _swissroll,
    "moons": _moons,
    "checkerboard": _checkerboard,
}
TOYS = tuple(_SAMPLERS)


def toy(name: str) -> Callable[[int], Tensor]:
    """The sampler of a data set, from torch's global generator."""
    sampler = _SAMPLERS[name]
    with reproducible(0):
        reference = sampler(200_000)
    mean = reference.mean(0)
    scale = (reference - mean).square().mean().sqrt()
    return lambda n: (sampler(n) - mean) / scale
