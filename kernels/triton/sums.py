"""Kernels of sum_j b_j k_ij and of its gradient for a few coordinates and channels, in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from gwf_fast.kernels.triton.tiles import (
    add_row_sums,
    column_range,
    load_channels,
    mixture_jet,
    multiply_add,
    squared_distance,
    tile_columns,
    zero_tiles,
)


@triton.jit(do_not_specialize=["n", "n_tiles", "m_tiles", "splits"])
def sum_kernel(
    x, y, b, parameters, x_lengths, y_lengths, out,
    n, n_tiles, m_tiles, splits,
    JETS: tl.constexpr, D: tl.constexpr, C: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [splits, B, n, C] = sum_j k_ij b_j, for D, C <= 4.

    Each split has a range of the columns; the caller adds them up. Sums are in groups of GROUP tiles, so that rounding
    errors grow with the number of groups only.
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
    b += batch * C * y_stride
    rows = tile.to(tl.int64) * BM + tl.arange(0, BM)
    length = tl.load(x_lengths + batch)
    begin, end = column_range(tl.load(y_lengths + batch), tile.to(tl.int64) * BM < length, split, splits, BN)
    dtype: tl.constexpr = x.dtype.element_ty
    xs = load_channels(x, x_stride, rows, D)

    totals = zero_tiles(tl.zeros((BM,), dtype), C)
    for first in range(begin, end, GROUP):
        sums = zero_tiles(tl.zeros((BM, BN), dtype), C)
        cols = tile_columns(first, BN)
        ys = load_channels(y, y_stride, cols, D)
        source_weights = load_channels(b, y_stride, cols, C)
        for j in range(first, tl.minimum(first + GROUP, end)):
            following = tile_columns(tl.minimum(j + 1, end - 1), BN)  # on their way while these are computed
            next_ys = load_channels(y, y_stride, following, D)
            next_weights = load_channels(b, y_stride, following, C)
            weight = mixture_jet(squared_distance(xs, ys, D), None, parameters, JETS, 0)[0]
            if EXCLUDE_SELF:
                weight = tl.where(rows[:, None] == tile_columns(j, BN)[None, :], 0.0, weight)
            sums = multiply_add(sums, weight, source_weights, C)
            ys = next_ys
            source_weights = next_weights
        totals = add_row_sums(totals, sums, C)

    scale = tl.load(parameters)
    inside = rows < n
    valid = rows < length
    row = (split.to(tl.int64) * batches + batch) * n + rows
    for c in tl.static_range(C):
        tl.store(out + row * C + c, tl.where(valid, totals[c] * scale, 0.0), mask=inside)


@triton.jit(do_not_specialize=["n", "n_tiles", "m_tiles", "splits"])
def gradient_kernel(
    x, y, b, parameters, x_lengths, y_lengths, out, value_out,
    n, n_tiles, m_tiles, splits,
    JETS: tl.constexpr, SLOPE: tl.constexpr, D: tl.constexpr, WITH_VALUE: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [splits, B, n, D] = sum_j b_j grad_x k_ij and value_out [splits, B, n] = sum_j b_j k_ij, for D <= 4.

    JETS leave a factor SLOPE of the derivative out.
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
    b += batch * y_stride
    rows = tile.to(tl.int64) * BM + tl.arange(0, BM)
    length = tl.load(x_lengths + batch)
    begin, end = column_range(tl.load(y_lengths + batch), tile.to(tl.int64) * BM < length, split, splits, BN)
    dtype: tl.constexpr = x.dtype.element_ty
    xs = load_channels(x, x_stride, rows, D)

    totals = zero_tiles(tl.zeros((BM,), dtype), D)
    value_total = tl.zeros((BM,), dtype)
    for first in range(begin, end, GROUP):
        sums = zero_tiles(tl.zeros((BM, BN), dtype), D)
        value_sum = tl.zeros((BM, BN), dtype)
        for j in tl.range(first, tl.minimum(first + GROUP, end), num_stages=2):  # loads are ahead of the arithmetic
            cols = tile_columns(j, BN)
            ys = load_channels(y, y_stride, cols, D)
            source_weight = tl.load(b + cols)
            jet = mixture_jet(squared_distance(xs, ys, D), None, parameters, JETS, 1)
            weight = jet[1] * source_weight[None, :]
            if EXCLUDE_SELF:
                weight = tl.where(rows[:, None] == cols[None, :], 0.0, weight)
            updated = ()
            for d in tl.static_range(D):
                updated = updated + (sums[d] + weight * (xs[d][:, None] - ys[d][None, :]),)
            sums = updated
            if WITH_VALUE:
                value = jet[0]
                if EXCLUDE_SELF:
                    value = tl.where(rows[:, None] == cols[None, :], 0.0, value)
                value_sum += value * source_weight[None, :]
        totals = add_row_sums(totals, sums, D)
        if WITH_VALUE:
            value_total += tl.sum(value_sum, 1)

    value_scale = tl.load(parameters)
    scale = tl.load(parameters + 1) * SLOPE
    inside = rows < n
    valid = rows < length
    row = (split.to(tl.int64) * batches + batch) * n + rows
    for d in tl.static_range(D):
        tl.store(out + row * D + d, tl.where(valid, totals[d] * scale, 0.0), mask=inside)
    if WITH_VALUE:
        tl.store(value_out + row, tl.where(valid, value_total * value_scale, 0.0), mask=inside)
