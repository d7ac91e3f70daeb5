"""gwf_fast: a compiled-kernel particle engine for generative Wasserstein flows."""

from .discrepancy import energy_distance, median_bandwidth, mmd2, parzen_log_density, parzen_score
from .fast_summation import AccuracyError
from .interaction import forward_step, interaction_energy, interaction_velocity
from .ops import backends, explain
from .pairwise import kernel_average, kernel_gradient, kernel_logsumexp, kernel_sum
from .radial import (
    IMQ,
    Gaussian,
    Kernel,
    Laplace,
    Matern32,
    Matern52,
    Morse,
    PowerLaw,
    RationalQuadratic,
    Riesz,
)

__all__ = [
    "IMQ",
    "AccuracyError",
    "Gaussian",
    "Kernel",
    "Laplace",
    "Matern32",
    "Matern52",
    "Morse",
    "PowerLaw",
    "RationalQuadratic",
    "Riesz",
    "backends",
    "energy_distance",
    "explain",
    "forward_step",
    "interaction_energy",
    "interaction_velocity",
    "kernel_average",
    "kernel_gradient",
    "kernel_logsumexp",
    "kernel_sum",
    "median_bandwidth",
    "mmd2",
    "parzen_log_density",
    "parzen_score",
]
