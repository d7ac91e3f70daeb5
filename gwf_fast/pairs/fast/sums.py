"""Fast sums as one differentiable function, closed under derivatives, that checks its own error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gwf_fast import ops
from gwf_fast.pairs.fast import cost
from gwf_fast.pairs.fast.near import MAX_ORDER, near_sum
from gwf_fast.pairs.fast.series import Series, Spec, plan, split
from gwf_fast.pairs.fast.transform import multi_indices, series_sum

ATTEMPTS = 3
"""Times that a sum is done, each more accurate than the last, before it is given up."""

ACCEPTED = 0.5
"""Error on the checked rows, in units of the tolerance, that is taken to mean that all rows together keep it."""

SINGLE = 1e-4
"""The smallest tolerance of a transform in single precision."""

_LARGEST = 32  # sums that are checked each by itself

FEW_PAIRS = 1 << 24
"""Pairs that are summed directly where a fast sum does not reach its tolerance."""


class Request(NamedTuple):
    """What is summed, and how well: the arguments of a sum that are not tensors."""

    spec: Spec
    order: int  # of the partial derivatives, all of which are returned
    tolerance: float
    whole: Spec = ()  # the kernel that the error refers to, of which spec is a part; empty: spec
    removed: float = 0.0  # multiple of the target's own weight that the caller takes away
    compute: Callable[..., Tensor] | None = None  # who does it, as _accurate_sum, where points lie in shards


class AccuracyError(RuntimeError):
    """The tolerance of a fast sum was not reached."""


_CHECKED_ORDER = 3
"""The highest derivative of a kernel that is known directly, for transforms to be compared with."""


def derivative_sums(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    weights: Tensor,  # [M, C]
    request: Request,
    rest: Tensor | None = None,  # [N, C, A], what the caller adds; the error refers to the total
) -> Tensor:  # [N, C, A]
    """sum_j w_jc d^a k(x_i - y_j) for every partial derivative a of an order; differentiable, by itself."""
    return _Sums.apply(x, y, weights, None if rest is None else rest.detach(), request)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weights: Tensor, rest: Tensor | None, request: Request) -> Tensor:
        ctx.save_for_backward(x, y, weights)
        ctx.request = request
        compute = request.compute or _accurate_sum
        return compute(x, y, weights, rest, request).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
        """The kernel is even: derivatives in y are those in x with the sign of their order."""
        x, y, weights = ctx.saved_tensors
        order, dim = ctx.request.order, x.shape[1]
        sign = (-1) ** order
        lower, higher = multi_indices(dim, order), multi_indices(dim, order + 1)
        up = [[higher.index(tuple(sorted((*index, axis)))) for axis in range(dim)] for index in lower]  # [A][D]
        same = ctx.request._replace(whole=(), removed=0.0)
        raised = same._replace(order=order + 1)
        gx = gy = gw = None
        if ctx.needs_input_grad[0]:
            sums = derivative_sums(x, y, weights, raised)[:, :, up]  # [N, C, A, D]
            gx = (u[..., None] * sums).sum((1, 2))
        channels, count = u.shape[1:]
        if ctx.needs_input_grad[1]:
            sums = derivative_sums(y, x, u.flatten(1), raised).unflatten(1, (channels, count))  # [M, C, A, A']
            gy = sum(weights[:, c, None] * sums[:, c, a][:, up[a]] for c in range(channels) for a in range(count))
            gy = sign * gy  # a factor -1 for y, another for the exchange of x and y
        if ctx.needs_input_grad[2]:
            sums = derivative_sums(y, x, u.flatten(1), same).unflatten(1, (channels, count))
            gw = sign * sums.diagonal(dim1=2, dim2=3).sum(-1)
        return gx, gy, gw, None, None


def box(x: Tensor, y: Tensor) -> tuple[Tensor, tuple[float, ...]]:
    """The centre of the points, and how far they extend in each dimension, rounded up so that plans can be reused."""
    low, high = torch.minimum(x.amin(0), y.amin(0)), torch.maximum(x.amax(0), y.amax(0))
    lengths = (high.double() - low.double()).tolist()
    longest = max(lengths) or 1.0
    # Thin boxes are thickened: a short period would ask for as many modes, and say nothing more.
    steps = (math.ceil(16 * math.log2(max(length, 0.1 * longest) * 1.0001)) for length in lengths)
    return (low.double() + high.double()) / 2, tuple(2 ** (step / 16) for step in steps)


def crowding(x: Tensor, y: Tensor, centre: Tensor, extents: tuple[float, ...]) -> float:
    """How many times more neighbours a target has than if the sources filled their box, rounded to a power of 2.

    Counted in the cells of a coarse grid.
    """
    cells = 16
    number = []
    for points in (x, y):
        position = ((points - centre) / torch.tensor(extents, dtype=torch.float64) + 0.5) * cells
        index = torch.zeros(len(points), dtype=torch.int64)
        for column in position.long().clamp(0, cells - 1).unbind(1):
            index = index * cells + column
        number.append(torch.bincount(index, minlength=cells ** x.shape[1]).double() / len(points))
    together = float(number[0] @ number[1]) * cells ** x.shape[1]
    return 2.0 ** round(math.log2(max(together, 2.0**-4)))


def _accurate_sum(x: Tensor, y: Tensor, weights: Tensor, rest: Tensor | None, request: Request) -> Tensor:
    """The sum, checked on some rows against direct summation, and repeated with more digits where they disagree."""
    centre, extents = box(x, y)
    u = x.double() - centre  # in double: neighbours may be closer than the rounding of their distance to the centre
    v = u if y is x else y.double() - centre
    rough = bool(split(request.spec)[1])
    checked = request.order <= (MAX_ORDER if rough else _CHECKED_ORDER)
    if checked and not (u.any() or v.any()):  # one point: whose slope is 0, and not a tolerance
        return direct(u, v, weights, request)
    pairs, threads = len(u) * len(v), torch.get_num_threads()
    crowd = crowding(u, v, torch.zeros((), dtype=torch.float64), extents) if rough else 1.0
    tolerance = request.tolerance if checked else 0.1 * request.tolerance
    rounded = None  # a sum that is as good as rounding lets a transform be
    for _ in range(ATTEMPTS):
        sizes = (len(u), len(v), weights.shape[1])
        planned = plan(request.spec, extents, tolerance, request.order, *sizes, threads, crowd)
        if planned is None or (checked and math.prod(2 * m + 1 for m in planned[0].modes) > pairs):
            # A grid that resolves this kernel has more points than there are pairs.
            return direct(u, v, weights, request)
        series, _ = planned
        if not (series.modes or u.is_cpu):  # all neighbours and no series: a GPU takes all pairs
            return direct(u, v, weights, request)
        single = x.dtype is torch.float32 and tolerance >= SINGLE
        out = evaluate(u, v, weights, request, series, tolerance, single)
        if not checked:
            return out
        error, is_rounding = _error(u, v, weights, out, rest, request, series.scale, torch.finfo(x.dtype).eps)
        if error <= ACCEPTED * request.tolerance:
            return out
        if is_rounding:
            rounded = out
            break
        tolerance = max(1e-14, tolerance * min(0.1, 0.3 * request.tolerance / error))
    if pairs <= FEW_PAIRS:
        return direct(u, v, weights, request)
    if rounded is not None:
        return rounded
    raise AccuracyError(
        f'method="nufft" did not reach tolerance={request.tolerance:g} for these points and weights, whose terms'
        f' cancel: the error is {error:.1e}; use a larger tolerance, or method="exact"'
    )


def evaluate(
    u: Tensor, v: Tensor, weights: Tensor, request: Request, series: Series, tolerance: float, single: bool
) -> Tensor:  # [N, C, A], float64
    """The sum by one series, unchecked; for centred points."""
    spec, order = request.spec, request.order
    if not series.modes:
        return near_sum(u, v, weights, spec, series.radius, 0, order)
    threads = torch.get_num_threads()  # FINUFFT has a pool of its own
    # First: of an order that it does not know it says so at once, and a transform may have more modes than pairs.
    near = near_sum(u, v, weights, split(spec)[1], series.radius, series.degree, order) if series.radius else 0.0
    return near + series_sum(u, v, weights, series, series.coefficients(spec), order, tolerance, single, threads)


def _error(
    u: Tensor,
    v: Tensor,
    weights: Tensor,
    out: Tensor,
    rest: Tensor | None,
    request: Request,
    scale: float,
    epsilon: float,
) -> tuple[float, bool]:
    """The relative error, from some rows, and whether it is no more than rounding makes it in a transform.

    The rows with the largest sums and those at the ends of the cloud stand for themselves, since a few rows may make
    up the norm, or be all that goes wrong; of the others some, evenly spread, stand for all.
    """
    total = out if rest is None else out + rest
    sizes = total.flatten(1).norm(dim=1)
    special = torch.cat([sizes.topk(min(len(u), _LARGEST)).indices, u.argmin(0), u.argmax(0)]).unique()
    others = torch.ones(len(u), dtype=torch.bool)
    others[special] = False
    others = others.nonzero()[:, 0]
    spread = torch.linspace(0, max(len(others) - 1, 0), min(len(others), cost.CHECKED_ROWS), dtype=torch.float64)
    rows = torch.cat([special, others[spread.long()]])
    truth = direct(u[rows], v, weights, request._replace(spec=request.whole or request.spec))
    share = torch.ones(len(rows), dtype=torch.float64)  # rows that each stands for
    share[len(special) :] = len(others) / max(len(spread), 1)
    squares = (total[rows] - truth).flatten(1).square().sum(1)
    difference = math.sqrt(float(share @ squares))
    w = weights.double()  # errors of single terms add up as a random walk, those of a transform in proportion
    rounding = max(4 * epsilon * float(w.norm()), 1e-14 * float(w.abs().sum(0).norm()))
    rounding *= scale * math.sqrt(len(u))
    if request.removed:
        truth = truth - request.removed * weights[rows, :, None]
    size = math.sqrt(float(share @ truth.flatten(1).square().sum(1)))
    relative = difference / size if size else math.inf if difference else 0.0
    return relative, difference <= rounding


def direct(u: Tensor, v: Tensor, weights: Tensor, request: Request) -> Tensor:
    """The same sum, directly, in float64."""
    if request.order == _CHECKED_ORDER and not split(request.spec)[1]:
        return _partial_sums(u.double(), v.double(), weights.double(), request.spec, request.order)
    if request.order > 1:
        radius = 2.02 * float((torch.cat([u, v]).double()).norm(dim=1).max()) or 1.0
        return near_sum(u, v, weights, request.spec, radius, 0, request.order)
    u, v, weights = u.double()[None], v.double()[None], weights.double()[None]
    options = (False, None, None, ops.resolve(None, u.device, u.dtype))
    if request.order == 0:
        return ops.pair_sum(u, v, weights, request.spec, *options)[0, :, :, None]
    gradients = [ops.pair_gradient(u, v, w, request.spec, *options)[0] for w in weights.unbind(2)]
    return torch.stack(gradients, 1)


_AT_ONCE = 1 << 18
"""Pairs whose derivatives are held in memory."""


def _partial_sums(u: Tensor, v: Tensor, weights: Tensor, spec: Spec, order: int) -> Tensor:  # [N, C, A]
    """The partial derivatives of an order of a kernel that is smooth at 0, pair by pair, times weights."""
    from gwf_fast.kernels.reference.profiles import kernel_derivatives  # here: SymPy takes a while to import

    indices, parts = multi_indices(u.shape[1], order), []
    for rows in u.split(max(1, _AT_ONCE // len(v))):
        d = rows[:, None] - v[None]
        slopes = kernel_derivatives(d.square().sum(2), spec, order)
        partial = [sum(_paired(index, d, slopes)) for index in indices]
        parts.append(torch.stack([each @ weights for each in partial], -1))
    return torch.cat(parts)


def _paired(axes: tuple[int, ...], d: Tensor, slopes: list[Tensor], used: int = 0, factor: Tensor | float = 1.0) -> Any:
    """The terms of d^axes g(|d|^2): each further axis brings 2 d_a g', or takes a factor d_a of those before to 1.

    Said otherwise: over all ways of marrying equal axes, 2^k g^(k) times the d_a of the single, k pairs and singles.
    """
    if not axes:
        yield 2**used * slopes[used] * factor
        return
    first, rest = axes[0], axes[1:]
    yield from _paired(rest, d, slopes, used + 1, factor * d[..., first])
    for k, other in enumerate(rest):
        if other == first:
            yield from _paired(rest[:k] + rest[k + 1 :], d, slopes, used + 1, factor)
