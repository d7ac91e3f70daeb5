"""Profiles that users write, numbered after those of the table: what ``gwf.Radial`` registers.

A number stands for a formula in the ``spec`` of a kernel, within one process. The backends that can evaluate any
formula (the reference and KeOps) look it up here.
"""

from __future__ import annotations

import functools
import threading

import sympy as sp

from gwf_fast.kernels.table.profile_numbers import FIRST_FORMULA as FIRST
from gwf_fast.kernels.table.profile_numbers import FORMULA_IS_POSITIVE, profile_id
from gwf_fast.kernels.table.profiles import PROFILES, Profile

_numbers: dict[sp.Expr, int] = {}
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


def register(phi: sp.Expr) -> Profile:
    """The profile of a formula in s; the same for equal expressions."""
    with _lock:
        if phi not in _numbers:
            _numbers[phi] = FIRST + len(_profiles)
            name, positive = f"formula{len(_profiles)}", phi.is_positive is True
            FORMULA_IS_POSITIVE[name] = positive
            _profiles.append(Formula(name, phi, positive=positive, scaled=False))
        return _profiles[_numbers[phi] - FIRST]


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
