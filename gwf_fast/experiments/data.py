"""A flow from Gaussian noise to the points of a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gwf_fast.experiments import base, inputs
from gwf_fast.experiments.computation import Flow
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.state import FlowResult
from gwf_fast.flows.training import Training
from gwf_fast.nn import MLP


@dataclass(frozen=True, kw_only=True)
class _Settings(base.FlowSettings):
    functional: str = base.option("of samples", choices=base.FUNCTIONALS)
    input: str = base.option(f"data file: {inputs.ENDINGS}", "")


_DEFAULTS = _Settings(particles=4096, steps=8, step_size=5.0, iterations=300, batch_size=512, functional="js")


def build(settings: _Settings) -> base.Problem:
    """The flow runs in coordinates with mean 0 and mean variance 1; samples are given back in those of the file."""
    if not settings.input:
        raise ValueError(f"input: the experiment 'data' needs a file: --input points{inputs.ENDINGS}")
    points = inputs.read_points(settings.input)
    dim = points.shape[1]
    mean = points.mean(0)
    scale = (points - mean).square().mean().sqrt()
    if scale == 0:
        raise ValueError(f"input: all points of {settings.input} are the same")
    target = (points - mean) / scale
    flow = JKOFlow(
        base.sample_functional(settings.functional, target, mmd_scale=500.0),
        dim,
        settings.step_size,
        map=MLP([dim, 128, 128, 128, dim], "silu", residual=True),
        critic=MLP([dim, 128, 128, 128, 1], "leaky_relu"),
        training=Training(
            gradient_clip=None,  # as it was measured
            batch_size=settings.batch_size,
            iterations=settings.iterations,
            critic_steps=2,
            lr=2e-3,
            lr_schedule="cosine",
            warm_start=False,
            pool_size=settings.particles,
        ),
        seed=settings.seed,
    )

    def decode(x: Tensor) -> Tensor:
        return x * scale + mean

    def source(n: int) -> Tensor:
        return torch.randn(n, dim)

    def figure(result: FlowResult, path: Path) -> None:
        steps, clouds = _snapshots(result, source(min(4096, settings.particles)), decode)
        _draw(steps, clouds, points, path)

    def metrics(result: FlowResult) -> dict[str, float]:
        from gwf_fast.measures.discrepancy import energy_distance

        n = min(len(target), len(result.particles), 10_000)
        return {
            "energy_distance": float(energy_distance(result.particles[:n], target[torch.randperm(len(target))[:n]])),
        }

    return base.Problem(Flow(flow, source, settings.steps, decode), figure, metrics)


def _snapshots(result: FlowResult, z: Tensor, decode: Callable[[Tensor], Tensor]) -> tuple[list[int], list[Tensor]]:
    last = len(result.maps)
    steps = sorted({0, last // 4, last // 2, last})
    trajectory = result.trajectory(z)
    return steps, [decode(trajectory[k]) for k in steps]


def _draw(steps: list[int], clouds: list[Tensor], points: Tensor, path: Path) -> None:
    plt = base.pyplot()
    figure, axes = plt.subplots(1, len(clouds) + 1, figsize=(3.2 * (len(clouds) + 1), 3.6), layout="constrained")
    dim = points.shape[1]
    shown = [*clouds, points[: len(clouds[-1])]]
    titles = [f"step {k}" for k in steps] + [f"data ({len(points)} points)"]
    if dim > 2:
        mean, plane = base.principal_plane(points)
        shown = [(cloud - mean) @ plane for cloud in shown]
        figure.supxlabel(f"first two of {dim} principal directions of the data", fontsize=9)
    low, high = (torch.cat((shown[-1], shown[-2])).quantile(q, dim=0) for q in (0.001, 0.999))
    margin = 0.15 * (high - low)
    colours = [*plt.get_cmap("viridis")(torch.linspace(0.1, 0.75, len(clouds)).numpy()), "black"]
    for axis, cloud, title, colour in zip(axes, shown, titles, colours, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlim(float(low[0] - margin[0]), float(high[0] + margin[0]))
        if dim == 1:
            limits = (float(low[0] - margin[0]), float(high[0] + margin[0]))
            axis.hist(base.as_array(cloud[:, 0]), bins=60, range=limits, density=True, color=colour)
        else:
            axis.scatter(*base.as_array(cloud).T, s=2, alpha=0.5, linewidths=0, color=colour)
            axis.set_ylim(float(low[1] - margin[1]), float(high[1] + margin[1]))
        axis.tick_params(labelsize=7)
    base.save_figure(figure, path)


EXPERIMENT = base.Experiment("data", "noise to the points of a file (--input)", _DEFAULTS, build)
