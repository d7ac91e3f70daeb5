"""JKO-Flow from a Gaussian to handwritten digits with convolutional networks, beside its limit, the GAN.

The set-up of Fan et al. (2022), section 5.5 and appendix G, at a size that trains on a processor: images averaged to
14 x 14 pixels, JensenShannon, a U-Net as map and a ResNet with spectral normalisation as critic. For a ->
infinity one JKO step is the GAN: the second flow has this step size and the same networks, source and number of
iterations, and goes on with its one map from checkpoint to checkpoint.

P_0 is the Gaussian with the mean and covariance of the digits, not white noise: that is so far from digits that a
critic tells the two without error, where Jensen-Shannon is flat and nothing moves.

The paper has a = 5 at 32 x 32 pixels and does not say whether its |x - T(x)|^2 is a sum over pixels or a mean. Here it
is the sum, over 14 x 14 pixels between -1 and 1; a mean would make a = 5 what --step-size 980 is here, with which the
proximity to P_k weighs next to nothing. Its 30 steps have batches of 128, one ascent and five descents at a rate of
2e-4 an iteration; these six have 64, one and one, 5e-4. The GAN has 1e-4 and 4e-4 for its critic: of five
choices the one with the least MMD after a step; at the flow's rates it left the images. See docs/flows.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gwf_fast.experiments import base
from gwf_fast.experiments.computation import Flow, Study
from gwf_fast.experiments.idx import read_digits
from gwf_fast.experiments.image_networks import ResNetCritic, UNetMap
from gwf_fast.experiments.two_sample import two_sample_checks
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.state import FlowResult
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import JensenShannon

_CHECKED = 2000  # samples in the two-sample checks


@dataclass(frozen=True, kw_only=True)
class _Settings(base.FlowSettings):
    input: str = base.option("folder with MNIST's IDX files (images and labels), or the file of images")
    side: int = base.option("images are averaged to this many pixels a side")
    channels: int = base.option("of the networks at full resolution")
    critic_gain: float = base.option("factor on the spectrally normalised critic")


_DEFAULTS = _Settings(
    input="",
    particles=4096,
    steps=6,
    step_size=5.0,
    iterations=600,
    batch_size=64,
    side=14,
    channels=16,
    critic_gain=1.0,
)


def build(settings: _Settings) -> base.Problem:
    """Two flows of the same cost: a as given, and a = infinity."""
    if not settings.input:
        raise ValueError("input: the experiment 'mnist' needs --input, a folder with MNIST's IDX files")
    if settings.side % 2:
        raise ValueError(f"side must be an even number of pixels, got {settings.side}")
    images, labels = read_digits(settings.input)
    if len(images) < _COLUMNS or len(labels.unique()) < 2:
        raise ValueError(
            f"input must have at least {_COLUMNS} images of at least two classes, got {len(images)} of "
            f"{len(labels.unique())}"
        )
    if settings.side > min(images.shape[1:]):
        raise ValueError(f"side: the images have {list(images.shape[1:])} pixels, got {settings.side}")
    real = functional.adaptive_avg_pool2d(images, settings.side).flatten(1)
    flow, gan = (
        _flow(settings, _encode(real), settings.step_size),
        _flow(settings, _encode(real), math.inf),
    )
    source = _gaussian(_encode(real))

    members = {
        "jko-flow": Flow(flow, source, settings.steps, _decode),
        "gan": Flow(gan, source, settings.steps, _decode),
    }

    def figure(results: dict[str, FlowResult], path: Path) -> None:
        _draw(results, source, real, settings, path)

    def metrics(results: dict[str, FlowResult]) -> dict[str, Any]:
        n = min(_CHECKED, len(real) // 2)
        clouds = {name.replace("-", "_"): _decode(result.push(source(n))) for name, result in results.items()}
        clouds["P_0"] = _decode(source(n))
        chosen = torch.randperm(len(real))[: 2 * n]
        checks = two_sample_checks(real[chosen], labels[chosen], clouds)
        seconds = {f"seconds_{name}": sum(r.seconds for r in result.history) for name, result in results.items()}
        return checks | seconds

    return base.Problem(Study(members), figure, metrics)


def _flow(settings: _Settings, real: Tensor, step_size: float) -> JKOFlow:
    """A flow; where nothing holds the map, its rates are lower, by trial: the GAN leaves the images otherwise."""
    side, is_gan = settings.side, math.isinf(step_size)
    return JKOFlow(
        JensenShannon(real),
        side * side,
        step_size,
        # a composition would give the GAN a new map each step
        parametrization="generator" if is_gan else "composition",
        map=lambda: UNetMap(side, settings.channels),
        critic=lambda: ResNetCritic(side, settings.channels, settings.critic_gain),
        training=Training(
            gradient_clip=None,  # as it was measured
            batch_size=settings.batch_size,
            iterations=settings.iterations,
            critic_steps=1,
            map_steps=1,
            lr=1e-4 if is_gan else 5e-4,
            critic_lr=4e-4 if is_gan else 5e-4,
            betas=(0.5, 0.999),
            pool_size=settings.particles,
        ),
        seed=settings.seed,
    )


def _gaussian(x: Tensor) -> Callable[[int], Tensor]:
    """n -> samples [n, D] of the Gaussian with the mean and covariance of x [N, D]."""
    mean = x.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov(x.T))
    root = directions * variances.clamp(min=0).sqrt()  # border pixels are constant: some variances are 0

    def sample(n: int) -> Tensor:
        return mean + torch.randn(n, len(mean), dtype=mean.dtype) @ root.T

    return sample


def _encode(ink: Tensor) -> Tensor:
    """Ink from 0 to 1 as the flow has it, from -1 to 1."""
    return 2 * ink - 1


def _decode(x: Tensor) -> Tensor:
    return ((x + 1) / 2).clamp(0, 1)


_ROWS, _COLUMNS = 8, 12  # of a sheet of samples
_FOLLOWED = 8  # particles shown along the flow


def _sheet(images: Tensor, columns: int, side: int) -> Tensor:
    """Images [rows * columns, side * side] as one picture, smoothly enlarged, with a white gap between them."""
    size, gap = 3 * side, 3
    smooth = functional.interpolate(images.view(-1, 1, side, side), size=(size, size), mode="bicubic")[:, 0]
    padded = functional.pad(smooth.clamp(0, 1), (0, gap, 0, gap), value=torch.nan)
    return padded.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2).flatten(0, 1)[:-gap, :-gap]


def _draw(results: dict[str, FlowResult], source: Any, real: Tensor, settings: _Settings, path: Path) -> None:
    """Particles along the flow; samples of the flow, of the GAN, and real digits."""
    plt = base.pyplot()
    side = settings.side
    trajectory = _decode(results["jko-flow"].trajectory(source(_ROWS * _COLUMNS)))
    last = len(trajectory) - 1
    shown = sorted({round(k * last / 8) for k in range(9)})
    figure, axes = plt.subplots(1, 4, figsize=(19, 5), layout="constrained", width_ratios=(len(shown) / 8, 1, 1, 1))
    colours = plt.get_cmap("magma_r").with_extremes(bad="white")
    followed = trajectory[shown][:, :_FOLLOWED].transpose(0, 1).flatten(0, 1)
    size = f"a = {settings.step_size:g}"
    panels = [
        (followed, len(shown), "Particles along the flow"),
        (trajectory[-1], _COLUMNS, f"P_{last} of JKO-Flow, {size}, not selected"),
        (_decode(results["gan"].push(source(_ROWS * _COLUMNS))), _COLUMNS, "GAN (a = ∞), equally many iterations"),
        (
            real[torch.randperm(len(real))[: min(_ROWS, len(real) // _COLUMNS) * _COLUMNS]],
            _COLUMNS,
            f"MNIST, averaged to {side} x {side}",
        ),
    ]
    for axis, (cloud, columns, title) in zip(axes, panels):
        sheet = _sheet(cloud, columns, side)
        axis.imshow(base.as_array(sheet), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=11)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    step = _sheet(followed, len(shown), side).shape[1] / len(shown)
    axes[0].set_xticks([(k + 0.5) * step for k in range(len(shown))], [str(k) for k in shown])
    axes[0].set_xlabel("JKO step (0: Gaussian)")
    axes[0].tick_params(length=0)
    base.save_figure(figure, path)


EXPERIMENT = base.Experiment(
    "mnist",
    "a Gaussian to MNIST with convolutional networks, beside a GAN",
    _DEFAULTS,
    build,
)
