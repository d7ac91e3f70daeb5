"""Powers and exponentials at the ends of what floats hold: right, infinite or 0, on every instruction set."""

from __future__ import annotations

import math

import pytest
import torch

import gwf_fast as gwf
from gwf_fast import _cpu
from gwf_fast.kernels.cpp import mlp as mlp_cpp
from gwf_fast.kernels.table.mlp import MLPSpec

FLOATS = (torch.float32, torch.float64)


@pytest.fixture(params=_cpu.instruction_sets())
def instruction_set(request):
    before = _cpu.instruction_set()
    _cpu.use_instruction_set(request.param)
    yield request.param
    _cpu.use_instruction_set(before)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("exponent", [9.2, -7.4])
def test_powers_near_the_largest_number(instruction_set, exponent, dtype):
    """A power's exponent was cut at that of the largest power of two: r^9.2 / 9.2 came out as a quarter of itself."""
    share = torch.tensor([0.999, 0.9, 0.55, 0.3, 0.1, 1e-10], dtype=torch.float64)
    x = ((math.log(torch.finfo(dtype).max) + share.log()) / exponent).exp()[:, None].to(dtype)
    got = gwf.kernel_sum(x, torch.zeros(1, 1, dtype=dtype), kernel=gwf.PowerLaw(exponent, 1.0))
    r = x[:, 0].double()
    want = torch.exp(exponent * r.log() - math.log(abs(exponent))) * math.copysign(1, exponent) - r
    torch.testing.assert_close(got.double(), want, rtol=3e-5 if dtype == torch.float32 else 1e-12, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_powers_of_any_size(instruction_set, dtype):
    """Of t^1000 the parts of t's logarithm leave the range on their own: it was infinite where it is 0, and 0 where it
    is infinite."""
    r = torch.tensor([0.3, 0.75, 0.84, 0.999, 1.0, 1.001, 1.195, 1.3, 3.0], dtype=dtype)
    got = gwf.kernel_sum(r[:, None], torch.zeros(1, 1, dtype=dtype), kernel=gwf.PowerLaw(2000.0, 1.0))
    want = (r.double() ** 2000 / 2000 - r.double()).to(dtype)
    torch.testing.assert_close(got, want, rtol=1e-4 if dtype == torch.float32 else 1e-11, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_powers_of_infinity(instruction_set, dtype):
    """A negative one is 0: of a point at infinity, and of a distance whose square is none."""
    far = [math.inf, 1e30] if dtype == torch.float32 else [math.inf, 1e160]
    x = torch.tensor([[far[0]], [far[1]], [2.0]], dtype=dtype)
    got = gwf.kernel_sum(x, torch.zeros(1, 1, dtype=dtype), kernel=gwf.PowerLaw(-0.3, -2.6))
    want = 2.0**-0.3 / -0.3 + 2.0**-2.6 / 2.6
    assert got[0] == 0 and got[1].abs() < 1e-8
    assert got[2].item() == pytest.approx(want, rel=1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["expm1", "minus_exp", "elu"])
def test_exponentials_near_the_largest_number(instruction_set, name, dtype):
    """e^x up to the largest number, and infinite, never NaN, beyond: the power of two above it has no number."""
    top = math.log(torch.finfo(dtype).max)
    x = torch.tensor([0.9, 0.99, 0.995, 0.997, 0.9995, 1.005, 1.008, 1.1, 10.0, -1.0, -2.0], dtype=dtype) * top
    if name == "minus_exp":
        x = -x
    constant = 1.0 if name == "elu" else 0.0
    identity = [torch.ones(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)]
    got = mlp_cpp.mlp_forward(x[:, None], identity, MLPSpec((1, 1), (name,), (constant,), (False,), False))[:, 0]
    truth = {
        "expm1": torch.expm1,
        "minus_exp": lambda v: -torch.exp(-v),
        "elu": torch.nn.functional.elu,
    }
    want = truth[name](x)
    torch.testing.assert_close(got, want, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-30)
