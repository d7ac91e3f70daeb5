"""Optimal transport on the circle, brought to a line: where to cut it open (Delon, Salomon & Sobolevski 2010).

Angles in turns are lifted to the line, F and G the distribution functions of both sets there, F(t + 1) = F(t) + 1. The
cost of a convex power of the distance is the least, over alpha, of
    C(alpha) = int_0^1 |F^-1(s) - G^-1(s + alpha)|^p ds,
convex and piecewise linear: it bends where the end of a mass of G meets one of F. At the best of these both sets are
cut, whole points on either side, and what is left is transport on a line, with its derivatives: where the cut is does
not change, but for sets on which two are equally good.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.ops import Opaque

_HALVINGS = 56
"""Of an interval of two turns: to the rounding of partial sums of weights."""


class Opened(NamedTuple):
    """Points of both circles on a line, from the cut on, and which they were."""

    u: Tensor  # [L, N]
    v: Tensor  # [L, M]
    from_x: Tensor  # int64
    from_y: Tensor


def opened(a: Tensor, b: Tensor, u: Tensor | None, v: Tensor | None, power: float) -> Opened:
    """Angles a [L, N], b [L, M] in turns, with weights [L, N], [L, M] or equal ones, on the lines of the best cut.

    Differentiable in the angles.
    """
    with torch.no_grad():
        x_order, y_order = a.detach().argsort(-1), b.detach().argsort(-1)
        x, y = (t.detach().double().gather(-1, order) for t, order in ((a, x_order), (b, y_order)))
        x_weights, y_weights = (
            None if w is None else w.detach().double().gather(-1, order) for w, order in ((u, x_order), (v, y_order))
        )
        cut = _CUT if torch.compiler.is_compiling() else _cut
        x_start, y_start = cut(x, y, x_weights, y_weights, power)
    sides = []
    for angles, order, start in ((a, x_order, x_start), (b, y_order, y_start)):
        size = angles.shape[-1]
        place = start[..., None] + torch.arange(size, device=angles.device)
        members = order.gather(-1, place % size)
        turns = torch.div(place, size, rounding_mode="floor")
        sides.append((angles.gather(-1, members) + turns.to(angles.dtype), members))
    (line_x, from_x), (line_y, from_y) = sides
    return Opened(line_x, line_y, from_x, from_y)


def _cut(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, power: float
) -> tuple[Tensor, Tensor]:
    """The first points [L] of both sorted sets after the best cut; those of x in their turn, which may be negative."""
    n, m = x.shape[-1], y.shape[-1]
    if x_weights is None and y_weights is None:  # whole numbers, which no sum rounds
        whole = n * m // math.gcd(n, m)
        f, g = (
            (whole // t.shape[-1] * torch.arange(1, t.shape[-1] + 1, dtype=t.dtype, device=t.device)).expand(t.shape)
            for t in (x, y)
        )
        halvings = math.ceil(math.log2(4 * whole + 4))  # until one whole number is left
    else:
        f, g = _levels(x, x_weights), _levels(y, y_weights)
        whole, halvings = 1, _HALVINGS
    f, g = f.contiguous(), g.contiguous()
    after = torch.cat((y[..., 1:], y[..., :1] + 1), -1)
    low, high = (x.new_full((*x.shape[:-1], 1), sign * (whole + 0.5)) for sign in (-1, 1))
    for _ in range(halvings):
        middle = (low + high) / 2
        rising = _slope(x, y, after, f, g, middle, whole, power) >= 0
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    # the ends of two masses that meet there; of x that before its first point, too
    s, turn = _levels_met(g, (low + high) / 2, whole)
    above = torch.searchsorted(f, s).clamp(max=n - 1)
    to_above = f.gather(-1, above) - s
    to_below = s - torch.cat((torch.zeros_like(f[..., :1]), f), -1).gather(-1, above)
    last = torch.where(to_above <= to_below, above, above - 1)
    j = torch.minimum(to_above, to_below).argmin(-1, keepdim=True)
    start_x = last.gather(-1, j) + 1 + n * turn.gather(-1, j).to(torch.int64)
    return start_x.squeeze(-1), (j + 1).squeeze(-1)


def _levels(x: Tensor, weights: Tensor | None) -> Tensor:
    """The distribution function at the points, 1 at the last."""
    n = x.shape[-1]
    if weights is None:
        return (torch.arange(1, n + 1, dtype=x.dtype, device=x.device) / n).expand(x.shape).contiguous()
    sums = weights.expand(x.shape).cumsum(-1)
    return sums / sums[..., -1:]


def _levels_met(g: Tensor, alpha: Tensor, whole: int) -> tuple[Tensor, Tensor]:
    """The levels g - alpha within (0, whole], and the turns from there to where they are."""
    s = g - alpha
    turn = (s / whole).ceil() - 1
    return s - turn * whole, turn


def _slope(
    x: Tensor, y: Tensor, after: Tensor, f: Tensor, g: Tensor, alpha: Tensor, whole: int, power: float
) -> Tensor:  # [L, 1]
    """dC / d alpha: where G^-1 jumps from a point to the next, the next takes over."""
    s, turn = _levels_met(g, alpha, whole)
    here = x.gather(-1, torch.searchsorted(f, s).clamp(max=x.shape[-1] - 1)) + turn
    return ((here - after).abs() ** power - (here - y).abs() ** power).sum(-1, keepdim=True)


def _shapes(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    start = torch.empty(x.shape[:-1], dtype=torch.int64, device=x.device)
    return start, torch.empty_like(start)


_CUT = Opaque(
    "circular_cut(Tensor x, Tensor y, Tensor? x_weights, Tensor? y_weights, float power) -> (Tensor, Tensor)",
    run=_cut,
    fake=_shapes,
)
