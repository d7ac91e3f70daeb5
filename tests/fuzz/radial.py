"""Radial kernels as functions of q = r^2, written here from their formulas and not taken from the package.

A kernel is described by terms, lists such as ``["rational_quadratic", coefficient, h, alpha]``, which can be printed
and read back. Values are differentiable twice, with the conventions at r = 0: a slope that does not exist is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import gwf_fast as gwf
from tests.fuzz.rounding import ULPS, Rounding, summed

Term = Sequence[Any]


class Radial(NamedTuple):
    """phi(q) and dphi/dq, which is 0 at q = 0 where it does not exist; log phi and its derivative where phi > 0."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    log_value: Callable[[Tensor], Tensor] | None = None
    log_slope: Callable[[Tensor], Tensor] | None = None


def at_positive(q: Tensor, function: Callable[[Tensor], Tensor], at_zero: float = 0.0) -> Tensor:
    """function(q), and a constant where q = 0: so that no derivative of a root there is ever formed."""
    zero = q == 0
    return torch.where(zero, at_zero, function(torch.where(zero, 1.0, q)))


def _gaussian(h: float) -> Radial:
    c = 1 / (2 * h * h)
    return Radial(
        lambda q: torch.exp(-c * q),
        lambda q: -c * torch.exp(-c * q),
        lambda q: -c * q,
        lambda q: torch.full_like(q, -c) + 0 * q,
    )


def _laplace(h: float) -> Radial:
    def of_r(f: Callable[[Tensor], Tensor], at_zero: float) -> Callable[[Tensor], Tensor]:
        return lambda q: at_positive(q, lambda p: f(p.sqrt()), at_zero)

    return Radial(
        of_r(lambda r: torch.exp(-r / h), 1.0),
        of_r(lambda r: -torch.exp(-r / h) / (2 * h * r), 0.0),
        of_r(lambda r: -r / h, 0.0),
        of_r(lambda r: -1 / (2 * h * r), 0.0),
    )


def _rational(h: float, alpha: float, c: float) -> Radial:  # (1 + c q / h^2)^-alpha
    c = c / h**2
    return Radial(
        lambda q: torch.exp(-alpha * torch.log1p(c * q)),
        lambda q: -alpha * c * torch.exp(-(alpha + 1) * torch.log1p(c * q)),
        lambda q: -alpha * torch.log1p(c * q),
        lambda q: -alpha * c / (1 + c * q),
    )


def _matern(h: float, order: int) -> Radial:  # order 1: 3/2; 2: 5/2
    c = math.sqrt(2 * order + 1) / h

    def u(q: Tensor) -> Tensor:
        return at_positive(q, lambda p: c * p.sqrt())

    if order == 1:
        return Radial(
            lambda q: (1 + u(q)) * torch.exp(-u(q)),
            lambda q: -(c**2) / 2 * torch.exp(-u(q)),
            lambda q: torch.log1p(u(q)) - u(q),
            lambda q: -(c**2) / 2 / (1 + u(q)),
        )
    return Radial(
        lambda q: (1 + u(q) + u(q) ** 2 / 3) * torch.exp(-u(q)),
        lambda q: -(c**2) / 6 * (1 + u(q)) * torch.exp(-u(q)),
        lambda q: torch.log1p(u(q) + u(q) ** 2 / 3) - u(q),
        lambda q: -(c**2) / 6 * (1 + u(q)) / (1 + u(q) + u(q) ** 2 / 3),
    )


def _power(c: float, e: float) -> Radial:  # c r^e
    def value(q: Tensor) -> Tensor:
        return at_positive(q, lambda p: c * p ** (e / 2))

    def slope(q: Tensor) -> Tensor:
        if e == 2:
            return torch.full_like(q, c) + 0 * q
        return at_positive(q, lambda p: c * e / 2 * p ** (e / 2 - 1))

    return Radial(value, slope)


def _logarithm(c: float) -> Radial:  # c log r
    return Radial(lambda q: at_positive(q, lambda p: c * p.log() / 2), lambda q: at_positive(q, lambda p: c / 2 / p))


def _sum(*parts: tuple[float, Radial]) -> Radial:
    return Radial(
        lambda q: summed(c * part.value(q) for c, part in parts),
        lambda q: summed(c * part.slope(q) for c, part in parts),
    )


def _power_law(p: float, q: float) -> Radial:
    return _sum(*((s, _power(1 / e, e) if e else _logarithm(1.0)) for s, e in ((1.0, p), (-1.0, q))))


_RADIALS: dict[str, tuple[Callable[..., gwf.Kernel], Callable[..., Radial]]] = {
    "gaussian": (gwf.Gaussian, _gaussian),
    "laplace": (gwf.Laplace, _laplace),
    "imq": (gwf.IMQ, lambda h: _rational(h, 0.5, 1.0)),
    "rational_quadratic": (gwf.RationalQuadratic, lambda h, a: _rational(h, a, 1 / (2 * a))),
    "matern32": (gwf.Matern32, lambda h: _matern(h, 1)),
    "matern52": (gwf.Matern52, lambda h: _matern(h, 2)),
    "riesz": (gwf.Riesz, lambda e: _power(-1.0, e)),
    "power_law": (gwf.PowerLaw, _power_law),
    "morse": (gwf.Morse, lambda cr, lr, ca, la: _sum((cr, _laplace(lr)), (-ca, _laplace(la)))),
}
SCALED = ("gaussian", "laplace", "imq", "rational_quadratic", "matern32", "matern52")
"""Those with a bandwidth, which are positive too."""


def kernel_of(terms: Sequence[Term]) -> gwf.Kernel:
    """The package's kernel."""
    parts = [_RADIALS[name][0](*rest) if c == 1 else c * _RADIALS[name][0](*rest) for name, c, *rest in terms]
    out = parts[0]
    for part in parts[1:]:
        out = out + part
    return out


def smooth_of(terms: Sequence[Term]) -> bool:
    """Whether all slopes exist at r = 0."""
    return all(name in SCALED and name != "laplace" for name, *_ in terms)


class Dense:
    """The sum of terms, evaluated with a :class:`~tests.fuzz.rounding.Rounding` of values and of slopes."""

    def __init__(self, terms: Sequence[Term], rounding: Rounding) -> None:
        held = rounding.constant
        self.parts = [(held(c), _RADIALS[name][1](*map(held, rest))) for name, c, *rest in terms]
        self.powers = [name in ("riesz", "power_law", "imq", "rational_quadratic") for name, *_ in terms]
        self.rounding = rounding

    def __call__(self, q: Tensor) -> Tensor:
        """phi(q)."""
        return summed(
            self._rounded(c * _Curve.apply(q, part.value, part.slope, self.rounding), is_power)
            for (c, part), is_power in zip(self.parts, self.powers, strict=True)
        )

    def _rounded(self, value: Tensor, is_power: bool) -> Tensor:
        """A value; a power is exp(e log r), or of 1 + s, of which the exponent is rounded too."""
        value = self.rounding(value)
        if not is_power:
            return value
        exponent = torch.where(value == 0, 1.0, value.detach().abs()).log().abs()
        return self.rounding.moved(value, (value.detach() * exponent).abs() / ULPS)

    def slope(self, q: Tensor) -> Tensor:
        """dphi/dq."""
        return summed(
            self._rounded(c * rounded_apart(part.slope, self.rounding)(q), is_power)
            for (c, part), is_power in zip(self.parts, self.powers, strict=True)
        )

    def log(self, q: Tensor) -> Tensor:
        """log phi(q), a logarithm for each term: [..., terms]."""
        logs = [math.log(c) + _Curve.apply(q, part.log_value, part.log_slope, self.rounding) for c, part in self.parts]
        return torch.stack([self.rounding(log) for log in logs], -1)


class _Curve(torch.autograd.Function):
    """A function with its derivative given, which is differentiable in turn, and rounds on its own account."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, value: Callable, slope: Callable, rounding: Rounding) -> Tensor:
        ctx.save_for_backward(q)
        ctx.slope, ctx.rounding = slope, rounding
        return value(q)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        (q,) = ctx.saved_tensors
        return g * rounded_apart(ctx.slope, ctx.rounding)(q), None, None, None


def rounded_apart(function: Callable[[Tensor], Tensor], rounding: Rounding) -> Callable[[Tensor], Tensor]:
    """A function whose derivatives of all orders are rounded each on its own account, so that none cancels another."""
    if rounding.eps == 0:
        return function

    def derivative(q: Tensor) -> Tensor:
        with torch.enable_grad():
            at = q.detach().requires_grad_()
            value = function(at)
            if not value.requires_grad:
                return torch.zeros_like(q)
            (slope,) = torch.autograd.grad(value.sum(), at, create_graph=True, materialize_grads=True)
            return slope

    return lambda q: rounding(_Curve.apply(q, function, derivative, rounding))
