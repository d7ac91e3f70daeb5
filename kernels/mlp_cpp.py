"""Fused perceptrons on the CPU: compiled passes over a whole network, float32 and float64.

No autograd, no checks: contiguous tensors, x [N, D]. ``parameters`` are weight, bias and, where it is learned, slope of
each layer in turn; so are gradients and tangents.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .cpp import _cpu
from .mlp import MLPSpec, Side


@functools.lru_cache(maxsize=1024)
def _network(spec: MLPSpec) -> _cpu.Mlp:
    functions = [_function(name) for name in spec.functions]
    return _cpu.Mlp(spec.sizes, functions, spec.constants, spec.learned, spec.residual)


@functools.cache
def _function(name: str) -> int:
    return int(getattr(_cpu.Function, name))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _empty(parameters: Sequence[Tensor], wanted: bool) -> list[Tensor]:
    return [torch.empty_like(p) for p in parameters] if wanted else []


def mlp_forward(x: Tensor, parameters: Sequence[Tensor], spec: MLPSpec) -> Tensor:
    """The network at x, [N, out]."""
    out = x.new_empty((x.shape[0], spec.sizes[-1]))
    double = x.dtype is torch.float64
    _network(spec).forward(double, x.shape[0], x.data_ptr(), _addresses(parameters), out.data_ptr())
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
    out = x.new_empty((x.shape[0], spec.sizes[-1])) if wants_out else None
    dx = torch.empty_like(x) if wants_dx else None
    gradients = _empty(parameters, wants_parameters)
    _network(spec).backward(
        x.dtype is torch.float64, x.shape[0], x.data_ptr(), _addresses(parameters), _address(cotangent), _address(out),
        _address(dx), _addresses(gradients),
    )  # fmt: skip
    return out, dx, gradients


def mlp_second(
    x: Tensor,
    parameters: Sequence[Tensor],
    cotangent: Tensor,
    x_tangent: Tensor | None,
    tangents: Sequence[Tensor | None],
    spec: MLPSpec,
    *,
    wants_dx: bool = True,
    wants_parameters: bool = True,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Derivatives of the output and of the gradients of :func:`mlp_backward` along (x_tangent, tangents).

    None stands for zero, no tangents at all too.
    """
    out = x.new_empty((x.shape[0], spec.sizes[-1]))
    dx = torch.empty_like(x) if wants_dx else None
    gradients = _empty(parameters, wants_parameters)
    _network(spec).second(
        x.dtype is torch.float64, x.shape[0], x.data_ptr(), _addresses(parameters), cotangent.data_ptr(),
        _address(x_tangent), [_address(t) for t in tangents], out.data_ptr(), _address(dx), _addresses(gradients),
    )  # fmt: skip
    return out, dx, gradients


def mlp_objective(
    parameters: Sequence[Tensor],
    sides: Sequence[Side],
    spec: MLPSpec,
    *,
    wants_dx: Sequence[bool],
    wants_parameters: bool,
) -> tuple[float, list[Tensor | None], list[Tensor]]:
    """Sum over the sides of weight * sum f(network(x)), its gradient in each x, and that in the parameters."""
    inputs = [torch.empty_like(side.x) if wanted else None for side, wanted in zip(sides, wants_dx, strict=True)]
    gradients = _empty(parameters, wants_parameters)
    rows = [
        (side.x.shape[0], side.x.data_ptr(), _function(side.function), side.constant, side.weight, _address(dx))
        for side, dx in zip(sides, inputs, strict=True)
    ]
    value = _network(spec).objective(
        sides[0].x.dtype is torch.float64,
        _addresses(parameters),
        rows,
        any(wants_dx) or wants_parameters,
        _addresses(gradients),
    )
    return value, inputs, gradients
