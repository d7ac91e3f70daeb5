"""Perceptrons on NVIDIA and AMD GPUs, up to 128 wide: the functions and conventions of ``cpp/mlp.py``.

Forward, backward and the gradient in x are one kernel each, a tile of the batch in one program; float64 sums for
float64, float32 ones for float32, bfloat16 and float16. Gradients of the parameters are summed in a fixed order, which
the device has no part in: they are the same from run to run. Derivatives of second order take plain PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from gwf_fast.kernels.reference.mlp import mlp_second
from gwf_fast.kernels.table.mlp import MLPSpec
from gwf_fast.kernels.triton import launch
from gwf_fast.kernels.triton.mlp_functions import FUNCTIONS
from gwf_fast.kernels.triton.mlp_kernels import mlp_backward_kernel, mlp_forward_kernel

__all__ = ["WIDEST", "mlp_backward", "mlp_forward", "mlp_second"]

WIDEST = 128
"""Of all widths of a network."""

INPUTS = 16
"""Inputs of a layer that one step of a product takes."""

OPERANDS = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def mlp_forward(x: Tensor, parameters: Sequence[Tensor], spec: MLPSpec) -> Tensor:
    """The network at x, [N, out]."""
    launch.check_device(x)
    out = x.new_empty((x.shape[0], spec.sizes[-1]))
    if out.numel() == 0:
        return out
    config = _Config.of(spec, x.dtype)
    packed = _Packed.of(parameters, spec, config)
    tiles = triton.cdiv(x.shape[0], config.rows)
    programs = min(tiles, config.programs)
    buffers = x.new_empty((programs, 2, config.rows, config.width), dtype=config.sums)
    with launch.on_device(x):
        for first in range(0, tiles, programs):
            mlp_forward_kernel[(min(programs, tiles - first),)](
                x, *packed, out, buffers, x.shape[0], first, *_widths(spec), **config.constants(spec)
            )
    return out


def mlp_backward(
    x: Tensor,
    parameters: Sequence[Tensor],
    cotangent: Tensor | None,
    spec: MLPSpec,
    *,
    wants_out: bool = False,
    wants_dx: bool = True,
    wants_parameters: bool = True,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Forward and back in one go: the output, and the gradients of <cotangent, output> in x and the parameters.

    No cotangent means ones; gradients that are not wanted are an empty list.
    """
    launch.check_device(x)
    out = x.new_empty((x.shape[0], spec.sizes[-1])) if wants_out else None
    dx = torch.empty_like(x) if wants_dx else None
    if x.shape[0] == 0:
        return out, dx, [torch.zeros_like(p) for p in parameters] if wants_parameters else []
    config = _Config.of(spec, x.dtype)
    packed = _Packed.of(parameters, spec, config)
    tiles = triton.cdiv(x.shape[0], config.rows)
    programs = min(tiles, config.programs)
    layers, width = len(spec.functions), config.width
    buffers = x.new_empty((programs, layers, config.rows, width), dtype=config.sums)
    kept = (programs, layers) if wants_parameters else (0, layers)
    weight_sums, bias_sums, slope_sums = (
        x.new_empty((*kept, *shape), dtype=config.sums) for shape in ((width, width), (width,), ())
    )
    with launch.on_device(x):
        for first in range(0, tiles, programs):
            mlp_backward_kernel[(min(programs, tiles - first),)](
                x, *packed, x if cotangent is None else cotangent, x if out is None else out, x if dx is None else dx,
                buffers, weight_sums, bias_sums, slope_sums, x.shape[0], first, *_widths(spec),
                LEARNED=any(spec.learned), ONES=cotangent is None, WANTS_OUT=wants_out, WANTS_DX=wants_dx,
                WANTS_PARAMETERS=wants_parameters, **config.constants(spec),
            )  # fmt: skip
    if not wants_parameters:
        return out, dx, []
    return out, dx, _unpacked(_Packed(weight_sums.sum(0), bias_sums.sum(0), slope_sums.sum(0)), parameters, spec)


def _widths(spec: MLPSpec) -> tuple[int, int, int, int]:
    """Of the input, of the hidden layers (the widest), of the output; and the number of layers."""
    return spec.sizes[0], max(spec.sizes[1:-1], default=1), spec.sizes[-1], len(spec.functions)


@dataclass(frozen=True)
class _Config:
    """Rows of a tile, padded width, warps, type of a product's operands and of sums."""

    rows: int
    width: int
    warps: int
    operand: tl.dtype
    sums: torch.dtype

    @classmethod
    def of(cls, spec: MLPSpec, dtype: torch.dtype) -> _Config:
        widest = max(spec.sizes)
        if widest > WIDEST:
            raise ValueError(f"sizes: the triton backend serves widths up to {WIDEST}, got {list(spec.sizes)}")
        if len(set(zip(spec.functions[:-1], spec.learned[:-1], strict=True))) > 1 or spec.learned[-1]:
            raise ValueError(f"functions: the triton backend takes one for all hidden layers, got {spec.functions}")
        # The interpreter multiplies bfloat16 as if it were integers.
        interpreted = dtype is torch.bfloat16 and triton.knobs.runtime.interpret
        operand = tl.float32 if interpreted else OPERANDS[dtype]
        width = max(16, triton.next_power_of_2(widest))
        sums = torch.float64 if dtype is torch.float64 else torch.float32
        rows = 32 if width <= (16 if dtype is torch.float64 else 64) else 16  # or registers spill
        # On AMD GPUs a warp is twice as wide.
        return cls(rows, width, 8 if width > 32 and not torch.version.hip else 4, operand, sums)

    @property
    def programs(self) -> int:
        """Tiles of one launch: enough for a GPU, and their buffers and sums small enough for its cache."""
        return 16384 // self.width

    def constants(self, spec: MLPSpec) -> dict:
        """What is compiled into a kernel, and how."""
        return {
            "HIDDEN": (FUNCTIONS[spec.functions[0]],),
            "OUTPUT": (FUNCTIONS[spec.functions[-1]],),
            "RESIDUAL": spec.residual,
            "OPERAND": self.operand,
            "BM": self.rows,
            "P": self.width,
            "K": INPUTS,
            "PRECISION": "ieee",  # of float32; halves have their own arithmetic
            **launch.compiler_options(launch.Config(self.rows, self.width, 0, self.warps, thrift=5, registers=255)),
            # AMD's compiler would prefetch into registers that it does not have.
            **({"num_stages": 1} if torch.version.hip else {}),
        }


@dataclass(frozen=True)
class _Packed:
    """Parameters, or their gradients, as the kernels have them."""

    weights: Tensor  # [layers, width, width], inputs first
    biases: Tensor  # [layers, width]
    constants: Tensor  # [layers]

    @classmethod
    def of(cls, parameters: Sequence[Tensor], spec: MLPSpec, config: _Config) -> _Packed:
        layers, width, first = len(spec.functions), config.width, parameters[0]
        constants = _constants(spec.constants, config.sums, first.device)
        if any(spec.learned):
            constants = constants.clone()
        packed = cls(first.new_zeros((layers, width, width)), first.new_zeros((layers, width)), constants)
        torch._foreach_copy_(packed.places(spec), list(parameters))
        return packed

    def places(self, spec: MLPSpec) -> list[Tensor]:
        """Where each parameter is: views of its shape."""
        views = []
        for k, learned in enumerate(spec.learned):
            before, after = spec.sizes[k], spec.sizes[k + 1]
            views += [self.weights[k, :before, :after].T, self.biases[k, :after]]
            views += [self.constants[k : k + 1]] * learned
        return views

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.weights, self.biases, self.constants))


@functools.lru_cache(maxsize=1024)
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept on the device: a copy from the host would wait for it."""
    return torch.tensor(values, dtype=dtype, device=device)


def _unpacked(packed: _Packed, parameters: Sequence[Tensor], spec: MLPSpec) -> list[Tensor]:
    gradients = [torch.empty_like(p) for p in parameters]
    torch._foreach_copy_(gradients, packed.places(spec))
    return gradients
