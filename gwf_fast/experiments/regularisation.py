"""What the JKO step size a does, over every functional of samples, for compositions of maps and for generators.

The study of "A Unifying View of Variational Generative Wasserstein Flows" (2026): a small step holds the model close
to where it was, an infinite one is adversarial training (GAN, f-GAN, WGAN-GP, MMD-GAN with a fixed kernel). All runs
have the same networks, batches and number of updates. From N(0, I) to a ring of eight Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwf_fast.errors import NonFiniteError
from gwf_fast.experiments import base
from gwf_fast.experiments.computation import Flow, Say, Study
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.schemes import PARAMETRIZATIONS, Parametrization
from gwf_fast.flows.state import FlowResult
from gwf_fast.flows.training import Training
from gwf_fast.functionals.adversarial import IPM, DonskerVaradhan
from gwf_fast.functionals.base import FDivergence, Functional, JensenShannon, SquaredMMD
from gwf_fast.functionals.evaluation import Target
from gwf_fast.measures.discrepancy import energy_distance
from gwf_fast.nn import MLP
from gwf_fast.pairs.kernels import Gaussian, Riesz
from gwf_fast.potentials import GaussianMixture
from gwf_fast.randomness.seeded import reproducible

STEP_SIZES = (0.1, 0.5, 2.0, 10.0, 50.0, math.inf)
FUNCTIONALS: dict[str, tuple[str, Callable[[Target], Functional]]] = {
    "kl": ("KL", lambda q: FDivergence("kl", q)),
    "donsker-varadhan": ("KL (Donsker-\nVaradhan)", DonskerVaradhan),
    "reverse-kl": ("reverse KL", lambda q: FDivergence("reverse_kl", q)),
    "js": ("Jensen-\nShannon", JensenShannon),
    "hellinger": ("squared\nHellinger", lambda q: FDivergence("squared_hellinger", q)),
    "pearson": ("Pearson", lambda q: FDivergence("pearson", q)),
    "neyman": ("Neyman", lambda q: FDivergence("neyman", q)),
    "alpha": ("alpha = 3/2", lambda q: FDivergence("alpha", q, 1.5)),
    "total-variation": ("total\nvariation", lambda q: FDivergence("total_variation", q)),
    "ipm": ("IPM, gradient\npenalty", IPM),
    "mmd": ("squared MMD,\nGaussians", lambda q: SquaredMMD(q, Gaussian(0.3) + Gaussian(1.0) + Gaussian(3.0))),
    "energy": ("squared MMD,\nenergy", lambda q: SquaredMMD(q, Riesz())),
}
"""By name: how the figure calls it, and how it is made from samples of Q."""

_Results = dict[str, dict[str, FlowResult]]
_Distances = dict[str, dict[str, float]]

SHOWN = 1000  # particles in a panel


@dataclass(frozen=True, kw_only=True)
class _Settings(base.Settings):
    particles: int = base.option("number of particles N", 2048)
    steps: int = base.option("JKO steps of each flow", 10, extends=True)
    iterations: int = base.option("training iterations a JKO step", 200)
    batch_size: int = base.option("samples an iteration", 256)


@dataclass(frozen=True)
class _Attempt(Flow):
    """A flow that may diverge: then its result is the last state that was finite."""

    def solve(self, folder: Path, say: Say) -> FlowResult:
        """See ``Computation``."""
        try:
            return super().solve(folder, say)
        except NonFiniteError as error:
            say(f"diverged: {error}")
            flow = self.flow
            return JKOFlow.load(folder, functional=flow.functional, x0=self.source)


def ring() -> GaussianMixture:
    """Eight Gaussians on a circle."""
    angles = torch.arange(8) * (2 * math.pi / 8)
    return GaussianMixture(2.0 * torch.stack((angles.cos(), angles.sin()), 1), 0.15)


def noise(n: int) -> Tensor:
    """P_0, and the noise of the generators, which begin as the identity."""
    return torch.randn(n, 2)


def name_of(step_size: float, parametrization: str) -> str:
    """A run of a functional, as its folder is called."""
    return f"{parametrization}-{step_size:g}"


def build(settings: _Settings) -> base.Problem:
    """A study of all functionals, step sizes and parametrisations."""
    target = _samples(16384, settings.seed)
    runs = {(a, parametrization) for parametrization in PARAMETRIZATIONS for a in STEP_SIZES}
    members = {
        key: Study({name_of(*run): _member(settings, make(target), *run) for run in sorted(runs)})
        for key, (_, make) in FUNCTIONALS.items()
    }
    fresh, other = _samples(8192, settings.seed + 1), _samples(settings.particles, settings.seed + 2)

    floor = float(energy_distance(other, fresh))

    def distances(result: _Results) -> _Distances:
        return {
            key: {name: float(energy_distance(run.particles, fresh)) for name, run in runs.items()}
            for key, runs in result.items()
        }

    def metrics(result: _Results) -> dict[str, Any]:
        found: dict[str, Any] = {
            "step sizes": [_spelled(a) for a in STEP_SIZES],
            "energy distance, samples of Q": floor,
        }
        for key, values in distances(result).items():
            for parametrization in PARAMETRIZATIONS:
                row = [float(f"{values[name_of(a, parametrization)]:.3g}") for a in STEP_SIZES]
                found[f"energy distance, {key}, {parametrization}"] = row
        short = [f"{key} {name}" for key, runs in result.items() for name, run in runs.items() if _fell(run, settings)]
        return {**found, "diverged": short}

    def figure(result: _Results, path: Path) -> None:
        _draw(result, distances(result), floor, settings, path)

    return base.Problem(Study(members), figure, metrics)


def _fell(run: FlowResult, settings: _Settings) -> bool:
    return run.state.step < settings.steps


def _samples(n: int, seed: int) -> Tensor:
    with reproducible(seed):
        return ring().sample(n)


def _member(
    settings: _Settings, functional: Functional, step_size: float, parametrization: Parametrization
) -> _Attempt:
    training = Training(
        gradient_clip=None,  # as it was measured
        batch_size=settings.batch_size,
        iterations=settings.iterations,
        critic_steps=3,
        lr=2e-3,
        critic_lr=5e-3,
        betas=(0.5, 0.9),
        pool_size=settings.particles,
    )
    flow = JKOFlow(
        functional,
        2,
        step_size,
        parametrization=parametrization,
        map=MLP([2, 32, 32, 32, 2], "silu", residual=True),
        critic=MLP([2, 32, 32, 32, 1], "silu"),
        training=training,
        seed=settings.seed,
    )
    return _Attempt(flow, noise, settings.steps)


def _draw(result: _Results, distances: _Distances, floor: float, settings: _Settings, path: Path) -> None:
    """The particles of every run, and below their distance to Q against the step size."""
    plt = base.pyplot()
    rows, columns = len(FUNCTIONALS), len(STEP_SIZES)
    figure = plt.figure(figsize=(15.5, 0.5 + 1.17 * rows + 3.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.17 * rows, 3.6))
    colours = plt.get_cmap("viridis_r")
    scale = plt.matplotlib.colors.LogNorm(max(floor, 1e-5), 1.0, clip=True)
    for block, parametrization in zip(top.subfigures(1, 2), PARAMETRIZATIONS, strict=True):
        block.suptitle({"composition": "composition of maps", "generator": "one generator"}[parametrization])
        axes = block.subplots(rows, columns)
        for i, (key, (label, _)) in enumerate(FUNCTIONALS.items()):
            axes[i, 0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
            for axis, a in zip(axes[i], STEP_SIZES, strict=True):
                name = name_of(a, parametrization)
                run, distance = result[key][name], distances[key][name]
                note = f"diverged in step {run.state.step + 1}" if _fell(run, settings) else f"{distance:.2g}"
                _panel(axis, run.particles, note, colours(scale(distance)))
                if i == 0:
                    axis.set_title(f"a = {_spelled(a)}", fontsize=9)
    _curves(bottom, distances, floor)
    base.save_figure(figure, path)


def _spelled(step_size: float) -> str:
    return "∞" if math.isinf(step_size) else f"{step_size:g}"


def _panel(axis: Any, particles: Tensor, note: str, colour: Any) -> None:
    axis.scatter(*base.as_array(particles[:SHOWN]).T, s=1.2, alpha=0.6, linewidths=0, color=colour)
    axis.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xticks=[], yticks=[], aspect="equal")
    for spine in axis.spines.values():
        spine.set_color("0.85")
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6}
    axis.text(0.98, 0.02, note, ha="right", va="bottom", fontsize=6.5, transform=axis.transAxes, bbox=box)


def _curves(figure: Any, distances: _Distances, floor: float) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    positions = range(len(STEP_SIZES))
    colours = base.pyplot().get_cmap("tab20")
    for axis, parametrization in zip(axes, PARAMETRIZATIONS, strict=True):
        for i, (key, (label, _)) in enumerate(FUNCTIONALS.items()):
            values = [distances[key][name_of(a, parametrization)] for a in STEP_SIZES]
            spelled = label.replace("-\n", "-").replace("\n", " ")
            axis.plot(positions, values, "o-", ms=3.5, lw=1.3, color=colours(i), label=spelled)
        axis.axhline(floor, color="black", lw=0.8, ls=":", label="samples of the target")
        axis.set_xticks(positions, [_spelled(a) for a in STEP_SIZES])
        axis.set(yscale="log", xlabel="step size a", ylim=(floor / 1.6, 3.0))
        axis.grid(axis="y", color="0.92")
    axes[0].set_ylabel("energy distance to the target")
    axes[1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


EXPERIMENT = base.Experiment(
    "regularisation", "the step size a over all functionals, in both parametrisations", _Settings(), build
)
