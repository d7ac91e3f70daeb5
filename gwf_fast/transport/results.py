"""What solvers of transport return, and take to start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gwf_fast.transport.small import NO_STARTS, Solved, Starts


@dataclass(frozen=True)
class SinkhornResult:
    """Dual potentials of entropic transport.

    Attributes:
        f: Potential at x, [*B, N].
        g: Potential at y, [*B, M].
        n_iterations: Sweeps over both sides, the most that a problem of the batch took; a tensor while a CUDA graph is
            captured.
        error: What is left of the marginal error [*B]: sum_j |sum_i pi_ij - b_j| over the total weight.
    """

    f: Tensor
    g: Tensor
    n_iterations: int | Tensor
    error: Tensor


@dataclass(frozen=True)
class DivergencePotentials:
    """The solutions that a Sinkhorn divergence or its drift rests on: a start for the next one, close by.

    Attributes:
        cross: Of x and y.
        x_own: Of x with itself, f = g; None where it was not needed.
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


def potentials_of(solved: Solved) -> DivergencePotentials:
    """What one call found."""
    (error, *own_errors), (sweeps, *own_sweeps) = solved.errors, solved.sweeps
    own = [
        None if f is None or left is None else SinkhornResult(f, f, n, left)
        for f, n, left in zip((solved.x_own, solved.y_own), own_sweeps, own_errors, strict=True)
    ]
    return DivergencePotentials(SinkhornResult(solved.f, solved.g, sweeps, error), own[0], own[1])


def starts_of(start: Any) -> Starts:
    """The potentials to start from in an argument; none where it is None."""
    if start is None:
        return NO_STARTS
    if not isinstance(start, DivergencePotentials):
        raise TypeError(f"start must be DivergencePotentials, from return_potentials, got {type(start).__name__}")
    x_own, y_own = start.x_own, start.y_own
    return start.cross.g, None if x_own is None else x_own.f, None if y_own is None else y_own.f
