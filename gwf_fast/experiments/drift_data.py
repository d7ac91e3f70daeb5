"""What the drifting experiment learns, and how samples of it are judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gwf_fast.experiments import digits
from gwf_fast.experiments.idx import read_digits
from gwf_fast.experiments.images import Whitening
from gwf_fast.experiments.toys import TOYS, toy
from gwf_fast.functionals.evaluation import batch
from gwf_fast.measures.discrepancy import mmd2
from gwf_fast.pairs.kernels import Gaussian
from gwf_fast.randomness.seeded import reproducible

DATA = (*TOYS, "digits", "mnist")
_COMPONENTS = {"digits": 20, "mnist": 40}
_SMOOTHING = 0.2  # of images, standard deviation in whitened coordinates: they are far apart there
_JUDGED = 2048  # samples
_NEIGHBOURS = 5


@dataclass(frozen=True)
class Data:
    """A target, in coordinates of mean 0 and mean variance 1.

    Attributes:
        dim: D.
        sample: n -> samples [n, D], from torch's global generator.
        truth: Samples [2048, D] (fewer where there are fewer) that generated ones are held against.
        radii: Distance of each of them to its fifth neighbour among them, [2048].
        held: As many others, which say what a perfect generator would reach.
        images: All images [N, P] where the data are images.
        whitening: Their coordinates.
    """

    dim: int
    sample: Callable[[int], Tensor]
    truth: Tensor
    radii: Tensor
    held: Tensor
    images: Tensor | None = None
    whitening: Whitening | None = None

    def mmd(self, x: Tensor) -> float:
        """Root of the squared MMD to ``truth``, a U-statistic, 0 where that is negative; three Gaussians, one pass."""
        scale = math.sqrt(self.dim)
        kernel = sum((Gaussian(h * scale) for h in (0.3, 1.0)), start=Gaussian(0.1 * scale))
        return float(mmd2(x, self.truth, kernel=kernel, unbiased=True).clamp(min=0).sqrt())

    def metrics(self, x: Tensor) -> dict[str, float]:
        """How near, how much of the data is found, and how much of what is found is data.

        ``coverage`` is the share of true samples with a generated one within the distance of their fifth neighbour,
        ``precision`` the share of generated samples that are within that distance of a true one.
        """
        x = x[: len(self.truth)]
        inside = torch.cdist(self.truth, x) < self.radii[:, None]
        return {
            "mmd": self.mmd(x),
            "coverage": inside.any(1).float().mean().item(),
            "precision": inside.any(0).float().mean().item(),
        }

    def decode(self, x: Tensor) -> Tensor:
        """What a user wants to see: pixels of images."""
        return x if self.whitening is None else self.whitening.decode(x)


def load(name: str, path: str, seed: int) -> Data:
    """The data set of that name.

    Args:
        name: One of ``DATA``.
        path: MNIST's file or folder; "" for the others.
        seed: Of the samples that judge.

    Raises:
        ValueError: If the path is missing, not wanted, or unreadable.
    """
    if (name == "mnist") != bool(path):
        hint = "needs --input, a folder with MNIST's IDX files" if not path else "takes no --input"
        raise ValueError(f"input: --data {name} {hint}")
    extra: dict[str, Any] = {}
    if name in TOYS:
        dim, sample = 2, toy(name)
    else:
        images = read_digits(path)[0].flatten(1) if path else digits.load()[0]
        dim = _COMPONENTS[name]
        whitening = Whitening.fit(images, dim)
        points = whitening.encode(images)
        extra = {"images": images, "whitening": whitening}

        def sample(n: int) -> Tensor:
            chosen = batch(points, n)
            return chosen + _SMOOTHING * torch.randn_like(chosen)

    with reproducible(seed):
        truth, held = sample(2 * _JUDGED).chunk(2)
    radii = torch.cdist(truth, truth).kthvalue(_NEIGHBOURS + 1, dim=1).values
    return Data(dim, sample, truth, radii, held, **extra)
