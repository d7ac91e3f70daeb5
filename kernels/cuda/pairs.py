"""Compiled CUDA backend for at most four coordinates: sums, gradients, interactions and forward steps.

The module ``gwf_fast._cuda`` is built where GWF_FAST_CUDA=1 was set during installation. It sums each row in one thread
and in the order of the sources, so that results are the same in every run; here, coordinates are centred and scaled and
sources packed into the vectors that it reads (csrc/gpu/pairwise.h).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from gwf_fast.kernels.occupancy import column_splits
from gwf_fast.kernels.table.profiles import PROFILES

MAX_DIM = 4


@functools.cache
def _module() -> ModuleType:
    """The compiled module.

    Raises:
        ImportError: It was not built; says how to.
    """
    try:
        from gwf_fast import _cuda
    except ImportError as error:
        raise ImportError(
            "the cuda backend was not built: install with GWF_FAST_CUDA=1 in the environment and nvcc on the path "
            f"({error})"
        ) from error
    return _cuda


def pair_sum(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]
    b: Tensor | None,  # [B, M, C]
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> Tensor:  # [B, N, C]
    """sum_j b_j k_ij; b = None is ones. Channels are summed one after the other."""
    channels = [None] if b is None else list(b.unbind(2))
    out = [_rows(x, y, channel, spec, False, exclude_self, x_lengths, y_lengths) for channel in channels]
    return torch.stack(out, 2) if out else x.new_zeros(*x.shape[:2], 0)


def pair_gradient(
    x: Tensor,
    y: Tensor,
    b: Tensor | None,  # [B, M]
    spec: Sequence[float],
    *,
    exclude_self: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> Tensor:  # [B, N, D]
    """sum_j b_j grad_x k_ij."""
    return _rows(x, y, b, spec, True, exclude_self, x_lengths, y_lengths)


def interaction_velocity(
    x: Tensor,  # [B, N, D]
    sources: Tensor | None,  # [B, M, D]
    spec: Sequence[float],
) -> Tensor:  # [B, N, D]
    """-mean_j grad W(x_i - s_j); sources = None is x itself."""
    others = x if sources is None else sources
    return _rows(x, others, None, spec, True, False, None, None, factor=-1.0 / others.shape[1])


def forward_step(
    x: Tensor,  # [B, N, D]
    step_size: float,
    sources: Tensor | None,  # [B, M, D]
    spec: Sequence[float],
    out: Tensor | None = None,  # [B, N, D]; may be x
) -> Tensor:  # [B, N, D]
    """x - step_size * mean_j grad W(x_i - s_j). In place is safe: the sources have been copied by then."""
    others = x if sources is None else sources
    factor = -step_size / others.shape[1]
    return _rows(x, others, None, spec, True, False, None, None, factor=factor, base=x, out=out)


def interaction_energy(x: Tensor, spec: Sequence[float]) -> Tensor:  # [B, N, D] -> [B]
    """(1/2) mean_ij W(x_i - x_j)."""
    return _rows(x, x, None, spec, False, False, None, None).mean(1) / (2 * x.shape[1])


def terms(spec: Sequence[float]) -> tuple[float, list[tuple[int, float, float, float]]]:
    """The scale of the coordinates, and (profile, coefficient, ratio, parameter) for each term."""
    units = [float(profile.unit.evalf(25)) for profile in PROFILES.values()]
    rows = [spec[i : i + 4] for i in range(0, len(spec), 4)]
    rates = [units[int(number)] / bandwidth**2 for number, _, bandwidth, _ in rows]
    table = [
        (int(number), coefficient, rate / rates[0], parameter)
        for rate, (number, coefficient, _, parameter) in zip(rates, rows, strict=True)
    ]
    return math.sqrt(rates[0]), table


def pack(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]
    weights: Tensor | None,  # [B, M]
    y_lengths: Tensor | None,
    scale: float,
    width: int,
    tile: int,
) -> tuple[Tensor, Tensor]:  # [B, N, D], [B, M padded to tiles, width]
    """Centred and scaled targets, and sources [coordinates, weight, padding] padded with zeros to whole tiles."""
    batch, m, dim = y.shape
    present = None if y_lengths is None else torch.arange(m, device=y.device) < y_lengths[:, None]
    if present is not None:
        y = torch.where(present[:, :, None], y, 0.0)
    count = m if y_lengths is None else y_lengths.clamp(min=1)[:, None, None]
    centre = y.sum(1, keepdim=True) / count
    centre = torch.where(centre.isfinite(), centre, 0.0)  # an infinite point must not make every difference NaN
    packed = y.new_zeros(batch, -(-m // tile) * tile, width)
    packed[:, :m, :dim] = (y - centre) * scale
    packed[:, :m, dim] = 1.0 if weights is None else weights
    if present is not None:
        packed[:, :m] = torch.where(present[:, :, None], packed[:, :m], 0.0)
    return ((x - centre) * scale).contiguous(), packed


def _rows(
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    spec: Sequence[float],
    gradient: bool,
    exclude_self: bool,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    factor: float = 1.0,
    base: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """base + factor * (the sum [B, N], or its gradient [B, N, D])."""
    _check(x, y, out)
    module = _module()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32  # half precisions are summed in float32
    scale, table = terms(spec)
    width = module.packed_width(x.shape[2])
    scaled, packed = pack(
        x.to(dtype), y.to(dtype), None if weights is None else weights.to(dtype), y_lengths, scale, width, module.tile
    )
    blocks = x.shape[0] * -(-x.shape[1] // module.rows_per_block(dtype == torch.float64, len(table)))
    splits = column_splits(blocks, packed.shape[1], module.tile, _multiprocessors(x.device))
    base = None if base is None else base.to(dtype).contiguous()
    shape = x.shape if gradient else x.shape[:2]
    whole = splits == 1
    if whole and out is not None and out.dtype == dtype and out.is_contiguous():
        result = out[None]
    else:
        result = torch.empty((splits, *shape), dtype=dtype, device=x.device)
    lengths = [None if value is None else value.to(x.device, torch.int64) for value in (x_lengths, y_lengths)]
    added = base if whole else None
    with torch.cuda.device(x.device):
        module.rows(
            dtype == torch.float64, scaled.data_ptr(), packed.data_ptr(), 0 if added is None else added.data_ptr(),
            result.data_ptr(), *(0 if length is None else length.data_ptr() for length in lengths),
            x.shape[0], x.shape[1], packed.shape[1], x.shape[2], splits, gradient, exclude_self,
            factor * (2.0 * scale if gradient else 1.0), table, torch.cuda.current_stream(x.device).cuda_stream,
        )  # fmt: skip
    total = result[0] if whole else result.sum(0)
    if base is not None and not whole:
        total += base
    if out is None:
        return total.to(x.dtype)
    return out if total.data_ptr() == out.data_ptr() else out.copy_(total)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _check(x: Tensor, y: Tensor, out: Tensor | None) -> None:
    if x.device.type != "cuda" or y.device != x.device:
        raise ValueError(f"x, y: got {x.device} and {y.device}, the cuda backend expects one CUDA device")
    if x.shape[2] > MAX_DIM:
        raise ValueError(f"x: got {x.shape[2]} coordinates, the cuda backend serves at most {MAX_DIM}")
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype or out.device != x.device):
        raise ValueError(f"out: got {list(out.shape)}, {out.dtype} on {out.device}; expected the shape and type of x")
