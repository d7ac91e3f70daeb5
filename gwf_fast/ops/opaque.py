"""Computations without a derivative that decide by the numbers: a node of a graph, one call of a transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gwf_fast.ops.modes import is_transformed
from gwf_fast.ops.registry import _LIBRARY


class Opaque:
    """A function of tensors that has no derivative, such as an iteration until a tolerance is met.

    torch.compile takes it as one node; under torch.func transforms it sees the tensors themselves, and the dimension
    that is mapped in front.

    Args:
        schema: Name, arguments and results as torch.library writes them.
        run: The implementation, on real tensors with any leading batch dimensions, the same for all; its results share
            no memory with each other or the arguments, and have the batch dimensions, or no dimension at all.
        fake: Shapes of the results, on fake tensors.
    """

    def __init__(self, schema: str, *, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
        name = schema[: schema.index("(")]
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"gwf_fast::{name}", fake, lib=_LIBRARY)
        self._op = getattr(torch.ops.gwf_fast, name).default
        self._transformed = _transformed(name, self, run)

    def __call__(self, *args: Any) -> Any:
        """Run as the node that it is in a graph, or by itself under a transform."""
        return self._transformed.apply(*args) if is_transformed() else self._op(*args)


def _transformed(name: str, opaque: Opaque, run: Callable[..., Any]) -> type[Function]:
    def forward(*args: Any) -> Any:
        # With one transform peeled off: either there are more, or these are ordinary tensors at last.
        return opaque(*args) if torch._C._are_functorch_transforms_active() else run(*args)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.count = len(inputs)
        ctx.results = output if isinstance(output, tuple) else (output,)
        ctx.mark_non_differentiable(*ctx.results)

    def backward(ctx: Any, *_: Any) -> tuple[None, ...]:
        return (None,) * ctx.count

    def jvp(ctx: Any, *_: Any) -> Any:
        return tuple(None for _ in ctx.results) if len(ctx.results) > 1 else None

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        out = opaque(*(lead(arg, dim, info.batch_size) for arg, dim in zip(args, in_dims, strict=True)))
        if isinstance(out, tuple):
            return out, tuple(0 if each.ndim else None for each in out)
        return out, 0

    methods = {"forward": forward, "setup_context": setup_context, "backward": backward, "jvp": jvp, "vmap": vmap}
    return type(f"{name}_transformed", (Function,), {key: staticmethod(value) for key, value in methods.items()})


def lead(value: Any, dim: int | None, size: int) -> Any:
    """A tensor with the mapped dimension in front, as one more batch dimension; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
