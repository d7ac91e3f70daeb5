"""The cost of moving mass from x to y: a power of their distance, that of their directions, or a user's formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from gwf_fast.ops.modes import is_readable
from gwf_fast.pairs.formula import Radial, read_cost
from gwf_fast.pairs.ragged import exists
from gwf_fast.pairs.validation import as_number, check_counts

if TYPE_CHECKING:
    import sympy as sp

    Cost: TypeAlias = Literal["cosine"] | sp.Expr | Radial
else:  # importing gwf_fast imports nothing heavy
    Cost = "Literal['cosine'] | sp.Expr | Radial"
"""What a cost is given as, where it is no power of the distance."""


@dataclass(frozen=True)
class Ground:
    """A cost c(x, y) as a function of the distance between what points are mapped to.

    Attributes:
        p: It is r^p / p, p = 1 or 2.
        formula: Or the name of the profile exp(-p c) of a formula c, where p is one over an epsilon.
        factor: What points are multiplied with.
        directions: Whether points are divided by their lengths.
    """

    p: int = 2
    formula: str | None = None
    factor: float = 1.0
    directions: bool = False

    @property
    def maps(self) -> bool:
        """Whether the points are not taken as they are."""
        return self.directions or self.factor != 1.0

    def points(self, name: str, x: Tensor, lengths: Tensor | None) -> Tensor:
        """The points [*B, N, D] whose distances the cost is of, differentiable.

        Raises:
            ValueError: A direction of a point at the origin.
        """
        if not self.directions:
            return x if self.factor == 1.0 else self.factor * x
        check_counts(f"{name}_lengths", lengths, x, 1)
        unit, length = _unit(x, lengths)
        if is_readable(x) and bool((length == 0).any()):
            raise ValueError(f"{name} must have no point at the origin, which has no direction, for cost='cosine'")
        return unit

    def pull(self, x: Tensor, lengths: Tensor | None, velocity: Tensor) -> Tensor:
        """What a velocity [*B, N, D], minus a gradient, of mapped points is of the points themselves."""
        if not self.directions:
            return velocity if self.factor == 1.0 else self.factor * velocity
        unit, length = _unit(x, lengths)
        return (velocity - unit * (unit * velocity).sum(-1, keepdim=True)) / length


def sets_of(
    ground: Ground, x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both samples as the ground maps them; one tensor stays one."""
    if not ground.maps:
        return x, y
    u = ground.points("x", x, x_lengths)
    same = x is y and x_lengths is y_lengths
    return u, u if same else ground.points("y", y, y_lengths)


def _unit(x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Directions [*B, N, D], 0 beyond the lengths, and lengths [*B, N, 1], 1 there."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)  # squares stay within the type
    scaled = x / scale
    if lengths is not None:
        present = exists(x, lengths)[..., None]
        scaled = torch.where(present, scaled, 0.0)
        length = torch.where(present, scaled, 1.0).norm(dim=-1, keepdim=True)
        return scaled / length, torch.where(present, scale * length, 1.0)
    length = scaled.norm(dim=-1, keepdim=True)
    return scaled / length, scale * length


# ---------------------------------------------------------------------------------------------- from arguments

_POWERS = {1: Ground(1), 2: Ground(2)}
_COSINE = Ground(2, directions=True)
_KNOWN: dict[str, tuple[int, float, str | None]] = {}


def ground_of(p: Any, cost: Any) -> Ground:
    """The cost that arguments of a user ask for.

    Raises:
        ValueError, TypeError: If there is no such cost.
    """
    if cost is None:
        if type(p) is not int:
            p = as_number("p", p, "1 or 2")
        if p not in (1, 2):
            raise ValueError(f"p must be 1 or 2, got {p!r}")
        return _POWERS[int(p)]
    if p != 2:
        raise ValueError(f"p must be left alone beside cost, got {p!r}")
    if isinstance(cost, Radial):
        return _of_profile(cost.terms[0].profile)
    if isinstance(cost, str):
        if cost != "cosine":
            raise ValueError(f"cost must be None, 'cosine' or a SymPy expression in s and r, got {cost!r}")
        return _COSINE
    return _of_profile(Radial.profile_of("cost", cost))


def _of_profile(name: str) -> Ground:
    """The cost of a formula that is known by a name; those that are powers need no formula."""
    p, factor, formula = _read(name)
    return Ground(p, formula, factor)


def _read(name: str) -> tuple[int, float, str | None]:
    if name not in _KNOWN:
        _KNOWN[name] = read_cost(name)
    return _KNOWN[name]


# torch.compile calls it, and takes the answer as a constant.
_read._dynamo_marked_constant = True  # type: ignore[attr-defined]
