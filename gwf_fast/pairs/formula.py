"""``gwf.Radial``: a kernel from the user's own formula, at once, with derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gwf_fast.kernels.table.profile_numbers import times_cost
from gwf_fast.pairs.kernels import Term, _Elementary

if TYPE_CHECKING:
    import sympy as sp


@dataclass(frozen=True, eq=False, repr=False)
class Radial(_Elementary):
    """A radial kernel from a SymPy expression in ``s = |x - y|^2`` and ``r = |x - y|``.

    Derivatives come from SymPy. The KeOps backend evaluates it (one compilation for each reduction and number of
    coordinates, some seconds, kept on disk), or the reference where KeOps isn't installed. At coincident points, any
    negative power of r, and log r, count as 0. ``kernel_logsumexp`` and ``kernel_average`` take it if SymPy can prove
    that it is positive.

    Example:
        >>> r = sympy.Symbol("r")
        >>> kernel = gwf.Radial(sympy.exp(-r) * sympy.cos(r))

    Args:
        expression: The formula; symbols are recognised by their names, ``s`` and ``r``.

    Raises:
        TypeError: Not a SymPy expression.
        ValueError: Another symbol: the kernel would not be radial; or no dependence on s or r; or not real.
    """

    expression: sp.Expr

    def __post_init__(self) -> None:
        """Register the formula."""
        self._derive((Term(Radial.profile_of("expression", self.expression), 1.0),))

    @staticmethod
    def profile_of(name: str, expression: Any) -> str:
        """The name of the profile that an argument writes down, registered.

        Raises:
            TypeError, ValueError: As the class says, of this argument.
        """
        from gwf_fast.kernels.table import formulas  # here: importing gwf_fast imports nothing heavy

        return formulas.register(_radial(name, expression)).name


@dataclass(frozen=True, eq=False, repr=False)
class Boltzmann(_Elementary):
    """exp(-c / epsilon) of a cost c that a user wrote, by the name that ``read_cost`` gave; or c times that."""

    profile: str
    epsilon: float
    times_cost: bool = False

    def __post_init__(self) -> None:
        """Its one term."""
        name = times_cost(self.profile) if self.times_cost else self.profile
        self._derive((Term(name, 1.0, 1.0, 1 / self.epsilon),))


def read_cost(name: str) -> tuple[int, float, str | None]:
    """What a profile is as a cost: (p, factor, None) for |factor r|^p / p, else (2, 1.0, the name for ``Boltzmann``).

    Raises:
        ValueError: If no sum over pairs can be taken of exp(-c / eps).
    """
    import sympy as sp

    from gwf_fast.kernels.reference.profiles import FUNCTIONS
    from gwf_fast.kernels.table import formulas
    from gwf_fast.kernels.table.profiles import s

    cost = formulas.by_name(name).phi
    for p, unit in ((2, s / 2), (1, sp.sqrt(s))):
        ratio = sp.simplify(cost / unit)
        if ratio.is_number and ratio > 0:
            return p, float(ratio) ** (1 / p), None
    strangers = sorted({type(f).__name__ for f in cost.atoms(sp.Function)} - {*FUNCTIONS, "log", "Abs"})
    if strangers:
        raise ValueError(f"cost must be made of powers, log, Abs, {', '.join(FUNCTIONS)}, got {', '.join(strangers)}")
    if not sp.limit(cost, s, 0, "+").is_finite:
        shown = cost.subs(s, sp.Symbol("r", positive=True) ** 2)
        raise ValueError(f"cost must be finite at r = 0, got {shown}")
    return 2, 1.0, formulas.register_cost(cost).name


def _radial(name: str, expression: Any) -> sp.Expr:
    """What an argument says of r = |x - y| and s = r^2, in the table's symbol for s.

    Raises:
        TypeError: Not a SymPy expression.
        ValueError: Another symbol, none at all, or not real.
    """
    import sympy as sp

    from gwf_fast.kernels.table import profiles

    if not isinstance(expression, sp.Expr):
        raise TypeError(f"{name} must be a SymPy expression in s and r, got {type(expression).__name__}")
    strangers = sorted(symbol.name for symbol in expression.free_symbols if symbol.name not in ("s", "r"))
    if strangers:
        found = f"{', '.join(strangers)} in {expression}"
        raise ValueError(f"{name} must depend on s and r only to be radial, got {found}")
    if not expression.free_symbols:
        raise ValueError(f"{name} must depend on s or r, got the constant {expression}")
    values = {"s": profiles.s, "r": sp.sqrt(profiles.s)}
    meaning = {symbol: values[symbol.name] for symbol in expression.free_symbols}
    phi = sp.sympify(expression.subs(meaning, simultaneous=True))
    if phi.is_real is False or phi.has(sp.I, sp.nan, sp.zoo, sp.oo):
        raise ValueError(f"{name} must be real and finite for r > 0, got {expression}")
    return phi
