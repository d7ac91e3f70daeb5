"""What attracts and what repels the particles of a drift: checked, and reduced without an N x M matrix.

With the kernel k = e^L of a pair, everything that drifts ask of a side is a logarithm of sums of k over particles or
over targets, or a mean of targets under weights e^b_j k.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gwf_fast import ops
from gwf_fast.drift._checks import check_log_weights, check_others, check_sets
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.passes import centre_of
from gwf_fast.pairs.validation import check_counts


class Samples(NamedTuple):
    """Samples of one kind.

    Attributes:
        points: [*B, M, D].
        log_weights: [*B, M], -inf for those that do not count; None means zeros.
        lengths: [*B], the sizes of ragged sets; None means M.
        excluded: Whether particle i and sample i make no pair.
    """

    points: Tensor
    log_weights: Tensor | None = None
    lengths: Tensor | None = None
    excluded: bool = False


def check_sides(
    x: Tensor,
    y: Tensor,
    negatives: Tensor | None,
    exclude_self: bool,
    y_log_weights: Tensor | None,
    negatives_log_weights: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    negatives_lengths: Tensor | None,
    backend: BackendName | None = None,
) -> tuple[Samples, Samples]:
    """Positives and negatives; None for negatives are the particles themselves.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, or leave a particle without one or the other.
    """
    own = negatives is None or negatives is x
    negatives = x if negatives is None else negatives
    if own and negatives_lengths is None:
        negatives_lengths = x_lengths
    check_sets(x, y, False, backend=backend)
    if not own:
        check_sets(x, negatives, False, "negatives", backend)
    one_set = exclude_self and negatives.shape[-2] == x.shape[-2]
    if exclude_self:
        if one_set:
            check_others(x, backend)
        elif negatives.shape[-2] < x.shape[-2]:
            raise ValueError(
                "exclude_self=True needs at least as many negatives as particles, the first of them the particles"
                f" themselves, got x {list(x.shape)} and negatives {list(negatives.shape)}"
            )
    if not (x_lengths is y_lengths is negatives_lengths is None):
        check_counts("x_lengths", x_lengths, x, 1 + one_set)
        check_counts("y_lengths", y_lengths, y, 1)
        check_counts("negatives_lengths", negatives_lengths, negatives, 1 + exclude_self)
    check_log_weights("y_log_weights", y_log_weights, y, "y", y_lengths, 0, backend)
    particles = x.shape[-2] if exclude_self else 0
    check_log_weights(
        "negatives_log_weights", negatives_log_weights, negatives, "negatives", negatives_lengths, particles, backend
    )
    return (
        Samples(y, y_log_weights, y_lengths),
        Samples(negatives, negatives_log_weights, negatives_lengths, exclude_self),
    )


class Side(NamedTuple):
    """One side against the particles, under one kernel.

    Attributes:
        x: Particles [B?, N, D], about the centre of the positives.
        x_lengths: [B].
        targets: [B?, M, D], in the same coordinates; x itself where they are the particles.
        spec: Of the kernel.
        backend: Who sums.
        cost: Epsilon and p where the kernel is e^(-r^p / (p epsilon)), as problems of transport have it.
    """

    x: Tensor
    x_lengths: Tensor | None
    targets: Samples
    spec: tuple[float, ...] | None
    backend: BackendName | None
    cost: tuple[float, int] | None = None

    def rows(self, log_weights: Tensor | None) -> Tensor:
        """log sum_j e^b_j k_ij [B?, N]."""
        points, _, lengths, excluded = self.targets
        return ops.pair_logsumexp(
            self.x, points, log_weights, self.spec, excluded, self.x_lengths, lengths, self.backend
        )

    def columns(self, log_weights: Tensor | None = None) -> Tensor:
        """log sum_i e^a_i k_ij [B?, M]; -inf beyond the lengths."""
        points, _, lengths, excluded = self.targets
        return ops.pair_logsumexp(
            points, self.x, log_weights, self.spec, excluded, lengths, self.x_lengths, self.backend
        )

    def average(self, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean of the targets [B?, N, D] under weights e^b_j k_ij, and the logarithm of their sum [B?, N]."""
        points, _, lengths, excluded = self.targets
        mean, log = ops.pair_average(
            self.x, points, None, log_weights, self.spec, excluded, self.x_lengths, lengths, self.backend
        )
        return mean, log

    def is_symmetric(self) -> bool:
        """Whether the targets are the particles, all alike: rows and columns are then the same."""
        points, log_weights, lengths, _ = self.targets
        return points is self.x and lengths is self.x_lengths and log_weights is None


def folded(
    x: Tensor, x_lengths: Tensor | None, sides: tuple[Samples, Samples], backend: BackendName | None = None
) -> tuple[Tensor, Tensor | None, list[Samples]]:
    """Particles, their sizes and both sides with one batch dimension or none, about the centre of the positives.

    Differences of means do not mind where the origin is; their rounding does.
    """
    centre = centre_of(sides[0].points, sides[0].lengths, backend)
    u, n = _fold(x - centre), _flat(x_lengths)

    def fold(targets: Samples) -> Samples:
        points, log_weights, lengths, excluded = targets
        at = u if points is x else _fold(points - centre)
        values = log_weights if log_weights is None or log_weights.ndim <= 2 else log_weights.flatten(0, -2)
        return Samples(at, values, n if lengths is x_lengths else _flat(lengths), excluded)

    return u, n, [fold(targets) for targets in sides]


def _fold(points: Tensor) -> Tensor:  # [*B, N, D] -> [B?, N, D]
    return points if points.ndim <= 3 else points.flatten(0, -3)


def _flat(lengths: Tensor | None) -> Tensor | None:  # [*B] -> [B]
    return None if lengths is None else lengths.flatten()
