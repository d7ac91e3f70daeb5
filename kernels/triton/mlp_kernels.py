"""Kernels of whole perceptrons: a tile of the batch goes through all layers in one program.

A layer's outputs [BM, P] are in registers. On their way into the next layer's product they pass through a buffer of the
program's own, which is small enough to stay in the first- and second-level cache; so do the weights, K of their rows at
a time. Buffers hold what comes out of the linear maps, and the activation is applied where they are read. The number of
layers and their widths are arguments: networks of one padded width P and the same functions share a compiled kernel.

Products have operands of type OPERAND, and sums of float64 for float64 data, of float32 for the rest.
Packed parameters: weights [layers, P, P] from inputs to outputs, biases [layers, P], constants [layers], zero in the
padding. Padded neurons may have values, but no weight reads them and no gradient reaches them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(pointer, stride, rows, n, cols, width, DTYPE: tl.constexpr):
    """Entries of a row-major matrix [n, width] whose rows are `stride` apart, 0 outside."""
    return tl.load(pointer + rows * stride + cols, mask=(rows < n) & (cols < width), other=0.0).to(DTYPE)


@triton.jit
def store_tile(pointer, stride, rows, n, cols, width, value):
    """The reverse of load_tile."""
    tl.store(pointer + rows * stride + cols, value.to(pointer.dtype.element_ty), mask=(rows < n) & (cols < width))


@triton.jit
def linear(
    source, stride, rows, n, width, constant, weights, biases, layer, FUNCTION: tl.constexpr, ACTIVATED: tl.constexpr,
    DTYPE: tl.constexpr, OPERAND: tl.constexpr, BM: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The linear map of a layer, of the rows of a source or of their activations."""
    cols = tl.arange(0, P)
    weights += layer * (P * P)
    total = tl.zeros((BM, P), DTYPE)
    for k in range(0, width, K):
        inputs = k + tl.arange(0, K)
        if ACTIVATED:
            a = FUNCTION[0](tl.load(source + rows[:, None] * stride + inputs[None, :]), constant)[0]
        else:
            a = load_tile(source, stride, rows[:, None], n, inputs[None, :], width, DTYPE)
        w = tl.load(weights + inputs[:, None] * P + cols[None, :]).to(OPERAND)
        total += tl.dot(a.to(OPERAND), w, input_precision=PRECISION, out_dtype=DTYPE)
    return total + tl.load(biases + layer * P + cols).to(DTYPE)[None, :]


@triton.jit
def pull_back(
    deltas, weights, width, layer,
    DTYPE: tl.constexpr, OPERAND: tl.constexpr, BM: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The transposed linear map of a layer, of deltas [BM, P] in a buffer."""
    rows = tl.arange(0, BM)
    inputs = tl.arange(0, P)
    weights += layer * (P * P)
    total = tl.zeros((BM, P), DTYPE)
    for k in range(0, width, K):
        cols = k + tl.arange(0, K)
        d = tl.load(deltas + rows[:, None] * P + cols[None, :])
        w = tl.load(weights + inputs[None, :] * P + cols[:, None]).to(OPERAND)
        total += tl.dot(d.to(OPERAND), w, input_precision=PRECISION, out_dtype=DTYPE)
    return total


@triton.jit
def accumulate(
    source, stride, rows, n, width, constant, delta, weight_sums, bias_sums, layer, is_first, FUNCTION: tl.constexpr,
    ACTIVATED: tl.constexpr, DTYPE: tl.constexpr, OPERAND: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds a^T delta and the column sums of delta to a program's own sums; the first tile starts them."""
    cols = tl.arange(0, P)
    bias_sums += layer * P + cols
    weight_sums += layer * (P * P)
    end = tl.where(is_first, 0, P)
    tl.store(bias_sums, tl.load(bias_sums, mask=cols < end, other=0.0) + tl.sum(delta, 0))
    for k in range(0, width, K):
        inputs = k + tl.arange(0, K)
        if ACTIVATED:
            a = FUNCTION[0](tl.load(source + rows[None, :] * stride + inputs[:, None]), constant)[0]
        else:
            a = load_tile(source, stride, rows[None, :], n, inputs[:, None], width, DTYPE)
        product = tl.dot(a.to(OPERAND), delta.to(OPERAND), input_precision=PRECISION, out_dtype=DTYPE)
        place = weight_sums + inputs[:, None] * P + cols[None, :]
        tl.store(place, tl.load(place, mask=(cols < end)[None, :], other=0.0) + product)


@triton.jit(do_not_specialize=["n", "first", "in_width", "hidden_width", "out_width", "layers"])
def mlp_forward_kernel(
    x, weights, biases, constants, out, buffers, n, first, in_width, hidden_width, out_width, layers,
    HIDDEN: tl.constexpr, OUTPUT: tl.constexpr, RESIDUAL: tl.constexpr,
    OPERAND: tl.constexpr, BM: tl.constexpr, P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of out [n, out_width] from tile `first` on; buffers [programs, 2, BM, P].

    HIDDEN and OUTPUT are tuples of one function.
    """
    program = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = buffers.dtype.element_ty
    buffers += program * (2 * BM * P)
    local = tl.arange(0, BM)
    cols = tl.arange(0, P)[None, :]
    place = local[:, None] * P + cols
    rows = (first + program) * BM + local
    z = linear(
        x, in_width, rows, n, in_width, 0.0, weights, biases, 0, HIDDEN, False,
        dtype, OPERAND, BM, P, K, PRECISION,
    )  # fmt: skip
    for layer in range(1, layers):
        buffer = buffers + (layer % 2) * (BM * P)  # by turns: a late reader of the other one is not disturbed
        tl.store(buffer + place, z)
        tl.debug_barrier()
        z = linear(
            buffer, P, local, BM, hidden_width, tl.load(constants + layer - 1), weights, biases, layer, HIDDEN,
            True, dtype, OPERAND, BM, P, K, PRECISION,
        )  # fmt: skip
    value = OUTPUT[0](z, tl.load(constants + layers - 1))[0]
    if RESIDUAL:
        value += load_tile(x, in_width, rows[:, None], n, cols, in_width, dtype)
    store_tile(out, out_width, rows[:, None], n, cols, out_width, value)


@triton.jit(do_not_specialize=["n", "first", "in_width", "hidden_width", "out_width", "layers"])
def mlp_backward_kernel(
    x, weights, biases, constants, cotangent, out, dx, buffers, weight_sums, bias_sums, slope_sums,
    n, first, in_width, hidden_width, out_width, layers,
    HIDDEN: tl.constexpr, OUTPUT: tl.constexpr, RESIDUAL: tl.constexpr, LEARNED: tl.constexpr,
    ONES: tl.constexpr, WANTS_OUT: tl.constexpr, WANTS_DX: tl.constexpr, WANTS_PARAMETERS: tl.constexpr,
    OPERAND: tl.constexpr, BM: tl.constexpr, P: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of out and dx [n, ..], and sums [programs, ..] of the gradients of <cotangent, out> in the parameters.

    The first tiles start the sums of their programs, and those of later launches are added: the order is fixed. In the
    buffers [programs, layers, BM, P], deltas take the place of what came out of the linear maps.
    """
    program = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = buffers.dtype.element_ty
    buffers += program * layers * (BM * P)
    weight_sums += program * layers * (P * P)
    bias_sums += program * layers * P
    slope_sums += program * layers
    local = tl.arange(0, BM)
    cols = tl.arange(0, P)[None, :]
    place = local[:, None] * P + cols
    is_first = first == 0
    rows = (first + program) * BM + local
    z = linear(
        x, in_width, rows, n, in_width, 0.0, weights, biases, 0, HIDDEN, False,
        dtype, OPERAND, BM, P, K, PRECISION,
    )  # fmt: skip
    for layer in range(1, layers):
        buffer = buffers + (layer - 1) * (BM * P)
        tl.store(buffer + place, z)
        tl.debug_barrier()
        z = linear(
            buffer, P, local, BM, hidden_width, tl.load(constants + layer - 1), weights, biases, layer, HIDDEN,
            True, dtype, OPERAND, BM, P, K, PRECISION,
        )  # fmt: skip
    value, slope = OUTPUT[0](z, tl.load(constants + layers - 1))
    if WANTS_OUT:
        if RESIDUAL:
            value += load_tile(x, in_width, rows[:, None], n, cols, in_width, dtype)
        store_tile(out, out_width, rows[:, None], n, cols, out_width, value)
    if ONES:
        g = tl.where((rows < n)[:, None] & (cols < out_width), 1.0, 0.0).to(dtype)
    else:
        g = load_tile(cotangent, out_width, rows[:, None], n, cols, out_width, dtype)
    delta = tl.where(g == 0.0, 0.0, g * slope)  # the padding has no gradient, whatever its slope
    width = out_width
    for step in range(1, layers):
        layer = layers - step
        buffer = buffers + layer * (BM * P)
        below = buffer - BM * P
        constant = tl.load(constants + layer - 1)
        tl.store(buffer + place, delta)
        tl.debug_barrier()
        if WANTS_PARAMETERS:
            accumulate(
                below, P, local, BM, hidden_width, constant, delta, weight_sums, bias_sums, layer, is_first,
                HIDDEN, True, dtype, OPERAND, P, K, PRECISION,
            )  # fmt: skip
        d = pull_back(buffer, weights, width, layer, dtype, OPERAND, BM, P, K, PRECISION)
        z = tl.load(below + place)
        if LEARNED and WANTS_PARAMETERS:
            slope_sum = slope_sums + layer - 1
            before = tl.load(slope_sum, mask=first != 0, other=0.0)
            tl.store(slope_sum, before + tl.sum(tl.where(z > 0.0, 0.0, z) * d))
        delta = d * HIDDEN[0](z, constant)[1]
        width = hidden_width
        tl.debug_barrier()  # before deltas overwrite what other threads may still read
    if WANTS_PARAMETERS:
        accumulate(
            x, in_width, rows, n, in_width, 0.0, delta, weight_sums, bias_sums, 0, is_first, HIDDEN, False,
            dtype, OPERAND, P, K, PRECISION,
        )  # fmt: skip
    if WANTS_DX:
        tl.store(buffers + place, delta)
        tl.debug_barrier()
        d = pull_back(buffers, weights, width, 0, dtype, OPERAND, BM, P, K, PRECISION)
        if RESIDUAL:
            d += g
        store_tile(dx, in_width, rows[:, None], n, cols, in_width, d)
