"""Directions on the sphere for sliced sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLINGS = ("normal", "orthogonal", "quasi")
_SOBOL_DIMENSIONS = torch.quasirandom.SobolEngine.MAXDIM


def draw_directions(n: int, like: Tensor, sampling: str, generator: torch.Generator | None) -> Tensor:
    """n directions [n, D] for points ``like`` [..., D], each uniform on the sphere, whatever the sampling.

    "normal": independent. "orthogonal": blocks of D orthogonal ones (Rowland et al. 2019). "quasi": in two dimensions
    equal angles, turned at random; beyond, scrambled Sobol points through the normal quantile (Nguyen et al. 2024).
    """
    dim, options = like.shape[-1], {"dtype": torch.float64, "device": like.device, "generator": generator}
    if sampling == "quasi" and dim == 2:
        angle = (torch.arange(n, dtype=torch.float64, device=like.device) + torch.rand((), **options)) * (math.pi / n)  # type: ignore[call-overload]
        return torch.stack([angle.cos(), angle.sin()], -1).to(like.dtype)
    if sampling == "quasi":
        if dim > _SOBOL_DIMENSIONS:
            raise ValueError(f'sampling="quasi" needs D <= {_SOBOL_DIMENSIONS}, got D = {dim}')
        seed = int(torch.randint(2**62, (), generator=generator, device=like.device))
        points = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed).draw(n, dtype=torch.float64)
        normals = torch.special.ndtri(points.clamp(2.0**-40, 1 - 2.0**-40)).to(like.device)
    else:
        blocks = -(-n // dim) if sampling == "orthogonal" else 1
        rows = dim if sampling == "orthogonal" else n
        normals = torch.randn(blocks, rows, dim, **options)  # type: ignore[call-overload]
        if sampling == "orthogonal":  # Q times the signs of R's diagonal is uniform; a sign of a direction is nothing
            normals = torch.linalg.qr(normals.mT)[0].mT
        normals = normals.flatten(0, 1)[:n]
    return torch.nn.functional.normalize(normals, dim=-1).to(like.dtype)
