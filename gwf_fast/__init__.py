"""gwf_fast: a compiled-kernel particle engine for generative Wasserstein flows."""

from gwf_fast import distributed, drift, nn, potentials
from gwf_fast.drift.loss import drifting_loss
from gwf_fast.errors import NonFiniteError
from gwf_fast.flows import presets
from gwf_fast.flows.drifting import DriftingModel
from gwf_fast.flows.drifting_state import DriftingResult, DriftingState
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.load import load
from gwf_fast.flows.state import FlowResult, FlowState
from gwf_fast.flows.training import Training
from gwf_fast.functionals.adversarial import IPM, DonskerVaradhan, MMDUnbalanced
from gwf_fast.functionals.base import KL, FDivergence, Functional, JensenShannon, Potential, SquaredMMD
from gwf_fast.functionals.energies import GeneralizedEntropy, Interaction
from gwf_fast.measures.blob import blob_density, blob_energy, blob_velocity
from gwf_fast.measures.discrepancy import energy_distance, median_bandwidth, mmd2, parzen_log_density, parzen_score
from gwf_fast.measures.interaction import forward_step, interaction_energy, interaction_velocity
from gwf_fast.measures.max_sliced import max_sliced_wasserstein
from gwf_fast.measures.sliced import sliced_energy_distance, sliced_wasserstein, sliced_wasserstein2
from gwf_fast.measures.spherical import spherical_sliced_wasserstein
from gwf_fast.measures.stein import ksd2, svgd_direction
from gwf_fast.ops import backends, explain
from gwf_fast.pairs.fast import AccuracyError
from gwf_fast.pairs.formula import Radial
from gwf_fast.pairs.kernels import (
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
from gwf_fast.pairs.labels import LabelGroups, by_label
from gwf_fast.pairs.methods import NUFFT, Auto, Sliced, with_error
from gwf_fast.pairs.nearest import kernel_min
from gwf_fast.pairs.reductions import kernel_average, kernel_gradient, kernel_logsumexp, kernel_sum
from gwf_fast.transport import (
    DivergencePotentials,
    SinkhornResult,
    barycentric_map,
    sinkhorn,
    sinkhorn_divergence,
    transport_cost,
)
from gwf_fast.version import __version__

__all__ = [
    "IMQ",
    "IPM",
    "KL",
    "NUFFT",
    "AccuracyError",
    "Auto",
    "DivergencePotentials",
    "DonskerVaradhan",
    "DriftingModel",
    "DriftingResult",
    "DriftingState",
    "FDivergence",
    "FlowResult",
    "FlowState",
    "Functional",
    "Gaussian",
    "GeneralizedEntropy",
    "Interaction",
    "JKOFlow",
    "JensenShannon",
    "Kernel",
    "LabelGroups",
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
    "Sliced",
    "SquaredMMD",
    "Training",
    "__version__",
    "backends",
    "barycentric_map",
    "blob_density",
    "blob_energy",
    "blob_velocity",
    "by_label",
    "distributed",
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
    "kernel_min",
    "kernel_sum",
    "ksd2",
    "load",
    "max_sliced_wasserstein",
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
    "sliced_wasserstein",
    "sliced_wasserstein2",
    "spherical_sliced_wasserstein",
    "svgd_direction",
    "transport_cost",
    "with_error",
]
