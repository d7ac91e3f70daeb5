"""Several temperatures in one drift: read from an argument, and their forces put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from gwf_fast.ops.sharding import agreed, count_of, spread, total_of
from gwf_fast.pairs.ragged import members
from gwf_fast.pairs.validation import as_positive

Normalization = Literal["problem"]


def as_temperatures(temperature: float | Sequence[float]) -> list[float]:
    """One or more positive numbers.

    Raises:
        ValueError, TypeError: If one is out of range, or there is none.
    """
    if not isinstance(temperature, (list, tuple)):
        return [as_positive("temperature", temperature)]
    if not temperature:
        raise ValueError("temperature must be a positive number or a list of them, got none")
    return [as_positive("temperature", t) for t in temperature]


def check_normalization(normalization: Normalization | None) -> None:
    """None, or "problem"."""
    if normalization not in (None, "problem"):
        raise ValueError(f'normalization must be None or "problem", got {normalization!r}')


def added_up(
    forces: Iterable[Tensor],
    normalization: Normalization | None,
    lengths: Tensor | None,
    backend: str | None = None,
) -> Tensor:
    """The sum of forces [*B, N, D] of several temperatures, each normalised if that is wanted.

    Args:
        forces: One of each temperature; rows beyond the lengths are 0.
        normalization: "problem" gives each the mean square 1 over the particles and coordinates of a problem.
        lengths: Sizes [*B] of ragged sets.
        backend: Who computed them, for particles in shards.
    """
    total: Tensor | None = None
    for force in forces:
        part = force if normalization is None else _normalised(force, lengths, backend)
        total = part if total is None else total + part
    assert total is not None
    return total


def _normalised(force: Tensor, lengths: Tensor | None, backend: str | None) -> Tensor:
    """Of unit mean square for each problem, however small or large it is; 0 where it is 0."""
    if not agreed(force.numel() > 0, backend):
        return force
    sizes = force.detach().abs() if force.numel() else force.new_zeros((*force.shape[:-2], 1, 1))
    # first: squares leave the range of float32; of shards the sum of their largest, which serves as well
    largest = total_of(sizes.amax((-2, -1), keepdim=True), backend)
    moving = largest > 0
    scaled = force / torch.where(moving | largest.isnan(), largest, 1.0)
    n, dim = count_of(force, backend), force.shape[-1]
    count = n * dim if lengths is None else (lengths * dim)[..., None, None]
    squares = spread(total_of(scaled.square().sum((-2, -1), keepdim=True), backend), backend)
    mean = torch.where(moving, squares / count, 1.0)
    return members(scaled / mean.sqrt(), lengths)  # one that is NaN touches none beyond the lengths
