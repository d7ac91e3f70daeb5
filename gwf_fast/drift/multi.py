"""Drifting as its authors released it: joint targets, a common scale, several temperatures, clip, weights, RMS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._validation import check_companion
from ..kernels import drift as small
from ..ops.modes import is_concrete
from ._checks import check_positive, check_sets

_FLOOR = 1e-8  # of squared distances and of mean squared forces
_SELF = 100.0  # added to the normalised distance of a particle to itself
_CHUNK = 1 << 22  # pairs at a time


class MultiDrift(NamedTuple):
    """The drift and what it was normalised by.

    Attributes:
        velocity: [*B, N, D], in the coordinates of x.
        scale: Mean distance, [] or, normalised by problem, [*B].
        raw: mean V_R^2 of each temperature before its normalisation, [K] or [*B, K]: what falls as the flow converges.
    """

    velocity: Tensor
    scale: Tensor
    raw: Tensor


def gmd_multi(
    x: Tensor,
    y: Tensor,
    *,
    negatives: Tensor | None = None,
    temperatures: Sequence[float] = (0.02, 0.05, 0.2),
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
    clip: float = 1e-6,
    normalization: str = "batch",
) -> MultiDrift:
    """The released variant of drifting (Deng et al. 2026).

    Targets are [particles | negatives | positives] with weights w. Distances sqrt(max(r^2, 1e-8)) are divided by their
    mean s = mean(w r) / mean(w), coordinates by s / sqrt(D) (both at least 1e-3), and 100 is added to the distance of a
    particle to itself. For each temperature, A = sqrt(max(softmax_rows softmax_columns, clip)) w and the cross weights
    of Algorithm 2 give V_R, which is divided by sqrt(max(mean V_R^2, 1e-8)); these are added up. Each V_R has unit mean
    square whatever its size, so the length of the drift tells nothing: ``raw`` does.

    Args:
        x: Particles [*B, N, D].
        y: Positives [*B, P, D].
        negatives: Further negatives [*B, Nn, D].
        temperatures: R, relative to the mean distance.
        x_weights: w of the particles as targets [*B, N]; None means ones.
        y_weights: The same of the positives, [*B, P].
        negative_weights: The same of the negatives, [*B, Nn].
        clip: Least product of the two softmaxes.
        normalization: "batch": means over all problems of the batch, as published; "problem": each on its own.

    Returns:
        ``MultiDrift``; a constant to autograd.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, or a temperature or the clip is not positive.
    """
    check_sets(x, y, exclude_self=negatives is None)
    rates = [check_positive("temperatures", t) for t in temperatures]
    if not rates:
        raise ValueError("temperatures must have at least one entry, got none")
    check_positive("clip", clip)
    if normalization not in ("batch", "problem"):
        raise ValueError(f'normalization must be "batch" or "problem", got {normalization!r}')
    sides = [("x", x, x_weights), ("y", y, y_weights)]
    if negatives is not None:
        check_sets(x, negatives, False, "negatives")
        sides.insert(1, ("negatives", negatives, negative_weights))
    elif negative_weights is not None:
        raise ValueError("negative_weights needs negatives, got None")
    weights = []
    for name, points, given in sides:
        if given is not None:
            title = "negative_weights" if name == "negatives" else f"{name}_weights"
            check_companion(title, given, points, channels=False, y_name=name)
            if (given < 0).any() or not (given.sum(-1) > 0).all():
                raise ValueError(f"{title} must not be negative and must have a positive sum")
        weights.append(points.new_ones(points.shape[:-1]) if given is None else given)
    with torch.no_grad():
        dim = x.shape[-1]
        particles = x.reshape(-1, *x.shape[-2:])
        targets = torch.cat([points for _, points, _ in sides], -2).reshape(len(particles), -1, dim)
        w = torch.cat(weights, -1).reshape(len(particles), -1)
        split = targets.shape[1] - y.shape[-2]
        per_problem = normalization == "problem"
        size = max(1, _CHUNK // max(1, particles.shape[1] * targets.shape[1]))
        pieces = list(zip(particles.split(size), targets.split(size), w.split(size), strict=True))
        # In double: these are sums of millions of terms.
        totals = torch.cat([(_distances(p, t) @ v[..., None]).double().sum((1, 2)) for p, t, v in pieces])
        masses = w.double().sum(1) * particles.shape[1]
        scale = totals / masses if per_problem else totals.sum() / masses.sum()  # [B] or []
        scale = scale.to(x.dtype)
        unit = scale.expand(len(particles)).clamp(min=1e-3)
        forces = [
            _forces(p, t, v, split, u, rates, clip) for (p, t, v), u in zip(pieces, unit.split(size), strict=True)
        ]
        force = torch.cat(forces, 1)  # [K, B, N, D], in coordinates divided by the step below
        step = (scale.expand(len(particles)) / math.sqrt(dim)).clamp(min=1e-3)[:, None, None]
        force = force / step
        raw = force.square().mean((2, 3) if per_problem else (1, 2, 3))  # [K, B] or [K]
        rms = raw.clamp(min=_FLOOR).sqrt()
        velocity = (force / rms.reshape(len(rates), -1, 1, 1)).sum(0) * step
        if per_problem:
            return MultiDrift(velocity.view(x.shape), scale.view(x.shape[:-2]), raw.T.reshape(*x.shape[:-2], -1))
        return MultiDrift(velocity.view(x.shape), scale, raw)


def _distances(x: Tensor, y: Tensor) -> Tensor:  # [B, N, D], [B, M, D] -> [B, N, M]
    r = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return r.clamp_(min=math.sqrt(_FLOOR))


def _forces(
    x: Tensor, targets: Tensor, w: Tensor, split: int, unit: Tensor, rates: list[float], clip: float
) -> Tensor:  # [K, B, N, D]
    """V_R of each temperature in the coordinates of x; the first N targets are x, those from ``split`` on positives."""
    if is_concrete(x, targets, w) and small.serves(x, targets.shape[1]):
        temperatures = torch.tensor(rates, dtype=x.dtype)[:, None] * unit
        return small.forces(x, targets, w, split, temperatures, _SELF * unit, _FLOOR, clip)
    r = _distances(x, targets) / unit[:, None, None]
    r.diagonal(dim1=-2, dim2=-1).add_(_SELF)
    out = x.new_empty(len(rates), *x.shape)
    for k, rate in enumerate(rates):
        logit = r / -rate
        rows, columns = logit.logsumexp(2, keepdim=True), logit.logsumexp(1, keepdim=True)
        a = logit.mul_(2).sub_(rows).sub_(columns).exp_().clamp_(min=clip).sqrt_().mul_(w[:, None, :])
        negative, positive = a[..., :split], a[..., split:]
        attraction = torch.bmm(positive, targets[:, split:]) * negative.sum(2, keepdim=True)
        repulsion = torch.bmm(negative, targets[:, :split]) * positive.sum(2, keepdim=True)
        out[k] = attraction - repulsion
    return out
