"""torch.library operators: schemas, fakes, derivatives, and the choice of a backend.

The only place that registers operators. Everything here has exactly one batch dimension and takes kernels as
flat specs; ``gwf_fast.pairwise`` is the interface for people.
"""

from .dispatch import optional, resolve
from .jet import pair_jet
from .opaque import Opaque
from .reductions import (
    pair_average,
    pair_gradient,
    pair_gradient_into,
    pair_logsumexp,
    pair_sum,
    pair_sum_gradient,
)
from .report import backends, explain
from .table import BACKENDS

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
    "pair_sum",
    "pair_sum_gradient",
    "resolve",
]
