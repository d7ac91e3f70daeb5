"""Fused perceptrons as operators: forward, backward and double backward, each one call of the device's backend.

Three operators that are each other's derivatives: ``mlp``, ``mlp_backward`` and ``mlp_second``. Derivatives end there:
a third one raises. See ``kernels/reference/mlp.py`` for arguments; what is not wanted is an empty tensor or list.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gwf_fast.kernels.plain import plain
from gwf_fast.kernels.table.mlp import MLPSpec, Side
from gwf_fast.ops import dispatch
from gwf_fast.ops.modes import is_eager
from gwf_fast.ops.registry import _LIBRARY, register_autocast
from gwf_fast.ops.table import BACKENDS, COMPILED, OPERATIONS

__all__ = ["MLPSpec", "Side", "is_served", "mlp", "objective", "value_and_gradient"]

_SPEC = "int[] sizes, str[] functions, float[] constants, bool[] learned, bool residual"


WIDEST_FUSED = OPERATIONS["mlp"].served_by["cpp"].widest
"""Of all widths of a network on the CPU."""


@functools.cache
def _kernels(device: str) -> ModuleType:
    """The compiled passes of a device, loaded on first use: importing this package must not need them."""
    return dispatch.load(COMPILED[device], "mlp")


def is_served(device: str, dtype: torch.dtype, widest: int) -> bool:
    """Whether compiled passes exist for tensors of this kind and networks up to this width."""
    key = (device, dtype, widest)
    found = _SERVED.get(key)
    if found is None:
        compiled = BACKENDS.get(COMPILED.get(device, ""))
        found = compiled is not None and compiled.refusal(device, dtype, operation="mlp", dim=widest) is None
        _SERVED[key] = found
    return found


# A plain dict: torch.compile warns of functools.cache.
_SERVED: dict[tuple[str, torch.dtype, int], bool] = {}


def _spec(sizes: Any, functions: Any, constants: Any, learned: Any, residual: bool) -> MLPSpec:
    return MLPSpec(tuple(sizes), tuple(functions), tuple(constants), tuple(learned), residual)


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [plain(tensor) for tensor in tensors]


def _or_empty(value: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if value is None else value


# ---------------------------------------------------------------------------------------------- on real tensors


def _run(x: Tensor, parameters: Sequence[Tensor], *spec: Any) -> Tensor:
    return _kernels(x.device.type).mlp_forward(plain(x), _contiguous(parameters), _spec(*spec))


def _run_backward(
    x: Tensor, parameters: Sequence[Tensor], cotangent: Tensor, wants_dx: bool, wants_parameters: bool, *spec: Any
) -> tuple[Tensor, list[Tensor]]:
    _, dx, gradients = _kernels(x.device.type).mlp_backward(
        plain(x), _contiguous(parameters), plain(cotangent), _spec(*spec), wants_dx=wants_dx,
        wants_parameters=wants_parameters,
    )  # fmt: skip
    return _or_empty(dx, x), gradients


def _run_second(
    x: Tensor,
    parameters: Sequence[Tensor],
    cotangent: Tensor,
    x_tangent: Tensor | None,
    tangents: Sequence[Tensor | None],
    wants_dx: bool,
    wants_parameters: bool,
    *spec: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    x_tangent, *tangents = (None if t is None else plain(t) for t in (x_tangent, *tangents))
    out, dx, gradients = _kernels(x.device.type).mlp_second(
        plain(x), _contiguous(parameters), plain(cotangent), x_tangent, tangents, _spec(*spec),
        wants_dx=wants_dx, wants_parameters=wants_parameters,
    )  # fmt: skip
    return out, _or_empty(dx, x), gradients


# ---------------------------------------------------------------------------------------------- torch.library


def _fake_out(x: Tensor, sizes: Sequence[int]) -> Tensor:
    return x.new_empty((x.shape[0], sizes[-1]))


def _fake_gradients(
    x: Tensor, parameters: Sequence[Tensor], wants_dx: bool, wants_parameters: bool
) -> tuple[Tensor, list[Tensor]]:
    gradients = [torch.empty_like(p) for p in parameters] if wants_parameters else []
    return x.new_empty(x.shape if wants_dx else (0,)), gradients


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, parameters, *spec = inputs
    ctx.save_for_backward(x, *parameters)
    ctx.spec = spec


def _backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    x, *parameters = ctx.saved_tensors
    wants_dx, wants_parameters = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1])
    dx, gradients = torch.ops.gwf_fast.mlp_backward(x, parameters, cotangent, wants_dx, wants_parameters, *ctx.spec)
    return dx if wants_dx else None, gradients or [None] * len(parameters), None, None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, parameters, cotangent, ctx.wants_dx, ctx.wants_parameters, *spec = inputs
    ctx.save_for_backward(x, cotangent, *parameters)
    ctx.set_materialize_grads(False)
    ctx.spec = spec


def _double_backward(ctx: Any, x_tangent: Tensor | None, tangents: list[Tensor | None] | None) -> tuple[Any, ...]:
    x, cotangent, *parameters = ctx.saved_tensors
    wants_dx, wants_parameters = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1])
    out, dx, gradients = torch.ops.gwf_fast.mlp_second(
        x,
        parameters,
        cotangent,
        x_tangent if ctx.wants_dx else None,
        tangents or [],
        wants_dx,
        wants_parameters,
        *ctx.spec,
    )
    return dx if wants_dx else None, gradients or [None] * len(parameters), out, *[None] * 7


def _no_third_derivative(*_: Any) -> Any:
    raise NotImplementedError("gwf_fast.nn.MLP: derivatives of third order are not available on the compiled path")


def _register(schema: str, run: Callable, fake: Callable, setup: Callable, backward: Callable) -> None:
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"gwf_fast::{name}", fake, lib=_LIBRARY)
    torch.library.register_autograd(f"gwf_fast::{name}", backward, setup_context=setup, lib=_LIBRARY)
    register_autocast(f"gwf_fast::{name}")


_register(
    f"mlp(Tensor x, Tensor[] parameters, {_SPEC}) -> Tensor",
    _run,
    lambda x, parameters, sizes, *_: _fake_out(x, sizes),
    _setup,
    _backward,
)
_register(
    f"mlp_backward(Tensor x, Tensor[] parameters, Tensor cotangent, bool wants_dx, bool wants_parameters, {_SPEC})"
    " -> (Tensor, Tensor[])",
    _run_backward,
    lambda x, parameters, cotangent, wants_dx, wants, *_: _fake_gradients(x, parameters, wants_dx, wants),
    _setup_backward,
    _double_backward,
)
_register(
    "mlp_second(Tensor x, Tensor[] parameters, Tensor cotangent, Tensor? x_tangent, Tensor?[] tangents, bool wants_dx,"
    f" bool wants_parameters, {_SPEC}) -> (Tensor, Tensor, Tensor[])",
    _run_second,
    lambda x, parameters, cotangent, x_tangent, tangents, wants_dx, wants, sizes, *_: (
        _fake_out(x, sizes),
        *_fake_gradients(x, parameters, wants_dx, wants),
    ),
    lambda ctx, inputs, output: None,
    _no_third_derivative,
)


# ---------------------------------------------------------------------------------------------- eager calls


class _Forward(Function):
    @staticmethod
    def forward(ctx: Any, spec: MLPSpec, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.spec = spec
        return _run(x, parameters, *spec)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        x, *parameters = ctx.saved_tensors
        wants_dx, wants_parameters = ctx.needs_input_grad[1], any(ctx.needs_input_grad[2:])
        dx, *found = gradients(x, parameters, cotangent, ctx.spec, wants_dx, wants_parameters)
        return None, dx if wants_dx else None, *(found or [None] * len(parameters))


class _Backward(Function):
    @staticmethod
    def forward(
        ctx: Any, spec: MLPSpec, wants: tuple[bool, bool], x: Tensor, cotangent: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, cotangent, *parameters)
        ctx.set_materialize_grads(False)
        ctx.spec, ctx.wants_dx = spec, wants[0]
        dx, found = _run_backward(x, parameters, cotangent, *wants, *spec)
        return dx, *found

    @staticmethod
    def backward(ctx: Any, x_tangent: Tensor | None, *tangents: Tensor | None) -> tuple[Any, ...]:
        x, cotangent, *parameters = ctx.saved_tensors
        wants_dx, wants_parameters = ctx.needs_input_grad[2], any(ctx.needs_input_grad[4:])
        x_tangent = x_tangent if ctx.wants_dx else None
        arguments = (wants_dx, wants_parameters, ctx.spec, x, cotangent, x_tangent, *parameters, *tangents)
        out, dx, *found = _Second.apply(*arguments) if torch.is_grad_enabled() else _Second.forward(None, *arguments)
        return None, None, dx if wants_dx else None, out, *(found or [None] * len(parameters))


class _Second(Function):
    @staticmethod
    def forward(
        ctx: Any, wants_dx: bool, wants_parameters: bool, spec: MLPSpec, x: Tensor, cotangent: Tensor,
        x_tangent: Tensor | None, *parameters_and_tangents: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        count = 2 * (len(spec.sizes) - 1) + sum(spec.learned)
        parameters, tangents = parameters_and_tangents[:count], parameters_and_tangents[count:]
        out, dx, found = _run_second(x, parameters, cotangent, x_tangent, tangents, wants_dx, wants_parameters, *spec)
        return out, dx, *found

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        _no_third_derivative()


def gradients(
    x: Tensor, parameters: Sequence[Tensor], cotangent: Tensor, spec: MLPSpec, wants_dx: bool, wants_parameters: bool
) -> tuple[Tensor, ...]:
    """Gradients of <cotangent, network(x)> in x and in each parameter; differentiable where grad mode is on."""
    if torch.is_grad_enabled():
        return _Backward.apply(spec, (wants_dx, wants_parameters), x, cotangent, *parameters)
    dx, found = _run_backward(x, parameters, cotangent, wants_dx, wants_parameters, *spec)
    return dx, *found


def mlp(x: Tensor, parameters: Sequence[Tensor], spec: MLPSpec) -> Tensor:
    """The network at x [N, D], by the shortest path that serves."""
    if not is_eager():
        return torch.ops.gwf_fast.mlp(x, list(parameters), *spec)
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        return _Forward.apply(spec, x, *parameters)
    return _run(x, parameters, *spec)


def value_and_gradient(x: Tensor, parameters: Sequence[Tensor], spec: MLPSpec) -> tuple[Tensor, Tensor]:
    """A network with one output and its gradient in x, [N, 1] and [N, D]; one pass where no graph is needed."""
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        value = mlp(x, parameters, spec)
        return value, gradients(x, parameters, torch.ones_like(value), spec, True, False)[0]
    value, dx, _ = _kernels(x.device.type).mlp_backward(
        plain(x), _contiguous(parameters), None, spec, wants_out=True, wants_parameters=False
    )
    return value, dx


class _Objective(Function):
    @staticmethod
    def forward(ctx: Any, spec: MLPSpec, sides: tuple[Side, ...], differentiable: Callable, *tensors: Tensor) -> Tensor:
        count = len(sides)
        parameters = tensors[count:]
        needs = ctx.needs_input_grad[3:]
        value, inputs, found = _kernels(tensors[0].device.type).mlp_objective(
            _contiguous(parameters), sides, spec, wants_dx=needs[:count], wants_parameters=any(needs[count:])
        )
        ctx.save_for_backward(*tensors)
        ctx.differentiable, ctx.inputs, ctx.found, ctx.n_parameters = differentiable, inputs, found, len(parameters)
        return torch.tensor(value, dtype=tensors[0].dtype, device=tensors[0].device)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # second derivatives are wanted: through the operators above
            value = ctx.differentiable(*tensors)
            wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
            found = iter(torch.autograd.grad(value, wanted, cotangent, create_graph=True))
            return None, None, None, *[next(found) if need else None for need in needs]
        inputs = [None if dx is None else dx * cotangent for dx in ctx.inputs]
        members = torch._foreach_mul(ctx.found, cotangent) if ctx.found else [None] * ctx.n_parameters
        return None, None, None, *inputs, *members


def objective(
    sides: tuple[Side, ...], parameters: Sequence[Tensor], spec: MLPSpec, differentiable: Callable[..., Tensor]
) -> Tensor:
    """Sum over the sides of weight * sum f(network(x)), with its gradients, in one pass over all rows.

    Args:
        sides: The expectations; x [N, D] each.
        parameters: Of the network.
        spec: Its shape; the last function is replaced by that of the side.
        differentiable: The same as a function of (x of each side, parameters), for second derivatives.
    """
    sides = tuple(side._replace(x=plain(side.x)) for side in sides)
    return _Objective.apply(spec, sides, differentiable, *[side.x for side in sides], *parameters)
