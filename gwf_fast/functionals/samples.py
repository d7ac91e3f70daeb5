"""Distributions given by samples: what a target may be, and minibatches of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gwf_fast.pairs.validation import check_kind
from gwf_fast.potentials import Density
from gwf_fast.randomness.draws import Draws
from gwf_fast.randomness.seeded import asked, own_generator

Target = Tensor | Callable[[int], Tensor]
"""Samples of Q: a tensor [M, D], or a callable n -> [n, D]."""


ASKED = "the target is a Python function, asked in every iteration; give it as a tensor of samples"
"""Why a loop with such a target can't be replayed."""


def check_target(target: Target) -> None:
    """Samples of Q: a finite tensor [M, D] with M > 0, or a callable."""
    if isinstance(target, Tensor):
        check_kind("target", target)
        if target.ndim != 2 or len(target) == 0 or not target.is_floating_point():
            raise ValueError(
                f"target: expected floating-point samples [M, D] with M > 0, got {target.dtype} {list(target.shape)}"
            )
        if not target.isfinite().all():
            raise ValueError("target: contains NaN or infinity")
    elif not callable(target):
        raise TypeError(f"target: expected a tensor [M, D] or a callable n -> samples, got {type(target).__name__}")


def is_asked(target: object) -> bool:
    """Whether samples come from a function of the user's; those of our potentials are launches, nothing more."""
    return callable(target) and not isinstance(getattr(target, "__self__", None), Density)


def draw_target(target: Target, n: int, draws: Draws | None = None) -> Tensor:
    """n samples of Q; all of them where there are fewer.

    Raises:
        ValueError: If a callable gives something else. For a minibatch, which comes with ``draws``, it has to give n.
    """
    if isinstance(target, Tensor):
        return batch(target, n, draws)
    samples = asked(target, n)
    fits = isinstance(samples, Tensor) and samples.ndim == 2 and (draws is None or len(samples) == n)
    if not fits:
        got = list(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise ValueError(f"target: expected samples [{n}, D] for n = {n}, got {got}")
    return samples


def matched(z: Tensor, x: Tensor) -> Tensor:
    """Samples z [M, D] of Q in the precision and on the device of particles x [N, D].

    Raises:
        ValueError: If they have another dimension.
    """
    if z.shape[1] != x.shape[1]:
        raise ValueError(f"target: expected samples [{len(z)}, {x.shape[1]}], got {list(z.shape)}")
    return z.to(x)


def batch(pool: Tensor, n: int, draws: Draws | None = None) -> Tensor:
    """n rows of a pool [N, D], drawn with replacement; the pool itself where n is not smaller than it."""
    if draws is not None and n < len(pool):
        return draws.rows(pool, n)
    rows = batch_rows(pool, n, draws)
    return pool if rows is None else pool[rows]


def batch_rows(pool: Tensor, n: int, draws: Draws | None = None) -> Tensor | None:
    """The rows that :func:`batch` takes, [n]; None for all of them."""
    if n >= len(pool):
        if draws is not None:
            draws.skip()
        return None
    if draws is not None:
        return draws.indices(n, len(pool), pool.device)
    return torch.randint(len(pool), (n,), device=pool.device, generator=own_generator(pool.device))
