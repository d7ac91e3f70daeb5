"""Kernels of drifting (csrc/drift/drift.h): a small problem in one program, or rows, columns and forces of any size.

Points come as `dim` coordinates apart (D = 0), or as the D coordinates of points (D > 0, in registers). `sizes` [B, 3]
has the rows, negatives and targets of each problem where they differ, and otherwise the same three for all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gwf_fast.kernels.triton.direct import load_all, number

LOG2_E = tl.constexpr(1.4426950408889634)
ABSENT = tl.constexpr(1e36)
"""The distance of a pair that does not exist."""


@triton.jit
def problem_size(sizes, batch, n, split, m, RAGGED: tl.constexpr):
    """Rows, negatives and targets of a problem."""
    if RAGGED:
        return tl.load(sizes + 3 * batch), tl.load(sizes + 3 * batch + 1), tl.load(sizes + 3 * batch + 2)
    else:
        return n.to(tl.int64), split.to(tl.int64), m.to(tl.int64)


@triton.jit
def pair_distances(
    x, y, xs, x_count, y_count, row, col, rows, cols, dim, least, own, shifted: tl.constexpr,
    D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """r_ij of a tile; x_count and y_count are the padded counts, rows and cols those that exist."""
    at_row = tl.minimum(row, rows - 1)
    at_col = tl.minimum(col, cols - 1)
    x_stride = x_count.to(tl.int64)
    y_stride = y_count.to(tl.int64)
    q = tl.zeros((row.shape[0], col.shape[0]), DTYPE)
    if D > 0:
        ys = load_all(y, at_col, D, DTYPE)
        for k in tl.static_range(D):
            d = xs[k][:, None] - ys[k][None, :]
            q += d * d
    else:
        for k in range(dim):
            left = tl.load(x + k * x_stride + at_row).to(DTYPE)
            d = left[:, None] - tl.load(y + k * y_stride + at_col).to(DTYPE)[None, :]
            q += d * d
    r = tl.sqrt(tl.where(q < least, least, q))  # keeps NaN
    if shifted:
        r += tl.where(row[:, None] == col[None, :], own, 0.0)
    return tl.where((row[:, None] < rows) & (col[None, :] < cols), r, ABSENT)


@triton.jit
def log_sums(r, near, scale, AXIS: tl.constexpr):
    """sum 2**(scale (near - r)) along an axis; near is the least of r there."""
    return tl.sum(tl.exp2((tl.expand_dims(near, AXIS) - r) * scale), AXIS)


@triton.jit
def affinities(r, row_logs, column_logs, scale, weight, bound):
    """sqrt(max(softmax_rows softmax_columns, clip)) w from base-2 logarithms of the sums."""
    a = tl.exp2(-(r * scale + 0.5 * (row_logs[:, None] + column_logs[None, :])))
    return tl.where(a < bound, bound, a) * weight[None, :]


@triton.jit
def load_weights(weights, col, cols, WEIGHTED: tl.constexpr, DTYPE: tl.constexpr):
    """Of targets; 0 for those that do not exist."""
    if WEIGHTED:
        return tl.load(weights + tl.minimum(col, cols - 1), mask=col < cols, other=0.0).to(DTYPE)
    else:
        return tl.where(col < cols, 1.0, 0.0).to(DTYPE)


@triton.jit(do_not_specialize=["floor", "bound", "batches", "n", "split", "m", "dim", "rates"])
def drift_small_kernel(
    x, y, points, weights, sizes, temperatures, own, distances, out, floor, bound,
    batches, n, split, m, dim, rates,
    D: tl.constexpr, WEIGHTED: tl.constexpr, RAGGED: tl.constexpr, SELF: tl.constexpr, DTYPE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """out [rates, B, n, dim]: problems of at most BM rows, one at a time and program.

    Distances are computed once and stay in the program's part of `distances` [programs, tiles of columns, BM, BN],
    which is small enough for the cache. `points` are the targets [B, m, dim], for tile products.
    """
    program = tl.program_id(0)
    tiles = tl.cdiv(m, BN)
    distances += program.to(tl.int64) * tiles * (BM * BN)
    row = tl.arange(0, BM).to(tl.int64)
    inner = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    least = number(floor, DTYPE)
    least_affinity = number(bound, DTYPE)
    for problem in range(program, batches, tl.num_programs(0)):
        batch = problem + tl.zeros((), tl.int64)
        rows, border, cols = problem_size(sizes, batch, n, split, m, RAGGED)
        shift = tl.zeros((), DTYPE)
        if SELF:
            shift = tl.load(own + batch).to(DTYPE)
        xs = load_all(x + batch * n * dim, tl.minimum(row, rows - 1), D, DTYPE)
        near = tl.full((BM,), ABSENT, DTYPE)
        for j in range(tiles):
            col = j * BN + tl.arange(0, BN).to(tl.int64)
            r = pair_distances(
                x + batch * n * dim, y + batch * m * dim, xs, n, m, row, col, rows, cols, dim, least, shift, SELF,
                D, DTYPE,
            )  # fmt: skip
            near = tl.minimum(near, tl.min(r, 1))
            tl.store(distances + j * (BM * BN) + inner, r)
        tl.debug_barrier()
        for k in range(rates):
            scale = LOG2_E / tl.load(temperatures + k * batches + batch).to(DTYPE)
            mass = tl.zeros((BM,), DTYPE)
            for j in range(tiles):
                mass += log_sums(tl.load(distances + j * (BM * BN) + inner), near, scale, 1)
            row_logs = tl.log2(mass) - near * scale
            for chunk in tl.static_range(CHUNKS):
                channel = chunk * BC + tl.arange(0, BC)
                there = channel < dim
                base = points + batch * m * dim
                centre = tl.load(base + (cols - 1) * dim + channel, mask=there, other=0.0).to(DTYPE)
                attracted = tl.zeros((BM,), DTYPE)
                repelled = tl.zeros((BM,), DTYPE)
                attraction = tl.zeros((BM, BC), DTYPE)
                repulsion = tl.zeros((BM, BC), DTYPE)
                for j in range(tiles):
                    col = j * BN + tl.arange(0, BN).to(tl.int64)
                    r = tl.load(distances + j * (BM * BN) + inner)
                    nearest = tl.min(r, 0)
                    column_logs = tl.log2(log_sums(r, nearest, scale, 0)) - nearest * scale
                    weight = load_weights(weights + batch * m, col, cols, WEIGHTED, DTYPE)
                    a = affinities(r, row_logs, column_logs, scale, weight, least_affinity)
                    a = tl.where(col[None, :] < cols, a, 0.0)
                    place = tl.minimum(col, cols - 1)[:, None] * dim + channel[None, :]
                    targets = tl.load(base + place, mask=there[None, :], other=0.0).to(DTYPE) - centre[None, :]
                    if j * BN < border:
                        part = tl.where(col[None, :] < border, a, 0.0)
                        repelled += tl.sum(part, 1)
                        repulsion += tl.dot(part, targets, input_precision="ieee", out_dtype=DTYPE)
                    if (j + 1) * BN > border:
                        part = tl.where(col[None, :] < border, 0.0, a)
                        attracted += tl.sum(part, 1)
                        attraction += tl.dot(part, targets, input_precision="ieee", out_dtype=DTYPE)
                force = repelled[:, None] * attraction - attracted[:, None] * repulsion
                force = tl.where(row[:, None] < rows, force, 0.0)
                at = ((k * batches + batch) * n + row)[:, None] * dim + channel[None, :]
                tl.store(out + at, force, mask=(row[:, None] < n) & there[None, :])
        tl.debug_barrier()  # the next problem writes where this one still reads


@triton.jit(do_not_specialize=["floor", "n", "split", "m", "dim", "x_tiles", "y_tiles"])
def drift_logs_kernel(
    x, y, sizes, temperatures, own, logs, floor, n, split, m, dim, x_tiles, y_tiles,
    RATES: tl.constexpr, D: tl.constexpr, RAGGED: tl.constexpr, SELF: tl.constexpr, DTYPE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """logs [RATES, B, n + m]: base-2 logarithms of the sums of 2**(-scale r), of rows and then of columns.

    A program has a tile of rows, or of columns, and sweeps all points of the other side.
    """
    program = tl.program_id(0)
    tiles = x_tiles + y_tiles
    tile = program % tiles
    batch = (program // tiles).to(tl.int64)
    batches = tl.num_programs(0) // tiles
    stride = batches.to(tl.int64) * (n + m)
    rows, _, cols = problem_size(sizes, batch, n, split, m, RAGGED)
    least = number(floor, DTYPE)
    shift = tl.zeros((), DTYPE)
    if SELF:
        shift = tl.load(own + batch).to(DTYPE)
    x += batch * n * dim
    y += batch * m * dim
    if tile < x_tiles:
        sweep_logs(
            x, y, n, m, rows, cols, tile, dim, least, shift, temperatures + batch, batches,
            logs + batch * (n + m), stride, RATES, D, SELF, DTYPE, BM, BN,
        )  # fmt: skip
    else:
        sweep_logs(
            y, x, m, n, cols, rows, tile - x_tiles, dim, least, shift, temperatures + batch, batches,
            logs + batch * (n + m) + n, stride, RATES, D, SELF, DTYPE, BM, BN,
        )  # fmt: skip


@triton.jit
def sweep_logs(
    x, y, n, m, rows, cols, tile, dim, least, shift, temperatures, batches, logs, stride,
    RATES: tl.constexpr, D: tl.constexpr, SELF: tl.constexpr, DTYPE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The logarithms of one tile of points x over all points y."""
    row = tile.to(tl.int64) * BM + tl.arange(0, BM)
    xs = load_all(x, tl.minimum(row, rows - 1), D, DTYPE)
    scales = ()
    masses = ()
    for k in tl.static_range(RATES):
        scales = scales + (LOG2_E / tl.load(temperatures + k * batches).to(DTYPE),)
        masses = masses + (tl.zeros((BM,), DTYPE),)
    near = tl.full((BM,), ABSENT, DTYPE)
    for j in range(tl.cdiv(cols, BN)):
        col = j * BN + tl.arange(0, BN).to(tl.int64)
        r = pair_distances(x, y, xs, n, m, row, col, rows, cols, dim, least, shift, SELF, D, DTYPE)
        before = near
        near = tl.minimum(near, tl.min(r, 1))
        updated = ()
        for k in tl.static_range(RATES):
            kept = masses[k] * tl.exp2((near - before) * scales[k])
            updated = updated + (kept + log_sums(r, near, scales[k], 1),)
        masses = updated
    for k in tl.static_range(RATES):
        tl.store(logs + k * stride + row, tl.log2(masses[k]) - near * scales[k], mask=row < n)


@triton.jit(do_not_specialize=["floor", "bound", "n", "split", "m", "dim", "tiles", "chunks", "splits"])
def drift_forces_kernel(
    x, y, points, weights, sizes, temperatures, own, logs, sums, floor, bound,
    n, split, m, dim, tiles, chunks, splits,
    RATES: tl.constexpr, D: tl.constexpr, WEIGHTED: tl.constexpr, RAGGED: tl.constexpr, SELF: tl.constexpr,
    DTYPE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """sums [splits, RATES, B, n, 2 (dim + 1)]: of affinities times targets, and of affinities; negatives, positives."""
    program = tl.program_id(0)
    tile = program % tiles
    chunk = (program // tiles) % chunks
    part = (program // (tiles * chunks)) % splits
    batch = (program // (tiles * chunks * splits)).to(tl.int64)
    batches = tl.num_programs(0) // (tiles * chunks * splits)
    rows, border, cols = problem_size(sizes, batch, n, split, m, RAGGED)
    least = number(floor, DTYPE)
    least_affinity = number(bound, DTYPE)
    shift = tl.zeros((), DTYPE)
    if SELF:
        shift = tl.load(own + batch).to(DTYPE)
    x += batch * n * dim
    y += batch * m * dim
    points += batch * m * dim
    row = tile.to(tl.int64) * BM + tl.arange(0, BM)
    at_row = tl.minimum(row, n - 1)
    xs = load_all(x, tl.minimum(row, rows - 1), D, DTYPE)
    channel = chunk * BC + tl.arange(0, BC)
    there = channel < dim
    centre = tl.load(points + (cols - 1) * dim + channel, mask=there, other=0.0).to(DTYPE)
    width = batches.to(tl.int64) * (n + m)
    logs += batch * (n + m)
    column_tiles = tl.cdiv(cols, BN)
    share = tl.cdiv(column_tiles, splits)
    begin = part * share
    end = tl.minimum(begin + share, column_tiles)
    for sign in tl.static_range(2):
        # tiles with targets of this sign: the one across the border has both
        first = tl.maximum(begin, border // BN) if sign else begin
        last = end if sign else tl.minimum(end, tl.cdiv(border, BN))
        masses = ()
        products = ()
        for _ in tl.static_range(RATES):
            masses = masses + (tl.zeros((BM,), DTYPE),)
            products = products + (tl.zeros((BM, BC), DTYPE),)
        for j in range(first, last):
            col = j * BN + tl.arange(0, BN).to(tl.int64)
            at_col = tl.minimum(col, cols - 1)
            r = pair_distances(x, y, xs, n, m, row, col, rows, cols, dim, least, shift, SELF, D, DTYPE)
            weight = load_weights(weights + batch * m, col, cols, WEIGHTED, DTYPE)
            signed = (col >= border) if sign else (col < border)
            counts = signed & (col < cols)
            place = at_col[:, None] * dim + channel[None, :]
            targets = tl.load(points + place, mask=there[None, :], other=0.0).to(DTYPE) - centre[None, :]
            new_masses = ()
            new_products = ()
            for k in tl.static_range(RATES):
                scale = LOG2_E / tl.load(temperatures + k * batches + batch).to(DTYPE)
                row_logs = tl.load(logs + k * width + at_row)
                a = affinities(r, row_logs, tl.load(logs + k * width + n + at_col), scale, weight, least_affinity)
                a = tl.where(counts[None, :], a, 0.0)
                new_masses = new_masses + (masses[k] + tl.sum(a, 1),)
                product = tl.dot(a, targets, input_precision="ieee", out_dtype=DTYPE)
                new_products = new_products + (products[k] + product,)
            masses = new_masses
            products = new_products
        for k in tl.static_range(RATES):
            at = (((part * RATES + k).to(tl.int64) * batches + batch) * n + row) * (2 * (dim + 1)) + sign * (dim + 1)
            tl.store(sums + at[:, None] + channel[None, :], products[k], mask=(row[:, None] < n) & there[None, :])
            if chunk == 0:
                tl.store(sums + at + dim, masses[k], mask=row < n)


@triton.jit(do_not_specialize=["batches", "n", "split", "m", "dim", "splits", "rates"])
def drift_combine_kernel(
    sums, sizes, out, batches, n, split, m, dim, splits, rates, RAGGED: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """out [rates, B, n, dim] from the sums of the splits: (sum_neg A)(sum_pos A y) - (sum_pos A)(sum_neg A y)."""
    tiles = tl.cdiv(n, BM)
    program = tl.program_id(0)
    row = (program % tiles).to(tl.int64) * BM + tl.arange(0, BM)
    set_of = (program // tiles).to(tl.int64)  # rate and batch
    rows, _, _ = problem_size(sizes, set_of % batches, n, split, m, RAGGED)
    inside = row < n
    width = 2 * (dim + 1)
    stride = rates.to(tl.int64) * batches * n * width
    base = sums + (set_of * n + row) * width
    repelled = tl.zeros((BM,), sums.dtype.element_ty)
    attracted = tl.zeros((BM,), sums.dtype.element_ty)
    for part in range(splits):
        repelled += tl.load(base + part * stride + dim, mask=inside, other=0.0)
        attracted += tl.load(base + part * stride + 2 * dim + 1, mask=inside, other=0.0)
    for first in range(0, dim, BC):
        channel = first + tl.arange(0, BC)
        mask = inside[:, None] & (channel[None, :] < dim)
        repulsion = tl.zeros((BM, BC), sums.dtype.element_ty)
        attraction = tl.zeros((BM, BC), sums.dtype.element_ty)
        for part in range(splits):
            at = base[:, None] + part * stride + channel[None, :]
            repulsion += tl.load(at, mask=mask, other=0.0)
            attraction += tl.load(at + dim + 1, mask=mask, other=0.0)
        force = repelled[:, None] * attraction - attracted[:, None] * repulsion
        force = tl.where(row[:, None] < rows, force, 0.0)
        tl.store(out + (set_of * n + row)[:, None] * dim + channel[None, :], force, mask=mask)


@triton.jit(do_not_specialize=["floor", "n", "split", "m", "dim", "tiles"])
def drift_total_kernel(
    x, y, weights, sizes, out, floor, n, split, m, dim, tiles,
    D: tl.constexpr, WEIGHTED: tl.constexpr, RAGGED: tl.constexpr, DTYPE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out [B, tiles], float64: sum_ij w_j r_ij of a tile of rows."""
    program = tl.program_id(0)
    tile = program % tiles
    batch = (program // tiles).to(tl.int64)
    rows, _, cols = problem_size(sizes, batch, n, split, m, RAGGED)
    x += batch * n * dim
    y += batch * m * dim
    row = tile.to(tl.int64) * BM + tl.arange(0, BM)
    xs = load_all(x, tl.minimum(row, rows - 1), D, DTYPE)
    least = number(floor, DTYPE)
    total = tl.zeros((BM,), tl.float64)
    for j in range(tl.cdiv(cols, BN)):
        col = j * BN + tl.arange(0, BN).to(tl.int64)
        r = pair_distances(x, y, xs, n, m, row, col, rows, cols, dim, least, 0.0, False, D, DTYPE)
        weight = load_weights(weights + batch * m, col, cols, WEIGHTED, DTYPE)
        exists = (row[:, None] < rows) & (col[None, :] < cols)
        total += tl.sum(tl.where(exists, r * weight[None, :], 0.0), 1).to(tl.float64)
    tl.store(out + program, tl.sum(total, 0))
