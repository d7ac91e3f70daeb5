"""What kernels share that read a call's tensors as they are, without packing them first."""

from __future__ import annotations

import dataclasses
import struct

import torch
import triton
import triton.language as tl

from gwf_fast.kernels.triton.launch import Config


def bits(value: float) -> int:
    """A double as the integer of the same bits.

    Triton passes Python's floats in single precision, and integers as they are; unlike a tensor of parameters, an
    integer needs no copy to the device, and no owner while a CUDA graph lives.
    """
    return struct.unpack("<q", struct.pack("<d", value))[0]


@triton.jit
def number(argument, DTYPE: tl.constexpr):
    """The number whose bits these are."""
    return argument.to(tl.int64).to(tl.float64, bitcast=True).to(DTYPE)


@triton.jit
def load_all(pointer, index, D: tl.constexpr, DTYPE: tl.constexpr):
    """The D coordinates of points [*, D], as a tuple."""
    values = ()
    for k in tl.static_range(D):
        values = values + (tl.load(pointer + index * D + k).to(DTYPE),)
    return values


def computed_in(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """The type of sums, for PyTorch and for Triton: float64 for that, float32 for all others."""
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def for_dtype(config: Config, dtype: torch.dtype) -> Config:
    """A smaller tile for float64, since registers hold half as many numbers."""
    if dtype != torch.float64:
        return config
    return dataclasses.replace(config, rows=max(16, config.rows // 2), cols=max(16, config.cols // 2), channels=16)
