"""From the tensors of a call to what the kernels for a few coordinates read, in one launch; and centres of sets."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)

SAMPLE = tl.constexpr(8)
"""Points that a centre is taken from."""

ABSENT, GIVEN, FILLED, CENTRED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
"""What values of columns are: none, a tensor, ones (logarithms: zeros), positions as the centre sees them."""


@triton.jit
def load_points(points, row_stride, stride, positions, k, dim, count, DTYPE: tl.constexpr):
    """Points [positions, k] of a set, 0 where there is none."""
    place = positions[:, None] * row_stride + k[None, :].to(tl.int64) * stride
    return tl.load(points + place, mask=(positions < count)[:, None] & (k < dim)[None, :], other=0.0).to(DTYPE)


@triton.jit
def existing_count(lengths, batch, full, RAGGED: tl.constexpr):
    """How many points a set has, at most `full`."""
    count = full.to(tl.int64)
    if RAGGED:
        count = tl.minimum(tl.maximum(tl.load(lengths + batch).to(tl.int64), 0), count)
    return count


@triton.jit
def centre_of(points, row_stride, stride, count, k, dim, DTYPE: tl.constexpr):
    """A point amid a set: the median of some of its points, which outliers do not move; 0 where that is infinite.

    Points near it are subtracted without rounding (Sterbenz). Small averages and gradients must not come from large
    sums around a centre that is not amid the columns.
    """
    index = tl.arange(0, SAMPLE)
    sample = load_points(points, row_stride, stride, index.to(tl.int64) * count // SAMPLE, k, dim, count, DTYPE)
    mine, other = sample[:, None, :], sample[None, :, :]
    is_before = (other < mine) | ((other == mine) & (index[None, :, None] < index[:, None, None]))
    rank = tl.sum(is_before.to(tl.int32), 1)
    middle = tl.sum(tl.where(rank == SAMPLE // 2, sample, 0.0), 0)
    return tl.where(tl.abs(middle) < float("inf"), middle, 0.0)


@triton.jit
def store_channels(out, plane, positions, k, dim, values, length):
    """Values [positions, k] to channels `plane` apart."""
    place = k[None, :].to(tl.int64) * plane + positions[:, None]
    tl.store(out + place, values, mask=(k < dim)[None, :] & (positions < length)[:, None])


@triton.jit(
    do_not_specialize=[
        "x_batch", "x_row", "x_stride", "y_batch", "y_row", "y_stride", "v_batch", "v_row", "v_stride",
        "n", "m", "dim", "channels", "x_length", "y_length", "x_plane", "y_plane", "terms",
    ]
)  # fmt: skip
def pack_pairs_kernel(
    x, y, v, a, beta, x_lengths, y_lengths, parameters,
    x_out, y_out, v_out, a_out, beta_out, counts, centres,
    x_batch, x_row, x_stride, y_batch, y_row, y_stride, v_batch, v_row, v_stride,
    n, m, dim, channels, x_length, y_length, x_plane, y_plane, terms,
    X_LENGTHS: tl.constexpr, Y_LENGTHS: tl.constexpr, VALUES: tl.constexpr, LOGS: tl.constexpr, A: tl.constexpr,
    BR: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """x_out and y_out [B, dim, length]: coordinates from the centre, scaled, zeros in the padding.

    Channels are x_plane or y_plane apart. v_out [B, channels, y_length]: values of columns; a_out [B, 1, x_length]:
    values a [B, n] of rows; beta_out [B, y_length]: logarithms beta to the base 2, -inf in the padding. counts [2, B]:
    how many points there are. centres [B, dim].
    """
    x_blocks = tl.cdiv(x_length, BR)
    blocks = x_blocks + tl.cdiv(y_length, BR)
    program = tl.program_id(0)
    block = program % blocks
    batch = (program // blocks).to(tl.int64)
    batches = tl.num_programs(0) // blocks
    dtype: tl.constexpr = x_out.dtype.element_ty
    x_count = existing_count(x_lengths, batch, n, X_LENGTHS)
    y_count = existing_count(y_lengths, batch, m, Y_LENGTHS)
    x += batch * x_batch
    y += batch * y_batch
    scale = tl.load(parameters + terms)
    if block == 0:
        tl.store(counts + batch, x_count)
        tl.store(counts + batches + batch, y_count)
    in_y = block >= x_blocks
    positions = tl.where(in_y, block - x_blocks, block).to(tl.int64) * BR + tl.arange(0, BR)
    for k0 in range(0, dim, BK):
        k = k0 + tl.arange(0, BK)
        centre = centre_of(y, y_row, y_stride, y_count, k, dim, dtype)
        if block == 0:
            tl.store(centres + batch * dim + k, centre, mask=k < dim)
        if in_y:
            exists = (positions < y_count)[:, None]
            points = load_points(y, y_row, y_stride, positions, k, dim, y_count, dtype)
            seen = tl.where(exists, points - centre[None, :], 0.0)
            store_channels(y_out + batch * dim * y_plane, y_plane, positions, k, dim, seen * scale, y_length)
            if VALUES == CENTRED:
                store_channels(v_out + batch * dim * y_plane, y_plane, positions, k, dim, seen, y_length)
        else:
            points = load_points(x, x_row, x_stride, positions, k, dim, n, dtype)
            seen = tl.where((positions < n)[:, None], points - centre[None, :], 0.0)
            store_channels(x_out + batch * dim * x_plane, x_plane, positions, k, dim, seen * scale, x_length)
    if in_y:
        exists = positions < y_count
        inside = positions < y_length
        if VALUES == GIVEN:
            for c0 in range(0, channels, BC):
                c = c0 + tl.arange(0, BC)
                found = load_points(v + batch * v_batch, v_row, v_stride, positions, c, channels, y_count, dtype)
                store_channels(v_out + batch * channels * y_plane, y_plane, positions, c, channels, found, y_length)
        if VALUES == FILLED:
            tl.store(v_out + batch * y_plane + positions, tl.where(exists, 1.0, 0.0).to(dtype), mask=inside)
        if LOGS == GIVEN:
            found = tl.load(beta + batch * m + positions, mask=exists, other=float("-inf")).to(dtype)
            tl.store(beta_out + batch * y_length + positions, found * LOG2_E, mask=inside)
        if LOGS == FILLED:
            zero = tl.where(exists, 0.0, float("-inf")).to(dtype)
            tl.store(beta_out + batch * y_length + positions, zero, mask=inside)
    else:
        if A:
            found = tl.load(a + batch * n + positions, mask=positions < x_count, other=0.0).to(dtype)
            tl.store(a_out + batch * x_plane + positions, found, mask=positions < x_length)
