"""Backends may insist on exactly one batch dimension, and on channels in sums; these adapters bring them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def adapt(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A backend's function made to take tensors without the batch dimension, and sums without channels."""

    def batched(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.ndim == 3:
            return function(x, *args, **kwargs)
        out = function(_lift(x), *map(_lift, args), **kwargs)
        return _drop(out) if isinstance(out, Tensor) else tuple(map(_drop, out))

    def with_channels(x: Tensor, y: Tensor, b: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        if b is not None and b.ndim == y.ndim:
            return batched(x, y, b, *args, **kwargs)
        out = batched(x, y, None if b is None else b[..., None], *args, **kwargs)
        return out.reshape(x.shape[:-1]).clone()

    return with_channels if name == "pair_sum" else batched


def _lift(value: Any) -> Any:
    """Add the batch dimension to tensors, also in lists of tuples (tangents)."""
    if isinstance(value, Tensor):
        return value[None]
    return type(value)(map(_lift, value)) if isinstance(value, (list, tuple)) else value


def _drop(value: Tensor) -> Tensor:
    return value[0].clone()  # results of operators must not be views
