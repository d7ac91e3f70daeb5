"""Discrepancies between two sets of samples, and kernel density estimates, on top of the pairwise reductions.

Everything is formed from differences of points, so clouds far from the origin lose nothing in float32.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from gwf_fast import ops
from gwf_fast.kernels.cpp import direct as direct_cpp
from gwf_fast.kernels.cpp import small as small_cpp
from gwf_fast.kernels.plain import plain
from gwf_fast.ops import direct
from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.modes import is_concrete, is_mapped
from gwf_fast.ops.sharding import count_of, spread, total_of
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.kernels import Gaussian, Kernel, Riesz
from gwf_fast.pairs.passes import centre_of, is_own, over, own_share, scaled_passes
from gwf_fast.pairs.reductions import kernel_average, kernel_logsumexp
from gwf_fast.pairs.terms import per_problem
from gwf_fast.pairs.validation import check_companion, check_pair, check_points


class _DirectMMD2(torch.autograd.Function):
    """The graph of a value that came with its gradients; a differentiated backward pass computes them by operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, made: Any) -> Tensor:
        value, gradients, ctx.rest = made
        ctx.save_for_backward(x, y, a, b, *gradients)
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, y, a, b, *gradients = ctx.saved_tensors
        if direct.is_backward_plain() and (found := direct_cpp.scaled(g, *gradients)) is not None:
            return *found, None
        if torch.is_grad_enabled():  # create_graph=True
            sets = *_flattened(x, y), _weights(a, x), _weights(b, y)
            spec, unbiased = ctx.rest
            found = _parts(*sets, spec, unbiased, "cpp", ctx.needs_input_grad[:4]).gradients
            gradients = [
                None if d is None or t is None else d.view(t.shape) for d, t in zip(found, (x, y, a, b), strict=True)
            ]
        shapes = (g[..., None, None], g[..., None, None], g[..., None], g[..., None])
        return *(None if d is None else c * d for c, d in zip(shapes, gradients, strict=True)), None


@entry(direct=direct.short_way("mmd2", "mmd", _DirectMMD2))
def mmd2(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel,
    unbiased: bool = False,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy: a' Kxx a + b' Kyy b - 2 a' Kxy b; value and gradient in one fused pass.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        kernel: The kernel k.
        unbiased: Drop the diagonals of Kxx and Kyy, and rescale (1 / (n (n - 1)) for equal weights).
        x_weights: a [*B, N], used as they are; None means 1 / N.
        y_weights: b [*B, M], used as they are; None means 1 / M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B], differentiable twice in points, weights and bandwidth.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, or a set is too small for a mean.
    """
    check_pair(x, y)
    if not isinstance(kernel, Kernel):
        raise TypeError(f"kernel must be a kernel such as gwf_fast.Gaussian(1.0), got {type(kernel).__name__}")
    for name, points in (("x", x), ("y", y)):
        if count_of(points, backend) < 1 + unbiased:
            least = "at least two points for unbiased=True" if unbiased else "at least one point"
            raise ValueError(f"{name} must have {least}, got shape {list(points.shape)}")
    for name, points, weights in (("x", x, x_weights), ("y", y, y_weights)):
        if weights is not None:
            check_companion(f"{name}_weights", weights, points, channels=False, y_name=name)
    backend = ops.resolve(backend, x.device, x.dtype, kernel.has_formula, "mmd", x.shape[-1])
    if backend == "cpp" and x.ndim <= 3 and kernel.spec is not None and is_concrete(x, y, x_weights, y_weights):
        tensors = (x, y, x_weights, y_weights)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            of_x, of_y, of_a, of_b = (t is not None and t.requires_grad for t in tensors)
            needs = (of_x, of_y, of_a, of_b)
            made = (*small_cpp.mmd2(*tensors, kernel.spec, unbiased, needs), (kernel.spec, unbiased))
            return _DirectMMD2.apply(*tensors, made)
        return small_cpp.mmd2(*tensors, kernel.spec, unbiased)[0]
    a, b = _weights(x_weights, x, backend), _weights(y_weights, y, backend)
    parts = []
    for each, given in zip(scaled_passes(x, y, kernel, None, backend), kernel.passes, strict=True):  # linear in it
        part = _mmd2(*_flattened(each.x, each.y), a, b, each.spec, unbiased, backend)
        parts.append(each._replace(coefficient=given.coefficient).multiplied(part))  # a number times a number
    out = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
    return out.view(x.shape[:-2])


_DISTANCE = Riesz(1.0)


@entry
def energy_distance(x: Tensor, y: Tensor, *, backend: BackendName | None = None) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'| (Szekely & Rizzo 2013): the squared MMD of the kernel -r.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B], never negative but for rounding.
    """
    return mmd2(x, y, kernel=_DISTANCE, backend=backend)


_direct_score = direct.short_way("parzen_score", "average")


def _gaussian(bandwidth: Any) -> Gaussian:
    """A Gaussian; of a number the same again, since making one takes as long as a small call."""
    if type(bandwidth) is not float or is_dynamo_compiling():
        return Gaussian(bandwidth)
    return _gaussian_of(bandwidth)


@lru_cache(maxsize=64)
def _gaussian_of(bandwidth: float) -> Gaussian:
    return Gaussian(bandwidth)


@entry
@widens
def parzen_log_density(
    x: Tensor, y: Tensor, bandwidth: float | Tensor, *, exclude_self: bool = False, backend: BackendName | None = None
) -> Tensor:
    """Logarithm of the Gaussian kernel density estimate mean_j N(x_i; y_j, h^2 I).

    Args:
        x: Where to evaluate, [*B, N, D].
        y: Samples [*B, M, D].
        bandwidth: h > 0; a float, or a tensor that may require grad: 0-d, or [*B] with one h a problem.
        exclude_self: Leave one out: drop j = i, where x and y are the same set.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N], normalised: exp of it integrates to 1.
    """
    kernel = _gaussian(bandwidth)
    total = kernel_logsumexp(x, y, kernel=kernel, exclude_self=exclude_self, backend=backend)
    count = count_of(y, backend) - bool(exclude_self)
    if count <= 0 and x.shape[-2] > 0:
        raise ValueError(f"y must have a sample other than x_i itself to estimate a density, got {list(y.shape)}")
    h = spread(kernel.bandwidth, backend)
    log_h = math.log(h) if not isinstance(h, Tensor) else h.log()[..., None] if h.ndim else h.log()
    return total - (math.log(max(count, 1)) + 0.5 * x.shape[-1] * math.log(2 * math.pi) + x.shape[-1] * log_h)


@entry
@widens
def parzen_score(
    x: Tensor, y: Tensor, bandwidth: float | Tensor, *, exclude_self: bool = False, backend: BackendName | None = None
) -> Tensor:
    """Gradient of ``parzen_log_density`` in x: (mean shift - x) / h^2 (Fukunaga & Hostetler 1975).

    Args:
        x: Where to evaluate, [*B, N, D].
        y: Samples [*B, M, D].
        bandwidth: h > 0; a float, or a tensor that may require grad: 0-d, or [*B] with one h a problem.
        exclude_self: Leave one out: drop j = i, where x and y are the same set.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, D].
    """
    kernel = _gaussian(bandwidth)
    if not is_dynamo_compiling():
        found = _direct_score(x, y, kernel=kernel, exclude_self=exclude_self, backend=backend)
        if found is not None:
            return found
    check_pair(x, y)
    # The mean shift minus x cancels far from the origin; differences do not mind where it is.
    centre = centre_of(y, None, backend)
    u = x - centre
    v = u if x is y else y - centre
    shifted = kernel_average(u, v, kernel=kernel, exclude_self=exclude_self, backend=backend)
    h = spread(kernel.bandwidth, backend)
    return over(shifted - u, (per_problem(h, x) if isinstance(h, Tensor) else h) ** 2)


MEDIAN_SAMPLE = 2048
"""Points that ``median_bandwidth`` looks at; of larger sets, evenly spaced ones."""


@entry
@torch.no_grad()
def median_bandwidth(x: Tensor) -> Tensor:
    """The median rule of SVGD (Liu & Wang 2016): h^2 = median(|x_i - x_j|^2) / (2 log(N + 1)), over pairs i < j.

    Exact up to 2048 points; of a larger set, the median is that of 2048 points evenly spaced in its order, so
    that the result is deterministic and needs no N x N storage.

    Args:
        x: Points [*B, N, D], N >= 2.

    Returns:
        h, of shape [*B]; a constant to autograd.
    """
    check_points("x", x)
    n = x.shape[-2]
    if n < 2:
        raise ValueError(f"x must have at least two points for a median of distances, got shape {list(x.shape)}")
    if n > MEDIAN_SAMPLE:
        index = torch.arange(MEDIAN_SAMPLE, device=x.device) * (n - 1) // (MEDIAN_SAMPLE - 1)
        x = x.index_select(-2, index)
    small = n <= small_cpp.LARGEST_SVGD and x.is_cpu and is_concrete(x) and x.ndim <= 4
    if small and x.dtype in (torch.float32, torch.float64) and (found := small_cpp.median_bandwidth(x)) is not None:
        return found
    sets = x.detach().reshape(-1, *x.shape[-2:]).to(torch.promote_types(x.dtype, torch.float32))
    medians = [_median_distance(points) for points in sets]
    h = torch.stack(medians) / math.sqrt(2 * math.log(n + 1)) if medians else x.new_empty(0)
    return h.to(x.dtype).view(x.shape[:-2])


def _median_distance(points: Tensor) -> Tensor:  # [N, D] -> []
    """In units of a power of two near the set's extent: its squares neither overflow nor vanish."""
    extent = (points - points[:1]).abs().amax()
    exponent = torch.where(extent.isfinite() & (extent > 0), torch.frexp(extent).exponent, 0)
    half = exponent // 2  # in two steps, since the whole power may be out of range
    median = _distances(torch.ldexp(torch.ldexp(points, -half), half - exponent)).median()
    return torch.ldexp(torch.ldexp(median, half), exponent - half)


def _distances(points: Tensor) -> Tensor:
    if is_mapped():  # vmap has no rule for pdist
        return points[torch.triu_indices(len(points), len(points), 1, device=points.device)].diff(dim=0)[0].norm(dim=-1)
    return torch.nn.functional.pdist(points)


# ---------------------------------------------------------------------------------------------- mmd2


class _Parts(NamedTuple):
    """The value of mmd2 and its gradients, where they were asked for."""

    value: Tensor  # [B]
    gradients: tuple[Tensor | None, ...]  # in x [B, N, D], y [B, M, D], a [B, N], b [B, M]


def _flattened(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """With one batch dimension. A set with itself stays one: own pairs are left out of derivatives."""
    u = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])  # not -1: a shard may be empty
    return u, u if y is x else y.reshape(len(u), *y.shape[-2:])


def _weights(weights: Tensor | None, points: Tensor, backend: str | None = None) -> Tensor:  # -> [B, N]
    shape = (math.prod(points.shape[:-2]), points.shape[-2])
    if weights is not None:
        return weights.reshape(shape)
    return points.new_full(shape, 1.0 / count_of(points, backend))


def _dot(a: Tensor, b: Tensor, backend: str) -> Tensor:  # [B, N], [B, N] -> [B], in double: three such sums cancel
    return spread(total_of((a.double() * b.double()).sum(-1), backend), backend)  # gradients of weights have it in rows


def _self_scale(a: Tensor, unbiased: bool, backend: str) -> tuple[Tensor | float, Tensor | float]:
    """The factor c of a' K a, and its gradient in a.

    Without the diagonal, weights that sum to s leave s^2 - |a|^2 of the mass s^2: c = s^2 / (s^2 - |a|^2).
    """
    if not unbiased:
        return 1.0, 0.0
    s, q = (_dot(a, other, backend)[:, None] for other in (torch.ones_like(a), a))  # [B, 1]
    left = s * s - q
    return (s * s / left)[..., 0], (2 * s * (s * a - q) / left**2).to(a.dtype)


class _Rows(NamedTuple):
    """Sums over both sets, and their gradients combined; c_x and c_y are the factors of ``_self_scale``."""

    xx: Tensor  # K_xx a [B, N]
    xy: Tensor  # K_xy b [B, N]
    yy: Tensor  # K_yy b [B, M]
    yx: Tensor | None  # K_yx a [B, M]; None, here and below: not asked for
    gx: Tensor | None  # c_x grad (K_xx a) - grad (K_xy b) [B, N, D]
    gy: Tensor | None  # c_y grad (K_yy b) - grad (K_yx a) [B, M, D]


def _parts(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, spec: Any, unbiased: bool, backend: str, needs: tuple[bool, ...]
) -> _Parts:
    """The value and the gradients that are needed."""
    need_x, need_y, need_a, need_b = needs
    scale_x, dscale_x = _self_scale(a, unbiased, backend)
    scale_y, dscale_y = _self_scale(b, unbiased, backend)
    rows = _kernel_rows(x, y, a, b, (scale_x, scale_y), spec, unbiased, backend, needs)
    axx, byy, axy = _dot(a, rows.xx, backend), _dot(b, rows.yy, backend), _dot(a, rows.xy, backend)
    value = (scale_x * axx + scale_y * byy - 2 * axy).to(x.dtype)
    gx = gy = ga = gb = None
    if rows.gx is not None and need_x:
        gx = 2 * a[..., None] * rows.gx
    if need_a:
        ga = 2 * (_cast(scale_x, x)[..., 0] * rows.xx - rows.xy) + dscale_x * axx[:, None].to(x.dtype)
    if rows.gy is not None and need_y:
        gy = 2 * b[..., None] * rows.gy
    if rows.yx is not None and need_b:
        gb = 2 * (_cast(scale_y, x)[..., 0] * rows.yy - rows.yx) + dscale_y * byy[:, None].to(x.dtype)
    return _Parts(value, (gx, gy, ga, gb))


def _kernel_rows(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    scales: tuple[Tensor | float, Tensor | float],
    spec: Any,
    unbiased: bool,
    backend: str,
    needs: tuple[bool, ...],
) -> _Rows:
    """In one launch where the backend has that; else by operators, so that the gradients are differentiable."""
    need_x, need_y, _, need_b = needs
    tensors = (x, y, a, b)
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    fused = ops.optional(backend, "mmd_rows") if is_concrete(*tensors) and not differentiable else None
    if fused is not None:
        pair = torch.stack([_per_problem(c, x) for c in scales], -1)
        options = {"exclude_self": unbiased, "gradient": need_x or need_y, "rows_of_y": need_y or need_b}
        return _Rows(*fused(*map(plain, tensors), pair, spec, **options))
    within, across = (spec, unbiased, None, None, backend), (spec, False, None, None, backend)
    xx, grad_xx = _rows(x, x, a, within, need_x)
    yy, grad_yy = _rows(y, y, b, within, need_y)
    xy, grad_xy = _rows(x, y, b, across, need_x)
    yx, grad_yx = _rows(y, x, a, across, need_y) if need_y or need_b else (None, None)
    gx = _cast(scales[0], x) * grad_xx - grad_xy if need_x else None
    gy = _cast(scales[1], x) * grad_yy - grad_yx if need_y else None
    return _Rows(xx, xy, yy, yx, gx, gy)


def _per_problem(scale: Tensor | float, x: Tensor) -> Tensor:  # [B]; a number is filled in, not copied to the device
    return scale.to(x).expand(len(x)) if isinstance(scale, Tensor) else x.new_full((len(x),), scale)


def _cast(scale: Tensor | float, x: Tensor) -> Tensor:  # [B] -> [B, 1, 1]
    return scale.to(x.dtype)[:, None, None] if isinstance(scale, Tensor) else x.new_ones(1, 1, 1)


def _rows(x: Tensor, y: Tensor, b: Tensor, options: Any, gradient: bool) -> tuple[Tensor, Any]:
    spec, exclude_self, *rest, backend = options
    own = is_own(x, y, exclude_self, None, None)
    options = (spec, exclude_self or own, *rest, backend)
    out = ops.pair_sum_gradient(x, y, b, *options) if gradient else (ops.pair_sum(x, y, b, *options), None)
    return (out[0] + own_share(x, None, spec, backend)[..., 0] * b, out[1]) if own else out


def _mmd2(x: Tensor, y: Tensor, a: Tensor, b: Tensor, spec: Any, unbiased: bool, backend: str) -> Tensor:
    tensors = (x, y, a, b)
    if not is_concrete(*tensors):  # traced or transformed: the operators' own derivatives
        return _parts(*tensors, spec, unbiased, backend, (False,) * 4).value
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _MMD2.apply(*tensors, spec, unbiased, backend)
    return _parts(*tensors, spec, unbiased, backend, (False,) * 4).value


class _MMD2(torch.autograd.Function):
    """The forward pass computes what the backward pass needs; a differentiated backward pass computes it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor, *rest: Any) -> Tensor:
        spec, unbiased, backend = rest
        parts = _parts(x, y, a, b, spec, unbiased, backend, ctx.needs_input_grad[:4])
        ctx.save_for_backward(x, y, a, b, *parts.gradients)
        ctx.rest = rest
        return parts.value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, y, a, b, *gradients = ctx.saved_tensors
        spec, unbiased, backend = ctx.rest
        if torch.is_grad_enabled():  # create_graph=True
            gradients = _parts(x, y, a, b, spec, unbiased, backend, ctx.needs_input_grad[:4]).gradients
        g = spread(g, backend)[:, None]
        shapes = (g[..., None], g[..., None], g, g)
        return *(None if d is None else c * d for c, d in zip(shapes, gradients, strict=True)), None, None, None
