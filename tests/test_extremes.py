"""Where rounding, overflow and cancellation met: each case once gave wrong digits, NaN, or an error from inside."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import gwf_fast as gwf

SMALL = gwf.IMQ(0.005)


def points(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def along(function, x: Tensor, order: int) -> Tensor:
    """The first or second derivative of the sum of squares of a function, along a fixed direction."""
    x = x.detach().clone().requires_grad_()
    value = function(x).square().sum()
    (g,) = torch.autograd.grad(value, x, create_graph=order == 2)
    if order == 2:
        (g,) = torch.autograd.grad((g * torch.ones_like(g).cumsum(0).sin()).sum(), x)
    return g


def close(got: Tensor, truth: Tensor, tolerance: float) -> None:
    assert got.isfinite().all()
    assert float((got.double() - truth).norm() / truth.norm()) <= tolerance


@pytest.mark.parametrize(
    ("function", "order"),
    [
        (lambda x: gwf.kernel_sum(x, x, kernel=SMALL), 2),
        (lambda x: gwf.kernel_sum(x, x, x, kernel=SMALL), 2),
        (lambda x: gwf.kernel_gradient(x, x, kernel=SMALL), 1),
        (lambda x: gwf.interaction_velocity(x, kernel=SMALL), 1),
        (lambda x: gwf.interaction_energy(x, kernel=SMALL), 2),
        (lambda x: gwf.mmd2(x, x.detach()[:9] + 0.3, kernel=SMALL), 2),
        (lambda x: gwf.drift.mmd(x, x.detach()[:9] + 0.3, kernel=SMALL), 1),
    ],
)
def test_a_set_with_itself_keeps_the_digits_of_its_curvature(function, order):
    """The pair of a point with itself has a curvature of 1 / h^2 on either side, which cancels: it was 1e-3 off."""
    x = points(40, 2)
    close(along(function, x, order), along(function, x.double(), order), 1e-5)


def test_own_pairs_count_and_are_not_finite_where_points_are_not():
    x = points(5, 2).requires_grad_()
    torch.testing.assert_close(gwf.kernel_sum(x, x, kernel=SMALL), gwf.kernel_sum(x, x.detach(), kernel=SMALL))
    bad = torch.tensor([[math.nan, 0.0]], requires_grad=True)
    assert gwf.kernel_sum(bad, bad, kernel=SMALL).isnan().all()
    ragged = torch.stack([x.detach(), x.detach()])
    ragged[0, 3:] = math.nan
    ragged.requires_grad_()
    lengths, weights = torch.tensor([3, 5]), torch.ones(2, 5, requires_grad=True)
    out = gwf.kernel_sum(ragged, ragged, weights, kernel=SMALL, x_lengths=lengths, y_lengths=lengths)
    assert out[0, 3:].eq(0).all()
    out.sum().backward()
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_second_derivatives_far_from_the_data(backend):
    """A covariance of slopes of size (d / h^2)^2 cancels: it was some per cent off."""
    x, y = points(3, 2), points(9, 2, 1) + 35

    def density(of: Tensor) -> Tensor:
        return gwf.parzen_log_density(of, y.to(of.dtype), 0.1, backend=backend) / 1e3

    close(along(density, x, 2), along(density, x.double(), 2), 1e-5)


@pytest.mark.parametrize("scale", [1e-24, 1e25])
def test_drifting_has_no_unit_of_length(scale):
    """Squares of distances left float32; 1e30 was the distance of no pair."""
    x, y = points(9, 3), points(7, 3, 1) + 1
    for clip in (None, 1e-6):
        truth = gwf.drift.gmd(x.double(), y.double(), temperature=0.5, clip=clip)
        got = gwf.drift.gmd(x * scale, y * scale, temperature=0.5 * scale, clip=clip)
        close(got / scale, truth, 1e-5)
    if scale > 1:  # below, floors of 1e-3 are all there is
        wide = gwf.drift.gmd_multi(x.double() * 1e3, y.double() * 1e3)
        multi = gwf.drift.gmd_multi(x * scale, y * scale)
        close(multi.velocity / scale, wide.velocity / 1e3, 1e-5)
        torch.testing.assert_close(multi.raw.double(), wide.raw, rtol=1e-5, atol=0)


def test_drifting_differentiates_twice_where_one_kind_is_far():
    x, y = points(9, 3), points(7, 3, 1) + 60
    assert along(lambda of: gwf.drift.gmd(of, y.to(of.dtype), temperature=0.3), x, 2).isfinite().all()


def test_factors_that_overflow_leave_other_rows_their_gradient():
    """0 times infinity was NaN in every row of a loss that leaves the infinite ones out."""
    x, y = points(9, 2), points(30, 2, 1)
    x[0] = 40
    x.requires_grad_()
    out = gwf.drift.f_divergence(x, y, 0.5, divergence="pearson")
    assert not out[0].isfinite().all()
    out[1:].square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[1:].abs().amin() > 0


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: gwf.drift.f_divergence(x, y, 0.5, divergence="js"),
        lambda x, y: gwf.drift.gmd(x, y, temperature=0.5),
        lambda x, y: gwf.drift.gmd_multi(x, y).velocity,
        lambda x, y: gwf.parzen_score(x, y, 0.02),
        lambda x, y: gwf.blob_velocity(x, 0.4, sources=y),
        lambda x, y: gwf.blob_energy(y.repeat(30, 1), 3.0, m=3.0),
        lambda x, y: gwf.drift.mmd(x, y, kernel=gwf.PowerLaw(3, -1)),
    ],
)
def test_halves_are_computed_in_float32(function):
    x, y = points(12, 2).half(), points(15, 2, 1).half()
    x[0] = 30
    got, truth = function(x, y), function(x.float(), y.float())
    assert got.dtype == torch.float16
    torch.testing.assert_close(got, truth.half(), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduce", [gwf.kernel_logsumexp, gwf.kernel_average])
def test_slopes_of_halves_with_an_outlier(reduce, dtype):
    """An exponent of 1e5 rounds by hundreds in a half, of which an exponential was taken: the slopes were NaN."""
    x, y = points(5, 4).to(dtype), points(9, 4, 1).to(dtype)
    x[2, 0] = 1e4

    def slopes(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        value = reduce(x, y, kernel=gwf.Matern52(0.2))
        weights = torch.ones_like(value).cumsum(0) / 4  # a value of -1e5, which a half rounds, is not to matter
        return torch.autograd.grad(value, (x, y), weights)

    for got, truth in zip(slopes(x, y), slopes(x.float(), y.float()), strict=True):
        torch.testing.assert_close(got.float(), truth.to(dtype).float(), rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("m", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("form", ["energy", "density"])
def test_slopes_of_blob_velocities_far_from_particles(form, m):
    """The square of a density of 4e-20 was in the slope's denominator."""
    y = points(4, 2, 1)
    x = y.mean(0, keepdim=True) + torch.tensor([[6.9, 6.0]])

    def slope(x: Tensor, y: Tensor) -> Tensor:
        return along(lambda x: gwf.blob_velocity(x, 1.0, sources=y, form=form, m=m).sqrt(), x, 1)

    close(slope(x, y), slope(x.double(), y.double()), 2e-5)


@pytest.mark.parametrize("form", ["energy", "density"])
@pytest.mark.parametrize("m", [1.0, 1.5])
def test_blobs_in_many_dimensions(form, m):
    """The height of the mollifier is 1e-23 there, and one over its square no number of float32."""

    def velocity(x: Tensor) -> Tensor:
        out = gwf.blob_velocity(x, 9.0, m=m, form=form)
        return out * (2 * math.pi * 81) ** (17 / 2 * (m - 1))

    x = points(15, 17)
    close(along(velocity, x, 1), along(velocity, x.double(), 1), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_beyond_the_lengths_are_0_beside_a_source_that_is_nan(dtype):
    x, y = points(8, 3).to(dtype).expand(2, 8, 3).clone(), points(4, 3, 1).to(dtype).expand(2, 4, 3).clone()
    y[0, 1] = math.nan
    lengths = torch.tensor([5, 8])
    x.requires_grad_()
    out = gwf.kernel_gradient(x, y, kernel=gwf.Riesz(1.0), x_lengths=lengths, backend="torch")
    assert out[0, :5].isnan().all()
    assert out[0, 5:].eq(0).all()
    out[1].sum().backward()
    assert x.grad[0, 5:].eq(0).all()


@pytest.mark.parametrize("h", [1e-21, 1e-15, 1e-10, 1e-6, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stein_discrepancy_of_any_bandwidth(h, dtype):
    """Curvatures of a kernel far from its middle left float32, which was 5 % off at 1e-10 and all of it at 1e-15."""
    x, score = points(40, 6).to(dtype), points(40, 6, 1).to(dtype)
    d = (x[:, None] - x[None]).double()
    q, s, dim = (d * d).sum(-1), score.double(), x.shape[1]
    base = 1 + q / h**2
    slope, curvature = -0.5 * base**-1.5 / h**2, 0.75 * base**-2.5 / h**2 / h**2
    lean = (d * (s[None] - s[:, None])).sum(-1)
    terms = base**-0.5 * (s @ s.T) + 2 * slope * lean - 2 * dim * slope - 4 * q * curvature
    truth = terms.fill_diagonal_(0).sum() / (40 * 39)
    got = gwf.ksd2(x, score, kernel=gwf.IMQ(h)).double()
    assert float(abs(got - truth)) <= (1e-4 if dtype == torch.float32 else 1e-9) * float(abs(truth))


@pytest.mark.parametrize("spread", [1e-8, 1e8])
def test_slopes_of_a_stein_discrepancy_of_any_spread(spread):
    """In points and in scores, of two sets of which float32 has the terms of one only."""
    x = torch.stack([points(20, 3), spread * points(20, 3)])
    score = torch.stack([points(20, 3, 1), points(20, 3, 1) / spread])
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.clone().to(dtype).requires_grad_() for t in (x, score)]
        value = gwf.ksd2(*leaves, kernel=gwf.IMQ(1.0))
        found.append(torch.autograd.grad(value.sum(), leaves))
    for single, double in zip(*found, strict=True):
        for b in range(2):
            close(single[b], double[b], 1e-4)


@pytest.mark.parametrize("scale", [1e-8, 1e8, 1e16])
def test_curvature_of_distances_of_any_size(scale):
    """One over r^5 left float32, and the Hessian of an energy distance with it."""

    def distance(x: Tensor) -> Tensor:
        return gwf.kernel_sum(x, x.detach().flip(0) + 0.3 * scale, kernel=gwf.Riesz(1.0)) / scale

    x = points(6, 3)
    close(along(distance, x * scale, 2) * scale**2, along(distance, x.double() * scale, 2) * scale**2, 1e-5)


def test_powers_of_short_distances():
    """A kernel with a power and a scale subtracted scaled coordinates: r was off by their rounding, 7e-5 of the sum."""
    x = points(8, 3) + 3
    y = x + 1e-4 * points(8, 3, 1)
    kernel = gwf.Gaussian(0.7) + gwf.PowerLaw(2, -0.5)
    close(gwf.kernel_sum(x, y, kernel=kernel), gwf.kernel_sum(x.double(), y.double(), kernel=kernel), 3e-6)


def test_a_fast_sum_over_one_point():
    """Its derivative was 0, and its slope the tolerance."""
    x, y = torch.full((40, 2), 0.7), torch.full((3, 2), 0.7)
    assert gwf.kernel_gradient(x, y, kernel=gwf.Gaussian(0.3), method="nufft").eq(0).all()

    def slope(of: Tensor, method: str) -> Tensor:
        of = of.clone().requires_grad_()
        out = gwf.kernel_gradient(x.to(of.dtype), of, kernel=gwf.IMQ(1.8), method=method)  # type: ignore[arg-type]
        return torch.autograd.grad((out * torch.arange(80.0).view(40, 2)).sum(), of)[0]

    close(slope(y, "nufft"), slope(y.double(), "exact"), 1e-5)


def test_weights_of_no_points_are_refused_in_words():
    with pytest.raises(ValueError, match="positive sum for each set, got none"):
        gwf.drift.gmd_multi(torch.zeros(2, 0, 3), torch.ones(2, 4, 3), x_weights=torch.zeros(2, 0))


@pytest.mark.parametrize("spread", [1e-3, 1e-9, 1e-18])
def test_slices_of_a_cloud_that_is_short_beside_the_bandwidth(spread):
    """A series over 1e-20 of the bandwidth was 4e-4 off."""
    x = points(20, 3).double() * spread
    theta = torch.nn.functional.normalize(points(5, 3, 1).double(), dim=-1)
    got = gwf.kernel_sum(x, x + 0, kernel=gwf.Gaussian(1.0), method=gwf.Sliced(directions=theta))
    close(got, torch.full((20,), 20.0, dtype=torch.float64), 2e-6 + 10 * spread**2)


def test_a_pair_that_does_not_count_does_not_in_any_unit():
    """The distance of no pair, 1e30, was divided by the unit of length: at 1e29 a particle met itself."""
    x, y = points(6, 2), points(5, 2, 1) + 1
    truth = gwf.drift.gmd(x.double(), y.double(), temperature=2.0, clip=1e-6)
    close(gwf.drift.gmd(x * 1e29, y * 1e29, temperature=2e29, clip=1e-6) / 1e29, truth, 1e-5)


def test_second_derivatives_of_the_logarithm_of_a_set_with_itself():
    x = points(12, 100) / 10

    def density(of: Tensor) -> Tensor:
        return gwf.kernel_logsumexp(of, of, kernel=gwf.Gaussian(0.3)) + 1

    close(along(density, x, 2), along(density, x.double(), 2), 1e-5)


def test_the_cross_term_of_a_set_with_itself():
    """The same pairs, where the discrepancy of a set from itself forms K_xy: 2e-3 off."""
    kernel, x = gwf.Matern52(0.284), points(4, 3)

    def unbiased(x: Tensor) -> Tensor:
        return gwf.mmd2(x, x, kernel=kernel, unbiased=True)

    close(along(unbiased, x, 2), along(unbiased, x.double(), 2), 1e-5)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("order", [1, 2])
def test_curvatures_of_the_shortest_distances(backend, order):
    """A power of 3e-11 left float32 beside points 1e-4 away, and the derivative was infinite where 3e17 is right."""
    x, y = torch.tensor([[0.0], [1e-4]]), torch.tensor([[3e-11], [2e-4]])

    def slope(x: Tensor) -> Tensor:
        return gwf.kernel_gradient(x, y.to(x.dtype), kernel=gwf.Riesz(0.27), backend=backend) * 1e-12

    close(along(slope, x, order), along(slope, x.double(), order), 1e-5)


def test_a_loss_is_divided_before_its_sum_overflows():
    x = points(120, 3).requires_grad_()
    velocity = 2e18 * points(120, 3, 1)
    loss = gwf.drifting_loss(x, velocity)
    torch.testing.assert_close(loss, velocity.double().square().sum(-1).mean().float())
    (g,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(g, -2 / 120 * velocity)


@pytest.mark.parametrize("function", [gwf.drift.sinkhorn, gwf.sinkhorn_divergence])
def test_numbers_of_transport_beyond_the_type_of_the_points(function):
    """Potentials over a marginal strength of 9e38, infinite in float32, were 0: drifts 2 % off."""
    x, y = points(5, 2), points(4, 2, 1) + 0.5
    unit, options = 6.64e18, {"tolerance": 1e-9, "max_iterations": 5000}
    truth = function(x.double(), y.double(), epsilon=0.1, marginal_strength=20.0, **options)
    degree = 1 if truth.ndim == 2 else 2
    loose = {"tolerance": 1e-5, "max_iterations": 2000}
    got = function(x * unit, y * unit, epsilon=0.1 * unit**2, marginal_strength=20 * unit**2, **loose)
    close(got.double() / unit**degree, truth, 1e-4)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("divergence", ["total_variation", "squared_hellinger", "neyman", "reverse_kl", "js"])
def test_slopes_of_critics_at_nan_are_nan(divergence, order):
    net = gwf.nn.MLP([1, 1]).double()
    x = torch.tensor([[math.nan], [0.3]], dtype=torch.float64, requires_grad=True)
    value = gwf.nn.critic_objective(net, x, torch.zeros(1, 1, dtype=torch.float64), divergence=divergence)
    (slope,) = torch.autograd.grad(value, x, create_graph=order == 2)
    if order == 2:
        (slope,) = torch.autograd.grad(slope.sum(), x)
    assert slope.isnan()[:, 0].tolist() == [True, False]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("divergence", ["total_variation", "squared_hellinger", "neyman"])
def test_slopes_of_saturated_critics(divergence, order):
    """Autograd's slope of e^v - 1 is the value + 1, and 1 + (e^-2v - 1) was that of tanh: 0 for e^-40."""
    net: Any = gwf.nn.MLP([1, 1]).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
    x = torch.tensor([[40.0]], dtype=torch.float64, requires_grad=True)
    value = gwf.nn.critic_objective(net, x, torch.zeros(1, 1, dtype=torch.float64), divergence=divergence)
    (slope,) = torch.autograd.grad(value, x, create_graph=order == 2)
    truth = 2 * math.exp(-80) if divergence == "total_variation" else math.exp(-40)
    if order == 2:
        (slope,) = torch.autograd.grad(slope.sum(), x)
        truth *= -2 if divergence == "total_variation" else -1
    assert float(slope) == pytest.approx(truth, rel=1e-9, abs=0)
