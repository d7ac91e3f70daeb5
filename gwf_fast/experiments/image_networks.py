"""The networks of Fan et al. (2022), appendix G, at a size that trains on a processor: a U-Net and a ResNet.

Both take images as rows [N, side * side], as a flow has them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm


class ResidualBlock(nn.Module):
    """Two convolutions around a skip connection.

    Args:
        channels: In and out.
        normalised: Whether weights are divided by their spectral norm.
    """

    def __init__(self, channels: int, normalised: bool = False) -> None:
        super().__init__()
        wrap = spectral_norm if normalised else nn.Identity()
        self.first = wrap(nn.Conv2d(channels, channels, 3, padding=1))
        self.second = wrap(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to [N, C, H, W]."""
        return x + self.second(functional.silu(self.first(functional.silu(x))))


class UNetMap(nn.Module):
    """T(x) = x + U(x) with a U-Net of two resolutions; the identity at first.

    Args:
        side: Of the square images; even.
        channels: At the full resolution; twice as many at half of it.
    """

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.side = side
        self.enter = nn.Conv2d(1, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1)
        self.bottom = nn.Sequential(ResidualBlock(2 * channels), _Mixing(2 * channels, side // 2))
        self.up = nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1)
        self.join = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.end = ResidualBlock(channels)
        self.leave = nn.Conv2d(channels, 1, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map to [N, side * side]."""
        full = self.enter(x.view(-1, 1, self.side, self.side))
        half = self.bottom(self.down(functional.silu(full)))
        joined = self.join(torch.cat((full, self.up(functional.silu(half))), 1))
        return x + self.leave(functional.silu(self.end(joined))).reshape(x.shape)


class _Mixing(nn.Module):
    """A layer that sees the whole image: the resolutions below 7 x 7, which the paper's networks have, in one."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        width = channels * side * side
        self.layers = nn.Sequential(nn.Flatten(), nn.SiLU(), nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x).view(x.shape)


class ResNetCritic(nn.Module):
    """A residual network of two resolutions with spectral normalisation of every layer, and a two-layer head.

    Args:
        side: Of the square images; even.
        channels: At the full resolution; twice as many at half of it.
        gain: Factor on the output: the slope that the critic may have, about.
    """

    def __init__(self, side: int, channels: int, gain: float = 1.0) -> None:
        super().__init__()
        self.side, self.gain = side, gain
        self.body = nn.Sequential(
            spectral_norm(nn.Conv2d(1, channels, 3, padding=1)),
            ResidualBlock(channels, normalised=True),
            nn.SiLU(),
            spectral_norm(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1)),
            ResidualBlock(2 * channels, normalised=True),
            nn.SiLU(),
            nn.Flatten(),
            spectral_norm(nn.Linear(2 * channels * (side // 2) ** 2, 128)),
            nn.SiLU(),
            spectral_norm(nn.Linear(128, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the critic to [N, side * side]; returns [N, 1]."""
        return self.gain * self.body(x.view(-1, 1, self.side, self.side))
