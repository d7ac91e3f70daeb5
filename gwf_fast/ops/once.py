"""What torch.func needs of functions that it cannot look into, in one place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gwf_fast.ops.opaque import lead


def batched(name: str, *, forward: Any, setup_context: Any, backward: Any, jvp: Any) -> type[Function]:
    """An autograd.Function for transforms, all of whose tensors have the same leading batch dimensions.

    vmap brings one more of these; results have it too.
    """

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        out = made.apply(*(lead(arg, dim, info.batch_size) for arg, dim in zip(args, in_dims, strict=True)))
        return out, (0,) * len(out) if isinstance(out, tuple) else 0

    methods = {"forward": forward, "setup_context": setup_context, "backward": backward, "jvp": jvp, "vmap": vmap}
    made: Any = type(name, (Function,), {key: staticmethod(value) for key, value in methods.items()})
    return made


def last(t: Tensor, words: str, *inputs: Tensor) -> Tensor:
    """A derivative that has none of its own: who asks for one, in an input or at all, is told so and not given 0.

    PyTorch's ``once_differentiable`` is silent where ``torch.autograd.grad`` is asked for inputs by name: what it puts
    into the graph lies on no path to them, and its part is missing.
    """
    return _Last.apply(t, words, *inputs)


class _Last(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, words: str, *inputs: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.words = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError(ctx.words)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        raise NotImplementedError(ctx.words)


def once(t: Tensor, words: str) -> Tensor:
    """The identity, of which what follows is differentiated once."""
    return t if torch.compiler.is_compiling() else _Once.apply(t, words)  # what is compiled has one derivative anyway


class _Once(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, words: str) -> Tensor:
        return t.view_as(t)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        t, ctx.words = inputs
        ctx.save_for_backward(t)
        ctx.save_for_forward(t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return last(grad, ctx.words, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return last(tangent, ctx.words, *ctx.saved_tensors)
