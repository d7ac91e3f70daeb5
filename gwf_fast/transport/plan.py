"""The plan of a solution, as what it does to values: it is never stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gwf_fast.ops.modes import is_eager
from gwf_fast.pairs.passes import over
from gwf_fast.pairs.ragged import members
from gwf_fast.transport.arguments import Numbers, make_problem
from gwf_fast.transport.problem import Entropic
from gwf_fast.transport.small import Sets


class Plan(NamedTuple):
    """The problem that potentials belong to, as it was given: what is formed of it is formed when it is asked for.

    Attributes:
        sets: The arguments that are tensors, without their graphs.
        numbers: Those that are numbers.
        versions: How often the tensors had been written to.
    """

    sets: Sets
    numbers: Numbers
    versions: tuple[int | None, ...]

    @classmethod
    def of(cls, sets: Sets, numbers: Numbers) -> Plan:
        """Of a problem that was solved."""
        known: dict[int, Tensor] = {}  # one tensor on both sides stays one

        def fixed(t: Any) -> Any:
            return t if t is None or not t.requires_grad else known.setdefault(id(t), t.detach())

        x, y, a, b = sets[:4]
        return cls(sets.of(fixed(x), fixed(y), fixed(a), fixed(b)), numbers, _versions(sets))

    def of_itself(self, side: str) -> Plan:
        """The problem of one of the samples with itself."""
        x, y, a, b, x_lengths, y_lengths, backend, formula = self.sets
        points, weights, lengths = (x, a, x_lengths) if side == "x" else (y, b, y_lengths)
        sets = Sets(points, points, weights, weights, lengths, lengths, backend, formula)
        return self._replace(sets=sets, versions=_versions(sets))

    @property
    def problem(self) -> Entropic:
        """The problem, without a graph.

        Raises:
            RuntimeError: If its points or weights are no longer what they were.
        """
        if _versions(self.sets) != self.versions:
            raise RuntimeError("the points or weights of this result were modified in place since: its plan is gone")
        with torch.no_grad():
            return make_problem(self.sets, self.numbers).detached()

    def apply(self, f: Tensor, g: Tensor, values: Tensor, to_x: bool) -> Tensor:
        """The plan times values [*B, M, C], or its transpose times values [*B, N, C]; differentiable in the values."""
        problem, epsilon = self.problem, self.numbers.epsilon
        lengths, others = self.sets.x_lengths, self.sets.y_lengths
        if not to_x:
            problem, f, g, lengths, others = problem.swapped(), g, f, others, lengths
        mean = problem.row_average(members(values, others), g, epsilon)
        best = problem.row_update(g, epsilon)
        mass = problem.row_mass(best) * torch.exp(over(f - best, epsilon))
        mass = torch.where(problem.a > 0, mass, 0.0)  # beyond the lengths f is 0, and not what the sums say
        return members(mass[..., None] * mean, lengths)


def _versions(sets: Sets) -> tuple[int | None, ...]:
    """Counts that a write in place raises; None where there are none, as in inference mode and traces."""
    eager = is_eager()
    return tuple(None if t is None or not eager or t.is_inference() else t._version for t in sets[:6])
