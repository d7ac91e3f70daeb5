"""From the arguments of a user to a transport problem."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from torch import Tensor

from gwf_fast.ops.modes import is_readable
from gwf_fast.pairs.passes import centre_of
from gwf_fast.pairs.ragged import exists, member_weights, members
from gwf_fast.pairs.validation import as_integer, as_number, as_positive, check_counts, check_pair
from gwf_fast.transport.ground import Ground
from gwf_fast.transport.problem import Entropic
from gwf_fast.transport.small import Sets

Sweeps: TypeAlias = Literal["relaxed", "plain"]


def make_problem(sets: Sets, numbers: Numbers) -> Entropic:
    """A validated problem; its points are centred, so that float32 does not mind where the clouds are."""
    x, y, x_weights, y_weights, x_lengths, y_lengths, backend, formula = sets
    strength = numbers.strength
    check_pair(x, y)
    for name, points in (("x", x), ("y", y)):
        if points.shape[-2] == 0:
            raise ValueError(f"{name} must have at least one point to transport, got shape {list(points.shape)}")
    sides = ("x", x, x_weights, x_lengths), ("y", y, y_weights, y_lengths)
    same = x is y and x_weights is y_weights and x_lengths is y_lengths
    a = masses(*sides[0])
    b = a if same else masses(*sides[1])
    given = x_weights is not None or y_weights is not None
    if strength is None and not same and given and is_readable(a):
        total_a, total_b = a.detach().sum(-1), b.detach().sum(-1)
        if bool(((total_a - total_b).abs() > 1e-3 * total_a).any()):
            raise ValueError(
                "x_weights and y_weights must have the same sum where marginals hold exactly, got "
                f"{total_a.flatten()[0].item():g} and {total_b.flatten()[0].item():g}; or set marginal_strength"
            )
    origin = centre_of(y, y_lengths)
    u = members(x - origin, x_lengths)  # points beyond the lengths have no weight, and lie at the centre
    v = u if same else members(y - origin, y_lengths)
    return Entropic(u, v, a, b, numbers.p, strength, backend, formula)


def masses(name: str, points: Tensor, weights: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Weights [*B, N] as given, or equal ones of sum 1; 0 beyond the lengths."""
    check_counts(f"{name}_lengths", lengths, points, 1)
    if weights is None:
        if lengths is None:
            return points.new_full(points.shape[:-1], 1 / points.shape[-2])
        return exists(points, lengths) / lengths[..., None].to(points.dtype)
    return member_weights(f"{name}_weights", weights, points, name, lengths)


class Numbers(NamedTuple):
    """What all solvers take, as Python's numbers."""

    epsilon: float
    max_iterations: int = 1
    tolerance: float = 0.0
    scaling: float | None = None
    strength: float | None = None
    p: int = 2
    plain: bool = False

    @classmethod
    def of(
        cls,
        epsilon: Any,
        max_iterations: Any = 1,
        tolerance: Any = 0.0,
        scaling: Any = None,
        strength: Any = None,
        sweeps: Any = "relaxed",
        ground: Ground = Ground(),  # noqa: B008  (immutable)
    ) -> Numbers:
        """From arguments.

        Raises:
            ValueError, TypeError: If one is out of range.
        """
        if sweeps not in get_args(Sweeps):
            raise ValueError(f"sweeps must be 'relaxed' or 'plain', got {sweeps!r}")
        return cls(
            as_positive("epsilon", epsilon),
            as_integer("max_iterations", max_iterations),
            as_number("tolerance", tolerance, "a number >= 0", least=0),
            None if scaling is None else as_number("scaling", scaling, "a number between 0 and 1", above=0, below=1),
            None if strength is None else as_positive("marginal_strength", strength),
            ground.p,
            sweeps == "plain",
        )
