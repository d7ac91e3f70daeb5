"""What a functional tells the compiled loop of a JKO step: its compiled form.

The loop solves (``csrc/primal_dual/primal_dual.h``)

inf_T sup_h E |x - T u|^2 / (2a) + c [E A(h(w(T u))) - E_Gamma B(h(z)) + E [log mu - log Q](T u)] + R(T u).

A functional fills in its part: ``Functional.fused_form`` returns one of the two
classes here, or why there is none, and engines know no functional by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from gwf_fast.functionals.evaluation import Target, draw_target
from gwf_fast.kernels.table.mlp import CompiledDensity
from gwf_fast.nn.divergences import Objective
from gwf_fast.potentials import Density, Gaussian
from gwf_fast.randomness.draws import Draws


class Frame(NamedTuple):
    """The coordinates that a critic sees, w(y) = matrix (y - mean).

    Attributes:
        mean: [D].
        matrix: [D, D], lower triangular.
        log_norm: Where the map minimises log mu as well, mu the Gaussian that w whitens: log of its normalisation.
        map_scale: What the critic's part of the map's objective is multiplied by.
    """

    mean: Tensor
    matrix: Tensor
    log_norm: float | None = None
    map_scale: float = 1.0


def whitening(mu: Gaussian) -> Frame:
    """Of a Gaussian whose log mu the map minimises as well."""
    form = mu.compiled()
    (mean, matrix), (log_norm,) = form.arrays, form.numbers
    return Frame(mean, matrix, log_norm)


@dataclass(frozen=True)
class CalledBack:
    """A term without a critic: the loop asks ``map_objective`` for its value and gradient.

    Attributes:
        draws: Counted draws (``Draws``) that ``draw`` makes an iteration; None where that isn't known. A term with a
            critic draws after it.
    """

    draws: int | None = 0
    replaces: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class CriticForm:
    """A term with a critic, evaluated by the loop itself.

    Attributes:
        objective: A and B, of the table of divergences.
        samples: z: the tensor [M, D] that minibatches of Q are drawn from; None for standard normals; or a function
            (n, reference, draws) -> [n, D] that the loop asks in every iteration. Where there is a frame, in its
            coordinates.
        draws: Counted draws that z takes an iteration.
        penalty: lambda of the gradient penalty; 0 for none.
        density: log Q, which the map maximises; "none" where it doesn't enter.
        log_q: log Q as a function [M, D] -> [M] that is called back, where it has no compiled form; else None.
        frame: What the critic sees, given ``Functional.reference``; None where it sees the points.
    """

    objective: Objective
    samples: Tensor | Callable[[int, Any, Draws], Tensor] | None
    draws: int = 0
    penalty: float = 0.0
    density: CompiledDensity = CompiledDensity()  # noqa: RUF009 - frozen
    log_q: Callable[[Tensor], Tensor] | None = None
    frame: Callable[[Any], Frame] | None = None
    replaces: ClassVar[tuple[str, ...]] = ("reference", "draw", "critic_objective", "map_objective")

    @classmethod
    def of_target(cls, objective: Objective, target: Target, penalty: float = 0.0) -> CriticForm:
        """Of a functional whose Q is known by samples."""
        if isinstance(target, Tensor):
            return cls(objective, target, draws=1, penalty=penalty)
        return cls(objective, lambda n, reference, draws: draw_target(target, n, draws), penalty=penalty)


FusedForm = CalledBack | CriticForm


def form_of(term: Any) -> FusedForm | str:
    """The compiled form of a functional that is no sum, or why it has none.

    A class that changes what a form stands for, and inherits the form, has none: it would be another's.
    """
    form = term.fused_form()
    if isinstance(form, str):
        return form
    changed = overridden(type(term), "fused_form", form.replaces)
    if changed is not None:
        return f"has its own {changed}, but the compiled form of another class"
    if isinstance(form, CalledBack) and overridden(type(term), "fused_form", ("draw",)):
        return dataclasses.replace(form, draws=None)
    return form


def compiled_of(density: Any) -> CompiledDensity | None:
    """The compiled form of a density; None where it has none, is a function, or is no ``Density``."""
    if not isinstance(density, Density) or overridden(type(density), "compiled", ("log_density",)):
        return None
    return density.compiled()


def overridden(cls: type, form: str, methods: tuple[str, ...]) -> str | None:
    """The first of some methods that comes from a class below the one that tells the form; None where none does."""

    def depth(name: str) -> int:
        return next(i for i, owner in enumerate(cls.__mro__) if name in vars(owner))

    return next((name for name in methods if depth(name) < depth(form)), None)
