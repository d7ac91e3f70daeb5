"""First and second derivatives of the reductions: every profile, every differentiable argument, x is y included."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import gwf_fast as gwf
from tests.cases import KERNELS, POSITIVE, backends

BACKENDS = backends()


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def _check(f, *inputs):
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)


X, Y, SHARED = _random(3, 2, seed=1), _random(2, 2, seed=2), _random(3, 2, seed=3)
W, CHANNELS, W3 = _random(2, seed=4), _random(2, 2, seed=5), _random(3, seed=6)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("backend", BACKENDS)
class TestSums:
    def test_sum(self, backend, name):
        options = {"kernel": KERNELS[name].kernel, "backend": backend}
        _check(lambda x, y, w: gwf.kernel_sum(x, y, w, **options), X, Y, W)
        _check(lambda x, y, w: gwf.kernel_sum(x, y, w, **options), X, Y, CHANNELS)

    def test_gradient(self, backend, name):
        options = {"kernel": KERNELS[name].kernel, "backend": backend}
        _check(lambda x, y, w: gwf.kernel_gradient(x, y, w, **options), X, Y, W)

    def test_x_is_y(self, backend, name):
        options = {"kernel": KERNELS[name].kernel, "backend": backend}
        _check(lambda x: gwf.kernel_sum(x, x, **options), SHARED)
        _check(lambda x, w: gwf.kernel_gradient(x, x, w, **options), SHARED, W3)
        _check(lambda x, w: gwf.kernel_sum(x, x, w, exclude_self=True, **options), SHARED, W3)


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("backend", BACKENDS)
class TestLogDomain:
    def test_logsumexp(self, backend, name):
        options = {"kernel": KERNELS[name].kernel, "backend": backend}
        _check(lambda x, y, w: gwf.kernel_logsumexp(x, y, w, **options), X, Y, W)

    def test_average(self, backend, name):
        options = {"kernel": KERNELS[name].kernel, "backend": backend}
        _check(lambda x, y, v, w: gwf.kernel_average(x, y, v, w, **options), X, Y, CHANNELS, W)

    def test_x_is_y(self, backend, name):
        options = {"kernel": KERNELS[name].kernel, "backend": backend}
        _check(lambda x: gwf.kernel_logsumexp(x, x, **options), SHARED)
        _check(lambda x, w: gwf.kernel_average(x, x, None, w, exclude_self=True, **options), SHARED, W3)


H = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    "make",
    [
        gwf.Gaussian,
        gwf.Laplace,
        gwf.IMQ,
        gwf.Matern32,
        gwf.Matern52,
        lambda h: gwf.RationalQuadratic(h, 1.7),
        lambda h: 0.5 * gwf.Gaussian(h) + gwf.Laplace(2.0) + gwf.IMQ(2 * h),
    ],
    ids=["gaussian", "laplace", "imq", "matern32", "matern52", "rational_quadratic", "mixture"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bandwidth(backend, make):
    def sums(x, y, h):
        options = {"kernel": make(h), "backend": backend}
        return gwf.kernel_sum(x, y, **options), gwf.kernel_gradient(x, y, **options)

    def logs(x, y, h):
        options = {"kernel": make(h), "backend": backend}
        return gwf.kernel_logsumexp(x, y, **options), gwf.kernel_average(x, y, **options)

    for f in (sums, logs):
        _check(f, X, Y, H)
        _check(lambda x, h: f(x, x, h), SHARED, H)  # noqa: B023


@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_batches(backend):
    x, y, w = _random(2, 3, 2, seed=7), _random(2, 2, 2, seed=8), _random(2, 2, seed=9)
    options = {"x_lengths": torch.tensor([3, 1]), "y_lengths": torch.tensor([1, 2]), "backend": backend}
    kernel = KERNELS["mixture"].kernel
    _check(lambda x, y, w: gwf.kernel_sum(x, y, w, kernel=kernel, **options), x, y, w)
    _check(lambda x, y, w: gwf.kernel_gradient(x, y, w, kernel=kernel, **options), x, y, w)
    _check(lambda x, y, w: gwf.kernel_logsumexp(x, y, w, kernel=kernel, **options)[0], x, y, w)
    _check(lambda x, y, w: gwf.kernel_average(x, y, None, w, kernel=kernel, **options), x, y, w)
    sums = gwf.kernel_logsumexp(x, y, w, kernel=kernel, **options)
    grads = torch.autograd.grad(sums[sums.isfinite()].sum(), (x, y, w))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sources_of_no_weight_have_no_gradient(backend):
    """log w = -inf is a weight 0, and stays differentiable."""
    w = torch.tensor([0.0, -torch.inf], dtype=torch.float64, requires_grad=True)
    total = gwf.kernel_logsumexp(X, Y, w, kernel=gwf.Gaussian(1.0), backend=backend)
    torch.testing.assert_close(total, gwf.kernel_logsumexp(X, Y[:1], kernel=gwf.Gaussian(1.0), backend=backend))
    gx, gy, gw = torch.autograd.grad(total.sum(), (X, Y, w))
    assert gx.isfinite().all()
    assert (gy[1] == 0).all()
    assert gw.tolist() == [3.0, 0.0]


@pytest.mark.parametrize("shift", [1e3, 1e4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_gradients_far_from_the_origin(backend, shift):
    """Clouds of size 0.1: the gradients in float32 are those in float64 at the same points."""
    x = (0.1 * _random(40, 3, seed=10).detach() + shift).float()
    y = (0.1 * _random(50, 3, seed=11).detach() + shift).float()

    def gradients(x, y, h):
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        options = {"kernel": gwf.Gaussian(h), "backend": backend}
        means = gwf.kernel_average(x, y, **options)
        sums = gwf.kernel_sum(x, y, **options)
        logs = gwf.kernel_logsumexp(x, y, **options)
        factor = torch.linspace(-1, 1, means.numel()).view_as(means).to(x)
        return [*torch.autograd.grad((means * factor).sum() + sums.sum() + logs.sum(), (x, y))]

    for h in (0.1, torch.tensor(0.1)):
        for got, want in zip(gradients(x, y, h), gradients(x.double(), y.double(), float(h)), strict=True):
            assert (got - want).norm() < 2e-5 * want.norm()


def test_only_what_is_asked_for_is_computed(monkeypatch):
    """Columns are not touched where y needs no gradient."""
    from gwf_fast.ops import dispatch

    calls = []
    module = dispatch.load("torch")
    monkeypatch.setattr(dispatch, "_FUNCTIONS", {})
    for function in ("pair_sum", "pair_gradient", "pair_sum_gradient", "pair_jet"):
        original = getattr(module, function)

        def spy(x, *args, _original=original, _name=function, **kwargs):
            calls.append((_name, x.shape[1]))
            return _original(x, *args, **kwargs)

        monkeypatch.setattr(module, function, spy)
    gwf.kernel_sum(X, Y.detach(), W.detach(), kernel=gwf.Gaussian(1.0), backend="torch").sum().backward()
    assert {rows for _, rows in calls} == {3}
    calls.clear()
    gwf.kernel_sum(X.detach(), Y.detach(), W, kernel=gwf.Gaussian(1.0), backend="torch").sum().backward()
    assert calls == [("pair_sum", 3), ("pair_sum", 2)]


def test_third_derivatives_of_a_gradient_are_refused():
    out = gwf.kernel_gradient(X, Y, kernel=gwf.Gaussian(1.0), backend="torch").pow(2).sum()
    (g,) = torch.autograd.grad(out, X, create_graph=True)
    (gg,) = torch.autograd.grad(g.pow(2).sum(), X, create_graph=True)
    with pytest.raises(NotImplementedError, match="up to the second order"):
        torch.autograd.grad(gg.sum(), X)
