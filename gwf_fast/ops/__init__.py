"""torch.library operators: schemas, fakes, derivatives, and the choice of a backend.

The only place that registers operators. Everything here has exactly one batch dimension and takes kernels as
flat specs; ``gwf_fast.pairs.reductions`` is the interface for people.
"""

from gwf_fast.ops.dispatch import optional, resolve
from gwf_fast.ops.jet import pair_jet
from gwf_fast.ops.nearest import pair_nearest
from gwf_fast.ops.opaque import Opaque
from gwf_fast.ops.reductions import (
    pair_average,
    pair_gradient,
    pair_gradient_into,
    pair_logsumexp,
    pair_sum,
    pair_sum_gradient,
)
from gwf_fast.ops.report import backends, explain
from gwf_fast.ops.stein import stein_mean
from gwf_fast.ops.table import BACKENDS

__all__ = [
    "BACKENDS",
    "Opaque",
    "backends",
    "explain",
    "optional",
    "pair_average",
    "pair_gradient",
    "pair_gradient_into",
    "pair_jet",
    "pair_logsumexp",
    "pair_nearest",
    "pair_sum",
    "pair_sum_gradient",
    "resolve",
    "stein_mean",
]
