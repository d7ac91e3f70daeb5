"""Launch configurations: one short table instead of autotuning, so that a first call compiles one kernel."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

FEW = 4
"""Up to this many coordinates or channels are unrolled and kept in registers."""

GROUP = 64
"""Tiles summed before they are added to the total: rounding errors grow with the number of groups."""

BLOCK_K = 16
"""Coordinates a step of the product form of squared distances."""

PRECISIONS = ("ieee", "tf32x3", "tf32")


@dataclass(frozen=True)
class Config:
    """Rows and columns of a tile, channels of a program, warps, registers a thread may use (0: ptxas decides)."""

    rows: int
    cols: int
    channels: int
    warps: int
    registers: int = 0


CONFIGS = {
    # Up to FEW coordinates and channels, by the number of values that a thread keeps for each row.
    ("sum", "light"): Config(128, 32, 16, 4),
    ("sum", "few"): Config(64, 32, 16, 4),
    ("gradient", "light"): Config(128, 16, 16, 4),
    ("gradient", "few"): Config(64, 16, 16, 4),
    ("average", "light"): Config(64, 32, 16, 4),
    ("average", "few"): Config(64, 16, 16, 4),
    ("jet", "few"): Config(32, 32, 16, 4),
    ("jet2", "few"): Config(16, 16, 16, 4),
    # Any number of them.
    ("sum", "many"): Config(32, 16, 32, 4, 255),
    ("average", "many"): Config(32, 16, 32, 8, 255),
    ("jet", "many"): Config(32, 32, 32, 8, 255),
    ("jet2", "many"): Config(32, 16, 16, 8, 255),
}


def config(kernel: str, dim: int, channels: int, dtype: torch.dtype) -> Config:
    """The configuration of a kernel; float64 halves the tile, since registers hold half as many numbers."""
    size = "many" if max(dim, channels) > FEW else "light" if dim + 2 * channels <= 5 else "few"
    found = CONFIGS.get((kernel, size)) or CONFIGS[kernel, "few"]
    return found if dtype != torch.float64 else dataclasses.replace(found, rows=found.rows // 2, channels=16)


def compiler_options(config: Config) -> dict:
    """Options of a launch that the compiler reads.

    Floating-point fusion is set because its default is about to change. On NVIDIA GPUs, ptxas is told not to trade
    spilled values for occupancy: all tiles of the table fit in registers.
    """
    options = {"num_warps": config.warps, "enable_fp_fusion": True}
    if torch.version.hip:
        return options
    return options | (
        {"maxnreg": config.registers} if config.registers else {"ptx_options": "--register-usage-level=0"}
    )


def channel_block(channels: int, largest: int) -> int:
    """Channels of one program: a power of two from 16 on."""
    return min(largest, max(16, triton.next_power_of_2(channels)))


def dot_precision() -> str:
    """How tile products are computed, from GWF_FAST_TRITON_PRECISION.

    "ieee" (default): float32 arithmetic. "tf32x3": three tensor-core products, about as accurate. "tf32": one, with
    10 bits; for those who have checked that they can afford it.
    """
    name = os.environ.get("GWF_FAST_TRITON_PRECISION", "ieee")
    if name not in PRECISIONS:
        raise ValueError(f"GWF_FAST_TRITON_PRECISION: got {name!r}, expected one of {', '.join(PRECISIONS)}")
    return name


def check_device(x: Tensor) -> None:
    """Triton runs on GPUs, or on CPU tensors under its interpreter."""
    if x.device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(
            f"x: got a tensor on {x.device}, the triton backend expects a CUDA device "
            "(or TRITON_INTERPRET=1 in the environment before Python starts, for tests)"
        )


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Launches go to the current device: make it that of x."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
