"""Extremes of range: what floats hold, NaN and infinity, points that nearly coincide, outliers.

The truth is dense, in float64, from the closed forms of cases.py or from torch, with the arithmetic of IEEE.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast import _cpu
from gwf_fast.pairs import passes
from tests.cases import KERNELS, POSITIVE, TOLERANCE, dense, error, points

FLOATS = (torch.float32, torch.float64)


@pytest.fixture(params=_cpu.instruction_sets())
def instruction_set(request):
    before = _cpu.instruction_set()
    _cpu.use_instruction_set(request.param)
    yield request.param
    _cpu.use_instruction_set(before)


def kinds(t):
    """0 where finite, 1 where infinite, 2 where NaN."""
    return torch.where(t.isnan(), 2, t.isinf().int())


def log_kernel(kernel, x, y):
    """log k, dense, in float64, of the Gaussian and Laplace."""
    r = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return -0.5 * (r / kernel.bandwidth) ** 2 if isinstance(kernel, gwf.Gaussian) else -r / kernel.bandwidth


# ---- exponents out of range (issue 13, 5) --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kernel", [gwf.Gaussian(1.0), gwf.Laplace(1.0)], ids=repr)
def test_log_domain_far_away(instruction_set, kernel, dtype):
    for dim, away in itertools.product((1, 2, 3, 5, 17), (1e4, 1e5, 1e8, 1e12, 1e17)):
        check_far_away(kernel, dtype, dim, away)


def check_far_away(kernel, dtype, dim, away):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(5, dim, generator=generator, dtype=torch.float64) + away).to(dtype)
    y = torch.randn(300, dim, generator=generator, dtype=torch.float64).to(dtype)
    log_weights = torch.randn(300, generator=generator, dtype=torch.float64).to(dtype)
    got = gwf.kernel_logsumexp(x, y, log_weights, kernel=kernel)
    want = (log_kernel(kernel, x, y) + log_weights.double()).logsumexp(-1)
    assert error(got, want) < TOLERANCE["value", dtype]
    mean = gwf.kernel_average(x, y, log_weights=log_weights, kernel=kernel)
    low, high = y.amin(0), y.amax(0)  # which of the sources is the nearest, rounding decides
    assert ((mean >= low - 1e-6) & (mean <= high + 1e-6)).all()


def test_log_sum_of_the_issue():
    x = torch.tensor([[1e5]])
    assert gwf.kernel_logsumexp(x, torch.zeros(1, 1), kernel=gwf.Gaussian(1.0)).item() == -5e9
    assert gwf.parzen_score(x, torch.zeros(1, 1), 1.0).item() == -1e5


def test_sinkhorn_at_a_small_epsilon(instruction_set):
    generator = torch.Generator().manual_seed(0)
    x, y = (1000 * torch.rand(n, 4, generator=generator) for n in (50, 60))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a hundred sweeps are not enough
        got = gwf.sinkhorn_divergence(x, y, epsilon=1e-4)
        want = gwf.sinkhorn_divergence(x.double(), y.double(), epsilon=1e-4)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)


# ---- NaN and infinity (6) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_not_finite_reaches_the_rows_that_it_touches(instruction_set, name):
    for dim, bad in itertools.product((1, 2, 3, 5, 17), (math.nan, math.inf, -math.inf)):
        for where in ("x", "y", "both", "weights"):
            check_not_finite(name, dim, bad, where)


def check_not_finite(name, dim, bad, where):
    kernel = KERNELS[name].kernel
    x, y = points(7, 9, dim, dtype=torch.float32)
    w = torch.linspace(0.5, 1.5, 9)
    for place, values, row in (("x", x, 4), ("y", y, 5)):
        if where in (place, "both"):
            values[row, dim // 2] = bad
    if where == "weights":
        w[5] = bad
    functions = [lambda **b: gwf.kernel_sum(x, y, w, kernel=kernel, **b)]
    functions += [lambda **b: gwf.kernel_gradient(x, y, w, kernel=kernel, **b)]
    if where != "weights":
        functions += [lambda **b: gwf.kernel_sum(x, x, kernel=kernel, **b)]
    if name in POSITIVE and where != "weights":
        functions += [lambda **b: gwf.kernel_logsumexp(x, y, kernel=kernel, **b)]
        functions += [lambda **b: gwf.kernel_average(x, y, kernel=kernel, **b)]
    for function in functions:
        got, want = function(backend="cpp"), function(backend="torch")
        if where == "weights":  # of two infinities the product form makes NaN
            assert torch.equal(got.isfinite(), want.isfinite())
        else:
            assert torch.equal(kinds(got), kinds(want)), (dim, bad, where)


@pytest.mark.parametrize("name", KERNELS)
def test_symmetric_sums_keep_what_is_not_finite_to_its_rows(instruction_set, name):
    for dim, bad in itertools.product((2, 8), (math.nan, math.inf)):
        x, _ = points(401, 1, dim, dtype=torch.float32)
        x[400, 0] = bad  # the last row, which padding must not repeat
        for function in (gwf.kernel_sum, gwf.kernel_gradient):
            got, want = (function(x, x, kernel=KERNELS[name].kernel, backend=b) for b in ("cpp", "torch"))
            assert torch.equal(kinds(got), kinds(want)), (dim, bad)


def test_swallowed_nan_of_the_issue():
    x = torch.tensor([[math.nan, 0.0]])
    assert gwf.parzen_log_density(x, torch.zeros(3, 2), 1.0).isnan().all()
    particles = torch.cat([torch.randn(5, 2), x])
    for kernel in (gwf.RationalQuadratic(1.0, 1.3), gwf.Riesz(1.3), gwf.PowerLaw(4, 1), gwf.PowerLaw(3, 0.5)):
        assert gwf.interaction_energy(particles, kernel=kernel).isnan()


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pairs_that_do_not_exist_touch_nothing(bad, backend):
    """0 times NaN made a row of NaN of a sum over no pairs, and of one whose own partner is left out."""
    x, y = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    x[0, 1], y[1, 2] = bad, bad
    options: dict[str, Any] = {"kernel": gwf.Riesz(1.3), "backend": backend}
    nobody = torch.tensor([0, 3])
    for function in (gwf.kernel_sum, gwf.kernel_gradient):
        assert (function(x, y, y_lengths=nobody, **options)[0] == 0).all()
        if (function, backend) == (gwf.kernel_gradient, "cpp"):
            continue  # a weight of 0 is multiplied
        got = function(x, y, exclude_self=True, **options)[1]
        assert got[2].isfinite().all() and not got[:2].isfinite().all()


@pytest.mark.parametrize("number", [math.inf, 0.0, 1e-300, 1e300, 2.0])
def test_numbers_beyond_a_type(number):
    """As in float64, where the result is in float32's range; an infinite one ends too."""
    x = torch.tensor([0.0, 1e-30, 3.0, 1e30])
    torch.testing.assert_close(passes.times(x, number).double(), (x.double() * number).float().double(), equal_nan=True)
    torch.testing.assert_close(passes.times(x, -number), -passes.times(x, number), equal_nan=True)
    if number:
        quotient = (x.double() / number).float()
        torch.testing.assert_close(passes.over(x, number), quotient, equal_nan=True)


@pytest.mark.parametrize("bandwidth", [6.43e-47, 1e-60])
def test_padding_is_zero_however_small_the_bandwidth(bandwidth):
    """1 / h^2 is infinite in float32, and its root too."""
    x, y = 1e-22 * torch.randn(1, 5, 2), 1e-22 * torch.randn(1, 6, 2)
    got = gwf.drift.parzen_kl(x, y, bandwidth, x_lengths=torch.tensor([3]), backend="torch")
    assert (got[0, 3:] == 0).all() and got[0, :3].isinf().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_padding_may_hold_anything(bad):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 20, 2, generator=generator), torch.randn(2, 30, 2, generator=generator)
    lengths: dict[str, Any] = {"x_lengths": torch.tensor([20, 11]), "y_lengths": torch.tensor([17, 30])}
    dirty_x, dirty_y = x.clone(), y.clone()
    dirty_x[1, 11:], dirty_y[0, 17:] = bad, bad
    theta = torch.nn.functional.normalize(torch.randn(8, 2, generator=generator), dim=-1)
    kernel = gwf.Gaussian(1.0)
    functions = [
        lambda u, v: gwf.kernel_sum(u, v, kernel=kernel, **lengths),
        lambda u, v: gwf.kernel_gradient(u, v, kernel=kernel, **lengths),
        lambda u, v: gwf.kernel_logsumexp(u, v, kernel=kernel, **lengths),
        lambda u, v: gwf.kernel_average(u, v, kernel=kernel, **lengths),
        lambda u, v: gwf.kernel_sum(u, v, kernel=kernel, method=gwf.NUFFT(1e-4), **lengths),
        lambda u, v: gwf.kernel_sum(u, v, kernel=kernel, method=gwf.Sliced(directions=theta), **lengths),
        lambda u, v: gwf.sliced_wasserstein2(u, v, directions=theta, **lengths),
        lambda u, v: gwf.sliced_energy_distance(u, v, directions=theta, **lengths),
        lambda u, v: gwf.sinkhorn_divergence(u, v, epsilon=1.0, **lengths),
        lambda u, v: gwf.drift.parzen_kl(u, v, 1.0, **lengths),
        lambda u, v: gwf.drift.gmd(u, v, temperature=1.0, **lengths),
        lambda u, v: gwf.drift.gmd(u, v, temperature=1.0, clip=1e-6, **lengths),
        lambda u, v: gwf.drift.gmd_multi(u, v, **lengths).velocity,
    ]
    for function in functions:
        assert torch.equal(function(dirty_x, dirty_y), function(x, y))


# ---- points that nearly coincide, and kernels with a kink (7) ------------------------------------------------


@pytest.mark.parametrize("dim", [7, 8, 17, 64])
def test_kinked_kernels_of_points_that_nearly_coincide(instruction_set, dim):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, dim, generator=generator)
    y = x + 1e-4 * torch.randn(300, dim, generator=generator)
    r = (x.double() - y.double()).norm(dim=-1)
    diagonal = torch.eye(300)
    for kernel, want in ((gwf.Riesz(), -r), (gwf.Laplace(4 * dim), 1 - torch.exp(-r / (4 * dim)))):
        # of the row sums against x and against y only what the nearest do may differ by more than rounding
        sums = gwf.kernel_sum(x, y, diagonal, kernel=kernel)
        own = sums.diagonal() if isinstance(kernel, gwf.Riesz) else 1 - sums.diagonal()
        assert error(own, want) < (1e-6 if isinstance(kernel, gwf.Riesz) else 1e-2)
    got = gwf.energy_distance(x, y)
    assert got.item() == pytest.approx(gwf.energy_distance(x.double(), y.double()).item(), rel=0.1)


def test_a_point_has_no_part_in_its_own_gradient(instruction_set):
    """Of points far apart the rest is small beside what the products of a point with itself are rounded by."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(20, 70, generator=generator) / math.sqrt(70)
    w = torch.randn(20, generator=generator)
    case = KERNELS["gaussian"]
    want = torch.einsum("nmd,m->nd", dense(case, x, x)[1], w.double())
    assert error(gwf.kernel_gradient(x, x, w, kernel=case.kernel), want) < TOLERANCE["gradient", torch.float32]


# ---- spread, outliers, extremes (8) --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gaussian", "laplace", "imq", "rational_quadratic", "matern32", "matern52", "mixture"]
)
def test_clusters_spread_over_many_bandwidths(instruction_set, name):
    for dim, spread in itertools.product((1, 2, 3, 5, 17), (30.0, 1e3, 1e5)):
        check_spread(name, dim, spread)


def check_spread(name, dim, spread):
    case = KERNELS[name]
    generator = torch.Generator().manual_seed(0)
    centres = spread * torch.randn(10, 1, dim, generator=generator)
    x = (centres + torch.randn(10, 5, dim, generator=generator) / math.sqrt(dim)).flatten(0, 1)
    y = (centres + torch.randn(10, 20, dim, generator=generator) / math.sqrt(dim)).flatten(0, 1)
    values, gradients = dense(case, x, y)
    w = torch.linspace(0.5, 1.5, len(y))
    assert error(gwf.kernel_sum(x, y, w, kernel=case.kernel), values @ w.double()) < TOLERANCE["value", torch.float32]
    got = gwf.kernel_gradient(x, y, w, kernel=case.kernel)
    assert error(got, torch.einsum("nmd,m->nd", gradients, w.double())) < TOLERANCE["gradient", torch.float32]
    mean = gwf.kernel_average(x, y, kernel=case.kernel)
    assert error(mean, values @ y.double() / values.sum(1, keepdim=True)) < 2 * TOLERANCE["value", torch.float32]


@pytest.mark.parametrize("name", ["gaussian", "laplace", "imq", "rational_quadratic", "matern32", "matern52", "riesz"])
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e18])
def test_any_unit_of_length(instruction_set, name, size):
    """Points and bandwidths of any size, as long as results are floats."""
    kernel = KERNELS[name].kernel
    x, y = points(20, 30, 3, dtype=torch.float32)
    x, y = x * size, y * size
    scaled = {
        "gaussian": lambda h: gwf.Gaussian(h),
        "laplace": lambda h: gwf.Laplace(h),
        "imq": lambda h: gwf.IMQ(h),
        "rational_quadratic": lambda h: gwf.RationalQuadratic(h, 1.7),
        "matern32": lambda h: gwf.Matern32(h),
        "matern52": lambda h: gwf.Matern52(h),
    }.get(name)
    if scaled:
        kernel = scaled(0.8 * size)
    for function in (gwf.kernel_sum, gwf.kernel_gradient):
        got = function(x, y, kernel=kernel)
        want = function(x.double(), y.double(), kernel=kernel, backend="torch")
        if want.abs().max() < 1e37:
            assert error(got, want) < TOLERANCE["gradient", torch.float32]


@pytest.mark.parametrize("make", [gwf.Gaussian, gwf.Laplace, gwf.IMQ, gwf.Matern52])
def test_extreme_bandwidths(instruction_set, make):
    for bandwidth in (1e-30, 1e-18, 1e18, 1e30):
        check_bandwidth(make(bandwidth))


def check_bandwidth(kernel):
    x, y = points(20, 30, 3, dtype=torch.float32)
    for function in (gwf.kernel_sum, gwf.kernel_gradient, gwf.kernel_logsumexp, gwf.kernel_average):
        got = function(x, y, kernel=kernel)
        want = function(x.double(), y.double(), kernel=kernel, backend="torch")
        if function is gwf.kernel_logsumexp:
            want = want.clamp(min=-math.inf)
            finite = want.abs() < 3e38
            assert torch.equal(finite, got.isfinite())
            got, want = got[finite], want[finite]
        assert error(got, want) < TOLERANCE["gradient", torch.float32] or want.norm() < 1e-37


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("clip", [None, 1e-6])
@pytest.mark.parametrize("rows", [60, 400])
def test_drifting_with_an_outlier(place, clip, rows):
    for outlier in (1e3, 1e4, 1e6):
        check_outlier(outlier, place, clip, rows)


def check_outlier(outlier, place, clip, rows):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(rows, 3, generator=generator), torch.randn(rows + 10, 3, generator=generator)
    y[place] = outlier
    got, want = (gwf.drift.gmd(u, v, temperature=1.0, clip=clip) for u, v in ((x, y), (x.double(), y.double())))
    assert error(got, want) < 1e-5


@pytest.mark.parametrize("shift", [1e3, 1e5])
def test_sliced_distances_far_from_the_origin(shift):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 3, generator=generator) + shift, torch.randn(70, 3, generator=generator) + shift
    theta = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator), dim=-1)
    for function in (gwf.sliced_wasserstein2, gwf.sliced_energy_distance):
        got = function(x, y, directions=theta)
        assert got.item() == pytest.approx(function(x.double(), y.double(), directions=theta.double()).item(), rel=2e-5)


def test_centre_is_not_moved_by_outliers():
    from gwf_fast.pairs.passes import centre_of

    y = torch.randn(100, 2) + 1e4
    y[3] = 1e20
    y[4] = math.nan
    assert (centre_of(y) - 1e4).abs().max() < 50
    lengths = torch.tensor([100, 7])
    pair = torch.stack([y, y])
    pair[1, 7:] = math.nan
    assert (centre_of(pair, lengths) - 1e4).abs().max() < 50
    assert torch.equal(centre_of(torch.full((3, 2), math.inf)), torch.zeros(1, 2))


# ---- derivatives of solutions, of weights (9) ----------------------------------------------------------------


def test_sinkhorn_drift_differentiates_through_the_solution():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(7, 2, generator=generator, dtype=torch.float64)
    options: dict[str, Any] = {"epsilon": 0.1, "max_iterations": 3000, "tolerance": 1e-13}
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(lambda u, v: gwf.drift.sinkhorn(u, v, **options), inputs, atol=1e-6)
    unbalanced: dict[str, Any] = options | {"marginal_strength": 0.5}
    assert torch.autograd.gradcheck(lambda u, v: gwf.drift.sinkhorn(u, v, **unbalanced), inputs, atol=1e-6)


def test_second_derivative_at_a_weight_of_zero():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(7, 2, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.3, 0.3, 0.2, 0.2, 0, 0], dtype=torch.float64)

    def energy(a, create_graph):
        u = x.clone().requires_grad_()
        value = gwf.sinkhorn_divergence(u, y, epsilon=0.1, x_weights=a, max_iterations=3000, tolerance=1e-13)
        return torch.autograd.grad(value, u, create_graph=create_graph)[0].square().sum()

    a = weights.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(a, True), a)
    direction = torch.tensor([0, -1.0, 0, 0, 1, 0], dtype=torch.float64)
    h = 1e-6
    steps = [energy(weights + k * h * direction, False) for k in range(3)]
    one_sided = (-3 * steps[0] + 4 * steps[1] - steps[2]) / (2 * h)
    assert (slope @ direction).item() == pytest.approx(one_sided.item(), rel=1e-5)


def test_a_gradient_in_the_weights_of_one_set_only():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 2, generator=generator).double(), torch.randn(9, 2, generator=generator).double()
    theta = torch.nn.functional.normalize(torch.randn(5, 2, generator=generator).double(), dim=-1)
    a, b = torch.rand(8, generator=generator).double() + 0.5, torch.rand(9, generator=generator).double() + 0.5
    for function in (gwf.sliced_wasserstein2, gwf.sliced_energy_distance):
        both = [w.clone().requires_grad_() for w in (a, b)]
        want = torch.autograd.grad(function(x, y, directions=theta, x_weights=both[0], y_weights=both[1]), both)
        for k, name in enumerate(("x_weights", "y_weights")):
            weights: dict[str, Any] = {"x_weights": a, "y_weights": b} | {name: both[k]}
            got = torch.autograd.grad(function(x, y, directions=theta, **weights), both[k])[0]
            assert torch.equal(got, want[k])
            alone = both[k].detach().requires_grad_()
            torch.autograd.grad(function(x, y, directions=theta, **{name: alone}), alone)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stein_discrepancy_of_halves_divides_before_it_leaves_their_range(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, generator=generator).to(dtype)
    for u in (x, x.clone().requires_grad_()):
        got = gwf.ksd2(u, -u.detach() + 1, kernel=gwf.IMQ(1.0), backend="torch")  # not by Triton's interpreter
        want = gwf.ksd2(x.double(), (-x + 1).double(), kernel=gwf.IMQ(1.0))
        assert got.item() == pytest.approx(want.item(), rel=2e-2)
    (slope,) = torch.autograd.grad(got, u)
    wide = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(gwf.ksd2(wide, (-x + 1).double(), kernel=gwf.IMQ(1.0)), wide)
    assert error(slope, expected) < 0.1
