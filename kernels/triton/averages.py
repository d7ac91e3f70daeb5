"""Kernel of log sum_j e^beta_j k_ij and of the averages of values under these weights, by an online softmax."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from gwf_fast.kernels.triton.tiles import (
    add_row_sums,
    column_range,
    load_channels,
    mixture_exponent,
    mixture_jet,
    multiply_add,
    scale_all,
    squared_distance,
    tile_columns,
    zero_tiles,
)

LN2 = tl.constexpr(0.6931471805599453)


def combine_splits(
    totals: Tensor,  # [splits, B, N, C]
    reference: Tensor,  # [splits, B, N]
    mass: Tensor,  # [splits, B, N]
    parameters: Tensor,
) -> tuple[Tensor, Tensor]:  # [B, N, C], [B, N]
    """Averages and logarithms from the sums of each split, each over 2**reference; a single split has them already."""
    if reference.shape[0] == 1:
        return totals[0], reference[0]
    largest = reference.amax(0)
    origin = torch.where(largest == -math.inf, 0.0, largest)
    shares = torch.exp2(reference - origin)
    mass = (shares * mass).sum(0)
    mean = (shares[..., None] * totals).sum(0) / torch.where(mass == 0.0, 1.0, mass)[..., None]
    return mean, (origin + torch.log2(mass * parameters[0])) * LN2.value


@triton.jit
def log_bound(q, log_weight, rows, cols, parameters, EXPONENTS: tl.constexpr, EXCLUDE_SELF: tl.constexpr):
    """An upper bound, up to a moderate factor, of the base-2 logarithm of e^beta_j k_ij."""
    bound = log_weight[None, :] - mixture_exponent(q, parameters, EXPONENTS)
    if EXCLUDE_SELF:
        bound = tl.where(rows[:, None] == cols[None, :], float("-inf"), bound)
    return bound


@triton.jit
def finite_origin(reference):
    """The reference where it is finite, so that -inf - origin is not NaN."""
    return tl.where(reference == float("-inf"), 0.0, reference)


@triton.jit(do_not_specialize=["n", "n_tiles", "m_tiles", "splits"])
def average_kernel(
    x, y, v, beta, parameters, x_lengths, y_lengths, out, log_out, mass_out,
    n, n_tiles, m_tiles, splits,
    JETS: tl.constexpr, EXPONENTS: tl.constexpr, D: tl.constexpr, C: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """log_out [B, n] and out [B, n, C], for D, C <= 4; where columns are split, what combine_splits expects.

    beta holds base-2 logarithms, -inf in the padding; C = 0 computes the log-sum-exp only. Each group of tiles is swept
    twice, first for its largest weight: that is cheaper than a maximum over rows in every tile.
    """
    program = tl.program_id(0)
    tile = program % n_tiles
    split = (program // n_tiles) % splits
    batch = (program // (n_tiles * splits)).to(tl.int64)
    batches = tl.num_programs(0) // (n_tiles * splits)
    x_stride = n_tiles.to(tl.int64) * BM
    y_stride = m_tiles.to(tl.int64) * BN
    x += batch * D * x_stride
    y += batch * D * y_stride
    v += batch * C * y_stride
    beta += batch * y_stride
    rows = tile.to(tl.int64) * BM + tl.arange(0, BM)
    length = tl.load(x_lengths + batch)
    begin, end = column_range(tl.load(y_lengths + batch), tile.to(tl.int64) * BM < length, split, splits, BN)
    dtype: tl.constexpr = x.dtype.element_ty
    xs = load_channels(x, x_stride, rows, D)

    reference = tl.full((BM,), float("-inf"), dtype)  # base-2 logarithm of the largest weight so far
    mass = tl.zeros((BM,), dtype)  # sum of the weights over 2**reference
    totals = zero_tiles(tl.zeros((BM,), dtype), C)
    for first in range(begin, end, GROUP):
        last = tl.minimum(first + GROUP, end)
        masses = tl.zeros((BM, BN), dtype)
        sums = zero_tiles(masses, C)
        peak = tl.full((BM, BN), float("-inf"), dtype)
        for j in range(first, last):
            cols = tile_columns(j, BN)
            q = squared_distance(xs, load_channels(y, y_stride, cols, D), D)
            bound = log_bound(q, tl.load(beta + cols), rows, cols, parameters, EXPONENTS, EXCLUDE_SELF)
            peak = tl.maximum(peak, bound)
        largest = tl.maximum(reference, tl.max(peak, 1))
        shrink = tl.exp2(reference - finite_origin(largest))
        mass *= shrink
        totals = scale_all(totals, shrink, C)
        reference = largest
        for j in range(first, last):
            cols = tile_columns(j, BN)
            q = squared_distance(xs, load_channels(y, y_stride, cols, D), D)
            shift = tl.load(beta + cols)[None, :] - finite_origin(reference)[:, None]
            weight = mixture_jet(q, shift, parameters, JETS, 0)[0]
            if EXCLUDE_SELF:
                weight = tl.where(rows[:, None] == cols[None, :], 0.0, weight)
            masses += weight
            sums = multiply_add(sums, weight, load_channels(v, y_stride, cols, C), C)
        mass += tl.sum(masses, 1)
        totals = add_row_sums(totals, sums, C)

    inside = rows < n
    valid = rows < length
    whole = splits == 1
    row = (split.to(tl.int64) * batches + batch) * n + rows
    logarithm = (tl.where(mass == 0.0, 0.0, reference) + tl.log2(mass * tl.load(parameters))) * LN2
    logarithm = tl.where(whole, logarithm, reference)
    tl.store(log_out + row, tl.where(valid, logarithm, float("-inf")), mask=inside)
    if splits > 1:
        tl.store(mass_out + row, tl.where(valid, mass, 0.0), mask=inside)
    divisor = tl.where(whole, mass, 1.0)
    for c in tl.static_range(C):
        tl.store(out + row * C + c, tl.where(valid, totals[c] / divisor, 0.0), mask=inside)
