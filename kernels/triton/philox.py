"""Draws on NVIDIA and AMD GPUs: the functions of ``reference/philox.py``, one kernel a draw, bit for bit but normals.

The iteration is read by the kernel, so that a launch that a CUDA graph replays draws what is next.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gwf_fast.kernels.plain import plain
from gwf_fast.kernels.reference.philox import threshold
from gwf_fast.kernels.triton import launch

__all__ = ["philox_indices", "philox_kept", "philox_normals", "philox_rows", "philox_uniforms"]

BLOCK = 256
"""Numbers, or at most coordinates of rows, of one program."""

TERMS = 9
"""Of the series of sine and cosine up to an eighth of a turn: to the last digit of float64."""

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _philox(counter, stream, block):
    """The four words of blocks of Philox4x32-10; of csrc/random/philox.h, one lane at a time."""
    seed = tl.load(counter).to(tl.uint64, bitcast=True)
    w0 = block.to(tl.uint32)
    w1 = (block >> 32).to(tl.uint32)
    w2 = tl.zeros_like(w0) + tl.load(counter + 1).to(tl.uint32)
    w3 = tl.zeros_like(w0) + stream.to(tl.uint32, bitcast=True)
    key0 = tl.zeros_like(w0) + seed.to(tl.uint32)
    key1 = tl.zeros_like(w0) + (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p = w0.to(tl.uint64) * 0xD2511F53
        q = w2.to(tl.uint64) * 0xCD9E8D57
        w0 = (q >> 32).to(tl.uint32) ^ w1 ^ key0
        w2 = (p >> 32).to(tl.uint32) ^ w3 ^ key1
        w1 = q.to(tl.uint32)
        w3 = p.to(tl.uint32)
        key0 = key0 + tl.full((), 0x9E3779B9, tl.uint32)
        key1 = key1 + tl.full((), 0xBB67AE85, tl.uint32)
    return w0, w1, w2, w3


@triton.jit
def _index(counter, stream, bound, i):
    """Element i of the draw of integers below a bound, from 64 bits."""
    w0, w1, w2, w3 = _philox(counter, stream, (i // 32 * 16 + i % 16).to(tl.uint64))
    is_second = i % 32 >= 16
    high = tl.where(is_second, w2, w0).to(tl.uint64)
    low = tl.where(is_second, w3, w1).to(tl.uint64)
    return tl.umulhi(high << 32 | low, tl.zeros_like(low) + bound.to(tl.uint64)).to(tl.int64)


@triton.jit
def _unit(word):
    """In (0, 1), float64."""
    return (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10


@triton.jit
def _word(counter, stream, k):
    """The 32 bits of element k of the draw of uniforms."""
    w0, w1, w2, w3 = _philox(counter, stream, (k // 64 * 16 + k % 16).to(tl.uint64))
    which = k % 64 // 16
    return tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))


@triton.jit(do_not_specialize=["stream", "n", "bound"])
def indices_kernel(counter, out, stream, n, bound, BLOCK: tl.constexpr):
    """Writes integers."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, _index(counter, stream, bound, i), mask=i < n)


@triton.jit(do_not_specialize=["stream", "n", "bound", "dim"])
def rows_kernel(counter, out, pool, stream, n, bound, dim, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """Copies rows of a pool [bound, dim] that are drawn here."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = _index(counter, stream, bound, i)
    for start in range(0, dim, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        mask = (i < n)[:, None] & (c < dim)[None, :]
        values = tl.load(pool + row[:, None] * dim + c[None, :], mask=mask)
        tl.store(out + i[:, None] * dim + c[None, :], values, mask=mask)


@triton.jit(do_not_specialize=["stream", "n"])
def uniforms_kernel(counter, out, stream, n, BLOCK: tl.constexpr):
    """Writes uniforms."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + k, _unit(_word(counter, stream, k)).to(out.dtype.element_ty), mask=k < n)


@triton.jit(do_not_specialize=["stream", "n", "first", "threshold"])
def kept_kernel(counter, out, stream, n, first, threshold, BLOCK: tl.constexpr):
    """Writes 1 where a uniform is not below a rate, 0 elsewhere."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    keeps = _word(counter, stream, k + first).to(tl.int64) >= threshold
    tl.store(out + k, tl.where(keeps, 1.0, 0.0).to(out.dtype.element_ty), mask=k < n)


@triton.jit(do_not_specialize=["stream", "n"])
def normals_kernel(counter, out, stream, n, BLOCK: tl.constexpr, TERMS: tl.constexpr):
    """Writes normals: Box and Muller, the angle in eighths of a turn as the CPU has it; logarithms in float64."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = _philox(counter, stream, (k // 64 * 16 + k % 16).to(tl.uint64))
    is_second = k % 64 >= 32
    dtype: tl.constexpr = out.dtype.element_ty
    uniform = _unit(tl.where(is_second, w2, w0)).to(dtype).to(tl.float64)
    turn = tl.where(is_second, w3, w1)
    quarter = (turn + tl.full((), 0x20000000, tl.uint32)) >> 30
    eighth = (turn - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float64) * 1.4629180792671596e-09
    radius = tl.sqrt(tl.maximum(-2.0 * tl.log(uniform), 0.0))
    square = eighth * eighth
    cosine = tl.zeros_like(square)
    sine = tl.zeros_like(square)
    for j in tl.static_range(TERMS):  # Taylor's series, from their smallest terms on
        cosine = 1.0 - cosine * square * (1.0 / ((2 * (TERMS - j) - 1) * (2 * (TERMS - j))))
        sine = 1.0 - sine * square * (1.0 / ((2 * (TERMS - j)) * (2 * (TERMS - j) + 1)))
    sine = sine * eighth
    quarter = quarter & 3
    is_odd = quarter % 2 == 1
    x = tl.where(is_odd, -sine, cosine)
    y = tl.where(is_odd, cosine, sine)
    value = radius * tl.where(k % 32 >= 16, y, x)
    tl.store(out + k, tl.where(quarter >= 2, -value, value).to(dtype), mask=k < n)


def philox_indices(counter: Tensor, stream: int, n: int, bound: int) -> Tensor:
    """n integers in 0 .. bound - 1, [n] int64."""
    out = counter.new_empty(n)
    _launch(indices_kernel, counter, out, n, _signed(stream), n, bound)
    return out


def philox_rows(counter: Tensor, stream: int, n: int, pool: Tensor) -> Tensor:
    """The rows of a pool [N, D] at n such integers, [n, D]; one launch for both."""
    pool = plain(pool)
    out = pool.new_empty((n, pool.shape[1]))
    columns = min(64, triton.next_power_of_2(max(pool.shape[1], 1)))
    _launch(
        rows_kernel,
        counter,
        out,
        n,
        pool,
        _signed(stream),
        n,
        *pool.shape,
        rows=max(1, BLOCK // columns),
        COLUMNS=columns,
    )
    return out


def philox_uniforms(counter: Tensor, stream: int, n: int, dtype: torch.dtype) -> Tensor:
    """Uniform in (0, 1), [n]; from 32 bits each."""
    out = counter.new_empty(n, dtype=dtype)
    _launch(uniforms_kernel, counter, out, n, _signed(stream), n)
    return out


def philox_kept(counter: Tensor, stream: int, first: int, n: int, rate: float, dtype: torch.dtype) -> Tensor:
    """1 where uniforms first, ..., first + n - 1 are not below the rate, 0 elsewhere, [n]."""
    out = counter.new_empty(n, dtype=dtype)
    _launch(kept_kernel, counter, out, n, _signed(stream), n, first, threshold(rate))
    return out


def philox_normals(counter: Tensor, stream: int, n: int, d: int, dtype: torch.dtype) -> Tensor:
    """Standard normals [n, d], those of the CPU to rounding."""
    out = counter.new_empty((n, d), dtype=dtype)
    _launch(normals_kernel, counter, out, n * d, _signed(stream), n * d, TERMS=TERMS)
    return out


def _signed(stream: int) -> int:
    """The 32 bits of a stream as a kernel takes them: one type, whatever their first."""
    return stream - (stream >> 31 << 32)


def _launch(kernel, counter: Tensor, out: Tensor, n: int, *arguments, rows: int = BLOCK, **constants) -> None:
    """One program for each ``rows`` of n elements; nothing for none."""
    launch.check_device(counter)
    if n == 0:
        return
    with launch.on_device(counter):
        kernel[(triton.cdiv(n, rows),)](counter, out, *arguments, BLOCK=rows, **constants, **OPTIONS)
