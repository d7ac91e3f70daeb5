"""Sinkhorn's iteration in the log domain: at one epsilon until the marginals hold, or down a schedule of epsilons."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.ops import dispatch
from gwf_fast.ops.modes import is_concrete, is_readable
from gwf_fast.transport.problem import Entropic

MOST_EPSILONS = 10_000
"""Of a schedule."""

_WINDOW = 10  # sweeps over which the rate of convergence is measured


class Solution(NamedTuple):
    """Potentials f [*B, N] and g [*B, M], sweeps made, and the marginal error [*B] that is left.

    While a CUDA graph is captured nothing can be read by the host, and ``n_iterations`` is a tensor.
    """

    f: Tensor
    g: Tensor
    n_iterations: int | Tensor
    error: Tensor


class _Relaxation:
    """The factor of successive over-relaxation, from the rate at which the error falls.

    Plain sweeps converge like lambda^n with lambda the second eigenvalue of the plan composed with its transpose, and
    w = 2 / (1 + sqrt(1 - lambda)) is the best factor. Under a factor w below that, the rate r that is seen obeys
    (r + w - 1)^2 = r w^2 lambda, which gives lambda (Young 1954; for Sinkhorn: Lehmann et al. 2022).
    """

    LARGEST = 1.99

    def __init__(self) -> None:
        self.factor = 1.0
        self._sweeps, self._before = 0, 0.0

    def see(self, error: float) -> None:
        self._sweeps += 1
        if self._sweeps % _WINDOW:
            return
        before, self._before = self._before, error
        if before == 0:
            return
        rate, w = (error / before) ** (1 / _WINDOW), self.factor
        if rate >= 1:
            self.factor = 1 + 0.5 * (w - 1)
        elif rate > 0.3:
            contraction = min((rate + w - 1) ** 2 / (rate * w**2), 1.0)
            self.factor = max(w, min(2 / (1 + math.sqrt(1 - contraction)), self.LARGEST))


def alternate(
    problem: Entropic,
    epsilon: float,
    g: Tensor | None,
    *,
    max_iterations: int,
    tolerance: float,
    over_relaxation: bool = True,
) -> Solution:
    """Update rows and columns in turn. The rows of the plan returned are exact, ``error`` is that of its columns."""
    if over_relaxation and (found := _in_one_launch(problem, epsilon, g, max_iterations, tolerance)) is not None:
        return found
    other = problem.swapped()
    relaxation = _Relaxation()
    f = problem.row_update(g, epsilon)
    g = problem.b.new_zeros(problem.b.shape) if g is None else g
    n, exact_rows = 0, True
    while True:
        best = other.row_update(f, epsilon)
        n += 1
        error = other.marginal_error(g, best, epsilon)
        largest = float(error.max()) if error.numel() else 0.0
        finished = largest <= tolerance or n >= max_iterations
        if finished and exact_rows:
            return Solution(f, g, n, error)
        if over_relaxation and not finished:
            relaxation.see(largest)
        # near the end plain sweeps, which leave the rows exact
        factor = 1.0 if finished or n + 1 >= max_iterations else relaxation.factor
        g = g + factor * (best - g)
        best = problem.row_update(g, epsilon)
        f = f + factor * (best - f)
        exact_rows = factor == 1


def sweep(problem: Entropic, epsilon: float, g: Tensor | None, *, max_iterations: int, tolerance: float) -> Solution:
    """Plain sweeps: f, then g, from a g or 0. The columns of the plan are exact, ``error`` is that of its rows.

    Nothing is read on the way where the tolerance is 0.
    """
    if (found := _in_one_launch(problem, epsilon, g, max_iterations, tolerance, plain=True)) is not None:
        return found
    other, n = problem.swapped(), 0
    best = problem.row_update(g, epsilon)
    while True:
        f = best
        g = other.row_update(f, epsilon)
        best = problem.row_update(g, epsilon)
        n += 1
        if tolerance == 0 and n < max_iterations:
            continue
        error = problem.marginal_error(f, best, epsilon)
        if n >= max_iterations or (float(error.max()) if error.numel() else 0.0) <= tolerance:
            return Solution(f, g, n, error)


def average(problem: Entropic, epsilon: float, f: Tensor | None, *, max_iterations: int, tolerance: float) -> Solution:
    """The problem of a sample with itself: f <- (f + update) / 2, which converges fast (Feydy et al. 2019)."""
    if (found := _in_one_launch(problem, epsilon, f, max_iterations, tolerance)) is not None:
        return found
    f = problem.row_update(f, epsilon)
    n = 0
    while True:
        best = problem.row_update(f, epsilon)
        n += 1
        error = problem.marginal_error(f, best, epsilon)
        if n >= max_iterations or (float(error.max()) if error.numel() else 0.0) <= tolerance:
            return Solution(f, f, n, error)
        f = 0.5 * (f + best)


def _in_one_launch(
    problem: Entropic,
    epsilon: float,
    start: Tensor | None,
    max_iterations: int,
    tolerance: float,
    plain: bool = False,
) -> Solution | None:
    """The same for problems that a GPU's program has in its registers, a CPU's core in its cache.

    Each until its own marginals hold. None where they are not small, or ask for more care; programs of GPUs know no
    plain sweeps.
    """
    x, y, a, b = problem.x, problem.y, problem.a, problem.b
    if problem.formula is not None or not is_concrete(x, y, a, b, start):
        return None
    backend = dispatch.resolve(problem.backend, x.device, x.dtype, False, "transport", x.shape[-1])
    module = dispatch.special(backend, "transport")
    if (plain and backend != "cpp") or module is None or not module.fits(x.shape[-2], y.shape[-2], x.dtype):
        return None
    batch = x.shape[:-2]
    u, w = x.reshape(-1, *x.shape[-2:]), a.reshape(-1, a.shape[-1])
    itself = y is x and b is a and not plain
    v, c = (u, w) if itself else (y.reshape(-1, *y.shape[-2:]), b.reshape(-1, b.shape[-1]))
    start = None if start is None else start.reshape(-1, start.shape[-1])
    found = module.solve_small(
        u, v, w, c, start, epsilon,
        p=problem.p, strength=problem.strength, max_iterations=max_iterations, tolerance=tolerance,
        **({"plain": True} if plain else {}),
    )  # fmt: skip
    if found is None:
        return None
    f, g, sweeps, error = found
    most = sweeps.amax() if sweeps.numel() else sweeps.sum()
    f, g = f.view(a.shape), g.view(b.shape)
    return Solution(f, f if itself else g, int(most) if is_readable(most) else most, error.view(batch))


def schedule(diameter: float, blur: float, scaling: float, p: int) -> list[float]:
    """Epsilons from diameter^p down to blur^p, each scaling^p times the one before (geomloss; Feydy 2020).

    Raises:
        ValueError: If there would be more than ``MOST_EPSILONS``: a scaling of 1 - 1e-9 means a thousand million.
    """
    if not math.isfinite(diameter):  # the points are not: nothing to anneal
        return [blur**p]
    count = max(0, math.ceil((math.log(blur) - math.log(diameter)) / math.log(scaling)))
    if count > MOST_EPSILONS:
        raise ValueError(
            f"scaling must lead from the diameter {diameter:.3g} to {blur:.3g} in at most {MOST_EPSILONS} steps, got"
            f" {scaling!r}, which takes {count}"
        )
    falling = [math.exp(p * (math.log(diameter) + k * math.log(scaling))) for k in range(count)]
    return [diameter**p, *falling, blur**p]


def anneal(problem: Entropic, epsilons: list[float]) -> tuple[Tensor, Tensor]:
    """One averaged update of both sides for each epsilon; the potentials before a last row update."""
    other = problem.swapped()
    itself = problem.x is problem.y
    f = problem.row_update(None, epsilons[0])
    g = f if itself else other.row_update(None, epsilons[0])
    for epsilon in epsilons:
        new_f = 0.5 * (f + problem.row_update(g, epsilon))
        g = new_f if itself else 0.5 * (g + other.row_update(f, epsilon))
        f = new_f
    return f, g


def bounding_diameter(x: Tensor, y: Tensor) -> float:
    """Diagonal of the box around both samples, over the whole batch."""
    points = torch.cat((x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])))
    return float((points.amax(0) - points.amin(0)).norm())
