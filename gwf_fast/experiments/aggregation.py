"""Aggregation under W = r^4/4 - r^2/2 from N(0, I/4) in the plane: a ring of radius 1/sqrt(3) forms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gwf_fast.experiments import base
from gwf_fast.experiments.computation import Flow
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.state import FlowResult
from gwf_fast.flows.training import Training
from gwf_fast.functionals.energies import Interaction
from gwf_fast.pairs.kernels import PowerLaw

RADIUS = 1 / math.sqrt(3)
"""On a uniform ring of radius R the force is R (3 R^2 - 1)."""


@dataclass(frozen=True, kw_only=True)
class _Settings(base.Settings):
    particles: int = base.option("number of particles N", 2000)
    steps: int = base.option("explicit steps", 100, extends=True)
    step_size: float = base.option("step size a", 0.1)


def build(settings: _Settings) -> base.Problem:
    """Explicit steps of all particles under each other's influence, by moments: O(N)."""
    flow = JKOFlow(
        Interaction(PowerLaw(4, 2)),
        2,
        settings.step_size,
        scheme="explicit",
        training=Training(pool_size=settings.particles, gradient_clip=None),
        seed=settings.seed,
    )
    cloud = (torch.randn(settings.particles, 2, generator=base.generator(settings.seed)) / 2).double()

    def metrics(result: FlowResult) -> dict[str, Any]:
        radius = (result.particles - result.particles.mean(0)).norm(dim=1)
        return {
            "time": settings.step_size * len(result.history),
            "mean_radius": radius.mean().item(),
            "exact_radius": RADIUS,
            "relative_error_of_the_radius": abs(radius.mean().item() / RADIUS - 1),
            "spread_of_the_radius": radius.std().item(),
        }

    def figure(result: FlowResult, path: Path) -> None:
        trajectory = result.trajectory(cloud)
        shown = sorted({round(f * len(result.maps)) for f in (0, 0.05, 0.2, 1)})
        fig, axes = base.pyplot().subplots(
            1, len(shown), figsize=(3.3 * len(shown), 3.5), layout="constrained", squeeze=False
        )
        angle = torch.linspace(0, 2 * math.pi, 200)
        for axis, k in zip(axes[0], shown, strict=True):
            centre = trajectory[k].mean(0)
            axis.plot(
                *base.as_array(centre[:, None] + RADIUS * torch.stack([angle.cos(), angle.sin()])),
                color="#d1495b",
                linewidth=1.2,
            )
            axis.scatter(*base.as_array(trajectory[k]).T, s=4, color="#35618f", alpha=0.6, linewidths=0, zorder=3)
            axis.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", title=f"t = {k * settings.step_size:g}")
            axis.tick_params(labelsize=7)
        fig.suptitle(r"aggregation under $r^4/4 - r^2/2$; in red the exact ring, of radius $1/\sqrt{3}$", fontsize=11)
        base.save_figure(fig, path)

    # the particles themselves are P_0 here: a callable would draw others for every step
    return base.Problem(Flow(flow, lambda n: cloud[:n], settings.steps), figure, metrics)


EXPERIMENT = base.Experiment(
    "aggregation", "particles under r^4/4 - r^2/2 form a ring of radius 1/sqrt(3)", _Settings(), build
)
