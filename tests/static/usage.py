"""What a type checker makes of the public functions: ``make types`` checks this file, nothing runs it.

A line that must be refused has a ``type: ignore`` of that very error; one that is not needed is an error itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import assert_type

import gwf_fast as gwf

x, y = torch.zeros(5, 2), torch.ones(6, 2)
kernel = 0.5 * gwf.Gaussian(1.0) + gwf.Laplace(2.0)
assert_type(kernel, gwf.Kernel)
assert_type(gwf.Gaussian(1.0) / 2, gwf.Kernel)

# Drifts are added to particles: a result is a tensor unless more is asked for.
x + gwf.drift.sinkhorn(x, y, epsilon=1.0)
assert_type(gwf.drift.sinkhorn(x, y, epsilon=1.0, scaling=0.5), Tensor)
velocity, potentials = gwf.drift.sinkhorn(x, y, epsilon=1.0, return_potentials=True)
assert_type(velocity, Tensor)
assert_type(potentials, gwf.DivergencePotentials)
gwf.drift.sinkhorn(x, y, epsilon=1.0, start=potentials, backend="torch")
gwf.drift.sinkhorn(x, y, epsilon=1.0, strength=2.0)  # type: ignore[call-overload]

assert_type(gwf.sinkhorn_divergence(x, y, epsilon=1.0, debias=False), Tensor)
assert_type(gwf.sinkhorn_divergence(x, y, epsilon=1.0, return_potentials=True), tuple[Tensor, gwf.DivergencePotentials])
assert_type(gwf.sinkhorn(x, y, epsilon=1.0), gwf.SinkhornResult)
assert_type(gwf.sinkhorn(x, y, epsilon=1.0).f, Tensor)

for step in (
    gwf.drift.mmd(x, y, kernel=kernel), gwf.drift.energy(x, y, sliced=9), gwf.drift.parzen_kl(x, y, 1.0),
    gwf.drift.f_divergence(x, y, 1.0, divergence=("alpha", 0.5)), gwf.drift.sliced_wasserstein(x, y, n_projections=9),
    gwf.drift.gmd(x, y, temperature=1.0), gwf.drift.gmd_multi(x, y).velocity, gwf.svgd_direction(x, -x, kernel=kernel),
    gwf.interaction_velocity(x, kernel=kernel), gwf.blob_velocity(x, 0.5, weights=x[:, 0]),
):  # fmt: skip
    assert_type(step, Tensor)
    x = x + 0.1 * step

# Methods, and the errors of their sums.
for method in (gwf.NUFFT(1e-5), gwf.Sliced(64, "quasi"), gwf.Auto(), None):
    if method is not None:
        assert_type(gwf.kernel_sum(x, y, kernel=kernel, method=method), Tensor)
gwf.kernel_sum(x, y, kernel=kernel, method="nufft")
gwf.kernel_sum(x, y, kernel=kernel, method="fast")  # type: ignore[arg-type]
gwf.kernel_sum(x, y, kernel=kernel, method="nufft", tolerance=1e-3)  # type: ignore[call-arg]  # a former spelling
gwf.Sliced(sampling="sobol")  # type: ignore[arg-type]
assert_type(gwf.with_error(gwf.kernel_sum, x, y, kernel=kernel, method=gwf.Sliced()), tuple[Tensor, Tensor])
gwf.blob_velocity(x, 0.5, form="sph")  # type: ignore[arg-type]
gwf.drift.gmd_multi(x, y, normalization="each")  # type: ignore[arg-type]
gwf.drift.gmd_multi(x, y, negative_weights=x[:, 0])  # type: ignore[call-arg]  # a former name

# Measures, networks, flows.
assert_type(gwf.mmd2(x, y, kernel=kernel, unbiased=True), Tensor)
assert_type(gwf.nn.MLP([2, 8, 1])(x), Tensor)
assert_type(gwf.nn.ICNNGradient(2)(x), Tensor)
assert_type(gwf.explain(gwf.kernel_sum, x, y, kernel=kernel), str)
functional = 2.0 * gwf.Interaction(kernel) + 0.1 * gwf.GeneralizedEntropy(2, 0.3, method=gwf.Auto(1e-4))
flow = gwf.JKOFlow(functional, 2, 0.1, scheme="explicit")
result = flow.run(x, 3, progress=False)
assert_type(result, gwf.FlowResult)
assert_type(result.particles, Tensor)
gwf.mmd2(x, kernel=kernel)  # type: ignore[call-arg]

# Names that are rows of tables.
gwf.kernel_sum(x, y, kernel=kernel, backend="triton:tf32")
gwf.kernel_sum(x, y, kernel=kernel, backend="cpu")  # type: ignore[arg-type]
gwf.JKOFlow(functional, 2, 0.1, scheme="crank-nicolson")  # type: ignore[arg-type]
gwf.JKOFlow(functional, 2, 0.1, engine="cpp")  # type: ignore[arg-type]
gwf.JKOFlow(functional, 2, 0.1, parametrization="generator", training=gwf.Training(lr_schedule="cosine"))
gwf.Training(lr_schedule="linear")  # type: ignore[arg-type]
gwf.Training(lr_schedule=lambda iteration, iterations: 0.5)
gwf.FDivergence("alpha", y, 0.5) + gwf.IPM(y, "spectral_norm")
gwf.FDivergence("jensen", y)  # type: ignore[arg-type]
gwf.IPM(y, "lipschitz")  # type: ignore[arg-type]
gwf.drift.f_divergence(x, y, 1.0, divergence="total_variation")  # type: ignore[arg-type]
gwf.drift.critic(x, gwf.nn.MLP([2, 8, 1]), transform="js")
gwf.drift.LearnedCritic(2, "gan")  # type: ignore[arg-type]
gwf.nn.MLP([2, 8, 1], "gelu")  # type: ignore[arg-type]
gwf.nn.MLP([2, 8, 1], "silu", ("scaled_sigmoid", 2.0))
gwf.nn.critic_objective(gwf.nn.MLP([2, 8, 1]), x, y, divergence=("entropy", 2.0))
