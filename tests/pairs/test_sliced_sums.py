"""method="sliced": forms against quadrature, sums against dense ones over the same directions, the error it reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import gwf_fast as gwf
from gwf_fast.kernels.table.profiles import PROFILES
from gwf_fast.pairs.fast import lines, slicing
from gwf_fast.pairs.fast import sliced as implementation
from gwf_fast.pairs.kernels import Term
from tests.cases import error

F64 = torch.float64
KERNELS = [
    gwf.Gaussian(0.8),
    gwf.IMQ(0.8),
    gwf.RationalQuadratic(0.8, 1.7),
    gwf.Matern52(0.8),
    gwf.Matern32(0.8),
    gwf.Laplace(0.8),
    gwf.Riesz(),
    gwf.Riesz(1.4),
    gwf.PowerLaw(4, 1),
    gwf.PowerLaw(5, 3),
    0.5 * gwf.Gaussian(0.8) + gwf.Riesz(1.7) - gwf.Riesz(1.2),
    gwf.Morse(1.0, 0.5, 0.6, 2.0),
    0.5 * gwf.Gaussian(0.8) + gwf.Laplace(2.0) - gwf.Riesz(),
]
REDUCTIONS = {"sum": gwf.kernel_sum, "gradient": gwf.kernel_gradient}


def cloud(n: int, dim: int, seed: int, *batch: int) -> torch.Tensor:
    return torch.randn(*batch, n, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(count: int, dim: int, seed: int = 5) -> torch.Tensor:
    return torch.nn.functional.normalize(cloud(count, dim, seed), dim=-1)


@pytest.mark.parametrize("dim", [2, 3, 16, 65, 400])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_the_mean_over_directions_is_the_kernel(kernel, dim):
    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(600))
    elevation = min(math.pi / 2, 14 / math.sqrt(dim)) * (node + 1) / 2
    weight = weight * elevation.cos() ** (dim - 2)  # density of theta . x / |x| = sin(elevation)
    form = slicing.line_form(kernel.spec, dim, 6.0, 0)
    for r in (0.3, 5.5):
        values = slicing._evaluate(form, r * elevation.sin(), 0)
        got = (values * weight).sum() / weight.sum()
        want = kernel(torch.full((1, 1), r, dtype=F64), torch.zeros(1, 1, dtype=F64))[0, 0]
        assert abs(got - want) < 1e-5 * max(1.0, float(values.abs().mean()))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != gwf.PowerLaw(4, 1)], ids=repr)  # r^4 takes no directions
def test_sums_against_dense_ones_over_the_same_directions(kernel, dtype):
    x, y, w = cloud(130, 3, 0), cloud(97, 3, 1) + 0.5, cloud(97, 2, 2)
    y[:5] = x[:5]
    theta = unit(41, 3)
    t = x @ theta.mT, y @ theta.mT
    d = (t[0].mT[:, :, None] - t[1].mT[:, None]).requires_grad_()  # [P, N, M]
    value = kernel(d.reshape(-1, 1), torch.zeros(1, 1, dtype=F64)).view_as(d) * d
    (f,) = torch.autograd.grad(value.sum(), d, create_graph=True)
    (slope,) = torch.autograd.grad(f.sum(), d)
    x, y, w, theta = (a.to(dtype) for a in (x, y, w, theta))
    got = gwf.kernel_sum(x, y, w, kernel=kernel, method=gwf.Sliced(directions=theta))
    assert got.dtype is dtype
    want = torch.einsum("pnm,mc->nc", f.detach(), w.double()) / 41
    assert error(got, want) < 1e-5
    got = gwf.kernel_gradient(x, y, w[:, 0], kernel=kernel, method=gwf.Sliced(directions=theta))
    apart = d.detach() != 0
    want = torch.einsum("pnm,m,pd->nd", torch.where(apart, slope, 0.0), w[:, 0].double(), theta.double()) / 41
    assert error(got, want) < 3e-4 if dtype is torch.float32 else error(got, want) < 1e-4


def test_points_that_coincide_have_a_form_at_any_bandwidth():
    """A length of 1 was made up for them, over which a bandwidth of 1e-6 had too many waves."""
    x = torch.full((4, 9), 2.6e-6, dtype=F64)
    for kernel in (gwf.Gaussian(5e-6), gwf.Riesz(), gwf.Gaussian(5e-6) + gwf.Riesz()):
        got = gwf.kernel_sum(x, x, kernel=kernel, method=gwf.Sliced(directions=unit(3, 9)))
        assert error(got, 4 * kernel(x, x)[:, 0]) < 1e-5


def test_distances_are_exact():
    x, y, theta = cloud(700, 5, 0), cloud(600, 5, 1), unit(20, 5)
    x[:50] = y[:50]
    d = (x[:, None] - y) @ theta.mT
    constant = slicing.slicing_constant(5, 1)
    kernel = gwf.Riesz()
    got = gwf.kernel_sum(x, y, kernel=kernel, method=gwf.Sliced(directions=theta))
    assert error(got, -constant * d.abs().mean(-1).sum(1)) < 1e-13
    got = gwf.kernel_gradient(x, y, kernel=kernel, method=gwf.Sliced(directions=theta))
    assert error(got, -constant * (d.sign() @ theta).sum(1) / 20) < 1e-12
    equal = torch.ones(40, 5, dtype=F64)
    assert gwf.kernel_gradient(equal, equal, kernel=kernel, method=gwf.Sliced(n_projections=9)).abs().max() == 0


BROKEN = [gwf.Riesz(0.3), gwf.Riesz(0.7), gwf.Riesz(1.5), gwf.PowerLaw(1.9, 0), gwf.PowerLaw(0.5, 0.2)]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kernel", BROKEN, ids=repr)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (130, 97)])
def test_broken_powers_and_logarithms_against_dense_sums(kernel, n, m, dtype):
    """On the same directions; pairs that coincide along a line add nothing."""
    x, y, w, theta = cloud(n, 3, 0), cloud(m, 3, 1) + 0.5, cloud(m, 2, 2), unit(21, 3)
    y[:5] = x[:5] if n > 1 else y[:5]
    x, y, w, theta = (a.to(dtype) for a in (x, y, w, theta))
    t = (x.double()[:, None] - y.double()) @ theta.double().mT  # [N, M, P]
    apart, exponents = t.abs() > 1e-7, [(term.profile, term.coefficient, term.parameter) for term in kernel.terms]
    value, slope = torch.zeros_like(t), torch.zeros_like(t)
    for profile, coefficient, e in exponents:
        size = torch.where(apart, t.abs(), 1.0)
        if profile == "log":
            value += coefficient * (size.log() + 1)  # (digamma(3/2) - digamma(1/2)) / 2 = 1
        else:
            constant = slicing.slicing_constant(3, e)
            value += coefficient * constant * size**e
            slope += coefficient * constant * e * size ** (e - 1) * t.sign()
    value, slope = (torch.where(apart, f, 0.0) for f in (value, slope))
    method = gwf.Sliced(directions=theta)
    got = gwf.kernel_sum(x, y, w, kernel=kernel, method=method)
    # a logarithm's slope is that of 1 / t, by which rounding of projections is multiplied
    assert error(got, torch.einsum("nmp,mc->nc", value, w.double()) / 21) < (1e-9 if dtype is F64 else 1e-4)
    if any(profile == "log" for profile, _, _ in exponents):
        with pytest.raises(ValueError, match=r"no form for the forces of log r: those along lines have no mean"):
            gwf.kernel_gradient(x, y, kernel=kernel, method=method)
        leaf = x.clone().requires_grad_()
        total = gwf.kernel_sum(leaf, y, kernel=kernel, method=method).sum()
        with pytest.raises(NotImplementedError, match="derivatives of order 1 of this kernel along lines have no mean"):
            total.backward()
        return
    got = gwf.kernel_gradient(x, y, w[:, 0], kernel=kernel, method=method)
    want = torch.einsum("nmp,m,pd->nd", slope, w[:, 0].double(), theta.double()) / 21
    # for e < 1 the force between the closest pairs is as large as rounding of the projections makes it
    missed = (got.double() - want).norm(dim=1) / want.norm()
    assert float(missed.quantile(0.8)) < (1e-8 if dtype is F64 else 1e-3)
    assert dtype is torch.float32 or error(got, want) < 1e-6


def test_logarithms_are_those_of_the_distance():
    x, y = cloud(60, 6, 0), cloud(50, 6, 1)
    kernel = gwf.PowerLaw(2, 0)
    for exclude_self in (False, True):
        y = x if exclude_self else y
        options: dict[str, Any] = {"exclude_self": exclude_self}
        exact = gwf.kernel_sum(x, y, kernel=kernel, **options)
        method = gwf.Sliced(600, generator=seeded(0))
        got, expected = gwf.with_error(gwf.kernel_sum, x, y, kernel=kernel, method=method, **options)
        assert error(got, exact) < 3 * float(expected) < 0.05


@pytest.mark.parametrize(("exponent", "finite"), [(0.3, False), (0.5, False), (0.6, True), (1.5, True)])
def test_forces_without_a_variance_have_no_error_to_tell(exponent, finite):
    x = cloud(40, 5, 0)
    for fn, known in ((gwf.kernel_sum, True), (gwf.kernel_gradient, finite)):
        _, told = gwf.with_error(fn, x, x, kernel=gwf.Riesz(exponent), method=gwf.Sliced(100, generator=seeded(1)))
        assert bool(told.isfinite()) is known
    leaf = x.clone().requires_grad_()
    slopes = gwf.kernel_gradient(leaf, x, kernel=gwf.Riesz(exponent), method=gwf.Sliced(5)).sum()
    if exponent < 1:
        with pytest.raises(NotImplementedError, match="derivatives of order 2 of this kernel along lines have no mean"):
            slopes.backward()
        return
    slopes.backward()
    leaf, method = cloud(4, 3, 0).requires_grad_(), gwf.Sliced(directions=unit(3, 3))
    assert torch.autograd.gradgradcheck(
        lambda x: gwf.kernel_sum(x, cloud(3, 3, 1), kernel=gwf.Riesz(exponent), method=method), leaf
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_sweeps_do_not_mind_threads_or_layouts(threads):
    x, y, w = cloud(3000, 4, 0), cloud(2500, 4, 1), cloud(2500, 1, 2)[:, 0]
    method, kernel = gwf.Sliced(directions=unit(9, 4)), gwf.Riesz(0.8) + gwf.Gaussian(1.0)
    want, before = gwf.kernel_gradient(x, y, w, kernel=kernel, method=method), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = gwf.kernel_gradient(x.mT.contiguous().mT, y, w, kernel=kernel, method=method)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, want)


@pytest.mark.parametrize("sampling", ["normal", "orthogonal"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kernel", [gwf.Gaussian(3.0), gwf.Laplace(3.0), gwf.Riesz(1.6), gwf.PowerLaw(2, 1)], ids=repr)
def test_the_reported_error_is_the_error(kernel, reduction, sampling):
    fn = REDUCTIONS[reduction]
    x, y, w = cloud(300, 8, 0), cloud(200, 8, 1) + 0.2, 1 + cloud(200, 1, 2)[:, 0] / 3
    exact = fn(x, y, w, kernel=kernel)
    ratios = []
    for seed in range(12):
        method = gwf.Sliced(160, sampling, generator=seeded(seed))
        got, expected = gwf.with_error(fn, x, y, w, kernel=kernel, method=method)
        ratios.append(error(got, exact) / float(expected))
    assert 0.75 < math.sqrt(sum(r * r for r in ratios) / len(ratios)) < 1.3


def test_four_blocks_of_orthogonal_directions_are_enough_for_an_estimate():
    x = cloud(300, 8, 0)
    exact = gwf.kernel_sum(x, x, kernel=gwf.Gaussian(3.0))
    ratios = []
    for seed in range(24):
        method = gwf.Sliced(32, generator=seeded(seed))
        got, expected = gwf.with_error(gwf.kernel_sum, x, x, kernel=gwf.Gaussian(3.0), method=method)
        ratios.append((error(got, exact), float(expected)))
    actual, reported = (math.sqrt(sum(v * v for v in values)) for values in zip(*ratios, strict=True))
    assert 0.7 < actual / reported < 1.4


def test_orthogonal_directions_err_less_and_more_of_them_err_less():
    x = cloud(200, 16, 0)
    kernel = gwf.Riesz()
    exact = gwf.kernel_sum(x, x, kernel=kernel)

    def mean_error(sampling, count):
        methods = (gwf.Sliced(count, sampling, generator=seeded(s)) for s in range(4))
        return sum(error(gwf.kernel_sum(x, x, kernel=kernel, method=method), exact) for method in methods)

    assert mean_error("orthogonal", 160) < 0.7 * mean_error("normal", 160)
    assert 3 < mean_error("normal", 40) / mean_error("normal", 640) < 5.3


@pytest.mark.parametrize(
    ("kernel", "few_waves"),
    [
        *((kernel, 1024) for kernel in (gwf.Gaussian(0.9), gwf.Laplace(1.1), gwf.Riesz(), gwf.PowerLaw(4, 3))),
        (gwf.Laplace(1.1), 0),
        pytest.param(gwf.Gaussian(0.9), 0, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_derivatives(kernel, few_waves, monkeypatch):
    monkeypatch.setattr(lines, "FEW_WAVES", few_waves)
    monkeypatch.setattr(implementation, "WIDEST", 3)  # several tiles
    x, y, w = (t.requires_grad_() for t in (cloud(4, 3, 0), cloud(3, 3, 1), cloud(3, 2, 2)))
    theta = unit(4, 3)
    options: dict[str, Any] = {"kernel": kernel, "method": gwf.Sliced(directions=theta)}
    loose: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-3} if not few_waves else {}  # the accuracy of a non-uniform FFT

    def total(x, y, w):
        return gwf.kernel_sum(x, y, w, **options)

    def gradient(x, y, w):
        return gwf.kernel_gradient(x, y, w[:, 0], **options)

    for fn in (total, gradient):
        assert torch.autograd.gradcheck(fn, (x, y, w), fast_mode=True, **loose)
        assert torch.autograd.gradgradcheck(fn, (x, y, w), fast_mode=True, **loose)
    assert torch.autograd.gradcheck(lambda x: gwf.kernel_sum(x, x, **options), x, fast_mode=True, **loose)


def test_gradients_in_a_bandwidth_and_through_interactions():
    x = cloud(60, 5, 0)
    theta = unit(400, 5)
    h = torch.tensor(2.0, dtype=F64, requires_grad=True)
    out = []
    for options in ({"method": gwf.Sliced(directions=theta)}, {}):
        leaf = x.clone().requires_grad_()
        velocity = gwf.interaction_velocity(leaf, kernel=gwf.Gaussian(h), **options)  # type: ignore[arg-type]
        out.append([velocity.detach(), *torch.autograd.grad(velocity.square().sum(), (leaf, h))])
    for got, want in zip(*out, strict=True):
        assert error(got, want) < 0.2
    sliced = gwf.Sliced(directions=theta)
    velocity, missed = gwf.with_error(gwf.interaction_velocity, x, kernel=gwf.Gaussian(2.0), method=sliced)
    assert error(velocity, out[1][0]) < 3 * float(missed)
    moved = x.clone()
    gwf.forward_step(moved, 0.3, kernel=gwf.Gaussian(2.0), out=moved, method=gwf.Sliced(directions=theta))
    assert error(moved, x + 0.3 * velocity) < 1e-12


def test_batches_lengths_channels_and_the_diagonal():
    x, w = cloud(80, 4, 0, 2), cloud(80, 3, 1, 2)
    theta, kernel = unit(30, 4), gwf.Laplace(0.8)
    sliced: dict[str, Any] = {"kernel": kernel, "method": gwf.Sliced(directions=theta)}
    got, missed = gwf.with_error(gwf.kernel_sum, x, x, w, exclude_self=True, **sliced)
    assert missed.shape == (2,) and missed.dtype is F64
    for b in range(2):
        each = gwf.kernel_sum(x[b], x[b], w[b], **sliced) - w[b]
        assert error(got[b], each) < 1e-5
    lengths = torch.tensor([80, 50])
    got = gwf.kernel_gradient(x, x, w[..., 0], x_lengths=lengths, y_lengths=lengths, **sliced)
    assert error(got[1, :50], gwf.kernel_gradient(x[1, :50], x[1, :50], w[1, :50, 0], **sliced)) < 1e-9
    assert got[1, 50:].abs().max() == 0
    assert gwf.kernel_sum(x[0, :0], x[0], **sliced).shape == (0,)
    # One dimension has one direction; even powers need none.
    line = cloud(300, 1, 3)
    got, missed = gwf.with_error(gwf.kernel_sum, line, line, kernel=kernel, method=gwf.Sliced(1))
    assert error(got, gwf.kernel_sum(line, line, kernel=kernel)) < 1e-6 and float(missed) == 0
    ring = gwf.PowerLaw(4, 2)
    got, missed = gwf.with_error(gwf.kernel_gradient, x, x, kernel=ring, method=gwf.Sliced(1))
    assert error(got, gwf.kernel_gradient(x, x, kernel=ring)) < 1e-12 and missed.tolist() == [0, 0]


@pytest.mark.parametrize("few_waves", [1024, 0])
def test_a_generator_and_not_the_threads_decides(few_waves, monkeypatch):
    monkeypatch.setattr(lines, "FEW_WAVES", few_waves)
    x = cloud(3000, 70, 0).float()
    kernel = gwf.Gaussian(6.0) - gwf.Riesz()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            options: dict[str, Any] = {"kernel": kernel, "method": gwf.Sliced(45, generator=seeded(3))}
            results.append(gwf.kernel_gradient(x, x, **options))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_no_more_than_a_tile_of_projections_is_held(monkeypatch):
    seen = []
    original = lines.line_sums

    def spy(a, b, w, *rest):
        seen.append(a.numel() + b.numel())
        return original(a, b, w, *rest)

    monkeypatch.setattr(implementation, "line_sums", spy)
    monkeypatch.setattr(implementation, "NUMBERS", 100_000)
    x = cloud(2000, 3, 0).requires_grad_()
    value = gwf.kernel_sum(x, x.detach(), kernel=gwf.Riesz(), method=gwf.Sliced(n_projections=300))
    torch.autograd.grad(value.sum(), x)
    assert sum(seen) >= 2 * 300 * 4000 and max(seen) <= 100_000


def test_single_precision_far_from_the_origin():
    x = cloud(500, 6, 0).float()
    options: dict[str, Any] = {"kernel": gwf.Gaussian(2.0), "method": gwf.Sliced(directions=unit(50, 6).float())}
    near = gwf.kernel_gradient(x.double(), x.double(), **{**options, "method": gwf.Sliced(directions=unit(50, 6))})
    assert error(gwf.kernel_gradient(x + 1024, x + 1024, **options), near) < 3e-3  # the points' own rounding
    assert error(gwf.kernel_gradient(x, x, **options), near) < 1e-5


@pytest.mark.parametrize(
    ("method", "arguments", "kind", "message"),
    [
        (gwf.Sliced(directions=torch.ones(4, 3)), {}, ValueError, r"directions must have shape \[P, D\] .* D = 2"),
        (
            gwf.Sliced(3),
            {"kernel": gwf.PowerLaw(2.5, 1)},
            ValueError,
            r"r\^2.5: powers must be below 2, or",
        ),
        (gwf.Sliced(3), {"kernel": gwf.PowerLaw(2, -1)}, ValueError, r"no form for r\^-1"),
        (gwf.Sliced(3), {"kernel": gwf.RationalQuadratic(1.0, 0.2)}, ValueError, "alpha >= 0.5"),
        (gwf.Sliced(3), {"kernel": gwf.Gaussian(1e-7)}, ValueError, "bandwidth is too small for these points"),
        (gwf.Sliced(3), {"x": torch.full((5, 2), math.nan)}, ValueError, 'method="sliced" needs finite points'),
    ],
)
def test_bad_sums(method, arguments, kind, message):
    x = torch.randn(5, 2, generator=seeded(0))
    call = {"x": x, "y": x, "kernel": gwf.Gaussian(1.0), **arguments}
    with pytest.raises(kind, match=message):
        gwf.kernel_sum(call.pop("x"), call.pop("y"), method=method, **call)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"n_projections": 0}, ValueError, "n_projections must be a positive integer, got 0"),
        ({"n_projections": 2.5}, TypeError, "n_projections must be a positive integer, got float 2.5"),
        ({"n_projections": 3, "sampling": "random"}, ValueError, "sampling must be one of normal, orthogonal, quasi"),
        ({"directions": unit(4, 2), "sampling": "normal"}, ValueError, "sampling must be left out .* nothing is drawn"),
        ({"directions": unit(4, 2), "generator": seeded(0)}, ValueError, "generator must be None .* nothing is drawn"),
    ],
)
@pytest.mark.parametrize("function", [gwf.Sliced, gwf.sliced_wasserstein2, gwf.drift.sliced_wasserstein])
def test_bad_options(function, options, kind, message):
    x = torch.randn(5, 2, generator=seeded(0), dtype=F64)
    with pytest.raises(kind, match=message):
        function(*(() if function is gwf.Sliced else (x, x)), **options)


def test_each_profile_has_a_density_or_is_refused():
    """An unknown name was taken for the rational quadratic, in silence."""
    terms = {name: Term(name, 1.0, 1.0, 1.7) for name in PROFILES}
    known = {*slicing.SPECTRAL, "distance", "power", "log"}
    assert known <= set(PROFILES)
    assert [name for name, term in terms.items() if name not in known and slicing.why_not([term]) is None] == []
    with pytest.raises(KeyError):
        slicing.frequency_density("log", 1.7, 3, torch.ones(2))
