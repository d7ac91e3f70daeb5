"""What solvers of transport return, and take to start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gwf_fast.ops.ambient import entry
from gwf_fast.pairs.validation import check_companion
from gwf_fast.transport.plan import Plan
from gwf_fast.transport.small import NO_STARTS, Solved, Starts


@dataclass(frozen=True)
class SinkhornResult:
    """Dual potentials of entropic transport.

    Attributes:
        f: Potential at x, [*B, N].
        g: Potential at y, [*B, M].
        n_iterations: Sweeps over both sides, the most that a problem of the batch took; a tensor while a CUDA graph is
            captured.
        error: What is left of the marginal error [*B]: sum_j |sum_i pi_ij - b_j| over the total weight; of the rows,
            sum_i |sum_j pi_ij - a_i|, after plain sweeps.
    """

    f: Tensor
    g: Tensor
    n_iterations: int | Tensor
    error: Tensor
    _plan: ClassVar[Plan | None] = None  # in each result its own: what it needs is no part of what it says

    @entry
    def apply(self, v: Tensor, side: Literal["x", "y"] = "x") -> Tensor:
        """The plan times values, (pi v)_i = sum_j pi_ij v_j, or its transpose, (pi' v)_j = sum_i pi_ij v_i; streaming.

        Labels, colours or any features are carried over so; over the weights, ``result.apply(v) / a[..., None]``, they
        are averages. Of values 1 it is what the plan's marginals are. The plan is that of the potentials as they are,
        converged or not; with ``marginal_strength`` its mass is what is left of a and b.

        Args:
            v: Values at y, [*B, M, C] or [*B, M]; at x, [*B, N, C] or [*B, N], with ``side="y"``.
            side: Where the result is: "x" for the plan, "y" for its transpose.

        Returns:
            [*B, N, C] or [*B, N]; [*B, M, C] or [*B, M] with ``side="y"``. Differentiable in v. The plan is a constant:
            ``drift.sinkhorn``, ``transport_cost`` and ``sinkhorn_divergence`` are differentiated through the solution.

        Raises:
            ValueError, TypeError: If v does not fit the sets, or there is no such side.
            RuntimeError: If the points or weights were modified in place after they were transported, or the result is
                of no solver.
        """
        if side not in ("x", "y"):
            raise ValueError(f"side must be 'x' or 'y', got {side!r}")
        if self._plan is None:
            raise RuntimeError("a plan needs a result of sinkhorn() itself, of tensors: it is of the sets that came")
        sets = self._plan.sets
        of, points = ("y", sets.y) if side == "x" else ("x", sets.x)
        check_companion("v", v, points, channels=True, y_name=of)
        single = v.ndim == points.ndim - 1
        out = self._plan.apply(self.f, self.g, v[..., None] if single else v, side == "x")
        return out[..., 0] if single else out


def of_plan(result: SinkhornResult, plan: Plan) -> SinkhornResult:
    """The result with the problem that it is the solution of."""
    object.__setattr__(result, "_plan", plan)  # as dataclasses themselves do where they are frozen
    return result


@dataclass(frozen=True)
class DivergencePotentials:
    """The solutions that a Sinkhorn divergence or its drift rests on: a start for the next one, close by.

    Attributes:
        cross: Of x and y.
        x_own: Of x with itself, f = g (but of plain sweeps); None where it was not needed.
        y_own: Of y with itself, likewise.
    """

    cross: SinkhornResult
    x_own: SinkhornResult | None = None
    y_own: SinkhornResult | None = None

    @property
    def error(self) -> Tensor:
        """The largest marginal error [*B] of the problems."""
        parts = [part.error for part in (self.cross, self.x_own, self.y_own) if part is not None]
        return torch.stack(parts).amax(0)


def potentials_of(solved: Solved, plan: Plan) -> DivergencePotentials:
    """What one call found, of the problem of both samples."""
    (error, *own_errors), (sweeps, *own_sweeps) = solved.errors, solved.sweeps
    own = [
        None if f is None or left is None else SinkhornResult(f, f, n, left)
        for f, n, left in zip((solved.x_own, solved.y_own), own_sweeps, own_errors, strict=True)
    ]
    return with_plans(DivergencePotentials(SinkhornResult(solved.f, solved.g, sweeps, error), own[0], own[1]), plan)


def with_plans(potentials: DivergencePotentials, plan: Plan) -> DivergencePotentials:
    """The potentials with the problems that they are the solutions of, by that of both samples."""
    of_plan(potentials.cross, plan)
    for side, part in (("x", potentials.x_own), ("y", potentials.y_own)):
        if part is not None:
            of_plan(part, plan.of_itself(side))
    return potentials


def starts_of(start: Any) -> Starts:
    """The potentials to start from in an argument; none where it is None."""
    if start is None:
        return NO_STARTS
    if not isinstance(start, DivergencePotentials):
        raise TypeError(f"start must be DivergencePotentials, from return_potentials, got {type(start).__name__}")
    x_own, y_own = start.x_own, start.y_own
    return start.cross.g, None if x_own is None else x_own.g, None if y_own is None else y_own.g
