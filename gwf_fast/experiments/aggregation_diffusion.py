"""Aggregation and diffusion in the plane, dP/dt = div(P grad W * P) + 0.1 lap P^3 with W = -e^(-r^2)/pi.

From the uniform distribution on [-3, 3]^2 four clumps form and merge to one (Fan et al., 2022, appendix C.3 and C.4,
after Carrillo et al.). Two schemes side by side: forward-backward, which takes the interaction by an explicit step
and the entropy by a JKO step, and non-splitting, a JKO step of the sum. Both have residual networks as maps (gradients
of convex networks, as Fan et al. take for the second, stay close to affine in as many iterations, and no clumps form),
and both are compared with a solution by finite volumes.

A density of mass M, P = M p with p a probability, moves p down M W(p) + 0.1 M^(m-1) G_m(p). The density 1/4 of Carrillo
et al. has mass 9: one clump by t = 14. A probability, mass 1, needs ten times longer: four clumps by t = 70, one by
t = 160. (The two schemes of Fan et al. differ by a factor of 2 in W; here both have the 1/2 of W(P).)
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwf_fast.experiments import base
from gwf_fast.experiments.computation import Flow, Study
from gwf_fast.experiments.finite_volume import Equation, Grid
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.schemes import Scheme
from gwf_fast.flows.state import FlowResult
from gwf_fast.flows.training import Training
from gwf_fast.functionals.energies import GeneralizedEntropy, Interaction
from gwf_fast.measures.discrepancy import mmd2
from gwf_fast.nn import MLP
from gwf_fast.nn.functions import ActivationName
from gwf_fast.pairs.kernels import Gaussian, Riesz

_EXPONENT = 3.0
_DIFFUSION = 0.1
_HALF_WIDTH = 3.0
_GRID = Grid(half_width=4.0, cells=64)
_SHOWN = (0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 1)
"""Parts of the run that the figure shows."""


@dataclass(frozen=True, kw_only=True)
class _Settings(base.FlowSettings):
    mass: float = base.option("total mass of the density; a probability has 1", 9.0)


@functools.lru_cache(maxsize=4)
def reference(mass: float, times: tuple[float, ...]) -> tuple[list[Tensor], list[float]]:
    """Probability densities at the times, [cells, cells], and their energies, by finite volumes."""
    equation = Equation(
        _GRID, lambda r: -mass * (-(r**2)).exp() / math.pi, _DIFFUSION * mass ** (_EXPONENT - 1), _EXPONENT
    )
    densities = equation.solve(_GRID.uniform(_HALF_WIDTH), times)
    return densities, [equation.energy(density) for density in densities]


def distance(particles: Tensor, density: Tensor) -> float:
    """Square root of the energy distance between particles [N, 2] and a density on the grid."""
    weights = density.flatten() * _GRID.size**2
    found = mmd2(particles.double(), _GRID.points(), kernel=Riesz(), y_weights=weights / weights.sum())
    return math.sqrt(max(float(found), 0.0))


def build(settings: _Settings) -> base.Problem:
    """Both schemes from the same particles."""
    if not (math.isfinite(settings.mass) and settings.mass > 0):
        raise ValueError(f"mass must be a positive number, got {settings.mass:g}")
    interaction = Interaction(Gaussian(math.sqrt(0.5)) * (-1 / math.pi))
    functional = settings.mass * interaction + _DIFFUSION * settings.mass ** (_EXPONENT - 1) * GeneralizedEntropy(
        _EXPONENT
    )
    cloud = (2 * torch.rand(settings.particles, 2, generator=base.generator(settings.seed)) - 1) * _HALF_WIDTH

    def member(scheme: Scheme, activation: ActivationName, lr: float) -> Flow:
        flow = JKOFlow(
            functional,
            2,
            settings.step_size,
            scheme=scheme,
            map=MLP([2, 32, 32, 32, 32, 2], activation, residual=True),
            critic=MLP([2, 32, 32, 32, 1], activation),
            training=Training(
                gradient_clip=None,  # as it was measured
                batch_size=settings.batch_size,
                iterations=settings.iterations,
                lr=lr,
                lr_schedule="cosine",
                pool_size=settings.particles,
            ),
            seed=settings.seed,
        )
        return Flow(flow, cloud, settings.steps)

    # At the higher rate forward-backward loses particles: where W has decayed no forward step brings them back.
    members = {
        "forward-backward": member("forward_backward", "prelu", 1e-3),
        "non-splitting": member("jko", "celu", 2e-3),
    }

    def times(result: dict[str, FlowResult]) -> tuple[float, ...]:
        steps = len(next(iter(result.values())).history)
        return tuple(settings.step_size * k for k in range(steps + 1))

    def distances(result: dict[str, FlowResult]) -> dict[str, list[float]]:
        """To the reference, by scheme and step."""
        densities, _ = reference(settings.mass, times(result))
        return {
            name: [distance(x, density) for x, density in zip(each.trajectory(cloud), densities, strict=True)]
            for name, each in result.items()
        }

    def metrics(result: dict[str, FlowResult]) -> dict[str, Any]:
        densities, energies = reference(settings.mass, times(result))
        spread = float((densities[-1].flatten() * _GRID.points().square().sum(1)).sum()) * _GRID.size**2
        found: dict[str, Any] = {"time": times(result)[-1], "energy_of_reference": energies[-1]}
        for name, far in distances(result).items():
            last, key = result[name], name.replace("-", "_")
            moment = last.particles.square().sum(1).mean().item()
            found[f"{key}_energy_distance_to_reference"] = far[-1]
            found[f"{key}_largest_of_all_steps"] = max(far)
            found[f"{key}_energy"] = last.history[-1].value if last.history else math.nan
            found[f"{key}_mean_square_radius_over_that_of_reference"] = moment / spread
        found["energy_distance_by_sampling"] = distance(cloud, densities[0])
        return found

    def figure(result: dict[str, FlowResult], path: Path) -> None:
        densities, energies = reference(settings.mass, times(result))
        trajectories = {name: each.trajectory(cloud) for name, each in result.items()}
        values = {name: [record.value for record in each.history] for name, each in result.items()}
        _draw(times(result), trajectories, densities, values, energies, distances(result), path)

    return base.Problem(Study(members), figure, metrics)


def _draw(
    times: tuple[float, ...],
    trajectories: dict[str, Tensor],
    densities: list[Tensor],
    values: dict[str, list[float]],
    energies: list[float],
    distances: dict[str, list[float]],
    path: Path,
) -> None:
    """Densities by scheme and time, as in their figures 9 and 10, over the reference; energies and errors beside."""
    plt = base.pyplot()
    last = len(times) - 1
    shown = sorted({round(part * last) for part in _SHOWN})
    fig = plt.figure(figsize=(2.0 * len(shown) + 4, 6.2), layout="constrained")
    grid = fig.add_gridspec(6, 2 * len(shown) + 4)
    window = 3.4
    ticks = base.as_array(_GRID.centres())
    for column, k in enumerate(shown):
        peak = float(densities[k].max()) * 1.1
        for row, name in enumerate((*trajectories, "finite volumes")):
            axis = fig.add_subplot(grid[2 * row : 2 * row + 2, 2 * column : 2 * column + 2])
            if name in trajectories:
                x = base.as_array(trajectories[name][k])
                box = [[-window, window]] * 2
                axis.hist2d(*x.T, bins=56, range=box, density=True, cmap="magma", vmin=0, vmax=peak)
            else:
                density = base.as_array(densities[k].T)
                axis.pcolormesh(ticks, ticks, density, cmap="magma", vmin=0, vmax=peak, rasterized=True)
            axis.set(xlim=(-window, window), ylim=(-window, window), aspect="equal", xticks=[], yticks=[])
            if row == 0:
                axis.set_title(f"t = {times[k]:g}", fontsize=10)
            if column == 0:
                axis.set_ylabel(name, fontsize=9)
    upper, lower = (fig.add_subplot(grid[rows, 2 * len(shown) :]) for rows in (slice(0, 3), slice(3, 6)))
    upper.plot(times, energies, color="black", linewidth=1, label="finite volumes")
    for name, colour in zip(trajectories, ("#d1495b", "#35618f"), strict=True):
        upper.plot(times[1:], values[name], "o", color=colour, markersize=2.5, label=name)
        lower.plot(times, distances[name], color=colour, label=name)
    upper.set(title="functional", xlabel="t")
    lower.set(title="energy distance to finite volumes", xlabel="t", ylim=(0, None))
    for axis in (upper, lower):
        axis.legend(frameon=False, fontsize=8)
        axis.tick_params(labelsize=8)
    base.save_figure(fig, path)


# their step size, batch and iterations
_DEFAULTS = _Settings(particles=10_000, steps=30, step_size=0.5, iterations=200, batch_size=1000)

EXPERIMENT = base.Experiment(
    "aggregation-diffusion", "four clumps, then one: forward-backward and non-splitting side by side", _DEFAULTS, build
)
