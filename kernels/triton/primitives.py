"""The functions that generated jets are written in, for Triton.

Exponentials and logarithms are base 2, which GPUs have instructions for; in float32 these are accurate to about
2 ulp of their argument's scale and flush results below 2**-126 to zero.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp2_minus(shift, x):
    """2**(shift - x)."""
    if shift is None:
        return tl.exp2(-x)
    else:
        return tl.exp2(shift - x)


@triton.jit
def times_exp2(value, shift):
    """value * 2**shift."""
    if shift is None:
        return value
    else:
        return value * tl.exp2(shift)


@triton.jit
def root(t):
    """sqrt(t)."""
    return tl.sqrt(t)


@triton.jit
def two_rsqrt(u):
    """2/sqrt(u) for u > 0."""
    return 2.0 * tl.rsqrt(u)


@triton.jit
def rsqrt0(t):
    """1/sqrt(t), and 0 at coincident points; NaN stays NaN."""
    return tl.where(t == 0.0, 0.0, tl.rsqrt(t))


@triton.jit
def inverse(u):
    """1/u."""
    return 1.0 / u


@triton.jit
def log2_of(u):
    """Base-2 logarithm for u > 0."""
    return tl.log2(u)


@triton.jit
def pow0(t, e):
    """t**e; at t = 0: 0**0 is 1 and every other power 0."""
    at_zero = tl.where(e == 0.0, 1.0, 0.0).to(t.dtype)
    return tl.where(t == 0.0, at_zero, tl.exp2(e * tl.log2(t)))


@triton.jit
def log0(t):
    """log(t), and 0 at coincident points."""
    return tl.where(t == 0.0, 0.0, tl.log2(t) * 0.6931471805599453)
