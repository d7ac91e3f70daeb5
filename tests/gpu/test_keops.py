"""The KeOps backend, its formulas, and its compilation in several processes at once."""

import os
import subprocess
import sys

import pytest
import sympy as sp
import torch

import gwf_fast as gwf
from gwf_fast.selftest import reductions as selftest

pytest.importorskip("pykeops")
from gwf_fast.kernels.keops import pairs as keops

r = sp.Symbol("r")

QUICK = [
    selftest.Case("sum_gradient", ("gaussian", "power"), (2, 33, 70, 2), torch.float64, exclude_self=True, ragged=True),
    selftest.Case("average", ("gaussian", "laplace"), (2, 33, 70, 2), torch.float64, exclude_self=True, ragged=True),
    selftest.Case("jet2", ("matern32",), (1, 33, 40, 3), torch.float64, coincident=True),
]


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_matches_reference(case):
    assert selftest.error(case, keops, "cpu") <= selftest.TOLERANCE[case.dtype]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [case for case in selftest.cases() if case.dtype == torch.float64 and not case.operation.startswith("mmd")],
    ids=str,
)
def test_every_profile_and_reduction(case):
    assert selftest.error(case, keops, "cpu") <= selftest.TOLERANCE[case.dtype]


@pytest.mark.parametrize("backend", ["torch", pytest.param("keops", marks=pytest.mark.slow)])
def test_radial_against_autograd(backend):
    """A formula that is in no table: value, first and second derivatives."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64, requires_grad=True) for n in (9, 11))
    kernel = gwf.Radial(sp.exp(-r) * sp.cos(r))

    def dense(x, y):
        distance = (x[:, None] - y[None]).norm(dim=-1)
        return (torch.exp(-distance) * torch.cos(distance)).sum(1)

    def ours(x, y):
        return gwf.kernel_sum(x, y, kernel=kernel, backend=backend)

    torch.testing.assert_close(ours(x, y), dense(x, y), rtol=1e-12, atol=1e-13)
    first = [torch.autograd.grad(f(x, y).pow(2).sum(), (x, y), create_graph=True) for f in (ours, dense)]
    torch.testing.assert_close(*first, rtol=1e-11, atol=1e-12)
    second = [torch.autograd.grad(sum(g.pow(2).sum() for g in gradients), (x, y)) for gradients in first]  # type: ignore[arg-type]
    torch.testing.assert_close(*second, rtol=1e-10, atol=1e-10)


class TestRadial:
    def test_equality(self):
        assert gwf.Radial(sp.exp(-r)) == gwf.Radial(sp.exp(-r))
        assert hash(gwf.Radial(sp.exp(-r))) == hash(gwf.Radial(sp.exp(-r)))
        assert gwf.Radial(sp.exp(-r)) != gwf.Radial(sp.exp(-2 * r))

    def test_equals_the_kernel_of_the_table(self):
        x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        mixture = 0.5 * gwf.Radial(sp.exp(-sp.Symbol("s") / 2)) + gwf.Laplace(0.7)
        expected = 0.5 * gwf.Gaussian(1.0) + gwf.Laplace(0.7)
        assert mixture.has_formula
        assert mixture.positive
        for function in (gwf.kernel_sum, gwf.kernel_gradient, gwf.kernel_logsumexp):
            ours, truth = (function(x, x, kernel=kernel, backend="torch") for kernel in (mixture, expected))
            torch.testing.assert_close(ours, truth, rtol=1e-13, atol=1e-13)

    @pytest.mark.parametrize(
        ("expression", "error", "message"),
        [
            ("exp(-r)", TypeError, "SymPy expression in s and r, got str"),
            (sp.Symbol("z") * r, ValueError, "s and r only to be radial, got z"),
            (sp.Integer(3), ValueError, "must depend on s or r, got the constant 3"),
            (sp.I * r, ValueError, "must be real"),
        ],
    )
    def test_bad_expressions(self, expression, error, message):
        with pytest.raises(error, match=message):
            gwf.Radial(expression)

    def test_backends(self):
        x = torch.zeros(2, 2)
        kernel = gwf.Radial(sp.exp(-r))
        with pytest.raises(ValueError, match=r"does not evaluate formulas of the user's own"):
            gwf.kernel_sum(x, x, kernel=kernel, backend="cpp")
        assert "torch.float32: keops" in gwf.explain(gwf.kernel_sum, x, x, kernel=kernel)

    def test_what_keops_lacks(self):
        x = torch.zeros(2, 2)
        with pytest.raises(ValueError, match="KeOps has no equivalent of besselj"):
            gwf.kernel_sum(x, x, kernel=gwf.Radial(sp.besselj(0, r)), backend="keops")


SCRIPT = """
import math, sys, torch
from gwf_fast.kernels.keops import pairs as keops
assert "pykeops" not in sys.modules
x = torch.linspace(0, 1, 7, dtype=torch.float64)[None, :, None]
k = torch.exp(-0.5 * (x[0] - x[0].T) ** 2)
out = keops.pair_sum(x, x, None, (0.0, 1.0, 1.0, 0.0))
assert torch.allclose(out[0, :, 0], k.sum(1), rtol=1e-14), out
"""


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_cold_processes_at_once(tmp_path, rounds):
    """Four processes with an empty cache compile the same formula, silently, and none dies."""
    for round_ in range(rounds):
        environment = {**os.environ, "KEOPS_CACHE_FOLDER": str(tmp_path / str(round_)), "OMP_NUM_THREADS": "1"}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for process in started:
            out, error = process.communicate(timeout=600)
            assert process.returncode == 0, error[-2000:]
            assert out == ""
            assert "KeOps" not in error
        assert any((tmp_path / str(round_)).rglob("*.so")), "the cache folder was not the one given"


def test_half_precision_is_refused():
    x = torch.zeros(1, 2, 2, dtype=torch.float16)
    with pytest.raises(TypeError, match=r"x: got torch.float16, the keops backend expects"):
        keops.pair_sum(x, x, None, (0.0, 1.0, 1.0, 0.0))
