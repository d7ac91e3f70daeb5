"""Kernels' specs as the GPU reads them, and the points of a call: centred, scaled, channel-major, in whole tiles."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import sympy as sp
import torch
import triton
from torch import Tensor

from gwf_fast.kernels.occupancy import column_splits
from gwf_fast.kernels.table.profiles import PROFILES, s
from gwf_fast.kernels.triton import launch
from gwf_fast.kernels.triton.packing_kernels import ABSENT, CENTRED, pack_pairs_kernel
from gwf_fast.kernels.triton.profiles_generated import EXPONENTS, JETS, SLOPES

PACKED = 256
"""Points of a program that packs."""


@dataclass(frozen=True)
class Mixture:
    """The compile-time and run-time halves of a kernel's spec.

    Attributes:
        names: Profiles of the terms: part of the compiled kernel.
        scale: Coordinates are multiplied by this, so that t = q for the first term.
        rows: (coefficient, ratio, parameter) for each term, read from memory at run time.
        analytic: Whether every profile is smooth at q = 0, so that rounding errors in q don't matter there.
    """

    names: tuple[str, ...]
    scale: float
    rows: tuple[tuple[float, float, float], ...]
    analytic: bool

    def jets(self, order: int) -> tuple:
        """The jit functions of the jets of this order."""
        return tuple(JETS[name][order] for name in self.names)

    @property
    def slope(self) -> tuple[tuple, float]:
        """The jit functions of value and derivative, and a factor of the latter that is left to multiply with."""
        if len(self.names) > 1:
            return self.jets(1), 1.0
        function, factor = SLOPES[self.names[0]]
        return (function,), factor

    @property
    def exponents(self) -> tuple:
        """The jit functions of the exponents."""
        return tuple(EXPONENTS[name] for name in self.names)

    def parameters(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The table of tiles.py, on the device."""
        return _parameters(self, dtype, device)


@functools.lru_cache(maxsize=256)
def mixture(spec: tuple[float, ...]) -> Mixture:
    """Reads a spec: four numbers a term (profile, coefficient, bandwidth, parameter)."""
    profiles = list(PROFILES.values())
    terms = [spec[i : i + 4] for i in range(0, len(spec), 4)]
    units = [float(profiles[int(number)].unit.evalf(25)) / bandwidth**2 for number, _, bandwidth, _ in terms]
    rows = tuple(
        (coefficient, unit / units[0], parameter) for unit, (_, coefficient, _, parameter) in zip(units, terms)
    )
    used = [profiles[int(term[0])] for term in terms]
    analytic = all(_analytic(profile.name) for profile in used)
    return Mixture(tuple(profile.name for profile in used), math.sqrt(units[0]), rows, analytic)


@functools.cache
def _analytic(name: str) -> bool:
    """Whether phi has a power series at s = 0."""
    phi = PROFILES[name].phi
    return not phi.has(sp.log) and not any(power.base == s for power in phi.atoms(sp.Pow))


def _parameters(mixture: Mixture, dtype: torch.dtype, device: torch.device) -> Tensor:
    value_scale = mixture.rows[0][0] if len(mixture.rows) == 1 else 1.0
    flat = [number for row in mixture.rows for number in row]
    numbers = (value_scale, 2.0 * mixture.scale * value_scale, *flat, mixture.scale)
    return launch.numbers(numbers, dtype, device)


class Pairs:
    """The packed points of one call, and what every launch needs.

    Attributes:
        x, y: Scaled coordinates as the centre sees them, channel-major, padded to whole tiles [B, D, length].
        values: Of columns [B, C, length].
        logs: Base-2 logarithms of weights of columns, -inf in the padding [B, length].
        counts: How many rows and columns there are [2, B].
        centre: [B, D].
    """

    def __init__(
        self,
        x: Tensor,  # [B, N, D]
        y: Tensor,  # [B, M, D]
        spec: Sequence[float],
        block: tuple[int, int],
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        *,
        values: Tensor | None = None,  # [B, M, C]
        kind: int = ABSENT.value,
        log_weights: Tensor | None = None,  # [B, M]
        logs: int = ABSENT.value,
        row_values: Tensor | None = None,  # [B, N]
    ) -> None:
        """Packs, in one launch.

        Args:
            x: Rows.
            y: Columns.
            spec: Of the kernel.
            block: Rows and columns of a tile.
            x_lengths: Of ragged sets, or None.
            y_lengths: Likewise.
            values: Values of columns, where ``kind`` is GIVEN.
            kind: What the values are.
            log_weights: Natural logarithms of weights of columns, where ``logs`` is GIVEN.
            logs: What they are.
            row_values: Values of rows, for the MMD: then x and y, these and ``values`` follow on each other in
                ``joined`` [B, D, both lengths] and ``joined_values`` [B, 1, both lengths].
        """
        self.block_rows, self.block_cols = block
        self.batch, self.n, self.dim = x.shape
        self.m = y.shape[1]
        self.device = x.device
        self.dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
        self.mixture = mixture(tuple(map(float, spec)))
        self.parameters = self.mixture.parameters(self.dtype, self.device)
        self.n_tiles = -(-self.n // self.block_rows)
        self.m_tiles = -(-self.m // self.block_cols)
        self.depth = self.dim
        self._given_lengths = y_lengths
        n_padded, m_padded = self.n_tiles * self.block_rows, self.m_tiles * self.block_cols
        channels = self.dim if kind == CENTRED.value else 1 if values is None else values.shape[2]
        joins = row_values is not None
        planes = (n_padded + m_padded,) * 2 if joins else (n_padded, m_padded)
        if joins:
            self.joined = self.empty(self.batch, self.dim, planes[0])
            self.x, self.y = self.joined.split([n_padded, m_padded], 2)
            self.joined_values = self.empty(self.batch, 1, planes[0])
            a_out, self.values = self.joined_values.split([n_padded, m_padded], 2)
        else:
            self.x = self.empty(self.batch, self.dim, n_padded)
            self.y = self.empty(self.batch, self.dim, m_padded)
            a_out = self.x
            self.values = self.y if kind == ABSENT.value else self.empty(self.batch, channels, m_padded)
        self.logs = self.y if logs == ABSENT.value else self.empty(self.batch, m_padded)
        self.counts = torch.empty((2, self.batch), dtype=torch.int64, device=self.device)
        self.centre = self.empty(self.batch, self.dim)
        v = y if values is None else values
        blocks = -(-n_padded // PACKED) + -(-m_padded // PACKED)
        with launch.on_device(x):
            pack_pairs_kernel[(self.batch * blocks,)](
                x, y, v, y if row_values is None else row_values, y if log_weights is None else log_weights,
                self.counts if x_lengths is None else x_lengths, self.counts if y_lengths is None else y_lengths,
                self.parameters, self.x, self.y, self.values, a_out, self.logs, self.counts, self.centre,
                *x.stride(), *y.stride(), *v.stride(), self.n, self.m, self.dim, channels, n_padded, m_padded,
                *planes, self.parameters.shape[0] - 1,
                X_LENGTHS=x_lengths is not None, Y_LENGTHS=y_lengths is not None, VALUES=kind, LOGS=logs, A=joins,
                BR=PACKED, BK=min(4, triton.next_power_of_2(self.dim)),
                BC=min(4, triton.next_power_of_2(max(channels, 1))), num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
        self.x_lengths, self.y_lengths = self.counts

    @staticmethod
    def _pack(value: Tensor, length: int, channels: int) -> Tensor:
        batch, given, k = value.shape
        packed = value.new_zeros((batch, channels, length))
        packed[:, :k, :given] = value.transpose(1, 2)
        return packed

    def columns(self, value: Tensor, scale: float = 1.0) -> Tensor:
        """Packs scale * values by column [B, M, K], zero where the column doesn't exist."""
        value = value.to(self.dtype) * scale
        if self._given_lengths is not None:
            exists = torch.arange(self.m, device=self.device) < self._given_lengths[:, None]
            value = torch.where(exists[:, :, None], value, 0.0)
        return self._pack(value, self.m_tiles * self.block_cols, value.shape[2])

    def rows(self, value: Tensor, scale: float = 1.0) -> Tensor:
        """Packs scale * values by row [B, N, K]."""
        return self._pack(value.to(self.dtype) * scale, self.n_tiles * self.block_rows, value.shape[2])

    def empty(self, *shape: int) -> Tensor:
        """Room for a result."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def splits(self, chunks: int = 1, tiles: int | None = None) -> int:
        """Ranges that columns are cut into, where tiles of rows and chunks of channels do not fill the device."""
        programs = self.batch * (self.n_tiles if tiles is None else tiles) * chunks
        return column_splits(programs, self.m, self.block_cols, launch.multiprocessors(self.device))
