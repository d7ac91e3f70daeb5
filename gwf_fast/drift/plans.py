"""Forces along couplings of the particles with both sides, streaming.

With "split" couplings each side's rows sum to 1, and the force is the difference of both means. A "joint" one, A, is of
the particles with both sides at once, and the force is (sum_neg A) (sum_pos A y) - (sum_pos A) (sum_neg A y): the same
difference of means, times the product of a particle's masses on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gwf_fast.drift._checks import require_grad
from gwf_fast.drift.sides import Samples, Side
from gwf_fast.ops.sharding import count_of
from gwf_fast.pairs.passes import over
from gwf_fast.pairs.ragged import exists, members
from gwf_fast.transport import small
from gwf_fast.transport.arguments import Numbers

# Sides come as positives and negatives, forces are [B?, N, D]; those of rows beyond the lengths mean nothing.


def row(sides: Sequence[Side], joint: bool) -> Tensor:
    """Of a softmax over the targets."""
    (attraction, plus), (repulsion, minus) = (side.average(side.targets.log_weights) for side in sides)
    if not joint:
        return attraction - repulsion
    total = torch.stack((plus, minus)).logsumexp(0)
    return _strength(plus + minus - 2 * total, 0.0) * (attraction - repulsion)


def two_sided(sides: Sequence[Side], joint: bool) -> Tensor:
    """Of the geometric mean of softmaxes over targets and over particles (Deng et al. 2026, Algorithm 2)."""
    rows, logs, means = [], [], []
    for side in sides:
        log_weights = side.targets.log_weights
        columns = side.columns()
        if joint:
            rows.append(columns if side.is_symmetric() else side.rows(log_weights))
        halves = torch.where(columns == -torch.inf, 0.0, -0.5 * columns)  # a column beyond the lengths
        mean, log = side.average(halves if log_weights is None else halves + 0.5 * log_weights)
        means.append(mean)
        logs.append(log)
    difference = means[0] - means[1]
    if not joint:
        return difference
    # logsumexp: the second derivative of logaddexp is infinity over infinity where its arguments differ by 88
    count, other = (count_of(side.targets.points, side.backend) for side in sides)
    most = 0.5 * math.log(count * other)  # by Cauchy-Schwarz
    return _strength(logs[0] + logs[1] - torch.stack(rows).logsumexp(0), most) * difference


def sinkhorn(sides: Sequence[Side], joint: bool, n_sweeps: int) -> Tensor:
    """Of the plan after so many sweeps."""
    if not joint:
        attraction, repulsion = (side.average(_sweeps(side, n_sweeps)[1])[0] for side in sides)
        return attraction - repulsion
    together = _joined(*sides)
    rows, columns = _sweeps(together, n_sweeps)
    minus, plus = columns.split([side.targets.points.shape[-2] for side in reversed(sides)], -1)
    (attraction, log_plus), (repulsion, log_minus) = sides[0].average(plus), sides[1].average(minus)
    return _strength(2 * rows + log_plus + log_minus, 0.0) * (attraction - repulsion)


def _strength(logarithm: Tensor, most: float) -> Tensor:
    """A product of masses [B?, N, 1] from its logarithm, which rounding does not bring beyond what it is at most."""
    return logarithm.clamp(max=most).exp()[..., None]


def _sweeps(side: Side, count: int) -> tuple[Tensor, Tensor]:
    """log a_i + F_i [B?, N] and log b_j + G_j [B?, M] of the plan k_ij a_i b_j e^(F_i + G_j).

    Rows are scaled, then columns, ``count`` times, from G = 0.
    """
    points, log_weights, lengths, _ = side.targets
    log_a, log_b = _log_masses(None, side.x, side.x_lengths), _log_masses(log_weights, points, lengths)
    if (known := _compiled(side, None if log_weights is None else log_b.exp(), count)) is not None:
        return log_a + known[0], log_b + known[1]
    rows, columns = log_a, log_b
    for _ in range(count):
        rows = log_a - _finite(side.rows(columns))
        columns = log_b - _finite(side.columns(rows))
    return rows, columns


def _compiled(side: Side, masses: Tensor | None, count: int) -> tuple[Tensor, Tensor] | None:
    """F and G of a small problem on a CPU in one call, without a graph; None where that can't be."""
    points, log_weights, lengths, excluded = side.targets
    if side.cost is None or excluded or require_grad(side.x, points, log_weights):
        return None
    epsilon, p = side.cost
    if not 1e-20 < epsilon < 1e20:  # potentials are of the size of costs, and float32 has none of 1e-58
        return None
    sets = small.Sets(side.x, points, None, masses, side.x_lengths, lengths, side.backend)
    numbers = Numbers(epsilon, max_iterations=count, p=p, plain=True)
    found = small.solve(sets, None, **numbers._asdict())
    return None if found is None else (over(found.f, epsilon), over(found.g, epsilon))


def _finite(sums: Tensor) -> Tensor:
    """Logarithms of sums; 0 beyond the lengths, where there is nothing to sum."""
    return torch.where(sums == -torch.inf, 0.0, sums)


def _log_masses(log_weights: Tensor | None, points: Tensor, lengths: Tensor | None) -> Tensor:
    """Logarithms of masses that sum to 1, [B?, M]; -inf beyond the lengths."""
    return _known(log_weights, points, lengths).log_softmax(-1)


def _known(log_weights: Tensor | None, points: Tensor, lengths: Tensor | None) -> Tensor:
    values = points.new_zeros(points.shape[:-1]) if log_weights is None else log_weights
    return values if lengths is None else torch.where(exists(points, lengths), values, -torch.inf)


def _joined(positive: Side, negative: Side) -> Side:
    """Negatives, then positives as one: particle i and negative i stay the pair that may not count."""
    kinds = negative.targets, positive.targets
    points = torch.cat([members(kind.points, kind.lengths) for kind in kinds], -2)
    log_weights = torch.cat([_known(kind.log_weights, kind.points, kind.lengths) for kind in kinds], -1)
    return negative._replace(targets=Samples(points, log_weights, None, negative.targets.excluded))
