"""Sliced discrepancies on the CPU. Float32 or float64, x [B, N, D], y [B, M, D]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.kernels.cpp.pairs import _cpu

KINDS = ("wasserstein", "energy", "power")
_NEITHER = (None, None)


class Sliced(NamedTuple):
    """Of each direction the value, and the gradients of the sum over directions, times ``scale``.

    Attributes:
        values: [B, P], float64.
        x: [B, N, D], None where not wanted.
        y: [B, M, D], likewise.
        x_weights: [B, N], float64, likewise; up to a constant for each set.
        y_weights: [B, M], likewise.
    """

    values: Tensor
    x: Tensor | None
    y: Tensor | None
    x_weights: Tensor | None
    y_weights: Tensor | None


def sliced(
    kind: str,
    x: Tensor,
    y: Tensor,
    directions: Tensor,  # [P, D]
    *,
    power: float = 2.0,
    scale: float = 1.0,
    weights: tuple[Tensor | None, Tensor | None] = (None, None),  # float64, [B, N] and [B, M], sums 1
    lengths: tuple[Tensor | None, Tensor | None] = (None, None),  # int64, [B]
    exponentials: tuple[Tensor, Tensor] | None = None,  # of "power": rates, of which the first is 0, and coefficients
    tangents: tuple[Tensor, Tensor] | None = None,  # the derivative of the gradients along these, in their place
    wanted: Sequence[bool] = (True, True, False, False),
) -> Sliced:
    """The discrepancy ``kind`` of the projections on each direction."""
    values = torch.empty(len(x), len(directions), dtype=torch.float64)
    gradients = [torch.empty_like(points) if wish else None for points, wish in zip((x, y), wanted[:2], strict=True)]
    potentials: list[Tensor | None] = [None, None]
    if any(wanted[2:]):
        potentials = [points.new_empty(points.shape[:2], dtype=torch.float64) for points in (x, y)]
    _cpu.sliced(
        KINDS.index(kind), power, scale, x, y, directions, _pair(weights), tangents or _NEITHER, _pair(gradients),
        values, _pair(lengths), _pair(potentials), exponentials or _NEITHER,
    )  # fmt: skip
    return Sliced(values, *gradients, *(p if wish else None for p, wish in zip(potentials, wanted[2:], strict=True)))


def _pair(values: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """Two values as a tuple, the one kind that the compiled code takes."""
    first, second = values
    return first, second


def sliced_sum(
    x: Tensor,  # [L, N]
    y: Tensor,  # [L, M]; x itself where the sets are the same
    weights: Tensor,  # [1 or L, C, M]
    order: int,
    period: float,
    first: int,
    waves: Tensor,  # a [modes], float64
    powers: Tensor,  # b [at most 8], float64
    decays: tuple[Tensor, Tensor] | None = None,  # rates, increasing, and c, float64
    tied: float = 0.0,  # in the place of the exponentials at t = 0
) -> Tensor:  # [L, C, N]
    """sum_j w_j f^(order)(x_i - y_j) in each line.

    f(t) = sum a_m cos(2 pi m t / period) + sum b_k |t|^k + sum c_q exp(-rate_q |t|).
    """
    out = x.new_empty(len(x), weights.shape[1], x.shape[1])
    if decays is None:
        decays = powers[:0], powers[:0]
    _cpu.sliced_sum(order, period, first, x, y, weights, waves, powers, decays, tied, out)
    return out
