"""Kernels of sum_j b_j k_ij and of its gradient: one pass over the sources, nothing of size N x M."""

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
    squared_distance_few,
    tile_columns,
    zero_tiles,
)


@triton.jit(do_not_specialize=["n", "n_tiles", "m_tiles", "depth", "channels", "chunks", "splits"])
def sum_kernel(
    x, y, b, parameters, x_lengths, y_lengths, near, out, value_out,
    n, n_tiles, m_tiles, depth, channels, chunks, splits,
    JETS: tl.constexpr, ORDER: tl.constexpr, D: tl.constexpr, C: tl.constexpr, WITH_VALUE: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [splits, B, n, channels] = scale * sum_j f_ij b_j, f the derivative of order ORDER (0, 1) of the mixture.

    Each split has a range of the columns; the caller adds them up. C > 0 channels are added up in registers; C = 0
    takes a tile product, BC channels a program. WITH_VALUE adds value_out [splits, B, n] = sum_j k_ij b_j for the last
    channel of b (for C = 0, ORDER = 1). Sums are in groups of GROUP tiles, so that rounding errors grow with the number
    of groups only.
    """
    program = tl.program_id(0)
    tile = program % n_tiles
    chunk = (program // n_tiles) % chunks
    split = (program // (n_tiles * chunks)) % splits
    batch = (program // (n_tiles * chunks * splits)).to(tl.int64)
    batches = tl.num_programs(0) // (n_tiles * chunks * splits)
    x_stride = n_tiles.to(tl.int64) * BM
    y_stride = m_tiles.to(tl.int64) * BN
    x += batch * depth * x_stride
    y += batch * depth * y_stride
    b += batch * channels * y_stride
    rows = tile.to(tl.int64) * BM + tl.arange(0, BM)
    length = tl.load(x_lengths + batch)
    begin, end = column_range(tl.load(y_lengths + batch), tile.to(tl.int64) * BM < length, split, splits, BN)
    is_near = tl.load(near + batch) != 0
    dtype: tl.constexpr = x.dtype.element_ty
    xs = load_channels(x, x_stride, rows, D)
    channel = chunk * BC + tl.arange(0, BC)
    last = channels - 1

    if C > 0:
        totals = zero_tiles(tl.zeros((BM,), dtype), C)
    else:
        total = tl.zeros((BM, BC), dtype)
        value_total = tl.zeros((BM,), dtype)
    for first in range(begin, end, GROUP):
        if C > 0:
            sums = zero_tiles(tl.zeros((BM, BN), dtype), C)
        else:
            group = tl.zeros((BM, BC), dtype)
            value_group = tl.zeros((BM, BN), dtype)
        for j in range(first, tl.minimum(first + GROUP, end)):
            cols = tile_columns(j, BN)
            q = squared_distance(xs, x, x_stride, y, y_stride, rows, cols, depth, is_near, D, DOT, PRECISION, BLOCK_K)
            jet = mixture_jet(q, None, parameters, JETS, ORDER)
            weight = jet[ORDER]
            if EXCLUDE_SELF:
                weight = tl.where(rows[:, None] == cols[None, :], 0.0, weight)
            if C > 0:
                sums = multiply_add(sums, weight, load_channels(b, y_stride, cols, C), C)
            else:
                values = tl.load(
                    b + channel[None, :] * y_stride + cols[:, None], mask=channel[None, :] < channels, other=0.0
                )
                group += tl.dot(weight, values, input_precision=PRECISION, out_dtype=dtype)
                if WITH_VALUE:
                    value = jet[0]
                    if EXCLUDE_SELF:
                        value = tl.where(rows[:, None] == cols[None, :], 0.0, value)
                    value_group += value * tl.load(b + last * y_stride + cols)[None, :]
        if C > 0:
            totals = add_row_sums(totals, sums, C)
        else:
            total += group
            value_total += tl.sum(value_group, 1)

    scale = tl.load(parameters + ORDER)
    place = split.to(tl.int64) * batches + batch
    out += place * n * channels
    inside = rows < n
    valid = rows < length
    if C > 0:
        for c in tl.static_range(C):
            tl.store(out + rows * channels + c, tl.where(valid, totals[c] * scale, 0.0), mask=inside)
    else:
        tl.store(
            out + rows[:, None] * channels + channel[None, :],
            tl.where(valid[:, None], total * scale, 0.0),
            mask=inside[:, None] & (channel[None, :] < channels),
        )
        if WITH_VALUE:  # noqa: SIM102, one is decided when compiled and one at run time
            if chunk == 0:
                value_result = tl.where(valid, value_total * tl.load(parameters), 0.0)
                tl.store(value_out + place * n + rows, value_result, mask=inside)


@triton.jit(do_not_specialize=["n", "n_tiles", "m_tiles", "splits"])
def gradient_kernel(
    x, y, b, parameters, x_lengths, y_lengths, out, value_out,
    n, n_tiles, m_tiles, splits,
    JETS: tl.constexpr, D: tl.constexpr, WITH_VALUE: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [splits, B, n, D] = sum_j b_j grad_x k_ij and value_out [splits, B, n] = sum_j b_j k_ij, for D <= 4."""
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
        for j in range(first, tl.minimum(first + GROUP, end)):
            cols = tile_columns(j, BN)
            ys = load_channels(y, y_stride, cols, D)
            source_weight = tl.load(b + cols)
            jet = mixture_jet(squared_distance_few(xs, ys, D), None, parameters, JETS, 1)
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
    scale = tl.load(parameters + 1)
    inside = rows < n
    valid = rows < length
    row = (split.to(tl.int64) * batches + batch) * n + rows
    for d in tl.static_range(D):
        tl.store(out + row * D + d, tl.where(valid, totals[d] * scale, 0.0), mask=inside)
    if WITH_VALUE:
        tl.store(value_out + row, tl.where(valid, value_total * value_scale, 0.0), mask=inside)
