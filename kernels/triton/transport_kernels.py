"""Kernel of Sinkhorn's iteration for small problems: all sweeps of one in one program, its costs in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from gwf_fast.kernels.triton.direct import number

LOG2_E = tl.constexpr(1.4426950408889634)
WINDOW = tl.constexpr(10)
"""Sweeps over which the rate of convergence is measured."""

LARGEST = tl.constexpr(1.99)
"""Factor of over-relaxation."""


@triton.jit
def softened_minimum(costs, log_weights, potential, damping, AXIS: tl.constexpr):
    """-damping log2 sum 2**(log_weights + potential - costs) along an axis, everything in units of eps log 2."""
    shifted = tl.expand_dims(log_weights + potential, 1 - AXIS)
    largest = tl.max(shifted - costs, AXIS)
    origin = tl.where(largest == float("-inf"), 0.0, largest)
    # the difference again, and not kept: registers are full of costs
    mass = tl.sum(tl.exp2((shifted - tl.expand_dims(origin, AXIS)) - costs), AXIS)
    return -damping * (origin + tl.log2(mass))


@triton.jit
def expm1_base2(t):
    """2**t - 1 without cancellation."""
    u = t * 0.6931471805599453
    series = u * (1.0 + u * (0.5 + u * (0.16666666666666666 + u * (0.041666666666666664 + u * 0.008333333333333333))))
    return tl.where(tl.abs(u) < 0.03, series, tl.exp2(t) - 1.0)


@triton.jit
def marginal_error(weights, potential, best, inverse_strength):
    """sum |sum_i pi_ij - what is wanted| / sum of the weights; `best` is the update for the other potential."""
    wanted = weights * tl.exp2(-best * inverse_strength)
    missed = tl.sum(tl.where(weights > 0.0, wanted * tl.abs(expm1_base2(potential - best)), 0.0), 0)
    return missed / tl.sum(weights, 0)


@triton.jit
def relaxed(factor, before, error):
    """The factor of successive over-relaxation after a window of sweeps (gwf_fast/transport/solve.py says why)."""
    rate = tl.exp2(tl.log2(error / before) / WINDOW)
    contraction = tl.minimum((rate + factor - 1.0) * (rate + factor - 1.0) / (rate * factor * factor), 1.0)
    best = tl.minimum(2.0 / (1.0 + tl.sqrt(1.0 - contraction)), LARGEST)
    faster = tl.where(rate > 0.3, tl.maximum(factor, best), factor)
    found = tl.where(rate >= 1.0, 1.0 + 0.5 * (factor - 1.0), faster)
    return tl.where((before > 0.0) & (error > 0.0), found, factor)


@triton.jit(
    do_not_specialize=["epsilon", "damping", "inverse_strength", "tolerance", "n", "m", "dim", "max_iterations"]
)
def sinkhorn_kernel(
    x, y, log_a, log_b, start, f_out, g_out, sweeps_out, error_out,
    epsilon, damping, inverse_strength, tolerance, n, m, dim, max_iterations,
    P: tl.constexpr, Y_ROWS: tl.constexpr, STARTED: tl.constexpr, ITSELF: tl.constexpr, DTYPE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The iterations of gwf_fast/transport/solve.py, one problem a program, each until its own marginals hold.

    Weights come as base-2 logarithms. ITSELF: of a sample with itself, by averaged updates; y and log_b are then x
    and log_a, and g_out is not written.
    """
    batch = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BM)
    col = tl.arange(0, BN)
    at_row = tl.minimum(row, n - 1)
    at_col = tl.minimum(col, m - 1)
    x += batch * n * dim
    y += batch * m * dim
    # The longer side is that of the tile's rows: a thread then has few columns, and needs fewer registers.
    OF_F: tl.constexpr = 0 if Y_ROWS else 1  # the axis that an update of f reduces: that of y
    OF_G: tl.constexpr = 1 - OF_F
    q = tl.zeros((BN, BM) if Y_ROWS else (BM, BN), DTYPE)
    for k in range(dim):
        x_k = tl.expand_dims(tl.load(x + at_row * dim + k).to(DTYPE), OF_F)
        d = x_k - tl.expand_dims(tl.load(y + at_col * dim + k).to(DTYPE), OF_G)
        q += d * d
    eps = number(epsilon, DTYPE)
    unit = LOG2_E / eps
    costs = (0.5 * q if P == 2 else tl.sqrt(q)) * unit
    log_a += batch * n
    log_b += batch * m
    nothing = float("-inf")  # weights are read again in every sweep: registers are full
    damp = number(damping, DTYPE)
    # potentials are in units of eps log 2: 2**(-F scale) is exp(-f / rho)
    scale = eps * number(inverse_strength, DTYPE)
    enough = number(tolerance, DTYPE)
    n_sweeps = tl.zeros((), tl.int32)
    error = tl.zeros((), DTYPE)
    going = True
    g = tl.zeros((BN,), DTYPE)
    if STARTED:
        g = tl.load(start + batch * m + at_col).to(DTYPE) * unit
    f = softened_minimum(costs, tl.load(log_b + at_col, mask=col < m, other=nothing).to(DTYPE), g, damp, OF_F)
    if ITSELF:
        while going:
            logs = tl.load(log_b + at_col, mask=col < m, other=nothing).to(DTYPE)
            best = softened_minimum(costs, logs, f, damp, OF_F)
            n_sweeps += 1
            error = marginal_error(tl.exp2(logs), f, best, scale)
            going = (error > enough) & (n_sweeps < max_iterations)
            f = tl.where(going, 0.5 * (f + best), f)
    else:
        factor = tl.full((), 1.0, DTYPE)
        before = tl.zeros((), DTYPE)
        exact = True
        while going:
            logs = tl.load(log_a + at_row, mask=row < n, other=nothing).to(DTYPE)
            best = softened_minimum(costs, logs, f, damp, OF_G)
            n_sweeps += 1
            logs = tl.load(log_b + at_col, mask=col < m, other=nothing).to(DTYPE)
            error = marginal_error(tl.exp2(logs), g, best, scale)
            finished = (error <= enough) | (n_sweeps >= max_iterations)
            going = (finished & exact) == 0
            if going:
                measured = (n_sweeps % WINDOW == 0) & (finished == 0)
                factor = tl.where(measured, relaxed(factor, before, error), factor)
                before = tl.where(measured, error, before)
                last = finished | (n_sweeps + 1 >= max_iterations)
                step = tl.where(last, 1.0, factor).to(DTYPE)
                g += step * (best - g)
                f += step * (softened_minimum(costs, logs, g, damp, OF_F) - f)
                exact = step == 1.0
        tl.store(g_out + batch * m + col, g / unit, mask=col < m)
    tl.store(f_out + batch * n + row, f / unit, mask=row < n)
    tl.store(sweeps_out + batch, n_sweeps.to(tl.int64))
    tl.store(error_out + batch, error)
