"""POT's ``ot.sliced.sliced_wasserstein_distance`` (Flamary et al. 2021), on tensors and NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gwf_fast.measures.directional import directional
from gwf_fast.measures.sliced import choose_directions
from gwf_fast.pairs.validation import as_integer, as_number

__all__ = ["sliced_wasserstein_distance"]


def sliced_wasserstein_distance(
    X_s: Any,
    X_t: Any,
    a: Any = None,
    b: Any = None,
    n_projections: int = 50,
    p: float = 2,
    projections: Any = None,
    seed: int | None = None,
    log: bool = False,
    scaler: Callable[[Any], Any] | Any = None,
) -> Any:
    """(E_theta W_p^p(theta . X_s, theta . X_t))^(1/p); POT's arguments, and its numbers for its projections.

    Args:
        X_s: Samples [N, D], a tensor or an array of float32 or float64.
        X_t: Samples [M, D].
        a: Weights [N]; None means 1 / N.
        b: Weights [M]; None means 1 / M.
        n_projections: Directions, unless ``projections`` are given.
        p: Power of the cost, at least 1.
        projections: [D, P], used as they are.
        seed: Of the directions; an integer, or for arrays a ``numpy.random.RandomState``. None draws from the library's
            global generator, as POT does. An integer does not touch that generator.
        log: Whether to return a dictionary with ``projections`` and ``projected_emds`` as well.
        scaler: A callable or an object with ``transform``, applied to both sets first.

    Returns:
        A scalar of the kind of X_s, differentiable in points and weights that are tensors; with ``log`` (value, dict).

    Raises:
        ValueError, TypeError: If the arguments do not fit each other, a set is empty, or a number is out of range.
    """
    p = as_number("p", p, "a number >= 1", least=1)
    if scaler is not None:
        scale = scaler.transform if hasattr(scaler, "transform") else scaler
        X_s, X_t = scale(X_s), scale(X_t)
    arrays = not isinstance(X_s, Tensor)
    tensors: list[Any] = [
        value if value is None or isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        for value in (X_s, X_t, a, b, projections)
    ]
    x, y, u, v, matrix = tensors
    if x.ndim != 2 or y.ndim != 2:
        raise ValueError(f"X_s and X_t must have shapes [N, D] and [M, D], got {list(x.shape)} and {list(y.shape)}")
    if matrix is None:
        theta = _draw(n_projections, x, seed, arrays)
    elif matrix.ndim != 2:
        raise ValueError(f"projections must have shape [D, P], got {list(matrix.shape)}")
    else:
        theta = matrix.mT
    theta = choose_directions(x, y, directions=theta)
    mean, values = directional("wasserstein", x, y, theta, p, u, v)
    result: Any = mean if p == 1 else mean ** (1 / p)
    if arrays:
        result = result.numpy()[()]
    if not log:
        return result
    details = {"projections": theta.T, "projected_emds": values.to(x.dtype) if arrays else values}
    return result, {name: value.numpy() for name, value in details.items()} if arrays else details


def _draw(n: int, x: Tensor, seed: Any, arrays: bool) -> Tensor:
    """Directions [P, D] as POT draws them."""
    n = as_integer("n_projections", n)
    if arrays:
        if seed is None:
            normals = torch.as_tensor(np.random.randn(x.shape[1], n)).to(x.dtype)
        else:
            state = seed if isinstance(seed, np.random.RandomState) else np.random.RandomState(seed)
            normals = torch.as_tensor(state.randn(x.shape[1], n)).to(x.dtype)
    else:
        generator = None
        if seed is not None:
            generator = torch.Generator(x.device)
            generator.manual_seed(seed)
        normals = torch.randn(x.shape[1], n, dtype=x.dtype, device=x.device, generator=generator)
    return (normals / normals.square().sum(0).sqrt()).mT
