"""Launches of the kernels for more than a few coordinates or channels."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from gwf_fast.kernels.triton import combine, launch
from gwf_fast.kernels.triton.launch import GROUP, LEAN
from gwf_fast.kernels.triton.wide_averages import wide_average_kernel
from gwf_fast.kernels.triton.wide_packing import BLOCK, BLOCK_K, LARGEST_BLOCK, LARGEST_K, STEP, WidePairs
from gwf_fast.kernels.triton.wide_sums import wide_sum_kernel

IN_REGISTERS = 2
"""Up to this many channels of weights are added up in registers: a tile product costs more."""


@dataclass(frozen=True)
class Tile:
    """Rows and columns of a tile, values of a program, warps, stages of its pipeline, values multiplied at a time."""

    rows: int
    cols: int
    channels: int
    warps: int
    stages: int = 2
    sub: int = 64


NEAR_TILES = {
    0: Tile(128, 32, 16, 4), (0, 128): Tile(128, 32, 16, 8), (0, 0): Tile(128, 64, 16, 8), 16: Tile(64, 64, 16, 4),
    32: Tile(64, 32, 32, 4), 64: Tile(64, 32, 64, 4, sub=32), 128: Tile(128, 32, 128, 8), 256: Tile(128, 64, 256, 8),
    (256, 16): Tile(64, 32, 256, 8, 1), (256, 32): Tile(64, 32, 256, 8, 1),
}  # fmt: skip
FAR_TILES = {
    0: Tile(64, 32, 16, 4), (0, 32): Tile(64, 32, 16, 8), (0, 128): Tile(64, 32, 16, 8), 16: Tile(32, 32, 16, 4),
    32: Tile(32, 32, 32, 4), 64: Tile(32, 16, 64, 8), 128: Tile(32, 16, 128, 8), 256: Tile(32, 16, 256, 8),
}  # fmt: skip
LEAN_FAR_TILES = {16: Tile(64, 32, 16, 4), 64: Tile(32, 32, 64, 4)}
FLOAT64_TILES = {0: Tile(64, 32, 16, 4), 16: Tile(32, 16, 16, 4), 32: Tile(32, 16, 32, 8)}
"""By the values of a program, for products of halves, of float64, and for float64 data. 0 is for sums in registers.

A pair is for a number of held coordinates, 0 for more than are held; LEAN is for profiles of few registers, and
a gradient without its sum. Tiles fit into the 99 KiB of shared memory that a
block of a consumer card has.
"""

HELD_BESIDE_PRODUCTS = {0: LARGEST_K, 16: 64, 32: 64, 64: 64, 128: 32, 256: 32}
"""Coordinates of its rows that a tile of products of halves holds at most, by its values."""


def channel_block(pairs: WidePairs, channels: int) -> int:
    """Values of a program; 0 for none."""
    largest = max(FLOAT64_TILES) if pairs.dtype == torch.float64 else LARGEST_BLOCK
    return min(largest, max(16, triton.next_power_of_2(channels))) if channels else 0


@functools.cache
def has_float64_products(device: torch.device) -> bool:
    """Whether float64 products run on tensor cores at a rate like float32's: NVIDIA's and AMD's data-centre GPUs."""
    if device.type != "cuda":
        return True  # the interpreter
    if torch.version.hip:
        return True
    capability = torch.cuda.get_device_capability(device)
    major, minor, *_ = (int(part) for part in triton.__version__.split(".")[:2])
    return capability in ((8, 0), (9, 0)) or (capability[0] == 10 and (major, minor) >= (3, 9))


def arguments(pairs: WidePairs) -> list:
    """The panels, as every kernel takes them first."""
    panels = [pairs.raw, pairs.centre, pairs.norm64, pairs.radius, pairs.hi, pairs.lo, pairs.norm]
    return [*panels, pairs.parameters, pairs.scale, pairs.dim, pairs.depth // STEP.value]


def lengths(pairs: WidePairs) -> list[Tensor]:
    """Lengths of ragged sets; others are not read."""
    return [pairs.lengths_or(each) for each in (pairs.x_lengths, pairs.y_lengths)]


def held(pairs: WidePairs, block: int, near: bool) -> int:
    """Coordinates that a tile holds of its rows; 0 where it reads some at a time."""
    largest = HELD_BESIDE_PRODUCTS[block] if near else LARGEST_K
    return pairs.depth if pairs.depth <= largest else 0


def constants(pairs: WidePairs, exclude_self: bool, near: bool, coordinates: int, shape: Tile) -> dict:
    """What every kernel is compiled for."""
    return {
        "EXCLUDE_SELF": exclude_self,
        "NEAR": near,
        "FLOAT64": pairs.dtype == torch.float64 or has_float64_products(pairs.device),
        "PRODUCTS": max(1, pairs.products),
        "K": coordinates,
        "BLOCK_K": BLOCK_K,
        "BM": shape.rows,
        "BN": shape.cols,
        "BC": shape.channels,
        "SUB": min(shape.channels, shape.sub),
        "num_warps": shape.warps,
        "num_stages": shape.stages,
        "enable_fp_fusion": True,
    }


def passes(pairs: WidePairs, block: int, with_value: bool = False) -> list[tuple[bool, int, Tile]]:
    """The launches of a kernel: for clouds that are near and for those that are not, since the device knows which.

    Returns:
        Whether it is for those that are near, how many coordinates a tile holds, and its shape.
    """
    found = []
    for near in (True, False) if pairs.halves else (False,):
        tiles = NEAR_TILES if near else FLOAT64_TILES if pairs.dtype == torch.float64 else FAR_TILES
        coordinates = held(pairs, block, near)
        if tiles is FAR_TILES and not with_value and len(pairs.mixture.names) == 1 and pairs.mixture.names[0] in LEAN:
            tiles = FAR_TILES | LEAN_FAR_TILES
        found.append((near, coordinates, tiles.get((block, coordinates)) or tiles[block]))
    return found


def sums(
    pairs: WidePairs,
    v: Tensor | None,  # [B, M, C]
    *,
    order: int = 0,
    coordinates: bool = False,
    with_value: bool = False,
    exclude_self: bool = False,
    sets: tuple[int, int] = (0, 1),
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # [B, N, C], [B, N]
    """sum_j k_ij v_j; with ``coordinates`` the gradient for weights v [B, M, 1], and the sum too if ``with_value``.

    None for v is ones. ``sets`` says whose rows and whose columns: 0 is x, 1 is y.
    """
    n, m = ((pairs.n, pairs.m)[k] for k in sets)
    starts = [(0, pairs.x_length // BLOCK.value)[k] for k in sets]
    channels = pairs.dim if coordinates else 1 if v is None else v.shape[2]
    few = not coordinates and channels <= IN_REGISTERS
    block = 0 if few else channel_block(pairs, channels)
    chunks = -(-channels // block) if block else 1
    splits = pairs.splits(block, channels, n, m)
    out = pairs.empty(splits, pairs.batch, n, channels)
    value = pairs.empty(splits, pairs.batch, n) if with_value else out
    given = pairs.raw if v is None else v.to(pairs.dtype)
    strides = given.stride() if v is not None else (0, 0, 0)
    values, width = pairs.values, pairs.depth
    if pairs.halves and not few and not coordinates:
        values = pairs.pack_values(given)
        width = values.shape[3]
    weights = few or coordinates
    jets, slope = pairs.mixture.slope if coordinates else (pairs.mixture.jets(0), 1.0)
    b = given.contiguous() if weights else given
    with launch.on_device(out):
        for near, coordinates_held, shape in passes(pairs, block, with_value):
            n_tiles = -(-n // shape.rows)
            wide_sum_kernel[(pairs.batch * n_tiles * chunks * splits,)](
                *arguments(pairs), values, given, b, *lengths(pairs), out, value, *strides,
                n, m, n_tiles, *starts, pairs.sizes[1], width // STEP.value, channels, chunks, splits, *pairs.limits,
                JETS=jets, SLOPE=slope, ORDER=int(coordinates), C=channels if few else 0,
                COUNT=0 if v is None or not weights else channels if few else 1, WITH_VALUE=with_value,
                COORDINATES=coordinates, X_LENGTHS=pairs.x_lengths is not None, Y_LENGTHS=pairs.y_lengths is not None,
                GROUP=GROUP, **constants(pairs, exclude_self, near, coordinates_held, shape),
            )  # fmt: skip
    return combine.add_splits(dtype, out, value if with_value else None)


def averages(
    pairs: WidePairs,
    v: Tensor | None,  # [B, M, C]
    beta: Tensor | None,  # [B, M]
    *,
    coordinates: bool = False,
    exclude_self: bool = False,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # [B, N, C], [B, N]
    """The mean of v, or with ``coordinates`` of y, and log sum_j e^beta_j k_ij; neither asks for the latter only."""
    channels = pairs.dim if coordinates else 0 if v is None else v.shape[2]
    block = channel_block(pairs, channels)
    chunks = -(-channels // block) if block else 1
    splits = pairs.splits(block, channels, pairs.n, pairs.m)
    logarithm = pairs.empty(splits, pairs.batch, pairs.n)
    mass = pairs.empty(splits, pairs.batch, pairs.n) if splits > 1 else logarithm
    mean = pairs.empty(splits, pairs.batch, pairs.n, channels) if channels else logarithm[..., None]
    given = pairs.raw if v is None else v.to(pairs.dtype)
    strides = given.stride() if v is not None else (0, 0, 0)
    values = pairs.pack_values(given) if pairs.halves and v is not None else pairs.raw
    width = values.shape[3] if pairs.halves and v is not None else pairs.depth
    log_weights = pairs.raw if beta is None else beta.to(pairs.dtype).contiguous()
    with launch.on_device(mean):
        for near, coordinates_held, shape in passes(pairs, block):
            n_tiles = -(-pairs.n // shape.rows)
            wide_average_kernel[(pairs.batch * n_tiles * chunks * splits,)](
                *arguments(pairs), values, given, log_weights, *lengths(pairs), mean, logarithm, mass, *strides,
                pairs.n, pairs.m, n_tiles, *pairs.sizes, width // STEP.value, channels, chunks, splits, *pairs.limits,
                JETS=pairs.mixture.jets(0), EXPONENTS=pairs.mixture.exponents, C=channels > 0, BETA=beta is not None,
                COORDINATES=coordinates, X_LENGTHS=pairs.x_lengths is not None, Y_LENGTHS=pairs.y_lengths is not None,
                **constants(pairs, exclude_self, near, coordinates_held, shape),
            )  # fmt: skip
    return combine.averages(
        dtype, mean if channels else mean[..., :0], logarithm, mass, pairs.parameters, pairs.x_lengths
    )


def mmd(
    pairs: WidePairs,
    a: Tensor,  # [B, N]
    b: Tensor,  # [B, M]
    ratios: Tensor,  # [B, 2]
    *,
    exclude_self: bool,
    gradient: bool,
    rows_of_y: bool,
) -> tuple[Tensor, ...]:
    """What ``backend.mmd_rows`` returns, from four passes over the same panels; three without ``rows_of_y``."""

    def one(rows: int, columns: int, slope: bool) -> tuple[Tensor, Tensor]:  # gradient [B, N, D], sum [B, N]
        found, value = sums(
            pairs, (a, b)[columns][:, :, None], coordinates=slope, with_value=slope,
            exclude_self=exclude_self and rows == columns, sets=(rows, columns), dtype=pairs.dtype,
        )  # fmt: skip
        return (found, value) if slope else (found, found[..., 0])

    (slope_xx, xx), (slope_xy, xy) = one(0, 0, gradient), one(0, 1, gradient)
    slope_yy, yy = one(1, 1, gradient and rows_of_y)
    slope_yx, yx = one(1, 0, gradient) if rows_of_y else (slope_yy, yy)  # not read
    own = ratios.to(pairs.dtype)[:, :, None, None]
    of_x = own[:, 0] * slope_xx - slope_xy if gradient else slope_xx
    of_y = own[:, 1] * slope_yy - slope_yx if gradient and rows_of_y else slope_yy
    return xx, xy, yy, yx, of_x, of_y
