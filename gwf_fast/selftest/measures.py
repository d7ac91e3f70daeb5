"""Cases of what has functions of its own besides pairwise sums, for ``gwf-fast selftest``.

Each backend is compared with the PyTorch reference in float64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gwf_fast.kernels.table.profile_numbers import profile_id
from gwf_fast.ops import dispatch

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""Relative error in the 2-norm: sums of terms of both signs, so more than those of positive kernels."""


@dataclasses.dataclass(frozen=True)
class MeasureCase:
    """One call.

    Attributes:
        operation: "stein", "drift", "sliced" or "nearest".
        kind: The profile, "plain" or "clipped" or "ragged", the discrepancy of the projections, or a count.
        sizes: (B, N, M, D).
        dtype: Type of the inputs.
    """

    operation: str
    kind: str
    sizes: tuple[int, int, int, int]
    dtype: torch.dtype

    def __str__(self) -> str:
        """A name for tables and test identifiers."""
        return f"{self.operation}-{self.kind}-{'x'.join(map(str, self.sizes))}-{str(self.dtype).split('.')[1]}"

    @property
    def served_as(self) -> str:
        """The operation of the table that it takes."""
        return self.operation

    @property
    def width(self) -> int:
        """Coordinates."""
        return self.sizes[3]

    @property
    def tolerance(self) -> float:
        """The largest error."""
        return TOLERANCE[self.dtype]

    def measure(self, backend: str, device: str) -> float:
        """The largest relative error over the results; inf for a wrong shape or an infinity."""
        points = self.points(device)
        got = _CALLS[self.operation](dispatch.load(backend, self.operation), self, *points)
        truth = dispatch.load("torch", self.operation)
        want = _CALLS[self.operation](truth, self, *(p.double() for p in points))
        worst = 0.0
        for result, expected in zip(got, want, strict=True):
            if result.shape != expected.shape:
                return math.inf
            relative = float((result.double() - expected).norm() / expected.norm())
            worst = max(worst, relative if math.isfinite(relative) else math.inf)
        return worst

    def points(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Targets, sources, and directions or scores [N, D]: the same numbers on every device."""
        batch, n, m, dim = self.sizes
        generator = torch.Generator().manual_seed(7 * dim + n)
        shapes = ((batch, n, dim), (batch, m, dim), (batch, n, dim))
        first, *rest = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        return tuple(p.to(device=device, dtype=self.dtype) for p in (first, *rest))  # type: ignore[return-value]


def cases(half: bool = False) -> Iterator[MeasureCase]:
    """The case list; `half` adds bfloat16 and float16."""
    types = (torch.float32, torch.float64, *((torch.bfloat16, torch.float16) if half else ()))
    for dtype in types:
        for dim in (1, 2, 3, 5, 17, 64):
            yield MeasureCase("stein", "imq", (1, 63, 63, dim), dtype)
        yield MeasureCase("stein", "gaussian", (2, 40, 40, 3), dtype)
        for dim in (2, 17, 224):
            yield MeasureCase("drift", "plain", (3, 21, 50, dim), dtype)
        for kind in ("clipped", "ragged"):
            yield MeasureCase("drift", kind, (3, 21, 50, 6), dtype)
        for kind in ("wasserstein", "energy"):
            yield MeasureCase("sliced", kind, (2, 63, 63, 5), dtype)
            yield MeasureCase("sliced", kind, (2, 63, 40, 5), dtype)
        for dim in (1, 2, 3, 5, 17, 64):
            yield MeasureCase("nearest", "3", (2, 63, 500, dim), dtype)


def _stein(module: Any, case: MeasureCase, x: Tensor, y: Tensor, score: Tensor) -> tuple[Tensor, ...]:
    spec = (float(profile_id(case.kind)), 1.0, math.sqrt(case.sizes[3]), 0.0)
    diagonal = case.kind == "gaussian"
    return (module.stein_sum(x, score, spec, diagonal), *module.stein_sum_gradients(x, score, spec, diagonal))


def _drift(module: Any, case: MeasureCase, x: Tensor, y: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    batch, n, m, dim = case.sizes
    typical = math.sqrt(dim)
    temperatures = x.new_tensor([[0.5 * typical] * batch, [2.0 * typical] * batch])
    own, split = x.new_full((batch,), 0.3), m // 2
    sizes = torch.tensor([[n - b, split - b, m - 2 * b] for b in range(batch)], device=x.device)
    of_each = sizes if case.kind == "ragged" else None
    weights = 0.5 + torch.linspace(0, 1, m, device=x.device).to(x.dtype).expand(batch, m)
    clip = 1e-3 if case.kind == "clipped" else 0.0
    forces = module.forces(x, y, weights, split, of_each, temperatures, own, 1e-6, clip)
    return forces, module.total_distances(x, y, weights, split, of_each, 1e-6)


def _sliced(module: Any, case: MeasureCase, x: Tensor, y: Tensor, directions: Tensor) -> tuple[Tensor, ...]:
    """The value of each direction, and the gradients of their sum."""
    theta = torch.nn.functional.normalize(directions[0], dim=1)
    if module is not dispatch.load("torch", "sliced"):
        found = module.sliced(case.kind, x, y, theta, power=2.0)
        return found.values, found.x, found.y
    with torch.enable_grad():
        leaves = [points.detach().requires_grad_() for points in (x, y)]
        values = module.sliced(case.kind, *leaves, theta, 2.0, None, None)
        return (values.detach(), *torch.autograd.grad(values.sum(), leaves))


def _nearest(module: Any, case: MeasureCase, x: Tensor, y: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    """Distances, and those of the points that indices name."""
    squares, indices = module.nearest(x, y, int(case.kind))
    found = torch.stack([each[i] for each, i in zip(y, indices, strict=True)])  # [B, N, k, D]
    return squares, (x[:, :, None] - found).square().sum(-1)


_CALLS = {"stein": _stein, "drift": _drift, "sliced": _sliced, "nearest": _nearest}
