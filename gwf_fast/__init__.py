"""gwf_fast: a compiled-kernel particle engine for generative Wasserstein flows."""

from . import drift, nn, potentials, presets
from .adversarial import IPM, DonskerVaradhan, MMDUnbalanced
from .blob import blob_density, blob_energy, blob_velocity
from .discrepancy import energy_distance, median_bandwidth, mmd2, parzen_log_density, parzen_score
from .drift.loss import drifting_loss
from .drifting_model import DriftingModel
from .energies import GeneralizedEntropy, Interaction
from .errors import NonFiniteError
from .fast_summation import AccuracyError
from .functional import KL, FDivergence, Functional, JensenShannon, Potential, SquaredMMD
from .interaction import forward_step, interaction_energy, interaction_velocity
from .jko import JKOFlow
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
from .sliced import sliced_energy_distance, sliced_wasserstein2
from .stein import ksd2, svgd_direction
from .training import Training
from .transport import DivergencePotentials, SinkhornResult, barycentric_map, sinkhorn, sinkhorn_divergence

__all__ = [
    "IMQ",
    "IPM",
    "KL",
    "AccuracyError",
    "DivergencePotentials",
    "DonskerVaradhan",
    "DriftingModel",
    "FDivergence",
    "Functional",
    "Gaussian",
    "GeneralizedEntropy",
    "Interaction",
    "JKOFlow",
    "JensenShannon",
    "Kernel",
    "Laplace",
    "MMDUnbalanced",
    "Matern32",
    "Matern52",
    "Morse",
    "NonFiniteError",
    "Potential",
    "PowerLaw",
    "Radial",
    "RationalQuadratic",
    "Riesz",
    "SinkhornResult",
    "SquaredMMD",
    "Training",
    "backends",
    "barycentric_map",
    "blob_density",
    "blob_energy",
    "blob_velocity",
    "drift",
    "drifting_loss",
    "energy_distance",
    "explain",
    "forward_step",
    "interaction_energy",
    "interaction_velocity",
    "kernel_average",
    "kernel_gradient",
    "kernel_logsumexp",
    "kernel_sum",
    "ksd2",
    "median_bandwidth",
    "mmd2",
    "nn",
    "parzen_log_density",
    "parzen_score",
    "potentials",
    "presets",
    "sinkhorn",
    "sinkhorn_divergence",
    "sliced_energy_distance",
    "sliced_wasserstein2",
    "svgd_direction",
]
