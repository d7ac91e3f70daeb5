"""The max-sliced Wasserstein distance: the direction along which two sets are farthest apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypedDict, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from gwf_fast.measures.directional import Sets, forces, on_lines, rooted
from gwf_fast.measures.sliced import choose_directions
from gwf_fast.ops import Opaque
from gwf_fast.ops.ambient import entry
from gwf_fast.ops.modes import is_transformed
from gwf_fast.ops.once import once
from gwf_fast.ops.table import BackendName
from gwf_fast.pairs.fast.directions import DEFAULT_SAMPLING, Sampling
from gwf_fast.pairs.validation import as_integer, as_number

FEWEST_PROJECTIONS = 64
"""Directions that are drawn where nothing is said of them, unless 4 D are more."""

_CLIMBERS = 4  # of the directions, the best, from which the ascent starts
_TILE = 32  # directions at a time that are tried
_SHORTEST = 1e-10  # of a step: what it gains is rounding
_TWICE = (
    "max_sliced_wasserstein is differentiable once: its direction moves with the points; give it to sliced_wasserstein"
    " as directions= where it is to be held fixed"
)


class Options(TypedDict, total=False):
    """The other arguments, for type checkers."""

    n_projections: int | None
    max_iterations: int
    tolerance: float
    generator: torch.Generator | None
    sampling: Sampling
    directions: Tensor | None
    x_weights: Tensor | None
    y_weights: Tensor | None
    x_lengths: Tensor | None
    y_lengths: Tensor | None
    backend: BackendName | None


@overload
def max_sliced_wasserstein(
    x: Tensor, y: Tensor, *, p: float = 2.0, return_direction: Literal[False] = False, **options: Unpack[Options]
) -> Tensor: ...
@overload
def max_sliced_wasserstein(
    x: Tensor, y: Tensor, *, p: float = 2.0, return_direction: Literal[True], **options: Unpack[Options]
) -> tuple[Tensor, Tensor]: ...
@entry
def max_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    p: float = 2.0,
    n_projections: int | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    directions: Tensor | None = None,
    return_direction: bool = False,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    backend: BackendName | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """max over unit theta of W_p(theta . x, theta . y) (Deshpande et al. 2019), by ascent on the sphere.

    From the best four of P directions, and the difference of the means, gradients lead upwards; the largest value found
    counts. It is a lower bound of the maximum, which is not concave, and at least what POT's
    ``max_sliced_wasserstein_distance`` gives: that is the largest value of the P directions, ``max_iterations=0`` here.

    Args:
        x: Samples [*B, N, D].
        y: Samples [*B, M, D].
        p: Power of the cost |theta . (x - y)|^p, at least 1.
        n_projections: P, the directions to start from; None for 64, or 4 D where that is more.
        max_iterations: The most steps upwards; 0 for none.
        tolerance: Slope along the sphere, as a share of the whole gradient, at which to stop.
        generator: Source of the directions; None means torch's global one.
        sampling: "orthogonal", "normal" or "quasi", as in ``sliced_wasserstein2``.
        directions: [P, D] of unit length to start from, instead of drawn ones.
        return_direction: Return the direction [*B, D] as well, a constant of unit length; its sign means nothing.
        x_weights: [*B, N], not negative; each set is scaled to sum to 1. None means 1 / N.
        y_weights: [*B, M], likewise.
        x_lengths: Sizes [*B], int64, of ragged sets padded to N.
        y_lengths: Sizes [*B], int64, of ragged sets padded to M.
        backend: None picks; a name asks for one (see ``backends()``).

    Returns:
        [*B], in units of |x|. Differentiable once in points and weights, the direction held fixed, as it may be at a
        maximum (the envelope theorem); where two projections coincide there, by the order of one of its sides.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    p = as_number("p", p, "a number >= 1", least=1)
    max_iterations = as_integer("max_iterations", max_iterations, least=0)
    tolerance = as_number("tolerance", tolerance, "a number >= 0", least=0)
    if n_projections is None and directions is None and isinstance(x, Tensor) and x.ndim:
        n_projections = max(FEWEST_PROJECTIONS, 4 * x.shape[-1])
    theta = choose_directions(x, y, n_projections, generator, sampling, directions, unit=True)
    sets = Sets.of(x, y, x_weights, y_weights, x_lengths, y_lengths, backend)
    unit = sets.unit()
    sets = sets._replace(x=once(sets.x / unit, _TWICE), y=once(sets.y / unit, _TWICE))
    tensors = [None if t is None else t.detach() for t in (*sets[:4], *sets.lengths)]
    starts = theta.detach().to(sets.x.dtype).expand(len(sets.x), *theta.shape)
    search: Callable[..., Tensor] = _SEARCH if torch.compiler.is_compiling() or is_transformed() else _search
    best = search(*tensors, starts, p, max_iterations, tolerance, sets.backend)  # [B, D]
    line_x, line_y = ((points @ best[..., None]).mT for points in (sets.x, sets.y))  # [B, 1, N]
    value = rooted(on_lines("wasserstein", line_x, line_y, p, sets)[:, 0].double(), p) * unit[:, 0, 0].double()
    value = value.view(x.shape[:-2]).to(x.dtype)
    return (value, best.view(*x.shape[:-2], x.shape[-1]).to(x.dtype)) if return_direction else value


# ------------------------------------------------------------------------------------------------ the ascent


def _search(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    starts: Tensor,
    power: float,
    max_iterations: int,
    tolerance: float,
    backend: BackendName,
) -> Tensor:
    """The best direction [*B, D] that is found from ``starts`` [*B, P, D]."""
    batch = x.shape[:-2]

    def flat(t: Tensor | None) -> Any:
        return None if t is None else t.reshape(math.prod(batch), *t.shape[len(batch) :])

    sets = Sets(flat(x), flat(y), flat(a), flat(b), (flat(x_lengths), flat(y_lengths)), backend)
    with torch.no_grad():
        x, y, a, b = sets.padded()
        starts = flat(starts)
        values = torch.cat([_climb(sets, tile, power, 0, 0.0)[0] for tile in starts.split(_TILE, 1)], 1)
        first = values.topk(min(_CLIMBERS, values.shape[1]), 1).indices
        theta = starts.gather(1, first[..., None].expand(-1, -1, starts.shape[-1]))
        if max_iterations:
            apart = _mean(x, a) - _mean(y, b)
            size = apart.norm(dim=-1, keepdim=True)
            apart = torch.where(size > 0, apart / size, theta[:, 0])
            theta = torch.cat((theta, apart[:, None]), 1)
        values, theta = _climb(sets, theta, power, max_iterations, tolerance)
        best = values.argmax(1)[:, None, None].expand(-1, 1, theta.shape[-1])
        return theta.gather(1, best).reshape(*batch, theta.shape[-1])


def _mean(points: Tensor, weights: Tensor | None) -> Tensor:  # [B, D]
    return points.mean(1) if weights is None else (weights.to(points.dtype)[..., None] * points).sum(1)


def _climb(sets: Sets, theta: Tensor, power: float, steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Directions [B, R, D] moved upwards, and their costs [B, R].

    The cost is homogeneous, theta . gradient = p W: a step of 1 leads to the direction of the gradient, which is the
    power iteration for p = 2 while no order changes. Steps grow while they lead upwards, and shrink where they do not.
    """
    value, gradient = _cost(sets, theta, power)
    step = torch.ones_like(value)
    for _ in range(steps):
        radial = power * value
        slope = (gradient - (gradient * theta).sum(-1, keepdim=True) * theta) / radial[..., None].to(theta.dtype)
        size = slope.norm(dim=-1)
        moving = (size > tolerance) & (step * size > _SHORTEST) & (radial > 0)
        if not bool(moving.any()):
            break
        there = torch.where(moving[..., None], theta + step[..., None].to(theta.dtype) * slope, theta)
        there = torch.nn.functional.normalize(there, dim=-1)
        new_value, new_gradient = _cost(sets, there, power)
        better = moving & (new_value > value)
        step = torch.where(better, 2 * step, step / 4)
        value = torch.where(better, new_value, value)
        theta = torch.where(better[..., None], there, theta)
        gradient = torch.where(better[..., None], new_gradient, gradient)
    return value, theta


def _cost(sets: Sets, theta: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """W_p^p along directions [B, R, D], [B, R] in float64, and its gradient in these."""
    value, of_x, of_y = forces(theta @ sets.x.mT, theta @ sets.y.mT, power, sets)
    return value.double(), of_x @ sets.x + of_y @ sets.y


def _shapes(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-2], x.shape[-1]))


_SEARCH = Opaque(
    "max_sliced_direction(Tensor x, Tensor y, Tensor? a, Tensor? b, Tensor? x_lengths, Tensor? y_lengths,"
    " Tensor starts, float power, int max_iterations, float tolerance, str backend) -> Tensor",
    run=_search,
    fake=_shapes,
)
