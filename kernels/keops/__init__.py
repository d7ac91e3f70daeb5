"""KeOps backend: any kernel that can be written as a formula, with derivatives, compiled on first use.

Importing this package imports nothing of KeOps; see ``compile.py`` for when that happens and why it is locked.
"""

from gwf_fast.kernels.keops.backend import (
    pair_average,
    pair_gradient,
    pair_jet,
    pair_logsumexp,
    pair_sum,
    pair_sum_gradient,
)

__all__ = ["pair_average", "pair_gradient", "pair_jet", "pair_logsumexp", "pair_sum", "pair_sum_gradient"]
