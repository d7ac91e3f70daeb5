"""Fused perceptrons on the CPU: compiled passes over a whole network, float32 and float64.

No autograd; x [N, D]. ``parameters`` are weight, bias and, where it is learned, slope of
each layer in turn; so are gradients and tangents.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gwf_fast.kernels.cpp.pairs import _cpu
from gwf_fast.kernels.table.mlp import MLPSpec, Side


@functools.lru_cache(maxsize=1024)
def _network(spec: MLPSpec) -> _cpu.Mlp:
    functions = [_function(name) for name in spec.functions]
    return _cpu.Mlp(spec.sizes, functions, spec.constants, spec.learned, spec.residual)


@functools.cache
def _function(name: str) -> int:
    return int(getattr(_cpu.Function, name))


def _empty(parameters: Sequence[Tensor], wanted: bool) -> list[Tensor]:
    return [torch.empty_like(p) for p in parameters] if wanted else []


def mlp_forward(x: Tensor, parameters: Sequence[Tensor], spec: MLPSpec) -> Tensor:
    """The network at x, [N, out]."""
    out = x.new_empty((x.shape[0], spec.sizes[-1]))
    _network(spec).forward(x, parameters, out)
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
    _network(spec).backward(x, parameters, cotangent, out, dx, gradients)
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
    _network(spec).second(x, parameters, cotangent, x_tangent, tangents, out, dx, gradients)
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
        (side.x, _function(side.function), side.constant, side.weight, dx)
        for side, dx in zip(sides, inputs, strict=True)
    ]
    value = _network(spec).objective(parameters, rows, any(wants_dx) or wants_parameters, gradients)
    return value, inputs, gradients
