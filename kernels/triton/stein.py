"""The Stein kernel on GPUs: its sum over pairs, the derivatives of that, and the direction of SVGD.

Functions and conventions of ``reference/stein.py``; formulas in csrc/stein/stein.h. Inner products are formed from
differences that are subtracted first and scaled after, so clouds far from the origin lose nothing. A value takes each
pair of tiles once. Nothing is read by the host, so all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gwf_fast.kernels.occupancy import column_splits
from gwf_fast.kernels.plain import plain
from gwf_fast.kernels.triton import launch
from gwf_fast.kernels.triton.direct import bits, computed_in, for_dtype
from gwf_fast.kernels.triton.launch import FEW, GROUP, Config
from gwf_fast.kernels.triton.packing import mixture
from gwf_fast.kernels.triton.stein_kernels import stein_gradient_kernel, stein_value_kernel

CONFIGS = {
    ("value", "few"): Config(32, 32, 16, 4, thrift=5, registers=255),
    ("value", "many"): Config(64, 32, 16, 8, thrift=5, registers=255),
    ("gradient", "few"): Config(32, 16, 16, 4, thrift=5, registers=255),
    ("gradient", "many"): Config(32, 16, 32, 8, registers=255),
}
"""Tiles of pairs: the value keeps three sums of a pair while coordinates go by, gradients also their own."""


def stein_sum(x: Tensor, score: Tensor, spec: Sequence[float], diagonal: bool) -> Tensor:
    """sum_ij of the Stein kernel, [B] in float64; x, score [B, N, D]."""
    launch.check_device(x)
    batch, n, _ = x.shape
    if batch == 0 or n == 0:
        return x.new_zeros(batch, dtype=torch.float64)
    call = _Call(x, score, spec, "value")
    offsets = call.tiles // 2 + 1
    splits = column_splits(batch * call.tiles, offsets * call.config.rows, call.config.rows, call.multiprocessors)
    partial = torch.empty(batch, splits * call.tiles, dtype=torch.float64, device=x.device)
    with launch.on_device(x):
        stein_value_kernel[(batch * call.tiles * splits,)](
            *call.arguments(), partial, *call.sizes(), splits, DIAGONAL=diagonal, **call.constants(2)
        )
    return partial.sum(1)


def stein_sum_gradients(x: Tensor, score: Tensor, spec: Sequence[float], diagonal: bool) -> tuple[Tensor, Tensor]:
    """The derivatives of ``stein_sum`` in x and score, [B, N, D] each."""
    of_x, of_score = _gradients(x, score, spec, diagonal, with_x=True)
    return of_x, of_score


def svgd_sum(x: Tensor, score: Tensor, spec: Sequence[float]) -> Tensor:
    """sum_j [k(x_j, x_i) score_j + grad_{x_j} k(x_j, x_i)], [B, N, D]: half the derivative of ``stein_sum`` in s_i."""
    return _gradients(x, score, spec, True, with_x=False)[1]


def _gradients(x: Tensor, score: Tensor, spec: Sequence[float], diagonal: bool, with_x: bool) -> tuple[Tensor, Tensor]:
    launch.check_device(x)
    batch, n, dim = x.shape
    if x.numel() == 0:
        return torch.zeros_like(x), torch.zeros_like(x)
    call = _Call(x, score, spec, "gradient")
    block = 16 if call.few else launch.channel_block(dim, call.config.channels)
    chunks = 1 if call.few else -(-dim // block)
    splits = column_splits(batch * call.tiles * chunks, n, call.config.cols, call.multiprocessors)
    out = torch.empty(2, splits, batch, n, dim, dtype=call.dtype, device=x.device)
    with launch.on_device(x):
        stein_gradient_kernel[(batch * call.tiles * chunks * splits,)](
            *call.arguments(), call.x, call.score, out[0], out[1], *call.sizes(), chunks, splits,
            DIAGONAL=diagonal, WITH_X=with_x, BC=block, GROUP=GROUP, **call.constants(3 if with_x else 1),
        )  # fmt: skip
    of_x, of_score = (out[:, 0] if splits == 1 else out.sum(1)).to(x.dtype)
    return of_x, of_score


class _Call:
    """What every launch is given: beyond a few coordinates, points lie coordinate by coordinate."""

    def __init__(self, x: Tensor, score: Tensor, spec: Sequence[float], kind: str) -> None:
        self.batch, self.n, self.dim = x.shape
        self.few = self.dim <= FEW
        self.dtype, self.computed_in = computed_in(x.dtype)
        config = CONFIGS[kind, "few" if self.few else "many"]
        self.config = for_dtype(config, x.dtype)
        self.tiles = -(-self.n // self.config.rows)
        self.multiprocessors = launch.multiprocessors(x.device)
        self.mixture = mixture(tuple(map(float, spec)))
        self.parameters = self.mixture.parameters(self.dtype, x.device)
        self.x, self.score = plain(x), plain(score)
        self.columns = [t if self.few else plain(t.mT) for t in (self.x, self.score)]

    def arguments(self) -> list[Tensor]:
        return [*self.columns, self.parameters]

    def sizes(self) -> list[int]:
        return [bits(self.mixture.scale**2), self.n, self.tiles, self.dim]

    def constants(self, order: int) -> dict:
        return {
            "JETS": self.mixture.jets(order),
            "D": self.dim if self.few else 0,
            "DTYPE": self.computed_in,
            "BM": self.config.rows,
            "BN": self.config.cols,
            **launch.compiler_options(self.config),
        }
