"""The backend "cpp": compiled C++ for the CPU, float32 and float64. Same functions as ``reference/pairs.py``.

Tensors may come without the batch dimension, all alike, and in any memory order. They cross into C++ as they are:
``csrc/bindings/crossing.h`` looks at type, device, layout and size of each. Sizes go to ``new_empty`` one by one: a
tuple doubles its price.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import torch  # loaded first: its OpenMP runtime serves the extension too, so that one thread pool does all
from torch import Tensor

try:
    from gwf_fast import _cpu
except ImportError as error:
    raise ImportError(
        "gwf_fast._cpu, the compiled CPU backend, is missing or broken: install the package again with "
        f"`pip install -e .` or `pip install .`, with a C++20 compiler at hand ({error})"
    ) from error

if hasattr(os, "register_at_fork"):
    # The extension tells OpenMP that a forked child has one thread (csrc/team.cpp). MKL, which torch takes exponentials
    # from, goes by a number of its own and would wait for threads that are not there.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(torch.get_num_threads()))

_SUM, _GRADIENT, _SUM_GRADIENT, _LOGSUMEXP, _AVERAGE, _JET = (
    int(getattr(_cpu.Reduction, name)) for name in ("sum", "gradient", "sum_gradient", "logsumexp", "average", "jet")
)

Tangent = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


@functools.lru_cache(maxsize=4096)
def _kernel(spec: tuple[float, ...]) -> _cpu.Kernel:
    return _cpu.Kernel(list(spec))


def kernel_of(spec: tuple[float, ...]) -> _cpu.Kernel:
    """A kernel as compiled code has it."""
    return _kernel(tuple(spec))


def _per_row(x: Tensor, *channels: int) -> Tensor:
    """An output of a number, or of some channels, a row. (Slices of a shape would take longer than a small sum.)"""
    shape = x.shape
    return x.new_empty(shape[0], *channels) if len(shape) == 2 else x.new_empty(shape[0], shape[1], *channels)


def pair_sum(
    x: Tensor,
    y: Tensor,
    b: Tensor | None,
    spec: tuple[float, ...],
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> Tensor:
    """sum_j b_j k_ij, [B, N, C]; or [B, N] where b has no channels."""
    if b is not None and b.ndim == y.ndim:
        channels = b.shape[-1]
        out = _per_row(x, channels)
    else:
        channels = 1
        out = _per_row(x)
    _cpu.pairwise(kernel_of(spec), _SUM, x, y, b, out, None, exclude_self, None, None, None, x_lengths, y_lengths)
    return out


def pair_gradient(
    x: Tensor,
    y: Tensor,
    b: Tensor | None,
    spec: tuple[float, ...],
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """sum_j b_j grad_x k_ij, [B, N, D]; written to ``out`` where given, contiguous and not x or y."""
    out = torch.empty_like(x) if out is None else out
    _cpu.pairwise(kernel_of(spec), _GRADIENT, x, y, b, out, None, exclude_self, None, None, None, x_lengths, y_lengths)
    return out


def pair_sum_gradient(
    x: Tensor,
    y: Tensor,
    b: Tensor | None,
    spec: tuple[float, ...],
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Both of the above in one pass over the pairs, [B, N] and [B, N, D]."""
    out, out2 = _per_row(x), torch.empty_like(x)
    _cpu.pairwise(
        kernel_of(spec), _SUM_GRADIENT, x, y, b, out, out2, exclude_self, None, None, None, x_lengths, y_lengths
    )
    return out, out2


def pair_logsumexp(
    x: Tensor,
    y: Tensor,
    beta: Tensor | None,
    spec: tuple[float, ...],
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> Tensor:
    """log sum_j e^beta_j k_ij, [B, N]."""
    out = _per_row(x)
    _cpu.pairwise(
        kernel_of(spec), _LOGSUMEXP, x, y, None, out, None, exclude_self, None, None, beta, x_lengths, y_lengths
    )
    return out


def pair_average(
    x: Tensor,
    y: Tensor,
    v: Tensor | None,
    beta: Tensor | None,
    spec: tuple[float, ...],
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """sum_j p_ij v_j with p_ij in proportion to e^beta_j k_ij, [B, N, C], and the log-sum-exp, [B, N]."""
    channels = x.shape[-1] if v is None else v.shape[-1]
    out, out2 = _per_row(x, channels), _per_row(x)
    _cpu.pairwise(kernel_of(spec), _AVERAGE, x, y, v, out, out2, exclude_self, None, None, beta, x_lengths, y_lengths)
    return out, out2


def pair_jet(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    alpha: Tensor | None,
    beta: Tensor | None,
    tangents: Sequence[Tangent],
    spec: tuple[float, ...],
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The (x, a) part of grad D_t1 .. D_tk E (csrc/pairwise/jet.h), [B, N, D] and [B, N, C]."""
    out, out2 = torch.empty_like(x), torch.empty_like(a)
    _cpu.pairwise(
        kernel_of(spec), _JET, x, y, b, out, out2, exclude_self, a, alpha, beta, x_lengths, y_lengths, tangents
    )
    return out, out2


def stein_sum(x: Tensor, score: Tensor, spec: tuple[float, ...], diagonal: bool) -> Tensor:
    """sum_ij of the Stein kernel (csrc/stein/stein.h), [B] in float64; x, score [B, N, D]."""
    total = x.new_zeros(x.shape[0], dtype=torch.float64)
    _cpu.stein(kernel_of(spec), x, score, diagonal, total)
    return total


def stein_sum_gradients(x: Tensor, score: Tensor, spec: tuple[float, ...], diagonal: bool) -> tuple[Tensor, Tensor]:
    """The derivatives of ``stein_sum`` in x and score, [B, N, D] each."""
    gx, gs = torch.empty_like(x), torch.empty_like(score)
    _cpu.stein(kernel_of(spec), x, score, diagonal, None, gx, gs)
    return gx, gs


def near_field(
    x: Tensor,  # [N, D], float64
    cell: Tensor,  # [N], int64
    y: Tensor,  # [M, D], float64, sorted by cell
    b: Tensor,  # [M], float64
    start: Tensor,  # [cells + 1], int64
    grid: Sequence[int],
    reach: int,
    spec: tuple[float, ...],
    radius: float,
    degree: int,
    order: int,
) -> Tensor:
    """sum_j b_j d^a (phi(q) - phi(Q(q))) over the cells within reach and the radius (near_field.h), [N, A]."""
    (rows, dim), columns = x.shape, y.shape[0]
    padded = torch.zeros(dim + 1, columns + 8, dtype=torch.float64)  # a vector may read past the last source
    padded[:dim, :columns], padded[dim, :columns] = y.T, b
    out = x.new_zeros(rows, (1, dim, dim * (dim + 1) // 2)[order])
    cells = [1] * (3 - dim) + list(grid)
    _cpu.near_field(kernel_of(spec), order, degree, radius, x, cell, padded, start, cells, reach, out)
    return out
