"""The mean of the Stein kernel over pairs as an operator, with its first derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gwf_fast.ops import dispatch
from gwf_fast.ops.modes import may_need_tangents
from gwf_fast.ops.registry import Operator

_TWICE = "ksd2 is differentiable once: take the gradient of its gradient by finite differences, or of a dense formula"


def _mean(x: Tensor, score: Tensor, spec: Sequence[float], diagonal: bool, pairs: int, backend: str) -> Tensor:
    """The sum over pairs by their number: divided in float64, since a sum leaves the range of a half soon."""
    module = dispatch.load(backend.partition(":")[0], "stein")
    points, scores, spec, unit = _in_units(x.contiguous(), score.contiguous(), tuple(spec))
    return (module.stein_sum(points, scores, spec, diagonal).double() / pairs / unit**2).to(x.dtype)


def _slopes(
    x: Tensor, score: Tensor, u: Tensor, spec: Sequence[float], diagonal: bool, pairs: int, backend: str
) -> tuple[Tensor, Tensor]:
    """u times the derivatives of the mean in x and score."""
    module = dispatch.load(backend.partition(":")[0], "stein")
    wide = torch.promote_types(x.dtype, torch.float32)
    wide_x, wide_score = x.to(wide).contiguous(), score.to(wide).contiguous()
    points, scores, spec, unit = _in_units(wide_x, wide_score, tuple(spec))
    gradients = module.stein_sum_gradients(points, scores, spec, diagonal)
    factor = (u.double() / pairs / unit**2)[:, None, None]
    if unit == 1:
        factor = factor.to(wide)
    gx, gs = ((factor * g * scale).to(x.dtype) for g, scale in zip(gradients, (1 / unit, unit), strict=True))
    return gx, gs


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, score, *rest = inputs
    ctx.save_for_backward(x, score)
    if may_need_tangents():
        ctx.save_for_forward(x, score)
    ctx.rest = rest


def _backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
    x, score = ctx.saved_tensors
    return *stein_slopes(x, score, u, *ctx.rest), None, None, None, None


def _jvp(ctx: Any, dx: Tensor | None, dscore: Tensor | None, *_: Any) -> Tensor:
    x, score = ctx.saved_tensors
    gx, gs = stein_slopes(x, score, x.new_ones(x.shape[0]), *ctx.rest)
    parts = [(t * g).sum((-2, -1)) for t, g in ((dx, gx), (dscore, gs)) if t is not None]
    return sum(parts[1:], parts[0])


def _no_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _refuse(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(_TWICE)


_OPTIONS = "float[] kernel, bool diagonal, SymInt pairs, str backend"

stein_mean = Operator(
    f"stein_mean(Tensor x, Tensor score, {_OPTIONS}) -> Tensor",
    run=_mean,
    fake=lambda x, *_: x.new_empty(x.shape[0]),
    setup_context=_setup,
    backward=_backward,
    jvp=_jvp,
)
"""[B] of x and score [B, N, D]."""

stein_slopes = Operator(
    f"stein_slopes(Tensor x, Tensor score, Tensor u, {_OPTIONS}) -> (Tensor, Tensor)",
    run=_slopes,
    fake=lambda x, *_: (torch.empty_like(x), torch.empty_like(x)),
    setup_context=_no_setup,
    backward=_refuse,
    jvp=_refuse,
)
"""[B, N, D] both, of u [B]; without derivatives of their own."""


_USUAL = 2.0**20
"""Bandwidths, and one over them, up to which float32 has the derivatives that are formed."""


def _unit(spec: tuple[float, ...]) -> float:
    """What points are divided by, and scores multiplied: a power of two near the least bandwidth, if unusual."""
    least = min(spec[2::4])
    return 1.0 if 1 / _USUAL <= least <= _USUAL else 2.0 ** math.frexp(least)[1]


def _in_units(x: Tensor, score: Tensor, spec: tuple[float, ...]) -> tuple[Tensor, Tensor, tuple[float, ...], float]:
    """Points, scores and bandwidths in units of :func:`_unit`, and the unit."""
    unit = _unit(spec)
    if unit == 1:
        return x, score, spec, unit
    scaled = list(spec)
    scaled[2::4] = [h / unit for h in spec[2::4]]
    return x.double() / unit, score.double() * unit, tuple(scaled), unit
