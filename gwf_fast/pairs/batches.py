"""Operators take one batch dimension or none, so that the usual calls need no views of their arguments."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

T = TypeVar("T", Tensor, Tensor | None)


def fold(value: T) -> T:  # [*B, M, C] -> [B?, M, C]
    """Points, or what has channels, with one batch dimension where it has several."""
    return value if value is None or value.ndim <= 3 else value.flatten(0, -3)


def fold_values(value: T) -> T:  # [*B, M] -> [B?, M]
    """Numbers, likewise."""
    return value if value is None or value.ndim <= 2 else value.flatten(0, -2)


def unfold(out: Tensor, x: Tensor) -> Tensor:  # [B?, N, ...] -> [*B, N, ...]
    """Results with the batch dimensions of points."""
    return out if x.ndim <= 3 else out.unflatten(0, x.shape[:-2])


def flat(lengths: Tensor | None) -> Tensor | None:  # [*B] -> [B]
    """Sizes with one dimension."""
    return None if lengths is None else lengths.flatten()
