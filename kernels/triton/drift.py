"""Drifting on GPUs: functions and conventions of ``reference/drift.py``.

A problem of at most 64 rows is one program's: its distances are computed once for all temperatures and stay in cache.
Larger ones take three sweeps over the pairs (logarithms of rows and of columns in one launch, then forces), each for
all temperatures, and nothing of size N x M is stored. Nothing is read by the host.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from gwf_fast.kernels.occupancy import column_splits
from gwf_fast.kernels.plain import plain
from gwf_fast.kernels.reference import drift as reference
from gwf_fast.kernels.triton import launch
from gwf_fast.kernels.triton.direct import bits, computed_in, for_dtype
from gwf_fast.kernels.triton.drift_kernels import (
    drift_combine_kernel,
    drift_forces_kernel,
    drift_logs_kernel,
    drift_small_kernel,
    drift_total_kernel,
)
from gwf_fast.kernels.triton.launch import FEW, Config

SMALL = 64
"""Rows of a problem that one program has to itself."""

PROGRAMS = 4
"""Of small problems, on a multiprocessor at a time: what their distances take of the cache."""

CONFIGS = {
    "small": Config(SMALL, 32, 64, 8, registers=255),
    "logs": Config(32, 32, 16, 4, thrift=5, registers=255),
    "forces": Config(32, 16, 32, 8, registers=255),
    "total": Config(32, 32, 16, 4, thrift=5, registers=255),
}


def forces(
    x: Tensor,  # [B, N, D]
    targets: Tensor,  # [B, M, D]: negatives, then positives
    weights: Tensor | None,  # [B, M]
    split: int,
    sizes: Tensor | None,  # [B, 3] int64: rows, split and columns of each problem; None: N, split, M
    temperatures: Tensor,  # [K, B], in units of distance
    own: Tensor | None,  # [B], added to the distance of row i and column i
    floor: float,  # least squared distance
    clip: float,  # least product of the softmaxes
    log_weights: Tensor | None = None,  # of the kernel, [B, M]
) -> Tensor:
    """V of Algorithm 2 (Deng et al. 2026) at each temperature, [K, B, N, D]; 0 beyond a problem's rows."""
    launch.check_device(x)
    if log_weights is not None or _by_row(weights):
        return reference.forces(x, targets, weights, split, sizes, temperatures, own, floor, clip, log_weights)
    out = x.new_zeros if not targets.shape[1] else x.new_empty
    result = out(len(temperatures), *x.shape)
    if result.numel() == 0 or not targets.shape[1]:
        return result
    call = _Call(x, targets, weights, split, sizes, floor)
    limits = [bits(floor), bits(math.sqrt(clip))]
    solve = _small if x.shape[1] <= SMALL else _stream
    with launch.on_device(x):
        solve(call, plain(temperatures), own, limits, result)
    return result


def total_distances(
    x: Tensor, targets: Tensor, weights: Tensor | None, split: int, sizes: Tensor | None, floor: float
) -> Tensor:
    """sum_ij w_j r_ij of each problem, [B] in float64; r is at least sqrt(floor)."""
    launch.check_device(x)
    if _by_row(weights):
        return reference.total_distances(x, targets, weights, split, sizes, floor)
    batch, n, _ = x.shape
    if x.numel() == 0 or not targets.shape[1]:
        return x.new_zeros(batch, dtype=torch.float64)
    call = _Call(x, targets, weights, split, sizes, floor)
    config = call.config("total")
    tiles = -(-n // config.rows)
    partial = torch.empty(batch, tiles, dtype=torch.float64, device=x.device)
    with launch.on_device(x):
        drift_total_kernel[(batch * tiles,)](
            call.x, call.y, call.weights, call.sizes, partial, bits(floor), *call.counts, tiles,
            **call.constants(config, "WEIGHTED"),
        )  # fmt: skip
    return partial[:, 0] if tiles == 1 else partial.sum(1)


def _by_row(weights: Tensor | None) -> bool:
    """Whether each row has weights of its own, which no program reads: these, and the kernel's, are PyTorch's part."""
    return weights is not None and weights.ndim == 3


class _Call:
    """What every launch is given; beyond a few coordinates, points lie coordinate by coordinate as well."""

    def __init__(
        self, x: Tensor, targets: Tensor, weights: Tensor | None, split: int, sizes: Tensor | None, floor: float
    ) -> None:
        self.batch, n, self.dim = x.shape
        self.counts = [n, split, targets.shape[1], self.dim]
        self.few = self.dim <= FEW
        self.dtype, self.computed_in = computed_in(x.dtype)
        self.points = plain(targets)
        self.x, self.y = (plain(x), self.points) if self.few else (plain(t.mT) for t in (x, targets))
        self.has = {"WEIGHTED": weights is not None, "RAGGED": sizes is not None}
        self.weights = self.x if weights is None else plain(weights)  # not read
        self.sizes = self.x if sizes is None else plain(sizes)  # likewise

    def config(self, kernel: str) -> Config:
        return for_dtype(CONFIGS[kernel], self.dtype)

    def constants(self, config: Config, *flags: str) -> dict:
        return {
            "D": self.dim if self.few else 0,
            "RAGGED": self.has["RAGGED"],
            **{flag: self.has[flag] for flag in flags},
            "DTYPE": self.computed_in,
            "BM": config.rows,
            "BN": config.cols,
            **launch.compiler_options(config),
        }


def _small(call: _Call, temperatures: Tensor, own: Tensor | None, limits: list[int], out: Tensor) -> None:
    config = call.config("small")
    n, _, m, dim = call.counts
    rows = max(16, triton.next_power_of_2(n))
    block = launch.channel_block(dim, config.channels)
    programs = min(call.batch, PROGRAMS * launch.multiprocessors(out.device))
    shape = (programs, -(-m // config.cols), rows, config.cols)
    distances = torch.empty(shape, dtype=call.dtype, device=out.device)
    drift_small_kernel[(programs,)](
        call.x, call.y, call.points, call.weights, call.sizes, temperatures, temperatures if own is None else own,
        distances, out, *limits, call.batch, *call.counts, len(temperatures),
        SELF=own is not None, BC=block, CHUNKS=-(-dim // block),
        **call.constants(config, "WEIGHTED") | {"BM": rows},
    )  # fmt: skip


def _stream(call: _Call, temperatures: Tensor, own: Tensor | None, limits: list[int], out: Tensor) -> None:
    n, _, m, dim = call.counts
    rates, batch = temperatures.shape
    shift = temperatures if own is None else own
    options = {"RATES": rates, "SELF": own is not None}
    logs = torch.empty(rates, batch, n + m, dtype=call.dtype, device=out.device)
    config = call.config("logs")
    tiles = [-(-count // config.rows) for count in (n, m)]
    drift_logs_kernel[(batch * sum(tiles),)](
        call.x, call.y, call.sizes, temperatures, shift, logs, limits[0], *call.counts, *tiles,
        **options, **call.constants(config),
    )  # fmt: skip
    config = call.config("forces")
    row_tiles, block = -(-n // config.rows), launch.channel_block(dim, config.channels)
    chunks = -(-dim // block)
    splits = column_splits(batch * row_tiles * chunks, m, config.cols, launch.multiprocessors(out.device))
    sums = torch.empty(splits, rates, batch, n, 2 * (dim + 1), dtype=call.dtype, device=out.device)
    drift_forces_kernel[(batch * row_tiles * chunks * splits,)](
        call.x, call.y, call.points, call.weights, call.sizes, temperatures, shift, logs, sums, *limits,
        *call.counts, row_tiles, chunks, splits, BC=block, **options, **call.constants(config, "WEIGHTED"),
    )  # fmt: skip
    rows = 32
    drift_combine_kernel[(rates * batch * -(-n // rows),)](
        sums, call.sizes, out, batch, *call.counts, splits, rates, RAGGED=call.has["RAGGED"], BM=rows,
        BC=16, **launch.compiler_options(Config(rows, 16, 16, 4)),
    )  # fmt: skip
