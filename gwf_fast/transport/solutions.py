"""Potentials of problems: by which iteration, as one node where torch.compile traces; and the warning."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from gwf_fast.errors import caller_level
from gwf_fast.ops import Opaque
from gwf_fast.ops.modes import is_readable, is_transformed
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.ragged import members
from gwf_fast.pairs.validation import check_companion
from gwf_fast.transport import small
from gwf_fast.transport.arguments import Numbers, make_problem
from gwf_fast.transport.plan import Plan
from gwf_fast.transport.problem import Entropic
from gwf_fast.transport.results import SinkhornResult, of_plan
from gwf_fast.transport.solve import Solution, alternate, anneal, average, bounding_diameter, schedule, sweep


def solve(sets: small.Sets, numbers: Numbers, start: Tensor | None) -> SinkhornResult:
    """The potentials of two samples, as ``sinkhorn`` returns them."""
    largest: Tensor | float
    if (known := small.solve(sets, start, **numbers._asdict())) is not None:
        result, largest = SinkhornResult(known.f, known.g, known.sweeps[0], known.errors[0]), known.largest
    else:
        problem = make_problem(sets, numbers)
        if start is not None:
            check_companion("start", start, sets.y, channels=False)
            start = members(start, sets.y_lengths)
        with torch.no_grad():
            fixed = problem.detached()
            own = not numbers.plain and fixed.x is fixed.y and fixed.a is fixed.b
            f, g, n, error = _solve(fixed, own, numbers, start)
        result = SinkhornResult(members(f, sets.x_lengths), members(g, sets.y_lengths), n, error)
        largest = error
    warn_unconverged(numbers, largest)
    return of_plan(result, Plan.of(sets, numbers))


def solve_cross(
    problem: Entropic, numbers: Numbers, start: Tensor | None, name: str = "start.cross.g"
) -> SinkhornResult:
    """The potentials of a divergence's problem of two samples, without a graph."""
    if start is not None:
        check_companion(name, start, problem.y, channels=False)
    with torch.no_grad():
        return SinkhornResult(*_solve(problem.detached(), False, numbers, start))


def solve_own(problem: Entropic, numbers: Numbers, start: Tensor | None) -> SinkhornResult:
    """Those of a sample with itself; f = g, but of plain sweeps, which treat it as any other."""
    if start is not None:
        check_companion("start", start, problem.x, channels=False, y_name="the points")
    with torch.no_grad():
        return SinkhornResult(*_solve(problem.detached(), not numbers.plain, numbers, start))


def _solve(problem: Entropic, own: bool, numbers: Numbers, start: Tensor | None) -> Solution:
    """The potentials of a problem; ``own`` of a sample with itself, by averaged updates."""
    if torch.compiler.is_compiling() or is_transformed():
        tensors = problem.x, problem.y, problem.a, problem.b, start
        return Solution(*_TRACED(*tensors, own, *numbers, problem.backend, problem.formula))
    epsilon, scaling = numbers.epsilon, numbers.scaling
    most, tolerance = numbers.max_iterations, numbers.tolerance
    if own:
        return average(problem, epsilon, start, max_iterations=most, tolerance=tolerance)
    if scaling is not None and start is None:
        diameter = bounding_diameter(problem.x, problem.y)
        blur = math.sqrt(epsilon) if problem.p == 2 else epsilon
        if diameter > blur:
            _, start = anneal(problem, schedule(diameter, blur, scaling, problem.p))
    iterate = sweep if numbers.plain else alternate
    return iterate(problem, epsilon, start, max_iterations=most, tolerance=tolerance)


def _run_traced(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    start: Tensor | None,
    own: bool,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    scaling: float | None,
    strength: float | None,
    p: int,
    plain: bool,
    backend: BackendName | None,
    formula: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = Entropic(x, x if own else y, a, a if own else b, p, strength, backend, formula)
    numbers = Numbers(epsilon, max_iterations, tolerance, scaling, strength, p, plain)
    f, g, n, error = _solve(problem, own, numbers, start)
    return f, g.clone() if g is f else g, torch.as_tensor(n), error


def _shapes(x: Tensor, y: Tensor, a: Tensor, b: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = torch.empty((), dtype=torch.int64)
    return torch.empty_like(a), torch.empty_like(b), count, a.new_empty(a.shape[:-1])


_TRACED = Opaque(
    "sinkhorn_potentials(Tensor x, Tensor y, Tensor a, Tensor b, Tensor? start, bool own, float epsilon,"
    " int max_iterations, float tolerance, float? scaling, float? strength, int p, bool plain, str? backend,"
    " str? formula)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    run=_run_traced,
    fake=_shapes,
)


def warn_unconverged(numbers: Numbers, *errors: Tensor | float) -> None:
    """Warn once a call, at the caller of the public function; with one text, so that one call site is told once."""
    tolerance = numbers.tolerance
    if numbers.plain and tolerance == 0:  # a number of sweeps was asked for, and no error
        return
    for error in errors:
        if isinstance(error, Tensor):
            if not (error.numel() and is_readable(error)):  # it is in the result too
                continue
            error = float(error.max())
        if not error <= tolerance:
            warnings.warn(
                f"Sinkhorn stopped before its marginal error was below the tolerance of {tolerance:.1e}: raise "
                "max_iterations or epsilon, or set scaling; the error that is left is in what sinkhorn() returns",
                RuntimeWarning,
                stacklevel=caller_level(),
            )
            return
