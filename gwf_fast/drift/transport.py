"""The velocity of the flow of the Sinkhorn divergence."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor
from typing_extensions import Unpack

from gwf_fast.ops.ambient import entry
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.ragged import members
from gwf_fast.pairs.validation import check_pair
from gwf_fast.transport import small
from gwf_fast.transport.arguments import Numbers, Sweeps, make_problem
from gwf_fast.transport.cost import moving_own_potential, moving_potential
from gwf_fast.transport.ground import Cost, ground_of, sets_of
from gwf_fast.transport.plan import Plan
from gwf_fast.transport.problem import Entropic
from gwf_fast.transport.results import DivergencePotentials, potentials_of, starts_of, with_plans
from gwf_fast.transport.sinkhorn import SolverOptions
from gwf_fast.transport.solutions import solve_cross, solve_own, warn_unconverged


@overload
def sinkhorn(
    x: Tensor, y: Tensor, *, epsilon: float, return_potentials: Literal[False] = False, **options: Unpack[SolverOptions]
) -> Tensor: ...
@overload
def sinkhorn(
    x: Tensor, y: Tensor, *, epsilon: float, return_potentials: Literal[True], **options: Unpack[SolverOptions]
) -> tuple[Tensor, DivergencePotentials]: ...
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
    start: DivergencePotentials | None = None,
    return_potentials: bool = False,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor | tuple[Tensor, DivergencePotentials]:
    """Velocity T_ab(x_i) - T_aa(x_i) [*B, N, D] of the flow of the Sinkhorn divergence; ``gwf.drift.sinkhorn``.

    T_ab and T_aa are the barycentric maps of the plans from x to y and from x to itself; minus the gradient of the
    divergence in x_i, over the weight a_i. For eps -> 0 the displacement of optimal transport, for eps -> infinity the
    difference of the means. With ``marginal_strength``, (m_ab (T_ab - x) - m_aa (T_aa - x)) / a with the masses m of
    the rows of both plans. For other costs than r^2/2, means of -grad_x c(x_i, y_j) under the plans stand for T - x: of
    unit vectors towards y_j for p = 1.

    A flow is cheaper from the potentials of the step before:
        ``v, potentials = drift.sinkhorn(x, y, epsilon=0.01, start=potentials, return_potentials=True)``

    Differentiable once, through the solution (its optimality conditions, implicitly), as exactly as it is converged.

    Args:
        x: Particles [*B, N, D].
        y: Samples [*B, M, D].
        epsilon: Regularisation eps > 0, in units of the cost.
        x_weights: a [*B, N]; None means 1 / N.
        y_weights: b [*B, M]; None means 1 / M.
        max_iterations: As in ``sinkhorn``.
        tolerance: As in ``sinkhorn``.
        marginal_strength: As in ``sinkhorn``.
        scaling: As in ``sinkhorn``.
        p: As in ``sinkhorn``.
        cost: As in ``sinkhorn``.
        sweeps: As in ``sinkhorn``. Plain ones solve the problem of x with itself likewise, f then g from 0, and T
            divides by the masses that the rows of both plans then have.
        start: Potentials of an earlier, similar problem.
        return_potentials: Return ``DivergencePotentials`` as well, which carry the marginal errors reached.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N; rows beyond give 0.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

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
    velocity, potentials = _velocity(sets, numbers, start, return_potentials)
    velocity = members(ground.pull(x, x_lengths, velocity), x_lengths)
    return velocity if potentials is None else (velocity, potentials)


def _velocity(
    sets: small.Sets, numbers: Numbers, start: DivergencePotentials | None, keep: bool
) -> tuple[Tensor, DivergencePotentials | None]:
    """The velocity of the points whose distances the cost is of, and the potentials if they are kept."""
    cross_start, own_start, _ = starts_of(start)
    known = None
    if not numbers.plain:
        known = small.velocity(sets, (cross_start, own_start, None), keep=keep, **numbers._asdict())
    if known is not None:
        velocity, solved, largest = known
        warn_unconverged(numbers, largest)
        return velocity, None if solved is None else potentials_of(solved, Plan.of(sets, numbers))
    problem = make_problem(sets, numbers)
    own = problem.of_itself(problem.x, problem.a)
    cross, itself = solve_cross(problem, numbers, cross_start), solve_own(own, numbers, own_start)
    # The potentials move with the points and the weights: what is differentiated is the solution.
    epsilon, moving_own = numbers.epsilon, moving_potential if numbers.plain else moving_own_potential
    g, own_g = moving_potential(problem, epsilon, cross.g), moving_own(own, epsilon, itself.g)
    velocity = _towards(problem, g, epsilon) - _towards(own, own_g, epsilon)
    warn_unconverged(numbers, cross.error, itself.error)
    potentials = with_plans(DivergencePotentials(cross, itself), Plan.of(sets, numbers)) if keep else None
    return velocity, potentials


def _towards(problem: Entropic, g: Tensor, epsilon: float) -> Tensor:
    """Where a plan draws the points [*B, N, D]: to T(x) for r^2/2, else along -grad c; by their mass left."""
    if problem.strength is not None:
        return problem.row_share(problem.row_update(g, epsilon))[..., None] * -problem.row_slope(g, epsilon)
    if problem.p == 2 and problem.formula is None:
        return problem.row_average(None, g, epsilon)
    return -problem.row_slope(g, epsilon)
