"""The backend "torch": plain PyTorch, chunked over rows, any floating dtype, any device.

It is what every other backend is held to, so it is written to be obviously right: pairs are formed by
differences, profiles come straight from the SymPy table, and one function is one formula. Memory is bounded
by a chunk of rows against all columns; nothing here is differentiable (``gwf_fast.ops`` owns the derivatives).

Conventions shared by all backends:

* tensors have exactly one batch dimension; ``spec`` is a flat sequence of floats, four a term: profile number,
  coefficient, bandwidth, parameter (0 where there is none);
* ``exclude_self`` drops j = i; rows at or beyond ``x_lengths`` give 0 (log-sum-exp: -inf), columns at or beyond
  ``y_lengths`` do not exist, whatever they hold;
* at coincident points any negative power of r, and log r, read 0, so that singular terms contribute nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.kernels.reference.profiles import kernel_derivatives, log_kernel
from gwf_fast.kernels.reference.range import overflowed, working_dtype

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Scalars in one [B, rows, M, D] block of differences: cache-sized on CPU, launch-bound on GPU."""

Tangent = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""A direction (dx, dy, da, db); None is zero."""


# ---------------------------------------------------------------------------------------------- pairs


class _Rows(NamedTuple):
    """A chunk of rows against all columns."""

    rows: slice
    d: Tensor  # [B, n, M, D]   x_i - y_j
    absent: Tensor | None  # [B | 1, n, M]   pairs that do not exist; None: all do


class _Pairs:
    """All pairs of x and y, chunk by chunk, with what is masked out."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        spec: Sequence[float],
        exclude_self: bool,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        *shifts: Tensor | None,
        log_domain: bool = False,
    ) -> None:
        self.missing_rows = _beyond(x_lengths, x.shape[1])  # [B, N]
        self.missing_columns = _beyond(y_lengths, y.shape[1])  # [B, M]
        self.exclude_self = exclude_self
        there = _clean(x, self.missing_rows), _clean(y, self.missing_columns)
        self.dtype = working_dtype(*there, spec, log_domain, shifts)
        self.x, self.y = self.row(x), self.column(y)

    def row(self, value: Tensor) -> Tensor:
        """A quantity per row, 0 where the row does not exist (it may hold anything there, NaN included)."""
        return _clean(value.to(self.dtype), self.missing_rows)

    def column(self, value: Tensor) -> Tensor:
        """A quantity per column, 0 where the column does not exist."""
        return _clean(value.to(self.dtype), self.missing_columns)

    def __iter__(self) -> Iterator[_Rows]:
        batch, n, dim = self.x.shape
        m = self.y.shape[1]
        step = max(1, CHUNK.get(self.x.device.type, CHUNK["cuda"]) // max(1, batch * m * dim))
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            d, absent = self.x[:, rows, None, :] - self.y[:, None, :, :], self._absent(rows)
            yield _Rows(rows, _between(d, absent), absent)

    def _absent(self, rows: slice) -> Tensor | None:
        absent = None
        if self.exclude_self:
            i = torch.arange(rows.start, rows.stop, device=self.x.device)
            j = torch.arange(self.y.shape[1], device=self.x.device)
            absent = (i[:, None] == j)[None]  # [1, n, M]
        if self.missing_rows is not None:
            missing = self.missing_rows[:, rows, None]
            absent = missing if absent is None else absent | missing
        if self.missing_columns is not None:
            missing = self.missing_columns[:, None, :]
            absent = missing if absent is None else absent | missing
        return absent


def _beyond(lengths: Tensor | None, size: int) -> Tensor | None:
    return None if lengths is None else torch.arange(size, device=lengths.device) >= lengths[:, None]


def _clean(value: Tensor, missing: Tensor | None) -> Tensor:
    if missing is None:
        return value
    return torch.where(missing[..., None] if value.ndim == 3 else missing, 0.0, value)


def _without(value: Tensor, absent: Tensor | None, fill: float = 0.0) -> Tensor:
    return value if absent is None else torch.where(absent, fill, value)


def _between(d: Tensor, absent: Tensor | None) -> Tensor:
    """Differences [B, n, M, D], 0 in pairs that do not exist: 0 times NaN would touch what does."""
    return d if absent is None else torch.where(absent[..., None], 0.0, d)


def _ones(y: Tensor) -> Tensor:
    return y.new_ones(y.shape[0], y.shape[1], 1)


# ---------------------------------------------------------------------------------------------- reductions


def pair_sum(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]
    b: Tensor | None,  # [B, M, C]   None: ones, C = 1
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,  # [B], int64
    y_lengths: Tensor | None = None,  # [B], int64
) -> Tensor:  # [B, N, C]
    """sum_j k(x_i, y_j) b_j."""
    pairs = _Pairs(x, y, spec, exclude_self, x_lengths, y_lengths)
    b = pairs.column(_ones(y) if b is None else b)
    out = x.new_empty(x.shape[0], x.shape[1], b.shape[2])
    for rows, d, absent in pairs:
        (k,) = kernel_derivatives((d * d).sum(-1), spec, 0)
        out[:, rows] = _without(k, absent) @ b
    return _clean(out, pairs.missing_rows)


def pair_gradient(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]
    b: Tensor | None,  # [B, M]   None: ones
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:  # [B, N, D]
    """sum_j b_j grad_x k(x_i, y_j); written to ``out`` where given, contiguous and not x or y."""
    _, gradient = pair_sum_gradient(x, y, b, spec, exclude_self=exclude_self, x_lengths=x_lengths, y_lengths=y_lengths)
    return gradient if out is None else out.copy_(gradient)


def pair_sum_gradient(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]
    b: Tensor | None,  # [B, M]   None: ones
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # [B, N], [B, N, D]
    """sum_j b_j k(x_i, y_j) and its gradient in x_i, in one pass."""
    pairs = _Pairs(x, y, spec, exclude_self, x_lengths, y_lengths)
    b = pairs.column(y.new_ones(y.shape[:2]) if b is None else b)[:, None, :]  # [B, 1, M]
    value, gradient = x.new_empty(x.shape[:2]), torch.empty_like(x)
    for rows, d, absent in pairs:
        k, slope = kernel_derivatives((d * d).sum(-1), spec, 1)
        value[:, rows] = (_without(k, absent) * b).sum(-1)
        gradient[:, rows] = 2 * ((_without(slope, absent) * b)[..., None] * d).sum(2)
    return value, _clean(gradient, pairs.missing_rows)


def pair_logsumexp(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]
    beta: Tensor | None,  # [B, M]   None: zeros
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> Tensor:  # [B, N]
    """The logarithm of sum_j exp(beta_j) k(x_i, y_j), never forming k; -inf where there is nothing to sum."""
    pairs = _Pairs(x, y, spec, exclude_self, x_lengths, y_lengths, beta, log_domain=True)
    out = x.new_empty(x.shape[:2])
    for rows, d, absent in pairs:
        out[:, rows] = _log_weights(pairs, d, absent, beta, spec).logsumexp(-1)
    return out


def pair_average(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]
    v: Tensor | None,  # [B, M, C]   None: y
    beta: Tensor | None,  # [B, M]   None: zeros
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # [B, N, C], [B, N]
    """The mean of v under p_ij ~ exp(beta_j) k(x_i, y_j), and log sum_j exp(beta_j) k(x_i, y_j)."""
    pairs = _Pairs(x, y, spec, exclude_self, x_lengths, y_lengths, beta, log_domain=True)
    v = pairs.column(y if v is None else v)
    mean, total = x.new_empty(x.shape[0], x.shape[1], v.shape[2]), x.new_empty(x.shape[:2])
    for rows, d, absent in pairs:
        logits = _log_weights(pairs, d, absent, beta, spec)
        mean[:, rows] = logits.softmax(-1) @ v
        total[:, rows] = logits.logsumexp(-1)
    return _clean(mean, pairs.missing_rows), total


def _log_weights(pairs: _Pairs, d: Tensor, absent: Tensor | None, beta: Tensor | None, spec: Sequence[float]) -> Tensor:
    logits = log_kernel((d * d).sum(-1), spec)
    if beta is not None:
        logits = logits + pairs.column(beta)[:, None, :]
    return _without(logits, absent, -math.inf)


# ---------------------------------------------------------------------------------------------- derivatives


def pair_jet(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]
    a: Tensor,  # [B, N, C]
    b: Tensor,  # [B, M, C]
    alpha: Tensor | None,  # [B, N]   None: zeros
    beta: Tensor | None,  # [B, M]   None: zeros
    tangents: Sequence[Tangent],  # at most two
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # [B, N, D], [B, N, C]
    """Gradient in (x, a) of the directional derivative D_t1 .. D_tk E along the tangents, k = 0, 1 or 2.

        E(x, y, a, b) = sum_ij exp(alpha_i + beta_j) (a_i . b_j) k(x_i, y_j)

    Every derivative of every reduction is one of these; alpha and beta are held fixed. With d = x_i - y_j,
    q = |d|^2, A = a_i . b_j and e = exp(alpha_i + beta_j), the gradient of one pair is 2 e A k'(q) d in x_i and
    e k(q) b_j in a_i; orders 1 and 2 differentiate these two products along t1 and t2.
    """
    log_domain = alpha is not None or beta is not None
    pairs = _Pairs(x, y, spec, exclude_self, x_lengths, y_lengths, alpha, beta, log_domain=log_domain)
    a, b = pairs.row(a), pairs.column(b)
    alpha = None if alpha is None else pairs.row(alpha)
    beta = None if beta is None else pairs.column(beta)
    directions = [
        (
            pairs.row(torch.zeros_like(x) if dx is None else dx),
            pairs.column(torch.zeros_like(y) if dy is None else dy),
            pairs.row(torch.zeros_like(a) if da is None else da),
            pairs.column(torch.zeros_like(b) if db is None else db),
        )
        for dx, dy, da, db in tangents
    ]
    order = len(tangents)
    gx, ga = torch.empty_like(pairs.x), pairs.x.new_empty(a.shape)
    for rows, d, absent in pairs:
        shift = _shift(alpha, beta, rows)
        phi = kernel_derivatives((d * d).sum(-1), spec, order + 1, shift)
        phi = [_without(f, absent) for f in phi]
        gx[:, rows], ga[:, rows] = _JETS[order](d, a[:, rows], b, phi, [_restrict(t, rows, absent) for t in directions])
    gx, ga = _clean(gx, pairs.missing_rows), _clean(ga, pairs.missing_rows)
    if overflowed((gx, ga), (pairs.x, pairs.y, a, b, *itertools.chain(*directions))):
        wide = [_doubled(*tangent) for tangent in tangents]
        gx, ga = pair_jet(
            x.double(), y.double(), a.double(), b.double(), alpha, beta, wide, spec,
            exclude_self=exclude_self, x_lengths=x_lengths, y_lengths=y_lengths,
        )  # fmt: skip
    return gx.to(x.dtype), ga.to(x.dtype)


def _doubled(*tangent: Tensor | None) -> Tangent:
    dx, dy, da, db = (t if t is None else t.double() for t in tangent)
    return dx, dy, da, db


def _shift(alpha: Tensor | None, beta: Tensor | None, rows: slice) -> Tensor | None:
    if alpha is None:
        return None if beta is None else beta[:, None, :]
    return alpha[:, rows, None] if beta is None else alpha[:, rows, None] + beta[:, None, :]


class _Direction(NamedTuple):
    """A tangent as the formulas of a chunk see it."""

    d: Tensor  # [B, n, M, D]   its part in x_i - y_j
    a: Tensor  # [B, n, C]
    b: Tensor  # [B, M, C]


def _restrict(tangent: tuple[Tensor, Tensor, Tensor, Tensor], rows: slice, absent: Tensor | None) -> _Direction:
    dx, dy, da, db = tangent
    return _Direction(_between(dx[:, rows, None, :] - dy[:, None, :, :], absent), da[:, rows], db)


def _pairing(a: Tensor, b: Tensor) -> Tensor:  # [B, n, C], [B, M, C] -> [B, n, M]
    return a @ b.mT


def _along(weight: Tensor, d: Tensor) -> Tensor:  # [B, n, M], [B, n, M, D] -> [B, n, D]
    return (weight[..., None] * d).sum(2)


def _jet0(d: Tensor, a: Tensor, b: Tensor, phi: list[Tensor], _: list[_Direction]) -> tuple[Tensor, Tensor]:
    value, slope = phi
    return 2 * _along(_pairing(a, b) * slope, d), value @ b


def _jet1(d: Tensor, a: Tensor, b: Tensor, phi: list[Tensor], tangents: list[_Direction]) -> tuple[Tensor, Tensor]:
    (t1,) = tangents
    value, slope, curvature = phi
    q1 = 2 * (d * t1.d).sum(-1)
    pairing, pairing1 = _pairing(a, b), _pairing(t1.a, b) + _pairing(a, t1.b)
    gx = 2 * (_along(pairing1 * slope + pairing * curvature * q1, d) + _along(pairing * slope, t1.d))
    return gx, (slope * q1) @ b + value @ t1.b


def _jet2(d: Tensor, a: Tensor, b: Tensor, phi: list[Tensor], tangents: list[_Direction]) -> tuple[Tensor, Tensor]:
    t1, t2 = tangents
    _, slope, curvature, third = phi
    q1, q2, q12 = 2 * (d * t1.d).sum(-1), 2 * (d * t2.d).sum(-1), 2 * (t1.d * t2.d).sum(-1)
    value1, value2, value12 = slope * q1, slope * q2, curvature * q1 * q2 + slope * q12
    slope1, slope2, slope12 = curvature * q1, curvature * q2, third * q1 * q2 + curvature * q12
    pairing = _pairing(a, b)
    pairing1 = _pairing(t1.a, b) + _pairing(a, t1.b)
    pairing2 = _pairing(t2.a, b) + _pairing(a, t2.b)
    pairing12 = _pairing(t1.a, t2.b) + _pairing(t2.a, t1.b)
    gx = 2 * (
        _along(pairing12 * slope + pairing1 * slope2 + pairing2 * slope1 + pairing * slope12, d)
        + _along(pairing2 * slope + pairing * slope2, t1.d)
        + _along(pairing1 * slope + pairing * slope1, t2.d)
    )
    return gx, value12 @ b + value2 @ t1.b + value1 @ t2.b


_JETS = (_jet0, _jet1, _jet2)
