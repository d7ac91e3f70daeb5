"""Flows along the gradient of a critic: of WGAN, MonoFlow (Yi et al. 2023) and VGrow (Gao et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from gwf_fast.nn.divergences import PARAMETRIC, SMOOTH, divergence
from gwf_fast.ops.ambient import entry
from gwf_fast.ops.modes import is_eager
from gwf_fast.pairs.passes import moved
from gwf_fast.pairs.validation import as_number, check_points

# What multiplies grad d: h'(d) of MonoFlow, h increasing.
_TRANSFORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "wgan": lambda d, c: torch.ones_like(d),
    "log_sigmoid": lambda d, c: (-d).sigmoid(),  # h = log sigma(d): the non-saturating GAN
    "minimax": lambda d, c: (d + c).sigmoid(),  # h = -log(1 - sigma(d + C))
    "identity": lambda d, c: torch.ones_like(d),
    "arcsinh": lambda d, c: (1 + d * d).rsqrt(),
}
Transform = Literal[
    "wgan", "log_sigmoid", "minimax", "identity", "arcsinh",
    "kl", "reverse_kl", "js", "pearson", "neyman", "squared_hellinger", "jeffreys", "log_d",
]  # fmt: skip
TRANSFORMS = (*_TRANSFORMS, *(name for name in SMOOTH if name not in PARAMETRIC))
"""What ``critic`` knows; those of VGrow, s(d), are slopes of divergences at log q/p = -d."""


@entry
def critic(
    x: Tensor, critic: Callable[[Tensor], Tensor], *, transform: Transform = "wgan", shift: float = 0.0
) -> Tensor:
    """h'(d(x)) grad d(x), the flow along a critic d.

    Args:
        x: Particles [*B, N, D].
        critic: d, any function [*B, N, D] -> [*B, N] or [*B, N, 1] that torch differentiates, such as a ``nn.MLP``;
            row i depends on x_i alone. For "wgan" the potential phi, else a logit, log p/q at its best.
        transform: "wgan" or "identity": 1. MonoFlow's "log_sigmoid": sigma(-d); "minimax": sigma(d + C); "arcsinh":
            1 / sqrt(1 + d^2). VGrow's s(d) of a divergence without a parameter, such as "kl": 1; "js": sigma(d);
            "log_d": sigma(-d); "jeffreys": 1 + e^d; see ``gwf_fast.nn.divergences``.
        shift: C of "minimax".

    Returns:
        [*B, N, D], a constant to autograd.

    Raises:
        ValueError, TypeError: For an unknown transform, or a critic of another shape or without derivative.
    """
    weight, gradient = _weight_and_gradient(x, critic, transform, shift)
    return gradient if weight is None else weight * gradient


@entry
def critic_step(
    x: Tensor,
    critic: Callable[[Tensor], Tensor],
    step_size: float,
    *,
    transform: Transform = "kl",
    shift: float = 0.0,
    bounds: tuple[float, float] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """clamp(x + eta s(d) grad d): a step of VGrow, with the gradient, and what multiplies it, as temporaries.

    Args:
        x: Particles [*B, N, D].
        critic: d, as in ``critic``.
        step_size: eta.
        transform: s, as in ``critic``.
        shift: C of "minimax".
        bounds: What coordinates are clamped to; None for no clamping.
        out: Where to write; ``out=x`` moves the particles in place.

    Returns:
        [*B, N, D].
    """
    step_size = as_number("step_size", step_size)
    if bounds is not None:
        low, high = bounds
        bounds = as_number("bounds", low, "two numbers"), as_number("bounds", high, "two numbers")
        if not bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
    weight, gradient = _weight_and_gradient(x, critic, transform, shift)
    with torch.no_grad():
        if weight is None:
            there = moved(x.detach(), gradient, step_size, out)
        else:
            there = moved(x.detach(), gradient * weight, step_size, out)
        return there if bounds is None else there.clamp_(*bounds)


def _checked(d: Tensor, x: Tensor) -> Tensor:
    """What a critic gave for x."""
    if not isinstance(d, Tensor) or d.shape not in (x.shape[:-1], (*x.shape[:-1], 1)):
        got = list(d.shape) if isinstance(d, Tensor) else type(d).__name__
        raise ValueError(f"critic must give [*B, N] or [*B, N, 1] for x {list(x.shape)}, got {got}")
    return d


def _summed(d: Tensor) -> tuple[Tensor, Tensor]:
    return d.sum(), d


@entry(differentiates=True)
def _weight_and_gradient(
    x: Tensor, critic: Callable[[Tensor], Tensor], transform: Transform, shift: float
) -> tuple[Tensor | None, Tensor]:  # [*B, N, 1], None for ones; [*B, N, D]
    if transform not in TRANSFORMS:
        raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}")
    check_points("x", x)
    shift = as_number("shift", shift)
    if is_eager():
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            d = _checked(critic(at), x)
            if not d.requires_grad:
                raise ValueError("critic must depend on x in a way that torch can differentiate")
            (gradient,) = torch.autograd.grad(d.sum(), at)
    else:  # traced, or under a transform
        gradient, d = torch.func.grad(lambda at: _summed(_checked(critic(at), x)), has_aux=True)(x.detach())
        gradient = gradient.detach()
    if transform in ("wgan", "identity", "kl"):
        return None, gradient
    d = d.detach().reshape(*x.shape[:-1], 1)
    if transform in _TRANSFORMS:
        return _TRANSFORMS[transform](d, shift), gradient
    slope = divergence(transform).slope
    assert slope is not None
    return slope(-d), gradient
