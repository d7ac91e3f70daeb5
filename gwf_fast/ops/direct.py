"""The short way of a call: plain tensors on the CPU, a kernel of numbers, no ragged sets.

At the sizes that generative codes train with, what Python does around a compiled call takes longer than the call. The
short way binds and checks the arguments in compiled code, and gives None for whatever it does not know, right or wrong:
the function that people call then goes the long way, with its messages. It never decides who serves: it asks the table,
once for each type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from gwf_fast.kernels.cpp import direct as direct_cpp
from gwf_fast.ops import dispatch
from gwf_fast.ops.reductions import gradient_backward, logsumexp_backward, sum_backward

Direct = Callable[..., Any]
"""Takes the arguments of a function; gives its result or, where the long way is to be gone, None."""

_CPU = torch.device("cpu")


def short_way(name: str, operation: str, graph: type[Function] | None = None) -> Direct:
    """The short way of a function.

    Args:
        name: As people call it.
        operation: What it asks the table for.
        graph: Called with the tensors and what was made of them, where a graph is wanted.
    """

    def serves(is_double: bool) -> bool:
        dtype = torch.float64 if is_double else torch.float32
        return dispatch.resolve(None, _CPU, dtype, False, operation) == "cpp" and dispatch.load("cpp") is not None

    # Not Function.apply itself, which looks at every argument for what torch.func leaves behind: there is none.
    apply = None if graph is None else super(Function, graph).apply  # type: ignore[misc]
    found: Direct = direct_cpp.direct_function(name, apply, serves)
    return found


def is_backward_plain() -> bool:
    """Whether a backward pass is to give numbers only."""
    return not (torch.is_grad_enabled() or is_dynamo_compiling())


def _keep(ctx: Any, tensors: tuple[Tensor | None, ...], rest: tuple[Any, ...]) -> None:
    """As ``save`` of ``jet.py``, without lengths."""
    ctx.save_for_backward(*tensors, None, None)
    ctx.rest = (*rest, "cpp")


class _DirectSum(Function):
    """The graph of a sum whose value is there; a differentiated backward pass is made of operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, b: Tensor | None, made: tuple[Tensor, tuple[Any, ...]]) -> Tensor:
        out, rest = made
        _keep(ctx, (x, y, b), rest)
        return out

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
        if is_backward_plain():
            x, y, b, *_ = ctx.saved_tensors
            spec, exclude_self, _ = ctx.rest
            found = direct_cpp.sum_vjp(x, y, b, u, spec, exclude_self, ctx.needs_input_grad)
            if found is not None:
                return *found, None
        return *sum_backward(ctx, u)[:3], None


class _DirectGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, b: Tensor | None, made: tuple[Tensor, tuple[Any, ...]]) -> Tensor:
        out, rest = made
        _keep(ctx, (x, y, b), rest)
        return out

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
        return *gradient_backward(ctx, u)[:3], None


class _DirectLogSumExp(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, beta: Tensor | None, made: tuple[Tensor, tuple[Any, ...]]) -> Tensor:
        out, rest = made
        _keep(ctx, (x, y, beta, out), rest)
        return out

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
        return *logsumexp_backward(ctx, u)[:3], None


kernel_sum = short_way("kernel_sum", "sum", _DirectSum)
kernel_gradient = short_way("kernel_gradient", "gradient", _DirectGradient)
kernel_logsumexp = short_way("kernel_logsumexp", "logsumexp", _DirectLogSumExp)
kernel_average = short_way("kernel_average", "average")
