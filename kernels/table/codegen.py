"""Prints the table of ``profiles.py`` to the languages of the backends.

``python -m gwf_fast.kernels.table.codegen`` rewrites the generated files; with ``--check`` it only says whether they
are current. A profile becomes its *jet*: phi and its derivatives with respect to ``t = unit * s``, up to the order
asked for, with common subexpressions shared. Powers are lowered to what every backend offers:

    root(t)       sqrt(t)
    rsqrt0(t)     1/sqrt(t), and 0 at t = 0       (the convention for coincident points)
    pow0(t, e)    t**e, and 0 at t = 0 for e < 0
    log0(t)       log(t), and 0 at t = 0
    two_rsqrt(u) = 2/sqrt(u), inverse(u), log2_of(u)   for u > 0
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import sympy as sp
from sympy.printing.c import C99CodePrinter

from gwf_fast.kernels.table.profiles import MAX_ORDER, PROFILES, Profile, p, t

ROOT = Path(__file__).resolve().parents[2]


class Lowering:
    """Replaces the powers and logarithms of an expression by calls, each computed once."""

    def __init__(self) -> None:
        self._symbols: dict[sp.Expr, sp.Symbol] = {}

    @property
    def definitions(self) -> list[tuple[sp.Symbol, sp.Expr]]:
        """(symbol, call) in an order in which they can be computed."""
        inverse_root = self._symbols.get(_call("rsqrt0", t))
        rows = [(symbol, call) for call, symbol in self._symbols.items()]
        if inverse_root is not None:  # the root then costs a product
            rows = [(symbol, t * inverse_root if call == _call("root", t) else call) for symbol, call in rows]
            rows.sort(key=lambda row: row[0] != inverse_root)
        return rows

    def _once(self, name: str, call: sp.Expr) -> sp.Symbol:
        if call not in self._symbols:
            taken = sum(symbol.name.startswith(name) for symbol in self._symbols.values())
            self._symbols[call] = sp.Symbol(f"{name}{taken}" if taken else name)
        return self._symbols[call]

    def __call__(self, expression: sp.Expr) -> sp.Expr:
        """The expression in terms of the symbols that ``definitions`` defines."""
        if expression == sp.log(t):
            return self._once("lt", _call("log0", t))
        if expression.func == sp.log and expression.has(t):
            return sp.log(2) * self._once("lb", _call("log2_of", *expression.args))
        if expression.is_Atom or expression.is_number:
            return expression
        if expression.is_Pow:
            return self._power(*expression.args)
        return expression.func(*map(self, expression.args))

    def _power(self, base: sp.Expr, exponent: sp.Expr) -> sp.Expr:
        if base == t:
            return self._power_of_t(exponent)
        if not base.has(t):
            return base**exponent
        if exponent.is_Integer and exponent < 0:
            return self._once("ib", _call("inverse", base)) ** (-exponent)
        half = self._once("w", _call("two_rsqrt", sp.expand(4 * base)))  # 2/sqrt(4 base)
        return half ** (-2 * exponent)

    def _power_of_t(self, exponent: sp.Expr) -> sp.Expr:
        if exponent.has(p):
            return self._once("g", _call("pow0", t, exponent))
        twice = 2 * exponent
        if twice < 0:
            return self._once("ir", _call("rsqrt0", t)) ** (-twice)
        if twice % 2 == 0:
            return t**exponent
        return t ** ((twice - 1) / 2) * self._once("r", _call("root", t))


def _call(name: str, *arguments: sp.Expr) -> sp.Expr:
    return sp.Function(name)(*arguments)


def jet_statements(profile: Profile, order: int) -> tuple[list[tuple[sp.Symbol, sp.Expr]], sp.Expr, list[sp.Expr]]:
    """Assignments, the base-2 exponent, and the prefactors R_0..R_order in terms of them."""
    lower = Lowering()
    numeric = {sp.log(2): sp.log(2).evalf(30)}  # so that products of constants become one constant
    exponent = lower(profile.exponent).subs(numeric)
    prefactors = [lower(row).subs(numeric) for row in profile.prefactors[: order + 1]]
    shared, reduced = sp.cse([exponent, *prefactors], symbols=sp.numbered_symbols("c"), order="none")
    return lower.definitions + shared, reduced[0], list(reduced[1:])


class _Printer(C99CodePrinter):
    """Expressions over a vector type: numbers go through ``number``, small powers are products."""

    def __init__(self, number: Callable[[str], str]) -> None:
        super().__init__()
        self._number = number

    def _float(self, value: sp.Expr) -> str:
        return self._number(repr(float(value.evalf(25))))

    def doprint(self, expr: sp.Expr, assign_to: None = None) -> str:
        return super().doprint(_fold_numbers(expr), assign_to)

    def _print_Integer(self, expr: sp.Expr) -> str:
        return self._float(expr)

    _print_Rational = _print_Float = _print_Integer

    def _print_Pow(self, expr: sp.Expr) -> str:
        base, exponent = expr.args
        if exponent.is_Integer and 0 < exponent <= 8:
            return "(" + "*".join([self.parenthesize(base, 100)] * int(exponent)) + ")"
        if exponent.is_Integer and exponent < 0:
            return f"inverse({self._print(base**-exponent)})"
        raise ValueError(f"codegen: no lowering for the power {expr}")

    def _print_Function(self, expr: sp.Expr) -> str:
        return f"{expr.func.__name__}({', '.join(map(self._print, expr.args))})"


def _fold_numbers(expression: sp.Expr) -> sp.Expr:
    """One floating-point constant for each product of numbers such as log(2)**2/12."""
    if not expression.is_Atom and expression.is_number:
        return sp.Float(expression.evalf(25), 25)
    if expression.is_Mul:
        constant, rest = expression.as_independent(*expression.free_symbols, as_Add=False)
        folded = rest.func(*map(_fold_numbers, rest.args)) if rest.is_Mul else _fold_numbers(rest)
        if constant == 1:
            return folded
        return sp.Mul(sp.Float(constant.evalf(25), 25), folded, evaluate=False)
    if expression.is_Atom or expression.is_Pow:
        return expression
    return expression.func(*map(_fold_numbers, expression.args))


HEADER = "Generated by kernels/table/codegen.py from kernels/table/profiles.py: edit those, then run `make codegen`."


def _cpp_jet(profile: Profile, order: int) -> list[str]:
    printer = _Printer(lambda value: f"T({value})")
    assignments, exponent, prefactors = jet_statements(profile, order)
    inverse_root = sp.Symbol("ir")
    lines = [  # the root as a product of its inverse, but for t = inf
        f"const V {symbol} = {'root_from(t, ir)' if value == t * inverse_root else printer.doprint(value)};"
        for symbol, value in assignments
    ]
    if profile.exponent != 0:
        lines.append(f"const V e = exp2_minus(shift, {printer.doprint(exponent)});")
    for k, prefactor in enumerate(prefactors):
        if profile.exponent == 0:
            lines.append(f"f[{k}] = times_exp2({printer.doprint(prefactor)}, shift);")
        elif prefactor == 1:
            lines.append(f"f[{k}] = e;")
        else:
            lines.append(f"f[{k}] = {printer.doprint(sp.Mul(prefactor, sp.Symbol('e'), evaluate=False))};")
    return lines


def _cpp_exponent(profile: Profile) -> list[str]:
    """exponent(t): log2 of the profile is minus this, up to the prefactor; the log-domain sums bound it."""
    if profile.exponent == 0:
        return ["return V{};"]
    printer = _Printer(lambda value: f"T({value})")
    assignments, exponent, _ = jet_statements(profile, 0)
    return [
        *(f"const V {symbol} = {printer.doprint(value)};" for symbol, value in assignments),
        f"return {printer.doprint(exponent)};",
    ]


def _cpp_profile(profile: Profile) -> str:
    name = "".join(part.capitalize() for part in profile.name.split("_"))
    lines = [
        f"struct {name} {{",
        f'    static constexpr const char* name = "{profile.name}";',
        f"    static constexpr double unit = {float(profile.unit.evalf(25))!r};",
        f"    static constexpr bool smooth = {str(profile.smooth).lower()};",
        f"    static constexpr bool positive = {str(profile.positive).lower()};",
        f"    static constexpr bool exponential = {str(profile.exponent != 0).lower()};",
        "    template <class V> GWF_INLINE static V exponent([[maybe_unused]] V t, [[maybe_unused]] V p) {",
        "        using T [[maybe_unused]] = scalar_t<V>;",
        *(f"        {line}" for line in _cpp_exponent(profile)),
        "    }",
        "    template <int K, class V, class Shift>",
        "    GWF_INLINE static void jet(V t, [[maybe_unused]] V p, Shift shift, V* f) {",
        "        using T [[maybe_unused]] = scalar_t<V>;",
    ]
    for order in range(MAX_ORDER + 1):
        lines.append(f"        {'if' if order == 0 else '} else if'} constexpr (K == {order}) {{")
        lines += [f"            {line}" for line in _cpp_jet(profile, order)]
    return "\n".join([*lines, "        }", "    }", "};"])


def cpp() -> str:
    """The C++ (and CUDA) header: one struct a profile, and the list of all of them."""
    names = ["".join(part.capitalize() for part in name.split("_")) for name in PROFILES]
    positive = [i for i, profile in enumerate(PROFILES.values()) if profile.positive]
    return "\n".join(
        [
            f"// {HEADER}",
            "// phi and its derivatives in t = unit * |x - y|^2 / h^2, times 2**shift; p is the profile's parameter.",
            "// Included inside the namespace of a vector library that provides exp2_minus, times_exp2, rsqrt0, ...",
            "// clang-format off",
            *[_cpp_profile(profile) for profile in PROFILES.values()],
            f"#define GWF_FOR_EACH_PROFILE(F) {' '.join(f'F({i}, {name})' for i, name in enumerate(names))}",
            f"#define GWF_FOR_EACH_POSITIVE_PROFILE(F) {' '.join(f'F({i}, {names[i]})' for i in positive)}",
            "// clang-format on",
            "",
        ]
    )


class _TritonPrinter(_Printer):
    """The same lowering in Python syntax; numbers are plain literals, which take the type of the tensor."""

    def __init__(self) -> None:
        super().__init__(lambda value: value)


def _triton_jet(profile: Profile, order: int) -> list[str]:
    printer = _TritonPrinter()
    assignments, exponent, prefactors = jet_statements(profile, order)
    lines = [f"{symbol} = {printer.doprint(value)}" for symbol, value in assignments]
    if profile.exponent != 0:
        lines.append(f"e = exp2_minus(shift, {printer.doprint(exponent)})")
    for k, prefactor in enumerate(prefactors):
        if profile.exponent == 0:
            value = f"times_exp2({printer.doprint(prefactor)}, shift)"
        else:
            value = printer.doprint(prefactor if prefactor == 1 else sp.Mul(prefactor, sp.Symbol("e"), evaluate=False))
            value = "e" if prefactor == 1 else value
        lines.append(f"f{k} = {value}")
    results = ", ".join(f"f{k}" for k in range(order + 1))
    return [*lines, f"return ({results},)" if order == 0 else f"return {results}"]


def _triton_slope(profile: Profile) -> tuple[float, list[str]]:
    """The constant factor of phi', and the lines of phi and phi' without it: it is multiplied in once a row."""
    printer = _TritonPrinter()
    assignments, exponent, (value, slope) = jet_statements(profile, 1)
    factor, rest = slope.as_coeff_Mul()
    lines = [f"{symbol} = {printer.doprint(definition)}" for symbol, definition in assignments]
    if profile.exponent == 0:
        results = [f"times_exp2({printer.doprint(each)}, shift)" for each in (value, rest)]
    else:
        lines.append(f"e = exp2_minus(shift, {printer.doprint(exponent)})")
        results = [
            "e" if each == 1 else printer.doprint(sp.Mul(each, sp.Symbol("e"), evaluate=False))
            for each in (value, rest)
        ]
    return float(factor), [*lines, f"return {', '.join(results)}"]


def _triton_exponent(profile: Profile) -> list[str]:
    if profile.exponent == 0:
        return ["return tl.zeros_like(t)"]
    lower = Lowering()
    value = lower(profile.exponent)
    printer = _TritonPrinter()
    lines = [f"{symbol} = {printer.doprint(call)}" for symbol, call in lower.definitions]
    return [*lines, f"return {printer.doprint(value)}"]


def triton() -> str:
    """The Triton module: one jit function a profile and order, which kernels take as constants."""
    lines = [
        f'"""{HEADER}',
        "",
        "Each function returns phi and its derivatives in t = unit * |x - y|^2 / h^2, times 2**shift (None: no shift);",
        "p is the profile's own parameter.",
        '"""',
        "",
        "# fmt: off",
        "# ruff: noqa: D103, I001",
        "import triton",
        "import triton.language as tl",
        "",
        "from gwf_fast.kernels.triton.primitives import (",
        "    exp2_minus, inverse, log0, log2_of, pow0, root, rsqrt0, times_exp2, two_rsqrt,",
        ")",
        "",
    ]
    for profile in PROFILES.values():
        for order in range(MAX_ORDER + 1):
            lines += ["", "@triton.jit", f"def {profile.name}_jet{order}(t, p, shift):"]
            lines += [f"    {line}" for line in _triton_jet(profile, order)] + [""]
        lines += ["", "@triton.jit", f"def {profile.name}_slope(t, p, shift):"]
        lines += [f"    {line}" for line in _triton_slope(profile)[1]] + [""]
        lines += ["", "@triton.jit", f"def {profile.name}_exponent(t, p):"]
        lines += [f"    {line}" for line in _triton_exponent(profile)] + [""]
    table = [
        f'    "{profile.name}": ({", ".join(f"{profile.name}_jet{order}" for order in range(MAX_ORDER + 1))}),'
        for profile in PROFILES.values()
    ]
    slopes = [f'    "{name}": ({name}_slope, {_triton_slope(p)[0]!r}),' for name, p in PROFILES.items()]
    exponents = [f'    "{name}": {name}_exponent,' for name in PROFILES]
    return "\n".join(
        [*lines, "", "JETS = {", *table, "}", '"""Functions of order 0..3 by profile."""', ""]
        + ["SLOPES = {", *slopes, "}", '"""A function of phi and phi\' / factor, and the factor, by profile."""', ""]
        + ["EXPONENTS = {", *exponents, "}", '"""X(t) >= 0 such that phi = R(t) 2**-X(t) with R never small."""', ""]
    )


def keops() -> str:
    """The KeOps module: formula text for the exponent and the prefactors of phi and its derivatives in s."""
    from gwf_fast.kernels.table.keops_printer import split_text

    lines = [f'"""{HEADER}"""', "", "# fmt: off"]
    lines.append("FORMULAS: dict[str, tuple[str | None, tuple[str, ...]]] = {")
    for profile in PROFILES.values():
        exponent, prefactors = split_text(profile)
        lines.append(f'    "{profile.name}": (')
        lines.append(f"        {exponent if exponent is None else chr(34) + exponent + chr(34)},")
        lines.append("        (")
        lines += [f'            "{row}",' for row in prefactors]
        lines += ["        ),", "    ),"]
    tail = '"""(X, (R_0, .., R_3)) in s and p, by profile: the k-th derivative in s is R_k exp(-X); X None is 0."""'
    return "\n".join([*lines, "}", tail, ""])


def names() -> str:
    """What is asked of a profile without its formula: reading it imports no SymPy."""
    rows = [f'    "{profile.name}": {profile.positive},' for profile in PROFILES.values()]
    text = '"""Whether phi > 0 everywhere, by profile, in the order of the table."""'
    return "\n".join([f'"""{HEADER}"""', "", "POSITIVE = {", *rows, "}", text, ""])


TARGETS: dict[str, Callable[[], str]] = {
    "csrc/pairwise/profiles_generated.h": cpp,
    "kernels/triton/profiles_generated.py": triton,
    "kernels/keops/profiles_generated.py": keops,
    "kernels/table/profile_names_generated.py": names,
}
"""Generated files, relative to the project's root."""


def main(arguments: list[str] | None = None) -> int:
    """Writes, or with --check compares, every generated file; returns the number of stale ones."""
    parser = argparse.ArgumentParser(description="Print the profile table to every backend.")
    parser.add_argument("--check", action="store_true", help="only say whether the generated files are current")
    check = parser.parse_args(arguments).check
    stale = 0
    for name, generate in TARGETS.items():
        path = ROOT / name
        text = generate()
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        print(f"{name}: {'out of date, run `make codegen`' if check else 'written'}")
        if not check:
            path.write_text(text)
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main())
