"""Drifts: velocities of particle flows at x towards samples y; ``x + step * v`` moves towards y.

Each is minus the gradient of a discrepancy's first variation, or what a published method uses in its place
(MMD flow, Parzen KL, drifting, critics). Shapes: x [*B, N, D], y [*B, M, D], result [*B, N, D].
"""

from gwf_fast.drift.couplings import coupling
from gwf_fast.drift.critics import critic, critic_step
from gwf_fast.drift.drifting import gmd
from gwf_fast.drift.kernels import energy, mmd
from gwf_fast.drift.learned import LearnedCritic
from gwf_fast.drift.multi import MultiDrift, gmd_multi
from gwf_fast.drift.parzen import f_divergence, parzen_kl
from gwf_fast.drift.sliced import sliced_wasserstein
from gwf_fast.drift.transport import sinkhorn

__all__ = [
    "LearnedCritic",
    "MultiDrift",
    "coupling",
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
