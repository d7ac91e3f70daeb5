"""From the points of a call to the panels that wide_tiles.py reads, in one launch.

Both sets lie one after the other, each padded to whole blocks: position p of x is row p, of y row x_length + p.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gwf_fast.kernels.occupancy import column_splits
from gwf_fast.kernels.triton import launch
from gwf_fast.kernels.triton.packing import Mixture, mixture
from gwf_fast.kernels.triton.packing_kernels import centre_of, existing_count, load_points
from gwf_fast.kernels.triton.wide_tiles import UNIT, thirds

BLOCK = tl.constexpr(128)
"""Sets are padded to this many rows: every tile divides it."""

STEP = tl.constexpr(16)
"""Coordinates and channels are padded to a multiple of this."""

PACKED_ROWS = 32
"""Rows of a program that packs."""

PACKED_K = 32
"""Coordinates that it packs at a time."""

BLOCK_K = 64
"""Coordinates a step where a tile does not hold them all."""

LARGEST_K = 128
"""A tile holds up to this many coordinates of its rows."""

NEAR = 12.0
"""Largest squared radius, in scaled coordinates, for products of halves."""

TILE_ROWS, TILE_COLUMNS = 64, 64
"""Of the tiles that a split is counted in: about those of the kernels."""

LARGEST_BLOCK = 256
"""Channels of one program: all products of a pair come from one distance."""

MAX_COLUMNS = 2**16
"""Columns whose products a program adds up: beyond, rounding errors of the running total show."""

MAX_PARTS = 2**26
"""Numbers in all that ranges of columns may be given for that reason alone."""


@triton.jit
def panel_sizes(x_blocks, blocks, steps):
    """Rows of x and of both sets, and coordinates with padding: as products, so that the compiler sees them aligned."""
    return x_blocks.to(tl.int64) * BLOCK, blocks.to(tl.int64) * BLOCK, steps * STEP


@triton.jit(
    do_not_specialize=[
        "x_batch", "x_row", "x_stride", "y_batch", "y_row", "y_stride", "n", "m", "x_blocks", "blocks", "dim", "steps"
    ]
)  # fmt: skip
def pack_kernel(
    x, y, x_batch, x_row, x_stride, y_batch, y_row, y_stride, x_lengths, y_lengths, scales,
    raw, centre, norm64, radius, hi, lo, norm, values, n, m, x_blocks, blocks, dim, steps,
    X_LENGTHS: tl.constexpr, Y_LENGTHS: tl.constexpr, HALVES: tl.constexpr, THIRDS: tl.constexpr,
    FAR_AWAY: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Panels of a block of rows: raw [B, depth, L], centre [B, depth], squared norms of x - centre in float64 [B, L].

    With HALVES also scaled norms in float32 [B, L], hi and lo [B, L, depth]; with THIRDS scaled coordinates
    [3, B, L, depth]. radius [B], which starts at 0, gets the largest scaled squared norm, as the bits of a float32.
    FAR_AWAY puts infinity into the scaled norms of columns that don't exist: kernels that have a logarithm are 0 there.
    """
    x_length, length, depth = panel_sizes(x_blocks, blocks, steps)
    program = tl.program_id(0)
    parts = length // BR
    block = (program % parts).to(tl.int32)
    batch = (program // parts).to(tl.int64)
    batches = tl.num_programs(0) // parts
    at = block.to(tl.int64) * BR
    in_y = at >= x_length
    positions = at - tl.where(in_y, x_length, 0) + tl.arange(0, BR)
    rows = at + tl.arange(0, BR)
    dtype: tl.constexpr = raw.dtype.element_ty
    x_count = existing_count(x_lengths, batch, n, X_LENGTHS)
    y_count = existing_count(y_lengths, batch, m, Y_LENGTHS)
    count = tl.where(in_y, y_count, x_count)
    exists = positions < count
    scale = tl.load(scales)
    x += batch * x_batch
    y += batch * y_batch
    total = tl.zeros((BR,), tl.float64)
    scaled_total = tl.zeros((BR,), tl.float32)
    row = batch * length + rows
    for k0 in range(0, depth, BK):
        k = k0 + tl.arange(0, BK)
        if in_y:
            points = load_points(y, y_row, y_stride, positions, k, dim, count, dtype)
        else:
            points = load_points(x, x_row, x_stride, positions, k, dim, count, dtype)
        origin = centre_of(y, y_row, y_stride, y_count, k, dim, dtype)
        inside = (k < depth)[None, :]
        tl.store(raw + (batch * depth + k[None, :]) * length + rows[:, None], points, mask=inside)
        if block == 0:
            tl.store(centre + batch * depth + k, origin, mask=k < depth)
        centred = tl.where(exists[:, None], points.to(tl.float64) - origin.to(tl.float64)[None, :], 0.0)
        total += tl.sum(centred * centred, 1)
        if HALVES or THIRDS:
            scaled = (centred * scale).to(tl.float32)
            place = row[:, None] * depth + k[None, :]
            if HALVES:
                scaled_total += tl.sum(scaled * scaled, 1)
                high = (scaled * UNIT).to(tl.float16)
                tl.store(hi + place, high, mask=inside)
                tl.store(lo + place, (scaled * UNIT - high.to(tl.float32)).to(tl.float16), mask=inside)
            if THIRDS:
                first, second, third = thirds(scaled)
                plane = batches * tl.full((), 1, tl.int64) * length * depth
                tl.store(values + place, first, mask=inside)
                tl.store(values + plane + place, second, mask=inside)
                tl.store(values + 2 * plane + place, third, mask=inside)
    tl.store(norm64 + row, total)
    if HALVES:
        if FAR_AWAY:
            scaled_total = tl.where(exists | (not in_y), scaled_total, float("inf"))
        tl.store(norm + row, scaled_total)
    square = (total * scale * scale).to(tl.float32)
    bits = tl.where(square == square, square, float("inf")).to(tl.int32, bitcast=True)  # of a float >= 0: ordered alike
    tl.atomic_max(radius + batch, tl.max(bits))


@triton.jit(do_not_specialize=["v_batch", "v_row", "v_stride", "m", "blocks", "channels", "steps"])
def pack_values_kernel(
    v, v_batch, v_row, v_stride, y_lengths, values, m, blocks, channels, steps,
    Y_LENGTHS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Values [B, M, C] as three planes of bfloat16 [3, B, L, width], 0 where there are none."""
    _, length, width = panel_sizes(blocks, blocks, steps)
    program = tl.program_id(0)
    parts = length // BR
    batch = (program // parts).to(tl.int64)
    batches = tl.num_programs(0) // parts
    positions = (program % parts).to(tl.int64) * BR + tl.arange(0, BR)
    count = existing_count(y_lengths, batch, m, Y_LENGTHS)
    plane = batches * tl.full((), 1, tl.int64) * length * width
    for c0 in range(0, width, BC):
        c = c0 + tl.arange(0, BC)
        found = load_points(v + batch * v_batch, v_row, v_stride, positions, c, channels, count, tl.float32)
        first, second, third = thirds(found)
        out = values + (batch * length + positions[:, None]) * width + c[None, :]
        inside = (c < width)[None, :]
        tl.store(out, first, mask=inside)
        tl.store(out + plane, second, mask=inside)
        tl.store(out + 2 * plane, third, mask=inside)


class WidePairs:
    """The packed points of one call, and what every launch needs.

    Attributes:
        raw, centre, norm64, radius, hi, lo, norm, values: Panels of ``pack_kernel``; those not asked for are ``raw``.
        smooth: Whether every profile is smooth at 0: only then may distances be products of halves.
    """

    def __init__(
        self,
        x: Tensor,  # [B, N, D]
        y: Tensor,  # [B, M, D]
        spec: Sequence[float],
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        *,
        precision: str,
        coordinates: bool = False,
        logarithm: bool = False,
    ) -> None:
        """Packs; with ``coordinates`` they are values too (gradients); ``logarithm`` is for averages."""
        self.batch, self.n, self.dim = x.shape
        self.m = y.shape[1]
        self.device = x.device
        self.dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
        self.mixture: Mixture = mixture(tuple(map(float, spec)))
        self.parameters = self.mixture.parameters(self.dtype, self.device)
        self.scale = launch.numbers((self.mixture.scale,), torch.float64, self.device)
        self.smooth = self.mixture.analytic
        self.products = launch.products(precision)
        self.halves = self.smooth and self.dtype == torch.float32 and self.products > 0
        self.x_length, self.y_length = (-(-count // BLOCK.value) * BLOCK.value for count in (self.n, self.m))
        self.length = self.x_length + self.y_length
        self.held = self.dim <= LARGEST_K
        self.depth = max(16, triton.next_power_of_2(self.dim)) if self.held else -(-self.dim // BLOCK_K) * BLOCK_K
        self.x_lengths, self.y_lengths = (
            None if given is None else given.to(device=self.device, dtype=torch.int64).contiguous()
            for given in (x_lengths, y_lengths)
        )
        rows = (self.batch, self.length)
        self.raw = self.empty(self.batch, self.depth, self.length)
        self.centre = self.empty(self.batch, self.depth)
        self.norm64 = self.empty(*rows, dtype=torch.float64)
        self.radius = torch.zeros(self.batch, dtype=torch.int32, device=self.device)
        self.hi = self.lo = self.norm = self.values = self.raw
        if self.halves:
            self.hi, self.lo = (self.panel(*rows, self.depth, dtype=torch.float16) for _ in range(2))
            self.norm = self.empty(*rows)
        with_thirds = coordinates and self.halves
        if with_thirds:
            self.values = self.panel(3, *rows, self.depth, dtype=torch.bfloat16)
        with launch.on_device(x):
            pack_kernel[(self.batch * (self.length // PACKED_ROWS),)](
                x, y, *x.stride(), *y.stride(), self.lengths_or(self.x_lengths), self.lengths_or(self.y_lengths),
                self.scale, self.raw, self.centre, self.norm64, self.radius,
                self.hi, self.lo, self.norm, self.values,
                self.n, self.m, *self.sizes, self.dim, self.depth // STEP.value,
                X_LENGTHS=self.x_lengths is not None, Y_LENGTHS=self.y_lengths is not None, HALVES=self.halves,
                THIRDS=with_thirds, FAR_AWAY=logarithm, BR=PACKED_ROWS, BK=min(PACKED_K, self.depth),
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip

    @property
    def sizes(self) -> tuple[int, int]:
        """Blocks of rows of x, and of both sets."""
        return self.x_length // BLOCK.value, self.length // BLOCK.value

    def lengths_or(self, lengths: Tensor | None) -> Tensor:
        """Lengths, or something in their place that is not read."""
        return self.radius if lengths is None else lengths

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Room for a panel or a result."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def panel(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Room for a panel that blocks of channels are read from: the last block may reach beyond its last row."""
        size = math.prod(shape)
        return self.empty(size + LARGEST_BLOCK, dtype=dtype)[:size].view(shape)

    def pack_values(self, v: Tensor) -> Tensor:  # [B, M, C] -> [3, B, L of y, width]
        """Values for products of thirds."""
        channels = v.shape[2]
        width = max(16, triton.next_power_of_2(channels)) if channels <= BLOCK_K else -(-channels // BLOCK_K) * BLOCK_K
        packed = self.panel(3, self.batch, self.y_length, width, dtype=torch.bfloat16)
        with launch.on_device(v):
            pack_values_kernel[(self.batch * (self.y_length // PACKED_ROWS),)](
                v, *v.stride(), self.lengths_or(self.y_lengths), packed, self.m, self.y_length // BLOCK.value, channels,
                width // STEP.value,
                Y_LENGTHS=self.y_lengths is not None, BR=PACKED_ROWS, BC=min(BLOCK_K, width),
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
        return packed

    @functools.cached_property
    def limits(self) -> tuple[float, float, float]:
        """(squared radius up to which halves serve, up to which float64 products do, share of it that is close).

        float64 products are off by about 2^-50 R^2. Where that is below what a smooth kernel notices, no pair is too
        close for them; else those are that are off by more than the last digits.
        """
        largest = max(ratio for _, ratio, _ in self.mixture.rows)
        near = {0: -1.0, 1: math.inf, 3: NEAR / largest}[self.products] if self.halves else -1.0
        if self.dtype == torch.float64:
            return near, (500.0 / largest if self.smooth else -1.0), 4e-3
        return near, (1e8 / largest if self.smooth else -1.0), 2.0**-27

    def splits(self, block: int, channels: int, n: int, m: int) -> int:
        """Ranges that m columns are cut into for n rows: to fill the device, and to keep running totals short.

        Args:
            block: Values of a program; 0 where there are no products, whose totals are short anyway.
            channels: Values in all.
            n: Rows.
            m: Columns.
        """
        programs = self.batch * max(1, -(-channels // max(block, 1)) if block else 1) * -(-n // TILE_ROWS)
        wanted = column_splits(programs, m, TILE_COLUMNS, launch.multiprocessors(self.device))
        if block == 0:
            return wanted
        return max(wanted, min(-(-m // MAX_COLUMNS), MAX_PARTS // (self.batch * n * channels)))
