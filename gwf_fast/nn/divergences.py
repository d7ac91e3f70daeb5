"""The table of f-divergences D_f(P|Q) = E_Q f(dP/dQ): f, its derivative, its conjugate, a critic's output activation.

Convention of Fan et al. (ICML 2022): the model P comes first. f-GAN (Nowozin et al., 2016) puts the data first, so that
KL and reverse KL, Pearson and Neyman swap names. A critic's raw output v is mapped by ``activation`` into the
domain of the conjugate; the optimum of sup_h E_P h - E_Q f*(h) is h = f'(dP/dQ).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

_LOG2 = math.log(2.0)
_Elementwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """One row of the table; every entry is elementwise on tensors of any shape.

    Attributes:
        name: The name of the row.
        f: Convex, f(1) = 0; defined for u > 0.
        f_prime: Derivative of f.
        conjugate: f*(t) = sup_u (u t - f(u)), for t in the range of ``activation``.
        activation: Maps a critic's raw output onto the domain of ``conjugate``.
        conjugate_of_activation: f*(activation(v)), simplified by hand where the composition would overflow.
    """

    name: str
    f: _Elementwise
    f_prime: _Elementwise
    conjugate: _Elementwise
    activation: _Elementwise
    conjugate_of_activation: _Elementwise


TAME = 15.0
"""Where :func:`tame_exp` becomes a straight line."""


def tame_exp(v: Tensor) -> Tensor:
    """e^v up to v = 15, its tangent there from then on."""
    return v.clamp(max=TAME).exp() + math.exp(TAME) * (v - TAME).clamp(min=0)


def _identity(v: Tensor) -> Tensor:
    return v


def _kl() -> Divergence:
    return Divergence(
        "kl",
        f=lambda u: u * u.log(),
        f_prime=lambda u: 1 + u.log(),
        conjugate=lambda t: (t - 1).exp(),
        activation=_identity,
        conjugate_of_activation=lambda v: (v - 1).exp(),
    )


def _reverse_kl() -> Divergence:
    return Divergence(
        "reverse_kl",
        f=lambda u: -u.log(),
        f_prime=lambda u: -1 / u,
        conjugate=lambda t: -1 - (-t).log(),
        activation=lambda v: -(-v).exp(),
        conjugate_of_activation=lambda v: v - 1,
    )


def _js() -> Divergence:
    return Divergence(
        "js",
        f=lambda u: u * u.log() - (1 + u) * ((1 + u) / 2).log(),
        f_prime=lambda u: (2 * u / (1 + u)).log(),
        conjugate=lambda t: -(2 - t.exp()).log(),
        activation=lambda v: _LOG2 - softplus(-v),
        conjugate_of_activation=lambda v: softplus(v) - _LOG2,
    )


def _pearson() -> Divergence:
    def conjugate(t: Tensor) -> Tensor:
        t = t.clamp(min=-2)
        return t * t / 4 + t

    return Divergence(
        "pearson",
        f=lambda u: (u - 1).square(),
        f_prime=lambda u: 2 * (u - 1),
        conjugate=conjugate,
        activation=_identity,
        conjugate_of_activation=conjugate,
    )


def _neyman() -> Divergence:
    return Divergence(
        "neyman",
        f=lambda u: (1 - u).square() / u,
        f_prime=lambda u: 1 - u**-2,
        conjugate=lambda t: 2 - 2 * (1 - t).sqrt(),
        activation=lambda v: -torch.expm1(-v),
        conjugate_of_activation=lambda v: -2 * torch.expm1(-v / 2),
    )


def _squared_hellinger() -> Divergence:
    return Divergence(
        "squared_hellinger",
        f=lambda u: (u.sqrt() - 1).square(),
        f_prime=lambda u: 1 - u**-0.5,
        conjugate=lambda t: t / (1 - t),
        activation=lambda v: -torch.expm1(-v),
        conjugate_of_activation=torch.expm1,
    )


def _total_variation() -> Divergence:
    return Divergence(
        "total_variation",
        f=lambda u: (u - 1).abs() / 2,
        f_prime=lambda u: (u - 1).sign() / 2,
        conjugate=_identity,
        activation=lambda v: v.tanh() / 2,
        conjugate_of_activation=lambda v: v.tanh() / 2,
    )


def _alpha(a: float) -> Divergence:
    if a in (0.0, 1.0):
        raise ValueError(
            f"parameter: alpha = {a:g} is a limit of the alpha divergence; use 'reverse_kl' (0) or 'kl' (1)"
        )

    def conjugate(t: Tensor) -> Tensor:
        return (((a - 1) * t + 1).clamp(min=0) ** (a / (a - 1)) - 1) / a

    def bounded(v: Tensor) -> Tensor:
        return 1 / (1 - a) - softplus(-v)

    def conjugate_of_bounded(v: Tensor) -> Tensor:
        return (((1 - a) * softplus(-v)) ** (a / (a - 1)) - 1) / a

    return Divergence(
        "alpha",
        f=lambda u: (u**a - 1 - a * (u - 1)) / (a * (a - 1)),
        f_prime=lambda u: (u ** (a - 1) - 1) / (a - 1),
        conjugate=conjugate,
        activation=_identity if a > 1 else bounded,  # for a < 1 the conjugate lives on t < 1 / (1 - a)
        conjugate_of_activation=conjugate if a > 1 else conjugate_of_bounded,
    )


def _generalized_entropy(m: float) -> Divergence:
    if not m > 1:
        raise ValueError(f"parameter: the generalized entropy needs m > 1, got {m:g}")

    def conjugate(t: Tensor) -> Tensor:
        return (((m - 1) * t + 1).clamp(min=0) / m) ** (m / (m - 1))

    return Divergence(
        "generalized_entropy",
        f=lambda u: (u**m - u) / (m - 1),
        f_prime=lambda u: (m * u ** (m - 1) - 1) / (m - 1),
        conjugate=conjugate,
        activation=_identity,
        conjugate_of_activation=conjugate,
    )


_PLAIN: dict[str, Callable[[], Divergence]] = {
    "kl": _kl,
    "reverse_kl": _reverse_kl,
    "js": _js,
    "pearson": _pearson,
    "neyman": _neyman,
    "squared_hellinger": _squared_hellinger,
    "total_variation": _total_variation,
}
_PARAMETRIC: dict[str, Callable[[float], Divergence]] = {
    "alpha": _alpha,
    "generalized_entropy": _generalized_entropy,
}
DIVERGENCES: tuple[str, ...] = (*_PLAIN, *_PARAMETRIC)
"""Every name that :func:`divergence` takes; the last two need a ``parameter``."""


def divergence(name: str, parameter: float | None = None) -> Divergence:
    """The row of the table called ``name``.

    Args:
        name: One of :data:`DIVERGENCES`.
        parameter: alpha of ``"alpha"`` (not 0 or 1), m > 1 of ``"generalized_entropy"``; None for the others.

    Raises:
        ValueError: If there is no such row, or its parameter is missing, superfluous or out of range.
    """
    if name in _PLAIN:
        if parameter is not None:
            raise ValueError(f"parameter: the divergence {name!r} takes none, got {parameter!r}")
        return _PLAIN[name]()
    if name in _PARAMETRIC:
        if parameter is None:
            raise ValueError(f"parameter: the divergence {name!r} needs one, got None")
        return _PARAMETRIC[name](float(parameter))
    raise ValueError(f"name: unknown divergence {name!r}, expected one of {', '.join(DIVERGENCES)}")
