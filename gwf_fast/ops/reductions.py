"""The pairwise reductions as operators, with their derivatives.

Shapes: x [B?, N, D], y [B?, M, D], b [B?, M] or, for sums, [B?, M, C], beta [B?, M], v [B?, M, C]; the batch
dimension is there or not, for all tensors alike. See ``kernels/reference/pairs.py`` for each function's meaning.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gwf_fast.kernels.reference.range import largest_finite
from gwf_fast.ops import dispatch
from gwf_fast.ops.jet import OPTIONS, Options, contiguous, jet, load, present, safe_exp_difference, save
from gwf_fast.ops.modes import is_concrete
from gwf_fast.ops.registry import Operator
from gwf_fast.ops.sharding import agreed


def _caller(name: str) -> Any:
    """The implementation of an operator: call the backend's function of the same name."""

    def run(*args: Any) -> Any:
        *tensors, spec, exclude_self, x_lengths, y_lengths, backend = args
        tensors = contiguous(*tensors)
        function = dispatch.function(backend, name)
        spec = tuple(spec)  # torch.library hands a list
        if not exclude_self and x_lengths is None and y_lengths is None:
            return function(*tensors, spec)
        x_lengths, y_lengths = contiguous(x_lengths, y_lengths)  # a column of a table, an expanded number
        return function(*tensors, spec, exclude_self=exclude_self, x_lengths=x_lengths, y_lengths=y_lengths)

    return run


def _ones(y: Tensor) -> Tensor:  # [B?, M, D] -> [B?, M, 1]
    return y.new_ones((*y.shape[:-1], 1))


# ---------------------------------------------------------------------------------------------- sums


def _sum_fake(x: Tensor, y: Tensor, b: Tensor | None, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], *(b.shape[-1:] if b is not None and _has_channels(b, y) else ())))


def _has_channels(b: Tensor | None, y: Tensor) -> bool:
    return b is not None and b.ndim == y.ndim


def _sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save(ctx, inputs[:3], inputs[3:])


def sum_backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
    """The vector-Jacobian product of ``pair_sum``; what is saved is what ``save`` keeps."""
    (x, y, b), options = load(ctx)
    b, u = present(b, options.y_lengths), present(u, options.x_lengths)
    grads = (_channels if _has_channels(b, y) else _one_channel)(x, y, b, u, options, ctx.needs_input_grad)
    return *grads, None, None, None, None, None


def _one_channel(x: Tensor, y: Tensor, b: Tensor | None, u: Tensor, rows: Options, needs: Any) -> list[Tensor | None]:
    gx = gy = gb = None
    columns = rows.swapped()
    if needs[0]:
        gx = u[..., None] * pair_gradient(x, y, b, *rows)
    if needs[1] and needs[2]:
        gb, gy = pair_sum_gradient(y, x, u, *columns)
    elif needs[1]:
        gy = pair_gradient(y, x, u, *columns)
    elif needs[2]:
        gb = pair_sum(y, x, u, *columns)
    return [gx, gy if gy is None or b is None else b[..., None] * gy, gb]


def _channels(x: Tensor, y: Tensor, b: Tensor, u: Tensor, rows: Options, needs: Any) -> list[Tensor | None]:
    gx = gy = gb = None
    if needs[0]:
        gx, _ = jet(x, y, u, b, None, None, [], rows)
    if needs[1]:
        gy, gb = jet(y, x, b, u, None, None, [], rows.swapped())
    elif needs[2]:
        gb = pair_sum(y, x, u, *rows.swapped())
    return [gx, gy, gb]


def _sum_jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None, db: Tensor | None, *_: Any) -> Tensor:
    (x, y, b), options = load(ctx)
    channels = _has_channels(b, y)
    if not channels:
        b = _ones(y) if b is None else b[..., None]
        db = None if db is None else db[..., None]
    unused = x.new_zeros((*x.shape[:-1], b.shape[-1]))
    out = jet(x, y, unused, b, None, None, [(dx, dy, None, db)], options)[1]
    return out if channels else out[..., 0]


pair_sum = Operator(
    f"pair_sum(Tensor x, Tensor y, Tensor? b, {OPTIONS}) -> Tensor",
    run=_caller("pair_sum"),
    fake=_sum_fake,
    setup_context=_sum_setup,
    backward=sum_backward,
    jvp=_sum_jvp,
)


# ---------------------------------------------------------------------------------------------- gradients


def _gradient_vjp(ctx: Any, us: Tensor | None, ug: Tensor | None) -> tuple[Any, ...]:
    """<us, sum> + <ug, gradient> is D_t E at a = 1 with t = (dx: ug, da: us)."""
    (x, y, b), options = load(ctx)
    needs = ctx.needs_input_grad
    a, b = _ones(x), _ones(y) if b is None else b[..., None]
    us = None if us is None else us[..., None]
    gx = gy = gb = None
    if needs[0]:
        gx, _ = jet(x, y, a, b, None, None, [(ug, None, us, None)], options)
    if needs[1] or needs[2]:
        gy, gb = jet(y, x, b, a, None, None, [(None, ug, None, us)], options.swapped())
        gb = gb[..., 0] if needs[2] else None
    return gx, gy, gb, None, None, None, None, None


def gradient_backward(ctx: Any, ug: Tensor) -> tuple[Any, ...]:
    """The same of ``pair_gradient``."""
    return _gradient_vjp(ctx, None, ug)


def _sum_gradient_jvp(
    ctx: Any, dx: Tensor | None, dy: Tensor | None, db: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    (x, y, b), options = load(ctx)
    b = _ones(y) if b is None else b[..., None]
    db = None if db is None else db[..., None]
    gradient, value = jet(x, y, _ones(x), b, None, None, [(dx, dy, None, db)], options)
    return value[..., 0], gradient


def _gradient_jvp(ctx: Any, *directions: Any) -> Tensor:
    return _sum_gradient_jvp(ctx, *directions)[1]


def _gradient_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _sum_gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _sum_setup(ctx, inputs, output)
    ctx.set_materialize_grads(False)


def _sum_gradient_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:-1]), x.new_empty(x.shape)


pair_gradient = Operator(
    f"pair_gradient(Tensor x, Tensor y, Tensor? b, {OPTIONS}) -> Tensor",
    run=_caller("pair_gradient"),
    fake=_gradient_fake,
    setup_context=_sum_setup,
    backward=gradient_backward,
    jvp=_gradient_jvp,
)

pair_sum_gradient = Operator(
    f"pair_sum_gradient(Tensor x, Tensor y, Tensor? b, {OPTIONS}) -> (Tensor, Tensor)",
    run=_caller("pair_sum_gradient"),
    fake=_sum_gradient_fake,
    setup_context=_sum_gradient_setup,
    backward=_gradient_vjp,
    jvp=_sum_gradient_jvp,
)


def pair_gradient_into(out: Tensor, x: Tensor, y: Tensor, spec: Any, backend: str) -> None:
    """sum_j grad_x k(x_i, y_j) into a contiguous tensor that shares no memory with x or y; never differentiable."""
    (rows,) = contiguous(x)  # the backend sees by its address that x and y are one set
    (columns,) = (rows,) if y is x else contiguous(y)
    gradient = dispatch.function(backend, "pair_gradient")
    if backend in ("cpp", "torch"):
        gradient(rows, columns, None, spec, out=out)
    else:
        out.copy_(gradient(rows, columns, None, spec))


# ---------------------------------------------------------------------------------------------- log domain
#
# With p_ij = exp(beta_j + log k_ij - L_i), both backward passes are E with scales alpha = -L and beta, held
# fixed; factors exp(beta - beta.detach()) and exp(L.detach() - L) in a and b, which equal 1, carry their
# derivatives, so that differentiating once more is exact too.
#
# L is rounded, by units where exponents are 1e8: shares then add up to exp(the rounding) and not to 1. Their sum, as
# the same arithmetic forms it, is divided by, a constant that equals 1 but for rounding.

_STEEP = 1e6
"""Logarithms beyond which float32 can't tell shares: derivatives are taken in float64."""
_UNSEEN = 4.0
"""Logarithms whose rounding is no more than that of a share."""


def _scales(total: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor | None]:
    # A row of nothing (L = -inf) has no weights to differentiate: alpha = -inf makes them 0, +inf would make NaN.
    alpha = torch.where(total.detach() == -torch.inf, -torch.inf, -total.detach())
    return alpha, None if beta is None else beta.detach()


def _largest(total: Tensor) -> float:
    """The largest finite |L|; infinity where it can't be looked at without waiting."""
    if not (is_concrete(total) and total.is_cpu):
        return torch.inf
    return largest_finite(total.detach())


def _is_steep(total: Tensor, x: Tensor, y: Tensor) -> bool:
    if total.dtype == torch.float64 or not (is_concrete(total) and total.is_cpu):
        return False
    if torch.is_grad_enabled() and total.requires_grad:  # of second order: covariances of slopes of size 2 L / h^2
        one_set = x.data_ptr() == y.data_ptr()  # where a point's curvature with itself cancels besides
        return one_set or _largest(total) - math.log(max(y.shape[-2], 1)) > _UNSEEN
    return _largest(total) > _STEEP


def _in_float64(operator: Operator, inputs: list[Tensor | None], options: Options, backward: Any, *us: Any) -> Any:
    """A backward pass about results that are taken anew, in float64."""
    wide = [None if tensor is None else tensor.double() for tensor in (*inputs, *us)]
    inputs64, us64 = wide[: len(inputs)], wide[len(inputs) :]
    out = operator(*inputs64, *options)
    outputs = out if isinstance(out, tuple) else (out,)
    grads = backward([*inputs64, *outputs], options, *us64)
    return tuple(None if g is None else g.to(us[0].dtype) for g in grads)


def _totals(sums: Tensor) -> Tensor:
    """Sums of shares as constants to divide by; rows that have no shares are left alone."""
    return torch.where(sums.detach() > 0, sums.detach(), 1.0)


def _logsumexp_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[:-1])


def _logsumexp_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save(ctx, (*inputs[:3], output), inputs[3:])


def logsumexp_backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
    """The same of ``pair_logsumexp``."""
    (x, y, beta, total), options = load(ctx)
    needs = ctx.needs_input_grad[:3]
    beta = present(beta, options.y_lengths)

    def gradients(saved: list[Any], rows: Options, u: Tensor) -> tuple[Any, ...]:
        x, y, beta, total = saved
        return _logsumexp_gradients(x, y, beta, total, u, rows, needs)

    if agreed(_is_steep(total, x, y), options.backend):
        grads = _in_float64(pair_logsumexp, [x, y, beta], options, gradients, u)
    else:
        grads = gradients([x, y, beta, total], options, u)
    return *grads, None, None, None, None, None


def _logsumexp_gradients(
    x: Tensor, y: Tensor, beta: Tensor | None, total: Tensor, u: Tensor, options: Options, needs: Any
) -> tuple[Any, ...]:
    alpha, fixed_beta = _scales(total, beta)
    a = (u / safe_exp_difference(total))[..., None]
    b = _ones(y) if beta is None else safe_exp_difference(beta)[..., None]
    gx = gy = gb = None
    if needs[0] or agreed(_largest(total) > _UNSEEN, options.backend):
        gx, sums = jet(x, y, a, b, alpha, fixed_beta, [], options)
        gx, a = gx / _totals(sums), a / _totals(sums)
    if needs[1] or needs[2]:
        gy, gb = jet(y, x, b, a, fixed_beta, alpha, [], options.swapped())
        gb = (gb * b)[..., 0] if needs[2] else None
    return gx if needs[0] else None, gy, gb


def _logsumexp_jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None, dbeta: Tensor | None, *_: Any) -> Tensor:
    (x, y, beta, total), options = load(ctx)
    beta, dbeta = present(beta, options.y_lengths), present(dbeta, options.y_lengths)
    alpha, fixed_beta = _scales(total, beta)
    b = _ones(y) if beta is None else safe_exp_difference(beta)[..., None]
    db = None if dbeta is None else b * dbeta[..., None]
    unused = torch.zeros_like(x[..., :1])
    slope = jet(x, y, unused, b, alpha, fixed_beta, [(dx, dy, None, db)], options)[1]
    sums = jet(x, y, unused, b, alpha, fixed_beta, [], options)[1]
    return (slope / _totals(sums))[..., 0] / safe_exp_difference(total)


pair_logsumexp = Operator(
    f"pair_logsumexp(Tensor x, Tensor y, Tensor? beta, {OPTIONS}) -> Tensor",
    run=_caller("pair_logsumexp"),
    fake=_logsumexp_fake,
    setup_context=_logsumexp_setup,
    backward=logsumexp_backward,
    jvp=_logsumexp_jvp,
)


def _average_fake(x: Tensor, y: Tensor, v: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    channels = (y if v is None else v).shape[-1]
    return x.new_empty((*x.shape[:-1], channels)), x.new_empty(x.shape[:-1])


def _average_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    save(ctx, (*inputs[:4], *output), inputs[4:])
    ctx.set_materialize_grads(False)


def _average_backward(ctx: Any, um: Tensor | None, ul: Tensor | None) -> tuple[Any, ...]:
    """Cotangents um of the mean m and ul of L: sum_j p_ij (um_i . (v_j - m_i) + ul_i), plus p um for v itself.

    The difference v - m cancels unless the values are near 0: callers centre them.
    """
    (x, y, v, beta, mean, total), options = load(ctx)
    needs = ctx.needs_input_grad[:4]
    v, beta = present(v, options.y_lengths), present(beta, options.y_lengths)
    um = torch.zeros_like(mean) if um is None else um

    def gradients(saved: list[Any], rows: Options, um: Tensor, ul: Tensor | None) -> tuple[Any, ...]:
        x, y, v, beta, mean, total = saved
        return _average_gradients(x, y, v, beta, mean, total, um, ul, rows, needs)

    if agreed(_is_steep(total, x, y), options.backend):
        grads = _in_float64(pair_average, [x, y, v, beta], options, gradients, um, ul)
    else:
        grads = gradients([x, y, v, beta, mean, total], options, um, ul)
    return *grads, None, None, None, None, None


def _average_gradients(
    x: Tensor,
    y: Tensor,
    v: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    total: Tensor,
    um: Tensor,
    ul: Tensor | None,
    options: Options,
    needs: Any,
) -> tuple[Any, ...]:
    needs_x, needs_y, needs_v, needs_beta = needs
    own_values = v is None
    v = present(y, options.y_lengths) if v is None else v
    slope = -(um * mean).sum(-1, keepdim=True)
    slope = slope if ul is None else slope + ul[..., None]
    alpha, fixed_beta = _scales(total, beta)
    a = torch.cat([um, slope], -1) / safe_exp_difference(total)[..., None]
    scale = None if beta is None else safe_exp_difference(beta)[..., None]
    values = torch.cat([v, _ones(y)], -1)
    b = values if scale is None else values * scale
    gx = gy = gv = gbeta = None
    if needs_x or agreed(_largest(total) > _UNSEEN, options.backend):
        gx, sums = jet(x, y, a, b, alpha, fixed_beta, [], options)
        gx, a = gx / _totals(sums[..., -1:]), a / _totals(sums[..., -1:])
    if needs_y or needs_v or needs_beta:
        gy, gb = jet(y, x, b, a, fixed_beta, alpha, [], options.swapped())
        gbeta = (gb * b).sum(-1) if needs_beta else None
        gv = (gb if scale is None else gb * scale)[..., :-1]
        gy = gy + gv if own_values else gy
    return gx if needs_x else None, gy, gv if needs_v else None, gbeta


def _average_jvp(
    ctx: Any, dx: Tensor | None, dy: Tensor | None, dv: Tensor | None, dbeta: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    """sum_j p_ij (v_j - m_i) dlog(w k)_ij + p_ij dv_j, and the same for L with v - m = 1."""
    (x, y, v, beta, mean, total), options = load(ctx)
    v, dv = (y, dy) if v is None else (v, dv)
    v, dv, beta, dbeta = (present(t, options.y_lengths) for t in (v, dv, beta, dbeta))
    alpha, fixed_beta = _scales(total, beta)
    b = torch.cat([v, _ones(y)], -1)
    b = b if beta is None else b * safe_exp_difference(beta)[..., None]
    db = torch.zeros_like(b) if dbeta is None else b * dbeta[..., None]
    if dv is not None:
        scaled = dv if beta is None else dv * safe_exp_difference(beta)[..., None]
        db = db + torch.cat([scaled, torch.zeros_like(dv[..., :1])], -1)
    unused = x.new_zeros((*x.shape[:-1], b.shape[-1]))
    slopes = jet(x, y, unused, b, alpha, fixed_beta, [(dx, dy, None, db)], options)[1]
    sums = jet(x, y, unused, b, alpha, fixed_beta, [], options)[1][..., -1:]
    slopes = slopes / _totals(sums) / safe_exp_difference(total)[..., None]
    return slopes[..., :-1] - mean * slopes[..., -1:], slopes[..., -1]


pair_average = Operator(
    f"pair_average(Tensor x, Tensor y, Tensor? v, Tensor? beta, {OPTIONS}) -> (Tensor, Tensor)",
    run=_caller("pair_average"),
    fake=_average_fake,
    setup_context=_average_setup,
    backward=_average_backward,
    jvp=_average_jvp,
)
