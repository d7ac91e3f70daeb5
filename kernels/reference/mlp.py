"""Perceptrons in plain PyTorch, any device and dtype: what the compiled passes are held to.

The functions and conventions of ``cpp/mlp.py``. Derivatives are PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from gwf_fast.kernels.table.mlp import MLPSpec

FUNCTIONS: dict[str, Callable[[Tensor, float | Tensor], Tensor]] = {
    "identity": lambda v, p: v + p,
    "leaky": lambda v, p: torch.where(v > 0, v, v * p),
    "elu": lambda v, p: torch.where(v > 0, v, torch.expm1(v.clamp(max=0)) * p),
    "silu": lambda v, p: functional.silu(v),
    "softplus": lambda v, p: p - functional.logsigmoid(-v),
    "tanh": lambda v, p: p * torch.tanh(v),
    "sigmoid": lambda v, p: p * torch.sigmoid(v),
    "log_sigmoid": lambda v, p: p + functional.logsigmoid(v),
    "minus_exp": lambda v, p: (p - 1) - torch.expm1(-v),
    "square": lambda v, p: v * v,
    "expm1": lambda v, p: torch.expm1(v),
}
"""A network's elementwise functions of (v, constant), by the names of ``MLPSpec``."""


def mlp_forward(x: Tensor, parameters: Sequence[Tensor], spec: MLPSpec) -> Tensor:
    """The network at x, [N, out]; differentiable."""
    given = iter(parameters)
    value = x
    for name, constant, learned in zip(spec.functions, spec.constants, spec.learned, strict=True):
        value = functional.linear(value, next(given), next(given))
        value = FUNCTIONS[name](value, next(given) if learned else constant)
    return x + value if spec.residual else value


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
    """The output, and the gradients of <cotangent, output> in x and the parameters."""
    with torch.enable_grad():
        point, leaves = _leaf(x), [_leaf(p) for p in parameters]
        out = mlp_forward(point, leaves, spec)
        wanted = [point] * wants_dx + leaves * wants_parameters
        cotangent = torch.ones_like(out) if cotangent is None else cotangent
        found = list(torch.autograd.grad(out, wanted, cotangent)) if wanted else []
    return out.detach() if wants_out else None, found.pop(0) if wants_dx else None, found


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

    The gradients of <gradients, tangents> in (cotangent, x, parameters): the same, since second derivatives commute.
    """
    with torch.enable_grad():
        leaves = [_leaf(x), *map(_leaf, parameters)]
        weight = _leaf(cotangent)
        first = torch.autograd.grad(mlp_forward(leaves[0], leaves[1:], spec), leaves, weight, create_graph=True)
        given = [(g, t) for g, t in zip(first, [x_tangent, *tangents], strict=False) if t is not None]
        total = sum(((g * t).sum() for g, t in given), start=0 * weight.sum())
        out, dx, *found = torch.autograd.grad(total, [weight, *leaves], allow_unused=True, materialize_grads=True)
    return out, dx if wants_dx else None, found if wants_parameters else []


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()
