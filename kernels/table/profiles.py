"""The table of radial profiles: each kernel k(x, y) = phi(s) is written once, here.

``s = |x - y|^2 / h^2`` is the scaled squared distance and ``p`` the profile's own parameter, where it has
one. Everything else is derived: derivatives up to the third, the split ``phi = prefactor * exp(-exponent)``
that lets a backend work in the log domain, and the change of variable that turns the exponential into a
bare ``2**-x``. ``codegen.py`` prints the result to C++, Triton and KeOps; ``reference/pairs.py`` evaluates it in
PyTorch; tests and benchmarks take their parametrisation from it. To add a profile, add it here; CONTRIBUTING.md
("Add a profile") names the few places that know profiles by name.

Formulas: section 1 of the project's mathematics (Gaussian, Laplace, Matern: Rasmussen & Williams 2006, ch. 4;
Riesz kernels: Hertrich et al. 2024).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import sympy as sp

s = sp.Symbol("s", positive=True)
t = sp.Symbol("t", positive=True)
p = sp.Symbol("p", positive=True)

MAX_ORDER = 3
"""Highest derivative a backend needs: second derivatives of a gradient."""


@dataclass(frozen=True)
class Profile:
    """One radial profile.

    Attributes:
        name: How backends and tests call it.
        phi: The value as an expression in ``s`` and ``p``.
        positive: Whether phi > 0 everywhere, so that log k exists.
        singular: Whether phi itself (not only a derivative) is infinite at s = 0. Coincident
            points then contribute 0, by convention.
        scaled: Whether the profile has a bandwidth (the others are used with h = 1).
        test_parameter: A typical ``p`` for tests and benchmarks; None where there is none.
    """

    name: str
    phi: sp.Expr
    positive: bool = True
    singular: bool = False
    scaled: bool = True
    test_parameter: float | None = None

    @functools.cached_property
    def split(self) -> tuple[sp.Expr, sp.Expr]:
        """(R, X) with phi = R * exp(-X), X >= 0, in s. X carries all that could underflow; it may be 0."""
        if self.phi.is_Pow and self.phi.exp == -p:
            return sp.Integer(1), p * sp.log(self.phi.base)
        factors = self.phi.atoms(sp.exp)
        if not factors:
            return self.phi, sp.Integer(0)
        (factor,) = factors
        return sp.powsimp(self.phi / factor), -factor.args[0]

    @property
    def exponent_in_s(self) -> sp.Expr:
        """X of the split."""
        return self.split[1]

    @functools.cached_property
    def unit(self) -> sp.Expr:
        """u such that, with t = u * s, the exponential factor is 2**-(t**q), q = 1 or 1/2; 1 where there is none."""
        _, x = self.split
        degree = sp.simplify(sp.diff(x, s) * s / x) if x != 0 else sp.Integer(0)
        if degree == 0 or degree.free_symbols:
            return sp.Integer(1)
        return (sp.simplify(x / s**degree) / sp.log(2)) ** (1 / degree)

    @functools.cached_property
    def exponent(self) -> sp.Expr:
        """The base-2 exponent in t: the exponential factor is 2**-exponent."""
        x = (self.split[1] / sp.log(2)).subs(s, t / self.unit)
        return x if x.has(p) else sp.powdenest(sp.simplify(x), force=True)

    @functools.cached_property
    def prefactors(self) -> tuple[sp.Expr, ...]:
        """(R_0, ..., R_3) in t with d^k phi / dt^k = R_k(t) * 2**-exponent(t)."""
        r, x = (part.subs(s, t / self.unit) for part in self.split)
        rows = [_tidy(r)]
        for _ in range(MAX_ORDER):
            rows.append(_tidy(sp.diff(rows[-1], t) - rows[-1] * sp.diff(x, t)))
        return tuple(rows)

    @property
    def smooth(self) -> bool:
        """Whether phi and phi' are finite at s = 0, so that a small error in s does no harm there."""
        return all(sp.limit(row.subs(p, self.test_parameter or 1), s, 0, "+").is_finite for row in self.derivatives[:2])

    @functools.cached_property
    def derivatives(self) -> tuple[sp.Expr, ...]:
        """(phi, phi', phi'', phi''') with respect to s, for the reference."""
        rows = [self.phi]
        for _ in range(MAX_ORDER):
            rows.append(_tidy(sp.diff(rows[-1], s)))
        return tuple(rows)


def _tidy(expression: sp.Expr) -> sp.Expr:
    """A sum of powers of the square root, or one product of powers: what code is printed from."""
    if expression.has(sp.sqrt(t), sp.sqrt(s), sp.exp):
        return sp.powsimp(sp.expand(sp.powsimp(sp.expand(expression))))
    return sp.powsimp(sp.factor_terms(sp.powsimp(expression)))


_r = sp.sqrt(s)

_TABLE = (
    Profile("gaussian", sp.exp(-s / 2)),
    Profile("laplace", sp.exp(-_r)),
    Profile("imq", (1 + s) ** sp.Rational(-1, 2)),
    Profile("rational_quadratic", (1 + s / (2 * p)) ** (-p), test_parameter=1.7),
    Profile("matern32", (1 + sp.sqrt(3) * _r) * sp.exp(-sp.sqrt(3) * _r)),
    Profile("matern52", (1 + sp.sqrt(5) * _r + 5 * s / 3) * sp.exp(-sp.sqrt(5) * _r)),
    Profile("distance", _r, positive=False, scaled=False),
    Profile("power", s ** (p / 2), positive=False, scaled=False, test_parameter=1.5),
    Profile("log", sp.log(s) / 2, positive=False, singular=True, scaled=False),
)

PROFILES: dict[str, Profile] = {profile.name: profile for profile in _TABLE}
"""The registry, in the order that gives each profile its number in the compiled backends."""

if len(PROFILES) != len(_TABLE):
    raise ValueError("kernels/table/profiles.py: two profiles have the same name")
