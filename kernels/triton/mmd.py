"""Kernel of the squared maximum mean discrepancy: every sum and gradient that it needs, in one pass over the pairs.

The sets x and y lie one after the other in z, each padded to whole tiles of rows, so that a tile of rows belongs to one
set. A program sweeps its own set, then the other one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gwf_fast.kernels.triton.tiles import (
    add_row_sums,
    column_range,
    load_block,
    load_channels,
    mixture_jet,
    squared_distance,
    tile_columns,
    zero_tiles,
)


@triton.jit
def weighted_jet(
    xs, z, stride, weights, rows, cols, depth, near, parameters,
    JETS: tl.constexpr, ORDER: tl.constexpr, D: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The derivatives 0..ORDER of the mixture for a tile of pairs, times the weights of its columns."""
    q = squared_distance(xs, z, stride, z, stride, rows, cols, depth, near, D, DOT, PRECISION, BLOCK_K)
    jet = mixture_jet(q, None, parameters, JETS, ORDER)
    weight = tl.load(weights + cols)[None, :]
    weighted = ()
    for k in tl.static_range(ORDER + 1):
        value = jet[k] * weight
        if EXCLUDE_SELF:
            value = tl.where(rows[:, None] == cols[None, :], 0.0, value)
        weighted = weighted + (value,)
    return weighted


@triton.jit
def multiply_add_rows(totals, factor, values, COUNT: tl.constexpr):
    """totals_k + factor * values_k of rows."""
    results = ()
    for k in tl.static_range(COUNT):
        results = results + (totals[k] + factor * values[k],)
    return results


@triton.jit
def value_sums(
    xs, z, stride, weights, rows, first, last, depth, near, parameters,
    JETS: tl.constexpr, D: tl.constexpr, EXCLUDE_SELF: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """sum_j w_j k_ij over the tiles first..last."""
    total = tl.zeros((rows.shape[0], BN), z.dtype.element_ty)
    for j in range(first, last):
        cols = tile_columns(j, BN)
        total += weighted_jet(
            xs, z, stride, weights, rows, cols, depth, near, parameters,
            JETS, 0, D, EXCLUDE_SELF, DOT, PRECISION, BLOCK_K,
        )[0]  # fmt: skip
    return tl.sum(total, 1)


@triton.jit
def gradient_sums(
    xs, z, stride, weights, rows, channel, centre, first, last, depth, near, parameters,
    JETS: tl.constexpr, D: tl.constexpr, EXCLUDE_SELF: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The same, and the sums of f' w_j (x_i - y_j): for D coordinates, or for D = 0 those of the block.

    Tile products take the sums of f' w_j and of f' w_j y_j, around a centre of the sources: elsewhere they cancel.
    """
    dtype: tl.constexpr = z.dtype.element_ty
    total = tl.zeros((rows.shape[0], BN), dtype)
    slopes = tl.zeros((rows.shape[0], BN), dtype)
    sums = zero_tiles(total, D)
    product = tl.zeros((rows.shape[0], channel.shape[0]), dtype)
    for j in range(first, last):
        cols = tile_columns(j, BN)
        value, slope = weighted_jet(
            xs, z, stride, weights, rows, cols, depth, near, parameters,
            JETS, 1, D, EXCLUDE_SELF, DOT, PRECISION, BLOCK_K,
        )  # fmt: skip
        total += value
        if D > 0:
            ys = load_channels(z, stride, cols, D)
            updated = ()
            for d in tl.static_range(D):
                updated = updated + (sums[d] + slope * (xs[d][:, None] - ys[d][None, :]),)
            sums = updated
        else:
            slopes += slope
            points = load_block(z, stride, cols, channel, depth) - centre[None, :]
            product += tl.dot(slope, points, input_precision=PRECISION, out_dtype=dtype)
    value = tl.sum(total, 1)
    if D > 0:
        return value, add_row_sums(zero_tiles(value, D), sums, D), product
    else:
        from_centre = load_block(z, stride, rows, channel, depth) - centre[None, :]
        return value, sums, tl.sum(slopes, 1)[:, None] * from_centre - product


@triton.jit(do_not_specialize=["x_tiles", "y_tiles", "depth", "dim", "chunks", "splits", "gradient_y"])
def mmd_kernel(
    z, weights, scales, centres, parameters, near, out, value_out,
    x_tiles, y_tiles, depth, dim, chunks, splits, gradient_y,
    JETS: tl.constexpr, D: tl.constexpr, GRADIENT: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Sums over both sets, for all rows of z (L of them, padding included).

    value_out [splits, B, 2, L]: sum_j w_j k_ij over the row's own set, and over the other one.
    out [splits, B, L, dim] with GRADIENT: scale_own grad(own sum) - grad(other sum), scales [B, 2] for x and y.

    Rows of y have no part in a gradient in x: without gradient_y they sum their own set only, and no gradient.
    D > 0 coordinates are in registers; D = 0 takes tile products, BC coordinates a program, around the centres
    [B, 2, depth] of x and y.
    """
    program = tl.program_id(0)
    n_tiles = x_tiles + y_tiles
    tile = program % n_tiles
    chunk = (program // n_tiles) % chunks
    split = (program // (n_tiles * chunks)) % splits
    batch = (program // (n_tiles * chunks * splits)).to(tl.int64)
    batches = tl.num_programs(0) // (n_tiles * chunks * splits)
    stride = n_tiles.to(tl.int64) * BM
    z += batch * depth * stride
    weights += batch * stride
    rows = tile.to(tl.int64) * BM + tl.arange(0, BM)
    in_y = tile >= x_tiles
    is_near = tl.load(near + batch) != 0
    dtype: tl.constexpr = z.dtype.element_ty
    xs = load_channels(z, stride, rows, D)
    channel = chunk * BC + tl.arange(0, BC)

    own_value = tl.zeros((BM,), dtype)
    other_value = tl.zeros((BM,), dtype)
    totals = zero_tiles(own_value, D)
    total = tl.zeros((BM, BC), dtype)
    own_scale = tl.load(scales + 2 * batch + in_y.to(tl.int32))
    active = gradient_y != 0
    active = active | (tile < x_tiles)
    for segment in range(tl.where(active, 2, 1)):  # the row's own set, the other one
        set_y = in_y == (segment == 0)
        offset = tl.where(set_y, x_tiles, 0) * (BM // BN)
        columns = tl.where(set_y, y_tiles, x_tiles).to(tl.int64) * BM
        begin, end = column_range(columns, True, split, splits, BN)
        centre = tl.load(
            centres + (2 * batch + set_y.to(tl.int32)) * depth + channel, mask=channel < depth, other=0.0
        )  # fmt: skip
        factor = tl.where(segment == 0, own_scale, -1.0).to(dtype)
        for first in range(offset + begin, offset + end, GROUP):
            last = tl.minimum(first + GROUP, offset + end)
            if GRADIENT:
                if active:
                    row_sum, sums, block = gradient_sums(
                        xs, z, stride, weights, rows, channel, centre, first, last, depth, is_near, parameters,
                        JETS, D, EXCLUDE_SELF, DOT, PRECISION, BLOCK_K, BN,
                    )  # fmt: skip
                    totals = multiply_add_rows(totals, factor, sums, D)
                    total += factor * block
                else:
                    row_sum = value_sums(
                        xs, z, stride, weights, rows, first, last, depth, is_near, parameters,
                        JETS, D, EXCLUDE_SELF, DOT, PRECISION, BLOCK_K, BN,
                    )  # fmt: skip
            else:
                row_sum = value_sums(
                    xs, z, stride, weights, rows, first, last, depth, is_near, parameters,
                    JETS, D, EXCLUDE_SELF, DOT, PRECISION, BLOCK_K, BN,
                )  # fmt: skip
            own_value += tl.where(segment == 0, row_sum, 0.0)
            other_value += tl.where(segment == 0, 0.0, row_sum)

    place = split.to(tl.int64) * batches + batch
    if chunk == 0:
        value_scale = tl.load(parameters)
        tl.store(value_out + 2 * place * stride + rows, own_value * value_scale)
        tl.store(value_out + (2 * place + 1) * stride + rows, other_value * value_scale)
    if GRADIENT:
        scale = tl.load(parameters + 1)
        row = place * stride + rows
        if D > 0:
            for d in tl.static_range(D):
                tl.store(out + row * D + d, totals[d] * scale)
        else:
            tl.store(out + row[:, None] * dim + channel[None, :], total * scale, mask=channel[None, :] < dim)
