"""Square grey images: their principal components, whitened, and sheets of them for figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class Whitening:
    """Images [N, P] to and from the leading principal components, each with mean 0 and variance 1."""

    mean: Tensor
    directions: Tensor  # [P, D]
    scale: Tensor  # [D]
    explained: float

    @classmethod
    def fit(cls, images: Tensor, dim: int) -> Whitening:
        """The D leading components of images.

        Raises:
            ValueError: If they span fewer dimensions.
        """
        mean = images.mean(0)
        _, s, vh = torch.linalg.svd(images - mean, full_matrices=False)
        rank = int((s > 1e-4 * s[0]).sum())
        if dim > rank:
            raise ValueError(f"dim: the images span {rank} dimensions, got {dim}")
        explained = (s[:dim].square().sum() / s.square().sum()).item()
        return cls(mean, vh[:dim].T, s[:dim] / (len(images) - 1) ** 0.5, explained)

    def encode(self, images: Tensor) -> Tensor:
        """[N, P] to [N, D]."""
        return (images - self.mean) @ self.directions / self.scale

    def decode(self, x: Tensor) -> Tensor:
        """[N, D] to [N, P]."""
        return (x * self.scale) @ self.directions.T + self.mean


def sheet(images: Tensor, rows: int, columns: int, gap: int = 4) -> Tensor:
    """Images [rows * columns, P] as one picture, smoothly enlarged to 32 pixels, NaN in the gaps between them."""
    side, size = math.isqrt(images.shape[1]), 32
    smooth = interpolate(images.reshape(-1, 1, side, side), size=(size, size), mode="bicubic")[:, 0]
    step = size + gap
    picture = torch.full((rows * step + gap, columns * step + gap), torch.nan)
    for index in range(rows * columns):
        top, left = (gap + step * k for k in divmod(index, columns))
        picture[top : top + size, left : left + size] = smooth[index]
    return picture
