"""Fourier series of points in shards: each process transforms its own, the coefficients are added up.

What is sent does not grow with the number of points. For kernels that are smooth at x = y: a near field has neighbours
on other processes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from gwf_fast import ops
from gwf_fast.ops.jet import Options, jet
from gwf_fast.ops.sharding import Sharded, agreed, count_of
from gwf_fast.pairs.fast import cost, sums
from gwf_fast.pairs.fast.series import Series, Spec, candidates, split
from gwf_fast.pairs.fast.transform import multi_indices, series_sum

_LARGEST, _SPREAD = 8, 32  # rows of each process that are checked: the largest sums, and some evenly spread


def mean(points: Tensor, backend: Sharded) -> Tensor:  # [M, D] -> [D]
    """A constant, in double."""
    return backend.total(points.detach().double().sum(0)) / max(count_of(points, backend), 1)


def summing(spec: Spec, backend: Sharded | None) -> Callable[..., Tensor] | None:
    """What computes a sum of shards; None for sets that are whole.

    Raises:
        ValueError: The kernel is rough.
    """
    if backend is None:
        return None
    if split(spec)[1]:
        raise ValueError('method must be "exact" with shards and a kernel that is not smooth at x = y, got "nufft"')
    return functools.partial(_accurate_sum, backend)


def _accurate_sum(
    backend: Sharded, x: Tensor, y: Tensor, weights: Tensor, rest: Tensor | None, request: sums.Request
) -> Tensor:  # [N, C, A], float64
    """The sum, checked on some rows of each process, and repeated with more digits where they disagree."""
    corners = backend.gathered(torch.cat([*_corners(x), *_corners(y)]))
    if not len(corners):
        return _exact(backend, x.double(), y.double(), weights, request)
    centre, extents = sums.box(corners, corners)
    u, v = x.double() - centre, y.double() - centre
    sizes = count_of(x, backend), count_of(y, backend), weights.shape[1]
    tolerance = request.tolerance if request.order <= 1 else 0.1 * request.tolerance
    for _ in range(sums.ATTEMPTS):
        series = _plan(request.spec, extents, tolerance, request.order, *sizes)
        # a grid with more points than there are pairs is no gain, where these can be summed
        if series is None or (request.order <= 1 and math.prod(2 * m + 1 for m in series.modes) > sizes[0] * sizes[1]):
            break
        single = x.dtype is torch.float32 and tolerance >= sums.SINGLE
        threads, table = torch.get_num_threads(), series.coefficients(request.spec)
        out = series_sum(u, v, weights, series, table, request.order, tolerance, single, threads, backend.total)
        if request.order > 1:  # derivatives of derivatives have no direct sum of shards to be compared with
            return out
        error, is_rounding = _error(backend, u, v, weights, out, rest, request, series.scale, x.dtype)
        if error <= sums.ACCEPTED * request.tolerance or is_rounding:
            return out
        tolerance = max(1e-14, tolerance * min(0.1, 0.3 * request.tolerance / error))
    return _exact(backend, u, v, weights, request)


def _corners(points: Tensor) -> list[Tensor]:
    return [points.amin(0, keepdim=True), points.amax(0, keepdim=True)] if len(points) else [points]


def _exact(backend: Sharded, u: Tensor, v: Tensor, weights: Tensor, request: sums.Request) -> Tensor:
    """The same sum round all processes, in float64."""
    if request.order > 2:
        raise sums.AccuracyError(
            f'method="nufft" did not reach tolerance={request.tolerance:g} for these points in shards; use a larger'
            ' tolerance, or method="exact"'
        )
    ring = backend.resolved(u.device, u.dtype, False, "sum", u.shape[-1])
    options = Options(request.spec, False, None, None, ring)
    w = weights.double()
    if request.order == 2:
        return torch.stack([_curvatures(u, v, each, options) for each in w.split(1, 1)], 1)
    if request.order == 0:
        return ops.pair_sum(u, v, w, *options)[:, :, None]
    return torch.stack([ops.pair_gradient(u, v, each.contiguous(), *options) for each in w.unbind(1)], 1)


def _curvatures(u: Tensor, v: Tensor, weights: Tensor, options: Options) -> Tensor:  # [N, A]
    """sum_j w_j d_a d_b k(x_i - y_j), by slopes along each axis."""
    ones, along = u.new_ones(len(u), 1), torch.eye(u.shape[1]).to(u)
    slopes = [jet(u, v, ones, weights, None, None, [(e.expand_as(u), None, None, None)], options)[0] for e in along]
    return torch.stack([slopes[a][:, b] for a, b in multi_indices(u.shape[1], 2)], 1)


def _plan(
    spec: Spec, extents: tuple[float, ...], tolerance: float, order: int, targets: int, sources: int, channels: int
) -> Series | None:
    """The cheapest series without a near field, the same on all processes."""
    found = [each for each in candidates(spec, extents, tolerance, order) if each.modes and not each.radius]
    price = functools.partial(
        cost.series_seconds, extents=extents, order=order, targets=targets, sources=sources, channels=channels,
        tolerance=tolerance, threads=1,
    )  # fmt: skip
    return min(found, key=lambda each: price(each.modes, 0.0), default=None)


def _error(
    backend: Sharded,
    u: Tensor,
    v: Tensor,
    weights: Tensor,
    out: Tensor,
    rest: Tensor | None,
    request: sums.Request,
    scale: float,
    dtype: torch.dtype,
) -> tuple[float, bool]:
    """The relative error from some rows of each process, and whether rounding makes as much (``sums._error``)."""
    total = out if rest is None else out + rest
    largest = total.flatten(1).norm(dim=1).topk(min(len(u), _LARGEST)).indices
    spread = torch.linspace(0, max(len(u) - 1, 0), min(len(u), _SPREAD), dtype=torch.float64).long()
    rows = torch.cat([largest, spread.to(largest.device)])
    points = backend.gathered(u[rows])
    known = sums.direct(points, v, weights, request._replace(spec=request.whole or request.spec))
    first, _ = backend.place(len(rows))
    truth = backend.total(known)[first : first + len(rows)]
    difference = total[rows] - truth
    if request.removed:  # of the diagonal, which the caller takes away
        truth = truth - request.removed * weights[rows, :, None]
    w = weights.double()
    squares = torch.stack([difference.square().sum(), truth.square().sum(), w.square().sum(), w.abs().sum(0).norm()])
    missed, size, walk, sure = backend.total(squares).tolist()
    count = count_of(u[rows], backend)
    rounding = max(4 * torch.finfo(dtype).eps * math.sqrt(walk), 1e-14 * sure) * scale * math.sqrt(count)
    relative = math.sqrt(missed / size) if size else math.inf if missed else 0.0
    return relative, agreed(math.sqrt(missed) <= rounding, backend)
