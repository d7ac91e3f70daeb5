"""Entropic transport on GPUs: small problems, a batch of them in one launch with all its sweeps.

The costs of a problem stay in the registers of its program: up to 64 x 256 points, or half as many in float64. Each
problem stops where its own marginals hold. Nothing is read by the host.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from gwf_fast.kernels.plain import plain
from gwf_fast.kernels.triton import launch
from gwf_fast.kernels.triton.direct import bits, computed_in
from gwf_fast.kernels.triton.launch import Config
from gwf_fast.kernels.triton.transport_kernels import sinkhorn_kernel

LARGEST = {torch.float64: 1 << 13}
"""Pairs of a padded problem that fit in the registers of a program; of other types twice as many."""


def fits(n: int, m: int, dtype: torch.dtype) -> bool:
    """Whether problems of n x m points are small enough."""
    rows, cols = _padded(n), _padded(m)
    return rows * cols <= LARGEST.get(dtype, 1 << 14) and min(rows, cols) <= 64


def solve_small(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]; x itself for the problem of a sample with itself
    a: Tensor,  # [B, N]
    b: Tensor,  # [B, M]
    start: Tensor | None,  # [B, M]
    epsilon: float,
    *,
    p: int,
    strength: float | None,
    max_iterations: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Potentials [B, N] and [B, M], sweeps [B] and marginal errors [B] of problems that ``fits`` allows.

    The iterations of ``gwf_fast.transport.solve``, with a rate of convergence of its own for each problem.
    """
    launch.check_device(x)
    itself = x is y and a is b
    x, y, a, b = (plain(t) for t in (x, y, a, b))
    batch, n, dim = x.shape
    m = y.shape[1]
    dtype, in_triton = computed_in(x.dtype)
    f, g = torch.empty_like(a), torch.empty_like(b)
    sweeps = torch.empty(batch, dtype=torch.int64, device=x.device)
    error = torch.empty(batch, dtype=dtype, device=x.device)
    if batch == 0:
        return f, g, sweeps, error
    rows, cols = _padded(n), _padded(m)
    config = Config(rows, cols, 16, max(4, min(8, rows * cols // (2048 if dtype == torch.float32 else 1024))))
    log_a = a.to(dtype).log2()
    log_b = log_a if itself else b.to(dtype).log2()
    damping = 1.0 if strength is None else strength / (strength + epsilon)
    with launch.on_device(x):
        sinkhorn_kernel[(batch,)](
            x, y, log_a, log_b, a if start is None else plain(start), f, g, sweeps, error,
            bits(epsilon), bits(damping), bits(0.0 if strength is None else 1.0 / strength), bits(tolerance),
            n, m, dim, max_iterations, P=p, Y_ROWS=m > n, STARTED=start is not None, ITSELF=itself, DTYPE=in_triton,
            BM=rows, BN=cols, **launch.compiler_options(config),
        )  # fmt: skip
    return f, f if itself else g, sweeps, error.to(x.dtype)


def _padded(count: int) -> int:
    return max(16, triton.next_power_of_2(count))
