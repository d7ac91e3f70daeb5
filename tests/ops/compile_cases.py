"""Calls of every public function of tensors, as a user's compiled function makes them."""

from __future__ import annotations

from collections.abc import Callable

import sympy
import torch
from torch import Tensor

import gwf_fast as gwf

K = gwf.Gaussian(0.7)
COST = gwf.Radial(sympy.sqrt(1 + sympy.Symbol("s")))
MLP = gwf.nn.MLP([3, 8, 1], "silu")
SCORE = gwf.potentials.Gaussian(torch.zeros(3), torch.eye(3)).score
DIRECTIONS = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)

PLANES = torch.linalg.qr(torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1)))[0].mT.contiguous()


def same(x: Tensor) -> Tensor:
    """A set whose weights are not all alike."""
    return x.square().sum(-1)


TRACED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kernel_sum": lambda x, y: gwf.kernel_sum(x, y, kernel=K),
    "kernel_sum, weights": lambda x, y: gwf.kernel_sum(x, y, same(y), kernel=K + 0.5 * gwf.Laplace(1.0)),
    "kernel_sum, exclude_self": lambda x, y: gwf.kernel_sum(x, x, kernel=K, exclude_self=True),
    "kernel_sum, auto": lambda x, y: gwf.kernel_sum(x, y, kernel=K, method="auto"),
    "kernel_gradient": lambda x, y: gwf.kernel_gradient(x, y, kernel=K),
    "kernel_logsumexp": lambda x, y: gwf.kernel_logsumexp(x, y, kernel=K),
    "kernel_average": lambda x, y: gwf.kernel_average(x, y, kernel=K),
    "kernel_average, exclude_self": lambda x, y: gwf.kernel_average(x, x, kernel=K, exclude_self=True),
    "kernel_min": lambda x, y: gwf.kernel_min(x, y, k=2).squared_distances,
    "mmd2": lambda x, y: gwf.mmd2(x, y, kernel=K),
    "mmd2, unbiased": lambda x, y: gwf.mmd2(x, y, kernel=K, unbiased=True),
    "energy_distance": gwf.energy_distance,
    "parzen_log_density": lambda x, y: gwf.parzen_log_density(x, y, 0.7),
    "parzen_score": lambda x, y: gwf.parzen_score(x, y, 0.7),
    "parzen_score, exclude_self": lambda x, y: gwf.parzen_score(x, x, 0.7, exclude_self=True),
    "median_bandwidth": lambda x, y: gwf.median_bandwidth(x),
    "svgd_direction": lambda x, y: gwf.svgd_direction(x, SCORE(x), kernel=K),
    "interaction_energy": lambda x, y: gwf.interaction_energy(x, kernel=K),
    "interaction_velocity": lambda x, y: gwf.interaction_velocity(x, y, kernel=K),
    "forward_step": lambda x, y: gwf.forward_step(x, 0.1, kernel=K),
    "blob_density": lambda x, y: gwf.blob_density(x, 0.5),
    "blob_energy": lambda x, y: gwf.blob_energy(x, 0.5, m=2.0),
    "blob_velocity": lambda x, y: gwf.blob_velocity(x, 0.5, m=2.0),
    "sinkhorn": lambda x, y: gwf.sinkhorn(x, y, epsilon=0.5).f,
    "sinkhorn_divergence": lambda x, y: gwf.sinkhorn_divergence(x, y, epsilon=0.5),
    "barycentric_map": lambda x, y: gwf.barycentric_map(x, y, y[:, 0], epsilon=0.5),
    "sliced_wasserstein": lambda x, y: gwf.sliced_wasserstein(x, y, p=1.5, directions=DIRECTIONS),
    "max_sliced_wasserstein": lambda x, y: gwf.max_sliced_wasserstein(x, y, directions=DIRECTIONS),
    "spherical_sliced_wasserstein": lambda x, y: gwf.spherical_sliced_wasserstein(
        torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(y, dim=-1), planes=PLANES
    ),
    "sinkhorn, apply": lambda x, y: gwf.sinkhorn(x, y, epsilon=0.5, p=1, sweeps="plain").apply(y, "x"),
    "sinkhorn_divergence, cosine": lambda x, y: gwf.sinkhorn_divergence(x, y, epsilon=0.5, cost="cosine"),
    "sinkhorn_divergence, formula": lambda x, y: gwf.sinkhorn_divergence(x, y, epsilon=0.5, cost=COST, backend="torch"),
    "transport_cost": lambda x, y: gwf.transport_cost(x, y, epsilon=0.5, p=1),
    "transport_cost, linear": lambda x, y: gwf.transport_cost(x.detach(), y.detach(), epsilon=0.5, form="linear"),
    "sliced_wasserstein2": lambda x, y: gwf.sliced_wasserstein2(x, y, directions=DIRECTIONS),
    "sliced_energy_distance": lambda x, y: gwf.sliced_energy_distance(x, y, directions=DIRECTIONS),
    "drifting_loss": lambda x, y: gwf.drifting_loss(x, gwf.drift.gmd(x, y, temperature=0.3)),
    "drift.parzen_kl": lambda x, y: gwf.drift.parzen_kl(x, y, 0.7),
    "drift.parzen_kl, exclude_self": lambda x, y: gwf.drift.parzen_kl(x, y, 0.7, exclude_self=True),
    "drift.f_divergence": lambda x, y: gwf.drift.f_divergence(x, y, 0.7, divergence="js"),
    "drift.mmd": lambda x, y: gwf.drift.mmd(x, y, kernel=K),
    "drift.energy": lambda x, y: gwf.drift.energy(x, y),
    "drift.sinkhorn": lambda x, y: gwf.drift.sinkhorn(x.detach(), y, epsilon=0.5),
    "drift.coupling": lambda x, y: gwf.drift.coupling(x, y, temperature=0.3),
    "drift.coupling, sinkhorn": lambda x, y: gwf.drift.coupling(
        x, y, temperature=0.5, coupling="sinkhorn", form="joint", n_sweeps=2, normalization="problem"
    ),
    "drift.gmd": lambda x, y: gwf.drift.gmd(x, y, temperature=0.3),
    "drift.gmd, weights": lambda x, y: gwf.drift.gmd(
        x, y, temperature=[0.3, 1.0], negatives=y + 1, y_log_weights=same(y), negatives_log_weights=same(y)
    ),
    "drift.gmd_multi": lambda x, y: gwf.drift.gmd_multi(x, y).velocity,
    "ksd2": lambda x, y: gwf.ksd2(x, SCORE(x), kernel=gwf.IMQ(1.0)),
    "drift.sliced_wasserstein": lambda x, y: gwf.drift.sliced_wasserstein(x, y, directions=DIRECTIONS),
    "drift.energy, sliced": lambda x, y: gwf.drift.energy(x.detach(), y, directions=DIRECTIONS),
    "nn.MLP": lambda x, y: MLP(x),
    "nn.critic_objective": lambda x, y: gwf.nn.critic_objective(MLP, x, y, divergence="js"),
    "potentials": lambda x, y: SCORE(x),
}

EXCEPTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "by_label": lambda x, y: gwf.by_label(x, x[:, 0].int() * 0, y, y[:, 0].int() * 0).x,
    "drift.energy, sliced, exponent": lambda x, y: gwf.drift.energy(x, y, exponent=1.5, directions=DIRECTIONS),
    "drift.critic": lambda x, y: gwf.drift.critic(x, MLP),
    "drift.critic_step": lambda x, y: gwf.drift.critic_step(x, MLP, 0.1),
    "Kernel.__call__": lambda x, y: K(x, y),
    "with_error": lambda x, y: gwf.with_error(gwf.kernel_sum, x, y, kernel=K, method=gwf.Sliced(directions=DIRECTIONS))[
        0
    ],
}
"""What docs/torch_compile.md says is not traced."""

NO_TENSORS = {"backends", "explain", "load"}
"""Public functions that compute nothing."""
