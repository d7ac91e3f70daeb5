"""Discrepancies against dense float64, closed forms and SciPy."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

import gwf_fast as gwf
from tests.cases import KERNELS, TOLERANCE, backends, dense, error, points

BACKENDS = backends()
DTYPES = [torch.float32, torch.float64]


def _dense_mmd2(case, x, y, a, b, unbiased):
    """From the closed forms of tests/cases.py, in float64."""
    kxx, kyy, kxy = dense(case, x, x)[0], dense(case, y, y)[0], dense(case, x, y)[0]
    if unbiased:
        kxx, kyy = kxx - torch.diag(kxx.diag()), kyy - torch.diag(kyy.diag())
    scale = [w.sum() ** 2 / (w.sum() ** 2 - (w**2).sum()) if unbiased else 1.0 for w in (a, b)]
    return scale[0] * a @ kxx @ a + scale[1] * b @ kyy @ b - 2 * a @ kxy @ b


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_mmd2_value(backend, name, unbiased):
    case = KERNELS[name]
    x, y = points(30, 40, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(n, generator=generator, dtype=torch.float64) for n in (30, 40))
    options = {"kernel": case.kernel, "unbiased": unbiased, "backend": backend}
    flat = torch.full((30,), 1 / 30, dtype=torch.float64), torch.full((40,), 1 / 40, dtype=torch.float64)
    torch.testing.assert_close(gwf.mmd2(x, y, **options), _dense_mmd2(case, x, y, *flat, unbiased))
    got = gwf.mmd2(x, y, x_weights=a, y_weights=b, **options)
    torch.testing.assert_close(got, _dense_mmd2(case, x, y, a, b, unbiased))
    torch.testing.assert_close(gwf.mmd2(x[None], y[None], **options)[0], gwf.mmd2(x, y, **options))


def test_unbiased_is_the_u_statistic():
    x, y = points(6, 9, 2, dtype=torch.float64)
    kernel = gwf.Gaussian(1.0)
    kxx, kyy = kernel(x, x), kernel(y, y)
    want = (kxx.sum() - kxx.trace()) / 30 + (kyy.sum() - kyy.trace()) / 72 - 2 * kernel(x, y).mean()
    torch.testing.assert_close(gwf.mmd2(x, y, kernel=kernel, unbiased=True), want)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_mmd2_derivatives(backend, name, unbiased):
    generator = torch.Generator().manual_seed(2)
    shapes = ((2, 3, 2), (2, 2, 2), (2, 3), (2, 2))
    inputs = [torch.rand(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]

    def f(x, y, a, b):
        return gwf.mmd2(x, y, kernel=KERNELS[name].kernel, unbiased=unbiased, x_weights=a, y_weights=b, backend=backend)

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_mmd2_in_the_bandwidth():
    x, y = points(4, 5, 2, dtype=torch.float64)
    y = y + 0.1  # no coincident points: there the Laplace kernel has no derivative
    h = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def f(x, h):
        return gwf.mmd2(x, y, kernel=gwf.Gaussian(h) + gwf.Laplace(h), unbiased=True)

    assert torch.autograd.gradcheck(f, (x.requires_grad_(), h))
    assert torch.autograd.gradgradcheck(f, (x, h))


def test_mmd2_under_transforms():
    x, y = points(5, 6, 2, dtype=torch.float64, batch=(3,))
    f = lambda x, y: gwf.mmd2(x, y, kernel=gwf.Gaussian(1.0))  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(f)(x, y), f(x, y))
    leaf = x[0].clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(f)(x[0], y[0]), torch.autograd.grad(f(leaf, y[0]), leaf)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("shift", [0.0, 1e3, 1e4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_the_origin(backend, shift, dtype):
    """Clouds of size 0.1, shifted: value and gradient as in float64 at the same points."""
    generator = torch.Generator().manual_seed(3)
    x = (0.1 * torch.randn(200, 3, generator=generator, dtype=torch.float64) + shift).to(dtype)
    y = (0.1 * torch.randn(300, 3, generator=generator, dtype=torch.float64) + shift + 0.05).to(dtype)
    functions = {
        "mmd2": lambda x, y: gwf.mmd2(x, y, kernel=gwf.Gaussian(0.1), backend=backend),
        "energy_distance": lambda x, y: gwf.energy_distance(x, y, backend=backend),
        "parzen_log_density": lambda x, y: gwf.parzen_log_density(x, y, 0.1, backend=backend).sum(),
        "parzen_score": lambda x, y: gwf.parzen_score(x, y, 0.1, backend=backend).square().sum(),
    }
    for name, f in functions.items():
        leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        value, want = f(leaf, y), f(exact, y.double())
        tolerance = TOLERANCE["discrepancy", dtype]
        assert error(value.detach(), want.detach()) < tolerance, name
        got, want = torch.autograd.grad(value, leaf)[0], torch.autograd.grad(want, exact)[0]
        assert error(got, want) < tolerance, name


def test_gaussian_mmd_closed_form():
    """Between two Gaussians, with the expectation by quadrature points too many to matter: 1-D, Gaussian kernel."""
    h, mean, scales = 0.7, 1.3, (1.0, 0.6)
    nodes = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    clouds = [m + s * torch.special.ndtri(nodes)[:, None] for m, s in zip((0.0, mean), scales, strict=True)]

    def expectation(dm, s1, s2):  # E k over two independent Gaussians
        v = h**2 + s1**2 + s2**2
        return h / math.sqrt(v) * math.exp(-(dm**2) / (2 * v))

    s1, s2 = scales
    want = expectation(0, s1, s1) + expectation(0, s2, s2) - 2 * expectation(mean, s1, s2)
    assert float(gwf.mmd2(*clouds, kernel=gwf.Gaussian(h))) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_energy_distance_against_scipy(backend):
    x, y = points(40, 60, 1, dtype=torch.float64)
    want = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert float(gwf.energy_distance(x, y, backend=backend)) == pytest.approx(want, rel=1e-10)
    x, y = points(40, 60, 5, dtype=torch.float64)
    want = 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
    torch.testing.assert_close(gwf.energy_distance(x, y, backend=backend), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parzen_against_scipy(backend):
    x, y = points(20, 50, 3, dtype=torch.float64)
    h = 0.4
    pairs = torch.stack([torch.as_tensor(scipy.stats.multivariate_normal(yj, h**2).logpdf(x)) for yj in y.numpy()], -1)
    want = pairs.logsumexp(-1) - math.log(50)
    torch.testing.assert_close(gwf.parzen_log_density(x, y, h, backend=backend), want)
    leaf = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(gwf.parzen_log_density(leaf, y, h, backend=backend).sum(), leaf)
    torch.testing.assert_close(gwf.parzen_score(x, y, h, backend=backend), score)


def test_parzen_leave_one_out():
    x, _ = points(10, 1, 2, dtype=torch.float64)
    others = [torch.cat([x[:i], x[i + 1 :]]) for i in range(10)]
    whole = torch.stack([gwf.parzen_log_density(x[i : i + 1], others[i], 0.5)[0] for i in range(10)])
    torch.testing.assert_close(gwf.parzen_log_density(x, x, 0.5, exclude_self=True), whole)


def test_parzen_derivatives():
    x, y = points(3, 4, 2, dtype=torch.float64)
    h = torch.tensor(0.8, dtype=torch.float64)
    inputs = [v.requires_grad_() for v in (x, y, h)]
    for f in (gwf.parzen_log_density, gwf.parzen_score):
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


def test_median_bandwidth():
    x, _ = points(50, 1, 3, dtype=torch.float64, batch=(2,))
    d = torch.cdist(x, x)
    i, j = torch.triu_indices(50, 50, 1)
    for k in range(2):
        want = (d[k, i, j].square().median() / (2 * math.log(51))).sqrt()
        torch.testing.assert_close(gwf.median_bandwidth(x)[k], want)
    big = torch.randn(6000, 2, generator=torch.Generator().manual_seed(0))
    h = gwf.median_bandwidth(big)
    assert h.shape == ()
    assert torch.equal(h, gwf.median_bandwidth(big))
    median = torch.pdist(big[:5000]).square().median()  # 12 million pairs
    assert float(h) == pytest.approx(float((median / (2 * math.log(6001))).sqrt()), rel=0.03)
    assert isinstance(gwf.Gaussian(h), gwf.Kernel)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_median_bandwidth_of_halves(dtype: torch.dtype) -> None:
    x = torch.randn(2, 9, 3).to(dtype)
    got = gwf.median_bandwidth(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, gwf.median_bandwidth(x.double()).to(dtype))


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
def test_median_bandwidth_of_extreme_lengths(scale: float) -> None:
    x = scale * torch.randn(33, 3)
    want = gwf.median_bandwidth(x.double())
    assert float(gwf.median_bandwidth(x)) == pytest.approx(float(want), rel=1e-6)
    assert gwf.median_bandwidth(torch.full((3, 2), scale)) == 0
    assert gwf.median_bandwidth(torch.tensor([[0.0], [torch.nan], [1.0]])).isnan()
