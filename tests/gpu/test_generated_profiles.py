"""The text printed for Triton and KeOps, evaluated and held to the definition of each profile."""

import math

import mpmath
import numpy as np
import pytest
import sympy as sp
import torch

from gwf_fast.kernels.table import codegen
from gwf_fast.kernels.table.profiles import MAX_ORDER, PROFILES, Profile, p, s

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

DISTANCES = (1e-6, 0.03, 0.4, 1.1, 2.7, 30.0)  # values of s, where no derivative is 0: errors are relative


def truth(profile: Profile, order: int, value: float) -> float:
    """The derivative of order `order` of phi in s, differentiated from the definition in 40 digits."""
    phi = profile.phi.subs(p, sp.Float(profile.test_parameter or 1.0, 40))
    with mpmath.workdps(40):
        return float(sp.diff(phi, s, order).evalf(40, subs={s: sp.Float(value, 40)}))


def at_zero(profile: Profile, order: int) -> float:
    """The value at coincident points: every negative power of r, and log r, counts as 0."""
    phi = profile.phi.subs(p, sp.Rational(str(profile.test_parameter or 1)))
    root = sp.Symbol("root", positive=True)
    expanded = sp.expand(sp.powdenest(sp.diff(phi, s, order).subs(s, root**2), force=True))
    terms = [term.subs(sp.log(root), 0) for term in sp.Add.make_args(expanded)]
    powers = [sp.limit(term, root, 0) for term in terms]
    return float(sum(limit for limit in powers if limit.is_finite))


CASES = [pytest.param(profile, id=profile.name) for profile in PROFILES.values()]


@pytest.mark.parametrize("target", codegen.TARGETS)
def test_generated_files_are_current(target):
    assert (codegen.ROOT / target).read_text() == codegen.TARGETS[target]()


@triton.jit
def evaluate(t_pointer, p_pointer, shift_pointer, out_pointer, jet: tl.constexpr, orders: tl.constexpr):
    n: tl.constexpr = 8
    i = tl.arange(0, n)
    exponent = None
    if shift_pointer is not None:
        exponent = tl.load(shift_pointer)
    f = jet(tl.load(t_pointer + i), tl.load(p_pointer), exponent)
    for k in tl.static_range(orders):
        tl.store(out_pointer + k * n + i, f[k])


class TestTriton:
    @staticmethod
    def jet(profile: Profile, values: list[float], shift: float | None, order: int = MAX_ORDER) -> torch.Tensor:
        """The jet of the generated functions, in derivatives with respect to t."""
        from gwf_fast.kernels.triton.profiles_generated import JETS

        n = 8
        device = "cuda" if torch.cuda.is_available() else "cpu"  # there in the interpreter
        t = torch.ones(n, dtype=torch.float64)
        t[: len(values)] = torch.tensor(values, dtype=torch.float64) * float(profile.unit)
        parameter = torch.tensor([profile.test_parameter or 0.0], dtype=torch.float64)
        shifts = None if shift is None else torch.tensor([shift], dtype=torch.float64)
        out = torch.full((order + 1, n), math.nan, dtype=torch.float64)
        t, parameter, out = (each.to(device) for each in (t, parameter, out))
        shifts = None if shifts is None else shifts.to(device)
        evaluate[(1,)](t, parameter, shifts, out, JETS[profile.name][order], order + 1)
        return out[:, : len(values)].cpu()

    @pytest.mark.parametrize("profile", CASES)
    @pytest.mark.parametrize("shift", [None, 1.5])
    def test_jet_matches_definition(self, profile, shift):
        jet = self.jet(profile, list(DISTANCES), shift)
        unit = float(profile.unit.evalf(25))
        for order in range(MAX_ORDER + 1):
            expected = [truth(profile, order, value) / unit**order * 2 ** (shift or 0.0) for value in DISTANCES]
            np.testing.assert_allclose(jet[order].numpy(), expected, rtol=2e-13)

    @pytest.mark.parametrize("profile", CASES)
    def test_coincident_points(self, profile):
        jet = self.jet(profile, [0.0], None)
        unit = float(profile.unit.evalf(25))
        expected = [at_zero(profile, order) / unit**order for order in range(MAX_ORDER + 1)]
        np.testing.assert_allclose(jet[:, 0].numpy(), expected, rtol=1e-13)

    @pytest.mark.parametrize("profile", CASES)
    def test_lower_orders_are_the_same_numbers(self, profile):
        full = self.jet(profile, list(DISTANCES), 0.5)
        for order in range(MAX_ORDER):
            jet = self.jet(profile, list(DISTANCES), 0.5, order)
            np.testing.assert_allclose(jet.numpy(), full[: order + 1].numpy(), rtol=1e-14)


def keops_value(text: str, value: float, parameter: float) -> float:
    """Evaluates KeOps text in float64: each operation by its definition, Rsqrt(0) = 0 as in KeOps."""
    names = {
        "RatCst": lambda a, b: float(np.float32(a / b)),  # KeOps stores constants in float32
        "IntCst": lambda a: float(np.float32(a)),
        "Inv": lambda a: 1.0 / a,
        "Exp": math.exp,
        "Log": math.log,
        "Sqrt": math.sqrt,
        "Rsqrt": lambda a: 0.0 if a == 0 else 1.0 / math.sqrt(a),
        "Sign": lambda a: float(np.sign(a)),
        "Abs": abs,
        "Sin": math.sin,
        "Cos": math.cos,
    }
    return eval(text.format(s="S", p="P"), {"__builtins__": {}}, names | {"S": value, "P": parameter})


class TestKeops:
    @pytest.mark.parametrize("profile", CASES)
    @pytest.mark.parametrize("order", range(MAX_ORDER + 1))
    def test_text_matches_definition(self, profile, order):
        from gwf_fast.kernels.keops.profiles_generated import FORMULAS

        parameter = profile.test_parameter or 0.0
        exponent, prefactors = FORMULAS[profile.name]

        def derivative(value: float) -> float:
            x = 0.0 if exponent is None else keops_value(exponent, value, parameter)
            return keops_value(prefactors[order], value, parameter) * math.exp(-x)

        truths = [truth(profile, order, value) for value in DISTANCES]
        np.testing.assert_allclose([derivative(value) for value in DISTANCES], truths, rtol=2e-13)
        assert derivative(0.0) == pytest.approx(at_zero(profile, order), rel=1e-13)

    @pytest.mark.parametrize("profile", CASES)
    def test_keops_reads_the_text(self, profile):
        pytest.importorskip("pykeops")
        from gwf_fast.kernels.keops.compile import _keops
        from gwf_fast.kernels.keops.profiles_generated import FORMULAS

        _keops()
        from keopscore.formulas.GetReduction import GetReduction

        exponent, prefactors = FORMULAS[profile.name]
        for text in prefactors if exponent is None else (exponent, *prefactors):
            formula = text.format(s="SqDist(Var(0,3,0),Var(1,3,1))", p="Elem(Var(2,3,2),1)")
            assert GetReduction(f"Sum_Reduction({formula},0)").dim == 1

    @pytest.mark.parametrize(
        "expression",
        [
            sp.exp(-sp.sqrt(s)) * sp.cos(sp.sqrt(s)),
            1 / (1 + 0.1 * s),
            sp.pi * s**2 / 7,
            sp.Float("1.23456789012") * s,
            sp.Integer(2**40 + 3) * s,
        ],
    )
    def test_constants_keep_float64(self, expression):
        from gwf_fast.kernels.table.keops_printer import keops_text

        value = keops_value(keops_text(expression), 1.7, 0.0)
        assert value == pytest.approx(float(expression.subs(s, 1.7)), rel=1e-15)

    @pytest.mark.parametrize("expression", [sp.besselj(0, s), sp.erf(s), sp.Symbol("z") * s])
    def test_unsupported_is_named(self, expression):
        from gwf_fast.kernels.table.keops_printer import UnsupportedExpressionError, keops_text

        with pytest.raises(UnsupportedExpressionError, match=r"KeOps has no equivalent of (besselj|erf|Symbol)|z"):
            keops_text(expression)
