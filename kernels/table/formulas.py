"""Profiles that users write, numbered after those of the table: what ``gwf.Radial`` registers.

A number stands for a formula in the ``spec`` of a kernel, within one process. The backends that can evaluate any
formula (the reference and KeOps) look it up here.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Hashable
from dataclasses import dataclass

import sympy as sp

from gwf_fast.kernels.table.profile_numbers import FIRST_FORMULA as FIRST
from gwf_fast.kernels.table.profile_numbers import FORMULA_IS_POSITIVE, profile_id
from gwf_fast.kernels.table.profiles import MAX_ORDER, PROFILES, Profile, p, s

_numbers: dict[Hashable, int] = {}
_profiles: list[Profile] = []
_lock = threading.Lock()


class Formula(Profile):
    """A profile written by a user: any expression in s, split into prefactor and exponential where that is safe."""

    @functools.cached_property
    def split(self) -> tuple[sp.Expr, sp.Expr]:
        """(R, X) with phi = R * exp(-X); X = 0 unless phi is one exponential times something without."""
        factors = self.phi.atoms(sp.exp)
        if len(factors) == 1:
            (factor,) = factors
            rest = sp.powsimp(self.phi / factor)
            if not rest.has(sp.exp):
                return rest, -factor.args[0]
        return self.phi, sp.Integer(0)


@dataclass(frozen=True)
class CostFormula(Formula):
    """exp(-p c) of a cost c(s) that a user wrote, or c exp(-p c), where p is one over an epsilon.

    The exponential is apart whatever c is, so that sums are taken in the log domain; and the parameter is no part of
    the formula, so that there is one program for all epsilons.

    Attributes:
        cost: c, an expression in s that is finite at 0.
        weighted: Whether c is a factor.
    """

    cost: sp.Expr = s
    weighted: bool = False

    @functools.cached_property
    def split(self) -> tuple[sp.Expr, sp.Expr]:
        """(1 or c, p c)."""
        return self.cost if self.weighted else sp.Integer(1), p * self.cost

    @functools.cached_property
    def rows(self) -> tuple[sp.Expr, ...]:
        """(R_0, ..., R_3): the k-th derivative in s is R_k exp(-p c)."""
        rows = [self.split[0]]
        slope = p * sp.diff(self.cost, s)
        for _ in range(MAX_ORDER):
            row = sp.diff(rows[-1], s) - rows[-1] * slope
            rows.append(sp.powsimp(sp.expand(sp.powsimp(sp.expand(row)))))  # r times 1/r is 1, at 0 too
        return tuple(rows)


def register(phi: sp.Expr) -> Profile:
    """The profile of a formula in s; the same for equal expressions."""
    with _lock:
        if phi not in _numbers:
            _append(phi, Formula(_next(), phi, positive=phi.is_positive is True, scaled=False))
        return _profiles[_numbers[phi] - FIRST]


def register_cost(cost: sp.Expr) -> Profile:
    """The profile of exp(-p c), and after it that of c exp(-p c); the same for equal expressions."""
    phi = sp.exp(-p * cost)
    with _lock:
        if (key := ("cost", cost)) not in _numbers:
            _append(key, CostFormula(_next(), phi, scaled=False, cost=cost))
            times = CostFormula(_next(), cost * phi, positive=False, scaled=False, cost=cost, weighted=True)
            _append(("times cost", cost), times)
        return _profiles[_numbers[key] - FIRST]


def _next() -> str:
    return f"formula{len(_profiles)}"


def _append(key: Hashable, profile: Profile) -> None:
    _numbers[key] = FIRST + len(_profiles)
    FORMULA_IS_POSITIVE[profile.name] = profile.positive
    _profiles.append(profile)


def profile(number: int) -> Profile:
    """The profile of a number, from the table or written by a user.

    Raises:
        ValueError: There is none of this number, as in a spec that was saved by another process.
    """
    table = list(PROFILES.values())
    if 0 <= number < len(table):
        return table[number]
    if not FIRST <= number < FIRST + len(_profiles):
        raise ValueError(f"profile {number}: not in the table and not a formula of this process")
    return _profiles[number - FIRST]


def by_name(name: str) -> Profile:
    """The profile of a name, from the table or written by a user."""
    return profile(profile_id(name))
