"""The numbers of profiles, which stand for them in the ``spec`` of a kernel. Importing this imports no SymPy."""

from __future__ import annotations

from gwf_fast.kernels.table.profile_names_generated import POSITIVE

FIRST_FORMULA = 1000
"""Numbers from here on are formulas that users wrote, within one process; those below are places in the table."""

FORMULA_IS_POSITIVE: dict[str, bool] = {}
"""What ``formulas.py`` knows of each formula of this process."""

_NUMBERS = {name: number for number, name in enumerate(POSITIVE)}


def is_formula(name: str) -> bool:
    """Whether this is the name of a profile that a user wrote."""
    return name not in _NUMBERS


def profile_id(name: str) -> int:
    """The number of a profile, from the table or written by a user."""
    return FIRST_FORMULA + int(name.removeprefix("formula")) if is_formula(name) else _NUMBERS[name]


def times_cost(name: str) -> str:
    """The name of the profile c exp(-p c) by that of exp(-p c), which it is registered after."""
    return f"formula{profile_id(name) - FIRST_FORMULA + 1}"


def is_positive(name: str) -> bool:
    """Whether phi > 0 everywhere, so that log k exists."""
    return FORMULA_IS_POSITIVE[name] if is_formula(name) else POSITIVE[name]
