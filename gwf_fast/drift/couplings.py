"""Drifts along couplings of particles with samples: drifting as it was proposed, and its variants, in one function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from gwf_fast import ops
from gwf_fast.drift import plans
from gwf_fast.drift.sides import Side, check_sides, folded
from gwf_fast.drift.temperatures import Normalization, added_up, as_temperatures, check_normalization
from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.sharding import Sharded, agreed
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.kernels import Gaussian, Kernel, Laplace
from gwf_fast.pairs.ragged import members
from gwf_fast.pairs.validation import as_integer

Coupling = Literal["row", "two_sided", "sinkhorn"]
Metric = Literal["l2", "l2_sq"]
Form = Literal["split", "joint"]


@entry
@widens
def coupling(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Sequence[float],
    coupling: Coupling = "row",
    metric: Metric = "l2",
    form: Form = "split",
    n_sweeps: int = 20,
    negatives: Tensor | None = None,
    y_log_weights: Tensor | None = None,
    negatives_log_weights: Tensor | None = None,
    normalization: Normalization | None = None,
    exclude_self: bool | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    negatives_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """V_i = sum_j P_ij y_j - sum_l Q_il n_l, with couplings P, Q of the particles with positives and with negatives.

    Of L_ij = -d_ij / T + log w_j, d = r or r^2, each coupling is scaled so that its rows sum to 1:
        "row": e^L, a softmax over the samples. With the metric "l2" this is the drift that Deng et al. (2026) propose,
            E_p[k (y - x)] / E_p k - E_q[k (y - x)] / E_q k with k = e^(-r/T).
        "two_sided": sqrt(softmax_rows(L) softmax_columns(L)), of their Algorithm 2.
        "sinkhorn": after ``n_sweeps`` of Sinkhorn's iteration, rows and then columns, from potentials of 0, with equal
            masses of particles and masses w_j of samples.

    ``form="split"`` has P and Q on their own sets. ``form="joint"`` couples the particles with both sets at once, A =
    [A_neg, A_pos], and V_i = (sum_neg A_i) (sum_pos A_ij y_j) - (sum_pos A_i) (sum_neg A_ij n_j), where "sinkhorn"
    leaves the rows as the last sweep does: "two_sided" is then ``gmd``.

    Nothing of size N x M is stored; differentiable twice in points and logarithms of weights, through all sweeps.

    Args:
        x: Particles [*B, N, D].
        y: Positives [*B, P, D].
        temperature: T > 0, in units of d. Several in a list: their drifts are added up.
        coupling: "row", "two_sided" or "sinkhorn".
        metric: "l2": d = r, "l2_sq": d = r^2.
        form: "split" or "joint".
        n_sweeps: Sweeps of "sinkhorn", over both sides each.
        negatives: [*B, Nn, D]; None means the particles themselves.
        y_log_weights: log w [*B, P] of the positives, -inf for those that do not count; None means zeros.
        negatives_log_weights: The same of the negatives, [*B, Nn].
        normalization: "problem" divides the drift at each temperature by the root of its mean square over the
            particles and coordinates of a problem, so that its length says nothing; one that underflows stays 0. None
            for not.
        exclude_self: Leave out the pair of particle i with negative i, of which there may be more than particles; None
            means where the negatives are x itself, but not for "sinkhorn", to whose couplings it belongs.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to P.
        negatives_lengths: Sizes [*B], int64, of ragged negatives; those of x where the negatives are x.
        backend: None picks; a name asks for one (see ``gwf_fast.backends()``).

    Returns:
        [*B, N, D]. NaN where weights can't be looked at (in a graph of torch.compile) and leave a particle nothing.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a number is out of range, or no positive or
            negative is left.
    """
    for name, value, known in (
        ("coupling", coupling, ("row", "two_sided", "sinkhorn")),
        ("metric", metric, ("l2", "l2_sq")),
        ("form", form, ("split", "joint")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    temperatures = as_temperatures(temperature)
    n_sweeps = as_integer("n_sweeps", n_sweeps)
    check_normalization(normalization)
    if exclude_self is None:
        exclude_self = (negatives is None or negatives is x) and coupling != "sinkhorn"
    sides = check_sides(
        x, y, negatives, bool(exclude_self), y_log_weights, negatives_log_weights, x_lengths, y_lengths,
        negatives_lengths, backend,
    )  # fmt: skip
    backend = ops.resolve(backend, x.device, x.dtype)
    if not agreed(x.numel() > 0, backend):
        return x.clone()
    if coupling == "sinkhorn" and isinstance(backend, Sharded):
        raise ValueError('coupling must be "row" or "two_sided" with shards, got "sinkhorn"')
    u, n, targets = folded(x, x_lengths, sides, backend)

    def force(temperature: float) -> Tensor:
        kernel, cost = _kernel(temperature, metric)
        both = [Side(u, n, each, kernel.spec, backend, cost) for each in targets]
        if coupling == "sinkhorn":
            return plans.sinkhorn(both, form == "joint", n_sweeps)
        return (plans.row if coupling == "row" else plans.two_sided)(both, form == "joint")

    return added_up((members(force(t), n) for t in temperatures), normalization, n, backend).view(x.shape)


def _kernel(temperature: float, metric: Metric) -> tuple[Kernel, tuple[float, int]]:
    """e^(-d / T), and the epsilon and power of the cost r^p / p that it is a kernel of."""
    if metric == "l2":
        return Laplace(temperature), (temperature, 1)
    return Gaussian(math.sqrt(temperature / 2)), (temperature / 2, 2)
