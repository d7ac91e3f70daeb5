"""Drifts: velocities of particle flows at x towards samples y; ``x + step * v`` moves towards y.

Each is minus the gradient of a discrepancy's first variation, or what a published method uses in its place
(MMD flow, Parzen KL, drifting, critics). Shapes: x [*B, N, D], y [*B, M, D], result [*B, N, D].
"""

from ..transport.sinkhorn import drift as sinkhorn
from .critics import critic, critic_step
from .drifting import gmd
from .kernels import energy, mmd
from .learned import LearnedCritic
from .multi import MultiDrift, gmd_multi
from .parzen import f_divergence, parzen_kl
from .sliced import sliced_wasserstein

__all__ = [
    "LearnedCritic",
    "MultiDrift",
    "critic",
    "critic_step",
    "energy",
    "f_divergence",
    "gmd",
    "gmd_multi",
    "mmd",
    "parzen_kl",
    "sinkhorn",
    "sliced_wasserstein",
]
