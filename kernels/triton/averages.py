"""Kernel of log sum_j e^beta_j k_ij and of the averages of values under these weights, in one sweep of the columns."""

from __future__ import annotations

import triton
import triton.language as tl

from gwf_fast.kernels.triton.combine import LN2
from gwf_fast.kernels.triton.tiles import (
    add_all,
    add_row_sums,
    column_range,
    load_channels,
    mixture_exponent,
    mixture_jet,
    scale_all,
    squared_distance,
    tile_columns,
    zero_tiles,
)

PROBES = tl.constexpr(4)
"""Tiles of columns that a first reference is taken from, about."""

WINDOW = tl.constexpr(2.0**24)
"""By how much a group's sum of weights may exceed its reference, and all so far fall short: beyond, digits are lost."""


@triton.jit
def log_bound(q, log_weight, rows, cols, parameters, EXPONENTS: tl.constexpr, EXCLUDE_SELF: tl.constexpr):
    """An upper bound, up to a moderate factor, of the base-2 logarithm of e^beta_j k_ij; None for beta is zeros."""
    if log_weight is None:
        bound = -mixture_exponent(q, parameters, EXPONENTS)
    else:
        bound = log_weight[None, :] - mixture_exponent(q, parameters, EXPONENTS)
    if EXCLUDE_SELF:
        bound = tl.where(rows[:, None] == cols[None, :], float("-inf"), bound)
    return bound


@triton.jit
def finite_origin(reference):
    """The reference where it is finite, so that -inf - origin is not NaN."""
    return tl.where(reference == float("-inf"), 0.0, reference)


@triton.jit
def first_reference(
    xs, y, y_stride, beta, rows, begin, end, parameters,
    EXPONENTS: tl.constexpr, D: tl.constexpr, EXCLUDE_SELF: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The base-2 logarithm of about the largest weight among some columns."""
    peak = tl.full((BM, BN), float("-inf"), y.dtype.element_ty)
    for tile in range(begin, end, tl.maximum((end - begin) // PROBES, 1)):
        cols = tile_columns(tile, BN)
        q = squared_distance(xs, load_channels(y, y_stride, cols, D), D)
        bound = log_bound(q, tl.load(beta + cols), rows, cols, parameters, EXPONENTS, EXCLUDE_SELF)
        peak = tl.where(bound > peak, bound, peak)
    return tl.max(peak, 1)


@triton.jit
def load_columns(y, y_stride, beta, v, cols, D: tl.constexpr, C: tl.constexpr):
    """Coordinates, logarithms of weights, and values of a tile of columns."""
    return load_channels(y, y_stride, cols, D) + (tl.load(beta + cols),) + load_channels(v, y_stride, cols, C)


@triton.jit
def weighted_sums(
    xs, y, y_stride, beta, v, reference, rows, first, last, parameters,
    JETS: tl.constexpr, D: tl.constexpr, C: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Over tiles first .. last - 1: the sum of weights over 2**reference, and of values under them, 1 + C tensors."""
    sums = zero_tiles(tl.zeros((BM, BN), y.dtype.element_ty), 1 + C)
    columns = load_columns(y, y_stride, beta, v, tile_columns(first, BN), D, C)
    for j in range(first, last):
        cols = tile_columns(j, BN)
        # on their way while these are computed
        following = load_columns(y, y_stride, beta, v, tile_columns(tl.minimum(j + 1, last - 1), BN), D, C)
        q = squared_distance(xs, columns, D)
        weight = mixture_jet(q, columns[D][None, :] - reference[:, None], parameters, JETS, 0)[0]
        if EXCLUDE_SELF:
            weight = tl.where(rows[:, None] == cols[None, :], 0.0, weight)
        updated = (sums[0] + weight,)
        for c in tl.static_range(C):
            updated = updated + (sums[1 + c] + weight * columns[D + 1 + c][None, :],)
        sums = updated
        columns = following
    return add_row_sums(zero_tiles(tl.zeros((BM,), y.dtype.element_ty), 1 + C), sums, 1 + C)


@triton.jit(do_not_specialize=["n", "n_tiles", "m_tiles", "splits"])
def average_kernel(
    x, y, v, beta, parameters, centres, x_lengths, y_lengths, out, log_out, mass_out,
    n, n_tiles, m_tiles, splits,
    JETS: tl.constexpr, EXPONENTS: tl.constexpr, D: tl.constexpr, C: tl.constexpr, CENTRED: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """log_out [B, n] and out [B, n, C], for D, C <= 4; where columns are split, what combine.averages expects.

    beta holds base-2 logarithms, -inf in the padding; C = 0 computes the log-sum-exp only. Weights are relative to
    those of a few columns. A group of tiles whose sum is out of the window of a row is swept again, first for its
    largest weight.
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
    valid = rows < length
    begin, end = column_range(tl.load(y_lengths + batch), tile.to(tl.int64) * BM < length, split, splits, BN)
    dtype: tl.constexpr = x.dtype.element_ty
    xs = load_channels(x, x_stride, rows, D)

    # base-2 logarithm that sums are relative to, finite
    reference = finite_origin(
        first_reference(xs, y, y_stride, beta, rows, begin, end, parameters, EXPONENTS, D, EXCLUDE_SELF, BM, BN)
    )
    totals = zero_tiles(tl.zeros((BM,), dtype), 1 + C)
    for first in range(begin, end, GROUP):
        last = tl.minimum(first + GROUP, end)
        found = weighted_sums(
            xs, y, y_stride, beta, v, reference, rows, first, last, parameters, JETS, D, C, EXCLUDE_SELF, BM, BN
        )  # fmt: skip
        mass = totals[0] + found[0]
        # or NaN. The group's own sum bounds its weights; that of all may be as large as there are columns.
        outside = valid & ~((mass >= 1.0 / WINDOW) & (found[0] <= WINDOW))
        again = tl.where(tl.max(outside.to(tl.int32), 0) > 0, last, first)
        peak = tl.full((BM, BN), float("-inf"), dtype)
        for j in range(first, again):
            cols = tile_columns(j, BN)
            q = squared_distance(xs, load_channels(y, y_stride, cols, D), D)
            bound = log_bound(q, tl.load(beta + cols), rows, cols, parameters, EXPONENTS, EXCLUDE_SELF)
            peak = tl.maximum(peak, bound)
        if again > first:
            # a reference that nothing was summed under yet is none
            before = tl.where(totals[0] == 0.0, float("-inf"), reference)
            reference = finite_origin(tl.maximum(before, tl.max(peak, 1)))
            totals = scale_all(totals, tl.exp2(before - reference), 1 + C)
            found = weighted_sums(
                xs, y, y_stride, beta, v, reference, rows, first, last, parameters, JETS, D, C, EXCLUDE_SELF, BM, BN
            )  # fmt: skip
        totals = add_all(totals, found, 1 + C)

    mass = totals[0]
    inside = rows < n
    whole = splits == 1
    row = (split.to(tl.int64) * batches + batch) * n + rows
    logarithm = (reference + tl.log2(mass * tl.load(parameters))) * LN2
    logarithm = tl.where(whole, logarithm, tl.where(mass == 0.0, float("-inf"), reference))
    tl.store(log_out + row, tl.where(valid, logarithm, float("-inf")), mask=inside)
    if splits > 1:
        tl.store(mass_out + row, tl.where(valid, mass, 0.0), mask=inside)
    divisor = tl.where(whole, mass, 1.0)
    for c in tl.static_range(C):
        mean = totals[1 + c] / divisor
        if CENTRED:
            mean += tl.where(whole, tl.load(centres + batch * C + c), 0.0)
        tl.store(out + row * C + c, tl.where(valid, mean, 0.0), mask=inside)
