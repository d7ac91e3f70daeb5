"""Tiles of pairs with any number of coordinates, from packed points (wide_packing.py), on tensor cores.

Two ways to the squared distances, chosen on the device by the radius of the cloud:

near   |x|^2 + |y|^2 - 2 x.y with x.y from three products of halves: a coordinate is hi + lo, 11 bits each, and
       lo.lo is left out. In a cloud of radius R it loses about 2^-22 R^2, as float32 arithmetic does.
far    the same in float64, which tensor cores of data-centre GPUs have too; tiles with a pair so close that even this
       loses digits, and every tile of a GPU without them, take the differences of the coordinates as they were given.

Products with values: weights and values are each the sum of three bfloat16 (8 bits each, the range of float32), and the
six larger of the nine products are added up, so that nothing is lost against float32; far, float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

UNIT = tl.constexpr(64.0)
"""Halves hold this many times the scaled coordinate: its low part is then a normal number."""

DISTANCE = tl.constexpr(-2.0 / 64.0**2)
"""Of the product of two such coordinates in the squared distance."""


INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def add_product(a, b, total):
    """total + a b of bfloat16 in float32; Triton's interpreter would multiply their bits."""
    if INTERPRETED:
        return total + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, total)


@triton.jit
def add_halves(xh, xl, yh, yl, PRODUCTS: tl.constexpr):
    """x.y of a tile, small terms first: tensor cores cut off what they add up."""
    if PRODUCTS == 1:
        return tl.dot(xh, yh)
    product = tl.dot(xl, yh)
    product = tl.dot(xh, yl, product)
    return tl.dot(xh, yh, product)


@triton.jit
def load_rows(pointer, first, k, depth, COUNT: tl.constexpr):
    """Values [COUNT, k] of a row-major panel, from row `first` on: one 64-bit address and small offsets."""
    return tl.load(pointer + first * depth + (tl.arange(0, COUNT)[:, None] * depth + k[None, :]))


@triton.jit
def load_columns(pointer, first, k, depth, COUNT: tl.constexpr):
    """The same, transposed: [k, COUNT]."""
    return tl.load(pointer + first * depth + (tl.arange(0, COUNT)[None, :] * depth + k[:, None]))


@triton.jit
def near_squares(
    xh, xl, x_norm, hi, lo, norm, row, col, depth,
    K: tl.constexpr, BLOCK_K: tl.constexpr, PRODUCTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Scaled |x - y|^2 of the tile at (row, col); K > 0 coordinates are in xh, xl, else BLOCK_K a time."""
    y_norm = tl.load(norm + col + tl.arange(0, BN))
    if K > 0:
        k = tl.arange(0, K)
        product = add_halves(xh, xl, load_columns(hi, col, k, K, BN), load_columns(lo, col, k, K, BN), PRODUCTS)
    else:
        product = tl.zeros((BM, BN), tl.float32)
        for k0 in range(0, depth, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            product += add_halves(
                load_rows(hi, row, k, depth, BM), load_rows(lo, row, k, depth, BM),
                load_columns(hi, col, k, depth, BN), load_columns(lo, col, k, depth, BN), PRODUCTS,
            )  # fmt: skip
    return (product * DISTANCE + x_norm[:, None]) + y_norm[None, :]


@triton.jit
def exact_squares(raw, stride, row, col, dim, BM: tl.constexpr, BN: tl.constexpr):
    """|x - y|^2 of a tile, not scaled, from differences of the coordinates as they were given."""
    q = tl.zeros((BM, BN), raw.dtype.element_ty)
    x = raw + row
    y = raw + col
    for _ in range(dim):
        difference = tl.load(x + tl.arange(0, BM))[:, None] - tl.load(y + tl.arange(0, BN))[None, :]
        q += difference * difference
        x += stride
        y += stride
    return q


@triton.jit
def centred_columns(raw, stride, centre, first, k, depth, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """Coordinates less the centre, [k, COUNT]; 0 from depth on."""
    inside = k < depth
    place = k[:, None].to(tl.int64) * stride + tl.arange(0, COUNT)[None, :]
    values = tl.load(raw + first + place, mask=inside[:, None], other=0.0).to(DTYPE)
    return values - tl.load(centre + k, mask=inside, other=0.0).to(DTYPE)[:, None]


@triton.jit
def held_columns(raw, stride, centre, first, k, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """The same where all k are coordinates, without masks."""
    values = tl.load(raw + first + (k[:, None].to(tl.int64) * stride + tl.arange(0, COUNT)[None, :])).to(DTYPE)
    return values - tl.load(centre + k).to(DTYPE)[:, None]


@triton.jit
def far_squares(
    x64, y64, raw, stride, centre, norm64, row, col, present, close, square_scale, dim, depth,
    K: tl.constexpr, BLOCK_K: tl.constexpr, FLOAT64: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Scaled |x - y|^2 of a tile: float64 products, and differences where a pair is within `close`.

    x64 and y64 are the transposed coordinates for K > 0, and else not read.
    """
    dtype: tl.constexpr = raw.dtype.element_ty
    if FLOAT64:
        if K > 0:
            product = tl.dot(tl.trans(x64), y64, out_dtype=tl.float64)
        else:
            product = tl.zeros((BM, BN), tl.float64)
            for k0 in range(0, depth, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                left = held_columns(raw, stride, centre, row, k, BM, tl.float64)
                right = held_columns(raw, stride, centre, col, k, BN, tl.float64)
                product = tl.dot(tl.trans(left), right, product, out_dtype=tl.float64)
        norms = tl.load(norm64 + row + tl.arange(0, BM))[:, None] + tl.load(norm64 + col + tl.arange(0, BN))[None, :]
        q = (norms - 2.0 * product) * square_scale
        nearest = tl.min(tl.where(present[None, :], q, float("inf")))
        q = q.to(dtype)
        if nearest < close:
            q = exact_squares(raw, stride, row, col, dim, BM, BN) * square_scale.to(dtype)
        return tl.where(q < 0.0, 0.0, q)  # keeps NaN
    else:
        return exact_squares(raw, stride, row, col, dim, BM, BN) * square_scale.to(dtype)


@triton.jit
def high_part(value):
    """The first 8 bits of a float32, which is a bfloat16 as well."""
    return (value.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def half_parts(value):
    """A weight up to 2**15 as a sum of two float16."""
    high = (value.to(tl.uint32, bitcast=True) & 0xFFFFE000).to(tl.float32, bitcast=True)
    return high.to(tl.float16), (value - high).to(tl.float16)


@triton.jit
def thirds(value):
    """A finite value as a sum of three bfloat16; others give NaN."""
    first = high_part(value)
    rest = value - first
    second = high_part(rest)
    return first.to(tl.bfloat16), second.to(tl.bfloat16), (rest - second).to(tl.bfloat16)


@triton.jit
def product_of_thirds(parts, values, plane, row, channel, width, PRODUCTS: tl.constexpr, BN: tl.constexpr):
    """sum_j weight_ij value_jc of a tile for weights in thirds and values packed in three planes [rows, width]."""
    w1, w2, w3 = parts
    first = load_rows(values, row, channel, width, BN)
    second = load_rows(values + plane, row, channel, width, BN)
    product = tl.zeros((w1.shape[0], channel.shape[0]), tl.float32)
    if PRODUCTS > 1:
        third = load_rows(values + 2 * plane, row, channel, width, BN)
        product = add_product(w3, first, product)
        product = add_product(w1, third, product)
        product = add_product(w2, second, product)
    product = add_product(w2, first, product)
    product = add_product(w1, second, product)
    return add_product(w1, first, product)
