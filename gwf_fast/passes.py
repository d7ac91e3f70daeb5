"""The evaluations that a kernel needs: one, unless a bandwidth is a tensor, which its points are divided by."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .radial import Kernel


def scaled_passes(
    x: Tensor, y: Tensor, kernel: Kernel, y_lengths: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, tuple[float, ...]]]:
    """Points, bandwidth to divide by, and spec of each evaluation; one, as they are, unless a bandwidth is a tensor."""
    if kernel.spec is not None:
        yield x, y, None, kernel.spec
        return
    centre = centre_of(y, y_lengths)
    for bandwidth, spec in kernel.passes:
        if bandwidth is None:
            yield x, y, None, spec
        else:
            same = x is y  # keep it so: backends use the symmetry
            u = (x - centre) / bandwidth
            yield u, u if same else (y - centre) / bandwidth, bandwidth, spec


def centre_of(y: Tensor, y_lengths: Tensor | None) -> Tensor:  # [*B, M, C] -> [*B, 1, C]
    """A point amid the sources, a constant: far from the origin, rounding spoils what is not a difference."""
    y = y.detach()
    if y_lengths is None:
        return y.mean(-2, keepdim=True) if y.shape[-2] else y.new_zeros(())
    total = torch.where(exists(y, y_lengths), y, 0.0).sum(-2, keepdim=True)
    return total / y_lengths.clamp(min=1)[..., None, None].to(y.dtype)


def exists(points: Tensor, lengths: Tensor) -> Tensor:  # [*B, N, 1]
    """Which points of padded sets are theirs."""
    return (torch.arange(points.shape[-2], device=points.device) < lengths.unsqueeze(-1)).unsqueeze(-1)
