"""Kernel of the squared maximum mean discrepancy for a few coordinates (wide_mmd.py: more).

Every sum and gradient that it needs comes from one pass over the pairs.
The sets x and y lie one after the other in z, each padded to whole tiles of rows, so that a tile of rows belongs to one
set. A program sweeps its own set, then the other one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gwf_fast.kernels.triton.tiles import (
    add_row_sums,
    column_range,
    load_channels,
    mixture_jet,
    scale_add_all,
    squared_distance,
    tile_columns,
    zero_tiles,
)


@triton.jit
def weighted_jet(
    xs, ys, weights, rows, cols, parameters,
    JETS: tl.constexpr, ORDER: tl.constexpr, D: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
):  # fmt: skip
    """The derivatives 0..ORDER of the mixture for a tile of pairs, times the weights of its columns."""
    jet = mixture_jet(squared_distance(xs, ys, D), None, parameters, JETS, ORDER)
    weight = tl.load(weights + cols)[None, :]
    weighted = ()
    for k in tl.static_range(ORDER + 1):
        value = jet[k] * weight
        if EXCLUDE_SELF:
            value = tl.where(rows[:, None] == cols[None, :], 0.0, value)
        weighted = weighted + (value,)
    return weighted


@triton.jit
def value_sums(
    xs, z, stride, weights, rows, first, last, parameters,
    JETS: tl.constexpr, D: tl.constexpr, EXCLUDE_SELF: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """sum_j w_j k_ij over the tiles first..last."""
    total = tl.zeros((rows.shape[0], BN), z.dtype.element_ty)
    for j in tl.range(first, last, num_stages=2):  # loads are ahead of the arithmetic
        cols = tile_columns(j, BN)
        ys = load_channels(z, stride, cols, D)
        total += weighted_jet(xs, ys, weights, rows, cols, parameters, JETS, 0, D, EXCLUDE_SELF)[0]
    return tl.sum(total, 1)


@triton.jit
def gradient_sums(
    xs, z, stride, weights, rows, first, last, parameters,
    JETS: tl.constexpr, D: tl.constexpr, EXCLUDE_SELF: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The same, and the D sums of f' w_j (x_i - y_j)."""
    total = tl.zeros((rows.shape[0], BN), z.dtype.element_ty)
    sums = zero_tiles(total, D)
    for j in tl.range(first, last, num_stages=2):  # loads are ahead of the arithmetic
        cols = tile_columns(j, BN)
        ys = load_channels(z, stride, cols, D)
        value, slope = weighted_jet(xs, ys, weights, rows, cols, parameters, JETS, 1, D, EXCLUDE_SELF)
        total += value
        updated = ()
        for d in tl.static_range(D):
            updated = updated + (sums[d] + slope * (xs[d][:, None] - ys[d][None, :]),)
        sums = updated
    value = tl.sum(total, 1)
    return value, add_row_sums(zero_tiles(value, D), sums, D)


@triton.jit(do_not_specialize=["x_tiles", "y_tiles", "splits", "gradient_y"])
def mmd_kernel(
    z, weights, scales, parameters, out, value_out,
    x_tiles, y_tiles, splits, gradient_y,
    JETS: tl.constexpr, D: tl.constexpr, GRADIENT: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Sums over both sets, for all rows of z (L of them, padding included), D <= 4.

    value_out [splits, B, 2, L]: sum_j w_j k_ij over the row's own set, and over the other one.
    out [splits, B, L, D] with GRADIENT: scale_own grad(own sum) - grad(other sum), scales [B, 2] for x and y.

    Rows of y have no part in a gradient in x: without gradient_y they sum their own set only, and no gradient.
    """
    program = tl.program_id(0)
    n_tiles = x_tiles + y_tiles
    tile = program % n_tiles
    split = (program // n_tiles) % splits
    batch = (program // (n_tiles * splits)).to(tl.int64)
    batches = tl.num_programs(0) // (n_tiles * splits)
    stride = n_tiles.to(tl.int64) * BM
    z += batch * D * stride
    weights += batch * stride
    rows = tile.to(tl.int64) * BM + tl.arange(0, BM)
    in_y = tile >= x_tiles
    dtype: tl.constexpr = z.dtype.element_ty
    xs = load_channels(z, stride, rows, D)

    own_value = tl.zeros((BM,), dtype)
    other_value = tl.zeros((BM,), dtype)
    totals = zero_tiles(own_value, D)
    own_scale = tl.load(scales + 2 * batch + in_y.to(tl.int32))
    active = gradient_y != 0
    active = active | (tile < x_tiles)
    for segment in range(tl.where(active, 2, 1)):  # the row's own set, the other one
        set_y = in_y == (segment == 0)
        offset = tl.where(set_y, x_tiles, 0) * (BM // BN)
        columns = tl.where(set_y, y_tiles, x_tiles).to(tl.int64) * BM
        begin, end = column_range(columns, True, split, splits, BN)
        factor = tl.where(segment == 0, own_scale, -1.0).to(dtype)
        for first in range(offset + begin, offset + end, GROUP):
            last = tl.minimum(first + GROUP, offset + end)
            if GRADIENT:
                if active:
                    row_sum, sums = gradient_sums(
                        xs, z, stride, weights, rows, first, last, parameters, JETS, D, EXCLUDE_SELF, BN
                    )  # fmt: skip
                    totals = scale_add_all(totals, factor, sums, D)
                else:
                    row_sum = value_sums(
                        xs, z, stride, weights, rows, first, last, parameters, JETS, D, EXCLUDE_SELF, BN
                    )  # fmt: skip
            else:
                row_sum = value_sums(
                    xs, z, stride, weights, rows, first, last, parameters, JETS, D, EXCLUDE_SELF, BN
                )  # fmt: skip
            own_value += tl.where(segment == 0, row_sum, 0.0)
            other_value += tl.where(segment == 0, 0.0, row_sum)

    place = split.to(tl.int64) * batches + batch
    value_scale = tl.load(parameters)
    tl.store(value_out + 2 * place * stride + rows, own_value * value_scale)
    tl.store(value_out + (2 * place + 1) * stride + rows, other_value * value_scale)
    if GRADIENT:
        scale = tl.load(parameters + 1)
        row = place * stride + rows
        for d in tl.static_range(D):
            tl.store(out + row * D + d, totals[d] * scale)
