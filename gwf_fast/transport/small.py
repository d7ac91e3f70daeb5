"""Small problems on CPUs: one compiled call from the points to potentials, values, gradients and velocities.

``None`` stands for what is not small, not plain, or asks for more care: the general way, which also says what is wrong
with an argument. Both ways solve the same problems; here each of a batch stops where its own marginals hold.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gwf_fast.ops import dispatch
from gwf_fast.ops.modes import PLAIN, is_eager
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.validation import check_counts
from gwf_fast.transport.cost import half_self_cost, optimal_value
from gwf_fast.transport.problem import Entropic

Starts = tuple[Tensor | None, Tensor | None, Tensor | None]
NO_STARTS: Starts = (None, None, None)


class Sets(NamedTuple):
    """The arguments that are tensors.

    Attributes:
        x: [*B, N, D].
        y: [*B, M, D].
        a: Weights [*B, N]; None: equal, of sum 1.
        b: Weights [*B, M].
        x_lengths: [*B].
        y_lengths: [*B].
        backend: Who was asked for.
        formula: Of a cost that a user wrote, which no compiled call knows.
    """

    x: Tensor
    y: Tensor
    a: Tensor | None = None
    b: Tensor | None = None
    x_lengths: Tensor | None = None
    y_lengths: Tensor | None = None
    backend: BackendName | None = None
    formula: str | None = None

    def of(self, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> Sets:
        """The same with other points and weights."""
        return self._replace(x=x, y=y, a=a, b=b)

    def require_grad(self) -> bool:
        """Whether a result has a graph."""
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in self[:4])

    def module(self, starts: Starts = NO_STARTS) -> ModuleType | None:
        """Who solves them in one call; None: they are not small, or not as they should be."""
        x, y, a, b, x_lengths, y_lengths, backend, formula = self
        if formula is not None or not is_eager():
            return None
        if not (type(x) in PLAIN and type(y) in PLAIN and x.is_cpu and 2 <= x.ndim <= 4):
            return None
        if dispatch.resolve(backend, x.device, x.dtype, False, "transport", x.shape[-1]) != "cpp":
            return None
        rows, columns, dtype = x.shape[:-1], y.shape[:-1], x.dtype
        module = dispatch.load("cpp", "transport")
        if not (rows[-1] and columns[-1] and module.fits(rows[-1], columns[-1], dtype)):
            return None
        for tensor, shape in zip((a, b, *starts), (rows, columns, columns, rows, columns), strict=True):
            if tensor is not None and not (
                type(tensor) in PLAIN and tensor.shape == shape and tensor.dtype is dtype and tensor.is_cpu
            ):
                return None
        check_counts("x_lengths", x_lengths, x, 1)
        check_counts("y_lengths", y_lengths, y, 1)
        return module

    @property
    def lengths(self) -> tuple[Tensor | None, Tensor | None]:
        """Both of them."""
        return self.x_lengths, self.y_lengths


class Solved(NamedTuple):
    """Potentials f [*B, N], g [*B, M], of x and y with themselves, the errors [*B], sweeps, and the largest error."""

    f: Tensor
    g: Tensor
    x_own: Tensor | None
    y_own: Tensor | None
    errors: tuple[Tensor, Tensor | None, Tensor | None]
    sweeps: tuple[int, int, int]
    largest: float


def solve(sets: Sets, start: Tensor | None, **options: Any) -> Solved | None:
    """Potentials; one for both, by averaged updates, where both sets are one tensor with the same weights."""
    module = sets.module((start, None, None))
    if module is None:
        return None
    x, y = sets.x, sets.y
    itself = not options["plain"] and x is y and sets.a is sets.b and sets.x_lengths is sets.y_lengths
    f, error = _row(x), _number(x)
    g = f if itself else _row(y)
    given = (f, None if itself else g, None, None)
    found = module.Solver(**options).run(
        *sets[:4], (start, None, None), sets.lengths, itself=itself, potentials=given, errors=(error, None, None)
    )
    return None if found is None else Solved(f, g, None, None, (error, None, None), found[:3], found[3])


def divergence(
    sets: Sets,
    starts: Starts,
    rebuild: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Entropic],
    *,
    debias: bool,
    keep: bool,
    **options: Any,
) -> tuple[Tensor, Solved | None, float] | None:
    """Value [*B], differentiable twice, the potentials where they are to be kept, and the largest error.

    Args:
        sets: The arguments.
        starts: Potentials to start from.
        rebuild: The problem of x, y, a and b for derivatives of second order.
        debias: Whether the problems of x and y with themselves count.
        keep: Whether potentials are wanted.
        options: Of the solver.
    """
    module = sets.module(starts)
    if module is None:
        return None
    x, y, a, b = sets[:4]
    graph = sets.require_grad()
    value = _number(x)
    kept = _Room.of(x, y, debias, debias) if keep or graph else None
    slopes: tuple[Tensor | None, ...] = (None,) * 4
    if graph:
        slopes = tuple(_like(t) if t is not None and t.requires_grad else None for t in (x, y, a, b))
    found = module.Solver(**options).run(
        *sets[:4], starts, sets.lengths, debias=debias, optimum=(value, *slopes, None),
        potentials=kept.potentials if kept else (), errors=kept.errors if kept else (),
    )  # fmt: skip
    if found is None:
        return None
    solved = kept.filled(found) if kept else None
    if graph:
        assert solved is not None
        value = _Divergence.apply(x, y, a, b, _Known([value], slopes, solved, options["epsilon"], rebuild))
    return value, solved, found[3]


def velocity(sets: Sets, starts: Starts, *, keep: bool, **options: Any) -> tuple[Tensor, Solved | None, float] | None:
    """The velocity of the divergence's flow [*B, N, D] as ``divergence`` gives its value, where no graph is wanted."""
    module = None if sets.require_grad() else sets.module(starts)
    if module is None:
        return None
    x, y = sets.x, sets.y
    out = _like(x)
    kept = _Room.of(x, y, True, False) if keep else None
    found = module.Solver(**options).run(
        *sets[:4], starts, sets.lengths, optimum=(None, None, None, None, None, out),
        potentials=kept.potentials if kept else (), errors=kept.errors if kept else (),
    )  # fmt: skip
    if found is None:
        return None
    solved = kept.filled(found) if kept else None
    return out, solved, found[3]


def value_at(problem: Entropic, epsilon: float, f: Tensor, g: Tensor, *own: Tensor | None) -> Tensor:
    """OT_eps [*B] at the potentials, less halves of those of x and of y with themselves where theirs are given."""
    value = optimal_value(problem, epsilon, f, g)
    for potential, points, weights in zip(own, (problem.x, problem.y), (problem.a, problem.b), strict=True):
        if potential is not None:
            value = value - half_self_cost(problem.of_itself(points, weights), epsilon, potential)
    return value


def _like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _row(points: Tensor) -> Tensor:
    return points.new_empty(points.shape[:-1])


def _number(points: Tensor) -> Tensor:
    return points.new_empty(points.shape[:-2])


class _Room(NamedTuple):
    """Where the call writes potentials and errors that are to be kept."""

    potentials: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    errors: tuple[Tensor, Tensor | None, Tensor | None]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, x_own: bool, y_own: bool) -> _Room:
        potentials = _row(x), _row(y), _row(x) if x_own else None, _row(y) if y_own else None
        return cls(potentials, (_number(x), _number(x) if x_own else None, _number(x) if y_own else None))

    def filled(self, found: tuple[int, int, int, float]) -> Solved:
        return Solved(*self.potentials, self.errors, found[:3], found[3])


class _Known(NamedTuple):
    """What the call found, for its place in a graph."""

    value: list[Tensor]  # taken out of it: a graph that held its own result would never be freed
    slopes: tuple[Tensor | None, ...]
    solved: Solved
    epsilon: float
    rebuild: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Entropic]


class _Divergence(torch.autograd.Function):
    """Gradients came with the value; whoever differentiates them goes the general way, from the same potentials."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, known: _Known) -> Tensor:
        ctx.save_for_backward(x, y, a, b)
        ctx.known = known
        return known.value.pop()

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        known, saved, needs = ctx.known, ctx.saved_tensors, ctx.needs_input_grad[:4]
        if not torch.is_grad_enabled():
            return *(
                None if slope is None else u[..., None, None] * slope if at < 2 else u[..., None] * slope
                for at, slope in enumerate(known.slopes)
            ), None
        inputs = [None if t is None else t.view_as(t) for t in saved]  # one tensor on both sides has two derivatives
        solved = known.solved
        value = value_at(known.rebuild(*inputs), known.epsilon, solved.f, solved.g, solved.x_own, solved.y_own)
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
        found = iter(torch.autograd.grad(value, wanted, u, create_graph=True))
        return *(next(found) if need else None for need in needs), None
