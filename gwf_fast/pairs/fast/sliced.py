"""``method="sliced"``: sums over pairs in R^D as means over directions of sums over pairs of numbers.

A tile of directions at a time is projected, summed and projected back; nothing of the size P x N is stored, not for
derivatives either, which do a tile's work again. The error is estimated from what independent directions, or blocks
of orthogonal ones, differ by.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gwf_fast.kernels.table.profile_numbers import profile_id
from gwf_fast.pairs.fast.lines import line_sums
from gwf_fast.pairs.fast.slicing import LineForm, Spec, has_variance, line_form
from gwf_fast.pairs.passes import centre_of

NUMBERS = 1 << 23
"""That a tile may hold, about."""

WIDEST = 64  # directions of a tile

FEWEST_GROUPS = 4
"""Blocks of orthogonal directions from whose spread an error is estimated. With fewer it is estimated from single
directions as if they were independent, which is several times too much."""


class Directions(NamedTuple):
    """Directions, and how many that follow each other depend on each other."""

    vectors: Tensor  # [P, D]
    group: int


class SlicedSum(NamedTuple):
    """A sum and its error."""

    value: Tensor  # [N, C, 1] or [N, 1, D]
    error: Tensor  # in the 2-norm, not relative; 0-d, float64, no graph; NaN for one direction, inf without a variance


def sliced_sums(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    weights: Tensor,  # [M, C]; C = 1 for gradients
    spec: Spec,
    order: int,
    directions: Directions,
) -> SlicedSum:
    """sum_j w_jc k(x_i - y_j), or its gradient, by the mean over directions; differentiable to any order."""
    centre = centre_of(y)
    u = x - centre
    v = u if y is x else y - centre
    w = weights.T[None]  # [1, C, M]
    count = len(directions.vectors)
    grouped = math.ceil(count / directions.group) >= FEWEST_GROUPS and directions.group > 1
    size = directions.group if grouped else count
    total: Tensor | None = None
    squares = torch.zeros((), dtype=torch.float64)  # sum over groups of share |mean of the group|^2
    shares = 0.0  # sum of their squares
    for group in directions.vectors.split(size):
        part: Tensor | None = None
        for tile in group.split(_width(len(x) + len(y), weights.shape[1])):
            value, energy = _tile(u, v, w, tile, spec, order)
            part = value if part is None else part + value
            if not grouped:
                squares += energy / count
                shares += len(tile) / count**2
        assert part is not None
        if grouped:
            share = len(group) / count
            squares += share * (part.detach().double() / len(group)).square().sum()
            shares += share**2
        total = part if total is None else total + part
    assert total is not None
    out = total / count
    spread = (squares - out.detach().double().square().sum()).clamp(min=0)
    independent = 1 / shares  # as many equal groups would say as much
    error = (spread / (independent - 1)).sqrt() if independent > 1.0001 else torch.full_like(spread, math.nan)
    if not has_variance(spec, order):
        error = torch.full_like(spread, math.inf)
    return SlicedSum(out.T[..., None] if order == 0 else out[:, None], error)


def is_distance(spec: Spec) -> bool:
    """Whether a kernel is a multiple of r: on a line its sums come, to rounding, from the order of the points."""
    distance, power = profile_id("distance"), profile_id("power")
    return all(spec[k] == distance or (spec[k] == power and spec[k + 3] == 1) for k in range(0, len(spec), 4))


def distance_sums(
    x: Tensor,  # [N, 1]
    y: Tensor,  # [M, 1]
    weights: Tensor,  # [M, C]; C = 1 for gradients
    spec: Spec,
    order: int,
) -> Tensor:  # [N, C, 1], float64
    """The sums of such a kernel in one dimension, or their gradient; differentiable to any order."""
    centre = y.detach().double().mean(0)
    u = (x.double() - centre).T
    v = u if y is x else (y.double() - centre).T
    form = line_form(spec, 1, 1.0, order)
    return line_sums(u, v, weights.double().T[None], form, order)[0].T[..., None]


def _width(points: int, channels: int) -> int:
    return max(2, min(WIDEST, NUMBERS // max(1, points * (1 + channels))))


def _tile(x: Tensor, y: Tensor, w: Tensor, tile: Tensor, spec: Spec, order: int) -> tuple[Tensor, Tensor]:
    """The sum over a tile's directions, [C, N] or [N, D], and the sum of the squares of what each contributes."""
    with torch.no_grad():
        a, b = tile @ x.mT, tile @ y.mT
        low, high = torch.minimum(a.amin(), b.amin()), torch.maximum(a.amax(), b.amax())
        length = float(high.double() - low.double())
        # Rounded up, so that forms can be used again.
        length = 2 ** (math.ceil(4 * math.log2(length * 1.0001)) / 4) if length > 0 else 0.0
        middle = (low + high) / 2
    form = line_form(spec, x.shape[1], length, order)
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad or w.requires_grad):
        return checkpoint(_project, x, y, w, tile, form, order, middle, use_reentrant=False, preserve_rng_state=False)
    return _project(x, y, w, tile, form, order, middle)


def _project(
    x: Tensor, y: Tensor, w: Tensor, tile: Tensor, form: LineForm, order: int, middle: Tensor
) -> tuple[Tensor, Tensor]:
    a = tile @ x.mT - middle  # [T, N]
    b = a if y is x else tile @ y.mT - middle
    lines = line_sums(a, b, w, form, order)  # [T, C, N]
    energy = lines.detach().double().square().sum()  # directions are of unit length
    return (lines.sum(0) if order == 0 else lines[:, 0].mT @ tile), energy
