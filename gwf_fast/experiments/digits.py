"""From Gaussian noise to real handwritten digits: the 1797 images, 8 x 8, that come with scikit-learn.

The flow runs in the space of the leading principal components, whitened, where the standard normal P_0 has the mean and
covariance of the data and none of its shape. The target is the data smoothed by a little Gaussian noise: 1797 points
are otherwise so far apart in this space that a critic tells them from anything. Decoding is linear.

By classifier and Gaussian MMD P_K is closer to real digits than P_0; by energy distance, which mostly sees mean and
covariance and so favours P_0, it is not. `--functional js+mmd` is closer by energy distance, and less sharp.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gwf_fast.experiments import base
from gwf_fast.experiments.computation import Flow
from gwf_fast.experiments.images import Whitening, sheet
from gwf_fast.experiments.two_sample import two_sample_checks
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.schemes import PARAMETRIZATIONS, Parametrization
from gwf_fast.flows.state import FlowResult
from gwf_fast.flows.training import Training
from gwf_fast.functionals.evaluation import batch
from gwf_fast.nn import MLP

_WIDTH = 384
_SMOOTHING = 0.2  # standard deviation in whitened coordinates, where the data have 1
# Of the squared energy distance: alone it has to outweigh a W2^2, and is 0.002 between data and P_0.
_MMD_SCALE = {"mmd": 3000.0, "js+mmd": 100.0, "js": 0.0}


@dataclass(frozen=True, kw_only=True)
class _Settings(base.FlowSettings):
    dim: int = base.option("dimension D")
    functional: str = base.option("of samples", choices=base.FUNCTIONALS)
    engine: str = base.option("engine of the JKO steps", "auto", choices=base.ENGINES)
    parametrization: str = base.option(
        "a map a step, or one network from noise", "composition", choices=PARAMETRIZATIONS
    )


_DEFAULTS = _Settings(particles=4096, dim=20, steps=10, step_size=10.0, iterations=500, batch_size=256, functional="js")


def load() -> tuple[Tensor, Tensor]:
    """Images [1797, 64] with ink from 0 to 1, and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("the experiment 'digits' needs scikit-learn: pip install scikit-learn") from None
    digits = load_digits()
    return torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)


def build(settings: _Settings) -> base.Problem:
    """One map a JKO step, each from the identity, or one generator; a critic that goes on from step to step."""
    images, labels = load()
    whitening = Whitening.fit(images, settings.dim)
    data = whitening.encode(images)

    def target(n: int) -> Tensor:
        points = batch(data, n)
        return points + _SMOOTHING * torch.randn_like(points)

    dim = settings.dim
    flow = JKOFlow(
        base.sample_functional(settings.functional, target, _MMD_SCALE[settings.functional]),
        dim,
        settings.step_size,
        parametrization=cast(Parametrization, settings.parametrization),
        map=MLP([dim, _WIDTH, _WIDTH, dim], "leaky_relu", residual=True),
        critic=MLP([dim, _WIDTH, _WIDTH, 1], "leaky_relu"),
        training=Training(
            gradient_clip=None,  # as it was measured
            batch_size=settings.batch_size,
            iterations=settings.iterations,
            critic_steps=1,
            map_steps=1,
            lr=1e-3,
            lr_schedule="cosine",
            betas=(0.5, 0.999),
            warm_start=settings.parametrization == "generator",
            pool_size=settings.particles,
        ),
        seed=settings.seed,
        engine=base.engine(settings.engine),
    )

    def source(n: int) -> Tensor:
        return torch.randn(n, dim)

    def figure(result: FlowResult, path: Path) -> None:
        z = source(_ROWS * _COLUMNS)
        is_generator = settings.parametrization == "generator"  # it keeps its last network only
        rows = torch.stack((z, result.push(z))) if is_generator else result.trajectory(z)
        _draw(whitening.decode(rows), settings.steps, images, whitening, path)

    def metrics(result: FlowResult) -> dict[str, Any]:
        samples = whitening.decode(result.push(source(len(images))))  # not the particles: the last map has seen them
        gaussian = whitening.decode(source(len(images)))
        return {
            **two_sample_checks(images, labels, {"samples": samples, "P_0": gaussian}),
            "variance_kept": whitening.explained,
            "distance_to_nearest_real": _nearest(samples, images)[0].mean().item(),
            "the_same_for_P_0": _nearest(gaussian, images)[0].mean().item(),
            "the_same_between_real": torch.cdist(images, images).fill_diagonal_(torch.inf).min(1)[0].mean().item(),
            "samples_by_digit": torch.bincount(labels[_nearest(samples, images)[1]], minlength=10).tolist(),
        }

    return base.Problem(Flow(flow, source, settings.steps, whitening.decode), figure, metrics)


def _nearest(samples: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cdist(samples, images).min(1)


_ROWS, _COLUMNS = 10, 14  # of the sheet of samples
_FOLLOWED = 10  # particles shown along the flow


def _draw(trajectory: Tensor, last: int, images: Tensor, whitening: Whitening, path: Path) -> None:
    """Particles along the flow; new samples; some of them beside the nearest real digit; real digits."""
    plt = base.pyplot()
    ends = len(trajectory) - 1
    steps = sorted({round(k * ends / 7) for k in range(8)} | {0, min(1, ends), ends})
    colours = plt.get_cmap("magma_r").with_extremes(bad="white")
    figure = plt.figure(figsize=(15, 8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])

    def show(axis: Any, picture: Tensor, title: str = "") -> None:
        axis.imshow(base.as_array(picture), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=11)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)

    axis = left.subplots()
    followed = trajectory[steps][:, :_FOLLOWED].transpose(0, 1).reshape(-1, 64)
    picture = sheet(followed, _FOLLOWED, len(steps))
    show(axis, picture, "The same particles along the flow")
    width = picture.shape[1] / len(steps)
    axis.set_xticks([(i + 0.5) * width for i in range(len(steps))], [f"{k * last // max(ends, 1)}" for k in steps])
    axis.set_xlabel("JKO step (0: Gaussian noise)")
    axis.tick_params(length=0)

    samples = trajectory[-1]
    rows = right.subplots(3, 1, height_ratios=[_ROWS, 2, 2])
    show(rows[0], sheet(samples, _ROWS, _COLUMNS), f"Samples after step {last}, not selected")
    some = samples[::_ROWS][:_COLUMNS]
    beside = torch.cat((some, images[_nearest(some, images)[1]]))
    show(rows[1], sheet(beside, 2, _COLUMNS), "Samples, and below each the nearest of the real digits")
    real = images[torch.randperm(len(images))[: 2 * _COLUMNS]]
    show(rows[2], sheet(real, 2, _COLUMNS), "Real digits")
    kept = f"{len(whitening.scale)} principal components ({whitening.explained:.0%} of the variance)"
    right.supxlabel(f"8 x 8 pixels, enlarged smoothly; the flow runs in {kept}", fontsize=9)
    base.save_figure(figure, path)


EXPERIMENT = base.Experiment(
    "digits",
    "Gaussian noise to scikit-learn's real handwritten digits",
    _DEFAULTS,
    build,
)
