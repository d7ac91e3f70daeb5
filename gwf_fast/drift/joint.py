"""What the two forms of drifting share: targets of all kinds in one row, and who computes the forces between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.kernels.reference import drift as drift_reference
from gwf_fast.kernels.reference.range import largest_finite
from gwf_fast.ops.dispatch import load, resolve
from gwf_fast.ops.modes import is_concrete
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.passes import centre_of
from gwf_fast.pairs.ragged import exists, members

EXCLUDED = 1e36
"""A distance that no pair has, in any unit: of a pair that does not count."""


class Targets(NamedTuple):
    """Samples of one kind.

    Attributes:
        points: [B, M, D].
        weights: Of the affinities, [B, M], or of each particle's own, [B, N, M]; None means ones.
        lengths: [B], the sizes of ragged sets; None means M.
        log_weights: Of the kernel, [B, M], -inf for those that do not count; None means zeros.
    """

    points: Tensor
    weights: Tensor | None = None
    lengths: Tensor | None = None
    log_weights: Tensor | None = None


class Joint(NamedTuple):
    """Particles against all their targets, without gaps.

    Attributes:
        x: [B, N, D].
        targets: [B, M, D]: negatives, then positives.
        weights: [B, M] or [B, N, M]; None means ones.
        split: The number of negatives, where all problems have the same.
        sizes: [B, 3] int64: particles, negatives, targets of each problem; None where all are N, split, M.
        unit: What x and the targets are divided by, a power of two.
        log_weights: [B, M]; None means zeros.
    """

    x: Tensor
    targets: Tensor
    weights: Tensor | None
    split: int
    sizes: Tensor | None
    unit: float = 1.0
    log_weights: Tensor | None = None

    def forces(
        self, temperatures: Tensor, own: Tensor | None, *, floor: float, clip: float, backend: BackendName | None = None
    ) -> Tensor:
        """V at each temperature, [K, B, N, D], as x was joined; temperatures [K, B], own [B]."""
        compute = self._implementation(backend).forces
        if self.unit == 1:
            return compute(*self[:5], temperatures.to(self.x.dtype), own, floor, clip, self.log_weights)
        if own is not None:  # a distance that no pair has stays one
            own = torch.where(own >= EXCLUDED, own, own / self.unit)
        at = (temperatures / self.unit).to(self.x.dtype)
        return compute(*self[:5], at, own, floor / self.unit**2, clip, self.log_weights) * self.unit

    def total_distances(self, *, floor: float, backend: BackendName | None = None) -> Tensor:
        """sum_ij w_j r_ij [B] in float64."""
        return self._implementation(backend).total_distances(*self[:5], floor / self.unit**2) * self.unit

    def _implementation(self, backend: BackendName | None = None) -> ModuleType:
        if not is_concrete(*self[:3]):
            return drift_reference  # by name: a module is not imported while a graph is traced
        kind = self.x.device, self.x.dtype, False, "drift", self.x.shape[-1]
        return load(resolve(backend, *kind).partition(":")[0], "drift")

    def row_counts(self) -> Tensor:
        """Particles of each problem, [B]."""
        return self._counts(0, self.x.shape[1])

    def masses(self) -> Tensor:
        """sum_ij w_j of each problem, [B] in float64."""
        if self.weights is None:
            return self.row_counts().double() * self._counts(2, self.targets.shape[1])
        weights, columns = self.weights, None if self.sizes is None else self.sizes[:, 2]
        if weights.ndim == 2:
            return self.row_counts() * members(weights, columns).double().sum(1)
        if columns is not None:
            rows = exists(weights, self.sizes[:, 0])  # type: ignore[index]
            weights = torch.where(rows[..., None] & exists(weights.mT, columns)[:, None], weights, 0.0)
        return weights.double().sum((1, 2))

    def _counts(self, column: int, everywhere: int) -> Tensor:
        if self.sizes is not None:
            return self.sizes[:, column]
        return torch.full((len(self.x),), everywhere, device=self.x.device)


def join(
    x: Tensor, x_lengths: Tensor | None, negatives: Sequence[Targets], positives: Targets, *, floored: bool
) -> Joint:
    """Put targets in a row, about the centre of the positives; members of ragged sets move up: no problem has a gap.

    Where squared distances have no floor (``floored``), tiny coordinates get a unit of their own as huge ones do.
    """
    # Forces do not mind where the origin is; their rounding does.
    centre = centre_of(positives.points, positives.lengths)
    x, kinds = x - centre, [kind._replace(points=kind.points - centre) for kind in (*negatives, positives)]
    unit = _unit(floored, members(x, x_lengths), *(members(kind.points, kind.lengths) for kind in kinds))
    if unit != 1:
        x, kinds = x / unit, [kind._replace(points=kind.points / unit) for kind in kinds]
    positives = kinds[-1]
    points = torch.cat([kind.points for kind in kinds], 1) if len(kinds) > 1 else positives.points
    log_weights = None
    if any(kind.log_weights is not None for kind in kinds):
        log_weights = torch.cat([_filled(kind.log_weights, kind.points, 0.0) for kind in kinds], 1)
    weights = _weights(kinds, x.shape[1])
    split = points.shape[1] - positives.points.shape[1]
    if x_lengths is None and all(kind.lengths is None for kind in kinds):
        return Joint(x, points, weights, split, None, unit, log_weights)

    def counts(points: Tensor, lengths: Tensor | None) -> Tensor:
        return torch.full((len(x),), points.shape[1], device=x.device) if lengths is None else lengths

    sizes = [counts(kind.points, kind.lengths) for kind in kinds]
    present = [exists(kind.points, size) for kind, size in zip(kinds, sizes, strict=True)]
    order = (~torch.cat(present, 1)).to(torch.uint8).argsort(dim=1, stable=True)
    points = points.gather(1, order[..., None].expand_as(points))
    if weights is not None:
        weights = weights.gather(-1, order if weights.ndim == 2 else order[:, None].expand_as(weights))
    log_weights = None if log_weights is None else log_weights.gather(1, order)
    total = torch.stack(sizes).sum(0)
    table = torch.stack([counts(x, x_lengths), total - sizes[-1], total], 1)
    return Joint(x, points, weights, split, table, unit, log_weights)


def _filled(values: Tensor | None, points: Tensor, value: float) -> Tensor:
    return points.new_full(points.shape[:2], value) if values is None else values


def _weights(kinds: Sequence[Targets], rows: int) -> Tensor | None:
    """Of all targets in a row, [B, M], or [B, N, M] where those of one kind are."""
    if all(kind.weights is None for kind in kinds):
        return None
    each = [_filled(kind.weights, kind.points, 1.0) for kind in kinds]
    if any(weights.ndim == 3 for weights in each):
        each = [w if w.ndim == 3 else w[:, None].expand(-1, rows, -1) for w in each]
    return torch.cat(each, -1)


_HUGE = 2.0**40
"""Coordinates beyond which squares, and distances that no pair has, are near the end of float32."""


def _unit(floored: bool, *sets: Tensor) -> float:
    """A power of two that brings huge coordinates near 1, and tiny ones."""
    if not all(is_concrete(points) and points.is_cpu for points in sets):
        return 1.0
    extent = max(largest_finite(points) for points in sets)
    usual = extent <= _HUGE and (floored or extent == 0 or extent >= 1 / _HUGE)
    return 1.0 if usual else 2.0 ** math.frexp(extent)[1]
