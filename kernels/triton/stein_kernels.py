"""Kernels of the Stein operator: csrc/stein/stein.h's formulas on tiles of pairs.

Points and scores are [B, N, D] for D coordinates in registers; for D = 0 the number of coordinates is known at run
time, and the first two arguments are [B, dim, N].
"""

from __future__ import annotations

import triton
import triton.language as tl

from gwf_fast.kernels.triton.direct import load_all, number
from gwf_fast.kernels.triton.tiles import add_row_sums, mixture_jet, tile_columns, zero_tiles


@triton.jit
def pair_products(
    x, score, xs, scores, stride, rows, cols, dim, D: tl.constexpr, ALL: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """|x_i - x_j|^2 and, with ALL, (s_i - s_j).(x_i - x_j) and s_i.s_j of a tile."""
    q = tl.zeros((rows.shape[0], cols.shape[0]), DTYPE)
    mixed = tl.zeros_like(q)
    product = tl.zeros_like(q)
    if D > 0:
        x_cols = load_all(x, cols, D, DTYPE)
        score_cols = load_all(score, cols, D, DTYPE)
        for k in tl.static_range(D):
            d = xs[k][:, None] - x_cols[k][None, :]
            q += d * d
            if ALL:
                left = scores[k][:, None]
                right = score_cols[k][None, :]
                mixed += (left - right) * d
                product += left * right
    else:
        for k in range(dim):
            d = tl.load(x + k * stride + rows).to(DTYPE)[:, None] - tl.load(x + k * stride + cols).to(DTYPE)[None, :]
            q += d * d
            if ALL:
                left = tl.load(score + k * stride + rows).to(DTYPE)[:, None]
                right = tl.load(score + k * stride + cols).to(DTYPE)[None, :]
                mixed += (left - right) * d
                product += left * right
    return q, mixed, product


@triton.jit(do_not_specialize=["scale2", "n", "tiles", "dim", "splits"])
def stein_value_kernel(
    x, score, parameters, out, scale2, n, tiles, dim, splits,
    JETS: tl.constexpr, D: tl.constexpr, DIAGONAL: tl.constexpr, DTYPE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out [B, splits, tiles]: sums of U over a tile of rows and the tiles after it, around a circle.

    Row tile i meets column tiles i, i + 1, ... as far as half of the circle, which has every two tiles meet once and
    gives all programs the same work; a tile is BM x BM, taken BN columns at a time.
    """
    program = tl.program_id(0)
    tile = program % tiles
    split = (program // tiles) % splits
    batch = (program // (tiles * splits)).to(tl.int64)
    x += batch * n * dim
    score += batch * n * dim
    row = tile.to(tl.int64) * BM + tl.arange(0, BM)
    rows = tl.minimum(row, n - 1)
    xs = load_all(x, rows, D, DTYPE)
    scores = load_all(score, rows, D, DTYPE)
    rate = number(scale2, DTYPE)
    stride = n.to(tl.int64)
    met = (tiles - 1) // 2 + 1 + ((tiles % 2 == 0) & (tile < tiles // 2)).to(tl.int32)
    share = tl.cdiv(met, splits)
    total = tl.zeros((BM,), tl.float64)
    for offset in range(split * share, tl.minimum(split * share + share, met)):
        other = (tile + offset) % tiles
        sums = tl.zeros((BM,), DTYPE)
        for part in range(BM // BN):
            col = other.to(tl.int64) * BM + part * BN + tl.arange(0, BN)
            cols = tl.minimum(col, n - 1)
            q, mixed, product = pair_products(x, score, xs, scores, stride, rows, cols, dim, D, True, DTYPE)
            t = q * rate
            f0, f1, f2 = mixture_jet(t, None, parameters, JETS, 2)
            u = f0 * product - 2.0 * rate * (f1 * (mixed + dim) + 2.0 * t * f2)
            counts = (row[:, None] < n) & (col[None, :] < n)
            if not DIAGONAL:
                counts = counts & (row[:, None] != col[None, :])
            sums += tl.sum(tl.where(counts, u, 0.0), 1)
        total += tl.where(offset == 0, 1.0, 2.0) * sums.to(tl.float64)
    tl.store(out + program, tl.sum(total, 0) * tl.load(parameters).to(tl.float64))


@triton.jit(do_not_specialize=["scale2", "n", "tiles", "dim", "chunks", "splits"])
def stein_gradient_kernel(
    x, score, parameters, x_rows, score_rows, out_x, out_score, scale2, n, tiles, dim, chunks, splits,
    JETS: tl.constexpr, D: tl.constexpr, DIAGONAL: tl.constexpr, WITH_X: tl.constexpr, DTYPE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Derivatives of sum_ij U_ij in x_i and s_i [splits, B, n, dim]; without WITH_X half of the latter: SVGD's sums.

    With c = phi' s_i.s_j - 2 phi'' ((s_i - s_j).d + D + 2) - 4 r^2 phi''': dU/dx_i = 2 c d - 2 phi' (s_i - s_j) and
    dU/ds_i = phi s_j - 2 phi' d. Tile products take the sums over s_j and x_j, BC coordinates a program, around the
    first point of the tile of rows: sums of differences do not mind where the origin is, their rounding does.
    """
    program = tl.program_id(0)
    tile = program % tiles
    chunk = (program // tiles) % chunks
    split = (program // (tiles * chunks)) % splits
    batch = (program // (tiles * chunks * splits)).to(tl.int64)
    batches = tl.num_programs(0) // (tiles * chunks * splits)
    x += batch * n * dim
    score += batch * n * dim
    x_rows += batch * n * dim
    score_rows += batch * n * dim
    row = tile.to(tl.int64) * BM + tl.arange(0, BM)
    rows = tl.minimum(row, n - 1)
    xs = load_all(x, rows, D, DTYPE)
    scores = load_all(score, rows, D, DTYPE)
    rate = number(scale2, DTYPE)
    stride = n.to(tl.int64)
    column_tiles = tl.cdiv(n, BN)
    share = tl.cdiv(column_tiles, splits)
    begin = split * share
    end = tl.minimum(begin + share, column_tiles)
    channel = chunk * BC + tl.arange(0, BC)
    there = channel[None, :] < dim
    origin = tl.load(x_rows + tile.to(tl.int64) * BM * dim + channel, mask=channel < dim, other=0.0).to(DTYPE)

    row_zero = tl.zeros((BM,), DTYPE)
    x_totals = zero_tiles(row_zero, D if WITH_X else 0)
    score_totals = zero_tiles(row_zero, D)
    x_total = tl.zeros((BM, BC), DTYPE)
    score_total = tl.zeros((BM, BC), DTYPE)
    slope_total = tl.zeros((BM,), DTYPE)
    force_total = tl.zeros((BM,), DTYPE)
    for first in range(begin, end, GROUP):
        zero = tl.zeros((BM, BN), DTYPE)
        x_sums = zero_tiles(zero, D if WITH_X else 0)
        score_sums = zero_tiles(zero, D)
        x_group = tl.zeros((BM, BC), DTYPE)
        score_group = tl.zeros((BM, BC), DTYPE)
        slopes = tl.zeros((BM, BN), DTYPE)
        forces = tl.zeros((BM, BN), DTYPE)
        for j in range(first, tl.minimum(first + GROUP, end)):
            col = tile_columns(j, BN)
            cols = tl.minimum(col, n - 1)
            q, mixed, product = pair_products(x, score, xs, scores, stride, rows, cols, dim, D, WITH_X, DTYPE)
            exists = col[None, :] < n
            differs = exists & (
                row[:, None] != col[None, :]
            )  # of a point and itself, differences are 0: not by rounding
            t = q * rate
            jet = mixture_jet(t, None, parameters, JETS, 3 if WITH_X else 1)
            value = tl.where(exists if DIAGONAL else differs, jet[0], 0.0)
            slope = tl.where(differs, 2.0 * rate * jet[1], 0.0)  # 2 phi'
            force = zero
            if WITH_X:
                force = jet[1] * product - rate * (2.0 * jet[2] * (mixed + (dim + 2)) + 4.0 * t * jet[3])
                force = tl.where(differs, 2.0 * rate * force, 0.0)  # 2 c
            if D > 0:
                x_cols = load_all(x, cols, D, DTYPE)
                score_cols = load_all(score, cols, D, DTYPE)
                x_updated = ()
                score_updated = ()
                for k in tl.static_range(D):
                    d = xs[k][:, None] - x_cols[k][None, :]
                    s_j = score_cols[k][None, :]
                    score_updated = score_updated + (score_sums[k] + (value * s_j - slope * d),)
                    if WITH_X:
                        x_updated = x_updated + (x_sums[k] + (force * d - slope * (scores[k][:, None] - s_j)),)
                x_sums = x_updated
                score_sums = score_updated
            else:
                place = cols[:, None] * dim + channel[None, :]
                points = tl.load(x_rows + place, mask=there, other=0.0).to(DTYPE) - origin[None, :]
                drives = tl.load(score_rows + place, mask=there, other=0.0).to(DTYPE)
                score_group += tl.dot(value, drives, input_precision="ieee", out_dtype=DTYPE)
                score_group += tl.dot(slope, points, input_precision="ieee", out_dtype=DTYPE)
                slopes += slope
                if WITH_X:
                    x_group += tl.dot(slope, drives, input_precision="ieee", out_dtype=DTYPE)
                    x_group -= tl.dot(force, points, input_precision="ieee", out_dtype=DTYPE)
                    forces += force
        x_totals = add_row_sums(x_totals, x_sums, D if WITH_X else 0)
        score_totals = add_row_sums(score_totals, score_sums, D)
        x_total += x_group
        score_total += score_group
        slope_total += tl.sum(slopes, 1)
        force_total += tl.sum(forces, 1)

    factor = tl.load(parameters) * (2.0 if WITH_X else 1.0)
    at = ((split.to(tl.int64) * batches + batch) * n + row) * dim
    inside = row < n
    if D > 0:
        for k in tl.static_range(D):
            tl.store(out_score + at + k, score_totals[k] * factor, mask=inside)
            if WITH_X:
                tl.store(out_x + at + k, x_totals[k] * factor, mask=inside)
    else:
        place = rows[:, None] * dim + channel[None, :]
        own = tl.load(x_rows + place, mask=there, other=0.0).to(DTYPE) - origin[None, :]
        inside = inside[:, None] & there
        tl.store(
            out_score + at[:, None] + channel[None, :],
            (score_total - own * slope_total[:, None]) * factor,
            mask=inside,
        )
        if WITH_X:
            drive = tl.load(score_rows + place, mask=there, other=0.0).to(DTYPE)
            x_result = x_total + own * force_total[:, None] - drive * slope_total[:, None]
            tl.store(out_x + at[:, None] + channel[None, :], x_result * factor, mask=inside)
