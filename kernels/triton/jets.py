"""Kernel of the derivative operator: gradients of directional derivatives of sum_ij e^(alpha_i + beta_j) a_i.b_j k_ij.

With d = x_i - y_j, d1 and d2 its tangents, q = |d|^2, q1 = 2 d.d1, q2 = 2 d.d2, q12 = 2 d1.d2, A = a.b with tangents
A1, A2, A12, and f0, f1, ... the derivatives of the mixture in q, the gradients are

    in x_i: 2 sum_j (c0 d + c1 d1 + c2 d2)          in a_i: sum_j (p0 b_j + p1 db1_j + p2 db2_j)

with the coefficients of ``pair_coefficients``. All coordinates are scaled (tiles.py).
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
    multiply_add,
    tile_columns,
    zero_tiles,
)


@triton.jit
def pair_coefficients(f, q, inner, ORDER: tl.constexpr):
    """(c0, c1, c2, p0, p1, p2) from the jet f, q = (q1, q2, q12) and inner = (A, A1, A2, A12); unused ones are 0."""
    if ORDER == 0:
        return inner[0] * f[1], 0.0, 0.0, f[0], 0.0, 0.0
    elif ORDER == 1:
        c0 = inner[1] * f[1] + inner[0] * f[2] * q[0]
        return c0, inner[0] * f[1], 0.0, f[1] * q[0], f[0], 0.0
    else:
        psi1 = f[2] * q[0]
        psi2 = f[2] * q[1]
        psi12 = f[3] * q[0] * q[1] + f[2] * q[2]
        c0 = inner[3] * f[1] + inner[1] * psi2 + inner[2] * psi1 + inner[0] * psi12
        c1 = inner[2] * f[1] + inner[0] * psi2
        c2 = inner[1] * f[1] + inner[0] * psi1
        return c0, c1, c2, f[2] * q[0] * q[1] + f[1] * q[2], f[1] * q[1], f[1] * q[0]


@triton.jit
def jet_without_self(q, shift, rows, cols, parameters, JETS: tl.constexpr, ORDER: tl.constexpr, EXCLUDE: tl.constexpr):
    """The mixture's jet, zero where j == i if asked for."""
    f = mixture_jet(q, shift, parameters, JETS, ORDER)
    if EXCLUDE:
        kept = ()
        for k in tl.static_range(ORDER + 1):
            kept = kept + (tl.where(rows[:, None] == cols[None, :], 0.0, f[k]),)
        return kept
    else:
        return f


@triton.jit
def tile_differences(xs, ys, D: tl.constexpr):
    """The tiles x_i - y_j, one a coordinate."""
    tiles = ()
    for d in tl.static_range(D):
        tiles = tiles + (xs[d][:, None] - ys[d][None, :],)
    return tiles


@triton.jit
def tile_inner(left, right, K: tl.constexpr):
    """sum_k left_k right_k of tiles."""
    total = left[0] * right[0]
    for k in tl.static_range(1, K):
        total += left[k] * right[k]
    return total


@triton.jit
def outer_inner(left, right, K: tl.constexpr):
    """sum_k left_ik right_jk of values by row and by column."""
    total = left[0][:, None] * right[0][None, :]
    for k in tl.static_range(1, K):
        total += left[k][:, None] * right[k][None, :]
    return total


@triton.jit
def scale_add(totals, weight, tiles, K: tl.constexpr):
    """totals_k + weight * tiles_k."""
    results = ()
    for k in tl.static_range(K):
        results = results + (totals[k] + weight * tiles[k],)
    return results


@triton.jit(do_not_specialize=["n", "n_tiles", "m_tiles", "splits"])
def jet_kernel_few(
    x, y, a, b, dx1, dy1, da1, db1, dx2, dy2, da2, db2, alpha, beta,
    parameters, x_lengths, y_lengths, out_x, out_a, n, n_tiles, m_tiles, splits,
    JETS: tl.constexpr, ORDER: tl.constexpr, D: tl.constexpr, C: tl.constexpr, SHIFTED: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out_x [splits, B, n, D], out_a [splits, B, n, C] for D, C <= 4; alpha and beta hold base-2 logarithms."""
    program = tl.program_id(0)
    tile = program % n_tiles
    split = (program // n_tiles) % splits
    batch = (program // (n_tiles * splits)).to(tl.int64)
    batches = tl.num_programs(0) // (n_tiles * splits)
    x_stride = n_tiles.to(tl.int64) * BM
    y_stride = m_tiles.to(tl.int64) * BN
    rows = tile.to(tl.int64) * BM + tl.arange(0, BM)
    length = tl.load(x_lengths + batch)
    begin, end = column_range(tl.load(y_lengths + batch), tile.to(tl.int64) * BM < length, split, splits, BN)
    dtype: tl.constexpr = x.dtype.element_ty
    row_x = batch * D * x_stride + rows
    row_a = batch * C * x_stride + rows
    xs = load_channels(x, x_stride, row_x, D)
    a_s = load_channels(a, x_stride, row_a, C)
    if ORDER > 0:
        dx1s = load_channels(dx1, x_stride, row_x, D)
        da1s = load_channels(da1, x_stride, row_a, C)
    if ORDER > 1:
        dx2s = load_channels(dx2, x_stride, row_x, D)
        da2s = load_channels(da2, x_stride, row_a, C)
    if SHIFTED:
        row_shift = tl.load(alpha + batch * x_stride + rows)

    totals_x = zero_tiles(tl.zeros((BM,), dtype), D)
    totals_a = zero_tiles(tl.zeros((BM,), dtype), C)
    for first in range(begin, end, GROUP):
        sums_x = zero_tiles(tl.zeros((BM, BN), dtype), D)
        sums_a = zero_tiles(tl.zeros((BM, BN), dtype), C)
        for j in range(first, tl.minimum(first + GROUP, end)):
            cols = tile_columns(j, BN)
            col_y = batch * D * y_stride + cols
            col_b = batch * C * y_stride + cols
            bs = load_channels(b, y_stride, col_b, C)
            d0 = tile_differences(xs, load_channels(y, y_stride, col_y, D), D)
            q = tile_inner(d0, d0, D)
            shift = None
            if SHIFTED:
                shift = row_shift[:, None] + tl.load(beta + batch * y_stride + cols)[None, :]
            f = jet_without_self(q, shift, rows, cols, parameters, JETS, ORDER + 1, EXCLUDE_SELF)
            if ORDER == 0:
                c0, c1, c2, p0, p1, p2 = pair_coefficients(f, (), (outer_inner(a_s, bs, C),), 0)
            else:
                db1s = load_channels(db1, y_stride, col_b, C)
                d1 = tile_differences(dx1s, load_channels(dy1, y_stride, col_y, D), D)
                q1 = 2.0 * tile_inner(d0, d1, D)
                inner = outer_inner(a_s, bs, C)
                inner1 = outer_inner(da1s, bs, C) + outer_inner(a_s, db1s, C)
                if ORDER == 1:
                    c0, c1, c2, p0, p1, p2 = pair_coefficients(f, (q1,), (inner, inner1), 1)
                else:
                    db2s = load_channels(db2, y_stride, col_b, C)
                    d2 = tile_differences(dx2s, load_channels(dy2, y_stride, col_y, D), D)
                    q2 = 2.0 * tile_inner(d0, d2, D)
                    q12 = 2.0 * tile_inner(d1, d2, D)
                    inner2 = outer_inner(da2s, bs, C) + outer_inner(a_s, db2s, C)
                    inner12 = outer_inner(da1s, db2s, C) + outer_inner(da2s, db1s, C)
                    c0, c1, c2, p0, p1, p2 = pair_coefficients(f, (q1, q2, q12), (inner, inner1, inner2, inner12), 2)
            sums_x = scale_add(sums_x, c0, d0, D)
            sums_a = multiply_add(sums_a, p0, bs, C)
            if ORDER > 0:
                sums_x = scale_add(sums_x, c1, d1, D)
                sums_a = multiply_add(sums_a, p1, db1s, C)
            if ORDER > 1:
                sums_x = scale_add(sums_x, c2, d2, D)
                sums_a = multiply_add(sums_a, p2, db2s, C)
        totals_x = add_row_sums(totals_x, sums_x, D)
        totals_a = add_row_sums(totals_a, sums_a, C)

    scale_a = tl.load(parameters)
    scale_x = tl.load(parameters + 1)
    inside = rows < n
    valid = rows < length
    row = (split.to(tl.int64) * batches + batch) * n + rows
    for d in tl.static_range(D):
        tl.store(out_x + row * D + d, tl.where(valid, totals_x[d] * scale_x, 0.0), mask=inside)
    for c in tl.static_range(C):
        tl.store(out_a + row * C + c, tl.where(valid, totals_a[c] * scale_a, 0.0), mask=inside)


@triton.jit
def block_product(weight, pointer, stride, index, channel, channels, PRECISION: tl.constexpr):
    """sum_j weight_ij value_jc for the channels of the block."""
    values = load_block(pointer, stride, index, channel, channels)
    return tl.dot(weight, values, input_precision=PRECISION, out_dtype=weight.dtype)


@triton.jit
def pair_scalars(x, x_stride, y, y_stride, dx1, dy1, dx2, dy2, row_x, col_y, depth, ORDER: tl.constexpr):
    """q and (q1, q2, q12) of a tile, from coordinates read as they are needed."""
    q = tl.zeros((row_x.shape[0], col_y.shape[0]), x.dtype.element_ty)
    q1 = tl.zeros_like(q)
    q2 = tl.zeros_like(q)
    q12 = tl.zeros_like(q)
    for k in range(depth):
        row = row_x + k * x_stride
        col = col_y + k * y_stride
        d0 = tl.load(x + row)[:, None] - tl.load(y + col)[None, :]
        q += d0 * d0
        if ORDER > 0:
            d1 = tl.load(dx1 + row)[:, None] - tl.load(dy1 + col)[None, :]
            q1 += d0 * d1
        if ORDER > 1:
            d2 = tl.load(dx2 + row)[:, None] - tl.load(dy2 + col)[None, :]
            q2 += d0 * d2
            q12 += d1 * d2
    return q, 2.0 * q1, 2.0 * q2, 2.0 * q12


@triton.jit
def pair_inner(
    a, b, da1, db1, da2, db2, a_stride, b_stride, row_a, col_b, channels,
    BM: tl.constexpr, BN: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """a.b and its tangents (A, A1, A2, A12) of a tile, channels read as they are needed."""
    inner = tl.zeros((BM, BN), a.dtype.element_ty)
    inner1 = tl.zeros_like(inner)
    inner2 = tl.zeros_like(inner)
    inner12 = tl.zeros_like(inner)
    for k in range(channels):
        row = row_a + k * a_stride
        col = col_b + k * b_stride
        left = tl.load(a + row)[:, None]
        right = tl.load(b + col)[None, :]
        inner += left * right
        if ORDER > 0:
            left1 = tl.load(da1 + row)[:, None]
            right1 = tl.load(db1 + col)[None, :]
            inner1 += left1 * right + left * right1
        if ORDER > 1:
            left2 = tl.load(da2 + row)[:, None]
            right2 = tl.load(db2 + col)[None, :]
            inner2 += left2 * right + left * right2
            inner12 += left1 * right2 + left2 * right1
    return inner, inner1, inner2, inner12


@triton.jit(do_not_specialize=["n", "n_tiles", "m_tiles", "splits", "depth", "dim", "channels", "chunks"])
def jet_kernel_many(
    x, y, a, b, dx1, dy1, da1, db1, dx2, dy2, da2, db2, alpha, beta,
    parameters, x_lengths, y_lengths, out_x, out_a, n, n_tiles, m_tiles, splits, depth, dim, channels, chunks,
    JETS: tl.constexpr, ORDER: tl.constexpr, SHIFTED: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The same for any D and C: BC columns of out_x [splits, B, n, dim], out_a [splits, B, n, channels] a program."""
    program = tl.program_id(0)
    tile = program % n_tiles
    chunk = (program // n_tiles) % chunks
    split = (program // (n_tiles * chunks)) % splits
    batch = (program // (n_tiles * chunks * splits)).to(tl.int64)
    batches = tl.num_programs(0) // (n_tiles * chunks * splits)
    x_stride = n_tiles.to(tl.int64) * BM
    y_stride = m_tiles.to(tl.int64) * BN
    rows = tile.to(tl.int64) * BM + tl.arange(0, BM)
    length = tl.load(x_lengths + batch)
    begin, end = column_range(tl.load(y_lengths + batch), tile.to(tl.int64) * BM < length, split, splits, BN)
    dtype: tl.constexpr = x.dtype.element_ty
    channel = chunk * BC + tl.arange(0, BC)
    row_x = batch * depth * x_stride + rows
    row_a = batch * channels * x_stride + rows

    total_x = tl.zeros((BM, BC), dtype)
    total_a = tl.zeros((BM, BC), dtype)
    mass0 = tl.zeros((BM,), dtype)
    mass1 = tl.zeros((BM,), dtype)
    mass2 = tl.zeros((BM,), dtype)
    for j in range(begin, end):
        cols = tile_columns(j, BN)
        col_y = batch * depth * y_stride + cols
        col_b = batch * channels * y_stride + cols
        q, q1, q2, q12 = pair_scalars(x, x_stride, y, y_stride, dx1, dy1, dx2, dy2, row_x, col_y, depth, ORDER)
        shift = None
        if SHIFTED:
            row_shift = tl.load(alpha + batch * x_stride + rows)
            shift = row_shift[:, None] + tl.load(beta + batch * y_stride + cols)[None, :]
        f = jet_without_self(q, shift, rows, cols, parameters, JETS, ORDER + 1, EXCLUDE_SELF)
        inner = pair_inner(
            a, b, da1, db1, da2, db2, x_stride, y_stride, row_a, col_b, channels, BM, BN, ORDER
        )  # fmt: skip
        c0, c1, c2, p0, p1, p2 = pair_coefficients(f, (q1, q2, q12), inner, ORDER)
        mass0 += tl.sum(c0, 1)
        total_x -= block_product(c0, y, y_stride, col_y, channel, depth, PRECISION)
        total_a += block_product(p0, b, y_stride, col_b, channel, channels, PRECISION)
        if ORDER > 0:
            mass1 += tl.sum(c1, 1)
            total_x -= block_product(c1, dy1, y_stride, col_y, channel, depth, PRECISION)
            total_a += block_product(p1, db1, y_stride, col_b, channel, channels, PRECISION)
        if ORDER > 1:
            mass2 += tl.sum(c2, 1)
            total_x -= block_product(c2, dy2, y_stride, col_y, channel, depth, PRECISION)
            total_a += block_product(p2, db2, y_stride, col_b, channel, channels, PRECISION)

    total_x += mass0[:, None] * load_block(x, x_stride, row_x, channel, depth)
    if ORDER > 0:
        total_x += mass1[:, None] * load_block(dx1, x_stride, row_x, channel, depth)
    if ORDER > 1:
        total_x += mass2[:, None] * load_block(dx2, x_stride, row_x, channel, depth)
    inside = (rows < n)[:, None]
    valid = (rows < length)[:, None]
    scaled_x = tl.where(valid, total_x * tl.load(parameters + 1), 0.0)
    scaled_a = tl.where(valid, total_a * tl.load(parameters), 0.0)
    row = (split.to(tl.int64) * batches + batch) * n + rows[:, None]
    tl.store(out_x + row * dim + channel[None, :], scaled_x, mask=inside & (channel[None, :] < dim))
    tl.store(out_a + row * channels + channel[None, :], scaled_a, mask=inside & (channel[None, :] < channels))
