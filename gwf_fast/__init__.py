"""gwf_fast: a compiled-kernel particle engine for generative Wasserstein flows."""

from .discrepancy import energy_distance, median_bandwidth, mmd2, parzen_log_density, parzen_score
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
from .radial_formula import Radial

__all__ = [
    "IMQ",
    "Gaussian",
    "Kernel",
    "Laplace",
    "Matern32",
    "Matern52",
    "Morse",
    "PowerLaw",
    "Radial",
    "RationalQuadratic",
    "Riesz",
    "backends",
    "energy_distance",
    "explain",
    "kernel_average",
    "kernel_gradient",
    "kernel_logsumexp",
    "kernel_sum",
    "median_bandwidth",
    "mmd2",
    "parzen_log_density",
    "parzen_score",
]
