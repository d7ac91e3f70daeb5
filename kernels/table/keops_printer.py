"""Prints a radial profile as KeOps formula text.

KeOps has traps that the text steps around, so that float64 means float64: rational constants (``RatCst``) are
rounded to float32 unless they are dyadic, ``Powf`` calls the float32 function, and ``Pow`` does so on GPUs. At
coincident points the project's convention holds: 1/r and log r are 0.
"""

from __future__ import annotations

import sympy as sp

from gwf_fast.kernels.table.formulas import CostFormula
from gwf_fast.kernels.table.profiles import MAX_ORDER, Profile, p, s

EXACT = 2**24
"""Integers below this are exact in float32, the type KeOps stores constants in."""

_FUNCTIONS = {sp.exp: "Exp", sp.sin: "Sin", sp.cos: "Cos", sp.Abs: "Abs", sp.atan: "Atan", sp.sign: "Sign"}


class UnsupportedExpressionError(ValueError):
    """KeOps has no equivalent for a part of the expression."""


def keops_text(expression: sp.Expr) -> str:
    """The text of an expression in ``s`` (and ``p``), with ``{s}`` and ``{p}`` left to be filled in.

    Raises:
        UnsupportedExpressionError: A function or symbol that KeOps can't express.
    """
    if expression == s:
        return "{s}"
    if expression == p:
        return "{p}"
    if expression.is_number:
        return _number(expression)
    if expression.is_Add:
        return f"({'+'.join(map(keops_text, expression.args))})"
    if expression.is_Mul:
        return f"({'*'.join(map(keops_text, expression.args))})"
    if expression.is_Pow:
        return _power(*expression.args)
    if expression.func is sp.log:
        return _log(expression.args[0])
    if expression.func in _FUNCTIONS:
        return f"{_FUNCTIONS[expression.func]}({keops_text(expression.args[0])})"
    raise UnsupportedExpressionError(f"KeOps has no equivalent of {expression.func.__name__} in {expression}")


def split_text(profile: Profile) -> tuple[str | None, tuple[str, ...]]:
    """(X, (R_0, ..., R_3)) with the k-th derivative of phi in s equal to R_k exp(-X); X is None where it is 0.

    With the exponent apart, exp(shift - X) is representable wherever the result is.
    """
    prefactor, exponent = profile.split
    if isinstance(profile, CostFormula):
        return keops_text(exponent), tuple(map(keops_text, profile.rows))
    if exponent == 0:
        return None, tuple(map(keops_text, profile.derivatives))
    rows = [sp.expand(prefactor)]
    for _ in range(MAX_ORDER):
        rows.append(_powers(sp.diff(rows[-1], s) - rows[-1] * sp.diff(exponent, s)))
    return keops_text(exponent), tuple(map(keops_text, rows))


def _powers(expression: sp.Expr) -> sp.Expr:
    """A sum of products, the powers of s gathered: 1/r times r must not be 0 at coincident points."""
    if expression.has(p):
        return sp.powsimp(sp.factor_terms(sp.powsimp(expression)))
    return sp.powsimp(sp.expand(sp.powsimp(sp.expand(expression))))


def _number(value: sp.Expr) -> str:
    if value.is_Integer:
        return _integer(int(value))
    if value.is_Rational:
        numerator, denominator = int(value.p), int(value.q)
        if denominator & (denominator - 1) == 0 and abs(numerator) < EXACT:
            return f"RatCst({numerator},{denominator})"
        return f"({_integer(numerator)}*Inv({_integer(denominator)}))"
    if value.is_Pow and value.exp == sp.Rational(1, 2) and value.base.is_Rational and value.base > 0:
        return f"Sqrt({_number(value.base)})"
    if value.is_Mul:
        return f"({'*'.join(map(_number, value.args))})"
    if not value.is_finite or not value.is_real:
        raise UnsupportedExpressionError(f"{value} is not a finite real number")
    return _number(sp.Rational(str(value.evalf(17))))


def _integer(value: int) -> str:
    if abs(value) < EXACT:
        return f"IntCst({value})"
    high, low = divmod(abs(value), EXACT)
    text = f"({_integer(high)}*IntCst({EXACT})" + (f"+IntCst({low}))" if low else ")")
    return text if value > 0 else f"(IntCst(-1)*{text})"


def _power(base: sp.Expr, exponent: sp.Expr) -> str:
    inner = keops_text(base)
    if (2 * exponent).is_Integer:
        twice = int(2 * exponent)
        if twice % 2 == 0:
            return _product(inner, twice // 2) if twice > 0 else _inverse(base, inner, -twice)
        if twice > 0:
            return "*".join([f"Sqrt({inner})"] + ([_product(inner, twice // 2)] if twice > 1 else []))
        return _product(f"Rsqrt({inner})", -twice)
    if base != s:  # positive: no convention needed
        return f"Exp({keops_text(exponent)}*Log({inner}))"
    e = keops_text(exponent)
    one_at_zero = f"(IntCst(1)-Abs(Sign({e})))"  # 0**0 is 1, every other power of 0 counts as 0
    return f"(Exp({e}*{_log(s)})*(Sign({inner})+{one_at_zero}*(IntCst(1)-Sign({inner}))))"


def _inverse(base: sp.Expr, inner: str, twice: int) -> str:
    if base == s:  # Rsqrt is 0 at 0, Inv is not
        return _product(f"Rsqrt({inner})", twice)
    return _product(f"Inv({inner})", twice // 2)


def _product(factor: str, count: int) -> str:
    return f"({'*'.join([factor] * count)})" if count > 1 else factor


def _log(argument: sp.Expr) -> str:
    inner = keops_text(argument)
    if argument == s:
        return f"Log({inner}+(IntCst(1)-Sign({inner})))"  # log 1 = 0 at coincident points
    return f"Log({inner})"
