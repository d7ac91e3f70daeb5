"""From the tensors of a call to what the kernels read: centred, scaled, channel-major and padded to whole tiles."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import sympy as sp
import torch
from torch import Tensor

from gwf_fast.kernels.occupancy import column_splits
from gwf_fast.kernels.profiles import PROFILES, s
from gwf_fast.kernels.triton import launch
from gwf_fast.kernels.triton.profiles_generated import EXPONENTS, JETS


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


@functools.lru_cache(maxsize=256)
def _parameters(mixture: Mixture, dtype: torch.dtype, device: torch.device) -> Tensor:
    value_scale = mixture.rows[0][0] if len(mixture.rows) == 1 else 1.0
    flat = [number for row in mixture.rows for number in row]
    return torch.tensor([value_scale, 2.0 * mixture.scale * value_scale, *flat], dtype=dtype, device=device)


class Pairs:
    """The packed coordinates of one call, and what every launch needs."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        spec: Sequence[float],
        block: tuple[int, int],
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
    ) -> None:
        self.block_rows, self.block_cols = block
        self.batch, self.n, self.dim = x.shape
        self.m = y.shape[1]
        self.device = x.device
        self.dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
        self.mixture = mixture(tuple(map(float, spec)))
        self.parameters = self.mixture.parameters(self.dtype, self.device)
        self.n_tiles = -(-self.n // self.block_rows)
        self.m_tiles = -(-self.m // self.block_cols)
        self._columns = None if y_lengths is None else torch.arange(self.m, device=self.device) < y_lengths[:, None]
        self.x_lengths = self._lengths(x_lengths, self.n)
        self.y_lengths = self._lengths(y_lengths, self.m)

        y = self._present(y.to(self.dtype))
        self.centre = self._centre(y)  # [B, 1, D]
        self.x_scaled = (x.to(self.dtype) - self.centre) * self.mixture.scale  # [B, N, D]
        self.y_scaled = self._present((y - self.centre) * self.mixture.scale)  # [B, M, D]
        self.depth = self.dim
        self.x = self._pack(self.x_scaled, self.n_tiles * self.block_rows, self.depth)
        self.y = self._pack(self.y_scaled, self.m_tiles * self.block_cols, self.depth)

    def _lengths(self, lengths: Tensor | None, full: int) -> Tensor:
        if lengths is None:
            return torch.full((self.batch,), full, dtype=torch.int64, device=self.device)
        return lengths.to(device=self.device, dtype=torch.int64).clamp(0, full)

    def _present(self, value: Tensor) -> Tensor:  # [B, M, K], zero where the column doesn't exist
        return value if self._columns is None else torch.where(self._columns[:, :, None], value, 0.0)

    def _centre(self, y: Tensor) -> Tensor:
        count = self.y_lengths.clamp(min=1)[:, None, None]
        mean = y.sum(1, keepdim=True) / count
        return torch.where(mean.isfinite(), mean, 0.0)  # an infinite point must not make every difference NaN

    @staticmethod
    def _pack(value: Tensor, length: int, channels: int, fill: float = 0.0) -> Tensor:
        batch, given, k = value.shape
        packed = value.new_full((batch, channels, length), fill)
        packed[:, :k, :given] = value.transpose(1, 2)
        return packed

    def columns(self, value: Tensor | None, scale: float = 1.0, fill: float = 0.0) -> Tensor:
        """Packs scale * values by column [B, M, K], zero (or `fill`) where the column doesn't exist; None is ones."""
        if value is None:
            value = torch.ones((self.batch, self.m, 1), dtype=self.dtype, device=self.device)
        value = value.to(self.dtype) * scale
        if self._columns is not None:
            value = torch.where(self._columns[:, :, None], value, fill)
        return self._pack(value, self.m_tiles * self.block_cols, value.shape[2], fill)

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
