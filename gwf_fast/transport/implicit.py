"""How optimal potentials move with points and weights: optimality conditions, differentiated implicitly.

A linear system with the plan, solved by conjugate gradients whose products are streaming averages: for the gradient of
a potential times a vector, or for its motion along tangents. Neither has derivatives of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gwf_fast.ops import Opaque
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.passes import over, times
from gwf_fast.transport.problem import Entropic


def _potential_slopes(
    v: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    epsilon: float,
    p: int,
    strength: float | None,
    backend: BackendName | None,
    formula: str | None,
    needs: Sequence[bool] = (True,) * 4,
) -> tuple[Tensor | None, ...]:
    """Of <g, v> in x, y, a and b."""
    inputs = [t.detach().requires_grad_(need) for t, need in zip((x, y, a, b), needs, strict=True)]
    fixed = Entropic(x, y, a, b, p, strength, backend, formula)
    q = _masses(fixed.swapped(), epsilon, g, fixed.row_update(g, epsilon))
    w = _solved(fixed, epsilon, g, q, v)
    with torch.enable_grad():
        return _gradients(_surplus(_moving(fixed, inputs), epsilon, g, w), inputs)


def _potential_motion(
    dx: Tensor,
    dy: Tensor,
    da: Tensor,
    db: Tensor,
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    epsilon: float,
    p: int,
    strength: float | None,
    backend: BackendName | None,
    formula: str | None,
) -> Tensor:
    """Of g along tangents of x, y, a and b: the transpose of its gradients."""
    inputs = [t.detach().requires_grad_() for t in (x, y, a, b)]
    fixed = Entropic(x, y, a, b, p, strength, backend, formula)
    q = _masses(fixed.swapped(), epsilon, g, fixed.row_update(g, epsilon))
    with torch.enable_grad():
        w = torch.zeros_like(g).requires_grad_()
        surplus = _surplus(_moving(fixed, inputs), epsilon, g, w)
        right = _along(surplus, inputs, (dx, dy, da, db), w)
    out = _solved(fixed, epsilon, g, q, right)
    return out if strength is not None else out - (q * out).sum(-1, keepdim=True) / q.sum(-1, keepdim=True)


def _masses(problem: Entropic, epsilon: float, f: Tensor, g: Tensor) -> Tensor:
    """What the plan of f and g has in each row: with these, and not those of the optimum, the systems are symmetric.

    Conjugate gradients do not bear less: off by a tolerance of 1e-10, they ended where they liked.
    """
    damping = problem.damping(epsilon)
    surplus = over(damping * f - problem.row_update(g, epsilon), epsilon * damping)
    return torch.where(problem.a > 0, problem.a * surplus.exp(), 0.0)


def _solved(fixed: Entropic, epsilon: float, g: Tensor, q: Tensor, right: Tensor) -> Tensor:
    """w of -J_gg w = right."""
    other, damping = fixed.swapped(), fixed.damping(epsilon)
    f = fixed.row_update(g, epsilon)

    def product(w: Tensor) -> Tensor:
        rows = fixed.row_average(w[..., None], g, epsilon)
        return q * (w - damping**2 * other.row_average(rows, f, epsilon)[..., 0])

    # Where marginals hold exactly constants are in the kernel, and what is asked of g is orthogonal to them.
    return _conjugate_gradients(product, times(right, -epsilon * damping), q, constants=fixed.strength is None)


def _moving(fixed: Entropic, inputs: list[Tensor]) -> Entropic:
    """The problem of other points and weights."""
    x, y, a, b = inputs
    return replace(fixed, x=x, y=y, a=a, b=b)


def _surplus(moving: Entropic, epsilon: float, g: Tensor, w: Tensor) -> Tensor:
    """<column masses - those wanted, w> at a fixed g."""
    mass = moving.row_mass(moving.row_update(g, epsilon))
    rows = moving.row_average(w[..., None], g, epsilon)[..., 0]
    return (mass * rows).sum() - (w * moving.swapped().row_mass(g)).sum()


def _own_slopes(
    v: Tensor,
    x: Tensor,
    a: Tensor,
    f: Tensor,
    epsilon: float,
    p: int,
    strength: float | None,
    backend: BackendName | None,
    formula: str | None,
    needs: Sequence[bool] = (True,) * 2,
) -> tuple[Tensor | None, ...]:
    """Of <f, v> in x and a."""
    fixed = Entropic(x, x, a, a, p, strength, backend, formula)
    mass = _masses(fixed, epsilon, f, f)
    w = mass * _conjugate_gradients(_own_product(fixed, epsilon, f, mass), v, mass)
    u, c = x.detach().requires_grad_(needs[0]), a.detach().requires_grad_(needs[1])
    with torch.enable_grad():
        update = Entropic(u, u, c, c, p, strength, backend, formula).row_update(f, epsilon)
        return _gradients((w * update).sum(), [u, c])


def _own_motion(
    dx: Tensor,
    da: Tensor,
    x: Tensor,
    a: Tensor,
    f: Tensor,
    epsilon: float,
    p: int,
    strength: float | None,
    backend: BackendName | None,
    formula: str | None,
) -> Tensor:
    """Of f along tangents of x and a."""
    fixed = Entropic(x, x, a, a, p, strength, backend, formula)
    mass = _masses(fixed, epsilon, f, f)
    u, c = (t.detach().requires_grad_() for t in (x, a))
    with torch.enable_grad():
        w = torch.zeros_like(f).requires_grad_()
        update = Entropic(u, u, c, c, p, strength, backend, formula).row_update(f, epsilon)
        right = _along((w * update).sum(), [u, c], (dx, da), w)
    return _conjugate_gradients(_own_product(fixed, epsilon, f, mass), mass * right, mass)


def _own_product(fixed: Entropic, epsilon: float, f: Tensor, mass: Tensor) -> Callable[[Tensor], Tensor]:
    def product(z: Tensor) -> Tensor:
        return mass * (z + fixed.damping(epsilon) * fixed.row_average(z[..., None], f, epsilon)[..., 0])

    return product


def _gradients(value: Tensor, inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(value, wanted) if wanted else ())
    return tuple(next(found) if t.requires_grad else None for t in inputs)


def _along(value: Tensor, inputs: list[Tensor], tangents: Sequence[Tensor], w: Tensor) -> Tensor:
    """The derivative along tangents of what is multiplied by w in the value: linear in w, and so its slope in it."""
    slopes = torch.autograd.grad(value, inputs, create_graph=True)
    total = sum((slope * tangent.detach()).sum() for slope, tangent in zip(slopes, tangents, strict=True))
    return torch.autograd.grad(total, w)[0]  # type: ignore[arg-type]


_PATIENCE = 20  # steps without a smaller residual, after which there is none


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, diagonal: Tensor, constants: bool = False
) -> Tensor:
    """Solve a symmetric system for each element of the batch, with the diagonal as preconditioner.

    Where ``constants`` are in the kernel, residuals are kept orthogonal to them: else what rounding leaves there grows
    without bound. The answer is that of the smallest residual.
    """
    tolerance = 1e-12 if right.dtype == torch.float64 else 1e-6
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0.0)

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(-1, keepdim=True)

    def reachable(v: Tensor) -> Tensor:
        return v - diagonal * (v.sum(-1, keepdim=True) / diagonal.sum(-1, keepdim=True)) if constants else v

    w, residual = torch.zeros_like(right), reachable(right)
    z = inverse * residual
    direction, rho = z, dot(residual, z)
    enough, best, least, idle = tolerance**2 * rho, w, rho, 0
    for _ in range(1000):
        if idle >= _PATIENCE or bool((least <= enough).all()):
            break
        image = product(direction)
        curvature = dot(direction, image)
        step = torch.where(curvature > 0, rho / curvature, 0.0)
        w, residual = w + step * direction, reachable(residual - step * image)
        z = inverse * residual
        rho, before = dot(residual, z), rho
        smaller = rho < least
        best, least = torch.where(smaller, w, best), torch.where(smaller, rho, least)
        idle = 0 if bool(smaller.any()) else idle + 1
        direction = z + torch.where(before > 0, rho / before, 0.0) * direction
    return best


class Formulas(NamedTuple):
    """Of a potential: its gradients and its motion."""

    slopes: Callable[..., tuple[Tensor | None, ...]]
    motion: Callable[..., Tensor]


FORMULAS = {
    "potential": Formulas(_potential_slopes, _potential_motion),
    "own_potential": Formulas(_own_slopes, _own_motion),
}
"""On plain tensors."""


def _without_graph(run: Callable[..., Any]) -> Callable[..., Any]:
    """What is called from a transform finds gradients on where they are off for others."""

    def call(*args: Any) -> Any:
        with torch.no_grad():
            return run(*args)

    return call


_INPUTS = {"potential": ("x", "y", "a", "b"), "own_potential": ("x", "a")}
_NUMBERS = "float epsilon, int p, float? strength, str? backend, str? formula"


def _schema(kind: str, what: str, before: Sequence[str], results: str) -> str:
    tensors = ", ".join(f"Tensor {name}" for name in (*before, *_INPUTS[kind], "potential"))
    return f"{kind}_{what}({tensors}, {_NUMBERS}) -> {results}"


SLOPES = {
    kind: Opaque(
        _schema(kind, "slopes", ["v"], f"({', '.join(['Tensor'] * len(names))})"),
        run=_without_graph(FORMULAS[kind].slopes),
        # v, the inputs, the potential and five numbers
        fake=lambda v, *rest: tuple(torch.empty_like(t) for t in rest[:-6]),
    )
    for kind, names in _INPUTS.items()
}
"""As transforms call them."""

MOTIONS = {
    kind: Opaque(
        _schema(kind, "motion", [f"d{name}" for name in names], "Tensor"),
        run=_without_graph(FORMULAS[kind].motion),
        fake=lambda *tensors: torch.empty_like(tensors[-6]),
    )
    for kind, names in _INPUTS.items()
}
