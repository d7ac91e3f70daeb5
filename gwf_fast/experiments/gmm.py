"""Sampling from a Gaussian mixture with the set-up of Fan et al. (2022), section 5.1: KL, a = 0.1, P_0 = N(0, 16 I)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwf_fast.experiments import base
from gwf_fast.experiments.computation import Flow
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.state import FlowResult
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import KL
from gwf_fast.measures.stein import ksd2
from gwf_fast.nn import MLP
from gwf_fast.pairs.kernels import IMQ
from gwf_fast.potentials import GaussianMixture

_COMPONENTS = 10
# (largest D, side of the cube of the means, width of T, its hidden layers, width and layers of h): their table 4
_TABLE = (
    (2, 5.0, 8, 3, 8, 3),
    (4, 5.0, 32, 4, 32, 3),
    (8, 5.0, 32, 4, 32, 4),
    (17, 3.0, 64, 4, 64, 4),
    (32, 3.0, 64, 5, 64, 4),
    (64, 2.0, 128, 5, 128, 4),
)
_BEYOND = (1.5, 128, 5, 128, 4)


@dataclass(frozen=True, kw_only=True)
class _Settings(base.FlowSettings):
    dim: int = base.option("dimension D")
    ksd_samples: int = base.option("samples in the kernel Stein discrepancy at the end", least=2)
    curve_samples: int = base.option("the same in each of those along the flow", 4096, least=2)
    engine: str = base.option("engine of the JKO steps", "auto", choices=base.ENGINES)


# Theirs, with --iterations 1000 --ksd-samples 100000.
_DEFAULTS = _Settings(
    particles=4096, dim=2, steps=40, step_size=0.1, iterations=200, batch_size=512, ksd_samples=20_000
)


def build(settings: _Settings) -> base.Problem:
    """Ten spherical components of variance 1, means uniform in a cube."""
    dim = settings.dim
    side, t_width, t_depth, h_width, h_depth = next((row[1:] for row in _TABLE if dim <= row[0]), _BEYOND)
    means = (torch.rand(_COMPONENTS, dim, generator=base.generator(settings.seed)) - 0.5) * side
    target = GaussianMixture(means)
    flow = JKOFlow(
        KL(target),
        dim,
        settings.step_size,
        map=MLP([dim, *[t_width] * t_depth, dim], residual=True),
        critic=MLP([dim, *[h_width] * h_depth, 1]),
        training=Training(
            gradient_clip=None,  # as it was measured
            batch_size=settings.batch_size,
            iterations=settings.iterations,
            critic_steps=3,
            map_steps=2,
            milestones=(21,),
            gamma=0.4,
            dropout=0.04,
            critic_dropout=0.0,
            pool_size=settings.particles,
        ),
        seed=settings.seed,
        engine=base.engine(settings.engine),
    )

    def source(n: int) -> Tensor:
        return 4 * torch.randn(n, dim)

    def metrics(result: FlowResult) -> dict[str, Any]:
        x, exact = result.push(source(settings.ksd_samples)), target.sample(settings.ksd_samples)
        return {
            "KL_estimate": result.history[-1].value if result.history else float("nan"),
            "mean_log_density": target.log_density(x).mean().item(),
            "mean_log_density_of_exact_samples": target.log_density(exact).mean().item(),
            "error_of_mean": (x.mean(0) - exact.mean(0)).norm().item(),
            "error_of_covariance": (_covariance(x) - _covariance(exact)).norm().item(),
            "ksd": _ksd(target, x),
            "ksd_of_exact_samples": _ksd(target, exact),
            "ksd2_unbiased": _ksd2(target, x, unbiased=True),
            "ksd2_unbiased_of_exact_samples": _ksd2(target, exact, unbiased=True),
            "ksd_along_the_flow": [_ksd(target, x) for x in result.trajectory(source(settings.curve_samples))],
            "seconds": sum(record.seconds for record in result.history),
        }

    def figure(result: FlowResult, path: Path) -> None:
        _draw(target, result, source(settings.curve_samples), settings.step_size, path)

    return base.Problem(Flow(flow, source, settings.steps), figure, metrics)


def _ksd2(target: GaussianMixture, x: Tensor, unbiased: bool) -> float:
    """Squared kernel Stein discrepancy to the target, with the IMQ kernel of bandwidth sqrt(D)."""
    return ksd2(x, target.score(x), kernel=IMQ(math.sqrt(x.shape[1])), unbiased=unbiased).item()


def _ksd(target: GaussianMixture, x: Tensor) -> float:
    """Its root; biased, so never of a negative number."""
    return math.sqrt(_ksd2(target, x, unbiased=False))


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def _draw(target: GaussianMixture, result: FlowResult, z: Tensor, step_size: float, path: Path) -> None:
    """Particles over the contours of the target, and the discrepancy against the flow's time.

    In more than two dimensions the contours are those of the target's exact 2-D marginal.
    """
    plt = base.pyplot()
    dim = target.means.shape[1]
    last = len(result.maps)
    steps = sorted({0, last // 8, last // 3, last})
    trajectory = result.trajectory(z)
    if dim == 1:
        centre, plane, marginal = torch.zeros(1), torch.eye(1), target
    elif dim == 2:
        centre, plane, marginal = torch.zeros(2), torch.eye(2), target
    else:  # a spherical mixture seen on an orthonormal plane is a spherical mixture
        centre, plane = base.principal_plane(target.means)
        marginal = GaussianMixture((target.means - centre) @ plane, target.scales, target.weights)
    columns = len(steps) + 1
    figure, axes = plt.subplots(1, columns, figsize=(3.6 * columns, 3.9), layout="constrained")
    grid = torch.linspace(-9, 9, 161)
    for axis, k in zip(axes, steps):
        axis.set_title(f"JKO step {k}", fontsize=11)
        cloud = base.as_array((trajectory[k, :2000] - centre) @ plane)
        if dim == 1:
            axis.hist(cloud[:, 0], bins=60, range=(-9, 9), density=True, color="#35618f")
            axis.plot(base.as_array(grid), base.as_array(marginal.log_density(grid[:, None]).exp()), color="#d1495b")
            continue
        points = torch.cartesian_prod(grid, grid)
        density = marginal.log_density(points).exp().reshape(161, 161).T
        ticks = base.as_array(grid)
        axis.contourf(ticks, ticks, base.as_array(density), levels=12, cmap="Blues")
        axis.scatter(*cloud.T, s=3, color="#d1495b", alpha=0.55, linewidths=0)
        axis.set(xlim=(-9, 9), ylim=(-9, 9), aspect="equal")
        axis.tick_params(labelsize=7)
    _draw_discrepancy(axes[-1], target, trajectory, step_size)
    if dim > 2:
        figure.supxlabel(f"on the principal plane of the component means, of {dim} dimensions", fontsize=9)
    base.save_figure(figure, path)


def _draw_discrepancy(axis: Any, target: GaussianMixture, trajectory: Tensor, step_size: float) -> None:
    times = [step_size * k for k in range(len(trajectory))]
    axis.semilogy(times, [_ksd(target, x) for x in trajectory], color="#35618f", label="flow")
    exact = _ksd(target, target.sample(trajectory.shape[1]))
    axis.axhline(exact, color="#d1495b", linestyle="--", label="exact samples")
    axis.set(xlabel="flow time a k", title=f"Kernel Stein discrepancy, {trajectory.shape[1]} samples")
    axis.title.set_fontsize(11)
    axis.legend(frameon=False, fontsize=9)


EXPERIMENT = base.Experiment(
    "gmm", "sampling from a 10-component Gaussian mixture in --dim dimensions", _DEFAULTS, build
)
