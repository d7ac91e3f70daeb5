"""Kernels of sums and gradients with more than a few coordinates or channels, one pass over the pairs."""

from __future__ import annotations

import triton
import triton.language as tl

from gwf_fast.kernels.triton.tiles import (
    add_row_sums,
    column_range,
    mixture_jet,
    multiply_add,
    tile_columns,
    zero_tiles,
)
from gwf_fast.kernels.triton.wide_packing import STEP, panel_sizes
from gwf_fast.kernels.triton.wide_tiles import (
    centred_columns,
    far_squares,
    held_columns,
    load_rows,
    near_squares,
    product_of_thirds,
    thirds,
)


@triton.jit
def closeness(radius, near_limit, smooth_limit, share):
    """(whether products of halves serve, squared distance below which float64 products do not)."""
    largest = radius.to(tl.float32, bitcast=True)
    close = tl.where(largest <= smooth_limit, -1.0, tl.where(largest < float("inf"), largest * share, float("inf")))
    return largest <= near_limit, close


@triton.jit
def existing(first, count, COLS: tl.constexpr):
    """Which of the COLS positions from the first on exist."""
    return tl.arange(0, COLS) < tl.minimum(count - first, COLS)


@triton.jit
def load_weights(b, positions, exists, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """COUNT channels of weights [M, COUNT] as a tuple, 0 where there is no column; for COUNT = 0, ones."""
    values = (exists.to(DTYPE),)
    if COUNT > 0:
        values = ()
        for c in tl.static_range(COUNT):
            values = values + (tl.load(b + positions * COUNT + c, mask=exists, other=0.0).to(DTYPE),)
    return values


@triton.jit
def load_values(v, row_stride, stride, positions, exists, channel, channels, DTYPE: tl.constexpr):
    """Values [positions, channel] as they were given, 0 where there are none."""
    inside = exists[:, None] & (channel < channels)[None, :]
    place = positions[:, None] * row_stride + channel[None, :].to(tl.int64) * stride
    return tl.load(v + place, mask=inside, other=0.0).to(DTYPE)


@triton.jit
def add_wide(weight, values, total):
    """total + weight values, in the type of both."""
    return tl.dot(weight, values, total, input_precision="ieee", out_dtype=total.dtype)


@triton.jit
def tile_jet(
    xh, xl, x_norm, raw, centre, norm64, hi, lo, norm, parameters, square_scale, row, row_position, col, positions,
    exists, close, length, dim, depth,
    JETS: tl.constexpr, ORDER: tl.constexpr, EXCLUDE_SELF: tl.constexpr, NEAR: tl.constexpr, FLOAT64: tl.constexpr,
    PRODUCTS: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The mixture and its derivative of order ORDER in a tile, and the float64 coordinates of its columns if held."""
    y64 = 0.0
    if NEAR:
        q = near_squares(xh, xl, x_norm, hi, lo, norm, row, col, depth, K, BLOCK_K, PRODUCTS, BM, BN)
    else:
        if K > 0 and FLOAT64:
            y64 = held_columns(raw, length, centre, col, tl.arange(0, K), BN, tl.float64)
        q = far_squares(
            xh, y64, raw, length, centre, norm64, row, col, exists, close, square_scale, dim, depth,
            K, BLOCK_K, FLOAT64, BM, BN,
        )  # fmt: skip
    jet = mixture_jet(q, None, parameters, JETS, ORDER)
    kernel = jet[0]
    f = jet[ORDER]
    if EXCLUDE_SELF:
        itself = row_position[:, None] == positions[None, :]
        kernel = tl.where(itself, 0.0, kernel)
        f = tl.where(itself, 0.0, f)
    return kernel, f, y64


@triton.jit
def sweep(
    raw, centre, norm64, hi, lo, norm, values, plane, v, v_row, v_stride, b, parameters, square_scale,
    row, row_position, column_start, begin, end, count, close, length, dim, depth, width, channel, channels,
    JETS: tl.constexpr, ORDER: tl.constexpr, C: tl.constexpr, COUNT: tl.constexpr, WITH_VALUE: tl.constexpr,
    COORDINATES: tl.constexpr, EXCLUDE_SELF: tl.constexpr, NEAR: tl.constexpr, FLOAT64: tl.constexpr,
    PRODUCTS: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BC: tl.constexpr, SUB: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Sums over the columns begin..end (tiles) of a set that starts at column_start of the panels.

    For C > 0: (C sums of f b, (), 0, 0). For C = 0: (), then sum_j f_ij b_j v_j in blocks [BM, SUB], sum_j f_ij b_j
    and, WITH_VALUE, sum_j k_ij b_j [BM]. f is the derivative of order ORDER of the mixture. NEAR computes in halves
    and thirds, else distances and products are in float64, and the values are read as they were given: coordinates
    less the centre from raw, or v. Sums are in groups of GROUP tiles: rounding errors grow with the number of groups.
    """
    dtype: tl.constexpr = raw.dtype.element_ty
    wide: tl.constexpr = dtype if NEAR or not FLOAT64 else tl.float64
    HELD: tl.constexpr = K == BC and BC == SUB and FLOAT64  # the program's values are the coordinates of its distances
    k = tl.arange(0, K if K > 0 else BLOCK_K)
    xh = 0.0
    xl = 0.0
    x_norm = 0.0
    if NEAR:
        x_norm = tl.load(norm + row + tl.arange(0, BM))
        if K > 0:
            xh = load_rows(hi, row, k, depth, BM)
            xl = load_rows(lo, row, k, depth, BM)
    elif K > 0 and FLOAT64:
        xh = held_columns(raw, length, centre, row, k, BM, tl.float64)

    totals = zero_tiles(tl.zeros((BM,), dtype), C)
    total = zero_tiles(tl.zeros((BM, SUB), wide), 0 if C > 0 else BC // SUB)
    mass = tl.zeros((BM,), wide)
    value = tl.zeros((BM,), dtype)
    if C > 0:
        for first in range(begin, end, GROUP):
            sums = zero_tiles(tl.zeros((BM, BN), dtype), C)
            for j in range(first, tl.minimum(first + GROUP, end)):
                positions = tile_columns(j, BN)
                col = column_start + tl.full((), BN, tl.int64) * j
                exists = existing(col - column_start, count, BN)
                kernel, f, y64 = tile_jet(
                    xh, xl, x_norm, raw, centre, norm64, hi, lo, norm, parameters, square_scale, row, row_position, col,
                    positions, exists, close, length, dim, depth,
                    JETS, ORDER, EXCLUDE_SELF, NEAR, FLOAT64, PRODUCTS, K, BLOCK_K, BM, BN,
                )  # fmt: skip
                sums = multiply_add(sums, f, load_weights(b, positions, exists, COUNT, dtype), C)
            totals = add_row_sums(totals, sums, C)
    else:
        group_mass = mass
        group_value = value
        for j in range(begin, end):
            positions = tile_columns(j, BN)
            col = column_start + tl.full((), BN, tl.int64) * j
            exists = existing(col - column_start, count, BN)
            kernel, f, y64 = tile_jet(
                xh, xl, x_norm, raw, centre, norm64, hi, lo, norm, parameters, square_scale, row, row_position, col,
                positions, exists, close, length, dim, depth,
                JETS, ORDER, EXCLUDE_SELF, NEAR, FLOAT64, PRODUCTS, K, BLOCK_K, BM, BN,
            )  # fmt: skip
            weight = load_weights(b, positions, exists, COUNT, dtype)[0][None, :]
            if COORDINATES:
                f = f * weight
            added = ()
            if NEAR:
                parts = thirds(f)
                for block in tl.static_range(BC // SUB):
                    product = product_of_thirds(parts, values + block * SUB, plane, col, channel, width, PRODUCTS, BN)
                    added = added + (total[block] + product,)
            elif COORDINATES and HELD:
                added = (tl.dot(f.to(wide), tl.trans(y64), total[0], out_dtype=wide),)
            elif COORDINATES:
                for block in tl.static_range(BC // SUB):
                    there = centred_columns(raw, length, centre, col, channel + block * SUB, depth, BN, wide)
                    added = added + (add_wide(f.to(wide), tl.trans(there), total[block]),)
            else:
                for block in tl.static_range(BC // SUB):
                    there = load_values(v, v_row, v_stride, positions, exists, channel + block * SUB, channels, wide)
                    added = added + (add_wide(f.to(wide), there, total[block]),)
            total = added
            full = (j - begin) % GROUP == GROUP - 1
            if COORDINATES:
                group_mass += tl.sum(f.to(wide), 1)
                mass = tl.where(full, mass + group_mass, mass)
                group_mass = tl.where(full, 0.0, group_mass)
            if WITH_VALUE:
                group_value += tl.sum(kernel * weight, 1)
                value = tl.where(full, value + group_value, value)
                group_value = tl.where(full, 0.0, group_value)
        mass += group_mass
        value += group_value
    return totals, total, mass, value


@triton.jit
def gradient_of(
    raw, centre, row, channel, dim, length, scale, total, mass, NEAR: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """sum_j w_ij (x_i - y_j) for scaled coordinates, from the sums around the centre."""
    dtype: tl.constexpr = total.dtype
    if NEAR:  # scaled as packing does
        here = tl.trans(centred_columns(raw, length, centre, row, channel, dim, BM, tl.float64))
        return (here * scale).to(tl.float32) * mass[:, None] - total
    else:
        here = tl.trans(centred_columns(raw, length, centre, row, channel, dim, BM, dtype))
        return (here * mass[:, None] - total) * scale.to(dtype)


@triton.jit(
    do_not_specialize=[
        "v_batch", "v_row", "v_stride", "n", "m", "n_tiles", "row_blocks", "column_blocks", "blocks",
        "dim", "steps", "width_steps", "channels", "chunks", "splits", "near_limit", "smooth_limit", "share",
    ]
)  # fmt: skip
def wide_sum_kernel(
    raw, centre, norm64, radius, hi, lo, norm, parameters, scales, dim, steps,
    values, v, b, x_lengths, y_lengths, out, value_out, v_batch, v_row, v_stride, n, m, n_tiles,
    row_blocks, column_blocks, blocks, width_steps, channels, chunks, splits, near_limit, smooth_limit, share,
    JETS: tl.constexpr, SLOPE: tl.constexpr, ORDER: tl.constexpr, C: tl.constexpr, COUNT: tl.constexpr,
    WITH_VALUE: tl.constexpr, COORDINATES: tl.constexpr, X_LENGTHS: tl.constexpr, Y_LENGTHS: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr, NEAR: tl.constexpr, FLOAT64: tl.constexpr, PRODUCTS: tl.constexpr, K: tl.constexpr,
    BLOCK_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, SUB: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [splits, B, n, channels], each split of a range of the m columns; the caller adds them up.

    Rows and columns are those of the panels from block row_blocks and column_blocks on.

    Two launches, NEAR and not, of which one finds its cloud. C > 0 channels are added up in registers: sum_j k_ij b_j.
    C = 0 takes products with BC values a program: the sum of k_ij v_j, or with COORDINATES the gradient
    sum_j b_j grad_x k_ij and, WITH_VALUE, value_out [splits, B, n]. JETS leave a factor SLOPE of the derivative out.
    """
    row_start, length, depth = panel_sizes(row_blocks, blocks, steps)
    column_start, _, _ = panel_sizes(column_blocks, blocks, steps)
    width = width_steps * STEP
    program = tl.program_id(0)
    tile = program % n_tiles
    chunk = (program // n_tiles) % chunks
    split = (program // (n_tiles * chunks)) % splits
    batch = (program // (n_tiles * chunks * splits)).to(tl.int64)
    batches = tl.num_programs(0) // (n_tiles * chunks * splits)
    row = tile.to(tl.int64) * BM
    local = tl.arange(0, BM)
    x_count = n.to(tl.int64)
    y_count = m.to(tl.int64)
    if X_LENGTHS:
        x_count = tl.minimum(tl.load(x_lengths + batch), n)
    if Y_LENGTHS:
        y_count = tl.minimum(tl.load(y_lengths + batch), m)
    begin, end = column_range(y_count, row < x_count, split, splits, BN)
    is_near, close = closeness(tl.load(radius + batch), near_limit, smooth_limit, share)
    if is_near != NEAR:
        return
    scale = tl.load(scales)
    channel = chunk * BC + tl.arange(0, SUB)
    raw += batch * depth * length
    centre += batch * depth
    norm64 += batch * length
    v += batch * v_batch
    b += batch * m * COUNT
    if NEAR:
        hi += batch * length * depth
        lo += batch * length * depth
        norm += batch * length
        value_rows = length if COORDINATES else length - column_start  # values have rows for y only
        values += (batch * value_rows - (length - value_rows)) * width
    plane = batches.to(tl.int64) * (length if COORDINATES else length - column_start) * width
    totals, total, mass, value = sweep(
        raw, centre, norm64, hi, lo, norm, values, plane, v, v_row, v_stride, b, parameters, scale * scale,
        row_start + row, row + local, column_start, begin, end, y_count, close, length, dim, depth, width, channel,
        channels, JETS, ORDER, C, COUNT, WITH_VALUE, COORDINATES, EXCLUDE_SELF, NEAR, FLOAT64, PRODUCTS, K, BLOCK_K, BM,
        BN, BC, SUB, GROUP,
    )  # fmt: skip
    factor = tl.load(parameters + (1 if COORDINATES else ORDER)) * SLOPE
    inside = existing(row, n, BM)
    exists = existing(row, x_count, BM)
    place = (split.to(tl.int64) * batches + batch) * n + row
    out += place * channels
    for c in tl.static_range(C):
        tl.store(out + local * channels + c, tl.where(exists, totals[c] * factor, 0.0), mask=inside)
    if C == 0:
        for block in tl.static_range(BC // SUB):
            at = channel + block * SUB
            result = total[block]
            if COORDINATES:
                result = gradient_of(
                    raw, centre, row_start + row, at, dim, length, scale, result, mass, NEAR, BM
                )  # fmt: skip
            tl.store(
                out + (local[:, None] * channels + at[None, :]),
                tl.where(exists[:, None], result.to(factor.dtype) * factor, 0.0),
                mask=inside[:, None] & (at < channels)[None, :],
            )
        if WITH_VALUE:  # noqa: SIM102, one is decided when compiled and one at run time
            if chunk == 0:
                tl.store(value_out + place + local, tl.where(exists, value * tl.load(parameters), 0.0), mask=inside)
