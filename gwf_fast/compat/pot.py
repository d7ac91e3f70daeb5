"""POT's sliced and max-sliced Wasserstein distances of ``ot.sliced`` (Flamary et al. 2021), on tensors and arrays.

What differs from POT: weights of integer points are not rounded to 0, numbers of several types are those that hold all
of them whatever the library, at a distance of 0 the gradient is 0 instead of NaN, negative weights are refused, and a
seed leaves the library's global generator alone. Where both sets have the same mass the distance has a kink in the
weights: derivatives in them agree with POT's but for constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gwf_fast.measures.directional import directional, rooted
from gwf_fast.measures.sliced import choose_directions
from gwf_fast.pairs.validation import as_integer, as_number, check_weights

__all__ = ["max_sliced_wasserstein_distance", "sliced_wasserstein_distance"]

_TILE = 32  # directions at a time, where PyTorch does the work


def sliced_wasserstein_distance(
    X_s: Any,
    X_t: Any,
    a: Any = None,
    b: Any = None,
    n_projections: int = 50,
    p: float = 2,
    projections: Any = None,
    seed: Any = None,
    log: bool = False,
    scaler: Callable[[Any], Any] | Any = None,
) -> Any:
    """(E_theta W_p^p(theta . X_s, theta . X_t))^(1/p); POT's arguments, and its numbers for its projections.

    Args:
        X_s: Samples [N, D], a tensor, an array or a list.
        X_t: Samples [M, D].
        a: Weights [N], used as they are; None means 1 / N. Where sums differ, the largest projection of the lighter set
            has the mass that is missing, as in POT: no longer a distance.
        b: Weights [M]; None means 1 / M.
        n_projections: Directions, unless ``projections`` are given.
        p: Power of the cost, at least 1.
        projections: [D, P], used as they are, of any length.
        seed: Of the directions: an integer or a generator, for tensors ``torch.Generator``, for arrays
            ``numpy.random.RandomState`` or ``Generator``. None draws from the library's global one.
        log: Whether to return a dictionary with ``projections`` and ``projected_emds`` as well.
        scaler: A callable or an object with ``transform``, applied to both sets first.

    Returns:
        A scalar, differentiable in points, weights and projections that are tensors; with ``log`` (value, dict).
        Arrays, where nothing was a tensor.

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    lines = _Lines.of(X_s, X_t, a, b, n_projections, p, projections, seed, scaler)
    return lines.result(*lines.distance(lines.theta), log)


def max_sliced_wasserstein_distance(
    X_s: Any,
    X_t: Any,
    a: Any = None,
    b: Any = None,
    n_projections: int = 50,
    p: float = 2,
    projections: Any = None,
    seed: Any = None,
    log: bool = False,
    scaler: Callable[[Any], Any] | Any = None,
) -> Any:
    """max_theta W_p(theta . X_s, theta . X_t) over the directions that are drawn or given, as POT's.

    Args:
        X_s: Samples [N, D], a tensor, an array or a list.
        X_t: Samples [M, D].
        a: Weights [N], as in ``sliced_wasserstein_distance``.
        b: Weights [M].
        n_projections: Directions, unless ``projections`` are given.
        p: Power of the cost, at least 1.
        projections: [D, P], used as they are, of any length.
        seed: Of the directions, as in ``sliced_wasserstein_distance``.
        log: Whether to return a dictionary with ``projections`` and ``projected_emds`` as well.
        scaler: A callable or an object with ``transform``, applied to both sets first.

    Returns:
        A scalar, differentiable in points, weights and projections that are tensors, along the first of the largest
        directions; with ``log`` (value, dict).

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    lines = _Lines.of(X_s, X_t, a, b, n_projections, p, projections, seed, scaler)
    with torch.no_grad():
        _, costs = lines.distance(lines.theta)
    largest = int(costs.argmax())
    value, _ = lines.distance(lines.theta[largest : largest + 1])
    return lines.result(value, costs, log)


class _Lines(NamedTuple):
    """Two weighted sets, and the directions onto which they are projected."""

    x: Tensor
    y: Tensor
    a: Tensor | None
    b: Tensor | None
    theta: Tensor  # [P, D]
    power: float
    arrays: bool

    @classmethod
    def of(cls, X_s: Any, X_t: Any, a: Any, b: Any, n: Any, p: Any, projections: Any, seed: Any, scaler: Any) -> _Lines:
        p = as_number("p", p, "a number >= 1", least=1)
        X_s, X_t = (_scaled(_points(value), scaler) for value in (X_s, X_t))
        given = {"X_s": X_s, "X_t": X_t, "a": a, "b": b, "projections": projections}
        arrays = not any(isinstance(value, Tensor) for value in given.values())
        tensors = {name: _as_tensor(name, v) for name, v in given.items() if v is not None or name.startswith("X")}
        x, y = tensors["X_s"], tensors["X_t"]
        if x.ndim != 2 or y.ndim != 2:
            raise ValueError(f"X_s and X_t must have shapes [N, D] and [M, D], got {list(x.shape)} and {list(y.shape)}")
        if projections is None:
            tensors["projections"] = _draw(n, x, seed, arrays)
        elif tensors["projections"].ndim != 2:
            raise ValueError(f"projections must have shape [D, P], got {list(tensors['projections'].shape)}")
        dtype = _common(list(tensors.values()), arrays)
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        x, y = tensors["X_s"], tensors["X_t"]
        theta = choose_directions(x, y, directions=tensors["projections"].mT)
        u, v = tensors.get("a"), tensors.get("b")
        for name, weights, points, side in (("a", u, x, "X_s"), ("b", v, y, "X_t")):
            if weights is not None:
                check_weights(name, weights, points, side)
        return cls(x, y, u, v, theta, p, arrays)

    def distance(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The root of the mean over directions of W_p^p, and each [P], of the masses as they are."""
        masses = [weights if weights is None else weights.double().sum() for weights in (self.a, self.b)]
        known = [1.0 if mass is None else float(mass.detach()) for mass in masses]
        rounding = torch.finfo(self.x.dtype).eps * (16 + math.sqrt(len(self.x) + len(self.y)))
        if abs(known[0] - known[1]) <= rounding * max(known):
            value, costs = directional("wasserstein", self.x, self.y, theta, self.power, self.a, self.b, root=True)
            if masses == [None, None]:
                return value, costs
            mass = 0.5 * sum(1.0 if mass is None else mass for mass in masses)
            return (value * mass ** (1 / self.power)).to(value.dtype), costs * max(known)
        costs = torch.cat([self._unequal(tile) for tile in theta.split(_TILE)])
        return rooted(costs.mean(), self.power).to(self.x.dtype), costs.detach()

    def _unequal(self, theta: Tensor) -> Tensor:
        """The integral over q of |F^-1(q) - G^-1(q)|^p [P], up to the larger mass, quantiles staying at their last."""
        (x, at_x), (y, at_y) = ((theta @ points.mT).sort(-1) for points in (self.x, self.y))  # [P, N]
        steps = [
            (points.new_full((len(points),), 1 / len(points)) if weights is None else weights)
            .double()[order]
            .cumsum(-1)
            for points, weights, order in ((self.x, self.a, at_x), (self.y, self.b, at_y))
        ]
        q = torch.cat(steps, -1).sort(-1).values  # [P, N + M]
        quantiles = [
            line.gather(-1, torch.searchsorted(cumulated.detach(), q.detach()).clamp_(max=line.shape[-1] - 1))
            for line, cumulated in zip((x, y), steps)
        ]
        widths = q.diff(prepend=q.new_zeros(len(theta), 1))
        return (widths * (quantiles[0] - quantiles[1]).abs().double() ** self.power).sum(-1)

    def result(self, value: Any, costs: Tensor, log: bool) -> Any:
        """What the caller gets."""
        details: dict[str, Any] = {"projections": self.theta.mT, "projected_emds": costs}  # without a graph
        if self.arrays:
            value = value.numpy()[()]
            details = {"projections": self.theta.mT.numpy(), "projected_emds": costs.to(self.x.dtype).numpy()}
        return (value, details) if log else value


def _points(value: Any) -> Any:
    """A list of numbers as the array that it stands for."""
    return np.asarray(value) if isinstance(value, (list, tuple)) else value


def _scaled(points: Any, scaler: Any) -> Any:
    if scaler is None:
        return points
    if callable(getattr(scaler, "transform", None)):
        return scaler.transform(points)
    if callable(scaler):
        return scaler(points)
    raise ValueError(f"scaler must be None, a callable or an object with transform(), got {type(scaler).__name__}")


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    try:  # of the machine's byte order, without negative strides
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise TypeError(f"{name} must have numbers that PyTorch has, such as float64, got {array.dtype}") from None


def _common(tensors: list[Tensor], arrays: bool) -> torch.dtype:
    """The type that holds all numbers, by the library's own rules; a floating one."""
    found = [tensor.dtype for tensor in tensors]
    if arrays:  # to which integers and float32 are float64
        numpys = (torch.zeros(0, dtype=dtype).numpy().dtype for dtype in found)
        return torch.from_numpy(np.zeros(0, np.result_type(np.float16, *numpys))).dtype
    dtype = found[0]
    for other in found[1:]:
        dtype = torch.promote_types(dtype, other)
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def _draw(n: Any, x: Tensor, seed: Any, arrays: bool) -> Tensor:
    """Directions [D, P] as POT draws them."""
    shape = x.shape[1], as_integer("n_projections", n)
    normals = _numpy_normals(shape, seed) if arrays else _torch_normals(shape, seed, x)
    return normals / normals.square().sum(0).sqrt()


def _numpy_normals(shape: tuple[int, int], seed: Any) -> Tensor:
    if seed is None:
        return torch.as_tensor(np.random.randn(*shape))
    if isinstance(seed, np.random.Generator):
        return torch.as_tensor(seed.standard_normal(shape))
    if isinstance(seed, (Tensor, torch.Generator)):
        raise TypeError(f"seed must be an integer or a generator of NumPy for arrays, got {type(seed).__name__}")
    state = seed if isinstance(seed, np.random.RandomState) else np.random.RandomState(seed)
    return torch.as_tensor(state.randn(*shape))


def _torch_normals(shape: tuple[int, int], seed: Any, x: Tensor) -> Tensor:
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    generator = seed
    if seed is not None and not isinstance(seed, torch.Generator):
        if isinstance(seed, (np.random.Generator, np.random.RandomState)):
            raise TypeError(f"seed must be an integer or a torch.Generator for tensors, got {type(seed).__name__}")
        generator = torch.Generator(x.device)
        generator.manual_seed(as_integer("seed", seed, least=-(2**63)))
    return torch.randn(shape, dtype=dtype, device=x.device, generator=generator)
