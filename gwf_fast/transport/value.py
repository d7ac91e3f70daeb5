"""``transport_cost``: what the optimal plan costs, with its regularisation or without."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from gwf_fast.ops.ambient import entry, widens
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.passes import over
from gwf_fast.pairs.validation import check_pair
from gwf_fast.transport import small
from gwf_fast.transport.arguments import Numbers, Sweeps, make_problem
from gwf_fast.transport.cost import moving_potential
from gwf_fast.transport.ground import Cost, ground_of, sets_of
from gwf_fast.transport.problem import Entropic
from gwf_fast.transport.results import SinkhornResult
from gwf_fast.transport.sinkhorn import divergence
from gwf_fast.transport.solutions import solve

Form: TypeAlias = Literal["entropic", "linear"]


@entry
@widens
def transport_cost(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    form: Form = "entropic",
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
) -> Tensor:
    """What entropic optimal transport costs: with its regularisation ("entropic"), or <pi, c> alone ("linear").

    With pi the optimal plan of min <pi, c> + eps KL(pi | a x b), KL(pi | q) = sum pi log(pi / q) - sum pi + sum q:

    - "entropic" is that minimum, by the dual's value <a, f> + <b, g>: POT's ``ot.solve(reg_type="KL").value``, OTT's
      ``reg_ot_cost`` and geomloss' ``SamplesLoss("sinkhorn", debias=False)`` (epsilon = blur^p). With Cuturi's entropy
      in place of KL, <pi, c> - eps H(pi), it is less by eps (H(a) + H(b)), H(a) = -sum a log a.
    - "linear" is <pi, c>: POT's ``ot.sinkhorn2`` and ``value_linear``, OTT's ``primal_cost``.

    The cost is r^2/2; ``cost=s`` is that of r^2. Where weights have another sum than 1, the same for both, it is still
    <a, f> + <b, g>, the minimum without the terms of KL that are constant. With ``marginal_strength`` rho the minimum
    has rho KL(pi 1 | a) + rho KL(pi' 1 | b) too. Without the bias of a sample to itself: ``sinkhorn_divergence``.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        epsilon: Regularisation eps > 0, in units of the cost.
        form: "entropic" or "linear".
        x_weights: a [*B, N]; None means 1 / N.
        y_weights: b [*B, M]; None means 1 / M.
        max_iterations: As in ``sinkhorn``.
        tolerance: As in ``sinkhorn``. "entropic" is off by the square of the marginal error, "linear" by it.
        marginal_strength: As in ``sinkhorn``.
        scaling: As in ``sinkhorn``.
        p: As in ``sinkhorn``.
        cost: As in ``sinkhorn``.
        sweeps: As in ``sinkhorn``; of plain ones the value is that of the potentials as they are.
        start: The result of an earlier, similar problem, or its g [*B, M].
        x_lengths: Sizes [*B], int64, of ragged sets padded to N.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B], differentiable in points and weights through the solution (its optimality conditions, not the sweeps), as
        exactly as that is converged: "entropic" twice, "linear" once. Derivatives in weights whose sums are to stay
        equal are given up to a constant.

    Raises:
        ValueError, TypeError: If an argument is out of range or does not fit the others.
        NotImplementedError: If "linear" is differentiated twice.

    Warns:
        RuntimeWarning: If ``tolerance`` was not reached.
    """
    check_pair(x, y)
    if form not in get_args(Form):
        raise ValueError(f"form must be 'entropic' or 'linear', got {form!r}")
    ground = ground_of(p, cost)
    numbers = Numbers.of(epsilon, max_iterations, tolerance, scaling, marginal_strength, sweeps, ground)
    u, v = sets_of(ground, x, y, x_lengths, y_lengths)
    sets = small.Sets(u, v, x_weights, y_weights, x_lengths, y_lengths, backend, ground.formula)
    g = start.g if isinstance(start, SinkhornResult) else start
    if form == "entropic":
        return divergence(sets, numbers, (g, None, None), debias=False, keep=False, name="start")[0]
    solution = solve(sets, numbers, g)
    return linear_value(make_problem(sets, numbers), numbers.epsilon, solution.f, solution.g)


def linear_value(problem: Entropic, epsilon: float, f: Tensor, g: Tensor) -> Tensor:
    """<pi, c> [*B] at the potentials, with the first derivatives of the optimum near them."""
    g = moving_potential(problem, epsilon, g)
    best = problem.row_update(g, epsilon)
    # where rows are not exact, after plain sweeps, their masses are not the optimum's
    mass = problem.row_mass(best) * torch.exp(over(f - best, epsilon)).detach()
    mass = torch.where(problem.a > 0, mass, 0.0)
    return (mass * problem.row_cost(g, epsilon)).sum(-1)
