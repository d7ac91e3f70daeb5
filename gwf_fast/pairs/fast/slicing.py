"""The even function f of one variable of which a radial kernel is the mean over directions: k(|x|) = E f(theta . x).

A power is one again: E |theta . x|^e is a constant times |x|^e. Of a kernel with a Fourier transform f has the
cosine transform p(rho), the density of its frequencies' length (Hertrich, The relation between slicing and Fourier
transforms, 2024): for scale mixtures of Gaussians, which all of ours are, frequencies are Gaussian vectors times a
random scale. So f(t) = int p(rho) cos(rho t) d rho, which the trapezoid rule turns into a Fourier series of f's
repetitions; the period is where these no longer overlap.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gwf_fast.pairs.fast.exponentials import exponentials
from gwf_fast.pairs.kernels import Term

Spec = tuple[float, ...]

MOST_MODES = 1 << 17
"""Modes of a series beyond which a kernel is taken to have none."""

LARGEST_POWER = 7

ACCURACY = 1e-6
"""Of f, relative to its root mean square: far below any Monte Carlo error; derivatives of
kernels that are not smooth at 0 are held to 30 times this."""

MATERN = {"laplace": 1, "matern32": 3, "matern52": 5}
"""Twice the smoothness: the degrees of freedom of the frequencies' t distribution."""


_DECAY = {"laplace": 4, "matern32": 4, "matern52": 6}
"""The power of 1 / m by which their waves fall off in the end (without Laplace's cusp)."""


_NONE = torch.zeros(0, dtype=torch.float64)


class LineForm(NamedTuple):
    """f(t), for |t| up to some length.

    sum_m waves[m] cos(2 pi (first + m) t / period) + sum_k powers[k] |t|^k + sum_q decays[q] exp(-rates[q] |t|), where
    ``tied`` takes the place of the exponentials at t = 0. Derivatives of a higher order than ``most`` have no mean.
    """

    period: float
    first: int
    waves: Tensor
    powers: Tensor
    rates: Tensor = _NONE
    decays: Tensor = _NONE
    tied: float = 0.0
    most: int = 99

    @property
    def decaying(self) -> tuple[tuple[Tensor, Tensor], float]:
        """What belongs to the exponentials."""
        return (self.rates, self.decays), self.tied

    def with_powers(self, powers: Powers, length: float) -> LineForm:
        """The sum of this and of powers of |t|, up to a length; log |t| reads 0 at 0."""
        whole, broken, logarithm, shift = powers
        total = whole.clone()
        total[: len(self.powers)] += self.powers
        if not broken and not logarithm:
            return self._replace(powers=_trimmed(total))
        rates, decays, tied, low = exponentials(broken, logarithm, length)
        total[:2] += low
        total[0] += shift
        most = min(math.ceil(exponent) for exponent in (*broken, *((0,) if logarithm else ())))
        return self._replace(powers=_trimmed(total), rates=rates, decays=decays, tied=tied - shift, most=most)


SPECTRAL = ("gaussian", "imq", "rational_quadratic", *MATERN)
"""Profiles whose frequencies have a density here."""


def why_not(terms: Sequence[Term], order: int = 0) -> str | None:
    """Why a kernel, or its gradient (order 1), has no sliced form here; None if it has one."""
    from gwf_fast.kernels.table.profiles import PROFILES  # here, as below: SymPy takes a while to import

    for name, parameter in ((term.profile, term.parameter) for term in terms):
        if name not in PROFILES:
            return "serves the kernels of this package, not user-written formulas"
        if name == "log" and order:
            return 'has no form for the forces of log r: those along lines have no mean; use method="nufft" or "exact"'
        if name not in (*SPECTRAL, "distance", "power", "log"):
            return f"has no form for the profile {name}"
        if name == "power" and not (0 < parameter < 2 or (parameter % 1 == 0 and 0 < parameter <= LARGEST_POWER)):
            return f"has no form for r^{parameter:g}: powers must be below 2, or whole, from 1 to {LARGEST_POWER}"
        if name == "rational_quadratic" and parameter < 0.5:
            return f"needs a rational quadratic kernel with alpha >= 0.5, which falls off faster, got {parameter:g}"
    return None


@functools.lru_cache(maxsize=256)
def line_form(spec: Spec, dim: int, length: float, order: int) -> LineForm:
    """f of a kernel in R^dim for distances up to a length and derivatives up to the order; dim = 1 for powers only."""
    powers = _powers(spec, dim)
    spectral = [term for term in _terms(spec) if term[0] not in _EXPONENTS]
    if not spectral:
        return LineForm(1.0, 0, _NONE, _NONE).with_powers(powers, length or 1.0)  # of points that coincide
    rough = any(term[0] in MATERN for term in spectral)
    accuracy = ACCURACY * (30 if rough and order else 1)  # their derivatives' waves fall off so slowly
    widest = max(bandwidth for _, _, bandwidth, _ in spectral)
    length = max(length, 1e-6 * widest)  # over less, a series could not tell the kernel from a constant
    t = torch.linspace(0, length, 33, dtype=torch.float64)
    for step in range(60):
        period = 1.02 * length + 4 * widest * 2 ** (step / 2)
        form = _series(tuple(spectral), dim, period, length, order, accuracy)
        finer = _series(tuple(spectral), dim, 2.7 * period, length, order, accuracy)
        if form is None or finer is None:
            break
        (series, size), (reference, _) = form, finer
        difference = _evaluate(series, t, order) - _evaluate(reference, t, order)
        if float(difference.square().mean().sqrt()) < 3 * accuracy * size:
            return series.with_powers(powers, length)
    raise ValueError(
        f'method="sliced" has no form of at most {MOST_MODES} waves for this kernel over a length of {length:.3g}:'
        " its bandwidth is too small for these points"
    )


_EXPONENTS = ("distance", "power", "log")


class Powers(NamedTuple):
    """Of |t| in f: coefficients by whole exponents, those of others by their exponents, and those of log |t| + c."""

    whole: Tensor
    broken: dict[float, float]
    logarithm: float
    shift: float


def _powers(spec: Spec, dim: int) -> Powers:
    """The terms of a kernel that are powers of a distance."""
    whole, logarithm, shift = torch.zeros(LARGEST_POWER + 1, dtype=torch.float64), 0.0, 0.0
    broken: dict[float, float] = {}
    for name, coefficient, bandwidth, parameter in _terms(spec):
        if name == "log":  # E log |theta . x| is log |x| less a constant
            halves = torch.tensor([dim / 2, 0.5], dtype=torch.float64).digamma()
            logarithm += coefficient
            shift += coefficient * (float(halves[0] - halves[1]) / 2 - math.log(bandwidth))
        elif name in _EXPONENTS:
            exponent = 1.0 if name == "distance" else parameter
            factor = coefficient / bandwidth**exponent * slicing_constant(dim, exponent)
            if exponent % 1 == 0:
                whole[round(exponent)] += factor
            else:
                broken[exponent] = broken.get(exponent, 0.0) + factor
    return Powers(whole, broken, logarithm, shift)


def has_variance(spec: Spec, order: int) -> bool:
    """Whether the terms that a derivative of an order is the mean of, |theta . x|^(e - order), have a variance."""
    terms = [term for term in _terms(spec) if term[0] in ("power", "log")]
    exponents = [0.0 if name == "log" else parameter for name, _, _, parameter in terms]
    return all((exponent % 1 == 0 and exponent > 0) or exponent - order > -0.5 for exponent in exponents)


def slicing_constant(dim: int, exponent: float) -> float:
    """c of |x|^e = c E |theta . x|^e."""
    logarithm = math.lgamma((dim + exponent) / 2) - math.lgamma(dim / 2) - math.lgamma((exponent + 1) / 2)
    return math.sqrt(math.pi) * math.exp(logarithm)


def _terms(spec: Spec) -> list[tuple[str, float, float, float]]:
    from gwf_fast.kernels.table.profiles import PROFILES

    names = list(PROFILES)
    return [(names[int(spec[k])], *spec[k + 1 : k + 4]) for k in range(0, len(spec), 4)]  # type: ignore[misc]


def _trimmed(powers: Tensor) -> Tensor:
    used = powers.nonzero()
    return powers[: int(used[-1]) + 1].clone() if used.numel() else powers[:0]


def _series(
    terms: tuple[tuple[str, float, float, float], ...],
    dim: int,
    period: float,
    length: float,
    order: int,
    accuracy: float,
) -> tuple[LineForm, float] | None:
    """The trapezoid rule, and the root mean square of f^(order) over the length; None if it takes too many modes.

    What f's repetitions add, beginning with a constant, is much the same for all t: f(0) = k(0) corrects the constant.
    """
    spacing = 2 * math.pi / period
    rough = [_DECAY[term[0]] for term in terms if term[0] in _DECAY]
    share = 0.03 if rough else 0.01  # of the error that truncation may have, the waves of smooth kernels fall off fast
    count = 256
    while count <= MOST_MODES:
        rho = spacing * torch.arange(count + 1, dtype=torch.float64)
        density = torch.zeros_like(rho)
        powers = torch.zeros(3, dtype=torch.float64)
        taken = 0.0  # multiple of 1 / rho^2 whose sum is known
        for name, coefficient, bandwidth, parameter in terms:
            density += coefficient * bandwidth * frequency_density(name, parameter, dim, bandwidth * rho)
            if name == "laplace":
                taken += coefficient / bandwidth * slicing_constant(dim, 1) * 2 / math.pi
        waves = spacing * density
        waves[0] /= 2
        size = math.sqrt(float((waves * rho**order).square().sum()) / 2 * max(1.0, period / (2 * length)))
        if taken:  # sum_m cos(m u) / m^2 = pi^2 / 6 - pi u / 2 + u^2 / 4 on [0, 2 pi]: a cusp in closed form
            waves[1:] -= spacing * taken / rho[1:] ** 2
            waves[0] += spacing * taken * period**2 / 24
            powers[1] = -taken * math.pi / 2
            powers[2] = spacing * taken / 4
        beyond = (waves * rho**order).square().flip(0).cumsum(0).flip(0)
        beyond = beyond + beyond[count // 2]  # what lies past the count is less than its second half
        enough = (beyond < 2 * (share * accuracy * size) ** 2).nonzero()
        if enough.numel():
            last = int(enough[0])
            small = (waves[: last + 1].abs() > 1e-3 * ACCURACY * float(waves.abs().max())).nonzero()
            first = int(small[0]) if small.numel() else 0
            uncounted = float(waves[-1]) * count / (min(rough) - 1) if rough else 0.0
            powers[0] = sum(term[1] for term in terms) - float(waves.sum()) - uncounted
            return LineForm(period, first, waves[first : last + 1].clone(), _trimmed(powers)), size
        count *= 2
    return None


def _evaluate(form: LineForm, t: Tensor, order: int) -> Tensor:
    """f^(order)(t), t > 0."""
    out = torch.zeros_like(t)
    rho = 2 * math.pi / form.period * torch.arange(form.first, form.first + len(form.waves), dtype=torch.float64)
    for r, a in zip(rho.split(1 << 10), form.waves.split(1 << 10), strict=True):
        out += ((t[:, None] * r + order * math.pi / 2).cos() * (a * r**order)).sum(1)
    for k in range(order, len(form.powers)):
        out += form.powers[k] * math.perm(k, order) * t ** (k - order)
    return out + torch.exp(-t[:, None] * form.rates) @ (form.decays * (-form.rates) ** order)


def frequency_density(name: str, parameter: float, dim: int, rho: Tensor) -> Tensor:
    """Density of the length of a frequency, of the kernel with bandwidth 1 of a name in ``SPECTRAL``."""
    r = rho.clamp(min=1e-12)
    if name == "gaussian":
        return _chi(dim, r.log()).exp()
    if name in MATERN:
        n = MATERN[name]
        logarithm = (dim - 1) * r.log() - (n + dim) / 2 * torch.log1p(r**2 / n)
        constant = math.lgamma((n + dim) / 2) - math.lgamma(n / 2) - math.lgamma(dim / 2) - dim / 2 * math.log(n)
        return (logarithm + constant + math.log(2)).exp()
    alpha = {"imq": 0.5, "rational_quadratic": parameter}[name]
    return torch.cat([_gamma_mixture(alpha, dim, part) for part in r.split(1 << 9)])


def _chi(dim: int, log_r: Tensor) -> Tensor:
    """Logarithm of the density of |z|, z ~ N(0, I)."""
    constant = (1 - dim / 2) * math.log(2) - math.lgamma(dim / 2)
    return (dim - 1) * log_r - (2 * log_r).exp() / 2 + constant


def _gamma_mixture(alpha: float, dim: int, r: Tensor) -> Tensor:
    """Density of sqrt(tau) |z|, tau ~ Gamma(alpha, rate alpha): of the rational quadratic kernel.

    An integral over v = log tau, whose integrand has one maximum; nodes are spread about it.
    """
    half = dim / 2 - alpha
    root = torch.sqrt(half**2 + 2 * alpha * r**2)
    tau = r**2 / (half + root) if half > 0 else (root - half) / (2 * alpha)  # at the maximum
    width = (alpha * tau + r**2 / (2 * tau)).rsqrt()
    step = 0.05
    z = step * torch.arange(-100, 101, dtype=torch.float64)
    v = tau.log()[:, None] + width[:, None] * z.sinh()
    weight = width[:, None] * z.cosh() * step
    gamma = alpha * math.log(alpha) - math.lgamma(alpha) + alpha * v - alpha * v.exp()
    return ((gamma + _chi(dim, r.log()[:, None] - v / 2) - v / 2).exp() * weight).sum(1)
