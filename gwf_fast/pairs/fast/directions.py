"""Directions on the sphere for sliced sums."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from gwf_fast.ops.modes import is_readable
from gwf_fast.pairs.validation import as_integer, check_kind
from gwf_fast.randomness.seeded import own_generator

Sampling = Literal["normal", "orthogonal", "quasi"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
DEFAULT_SAMPLING: Sampling = "orthogonal"
"""Of every function that draws directions: each is uniform, as in the others, and an average over them errs less."""
_SOBOL_DIMENSIONS = torch.quasirandom.SobolEngine.MAXDIM


def draw_directions(n: int, like: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """n directions [n, D] for points ``like`` [..., D], each uniform on the sphere, whatever the sampling.

    "normal": independent. "orthogonal": blocks of D orthogonal ones (Rowland et al. 2019). "quasi": in two dimensions
    equal angles, turned at random; beyond, scrambled Sobol points through the normal quantile (Nguyen et al. 2024).
    """
    generator = own_generator(like.device) if generator is None else generator
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
        rows = min(n, dim) if sampling == "orthogonal" else n
        blocks = -(-n // max(rows, 1))
        normals = torch.randn(blocks, rows, dim, **options)  # type: ignore[call-overload]
        if sampling == "orthogonal":  # Q times the signs of R's diagonal is uniform; a sign of a direction is nothing
            normals = torch.linalg.qr(normals.mT)[0].mT
        normals = normals.flatten(0, 1)[:n]
    return torch.nn.functional.normalize(normals, dim=-1).to(like.dtype)


def checked_directions(
    x: Tensor,
    n_projections: int | None,
    generator: torch.Generator | None,
    sampling: Sampling,
    directions: Tensor | None,
    unit: bool = False,
) -> Tensor:
    """Directions [P, D] for points x [..., D], drawn or given, after a look at the arguments.

    Args:
        x: The points.
        n_projections: P.
        generator: Source of those that are drawn.
        sampling: How.
        directions: Those that are given.
        unit: Whether they must be of unit length.

    Raises:
        ValueError, TypeError: If an argument is out of range or does not go with x, or none says how many.
    """
    check_sampling(sampling, directions, generator)
    if n_projections is not None:
        n_projections = as_integer("n_projections", n_projections)
    if directions is None:
        if n_projections is None:
            raise TypeError("n_projections must be given where directions are not")
        return draw_directions(n_projections, x.detach(), sampling, generator)
    check_kind("directions", directions)
    if directions.dtype != x.dtype or directions.device != x.device:
        raise TypeError(f"directions must be a tensor of x's dtype {x.dtype} on {x.device}, got {_kind(directions)}")
    if directions.ndim != 2 or directions.shape[1] != x.shape[-1] or not len(directions):
        raise ValueError(
            f"directions must have shape [P, D] with P >= 1 and D = {x.shape[-1]}, got {list(directions.shape)}"
        )
    if n_projections not in (None, len(directions)):
        raise ValueError(f"n_projections must be the number of directions, {len(directions)}, got {n_projections}")
    if unit:
        check_unit("directions", directions)
    return directions


SLACK = 1e-2
"""By how much a length may differ from 1: halves round that much, and who tries a derivative by differences moves."""


def check_unit(name: str, vectors: Tensor) -> None:
    """Vectors [..., D] of unit length, where the values may be looked at."""
    if not is_readable(vectors) or not vectors.numel():
        return
    lengths = torch.linalg.vector_norm(
        vectors.detach(), dim=-1, dtype=torch.promote_types(vectors.dtype, torch.float32)
    )
    wrong = (lengths - 1).abs() > SLACK  # what is no number is no mistake in lengths, and comes out again
    if bool(wrong.any()):
        raise ValueError(f"{name} must be of unit length, got one of length {float(lengths[wrong][0]):.3g}")


def check_sampling(sampling: Sampling, directions: Tensor | None, generator: torch.Generator | None) -> None:
    """How directions are drawn, which they are not where they are given.

    Raises:
        ValueError: There is no such sampling, or nothing is drawn that it or a generator could say something of.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    if directions is not None and generator is not None:
        raise ValueError("generator must be None where directions are given: nothing is drawn")
    if directions is not None and sampling != DEFAULT_SAMPLING:
        raise ValueError(f"sampling must be left out where directions are given: nothing is drawn, got {sampling!r}")


def _kind(value: object) -> str:
    return f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
