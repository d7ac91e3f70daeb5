"""Drifting as its authors released it: joint targets, a common scale, several temperatures, clip, weights, RMS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gwf_fast import ops
from gwf_fast.drift._checks import check_sets, negative_weights
from gwf_fast.drift.joint import Targets, join
from gwf_fast.errors import renamed
from gwf_fast.kernels.cpp import drift as drift_cpp
from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.modes import is_concrete, is_transformed
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.ragged import member_weights, members
from gwf_fast.pairs.validation import as_positive, check_counts

_FLOOR = 1e-8  # of squared distances and of mean squared forces
_SELF = 100.0  # added to the normalised distance of a particle to itself


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


@entry
@renamed(negative_weights="negatives_weights")
@widens
def gmd_multi(
    x: Tensor,
    y: Tensor,
    *,
    negatives: Tensor | None = None,
    temperatures: Sequence[float] = (0.02, 0.05, 0.2),
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    negatives_weights: Tensor | None = None,
    clip: float = 1e-6,
    normalization: Literal["batch", "problem"] = "batch",
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    negatives_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> MultiDrift:
    """The released variant of drifting (Deng et al. 2026).

    Targets are [particles | negatives | positives] with weights w. Distances sqrt(max(r^2, 1e-8)) are divided by their
    mean s = mean(w r) / mean(w), coordinates by s / sqrt(D) (both at least 1e-3), and 100 is added to the distance of a
    particle to itself. For each temperature, A = sqrt(max(softmax_rows softmax_columns, clip)) w and the cross weights
    of Algorithm 2 give V_R, which is divided by sqrt(max(mean V_R^2, 1e-8)); these are added up. Each V_R has unit mean
    square whatever its size, so the length of the drift tells nothing: ``raw`` does.

    Weights of 0 leave a target out of forces and of means, but not of the softmaxes: those of the negatives may all be
    0, for a problem without guidance. Weights of the negatives may be each particle's own, [*B, N, Nn]; those of the
    others are then repeated for each particle, which takes memory for N x M of them.

    Four passes over the pairs (mean distance; sums of rows, of columns; forces), each for all temperatures at once, and
    nothing of size N x M: 10^5 particles in one problem are served.

    Args:
        x: Particles [*B, N, D].
        y: Positives [*B, P, D].
        negatives: Further negatives [*B, Nn, D].
        temperatures: R, relative to the mean distance.
        x_weights: w of the particles as targets [*B, N]; None means ones.
        y_weights: The same of the positives, [*B, P].
        negatives_weights: The same of the negatives, [*B, Nn], or for each particle [*B, N, Nn].
        clip: Least product of the two softmaxes.
        normalization: "batch": means over all problems of the batch, as published; "problem": each on its own.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to P.
        negatives_lengths: Sizes [*B], int64, of ragged negatives padded to Nn.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        ``MultiDrift``; a constant to autograd.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, or a temperature or the clip is not positive.
    """
    check_sets(x, y, exclude_self=negatives is None)
    rates = [as_positive("temperatures", t) for t in temperatures]
    if not rates:
        raise ValueError("temperatures must have at least one entry, got none")
    clip = as_positive("clip", clip)
    if normalization not in ("batch", "problem"):
        raise ValueError(f'normalization must be "batch" or "problem", got {normalization!r}')
    sides = [("x", x, x_weights, x_lengths), ("y", y, y_weights, y_lengths)]
    if negatives is not None:
        check_sets(x, negatives, False, "negatives")
        sides.insert(1, ("negatives", negatives, negatives_weights, negatives_lengths))
    elif negatives_weights is not None or negatives_lengths is not None:
        raise ValueError("negatives_weights and negatives_lengths need negatives, got None")
    kinds = []
    for name, points, weights, lengths in sides:
        check_counts(f"{name}_lengths", lengths, points, 2 if name == "x" and negatives is None else 1)
        if weights is not None and name == "negatives":
            weights = negative_weights(weights, x, points, x_lengths, lengths)
            weights = weights.reshape(-1, *weights.shape[x.ndim - 2 :])
        elif weights is not None:
            weights = member_weights(f"{name}_weights", weights, points, name, lengths).reshape(-1, points.shape[-2])
        if is_transformed():  # whose derivatives no_grad does not switch off
            points, weights = points.detach(), None if weights is None else weights.detach()
        kinds.append(Targets(_fold(points), weights, None if lengths is None else lengths.flatten()))
    return _normalised(x, kinds, rates, clip, normalization == "problem", backend)


@torch.no_grad()
def _normalised(
    x: Tensor, kinds: list[Targets], rates: list[float], clip: float, per_problem: bool, backend: BackendName | None
) -> MultiDrift:
    """The drift of x [*B, N, D], which are the first of the kinds; the positives are the last."""
    dim = x.shape[-1]
    if x.numel() == 0:  # nothing moves nothing
        each = x.shape[:-2] if per_problem else ()
        rates_first = x.new_zeros(*each, len(rates)) if per_problem else x.new_zeros(len(rates))
        return MultiDrift(torch.zeros_like(x), x.new_zeros(each), rates_first)
    if all(is_concrete(*kind) and kind.lengths is None for kind in kinds):
        chosen = ops.resolve(backend, x.device, x.dtype, False, "drift", dim)
        sets = [(kind.points, kind.weights) for kind in kinds]
        found = drift_cpp.released(sets, rates, clip, per_problem) if chosen == "cpp" else None
        if found is not None:
            each = x.shape[:-2] if per_problem else ()
            scale = found[1].clamp_(min=_FLOOR**0.5)  # which points in other units may have lost
            return MultiDrift(found[0].view(x.shape), scale.view(each), found[2].view(*each, len(rates)))
    joint = join(kinds[0].points, kinds[0].lengths, kinds[:-1], kinds[-1], floored=True)
    totals, masses, rows = joint.total_distances(floor=_FLOOR, backend=backend), joint.masses(), joint.row_counts()
    scale = totals / masses if per_problem else totals.sum() / masses.sum()  # [B] or []
    scale = scale.to(x.dtype).clamp(min=_FLOOR**0.5)  # which points in other units may have lost
    unit = scale.expand(len(joint.x)).clamp(min=1e-3)
    step = (scale.expand(len(joint.x)) / math.sqrt(dim)).clamp(min=1e-3)[:, None, None]
    at = torch.stack([rate * unit for rate in rates])  # [K, B]; a list of numbers would be copied from the host
    force = joint.forces(at, _SELF * unit, floor=_FLOOR, clip=clip, backend=backend) / step  # [K, B, N, D]
    squares, count = force.square().sum((2, 3)), rows * dim
    raw = squares / count if per_problem else squares.sum(1, keepdim=True) / count.sum()  # [K, B] or [K, 1]
    velocity = (force / raw.clamp(min=_FLOOR).sqrt()[..., None, None]).sum(0) * step
    velocity = members(velocity, kinds[0].lengths).view(x.shape)  # one that is NaN touches none beyond the lengths
    if per_problem:
        return MultiDrift(velocity, scale.view(x.shape[:-2]), raw.T.reshape(*x.shape[:-2], -1))
    return MultiDrift(velocity, scale, raw[:, 0])


def _fold(points: Tensor) -> Tensor:  # [*B, N, D] -> [B, N, D]
    return points.reshape(math.prod(points.shape[:-2]), *points.shape[-2:])
