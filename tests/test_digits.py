"""Digits that were lost where exponents, scales or distances are extreme: what the fuzzer found, against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from tests.cases import error

BACKENDS = ("cpp", "torch")
DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-12}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(function, *inputs):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    return torch.autograd.grad(function(*leaves), leaves)


# ---- shares of log-domain sums: exp(logit - logsumexp), rounded by units where exponents are 1e8 ------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("away", [1.0, 1e2, 1e4, 1e6])
def test_the_share_of_one_source_is_all(away, dtype, backend):
    """Derivatives of log k are those of its formula, however steep; an average over one is that one."""
    x, y, beta = normal(5, 3, dtype=dtype) + away, normal(1, 3, seed=1, dtype=dtype), torch.tensor([0.3], dtype=dtype)
    u = normal(5, dtype=dtype)

    def log_sum(x, y, beta):
        return (gwf.kernel_logsumexp(x, y, beta, kernel=gwf.Gaussian(0.5), backend=backend) * u).sum()

    of_x, of_y, of_beta = gradients(log_sum, x, y, beta)
    pull = -(x.double() - y.double()) / 0.25 * u.double()[:, None]
    assert error(of_x, pull) < TOLERANCE[dtype]
    assert error(of_y, -pull.sum(0, keepdim=True)) < TOLERANCE[dtype]
    assert error(of_beta, u.double().sum().view(1)) < TOLERANCE[dtype]

    def mean(x, y, beta):
        return (gwf.kernel_average(x, y, None, beta, kernel=gwf.Gaussian(0.5), backend=backend) * u[:, None]).sum()

    of_x, of_y, of_beta = gradients(mean, x, y, beta)
    assert error(of_y, u.double().sum().expand(1, 3)) < TOLERANCE[dtype]
    size = TOLERANCE[dtype] * float(pull.norm())
    assert of_x.norm() < size
    assert of_beta.abs().max() < size


@pytest.mark.parametrize("backend", BACKENDS)
def test_steep_derivatives_are_those_of_float64(backend):
    """Of several sources, of which the nearest has all: y only, x only, and twice."""
    x, y = normal(7, 2, dtype=torch.float32) + 1e4, normal(30, 2, seed=1, dtype=torch.float32)
    options = {"kernel": gwf.Gaussian(1.0), "backend": backend}

    def second(x, y):
        (g,) = torch.autograd.grad(gwf.kernel_logsumexp(x, y, **options).sum(), x, create_graph=True)
        return (g * g.detach().sign()).sum()

    for function in (lambda x, y: gwf.kernel_logsumexp(x, y, **options).sum(), second):
        for got, want in zip(gradients(function, x, y), gradients(function, x.double(), y.double()), strict=True):
            assert error(got, want) < TOLERANCE[torch.float32]
    (got,), (want,) = (
        gradients(lambda y, a=a: gwf.kernel_logsumexp(a, y, **options).sum(), b)
        for a, b in ((x, y), (x.double(), y.double()))
    )
    assert error(got, want) < TOLERANCE[torch.float32]


def test_forward_mode_has_the_same_shares():
    x, y = normal(5, 2) + 1e7, normal(1, 2, seed=1)
    of_x = torch.func.jacfwd(lambda x: gwf.kernel_logsumexp(x, y, kernel=gwf.Gaussian(1.0)))(x)
    want = -(x - y)
    assert error(torch.stack([of_x[i, i] for i in range(5)]), want) < 1e-12


# ---- padding may hold anything, to derivatives too ------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", [None, (), (2,)])
def test_derivatives_where_padding_holds_nan(weights, backend):
    """0 times NaN."""
    x, y = normal(2, 4, 3), normal(2, 6, 3, seed=1)
    w = None if weights is None else normal(2, 6, *weights, seed=2)
    lengths: dict[str, Any] = {"x_lengths": torch.tensor([3, 4]), "y_lengths": torch.tensor([6, 2])}
    for t, size in ((x, lengths["x_lengths"]), (y, lengths["y_lengths"]), (w, lengths["y_lengths"])):
        if t is not None:
            t[torch.arange(t.shape[1]) >= size[:, None]] = math.nan
    inputs = (x, y) if w is None else (x, y, w)
    runs = [lambda x, y, *w: gwf.kernel_sum(x, y, *w, kernel=gwf.Gaussian(0.9), backend=backend, **lengths).sum()]
    if weights != (2,):
        options = {"kernel": gwf.Laplace(0.9), "backend": backend, **lengths}
        runs += [
            lambda x, y, *w: gwf.kernel_gradient(x, y, *w, **options).sum(),
            lambda x, y, *w: gwf.kernel_logsumexp(x, y, *w, **options).nan_to_num(0, 0, 0).sum(),
            lambda x, y, *w: gwf.kernel_average(x, y, None, *w, **options).sum(),
        ]
    for run in runs:
        got = gradients(run, *inputs)
        clean = gradients(run, *(t.nan_to_num(7.0) for t in inputs))
        for a, b in zip(got, clean, strict=True):
            assert torch.equal(a, b)
        assert not got[1][1, 2:].any()


# ---- backend="torch": squares and powers that leave float32 --------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-8, 1e8, 1e22, 1e30])
@pytest.mark.parametrize("kernel", [gwf.Gaussian, gwf.Laplace, gwf.IMQ, gwf.Matern52])
def test_plain_torch_takes_any_scale(kernel, scale):
    x, y = (scale * normal(n, 3, seed=n, dtype=torch.float32) for n in (5, 9))
    k = kernel(scale)
    for run in (
        lambda x, y: gwf.kernel_sum(x, y, kernel=k, backend="torch"),
        lambda x, y: scale * gwf.kernel_gradient(x, y, kernel=k, backend="torch"),
        lambda x, y: gwf.kernel_logsumexp(x, y, kernel=k, backend="torch"),
        lambda x, y: gwf.kernel_average(x, y, kernel=k, backend="torch") / scale,
    ):
        assert error(run(x, y), run(x.double(), y.double())) < TOLERANCE[torch.float32]
    got, want = (
        gradients(lambda x, y: gwf.kernel_sum(x, y, kernel=k, backend="torch").sum(), *t)
        for t in ((x, y), (x.double(), y.double()))
    )
    assert error(got[1] * scale, want[1] * scale) < TOLERANCE[torch.float32]


# ---- short differences: of kinked kernels, and of the sharpest term of a mixture ----------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 9, 17])
@pytest.mark.parametrize(
    "kernel",
    [gwf.Laplace(1.3), gwf.Gaussian(2.0) + gwf.Matern32(0.02), gwf.Gaussian(1.0) + gwf.Laplace(1.3), gwf.Riesz(1.0)],
    ids=repr,
)
def test_slopes_between_close_points(kernel, dim):
    """Coordinates were scaled before they were subtracted: a direction over 1e-4 had four digits."""
    x = normal(64, dim, dtype=torch.float32)
    y = x + 1e-4 * normal(64, dim, seed=1, dtype=torch.float32)
    got, want = (gwf.kernel_gradient(a, b, kernel=kernel) for a, b in ((x, y), (x.double(), y.double())))
    assert error(got, want) < 2 * TOLERANCE[torch.float32]

    def curved(x, y):
        (g,) = torch.autograd.grad(gwf.kernel_sum(x, y, kernel=kernel).sum(), x, create_graph=True)
        return (g * torch.linspace(-1, 1, 64).to(x)[:, None]).sum()

    if dim > 1:  # where curvature is more than the rounding of a kink
        got, want = (gradients(curved, a, b)[0] for a, b in ((x, y), (x.double(), y.double())))
        assert error(got, want) < 4 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("kernel", [gwf.Gaussian(2.0) + gwf.Matern32(0.02), gwf.Laplace(0.7)], ids=repr)
def test_averages_between_close_points(kernel):
    """The origin was put amid a cloud that has it already, and cost the last bits of points near it."""
    x = normal(64, 3, dtype=torch.float32)
    y = x + 1e-4 * normal(64, 3, seed=1, dtype=torch.float32)
    u = normal(64, 3, seed=2, dtype=torch.float32)
    got, want = (
        gradients(lambda x, y: (gwf.kernel_average(x, y, kernel=kernel) * u.to(x)).sum(), a, b)
        for a, b in ((x, y), (x.double(), y.double()))
    )
    for a, b in zip(got, want, strict=True):
        assert error(a, b) < 4 * TOLERANCE[torch.float32]


def test_an_origin_is_put_only_where_the_cloud_has_none():
    from gwf_fast.pairs.passes import centre_of

    x = normal(100, 2, dtype=torch.float32)
    assert not centre_of(x).any()
    assert not centre_of(torch.tensor([[0.1, -0.2], [0.3, 0.1]])).any()
    assert centre_of(torch.tensor([[5.1, -3.2], [5.3, -3.1]])).all()
    far = x + 1e4
    centre = centre_of(far)
    assert ((far - centre).median(0).values.abs() < 0.1).all()
    assert torch.equal((far - centre).double(), far.double() - centre.double())  # exact


# ---- what a point adds to its own; outliers ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 4, 17])
def test_ksd_of_one_point_does_not_move_it(dim, dtype):
    """Products with x_i - x_i = 0 were differences of two sums."""
    x, score = normal(1, dim, dtype=dtype), normal(1, dim, seed=1, dtype=dtype)
    of_x, of_score = gradients(lambda x, s: gwf.ksd2(x, s, kernel=gwf.IMQ(0.7), unbiased=False), x, score)
    assert not of_x.any()
    assert error(of_score, 2 * score.double()) < TOLERANCE[dtype]


def test_ksd_with_an_outlier_keeps_the_others_digits():
    """It decided on what scores are scaled by before they are added to points."""
    x, score = normal(17, 7), normal(17, 7, seed=1)
    x[3, 0] = 1e6
    own = gwf.ksd2(x, score, kernel=gwf.Matern52(0.5), unbiased=False)
    d = x[:, None] - x[None]
    r = d.norm(dim=-1)
    u = math.sqrt(5) * r / 0.5
    k, slope = (1 + u + u * u / 3) * (-u).exp(), -5 / (6 * 0.25) * (1 + u) * (-u).exp()
    curvature = 25 / (12 * 0.0625) * (-u).exp()
    s = score[:, None] - score[None]
    terms = k * (score @ score.T) - 2 * slope * ((s * d).sum(-1) + 7) - 4 * r * r * curvature
    assert error(own, terms.mean()) < 1e-13


# ---- drifting at any temperature -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 400])
def test_drifting_at_low_temperatures(n, dtype, backend):
    """Halves of logarithms of 1e12 did not cancel: NaN, or forces e^(rounding) times too large."""
    x, y, negatives = (normal(n, 2, seed=s, dtype=dtype) for s in range(3))
    for exponent in (2, 4, 8, 25):
        got = gwf.drift.gmd(x, y, temperature=10.0**-exponent, negatives=negatives, backend=backend)
        assert got.isfinite().all()
        assert got.abs().max() <= 2 * max(t.abs().max() for t in (x, y, negatives)) + 1e-6
    got = gwf.drift.gmd(x, y, temperature=0.03, negatives=negatives, backend=backend)
    want = gwf.drift.gmd(x.double(), y.double(), temperature=0.03, negatives=negatives.double(), backend="torch")
    assert error(got, want) < (1e-4 if dtype == torch.float32 else 1e-12)  # exponents of some hundred


# ---- numbers out of the range of the points' type -----------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-24, 1e-30, 1e22])
def test_numbers_beyond_the_points_type(scale):
    """Squares of bandwidths, epsilons and steps are numbers of Python's: float32 made 0 or infinity of them."""
    x, y = (scale * normal(n, 2, seed=n, dtype=torch.float32) for n in (6, 9))
    g = torch.zeros(9)
    for run in (
        lambda x, y, g: gwf.drift.parzen_kl(x, y, scale) * scale,
        lambda x, y, g: gwf.parzen_score(x, y, scale) * scale,
        lambda x, y, g: gwf.barycentric_map(x, y, g, epsilon=scale**2) / scale,
        lambda x, y, g: gwf.forward_step(x, scale**2, kernel=gwf.Gaussian(scale), sources=y) / scale,
        lambda x, y, g: gwf.drift.critic_step(x, lambda x: (x / scale).sin().sum(-1), scale**2) / scale,
        lambda x, y, g: gwf.drift.critic_step(x, lambda x: (x / scale).sin().sum(-1), scale**2, transform="js") / scale,
        lambda x, y, g: gwf.svgd_direction(x, x / scale / scale * 0, kernel=gwf.Gaussian(scale)) * scale,
    ):
        assert error(run(x, y, g), run(x.double(), y.double(), g.double())) < 2 * TOLERANCE[torch.float32]
