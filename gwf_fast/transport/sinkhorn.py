"""Entropic optimal transport and the Sinkhorn divergence, streaming; the cost is r^2 / 2."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, TypedDict, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from gwf_fast.errors import caller_level
from gwf_fast.ops import Opaque
from gwf_fast.ops.ambient import entry
from gwf_fast.ops.modes import is_readable
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.passes import centre_of
from gwf_fast.pairs.ragged import members
from gwf_fast.pairs.validation import check_companion, check_pair
from gwf_fast.transport import small
from gwf_fast.transport.arguments import Numbers, make_problem
from gwf_fast.transport.problem import Entropic
from gwf_fast.transport.results import DivergencePotentials, SinkhornResult, potentials_of, starts_of
from gwf_fast.transport.solve import Solution, alternate, anneal, average, bounding_diameter, schedule


class SolverOptions(TypedDict, total=False):
    """Arguments that transport from one sample to another takes, for type checkers."""

    x_weights: Tensor | None
    y_weights: Tensor | None
    max_iterations: int
    tolerance: float
    marginal_strength: float | None
    scaling: float | None
    start: DivergencePotentials | None
    x_lengths: Tensor | None
    y_lengths: Tensor | None
    backend: BackendName | None


class DivergenceOptions(SolverOptions, total=False):
    """And those of the divergence."""

    debias: bool


@entry
def sinkhorn(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    marginal_strength: float | None = None,
    scaling: float | None = None,
    start: Tensor | SinkhornResult | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> SinkhornResult:
    """Potentials of min_pi <pi, r^2/2> + eps KL(pi | a x b) with marginals a, b (Cuturi 2013), in the log domain.

    The plan is pi_ij = a_i b_j exp((f_i + g_j - r_ij^2/2) / eps); no N x M matrix is stored. Sweeps are over-relaxed
    once the rate of convergence is known.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        epsilon: Regularisation eps > 0, in units of r^2.
        x_weights: a [*B, N], not negative; None means 1 / N.
        y_weights: b [*B, M]; None means 1 / M.
        max_iterations: The most sweeps.
        tolerance: Marginal error at which to stop.
        marginal_strength: rho > 0 relaxes the marginals: rho KL(pi 1 | a) + rho KL(pi' 1 | b) instead of equality
            (Chizat et al. 2018).
        scaling: Factor below 1 by which a length falls from the diameter of the data to sqrt(eps) before the sweeps at
            eps itself: worth it where eps is small beside the diameter. None for none.
        start: The result of an earlier, similar problem, or its g [*B, M].
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; potentials beyond are 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        Potentials without a graph; the plan's rows hold exactly, ``error`` is that of its columns. Where y is x itself,
        with the same weights, f = g by averaged updates, and ``error`` is that of rows and columns alike.

    Raises:
        ValueError, TypeError: If an argument is out of range or does not fit the others.

    Warns:
        RuntimeWarning: If ``tolerance`` was not reached.
    """
    check_pair(x, y)
    numbers = Numbers.of(epsilon, max_iterations, tolerance, scaling, marginal_strength)
    epsilon, max_iterations, tolerance, scaling, marginal_strength = numbers
    g = start.g if isinstance(start, SinkhornResult) else start
    sets = small.Sets(x, y, x_weights, y_weights, x_lengths, y_lengths, backend)
    if (known := small.solve(sets, g, **numbers._asdict())) is not None:
        warn_unconverged(tolerance, known.largest)
        return SinkhornResult(known.f, known.g, known.sweeps[0], known.errors[0])
    problem = make_problem(x, y, x_weights, y_weights, marginal_strength, x_lengths, y_lengths, backend)
    if g is not None:
        check_companion("start", g, y, channels=False)
        g = members(g, y_lengths)
    with torch.no_grad():
        fixed = problem.detached()
        own = fixed.x is fixed.y and fixed.a is fixed.b
        solution = _solve(fixed, own, epsilon, max_iterations, tolerance, scaling, g)
    warn_unconverged(tolerance, solution.error)
    f, g, n, error = solution
    return SinkhornResult(members(f, x_lengths), members(g, y_lengths), n, error)


@overload
def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    return_potentials: Literal[False] = False,
    **options: Unpack[DivergenceOptions],
) -> Tensor: ...
@overload
def sinkhorn_divergence(
    x: Tensor, y: Tensor, *, epsilon: float, return_potentials: Literal[True], **options: Unpack[DivergenceOptions]
) -> tuple[Tensor, DivergencePotentials]: ...
@entry
def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    marginal_strength: float | None = None,
    scaling: float | None = None,
    debias: bool = True,
    start: DivergencePotentials | None = None,
    return_potentials: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor | tuple[Tensor, DivergencePotentials]:
    """OT_eps(a, b) - OT_eps(a, a) / 2 - OT_eps(b, b) / 2 (Genevay et al. 2018; Feydy et al. 2019).

    With ``marginal_strength`` also eps/2 (sum a - sum b)^2, which makes it positive (Sejourne et al. 2019). Second
    derivatives differentiate the optimality conditions implicitly; they are as exact as the potentials are converged.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        epsilon: Regularisation eps > 0, in units of r^2.
        x_weights: a [*B, N]; None means 1 / N.
        y_weights: b [*B, M]; None means 1 / M.
        max_iterations: The most sweeps in each of the three problems.
        tolerance: Marginal error at which to stop.
        marginal_strength: As in ``sinkhorn``.
        scaling: As in ``sinkhorn``.
        debias: False gives OT_eps(a, b) alone.
        start: Potentials of an earlier, similar problem, from ``return_potentials``.
        return_potentials: Return ``DivergencePotentials`` as well, which carry the marginal errors reached.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B], differentiable twice in points and weights.

    Raises:
        ValueError, TypeError: If an argument is out of range or does not fit the others.

    Warns:
        RuntimeWarning: If ``tolerance`` was not reached.
    """
    check_pair(x, y)
    numbers = Numbers.of(epsilon, max_iterations, tolerance, scaling, marginal_strength)
    epsilon, max_iterations, tolerance, scaling, marginal_strength = numbers

    def problem_of(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> Entropic:
        return make_problem(x, y, a, b, marginal_strength, x_lengths, y_lengths, backend)

    sets = small.Sets(x, y, x_weights, y_weights, x_lengths, y_lengths, backend)
    starts = starts_of(start) if debias else (starts_of(start)[0], None, None)
    known = small.divergence(sets, starts, problem_of, debias=debias, keep=return_potentials, **numbers._asdict())
    potentials: DivergencePotentials | None
    if known is not None:
        value, solved, largest = known
        warn_unconverged(tolerance, largest)
        potentials = potentials_of(solved) if return_potentials and solved is not None else None
        sums = _total(x_weights, x_lengths), _total(y_weights, y_lengths)
    else:
        problem = problem_of(x, y, x_weights, y_weights)
        cross = solve_cross(problem, epsilon, max_iterations, tolerance, scaling, starts[0])
        own: list[SinkhornResult | None] = [None, None]
        if debias:
            for side, (points, weights) in enumerate(((problem.x, problem.a), (problem.y, problem.b))):
                itself = problem.of_itself(points, weights)
                own[side] = solve_own(itself, epsilon, max_iterations, tolerance, starts[1 + side])
        value = small.value_at(problem, epsilon, cross.f, cross.g, *(None if part is None else part.f for part in own))
        potentials = DivergencePotentials(cross, *own)
        warn_unconverged(tolerance, *(part.error for part in (cross, *own) if part is not None))
        sums = problem.a.sum(-1), problem.b.sum(-1)
    if debias and marginal_strength is not None:
        value = value + 0.5 * epsilon * (sums[0] - sums[1]) ** 2
    return (value, potentials) if return_potentials and potentials is not None else value


@entry
def barycentric_map(
    x: Tensor,
    y: Tensor,
    g: Tensor,
    *,
    epsilon: float,
    y_weights: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor:
    """T(x_i) = sum_j pi_ij y_j / sum_j pi_ij [*B, N, D]: where the entropic plan sends each point on average.

    Args:
        x: Where to evaluate, [*B, N, D]: the samples that were transported, or any other points (Seguy et al. 2018).
        y: Samples [*B, M, D].
        g: Potential at y [*B, M], of ``sinkhorn``.
        epsilon: The regularisation that g belongs to.
        y_weights: b [*B, M]; None means 1 / M.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, D], differentiable in x, y and g.
    """
    check_pair(x, y)
    check_companion("g", g, y, channels=False)
    problem = make_problem(x, y, None, y_weights, 1.0, None, y_lengths, backend)  # any sum of the weights will do
    epsilon = Numbers.of(epsilon).epsilon
    return problem.row_average(None, members(g, y_lengths), epsilon) + centre_of(y, y_lengths)


def solve_cross(
    problem: Entropic,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    scaling: float | None,
    start: Tensor | None,
) -> SinkhornResult:
    """The potentials of a divergence's problem of two samples, without a graph."""
    if start is not None:
        check_companion("start.cross.g", start, problem.y, channels=False)
    with torch.no_grad():
        solution = _solve(problem.detached(), False, epsilon, max_iterations, tolerance, scaling, start)
    return SinkhornResult(*solution)


def solve_own(
    problem: Entropic, epsilon: float, max_iterations: int, tolerance: float, start: Tensor | None
) -> SinkhornResult:
    """Those of a sample with itself."""
    if start is not None:
        check_companion("start", start, problem.x, channels=False, y_name="the points")
    with torch.no_grad():
        solution = _solve(problem.detached(), True, epsilon, max_iterations, tolerance, None, start)
    return SinkhornResult(*solution)


def _total(weights: Tensor | None, lengths: Tensor | None) -> Tensor | float:
    return 1.0 if weights is None else members(weights, lengths).sum(-1)


def _solve(
    problem: Entropic,
    own: bool,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    scaling: float | None,
    start: Tensor | None,
) -> Solution:
    """The potentials of a problem; ``own`` of a sample with itself."""
    if torch.compiler.is_compiling():
        tensors = problem.x, problem.y, problem.a, problem.b, start
        numbers = problem.strength, epsilon, max_iterations, tolerance, scaling
        return Solution(*_TRACED(*tensors, own, *numbers, problem.backend))
    if own:
        return average(problem, epsilon, start, max_iterations=max_iterations, tolerance=tolerance)
    if scaling is not None and start is None:
        diameter = bounding_diameter(problem.x, problem.y)
        blur = math.sqrt(epsilon)
        if diameter > blur:
            _, start = anneal(problem, schedule(diameter, blur, scaling, problem.p))
    return alternate(problem, epsilon, start, max_iterations=max_iterations, tolerance=tolerance)


def _run_traced(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    start: Tensor | None,
    own: bool,
    strength: float | None,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    scaling: float | None,
    backend: BackendName | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = Entropic(x, x if own else y, a, a if own else b, 2, strength, backend)
    f, g, n, error = _solve(problem, own, epsilon, max_iterations, tolerance, scaling, start)
    return f, g.clone() if g is f else g, torch.as_tensor(n), error


def _shapes(x: Tensor, y: Tensor, a: Tensor, b: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = torch.empty((), dtype=torch.int64)
    return torch.empty_like(a), torch.empty_like(b), count, a.new_empty(a.shape[:-1])


_TRACED = Opaque(
    "sinkhorn_potentials(Tensor x, Tensor y, Tensor a, Tensor b, Tensor? start, bool own, float? strength,"
    " float epsilon, int max_iterations, float tolerance, float? scaling, str? backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    run=_run_traced,
    fake=_shapes,
)


def warn_unconverged(tolerance: float, *errors: Tensor | float) -> None:
    """Warn once a call, at the caller of the public function; with one text, so that one call site is told once."""
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
