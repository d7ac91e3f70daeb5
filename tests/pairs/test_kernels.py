"""The kernel objects: algebra, equality, printing, dense values and derivatives, bad input."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from tests.cases import KERNELS, dense, points


@pytest.mark.parametrize("name", KERNELS)
def test_dense_matrix_and_its_gradient(name):
    case = KERNELS[name]
    x, y = points(6, 9, 3, dtype=torch.float64)
    x.requires_grad_()
    k, slope = dense(case, x.detach(), y)
    got = case.kernel(x, y)
    torch.testing.assert_close(got.detach(), k)
    (gradient,) = torch.autograd.grad(got.sum(), x)
    torch.testing.assert_close(gradient, slope.sum(1))


@pytest.mark.parametrize(
    ("kernel", "curvature"),
    [
        (gwf.Gaussian(0.8), -1 / 0.64),
        (gwf.IMQ(0.8), -1 / 0.64),
        (gwf.Matern52(0.8), -5 / 3 / 0.64),
        (gwf.PowerLaw(4, 2), -1.0),
    ],
)
def test_dense_hessian_at_coincident_points(kernel, curvature):
    """Smooth kernels have a second derivative at x = y, 2 phi'(0) / h^2 times the identity."""
    x = torch.zeros(1, 3, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda u: kernel(u, x).sum(), x).view(3, 3)
    torch.testing.assert_close(hessian, curvature * torch.eye(3, dtype=torch.float64))


def test_bandwidth_gradient_of_the_dense_matrix():
    x, y = points(4, 5, 2, dtype=torch.float64)
    h = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: gwf.Laplace(h)(x, y) + gwf.RationalQuadratic(h, 1.7)(x, y), (h,))


def test_batches():
    x, y = torch.randn(2, 3, 4, 2), torch.randn(2, 3, 5, 2)
    assert gwf.Gaussian(1.0)(x, y).shape == (2, 3, 4, 5)


def test_algebra():
    g, m = gwf.Gaussian(1.0), gwf.Laplace(2.0)
    x, y = points(4, 5, 2, dtype=torch.float64)
    torch.testing.assert_close((0.5 * g + m)(x, y), 0.5 * g(x, y) + m(x, y))
    torch.testing.assert_close((g - m / 4)(x, y), g(x, y) - m(x, y) / 4)
    torch.testing.assert_close((-(g + m) * 2)(x, y), -2 * (g(x, y) + m(x, y)))
    assert 1.0 * g == g
    assert -1 * (-g) == g
    assert len((g + m + g).passes) == 1  # a mixture is one pass over the pairs


def test_equality_hash_and_printing():
    g = gwf.Gaussian(1)
    assert g == gwf.Gaussian(1.0)
    assert hash(g) == hash(gwf.Gaussian(1.0))
    assert g != gwf.Gaussian(2.0)
    assert g != gwf.Laplace(1.0)
    assert g != 1.0
    assert len({0.5 * g + gwf.Riesz(), 0.5 * g + gwf.Riesz(1.0), g}) == 2
    assert repr(0.5 * g - gwf.Riesz()) == "0.5 * Gaussian(1.0) - Riesz(1.0)"
    assert repr(-g) == "-Gaussian(1.0)"
    h = torch.tensor(1.0)
    assert gwf.Gaussian(h) == gwf.Gaussian(h)
    assert gwf.Gaussian(h) != gwf.Gaussian(torch.tensor(1.0))
    assert repr(gwf.IMQ(h)) == "IMQ(tensor(1))"
    assert copy.deepcopy(g) == g
    assert pickle.loads(pickle.dumps(0.5 * g + gwf.Morse(1, 1, 1, 2))) == 0.5 * g + gwf.Morse(1, 1, 1, 2)


def test_immutable():
    kernel: Any = gwf.Gaussian(1.0)
    with pytest.raises(AttributeError):
        kernel.bandwidth = 2.0


def test_tensor_bandwidths_share_passes():
    h = torch.tensor(1.0, requires_grad=True)
    kernel = gwf.Gaussian(h) + gwf.Laplace(h) + gwf.Gaussian(1.0) + gwf.Riesz()
    assert kernel.spec is None
    assert len(kernel.passes) == 2


@pytest.mark.parametrize("make", [gwf.Gaussian, gwf.Laplace, gwf.IMQ, gwf.Matern32, gwf.Matern52])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, torch.tensor(-1.0), torch.tensor(math.nan)])
def test_bad_bandwidth(make, value):
    with pytest.raises(ValueError, match="bandwidth must be"):
        make(value)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gwf.Gaussian("1"), TypeError, "bandwidth must be"),  # type: ignore[arg-type]
        (lambda: gwf.Gaussian(True), TypeError, "bandwidth must be"),
        (lambda: gwf.Gaussian(torch.tensor(1)), ValueError, "a float or a floating tensor"),
        (lambda: gwf.RationalQuadratic(1.0, 0.0), ValueError, "alpha must be a positive number"),
        (lambda: gwf.Riesz(2.0), ValueError, "strictly between 0 and 2"),
        (lambda: gwf.Riesz(0.0), ValueError, "strictly between 0 and 2"),
        (lambda: gwf.PowerLaw(math.nan, 1), ValueError, "attraction must be"),
        (lambda: gwf.Morse(-1.0, 1.0, 1.0, 1.0), ValueError, "repulsion_strength must not be negative"),
        (lambda: gwf.Morse(1.0, 1.0, 1.0, 0.0), ValueError, "attraction_range must be a positive number"),
        (lambda: gwf.Gaussian(1.0) * math.inf, ValueError, "coefficient must be a finite number"),
        (lambda: gwf.Gaussian(1.0) + 1.0, TypeError, "unsupported operand"),
    ],
)
def test_bad_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()
