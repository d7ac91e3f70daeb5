"""The flow of W = r^2/2 - log r on the line from N(0, 1): Wigner's semicircle sqrt(2 - x^2)/pi is its limit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwf_fast.experiments import base
from gwf_fast.experiments.computation import Flow
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.state import FlowResult
from gwf_fast.flows.training import Training
from gwf_fast.functionals.energies import Interaction
from gwf_fast.nn import ICNNGradient
from gwf_fast.pairs.kernels import PowerLaw

_DEFAULTS = base.FlowSettings(particles=4096, steps=12, step_size=0.5, iterations=200, batch_size=1024)


def distribution(x: Tensor) -> Tensor:
    """The distribution function of the semicircle on [-sqrt 2, sqrt 2]."""
    x = x.clamp(-math.sqrt(2), math.sqrt(2))
    return 0.5 + x * (2 - x**2).clamp(min=0).sqrt() / (2 * math.pi) + (x / math.sqrt(2)).asin() / math.pi


def kolmogorov(x: Tensor) -> float:
    """Largest difference of the distribution functions of samples x [N] and of the semicircle."""
    exact = distribution(x.sort().values)
    steps = torch.arange(len(x) + 1) / len(x)
    return float(torch.maximum((exact - steps[:-1]).abs(), (steps[1:] - exact).abs()).max())


def build(settings: base.FlowSettings) -> base.Problem:
    """JKO steps with convex potentials: explicit steps of a logarithmic repulsion would have to be tiny."""
    flow = JKOFlow(
        Interaction(PowerLaw(2, 0)),
        1,
        settings.step_size,
        map=lambda: ICNNGradient(1, (32, 32)),
        training=Training(
            gradient_clip=None,  # as it was measured
            batch_size=settings.batch_size,
            iterations=settings.iterations,
            lr=5e-3,
            lr_schedule="cosine",
            pool_size=settings.particles,
        ),
        seed=settings.seed,
    )

    def metrics(result: FlowResult) -> dict[str, Any]:
        return {
            "time": settings.step_size * len(result.history),
            "kolmogorov_distance": kolmogorov(result.particles[:, 0]),
            "sampling_error_of_that": 0.87 / math.sqrt(len(result.particles)),
        }

    def figure(result: FlowResult, path: Path) -> None:
        plt = base.pyplot()
        fig, axis = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
        grid = torch.linspace(-math.sqrt(2), math.sqrt(2), 400)
        axis.hist(base.as_array(result.particles[:, 0]), bins=50, density=True, color="#9dbad5", label="particles")
        axis.plot(
            base.as_array(grid), base.as_array((2 - grid**2).clamp(min=0).sqrt() / math.pi), "#d1495b", label="exact"
        )
        axis.set(xlabel="x", ylabel="density", title=f"t = {settings.step_size * len(result.history):g}")
        axis.legend(frameon=False)
        base.save_figure(fig, path)

    return base.Problem(Flow(flow, lambda n: torch.randn(n, 1), settings.steps), figure, metrics)


EXPERIMENT = base.Experiment("semicircle", "W = r^2/2 - log r on the line: Wigner's semicircle", _DEFAULTS, build)
