"""Kernels of log sum_j e^beta_j k_ij and of averages with these weights, for more than a few coordinates or channels.

One sweep: what was added up so far is rescaled where a tile has a larger weight than any before.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gwf_fast.kernels.triton.averages import LN2, finite_origin, log_bound
from gwf_fast.kernels.triton.launch import GROUP as GROUP_TILES
from gwf_fast.kernels.triton.tiles import column_range, mixture_jet, tile_columns, zero_tiles
from gwf_fast.kernels.triton.wide_packing import STEP, panel_sizes
from gwf_fast.kernels.triton.wide_sums import add_wide, closeness, existing, load_values
from gwf_fast.kernels.triton.wide_tiles import (
    UNIT,
    add_halves,
    centred_columns,
    far_squares,
    half_parts,
    held_columns,
    load_rows,
    near_squares,
    product_of_thirds,
    thirds,
)

LOG2E = tl.constexpr(1.4426950408889634)
GROUP = tl.constexpr(GROUP_TILES)


@triton.jit
def average_sweep(
    raw, centre, norm64, hi, lo, norm, values, plane, v, v_row, v_stride, beta, parameters, scale,
    row, row_position, column_start, begin, end, count, close, length, dim, depth, width, channel, channels,
    JETS: tl.constexpr, EXPONENTS: tl.constexpr, C: tl.constexpr, BETA: tl.constexpr, COORDINATES: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr, NEAR: tl.constexpr, FLOAT64: tl.constexpr, PRODUCTS: tl.constexpr, K: tl.constexpr,
    BLOCK_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, SUB: tl.constexpr,
):  # fmt: skip
    """(sum of weight times value [BM, BC], sum of weights, base-2 logarithm of what both are over [BM])."""
    dtype: tl.constexpr = raw.dtype.element_ty
    wide: tl.constexpr = dtype if NEAR or not FLOAT64 else tl.float64
    HELD: tl.constexpr = (
        K == BC and BC == SUB and FLOAT64
    )  # the values of the program are the coordinates of its distances
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

    reference = tl.full((BM,), float("-inf"), dtype)
    mass = tl.zeros((BM,), dtype)
    total = zero_tiles(tl.zeros((BM, SUB), wide), BC // SUB if C else 0)
    group = mass  # rounding errors grow with the number of groups
    for j in range(begin, end):
        positions = tile_columns(j, BN)
        col = column_start + (tl.full((), BN, tl.int64) * j)
        exists = existing(col - column_start, count, BN)
        if NEAR:
            q = near_squares(xh, xl, x_norm, hi, lo, norm, row, col, depth, K, BLOCK_K, PRODUCTS, BM, BN)
        else:
            y64 = 0.0
            if K > 0 and FLOAT64:
                y64 = held_columns(raw, length, centre, col, k, BN, tl.float64)
            q = far_squares(
                xh, y64, raw, length, centre, norm64, row, col, exists, close, scale * scale, dim, depth, K, BLOCK_K,
                FLOAT64, BM, BN,
            )  # fmt: skip
        if BETA:
            given = tl.load(beta + positions, mask=exists, other=float("-inf"))
            log_weight = given.to(dtype) * LOG2E
        elif NEAR:
            log_weight = None  # columns that don't exist are at infinity
        else:
            log_weight = tl.where(exists, 0.0, float("-inf")).to(dtype)
        bound = log_bound(q, log_weight, row_position, positions, parameters, EXPONENTS, EXCLUDE_SELF)
        largest = tl.maximum(reference, tl.max(bound, 1))
        origin = finite_origin(largest)
        shrink = tl.exp2(reference - origin)
        reference = largest
        if log_weight is None:  # noqa: SIM108, one is decided when compiled
            shift = -origin[:, None]
        else:
            shift = log_weight[None, :] - origin[:, None]
        weight = mixture_jet(q, shift, parameters, JETS, 0)[0]
        if EXCLUDE_SELF:
            weight = tl.where(row_position[:, None] == positions[None, :], 0.0, weight)
        group = group * shrink + tl.sum(weight, 1)
        full = (j - begin) % GROUP == GROUP - 1
        mass = mass * shrink + tl.where(full, group, 0.0)
        group = tl.where(full, 0.0, group)
        if C:
            factor = shrink.to(wide)[:, None]
            added = ()
            if NEAR and COORDINATES:
                wh, wl = half_parts(weight)
                for block in tl.static_range(BC // SUB):
                    high = load_rows(hi + block * SUB, col, channel, depth, BN)
                    low = load_rows(lo + block * SUB, col, channel, depth, BN)
                    added = added + (total[block] * factor + add_halves(wh, wl, high, low, PRODUCTS),)
            elif NEAR:
                parts = thirds(weight)
                for block in tl.static_range(BC // SUB):
                    product = product_of_thirds(parts, values + block * SUB, plane, col, channel, width, PRODUCTS, BN)
                    added = added + (total[block] * factor + product,)
            elif COORDINATES and HELD:
                added = (tl.dot(weight.to(wide), tl.trans(y64), total[0] * factor, out_dtype=wide),)
            elif COORDINATES:
                for block in tl.static_range(BC // SUB):
                    there = centred_columns(raw, length, centre, col, channel + block * SUB, depth, BN, wide)
                    added = added + (add_wide(weight.to(wide), tl.trans(there), total[block] * factor),)
            else:
                for block in tl.static_range(BC // SUB):
                    there = load_values(v, v_row, v_stride, positions, exists, channel + block * SUB, channels, wide)
                    added = added + (add_wide(weight.to(wide), there, total[block] * factor),)
            total = added
    return total, mass + group, reference


@triton.jit(
    do_not_specialize=[
        "v_batch", "v_row", "v_stride", "n", "m", "n_tiles", "x_blocks", "blocks",
        "dim", "steps", "width_steps", "channels", "chunks", "splits", "near_limit", "smooth_limit", "share",
    ]
)  # fmt: skip
def wide_average_kernel(
    raw, centre, norm64, radius, hi, lo, norm, parameters, scales, dim, steps,
    values, v, beta, x_lengths, y_lengths, out, log_out, mass_out,
    v_batch, v_row, v_stride, n, m, n_tiles, x_blocks, blocks, width_steps,
    channels, chunks, splits, near_limit, smooth_limit, share,
    JETS: tl.constexpr, EXPONENTS: tl.constexpr, C: tl.constexpr, BETA: tl.constexpr, COORDINATES: tl.constexpr,
    X_LENGTHS: tl.constexpr, Y_LENGTHS: tl.constexpr, EXCLUDE_SELF: tl.constexpr, NEAR: tl.constexpr,
    FLOAT64: tl.constexpr, PRODUCTS: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, SUB: tl.constexpr,
):  # fmt: skip
    """log_out [B, n] and, where C, out [B, n, channels]; where columns are split, what combine_splits expects.

    Averages are of v or, with COORDINATES, of the sources.
    """
    x_length, length, depth = panel_sizes(x_blocks, blocks, steps)
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
    beta += batch * m
    if NEAR:
        hi += batch * length * depth
        lo += batch * length * depth
        norm += batch * length
        values += (batch * (length - x_length) - x_length) * width  # values have no rows for x
    plane = batches.to(tl.int64) * (length - x_length) * width
    total, mass, reference = average_sweep(
        raw, centre, norm64, hi, lo, norm, values, plane, v, v_row, v_stride, beta, parameters, scale, row, row + local,
        x_length, begin, end, y_count, close, length, dim, depth, width, channel, channels,
        JETS, EXPONENTS, C, BETA, COORDINATES, EXCLUDE_SELF, NEAR, FLOAT64, PRODUCTS, K, BLOCK_K, BM, BN, BC, SUB,
    )  # fmt: skip

    inside = existing(row, n, BM)
    exists = existing(row, x_count, BM)
    whole = splits == 1
    place = (split.to(tl.int64) * batches + batch) * n + row
    if chunk == 0:
        logarithm = (tl.where(mass == 0.0, 0.0, reference) + tl.log2(mass * tl.load(parameters))) * LN2
        logarithm = tl.where(whole, logarithm, reference)
        tl.store(log_out + place + local, tl.where(exists, logarithm, float("-inf")), mask=inside)
        if splits > 1:
            tl.store(mass_out + place + local, tl.where(exists, mass, 0.0), mask=inside)
    divisor = tl.where(whole, mass, 1.0)
    out += place * channels
    for block in tl.static_range(BC // SUB if C else 0):
        at = channel + block * SUB
        mean = total[block]
        if NEAR and COORDINATES:
            mean = mean / (scale * UNIT).to(mass.dtype)
        mean = mean.to(mass.dtype) / divisor[:, None]
        if COORDINATES:
            origin = tl.load(centre + at, mask=at < dim, other=0.0)
            mean += origin[None, :] * tl.where(whole, 1.0, mass)[:, None]
        tl.store(
            out + (local[:, None] * channels + at[None, :]),
            tl.where(exists[:, None], mean, 0.0),
            mask=inside[:, None] & (at < channels)[None, :],
        )
