"""What the reductions call: the choice of a method, batches, ragged lengths and the diagonal."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.ops.modes import is_concrete, is_readable
from gwf_fast.ops.sharding import Sharded
from gwf_fast.pairs.fast import cost, moments, sharded, slicing, sums
from gwf_fast.pairs.fast.series import SMOOTH, Spec, far_field, is_smooth, plan
from gwf_fast.pairs.fast.sliced import Directions, distance_sums, is_distance, sliced_sums
from gwf_fast.pairs.kernels import Term
from gwf_fast.pairs.passes import Scaled

METHODS = ("exact", "nufft", "sliced", "auto")

FINEST = {torch.float32: 1e-6, torch.float64: 1e-12}
"""The smallest tolerance that each precision allows."""


class FastOptions(NamedTuple):
    """A method and what it needs: a tolerance for "nufft" and "auto", directions for "sliced"."""

    method: str
    tolerance: float = 1e-6
    directions: Directions | None = None
    backend: str | None = None  # of points in shards


def choose(
    options: FastOptions, x: Tensor, y: Tensor, terms: Sequence[Term], spec: Spec | None, order: int, channels: int
) -> str:
    """The method that a call gets: the one asked for, or with "auto" the one that the cost model expects to be faster.

    Raises:
        ValueError, TypeError: If the method does not exist or can't serve.
    """
    method, tolerance, *_ = options
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "exact":
        return method
    if method == "sliced":
        reason = sliced_refusal(x, y, terms, order)
        if reason:
            raise ValueError(f'method="sliced" {reason}')
        return method
    finest = FINEST.get(x.dtype)
    if finest is not None and not finest <= tolerance <= 0.1:
        raise ValueError(f"tolerance must lie in {finest:g}..0.1 for {x.dtype}, got {tolerance!r}")
    reason = refusal(x, y, terms, spec)
    if method == "auto" and not x.is_cpu:
        return "exact"  # the cost model knows CPUs
    if method == "auto":
        return "exact" if reason or _exact_is_faster(x, y, terms, spec, order, channels, tolerance) else "nufft"
    if reason:
        raise ValueError(f'method="nufft" {reason}')
    return method


def sliced_refusal(x: Tensor, y: Tensor, terms: Sequence[Term], order: int = 0) -> str | None:
    """Why no slicing serves these points and kernels; None if it does."""
    return slicing.why_not(terms, order) or _unfit(x, y, ("cpu",))


def refusal(x: Tensor, y: Tensor, terms: Sequence[Term], spec: Spec | None) -> str | None:
    """Why no transform serves these points and kernels; None if one does."""
    from gwf_fast.kernels.table.profiles import PROFILES  # here: SymPy takes a while to import

    if any(term.profile not in PROFILES for term in terms):
        return "serves the kernels of this package, not user-written formulas"
    dim = x.shape[-1]
    if dim > 3 and (spec is None or moments.split(spec)[1]):
        return f"needs D <= 3 (any D for even powers of the distance), got D = {dim}"
    return _unfit(x, y, ("cpu", "cuda")) or (_unfit_for_gpu(terms, spec) if x.is_cuda else None)


def _unfit_for_gpu(terms: Sequence[Term], spec: Spec | None) -> str | None:
    """Why these kernels have no transform on a GPU, or this installation has none."""
    rough = [term.profile for term in terms if not is_smooth(term.profile)]
    if rough and (spec is None or moments.split(spec)[1]):
        return (
            f"serves kernels that are smooth at x = y on a GPU ({', '.join(SMOOTH)}), not {', '.join(rough)}:"
            ' use method="exact", or tensors on the CPU'
        )
    if importlib.util.find_spec("cufinufft") is None:
        return "needs cufinufft on a GPU: pip install cufinufft"
    return None


def _unfit(x: Tensor, y: Tensor, devices: tuple[str, ...]) -> str | None:
    """Why no fast method serves these tensors, whatever the kernel; None if one does."""
    if not is_concrete(x, y):
        return "runs in plain eager mode only, not under torch.compile or torch.func"
    if x.device.type not in devices or x.dtype not in FINEST:
        return f"serves float32 and float64 tensors on {' and '.join(devices)}, got {x.dtype} on {x.device}"
    if not (is_readable(x) and is_readable(y)):
        return "fits a box to the points, and can't while a CUDA graph is captured"
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        return "needs finite points, got inf or nan: a box is fitted to them"
    return None


def _exact_is_faster(
    x: Tensor, y: Tensor, terms: Sequence[Term], spec: Spec | None, order: int, channels: int, tolerance: float
) -> bool:
    n, m, dim = x.shape[-2], y.shape[-2], x.shape[-1]
    threads = torch.get_num_threads()
    direct = cost.direct_seconds(n, m, dim, terms, order, channels, threads)
    if direct < cost.FIXED or spec is None or not x.numel() or not y.numel():
        return True
    series = moments.split(spec)[1]
    if not series or (dim == 1 and is_distance(series)):
        return False
    sets = zip(x.detach().reshape(-1, n, dim), y.detach().reshape(-1, m, dim), strict=True)
    planned = []
    for u, v in sets:
        centre, extents = sums.box(u, v)
        planned.append(
            plan(series, extents, tolerance, order, n, m, channels, threads, sums.crowding(u, v, centre, extents))
        )
    return any(p is None for p in planned) or direct * len(planned) < sum(p[1] for p in planned if p)


def fast_reduction(
    order: int,
    passes: Iterable[Scaled],
    weights: Tensor | None,  # [*B, M, C]; None: ones, C = 1
    options: FastOptions,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:  # [*B, N, C] for sums, [*B, N, D] for gradients; [*B]
    """kernel_sum (order 0) or kernel_gradient (order 1) by a fast method, differentiable, and its relative error.

    The error is an estimate where the method is "sliced", else the tolerance.
    """
    total = None
    errors: Tensor | None = None  # absolute
    for each in passes:
        x, y, spec = each.x, each.y, each.spec
        batch = x.shape[:-2]
        count = math.prod(batch)
        w = y.new_ones(*y.shape[:-1], 1) if weights is None else weights
        points, sources, carried = (value.reshape(count, *value.shape[-2:]) for value in (x, y, w))
        parts, missed = [], []
        for k in range(count):
            n = points.shape[1] if x_lengths is None else int(x_lengths.flatten()[k])
            m = sources.shape[1] if y_lengths is None else int(y_lengths.flatten()[k])
            u = points[k, :n]
            v = u if x is y and n == m else sources[k, :m]
            # one point is at no distance from itself wherever it moves
            if u is v and n == 1 and not isinstance(options.backend, Sharded):
                u = v = u - u
            part, error = _one_set(order, u, v, carried[k, :m], spec, options, exclude_self)
            parts.append(torch.nn.functional.pad(part, (0, 0, 0, points.shape[1] - n)))
            missed.append(error)
        width = w.shape[-1] if order == 0 else x.shape[-1]
        out = torch.stack(parts) if parts else x.new_zeros(0, x.shape[-2], width)
        out = out.view(*batch, *out.shape[1:])
        error = torch.stack(missed).view(batch) if missed else out.new_zeros(batch, dtype=torch.float64)
        out = each.slope(out) if order == 1 else each.multiplied(out)
        if order == 1 and each.divisor is not None:
            least = each.divisor.detach().double()
            error = error / (least.flatten(-2).amin(-1) if least.ndim >= 2 else least)
        if each.coefficient is not None:
            error = error * each.coefficient.detach().double().abs()
        total = out if total is None else total + out
        errors = error if errors is None else errors + error  # the same directions: errors may well agree
    assert total is not None  # a kernel has terms
    assert errors is not None
    if options.method != "sliced":
        return total, torch.full_like(errors, options.tolerance)
    size = total.detach().double().flatten(len(batch)).norm(dim=-1)
    return total, torch.where(errors == 0, 0.0, errors / size)


def _one_set(
    order: int, x: Tensor, y: Tensor, weights: Tensor, spec: Spec, options: FastOptions, exclude_self: bool
) -> tuple[Tensor, Tensor]:  # [N, C] or [N, D]; 0-d
    """One set of targets against one set of sources, and the absolute error of a sliced sum."""
    error = torch.zeros((), dtype=torch.float64, device=x.device)
    shards = options.backend if isinstance(options.backend, Sharded) else None
    if shards is None and not (x.shape[0] and y.shape[0]):
        return x.new_zeros(x.shape[0], weights.shape[1] if order == 0 else x.shape[1]), error
    even, series = moments.split(spec)
    out = None
    if even:
        # in double it may be far off: moments cancel least about the mean
        centre = y.detach().double().mean(0) if shards is None else sharded.mean(y, shards)
        out = moments.moment_sum(x.double() - centre, y.double() - centre, weights, even, order, shards)
    own = 0.0  # what a point adds to its own sum
    if exclude_self and order == 0:
        own = float(far_field(torch.zeros((), dtype=torch.float64), spec, 0.0, 0))
    if series and options.directions is not None and x.shape[1] > 1:
        fast, error = sliced_sums(x, y, weights, series, order, options.directions)
        out = fast if out is None else fast + out
    elif series and x.shape[1] == 1 and is_distance(series) and shards is None:
        fast = distance_sums(x, y, weights, series, order)
        out = fast if out is None else fast + out
    elif series:  # in one dimension there is but one direction
        request = sums.Request(series, order, options.tolerance, spec, own, sharded.summing(series, shards))
        fast = sums.derivative_sums(x, y, weights, request, out)
        out = fast if out is None else fast + out
    assert out is not None  # a kernel has terms
    out = out.to(x.dtype)
    out = out[..., 0] if order == 0 else out[:, 0]
    if not exclude_self or order:
        return out, error
    n = min(len(x), len(y))  # ragged sets: rows without a source of their own lose nothing
    return out - own * torch.nn.functional.pad(weights[:n], (0, 0, 0, len(x) - n)), error
