"""The evaluations that a kernel needs: one, unless a tensor as bandwidth divides points. Where to put the origin."""

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


_SAMPLE = 256
"""Points that a centre is taken from; of larger sets, evenly spaced ones."""


def centre_of(y: Tensor, y_lengths: Tensor | None = None) -> Tensor:  # [*B, M, C] -> [*B, 1, C]
    """A point amid the sources, a constant: far from the origin, rounding spoils what is not a difference.

    The median of each coordinate, which outliers do not move; of eight bits, so that it subtracts from points near it
    without rounding. 0 where there is no such point.
    """
    y = y.detach()
    m = y.shape[-2]
    if not m or not y.numel():
        return y.new_zeros(())
    if y_lengths is None:
        # y[..., ::step, :], which asks for the device, even of a tensor without one
        sample = torch.ops.aten.slice.Tensor(y, y.ndim - 2, 0, m, -(-m // _SAMPLE))
    else:
        count = min(m, _SAMPLE)
        index = torch.arange(count, device=y.device) * y_lengths[..., None] // count  # [*B, count]
        sample = y.gather(-2, index[..., None].expand(*index.shape, y.shape[-1]))
    wide = torch.promote_types(y.dtype, torch.float32)
    middle = sample.to(wide).sort(-2).values.select(-2, sample.shape[-2] // 2).unsqueeze(-2)
    digits = 53 if wide == torch.float64 else 24
    scaled = middle * (2.0 ** (digits - 8) + 1)
    short = (scaled - (scaled - middle)).to(y.dtype)  # the leading bits (Dekker 1971)
    return torch.where(short.isfinite(), short, 0.0)


def exists(points: Tensor, lengths: Tensor) -> Tensor:  # [*B, N, 1]
    """Which points of padded sets are theirs."""
    return (torch.arange(points.shape[-2], device=points.device) < lengths.unsqueeze(-1)).unsqueeze(-1)
