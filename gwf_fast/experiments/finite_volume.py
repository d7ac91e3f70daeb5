"""A reference for flows of interaction and generalized entropy in the plane: finite volumes on a square grid.

dP/dt = div(P grad xi) with xi = W * P + c m/(m-1) P^(m-1), upwind fluxes and explicit Euler steps: of first order,
positive, conserves mass (Carrillo, Chertock & Huang, Commun. Comput. Phys. 2015, without their reconstruction).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Cells of the square [-half_width, half_width]^2.

    Attributes:
        half_width: Of the square.
        cells: In a row.
    """

    half_width: float
    cells: int

    @property
    def size(self) -> float:
        """Of a cell."""
        return 2 * self.half_width / self.cells

    def centres(self) -> Tensor:
        """Of the cells of a row, [cells], float64."""
        return (torch.arange(self.cells, dtype=torch.float64) + 0.5) * self.size - self.half_width

    def points(self) -> Tensor:
        """Centres of all cells, [cells^2, 2], in the order of a flattened density."""
        return torch.cartesian_prod(self.centres(), self.centres())

    def uniform(self, half_width: float) -> Tensor:
        """Cell averages of the uniform density on [-half_width, half_width]^2, of mass 1, [cells, cells]."""
        x, half = self.centres(), self.size / 2
        covered = ((x + half).clamp(max=half_width) - (x - half).clamp(min=-half_width)).clamp(min=0) / self.size
        return torch.outer(covered, covered) / (2 * half_width) ** 2


@dataclass(frozen=True)
class Equation:
    """F(P) = (1/2) int int W(x - x') P P' + c/(m - 1) int P^m on a grid.

    Attributes:
        grid: The cells.
        interaction: W at distances r, elementwise.
        entropy: c.
        m: The exponent.
    """

    grid: Grid
    interaction: Callable[[Tensor], Tensor]
    entropy: float
    m: float

    def solve(self, density: Tensor, times: Sequence[float]) -> list[Tensor]:
        """The densities [cells, cells] at increasing times, from the one at time 0."""
        convolve, found, now = self._convolution(), [], 0.0
        for time in times:
            while now < time * (1 - 1e-12):
                density, step = self._step(density, convolve, time - now)
                now += step
            found.append(density)
        return found

    def energy(self, density: Tensor) -> float:
        """F."""
        inner = 0.5 * density * self._convolution()(density) + self.entropy / (self.m - 1) * density**self.m
        return float(inner.sum()) * self.grid.size**2

    def _step(self, density: Tensor, convolve: Callable[[Tensor], Tensor], longest: float) -> tuple[Tensor, float]:
        size, m = self.grid.size, self.m
        potential = convolve(density) + self.entropy * m / (m - 1) * density ** (m - 1)
        velocities = [-potential.diff(dim=axis) / size for axis in (0, 1)]
        fastest = max(float(v.abs().max()) for v in velocities)
        diffusion = self.entropy * m * float(density.max()) ** (m - 1)
        # of both limits of stability, 0.45 and 0.9 of them
        step = min(longest, 0.225 * size / max(fastest, 1e-300), 0.1125 * size**2 / max(diffusion, 1e-300))
        change = torch.zeros_like(density)
        for axis, v in enumerate(velocities):
            n = self.grid.cells - 1
            flux = v.clamp(min=0) * density.narrow(axis, 0, n) + v.clamp(max=0) * density.narrow(axis, 1, n)
            change.narrow(axis, 0, n).sub_(flux)
            change.narrow(axis, 1, n).add_(flux)
        return density + (step / size) * change, step

    def _convolution(self) -> Callable[[Tensor], Tensor]:
        """P -> W * P at the centres, by FFTs."""
        n, size = self.grid.cells, self.grid.size
        offset = torch.arange(-(n - 1), n, dtype=torch.float64) * size
        weights = self.interaction((offset[:, None] ** 2 + offset**2).sqrt()) * size**2
        length = 1 << math.ceil(math.log2(3 * n - 2))
        spectrum = torch.fft.rfft2(weights, (length, length))

        def convolve(density: Tensor) -> Tensor:
            product = torch.fft.rfft2(density, (length, length)) * spectrum
            return torch.fft.irfft2(product, (length, length))[n - 1 : 2 * n - 1, n - 1 : 2 * n - 1]

        return convolve
