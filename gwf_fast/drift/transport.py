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
from gwf_fast.transport.arguments import Numbers, make_problem
from gwf_fast.transport.cost import moving_own_potential, moving_potential
from gwf_fast.transport.results import DivergencePotentials, potentials_of, starts_of
from gwf_fast.transport.sinkhorn import SolverOptions, solve_cross, solve_own, warn_unconverged


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
    the rows of both plans.

    A flow is cheaper from the potentials of the step before:
        ``v, potentials = drift.sinkhorn(x, y, epsilon=0.01, start=potentials, return_potentials=True)``

    Differentiable once, through the solution (its optimality conditions, implicitly), as exactly as it is converged.

    Args:
        x: Particles [*B, N, D].
        y: Samples [*B, M, D].
        epsilon: Regularisation eps > 0, for the cost r^2/2.
        x_weights: a [*B, N]; None means 1 / N.
        y_weights: b [*B, M]; None means 1 / M.
        max_iterations: As in ``sinkhorn``.
        tolerance: As in ``sinkhorn``.
        marginal_strength: As in ``sinkhorn``.
        scaling: As in ``sinkhorn``.
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
    numbers = Numbers.of(epsilon, max_iterations, tolerance, scaling, marginal_strength)
    epsilon, max_iterations, tolerance, scaling, marginal_strength = numbers
    cross_start, own_start, _ = starts_of(start)
    sets = small.Sets(x, y, x_weights, y_weights, x_lengths, y_lengths, backend)
    known = small.velocity(sets, (cross_start, own_start, None), keep=return_potentials, **numbers._asdict())
    if known is not None:
        velocity, solved, largest = known
        warn_unconverged(tolerance, largest)
        return velocity if solved is None else (velocity, potentials_of(solved))
    problem = make_problem(x, y, x_weights, y_weights, marginal_strength, x_lengths, y_lengths, backend)
    own = problem.of_itself(problem.x, problem.a)
    cross = solve_cross(problem, epsilon, max_iterations, tolerance, scaling, cross_start)
    itself = solve_own(own, epsilon, max_iterations, tolerance, own_start)
    # The potentials move with the points and the weights: what is differentiated is the solution.
    moving = (problem, moving_potential(problem, epsilon, cross.g)), (own, moving_own_potential(own, epsilon, itself.g))
    towards, away = (part.row_average(None, g, epsilon) for part, g in moving)
    if problem.strength is not None:
        for_cross, for_itself = (part.row_share(part.row_update(g, epsilon))[..., None] for part, g in moving)
        towards, away = for_cross * (towards - problem.x), for_itself * (away - problem.x)
    velocity = members(towards - away, x_lengths)
    warn_unconverged(tolerance, cross.error, itself.error)
    return (velocity, DivergencePotentials(cross, itself)) if return_potentials else velocity
