"""Cases of Stein's operators, drifting and small transport problems, for the suite and for what is compiled for GPUs.

A case calls the functions of a module such as ``kernels/triton/stein.py`` and compares with its reference on the same
numbers in float64.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.kernels.reference import drift as drift_reference
from gwf_fast.kernels.table.profile_numbers import profile_id
from gwf_fast.kernels.table.profiles import PROFILES
from gwf_fast.ops import dispatch
from gwf_fast.transport.problem import Entropic
from gwf_fast.transport.solve import Solution, alternate, average

FAR = 1e3
"""Where clouds far from the origin are."""

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
"""Relative error in the 2-norm; half precisions are allowed the rounding of their results."""


@dataclasses.dataclass(frozen=True)
class ProblemCase:
    """One call.

    Attributes:
        operation: A key of OPERATIONS.
        profiles: The terms of the kernel.
        sizes: (B, N, M, D).
        dtype: Type of the inputs.
        marks: Of "far", "coincident", "diagonal", "ragged", "weights", "clip".
    """

    operation: str
    profiles: tuple[str, ...] = ("gaussian",)
    sizes: tuple[int, int, int, int] = (2, 33, 33, 3)
    dtype: torch.dtype = torch.float32
    marks: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A name for tables and test identifiers."""
        size = "x".join(map(str, self.sizes))
        return "-".join([self.operation, "+".join(self.profiles), size, str(self.dtype).split(".")[1], *self.marks])

    @property
    def spec(self) -> tuple[float, ...]:
        """The kernel: bandwidths around the typical distance."""
        numbers: list[float] = []
        for k, name in enumerate(self.profiles):
            bandwidth = math.sqrt(self.sizes[3]) * (0.8 + 0.7 * k)
            numbers += [profile_id(name), 0.7 + 0.5 * k, bandwidth, PROFILES[name].test_parameter or 0.0]
        return tuple(numbers)

    @property
    def served_as(self) -> str:
        """The operation of the table that it takes."""
        return OPERATIONS[self.operation].served_as

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
        return error(self, dispatch.load(backend, self.served_as), device)

    def points(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, D], y [B, M, D] and scores of x: the same numbers on every device."""
        batch, n, m, dim = self.sizes
        generator = torch.Generator().manual_seed(20 * dim + n)

        def normal(count: int) -> Tensor:
            return torch.randn(batch, count, dim, generator=generator, dtype=torch.float64)

        shift = FAR if "far" in self.marks else 0.0
        x, y, score = normal(n) + shift, normal(m) + shift, normal(n)
        if shift:  # on a grid, where they move to the origin without rounding
            x, y = ((points * 2**20).round() / 2**20 for points in (x, y))
        if "coincident" in self.marks:
            shared = min(n, m) // 2
            y[:, :shared] = x[:, :shared]
            x[:, n // 2 :] = x[:, : n - n // 2]
        x, y, score = (value.to(device=device, dtype=self.dtype) for value in (x, y, score))
        return x, y, score


def _stein(module: ModuleType, case: ProblemCase, x: Tensor, y: Tensor, score: Tensor) -> list[Tensor]:
    """Value, and the gradients in points and scores as one: beside the others, those of few points nearly cancel."""
    diagonal = "diagonal" in case.marks
    value = module.stein_sum(x, score, case.spec, diagonal)
    gradients = module.stein_sum_gradients(x, score, case.spec, diagonal)
    return [value, *gradients]


def _svgd(module: ModuleType, case: ProblemCase, x: Tensor, y: Tensor, score: Tensor) -> list[Tensor]:
    if hasattr(module, "svgd_sum"):
        return [module.svgd_sum(x, score, case.spec)]
    return [module.stein_sum_gradients(x, score, case.spec, True)[1] / 2]


def _drift(module: ModuleType, case: ProblemCase, x: Tensor, y: Tensor, score: Tensor) -> list[Tensor]:
    """Negatives are the particles themselves, then what is first of y; forces at two temperatures, and distances."""
    batch, n, m, dim = case.sizes
    if module is drift_reference and "far" in case.marks:  # its callers centre: far away it is 1e-12 off itself
        x, y = x - FAR, y - FAR
    extra = m // 3
    targets, split = torch.cat([x, y], 1), n + extra
    weights = (1.5 + torch.sin(torch.arange(n + m, device=x.device, dtype=x.dtype))).expand(batch, -1)
    sizes = None
    if "ragged" in case.marks:  # the sizes of a problem shrink on all sides; the rest is padding
        sizes = torch.tensor([[n - 2 * b, split - b, n + m - 3 * b] for b in range(batch)], device=x.device)
    at = (torch.tensor([0.4, 1.1], dtype=torch.float64) * math.sqrt(dim)).to(x)[:, None].repeat(1, batch)
    own = torch.full((batch,), 1e30 if "clip" not in case.marks else 5.0, device=x.device, dtype=x.dtype)
    of = x, targets, weights if "weights" in case.marks else None, split, sizes
    clip = 1e-6 if "clip" in case.marks else 0.0
    return [module.forces(*of, at, own, 1e-8, clip), module.total_distances(*of, 1e-8)]


def _sinkhorn(module: ModuleType, case: ProblemCase, x: Tensor, y: Tensor, score: Tensor) -> list[Tensor]:
    """f_i + g_j, which unlike f and g are determined, after as many sweeps as rounding allows."""
    batch, n, m, dim = case.sizes
    itself, relaxed = "itself" in case.marks, "relaxed" in case.marks
    y = x if itself else y
    a, b = (1.2 + torch.sin(torch.arange(size, device=x.device, dtype=x.dtype)) for size in (n, m))
    b[1:2] = 0 if m > 2 and not itself else b[1:2]
    a, b = ((w / w.sum()).repeat(batch, 1) for w in (a, b))
    b = a if itself else b
    start = None if "started" not in case.marks else 0.1 * y[..., 0]
    options = {"p": 1 if "linear" in case.marks else 2, "strength": 0.8 if relaxed else None}
    found = module.solve_small(x, y, a, b, start, 1.5 * dim, **options, max_iterations=25, tolerance=0.0)
    return [torch.where(b > 0, found[1], 0.0)[:, None] + found[0][..., None]]


class _Operation(NamedTuple):
    served_as: str  # a key of the table of operations
    module: str  # as in kernels/reference/*.py
    call: Callable[..., list[Tensor]]  # of (module, case, *points)


OPERATIONS = {
    "stein": _Operation("stein", "stein", _stein),
    "svgd": _Operation("svgd", "stein", _svgd),
    "drift": _Operation("drift", "drift", _drift),
    "sinkhorn": _Operation("transport", "transport", _sinkhorn),
}


def _stein_cases(half: bool) -> Iterator[ProblemCase]:
    for operation in ("stein", "svgd"):
        for dim in (1, 2, 3, 5, 17, 64):
            yield ProblemCase(operation, ("imq",), (1, 33, 33, dim))
        for name, profile in PROFILES.items():
            if profile.scaled:
                yield ProblemCase(operation, (name,), (1, 20, 20, 2), torch.float64)
        for marks in (("far", "diagonal"), ("coincident",)):
            yield ProblemCase(operation, ("gaussian", "imq"), (2, 40, 40, 3), torch.float64, marks)
            yield ProblemCase(operation, ("gaussian", "imq"), (2, 35, 35, 6), torch.float32, marks)
        for n in (1, 2):
            yield ProblemCase(operation, ("gaussian",), (1, n, n, 5), torch.float32, ("diagonal",))
        yield ProblemCase(operation, ("gaussian",), (0, 3, 3, 2))
    for dtype in (torch.bfloat16, torch.float16) if half else ():
        yield ProblemCase("svgd", ("imq",), (1, 33, 33, 3), dtype)
        yield ProblemCase("svgd", ("imq",), (1, 33, 33, 17), dtype)


def _drift_cases(half: bool) -> Iterator[ProblemCase]:
    for n, m in ((17, 40), (70, 45)):  # one program's, and in three sweeps
        for dim in (1, 2, 3, 5, 17):
            yield ProblemCase("drift", (), (2, n, m, dim), torch.float32, ("clip",))
        for marks in (("ragged", "weights", "clip"), ("far", "coincident", "clip"), ("far", "ragged")):
            yield ProblemCase("drift", (), (3, n, m, 3), torch.float64, marks)
            yield ProblemCase("drift", (), (2, n, m, 6), torch.float32, marks)
    yield ProblemCase("drift", (), (2, 64, 30, 70), torch.float64, ("weights",))  # two blocks of coordinates
    yield ProblemCase("drift", (), (1, 2, 1, 2))
    yield ProblemCase("drift", (), (0, 3, 3, 2))
    for dtype in (torch.bfloat16, torch.float16) if half else ():
        yield ProblemCase("drift", (), (1, 20, 33, 3), dtype, ("clip",))
        yield ProblemCase("drift", (), (1, 70, 33, 17), dtype, ("clip",))


def _sinkhorn_cases() -> Iterator[ProblemCase]:
    for marks in ((), ("relaxed", "linear"), ("itself",), ("itself", "relaxed"), ("started", "far")):
        m = 17 if "itself" in marks else 40
        yield ProblemCase("sinkhorn", (), (1, 17, m, 3), torch.float32, marks)
        yield ProblemCase("sinkhorn", (), (2, 5, 5 if m == 17 else 18, 2), torch.float64, marks)
    yield ProblemCase("sinkhorn", (), (1, 1, 1, 2))
    yield ProblemCase("sinkhorn", (), (0, 3, 3, 2))
    yield ProblemCase("sinkhorn", (), (1, 3, 2, 70), torch.float64)


def cases(half: bool = False) -> Iterator[ProblemCase]:
    """The case list; `half` adds bfloat16 and float16."""
    yield from _stein_cases(half)
    yield from _drift_cases(half)
    yield from _sinkhorn_cases()


class _Solver:
    """The solver of ``gwf_fast.transport`` as ``kernels/triton/transport.py`` has it."""

    @staticmethod
    def solve_small(
        x: Tensor,
        y: Tensor,
        a: Tensor,
        b: Tensor,
        start: Tensor | None,
        epsilon: float,
        *,
        p: int,
        strength: float | None,
        max_iterations: int,
        tolerance: float,
    ) -> Solution:
        y, b = (x, a) if x.shape == y.shape and torch.equal(x, y) else (y, b)
        solve = average if y is x else alternate
        problem = Entropic(x, y, a, b, p, strength)
        return solve(problem, epsilon, start, max_iterations=max_iterations, tolerance=tolerance)


def error(case: ProblemCase, module: ModuleType, device: str) -> float:
    """The largest relative error, in the 2-norm, over the results; inf for a wrong shape or infinity."""
    _, name, call = OPERATIONS[case.operation]
    reference = _Solver if name == "transport" else importlib.import_module(f"gwf_fast.kernels.reference.{name}")
    points = case.points(device)
    got = call(module, case, *points)
    want = call(reference, case, *(value.double() for value in points))
    worst = 0.0
    for result, truth in zip(got, want, strict=True):
        if result.shape != truth.shape:
            return math.inf
        difference, size = float((result.double() - truth).norm()), float(truth.norm())
        relative = difference / size if size else difference
        worst = max(worst, relative if math.isfinite(relative) else math.inf)
    return worst
