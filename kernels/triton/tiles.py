"""What every kernel does to a tile of pairs: squared distances, the mixture's jet, sums over columns.

Conventions, in all kernels: coordinates, weights and tangents are channel-major [B, channels, length], the length
padded to whole tiles with zeros, so that loads need no masks. ``parameters`` holds, in the type of computation,
[scale of values, scale of gradients, then (coefficient, ratio, p) for each term, scale of coordinates]: the mixture is
sum_m coefficient_m phi_m(ratio_m q), with q the squared distance of the scaled coordinates. A single term has its
coefficient in the scales, and ratio 1.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def column_range(length, present, split, splits, BN: tl.constexpr):
    """The tiles [begin, end) of range `split` out of `splits`, of `length` columns; none where no row is present."""
    tiles = tl.where(present, tl.cdiv(length, BN), 0).to(tl.int32)  # positions have 64 bits, tiles need fewer
    share = tl.cdiv(tiles, splits)
    begin = split * share
    return begin, tl.minimum(begin + share, tiles)


@triton.jit
def tile_columns(tile, BN: tl.constexpr):
    """The 64-bit positions of the columns of a tile."""
    return tile * tl.full((), BN, tl.int64) + tl.arange(0, BN)


@triton.jit
def load_channels(pointer, stride, index, COUNT: tl.constexpr):
    """The first COUNT channels at the given positions, as a tuple."""
    values = ()
    for k in tl.static_range(COUNT):
        values = values + (tl.load(pointer + k * stride + index),)
    return values


@triton.jit
def load_block(pointer, stride, index, channel, channels):
    """Values [positions, channels of the block], 0 outside."""
    return tl.load(pointer + channel[None, :] * stride + index[:, None], mask=channel[None, :] < channels, other=0.0)


@triton.jit
def zero_tiles(like, COUNT: tl.constexpr):
    """COUNT zero tiles."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros_like(like),)
    return tiles


@triton.jit
def multiply_add(totals, weight, values, COUNT: tl.constexpr):
    """totals_k + weight * values_k, value by column."""
    results = ()
    for k in tl.static_range(COUNT):
        results = results + (totals[k] + weight * values[k][None, :],)
    return results


@triton.jit
def scale_all(totals, factor, COUNT: tl.constexpr):
    """factor * totals_k."""
    results = ()
    for k in tl.static_range(COUNT):
        results = results + (totals[k] * factor,)
    return results


@triton.jit
def add_all(totals, values, COUNT: tl.constexpr):
    """totals_k + values_k."""
    results = ()
    for k in tl.static_range(COUNT):
        results = results + (totals[k] + values[k],)
    return results


@triton.jit
def scale_add_all(totals, factor, values, COUNT: tl.constexpr):
    """totals_k + factor * values_k."""
    results = ()
    for k in tl.static_range(COUNT):
        results = results + (totals[k] + factor * values[k],)
    return results


@triton.jit
def add_row_sums(totals, tiles, COUNT: tl.constexpr):
    """totals_k + sum over columns of tile k."""
    results = ()
    for k in tl.static_range(COUNT):
        results = results + (totals[k] + tl.sum(tiles[k], 1),)
    return results


@triton.jit
def mixture_jet(q, shift, parameters, JETS: tl.constexpr, ORDER: tl.constexpr):
    """The derivatives 0..ORDER in q of the mixture, times 2**shift (None: no shift)."""
    if len(JETS) == 1:
        return JETS[0](q, tl.load(parameters + 4), shift)
    else:
        totals = zero_tiles(q, ORDER + 1)
        for m in tl.static_range(len(JETS)):
            factor = tl.load(parameters + 2 + 3 * m)
            ratio = tl.load(parameters + 3 + 3 * m)
            jet = JETS[m](q * ratio, tl.load(parameters + 4 + 3 * m), shift)
            updated = ()
            for k in tl.static_range(ORDER + 1):
                updated = updated + (totals[k] + factor * jet[k],)
                factor = factor * ratio
            totals = updated
        return totals


@triton.jit
def mixture_exponent(q, parameters, EXPONENTS: tl.constexpr):
    """The smallest base-2 exponent of the terms: 2**-exponent bounds the mixture up to a moderate factor."""
    exponent = EXPONENTS[0](q, tl.load(parameters + 4))
    for m in tl.static_range(1, len(EXPONENTS)):
        ratio = tl.load(parameters + 3 + 3 * m)
        other = EXPONENTS[m](q * ratio, tl.load(parameters + 4 + 3 * m))
        exponent = tl.where(other < exponent, other, exponent)
    return exponent


@triton.jit
def squared_distance(xs, ys, D: tl.constexpr):
    """|x - y|^2 of a tile from coordinates in registers."""
    difference = xs[0][:, None] - ys[0][None, :]
    q = difference * difference
    for d in tl.static_range(1, D):
        difference = xs[d][:, None] - ys[d][None, :]
        q += difference * difference
    return q
