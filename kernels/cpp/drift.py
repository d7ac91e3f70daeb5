"""Drifting on the CPU, compiled (csrc/drift/drift.h). Float32 or float64, x [B, N, D]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_CACHED_PAIRS = 1 << 17


def in_cache(rows: int, columns: int) -> bool:
    """Whether a problem's distances stay in a core's cache, where they are computed once (csrc/drift/entry.h)."""
    return rows * columns <= _CACHED_PAIRS and rows <= columns


def forces(
    x: Tensor,  # [B, N, D]
    targets: Tensor,  # [B, M, D]: negatives, then positives
    weights: Tensor | None,  # of the affinities, [B, M] or [B, N, M]
    split: int,
    sizes: Tensor | None,  # [B, 3] int64: rows, split and columns of each problem; None: N, split, M
    temperatures: Tensor,  # [K, B], in units of distance
    own: Tensor | None,  # [B], added to the distance of row i and column i
    floor: float,  # least squared distance
    clip: float,  # least product of the softmaxes
    log_weights: Tensor | None = None,  # of the kernel, [B, M]; a target of -inf does not count
) -> Tensor:
    """V of Algorithm 2 (Deng et al. 2026) at each temperature, [K, B, N, D]; 0 beyond a problem's rows."""
    out = x.new_empty(len(temperatures), *x.shape)
    _cpu().drift(x, targets, weights, split, sizes, temperatures, own, floor, clip, out, None, log_weights)
    return out


def total_distances(
    x: Tensor, targets: Tensor, weights: Tensor | None, split: int, sizes: Tensor | None, floor: float
) -> Tensor:
    """sum_ij w_j r_ij of each problem, [B] in float64; r is at least sqrt(floor)."""
    total = torch.empty(len(x), dtype=torch.float64)
    _cpu().drift(x, targets, weights, split, sizes, x.new_empty(0, len(x)), None, floor, 0.0, None, total)
    return total


def gmd(
    x: Tensor,  # [*B, N, D], of at most two batch dimensions
    y: tuple[Tensor, Tensor | None],  # [*B, P, D] and logarithms of weights [*B, P]
    negatives: tuple[Tensor, Tensor | None],  # [*B, Nn, D], [*B, Nn]
    temperatures: list[float],
    clip: float,
    exclude_self: bool,
) -> Sequence[Tensor] | None:
    """The drifts of Algorithm 2 from its sets, each [*B, N, D]; None where coordinates are none, or ask for a unit."""
    count = len(temperatures)
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if count == 1 else x.new_empty(count, *x.shape)
    found = _cpu().joint_drift(
        x, None, (negatives,), *y, temperatures, clip, exclude_self, False, out, None, None, True
    )
    return ((out,) if count == 1 else out.unbind()) if found else None


def released(
    sets: Sequence[tuple[Tensor, Tensor | None]],  # points [B, M, D] and weights [B, M] or [B, N, M]: x, negatives, y
    temperatures: list[float],
    clip: float,
    per_problem: bool,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Velocity [B, N, D], scale [] or [B], raw [K] or [B, K] of the released variant; None likewise."""
    (x, x_weights), (y, y_weights) = sets[0], sets[-1]
    velocity = torch.empty_like(x, memory_format=torch.contiguous_format)
    each = (len(x),) if per_problem else ()
    scale, raw = x.new_empty(each), x.new_empty(*each, len(temperatures))
    found = _cpu().joint_drift(
        x, x_weights, sets[:-1], y, y_weights, temperatures, clip, False, per_problem, velocity, scale, raw, False
    )
    return (velocity, scale, raw) if found else None


def _cpu() -> Any:
    from gwf_fast.kernels.cpp.pairs import _cpu  # only when called: other backends do without the extension

    return _cpu
