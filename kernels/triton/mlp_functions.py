"""The elementwise functions of perceptrons, with their first derivative: those of ``csrc/mlp/functions.h``.

Each takes values v and a constant p. None overflows where its result does not, and small results keep their relative
accuracy, as in the C++ of the same names.
"""

from __future__ import annotations

import triton
import triton.language as tl

SMALL = tl.constexpr(0.35)
"""Up to here e^x - 1 is summed from its series."""


@triton.jit
def expm1(x):
    """e^x - 1, accurate near 0."""
    terms: tl.constexpr = 14 if x.dtype == tl.float64 else 8
    near = tl.minimum(tl.maximum(x, -SMALL), SMALL)
    series = tl.full(x.shape, 1.0, x.dtype)
    for k in tl.static_range(terms - 1):
        series = 1.0 + near * series / (terms - k)
    return tl.where(tl.abs(x) < SMALL, near * series, tl.exp(x) - 1.0)


@triton.jit
def log1p_fraction(e):
    """log(1 + e) for 0 <= e <= 1: the quotient undoes the rounding of 1 + e."""
    u = 1.0 + e
    kept = u - 1.0
    safe = tl.where(kept == 0.0, 1.0, kept)
    return tl.where(kept == 0.0, e, tl.log(u) * (e / safe))


@triton.jit
def logistic(x):
    """sigmoid(x), sigmoid(-x) and log(1 + e^x)."""
    e = tl.exp(-tl.abs(x))
    large = 1.0 / (1.0 + e)
    small = e * large
    return tl.where(x < 0.0, small, large), tl.where(x < 0.0, large, small), positive_part(x) + log1p_fraction(e)


@triton.jit
def positive_part(x):
    """max(x, 0); NaN stays NaN."""
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def identity(v, p):
    """v + p."""
    return v + p, tl.full(v.shape, 1.0, v.dtype)


@triton.jit
def leaky(v, p):
    """v above 0, p v below."""
    slope = tl.where(v > 0.0, 1.0, p)
    return v * slope, slope


@triton.jit
def elu(v, p):
    """v above 0, p (e^v - 1) below."""
    below = expm1(tl.where(v > 0.0, 0.0, v))
    return tl.where(v > 0.0, v, p * below), tl.where(v > 0.0, 1.0, p * (below + 1.0))


@triton.jit
def silu(v, p):
    """v sigmoid(v)."""
    up, down, _ = logistic(v)
    return v * up, up + v * up * down


@triton.jit
def softplus(v, p):
    """log(1 + e^v) + p."""
    up, _, soft = logistic(v)
    return soft + p, up


@triton.jit
def tanh(v, p):
    """p tanh(v)."""
    e = expm1(-2.0 * tl.abs(v))  # in [-1, 0]
    inverse = 1.0 / (2.0 + e)
    size = -e * inverse
    return tl.where(v < 0.0, -size, size) * p, 4.0 * (1.0 + e) * inverse * inverse * p


@triton.jit
def sigmoid(v, p):
    """p sigmoid(v)."""
    up, down, _ = logistic(v)
    return up * p, up * down * p


@triton.jit
def log_sigmoid(v, p):
    """p + log sigmoid(v)."""
    up, _, soft = logistic(-v)
    return p - soft, up


@triton.jit
def minus_exp(v, p):
    """p - e^-v, for p = 0 and 1."""
    e = tl.exp(-v)
    return tl.where(p == 0.0, -e, (p - 1.0) - expm1(-v)), e


@triton.jit
def square(v, p):
    """v^2."""
    return v * v, 2.0 * v


@triton.jit
def expm1_of(v, p):
    """e^v - 1."""
    return expm1(v), tl.exp(v)


FUNCTIONS = {
    "identity": identity,
    "leaky": leaky,
    "elu": elu,
    "silu": silu,
    "softplus": softplus,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "log_sigmoid": log_sigmoid,
    "minus_exp": minus_exp,
    "square": square,
    "expm1": expm1_of,
}
"""(value, derivative) of a network's functions, by the names of ``MLPSpec``."""
