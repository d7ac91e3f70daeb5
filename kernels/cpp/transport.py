"""Entropic transport on CPUs: small problems, a batch of them in one call with all its sweeps.

The costs of a problem stay in the cache of its thread, in double whatever the points are. Each problem stops where its
own marginals hold. A call is None where the problem asks for more care (``csrc/transport/transport.h``): a value that
is none, weights that are not masses, costs beyond 10^9 epsilon.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast import _cpu
from gwf_fast.kernels.cpp import pairs as pairs  # which checks that the extension is there

LARGEST = {torch.float64: 1 << 16}
"""Pairs of a problem; of float32, whose sums over pairs are faster than double's, half as many."""

Potentials = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def fits(n: int, m: int, dtype: torch.dtype) -> bool:
    """Whether problems of n x m points are small enough."""
    return n * m <= LARGEST.get(dtype, 1 << 15)


class Solver(NamedTuple):
    """What of a problem is not its sets."""

    epsilon: float
    p: int = 2
    strength: float | None = None
    max_iterations: int = 1
    tolerance: float = 0.0
    scaling: float | None = None
    plain: bool = False
    diameter: float | None = None
    only_anneal: bool = False

    def run(
        self,
        x: Tensor,  # [*B, N, D], of at most two batch dimensions
        y: Tensor,  # [*B, M, D]
        a: Tensor | None = None,  # [*B, N]; None: equal, of sum 1
        b: Tensor | None = None,  # [*B, M]
        starts: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),  # [*B, M], [*B, N], [*B, M]
        lengths: tuple[Tensor | None, Tensor | None] = (None, None),  # [*B]
        *,
        itself: bool = False,
        debias: bool = False,
        potentials: tuple[Tensor | None, ...] = (),  # f, g, x_own, y_own
        errors: tuple[Tensor | None, ...] = (),  # of the three problems
        optimum: tuple[Tensor | None, ...] = (),  # value, gradients in x, y, a, b, velocity
    ) -> tuple[int, int, int, float] | None:
        """Write what is given room; sweeps of the three problems, and the largest error."""
        return _cpu.transport(
            x, y, a, b, *starts, *lengths,
            self.epsilon, self.strength or 0.0, self.max_iterations, self.tolerance, self.scaling or 0.0,
            -1.0 if self.diameter is None else self.diameter, self.p,
            itself, debias, self.only_anneal, self.plain, potentials, errors, optimum,
        )  # fmt: skip


def solve_small(
    x: Tensor,  # [B, N, D]
    y: Tensor,  # [B, M, D]; x itself for the problem of a sample with itself
    a: Tensor,  # [B, N]
    b: Tensor,  # [B, M]
    start: Tensor | None,  # [B, M]
    epsilon: float,
    *,
    p: int,
    strength: float | None,
    max_iterations: int,
    tolerance: float,
    plain: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Potentials [B, N] and [B, M], sweeps (of the batch) and marginal errors [B] of problems that ``fits`` allows."""
    itself = x is y and a is b and not plain
    f, error = torch.empty_like(a), a.new_empty(a.shape[0])
    g = f if itself else torch.empty_like(b)
    solver = Solver(epsilon, p, strength, max_iterations, tolerance, plain=plain)
    given = (f, None if itself else g, None, None)
    found = solver.run(x, y, a, b, (start, None, None), itself=itself, potentials=given, errors=(error, None, None))
    return None if found is None else (f, g, torch.tensor(found[0]), error)
