"""Drifting in PyTorch operations, a chunk of rows at a time, on any device: the meaning of kernels/cpp/drift.py."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK = 1 << 22  # pairs at a time
_ABSENT = 1e36  # the distance of a target that does not count, at any temperature


def forces(
    x: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    split: int,
    sizes: Tensor | None,
    temperatures: Tensor,
    own: Tensor | None,
    floor: float,
    clip: float,
    log_weights: Tensor | None = None,
) -> Tensor:
    """V of Algorithm 2 at each temperature, [K, B, N, D]; arguments as in kernels/cpp/drift.py."""
    if x.dtype in (torch.float16, torch.bfloat16):
        weights, own, log_weights = (None if t is None else t.float() for t in (weights, own, log_weights))
        temperatures = temperatures.float()
        result = forces(x.float(), targets.float(), weights, split, sizes, temperatures, own, floor, clip, log_weights)
        return result.to(x.dtype)
    out = x.new_zeros(len(temperatures), *x.shape)
    if not x.numel():
        return out
    for b in range(len(x)):
        n, cut, m = (x.shape[1], split, targets.shape[1]) if sizes is None else sizes[b].tolist()
        w = x.new_ones(1, 1).expand(n, m) if weights is None else _of_rows(weights[b], n, m)
        logs = None if log_weights is None else log_weights[b, :m]
        shift = None if own is None else own[b]
        points, y = x[b, :n], targets[b, :m]
        # Distances to the nearest are kept apart: where exponents are large, halves of logarithms would not cancel.
        nearest = x.new_full((m,), torch.inf)
        for _, r in _distances(points, y, shift, floor):
            nearest = torch.minimum(nearest, r.amin(0))
        columns = x.new_zeros(len(temperatures), m)
        for _, r in _distances(points, y, shift, floor):
            for k, temperature in enumerate(temperatures[:, b]):
                columns[k] += ((nearest - r) / temperature).exp().sum(0)
        for rows, r in _distances(points, y, shift, floor):
            for k, temperature in enumerate(temperatures[:, b]):
                # a weight of the kernel is a distance; in the softmax of its column it cancels
                extra = 0.0 if logs is None else (-temperature * logs).clamp(max=_ABSENT)
                near, far = nearest + extra, r + extra
                own_nearest = far.amin(1, keepdim=True)
                total = ((own_nearest - far) / temperature).exp().sum(1, keepdim=True) * columns[k]
                away = (far - 0.5 * near) - 0.5 * own_nearest
                a = (away / -temperature).exp().div(total.sqrt()).clamp(math.sqrt(clip), 1.0) * w[rows]
                if logs is not None:
                    a = torch.where(logs == -torch.inf, 0.0, a)
                negative, positive = a[:, :cut], a[:, cut:]
                attraction = positive @ y[cut:] * negative.sum(1, keepdim=True)
                out[k, b, rows] = attraction - negative @ y[:cut] * positive.sum(1, keepdim=True)
    return out


def total_distances(
    x: Tensor, targets: Tensor, weights: Tensor | None, split: int, sizes: Tensor | None, floor: float
) -> Tensor:
    """sum_ij w_j r_ij of each problem, [B] in float64; r is at least sqrt(floor)."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x, targets, weights = x.float(), targets.float(), None if weights is None else weights.float()
    totals = []
    for b in range(len(x)):
        n, _, m = (x.shape[1], split, targets.shape[1]) if sizes is None else sizes[b].tolist()
        w = x.new_ones(1, 1).expand(n, m) if weights is None else _of_rows(weights[b], n, m)
        parts = [(r * w[rows]).sum(1).double().sum() for rows, r in _distances(x[b, :n], targets[b, :m], None, floor)]
        totals.append(torch.stack(parts).sum())
    return torch.stack(totals) if totals else x.new_zeros(0, dtype=torch.float64)


def _of_rows(weights: Tensor, n: int, m: int) -> Tensor:
    """Weights [M] or [N, M] of one problem as [n, m]."""
    return weights[:m].expand(n, m) if weights.ndim == 1 else weights[:n, :m]


def _distances(x: Tensor, y: Tensor, own: Tensor | None, floor: float) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of rows with their distances [n, M]."""
    step = max(1, _CHUNK // len(y))
    unit = _unit(x, y)  # of which squares neither overflow nor vanish
    x, y = x / unit, y / unit
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        r = torch.cdist(x[rows], y, compute_mode="donot_use_mm_for_euclid_dist").mul(unit).clamp(min=math.sqrt(floor))
        if own is not None:
            r.diagonal(start).add_(own)
        yield rows, r


def _unit(x: Tensor, y: Tensor) -> Tensor:
    """A power of two near the largest finite coordinate."""
    largest = torch.cat((x, y)).nan_to_num(0.0, 0.0, 0.0).abs().amax()
    return torch.ldexp(torch.ones_like(largest), torch.where(largest > 0, torch.frexp(largest).exponent, 0))
