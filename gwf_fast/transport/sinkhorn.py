"""Entropic optimal transport and the Sinkhorn divergence, streaming."""

from __future__ import annotations

from typing import Literal, TypedDict, overload

from torch import Tensor
from typing_extensions import Unpack

from gwf_fast.ops.ambient import entry
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.passes import centre_of
from gwf_fast.pairs.ragged import members
from gwf_fast.pairs.validation import check_companion, check_pair
from gwf_fast.transport import small
from gwf_fast.transport.arguments import Numbers, Sweeps, make_problem
from gwf_fast.transport.cost import optimal_value
from gwf_fast.transport.ground import Cost, ground_of, sets_of
from gwf_fast.transport.plan import Plan
from gwf_fast.transport.problem import Entropic
from gwf_fast.transport.results import DivergencePotentials, SinkhornResult, potentials_of, starts_of, with_plans
from gwf_fast.transport.solutions import solve, solve_cross, solve_own, warn_unconverged


class SolverOptions(TypedDict, total=False):
    """Arguments that transport from one sample to another takes, for type checkers."""

    x_weights: Tensor | None
    y_weights: Tensor | None
    max_iterations: int
    tolerance: float
    marginal_strength: float | None
    scaling: float | None
    p: int
    cost: Cost | None
    sweeps: Sweeps
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
    p: int = 2,
    cost: Cost | None = None,
    sweeps: Sweeps = "relaxed",
    start: Tensor | SinkhornResult | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> SinkhornResult:
    """Potentials of min_pi <pi, c> + eps KL(pi | a x b) with marginals a, b (Cuturi 2013), in the log domain.

    The plan is pi_ij = a_i b_j exp((f_i + g_j - c_ij) / eps), c = r^2/2 unless said otherwise; no N x M matrix is
    stored, ``result.apply(v)`` is what it does to values.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        epsilon: Regularisation eps > 0, in units of the cost.
        x_weights: a [*B, N], not negative; None means 1 / N.
        y_weights: b [*B, M]; None means 1 / M.
        max_iterations: The most sweeps.
        tolerance: Marginal error at which to stop.
        marginal_strength: rho > 0 relaxes the marginals: rho KL(pi 1 | a) + rho KL(pi' 1 | b) instead of equality
            (Chizat et al. 2018).
        scaling: Factor below 1 by which a length falls from the diameter of the data to eps^(1/p) before the sweeps at
            eps itself: worth it where eps is small beside the diameter. None for none.
        p: The cost is r^p / p: r^2/2, or r = |x - y| with p = 1.
        cost: Another one, in place of p: "cosine" for 1 - cos of the angle between x_i and y_j; or a formula of your
            own, a SymPy expression in ``s`` = r^2 and ``r``, finite at r = 0 (``cost=s`` is the squared distance of POT
            and OTT), or the ``gwf.Radial`` of one, which ``torch.compile`` takes too. Multiples of s or r are as fast
            as p; others go where ``gwf.Radial`` goes.
        sweeps: "relaxed": over-relaxed once the rate of convergence is known, but the last one, which ends in f.
            "plain": f, then g, from 0, the textbook's sweeps, which end in g; with ``tolerance=0`` exactly
            ``max_iterations`` of them, without a warning: for others' numbers. Where those update g first, exchange x
            and y; where they start from the scalings a exp(f/eps) = 1, as POT does, ``start=-epsilon * log b``.
        start: The result of an earlier, similar problem, or its g [*B, M].
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; potentials beyond are 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        Potentials without a graph; the plan's rows hold exactly, ``error`` is that of its columns; after plain sweeps
        columns hold, and ``error`` is that of rows. Where y is x itself, with the same weights, relaxed sweeps are
        averaged updates of f = g, and ``error`` is that of rows and columns alike.

    Raises:
        ValueError, TypeError: If an argument is out of range or does not fit the others.

    Warns:
        RuntimeWarning: If ``tolerance`` was not reached.
    """
    check_pair(x, y)
    ground = ground_of(p, cost)
    numbers = Numbers.of(epsilon, max_iterations, tolerance, scaling, marginal_strength, sweeps, ground)
    u, v = sets_of(ground, x, y, x_lengths, y_lengths)
    sets = small.Sets(u, v, x_weights, y_weights, x_lengths, y_lengths, backend, ground.formula)
    return solve(sets, numbers, start.g if isinstance(start, SinkhornResult) else start)


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
    p: int = 2,
    cost: Cost | None = None,
    sweeps: Sweeps = "relaxed",
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
        epsilon: Regularisation eps > 0, in units of the cost.
        x_weights: a [*B, N]; None means 1 / N.
        y_weights: b [*B, M]; None means 1 / M.
        max_iterations: The most sweeps in each of the three problems.
        tolerance: Marginal error at which to stop.
        marginal_strength: As in ``sinkhorn``.
        scaling: As in ``sinkhorn``.
        p: As in ``sinkhorn``.
        cost: As in ``sinkhorn``. A formula's divergence is positive where exp(-c/eps) is a positive definite kernel.
        sweeps: As in ``sinkhorn``; of plain ones the value is that of the potentials as they are.
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
    ground = ground_of(p, cost)
    numbers = Numbers.of(epsilon, max_iterations, tolerance, scaling, marginal_strength, sweeps, ground)
    u, v = sets_of(ground, x, y, x_lengths, y_lengths)
    sets = small.Sets(u, v, x_weights, y_weights, x_lengths, y_lengths, backend, ground.formula)
    starts = starts_of(start) if debias else (starts_of(start)[0], None, None)
    value, potentials = divergence(sets, numbers, starts, debias=debias, keep=return_potentials)
    return (value, potentials) if return_potentials and potentials is not None else value


@entry
def barycentric_map(
    x: Tensor,
    y: Tensor,
    g: Tensor,
    *,
    epsilon: float,
    y_weights: Tensor | None = None,
    p: int = 2,
    cost: Cost | None = None,
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
        p: As in ``sinkhorn``; means are those of the points whatever the cost.
        cost: As in ``sinkhorn``.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B, N, D], differentiable in x, y and g.
    """
    check_pair(x, y)
    check_companion("g", g, y, channels=False)
    ground = ground_of(p, cost)
    numbers = Numbers.of(epsilon, strength=1.0, ground=ground)  # any sum of the weights will do
    u, v = sets_of(ground, x, y, None, y_lengths)
    sets = small.Sets(u, v, None, y_weights, None, y_lengths, backend, ground.formula)
    problem, centre = make_problem(sets, numbers), centre_of(y, y_lengths)
    values = members(y - centre, y_lengths) if ground.maps else None
    return problem.row_average(values, members(g, y_lengths), numbers.epsilon) + centre


# ---------------------------------------------------------------------------------------------- values


def divergence(
    sets: small.Sets, numbers: Numbers, starts: small.Starts, *, debias: bool, keep: bool, name: str = "start.cross.g"
) -> tuple[Tensor, DivergencePotentials | None]:
    """The value [*B], differentiable, of ``sinkhorn_divergence``, and the potentials if they are kept.

    ``name`` is that of the first start.
    """
    potentials: DivergencePotentials | None
    known = None
    if not numbers.plain:
        known = small.divergence(
            sets, starts, lambda *moved: make_problem(sets.of(*moved), numbers), debias=debias, keep=keep,
            **numbers._asdict(),
        )  # fmt: skip
    if known is not None:
        value, solved, largest = known
        warn_unconverged(numbers, largest)
        potentials = potentials_of(solved, Plan.of(sets, numbers)) if keep and solved is not None else None
        sums = _total(sets.a, sets.x_lengths), _total(sets.b, sets.y_lengths)
    else:
        problem = make_problem(sets, numbers)
        cross = solve_cross(problem, numbers, starts[0], name)
        own: list[SinkhornResult | None] = [None, None]
        if debias:
            for side, (points, weights) in enumerate(((problem.x, problem.a), (problem.y, problem.b))):
                own[side] = solve_own(problem.of_itself(points, weights), numbers, starts[1 + side])
        value = _value(problem, numbers, cross, own)
        warn_unconverged(numbers, *(part.error for part in (cross, *own) if part is not None))
        sums = problem.a.sum(-1), problem.b.sum(-1)
        potentials = with_plans(DivergencePotentials(cross, *own), Plan.of(sets, numbers)) if keep else None
    if debias and numbers.strength is not None:
        value = value + 0.5 * numbers.epsilon * (sums[0] - sums[1]) ** 2
    return value, potentials


def _value(problem: Entropic, numbers: Numbers, cross: SinkhornResult, own: list[SinkhornResult | None]) -> Tensor:
    """OT_eps less halves of the problems of x and y with themselves, where they were solved."""
    epsilon = numbers.epsilon
    if not numbers.plain:
        return small.value_at(problem, epsilon, cross.f, cross.g, *(None if part is None else part.f for part in own))
    value = value_of_plain(problem, epsilon, cross.f, cross.g)
    for part, points, weights in zip(own, (problem.x, problem.y), (problem.a, problem.b), strict=True):
        if part is not None:
            value = value - 0.5 * value_of_plain(problem.of_itself(points, weights), epsilon, part.f, part.g)
    return value


def value_of_plain(problem: Entropic, epsilon: float, f: Tensor, g: Tensor) -> Tensor:
    """The dual's value [*B] at potentials as they are, with the derivatives of the optimum near them."""
    value = optimal_value(problem, epsilon, f, g)
    return value + (problem.dual(f, g, epsilon) - value).detach()


def _total(weights: Tensor | None, lengths: Tensor | None) -> Tensor | float:
    return 1.0 if weights is None else members(weights, lengths).sum(-1)
