"""Sliced optimal transport between samples on the sphere: averages over great circles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gwf_fast.measures.circle import opened
from gwf_fast.measures.directional import Sets, on_lines, rooted
from gwf_fast.measures.sliced import check_samples
from gwf_fast.ops.ambient import entry
from gwf_fast.ops.modes import is_readable
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.fast.directions import SLACK, check_unit
from gwf_fast.pairs.ragged import exists
from gwf_fast.pairs.validation import as_integer, as_number, check_floating
from gwf_fast.randomness.seeded import own_generator


@entry
def spherical_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    p: float = 2.0,
    n_projections: int | None = None,
    generator: torch.Generator | None = None,
    planes: Tensor | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """SSW_p = (E_U W_p^p(P_U x, P_U y))^(1/p) of points on the sphere (Bonet et al. 2023).

    U are uniform planes through the origin, P_U(x) = U'x / |U'x| is on the great circle in one, and W_p goes along the
    circle, whose circumference is 1, as in POT's ``sliced_wasserstein_sphere``. On each circle the transport is exact:
    the best place to cut it open is found, and what is left is transport on a line.

    Args:
        x: Samples on the unit sphere, [*B, N, D], D >= 2.
        y: Samples on the unit sphere, [*B, M, D].
        p: Power of the distance along the circle, at least 1.
        n_projections: P, the planes to average over, the same for the whole batch.
        generator: Source of the planes; None means torch's global one.
        planes: [P, 2, D], two orthonormal vectors each, instead of drawn ones.
        x_weights: [*B, N], not negative; each set is scaled to sum to 1. None means 1 / N.
        y_weights: [*B, M], likewise.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B], in turns, at most 1/2; differentiable twice in x, y and planes, where no two projections coincide, and
        once in weights. Gradients in points are tangent to the sphere. 0 has a gradient of 0.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, points are not on the sphere, or
            a number is out of range.
    """
    p = as_number("p", p, "a number >= 1", least=1)
    check_samples(x, y)
    frames = _choose_planes(x, n_projections, generator, planes)
    sets = Sets.of(x, y, x_weights, y_weights, x_lengths, y_lengths, backend, centred=False)
    for name, points, lengths in (("x", sets.x, sets.lengths[0]), ("y", sets.y, sets.lengths[1])):
        if is_readable(points):
            check_unit(name, points if lengths is None else points[exists(points, lengths)])
    u, v, a, b = sets.padded()
    frames = frames.to(u.dtype)
    circles = [_angles(points, frames).flatten(0, 1) for points in (u, v)]  # [B P, N]
    weights = [w if w is None else w[:, None].expand(-1, len(frames), -1).flatten(0, 1) for w in (a, b)]
    line = opened(circles[0], circles[1], weights[0], weights[1], p)
    shape = u.shape[0], len(frames)
    a, b = (
        w if w is None else w.gather(-1, source).view(*shape, w.shape[-1])
        for w, source in zip(weights, (line.from_x, line.from_y), strict=True)
    )
    sets = sets._replace(a=a, b=b, lengths=(None, None))
    line_x, line_y = (side.view(*shape, side.shape[-1]) for side in (line.u, line.v))
    mean = on_lines("wasserstein", line_x, line_y, p, sets).double().mean(-1)
    return rooted(mean, p).view(x.shape[:-2]).to(x.dtype)


def _angles(points: Tensor, planes: Tensor) -> Tensor:  # [B, N, D], [P, 2, D] -> [B, P, N]
    """Where points are on the circles, in turns from -1/2 to 1/2; the origin, nowhere, at 0, without a slope."""
    first, second = (planes[:, side] @ points.mT for side in (0, 1))
    nowhere = (first == 0) & (second == 0)
    return torch.atan2(torch.where(nowhere, 0.0, second), torch.where(nowhere, 1.0, first)) / (2 * math.pi)


def _choose_planes(
    x: Tensor, n_projections: int | None, generator: torch.Generator | None, planes: Tensor | None
) -> Tensor:
    """Planes [P, 2, D] for points x, drawn or given."""
    dim = x.shape[-1]
    if dim < 2:
        raise ValueError(f"x must have at least two coordinates to be on a sphere, got shape {list(x.shape)}")
    if n_projections is not None:
        n_projections = as_integer("n_projections", n_projections)
    if planes is None:
        if n_projections is None:
            raise TypeError("n_projections must be given where planes are not")
        return _draw_planes(n_projections, x.detach(), generator)
    if generator is not None:
        raise ValueError("generator must be None where planes are given: nothing is drawn")
    check_floating("planes", planes)
    if planes.dtype != x.dtype or planes.device != x.device:
        got = f"{planes.dtype} on {planes.device}"
        raise TypeError(f"planes must be a tensor of x's dtype {x.dtype} on {x.device}, got {got}")
    if planes.ndim != 3 or planes.shape[1:] != (2, dim) or not len(planes):
        raise ValueError(f"planes must have shape [P, 2, D] with P >= 1 and D = {dim}, got {list(planes.shape)}")
    if n_projections not in (None, len(planes)):
        raise ValueError(f"n_projections must be the number of planes, {len(planes)}, got {n_projections}")
    check_unit("planes", planes)
    if is_readable(planes) and float((planes[:, 0] * planes[:, 1]).detach().sum(-1).abs().amax()) > SLACK:
        raise ValueError("planes must be two orthonormal vectors each, got two that are not orthogonal")
    return planes


def _draw_planes(count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform planes [P, 2, D]: two normal vectors, orthonormalised."""
    generator = own_generator(like.device) if generator is None else generator
    dim = like.shape[-1]
    normals = torch.randn(count, dim, 2, dtype=torch.float64, device=like.device, generator=generator)
    return torch.linalg.qr(normals)[0].mT.to(like.dtype).contiguous()
