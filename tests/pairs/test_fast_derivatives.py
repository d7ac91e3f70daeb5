"""Derivatives of fast sums, and sums of which little is left."""

from __future__ import annotations

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.pairs.fast import sums
from tests.cases import cloud, error

REDUCTIONS = {"sum": gwf.kernel_sum, "gradient": gwf.kernel_gradient}


@pytest.mark.parametrize(
    "kernel", [gwf.Gaussian(0.7), gwf.Laplace(0.8), gwf.PowerLaw(4, 1), gwf.PowerLaw(2, 0)], ids=repr
)
@pytest.mark.parametrize("dim", [1, 2])
def test_derivatives_agree_with_those_of_the_exact_sum(kernel, dim, evaluations):
    # Few enough points that a Laplace series would be larger than the direct sum, were that not forbidden.
    x0, y0, w0 = cloud(900, dim, 0), cloud(800, dim, 1), 1 + 0.3 * cloud(800, 2, 2)
    u = 1 + 0.5 * cloud(900, 2, 3)

    def derivatives(method):
        x, y, w = (t.clone().requires_grad_() for t in (x0, y0, w0))
        value = gwf.kernel_sum(x, y, w, kernel=kernel, method=method)
        first = torch.autograd.grad((value * u).sum(), (x, y, w), create_graph=True)
        probe = sum((g * g.detach().sign()).sum() for g in first)
        return [value.detach(), *(g.detach() for g in first), *torch.autograd.grad(probe, (x, y, w))]  # type: ignore[arg-type]

    for got, want in zip(derivatives(gwf.NUFFT(1e-7)), derivatives("exact"), strict=True):
        assert error(got, want) < 1e-5
    assert evaluations or dim == 2 or kernel == gwf.PowerLaw(4, 1)  # which needs no series on a line


def test_derivative_of_the_velocity_and_in_the_bandwidth():
    x0, s0 = cloud(700, 2, 0), cloud(600, 2, 1)
    out = []
    for method in ("nufft", "exact"):
        x, s = x0.clone().requires_grad_(), s0.clone().requires_grad_()
        h = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
        velocity = gwf.interaction_velocity(x, s, kernel=gwf.Gaussian(h), method=method)
        out.append([velocity.detach(), *torch.autograd.grad(velocity.square().sum(), (x, s, h))])
    for got, want in zip(*out, strict=True):
        assert error(got, want) < 1e-5


@pytest.mark.parametrize("kernel", [gwf.Gaussian(0.7), gwf.IMQ(0.8)], ids=repr)
@pytest.mark.parametrize("n, dim", [(5, 1), (40, 2), (30, 3), (900, 1), (900, 2)])
def test_third_derivatives_of_smooth_kernels(kernel, n, dim):
    """Where a grid would have more points than there are pairs, too."""
    x0, y0, out = cloud(n, dim, 0), cloud(n + 3, dim, 1), []
    for method in (gwf.NUFFT(1e-8), "exact"):
        x, y = x0.clone().requires_grad_(), y0.clone().requires_grad_()
        slopes = gwf.kernel_gradient(x, y, kernel=kernel, method=method)
        first = torch.autograd.grad((slopes.cos() * x0).sum(), (x, y), create_graph=True)
        out.append(torch.autograd.grad(sum(g.sin().sum() for g in first), (x, y)))  # type: ignore[arg-type]
    for got, want in zip(*out, strict=True):
        assert error(got, want) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2])
def test_sums_of_far_points_keep_the_tolerance(dtype, dim):
    """All terms are small beside the kernel's largest: what a transform rounds is then more than they are."""
    x, y = cloud(90, dim, 0, dtype), cloud(110, dim, 1, dtype) + 20
    for kernel in (gwf.Gaussian(3.0), gwf.Matern52(2.0)):
        for fn in REDUCTIONS.values():
            want = fn(x.double(), y.double(), kernel=kernel)
            assert error(fn(x, y, kernel=kernel, method=gwf.NUFFT(1e-5)).double(), want) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [gwf.Gaussian(0.3), gwf.Matern52(0.2), gwf.Riesz(1.5)], ids=repr)
def test_one_point_does_not_feel_itself(kernel, dtype):
    x = cloud(1, 3, 0, dtype).requires_grad_()
    value = gwf.kernel_sum(x, x, kernel=kernel, method=gwf.NUFFT(1e-3))
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((slope * slope.new_tensor([0.3, -0.7, 1.1])).sum(), x)
    assert not slope.any() and not second.any()


def test_third_derivatives_of_a_rough_kernel_are_refused_at_once(monkeypatch):
    """Before a transform: one of 100 points had 90 million modes, and took minutes."""
    monkeypatch.setattr(sums, "series_sum", lambda *_: pytest.fail("transformed in vain"))
    x, w = cloud(3000, 1, 0), torch.ones(3000, 1, dtype=torch.float64)
    request = sums.Request(gwf.Laplace(0.5).spec, 3, 1e-4)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        sums.derivative_sums(x, x, w, request)
