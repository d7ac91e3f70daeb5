"""Schemes of the flow and the functionals of P alone: exact solutions, orders of convergence, checkpoints, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.flows import schemes
from gwf_fast.flows.state import require_finite
from gwf_fast.functionals.base import Sum
from gwf_fast.functionals.energies import Ellipsoid
from tests.flows.test_jko import ETA, Affine, Quadratic, standard_cloud

QUICK = gwf.Training(batch_size=64, iterations=5, critic_steps=2)
SQUARE = gwf.PowerLaw(2, 1) - gwf.Riesz(1.0)
"""W = r^2 / 2: (grad W * P)(x) = x - mean."""


def confined() -> Sum:
    """Mean e^-t, deviations from it e^-2t."""
    return gwf.Potential(lambda x: (x - ETA).square().sum(-1) / 2) + gwf.Interaction(SQUARE)


def cloud(n: int, dim: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run(functional, scheme, a, steps, x0, iterations=250):
    training = gwf.Training(batch_size=len(x0), iterations=iterations, lr=0.05, lr_schedule="cosine", warm_start=False)
    flow = gwf.JKOFlow(functional, x0.shape[1], a, scheme=scheme, map=Affine, training=training)
    return flow.run(x0, steps, progress=False)


def factors(x0, x):
    """By how much the distance of the mean to its limit, and the deviations, have shrunk."""
    mean = ((x.mean(0) - ETA) @ (x0.mean(0) - ETA)) / (x0.mean(0) - ETA).square().sum()
    deviation = (x - x.mean(0)).norm() / (x0 - x0.mean(0)).norm()
    return torch.stack([mean, deviation])


@pytest.mark.parametrize(
    ("scheme", "growth"),
    [
        ("jko", lambda z: 1 / (1 - z)),
        ("explicit", lambda z: 1 + z),
        ("crank_nicolson", lambda z: (1 + z / 2) / (1 - z / 2)),
    ],
)
def test_stability_functions(scheme, growth):
    """A step multiplies an exact solution e^(lambda t) by a rational function of lambda a."""
    x0, a = cloud(256, 2), 0.2
    got = factors(x0, run(confined(), scheme, a, 2, x0).particles)
    # a minibatch leaves out self pairs, whose share of the deviations is 1 / N
    want = torch.tensor([growth(-a) ** 2, growth(-2 * a) ** 2], dtype=torch.float64)
    assert (got - want).abs().max() < 3e-3


def test_forward_backward_is_explicit_in_the_interaction_alone():
    x0, a = cloud(256, 2), 0.2
    got = factors(x0, run(confined(), "forward_backward", a, 2, x0).particles)
    want = torch.tensor([(1 + a) ** -2.0, ((1 - a) / (1 + a)) ** 2], dtype=torch.float64)
    assert (got - want).abs().max() < 1e-3


def test_order_of_crank_nicolson_is_two_and_of_jko_one():
    """Of the particles' paths, dx/dt = -r (x - eta) along each axis; inner problems solved to well below the error."""
    x0, rates = cloud(64, 2), torch.tensor([1.0, 2.0], dtype=torch.float64)
    functional = gwf.Potential(lambda x: (rates * (x - ETA).square()).sum(-1) / 2)
    exact = ETA + (x0 - ETA) * (-rates).exp()
    for scheme, order, tolerance in (("jko", 1.0, 0.15), ("crank_nicolson", 2.0, 0.1)):
        errors = [
            (run(functional, scheme, 1 / steps, steps, x0, iterations=400).particles - exact).norm().item()
            for steps in (2, 4, 8)
        ]
        measured = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
        assert measured[1] == pytest.approx(order, abs=tolerance), (scheme, errors)
        assert abs(measured[1] - order) < abs(measured[0] - order)


def test_crank_nicolson_with_a_critic():
    """KL to N(eta, I): the mean follows the trapezoidal rule, the covariance stays."""
    a = 0.5
    training = gwf.Training(batch_size=2048, iterations=250, lr=0.03, lr_schedule="cosine", warm_start=False)
    flow = gwf.JKOFlow(
        gwf.KL(gwf.potentials.Gaussian(ETA, torch.eye(2))),
        2,
        a,
        scheme="crank_nicolson",
        map=Affine,
        critic=Quadratic,
        training=training,
    )
    x = flow.run(standard_cloud(2048), 2, progress=False).particles
    want = ETA * (1 - ((1 - a / 2) / (1 + a / 2)) ** 2)
    torch.testing.assert_close(x.mean(0), want, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(x.T), torch.eye(2), rtol=0, atol=0.08)


def test_splitting():
    entropy, interaction = gwf.GeneralizedEntropy(3), gwf.Interaction(gwf.Gaussian(0.7) * -0.3)
    parts = schemes.split("forward_backward", 0.1 * entropy + interaction)
    assert isinstance(parts.explicit, Sum) and isinstance(parts.implicit, Sum)
    assert parts.explicit.terms == ((1.0, interaction),) and parts.implicit.terms == ((0.1, entropy),)
    whole = 0.1 * entropy + interaction
    assert schemes.split("jko", whole) == schemes.Split(None, whole)
    assert schemes.split("explicit", whole) == schemes.Split(whole, None)


def test_an_explicit_step_moves_by_all_forces_and_pushes_new_samples_likewise():
    x0 = cloud(300, 2)
    kernels = gwf.Gaussian(0.8), gwf.PowerLaw(4, 2)
    functional = 0.5 * gwf.Interaction(kernels[0]) + gwf.Interaction(kernels[1]) + gwf.Potential(lambda x: x[:, 0] ** 4)
    result = gwf.JKOFlow(functional, 2, 0.01, scheme="explicit").run(x0, 3, progress=False)
    x, new = x0, cloud(7, 2, 1)
    for _ in range(3):

        def force(points, x=x):
            p = points.clone().requires_grad_()
            energy = (0.5 * kernels[0](p, x) + kernels[1](p, x)).mean(1).sum() + (p[:, 0] ** 4).sum()
            return torch.autograd.grad(energy, p)[0]

        x, new = x - 0.01 * force(x), new - 0.01 * force(new)
    torch.testing.assert_close(result.particles, x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.push(x0), x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.push(cloud(7, 2, 1)), new, rtol=1e-10, atol=1e-12)


def test_interactions_of_many_particles_are_summed_fast():
    x0 = cloud(20_000, 2, dtype=torch.float32)
    kernel = gwf.Gaussian(0.7) * (-1 / math.pi)
    flow = gwf.JKOFlow(gwf.Interaction(kernel), 2, 0.5, scheme="explicit")
    moved = flow.run(x0, 1, progress=False).particles
    want = gwf.forward_step(x0.double(), 0.5, kernel=kernel)
    assert (moved - want).norm() < 2e-5 * (want - x0).norm()


def test_mmd_flow_is_the_witness():
    x0, y = cloud(50, 2), cloud(60, 2, 1) + 1
    k = gwf.Gaussian(0.9)
    moved = gwf.JKOFlow(gwf.SquaredMMD(y, k), 2, 0.3, scheme="explicit").run(x0, 1, progress=False).particles
    p = x0.clone().requires_grad_()
    (g,) = torch.autograd.grad((k(p, x0).mean(1) - k(p, y[:50]).mean(1)).sum(), p)
    target = gwf.SquaredMMD(y[:50], k)
    want = gwf.JKOFlow(target, 2, 0.3, scheme="explicit").run(x0, 1, progress=False).particles
    torch.testing.assert_close(want, x0 - 0.3 * g)
    assert (moved - x0).norm() > 0


@pytest.mark.parametrize("scheme", ["forward_backward", "crank_nicolson", "explicit"])
def test_a_run_goes_on_bit_for_bit(scheme, tmp_path):
    functional = 0.1 * gwf.GeneralizedEntropy(3) + gwf.Interaction(gwf.Gaussian(0.7) * -0.3)
    x0 = cloud(200, 2, dtype=torch.float32)
    flow = gwf.JKOFlow(functional, 2, 0.1, scheme=scheme, training=QUICK)
    whole = flow.run(x0, 3, progress=False)
    flow.run(x0, 2, progress=False, checkpoint=tmp_path)
    resumed = gwf.JKOFlow.resume(tmp_path, n_steps=3, progress=False)
    assert torch.equal(resumed.particles, whole.particles)
    z = cloud(9, 2, 4, dtype=torch.float32)
    assert torch.equal(resumed.push(z), whole.push(z))
    torch.testing.assert_close(whole.push(x0), whole.particles)


def test_a_run_with_a_critic_in_its_explicit_step_goes_on(tmp_path):
    """Whose parameters are no part of what the implicit step trains, and have no moments in the checkpoint."""
    options: dict[str, Any] = {"scheme": "crank_nicolson", "training": QUICK}
    flow = gwf.JKOFlow(gwf.KL(gwf.potentials.Gaussian(torch.zeros(2), torch.eye(2))), 2, 0.1, **options)
    x0 = cloud(80, 2, dtype=torch.float32)
    whole = flow.run(x0, 2, progress=False)
    flow.run(x0, 1, progress=False, checkpoint=tmp_path)
    resumed = gwf.JKOFlow.resume(tmp_path, n_steps=2, progress=False)
    assert torch.equal(resumed.particles, whole.particles)


def test_blobs_of_a_batch_are_those_of_its_sets():
    x = cloud(14, 3).view(2, 7, 3)
    for call in (gwf.blob_energy, gwf.blob_density, gwf.blob_velocity):
        torch.testing.assert_close(call(x, 0.5), torch.stack([call(each, 0.5) for each in x]))


def test_runaway_particles_keep_the_last_good_state():
    flow = gwf.JKOFlow(gwf.Interaction(gwf.PowerLaw(4, 2) * 1e38), 2, 1.0, scheme="explicit")
    state = flow.init(100 * cloud(20, 2, dtype=torch.float32))
    before = state.particles.clone()
    with pytest.raises(gwf.NonFiniteError, match=r"JKO step 1: .*the state after step 0 is kept"):
        flow.step(state)
    assert torch.equal(state.particles, before)


@pytest.mark.parametrize("m", [1, 2])
def test_particles_that_collapse_keep_the_last_checkpoint(m, tmp_path):
    """A forward step as large as the inverse of the curvature takes all to their mean, where entropies are infinite."""
    start = cloud(200, 2, dtype=torch.float32) + 1e3
    flow = gwf.JKOFlow(
        gwf.Interaction(SQUARE) + gwf.GeneralizedEntropy(m), 2, 1.0, scheme="forward_backward", training=QUICK
    )
    with pytest.raises(
        gwf.NonFiniteError, match=r"JKO step 1: 200 samples have collapsed to a point .*; the state after step 0 is"
    ):
        flow.run(start, 5, progress=False, checkpoint=tmp_path)
    assert torch.equal(gwf.JKOFlow.resume(tmp_path, n_steps=0, progress=False).particles, start)


def test_particles_that_run_away_keep_the_last_checkpoint(tmp_path):
    """Repulsion by x^4 grows without bound: some steps are finite, then one is not."""
    start = cloud(200, 2, dtype=torch.float32)
    flow = gwf.JKOFlow(gwf.Interaction(gwf.PowerLaw(4, 2) * -1.0), 2, 1.0, scheme="explicit")
    with pytest.raises(gwf.NonFiniteError, match=r"JKO step (\d): .*; the state after step (\d) is kept") as error:
        flow.run(start, 9, progress=False, checkpoint=tmp_path)
    last = int(str(error.value).split("after step ")[1][0])
    kept = gwf.JKOFlow.resume(tmp_path, n_steps=last, progress=False)
    assert last > 0 and kept.particles.isfinite().all() and len(kept.history) == last
    assert torch.equal(kept.particles, flow.run(start, last, progress=False).particles)


def test_particles_that_are_not_finite_are_counted():
    particles = torch.zeros(3, 2)
    require_finite(particles)
    particles[1] = math.inf
    with pytest.raises(gwf.NonFiniteError, match="1 of 3 particles are not finite"):
        require_finite(particles)


def test_bad_schemes():
    entropy = gwf.GeneralizedEntropy(2)
    with pytest.raises(ValueError, match=r"no Interaction term, use 'jko'"):
        gwf.JKOFlow(entropy, 2, 0.1, scheme="forward_backward")
    with pytest.raises(ValueError, match=r"Interaction terms only, use 'explicit'"):
        gwf.JKOFlow(gwf.Interaction(SQUARE), 2, 0.1, scheme="forward_backward")
    with pytest.raises(ValueError, match="scheme must be one of jko, forward_backward"):
        gwf.JKOFlow(entropy, 2, 0.1, scheme="euler")  # type: ignore[arg-type]
    for m in (0.5, math.nan, "2"):
        with pytest.raises(TypeError if m == "2" else ValueError, match="m must be a number >= 1"):
            gwf.GeneralizedEntropy(m)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bandwidth must be a positive"):
        gwf.GeneralizedEntropy(2, bandwidth=-1.0)
    with pytest.raises(TypeError, match="kernel must be a kernel of gwf_fast, got float"):
        gwf.Interaction(3.0)
    with pytest.raises(ValueError, match=r"method must be one of exact, nufft, auto, .* got 'fast'"):
        gwf.Interaction(SQUARE, method="fast")


# ---------------------------------------------------------------------------------------------- entropies


def test_interaction_energy_is_unbiased():
    x = cloud(40, 2)
    k = gwf.Gaussian(0.9)(x, x)
    want = (k.sum() - k.diagonal().sum()) / (2 * 40 * 39)
    torch.testing.assert_close(gwf.Interaction(gwf.Gaussian(0.9)).value(None, x, None, None), want)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_ellipsoid(dim):
    shape = torch.diag(torch.arange(1.0, dim + 1)).double()
    ellipsoid = Ellipsoid(gwf.potentials.Gaussian(torch.ones(dim).double(), shape), 1.5)
    volume = math.pi ** (dim / 2) / math.gamma(dim / 2 + 1) * 1.5**dim * shape.det().sqrt().item()
    assert ellipsoid.log_volume == pytest.approx(math.log(volume), rel=1e-12)
    torch.manual_seed(0)
    r = ellipsoid.gaussian.whiten(ellipsoid.sample(20_000)).norm(dim=1) / 1.5
    assert r.max() <= 1 + 1e-12 and r.pow(dim).mean().item() == pytest.approx(0.5, abs=0.01)  # r^D is uniform
    seen = ellipsoid.coordinates(ellipsoid.sample(2_000)).norm(dim=1)  # by the critic: a ball of radius sqrt(D)
    assert 0.9 * dim**0.5 < seen.max() <= (1 + 1e-12) * dim**0.5


@pytest.mark.parametrize("m", [1, 2, 3])
def test_entropy_of_a_known_density(m):
    """P with density proportional to (1 - r^2)_+ in 2-D: the supremum is attained at the exact critic."""
    torch.manual_seed(0)
    n = 200_000
    radius = (1 - torch.rand(n, dtype=torch.float64).sqrt()).sqrt()  # P(r < t) = 1 - (1 - t^2)^2
    angle = 2 * math.pi * torch.rand(n, dtype=torch.float64)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    functional = gwf.GeneralizedEntropy(m)
    reference = functional.reference(x)

    def density(points):
        return (2 / math.pi) * (1 - points.square().sum(1)).clamp(min=1e-300)

    if m == 1:
        exact = math.log(2 / math.pi) - 0.5

        def critic(w):
            points = reference.colour(w)
            return density(points).log() - reference.log_density(points)
    else:
        exact = (2 / math.pi) ** (m - 1) * 2 / (m + 1) / (m - 1)

        def critic(w):
            points = reference.gaussian.colour(w * reference.radius / math.sqrt(2))
            return (density(points) * math.exp(reference.log_volume)) ** (m - 1)

    z = functional.draw(n, reference)
    best = functional.value(critic, x, z, reference).item()  # type: ignore[arg-type]
    assert best == pytest.approx(exact, abs=0.01)
    for wrong in (lambda w: critic(w) * 1.3, lambda w: critic(w) + 0.2 * w[:, 0]):
        assert functional.value(wrong, x, z, reference).item() < best  # type: ignore[arg-type]


@pytest.mark.parametrize("m", [1, 2, 3.5])
def test_blob_velocity_is_the_gradient_of_its_energy(m):
    x = cloud(60, 2).requires_grad_()
    h = 0.5
    rho = torch.exp(-(x[:, None] - x).square().sum(-1) / (2 * h**2)).mean(1) / (2 * math.pi * h**2)
    energy = rho.log().mean() if m == 1 else (rho ** (m - 1)).mean() / (m - 1)
    (g,) = torch.autograd.grad(energy, x)
    torch.testing.assert_close(gwf.blob_energy(x, h, m=m), energy)
    torch.testing.assert_close(gwf.blob_velocity(x.detach(), h, m=m), -60 * g, rtol=1e-9, atol=1e-11)
    functional = gwf.GeneralizedEntropy(m, bandwidth=h, method="exact")
    moved = gwf.JKOFlow(functional, 2, 0.1, scheme="explicit").run(x.detach(), 1, progress=False)
    torch.testing.assert_close(moved.particles, x.detach() - 6 * g, rtol=1e-9, atol=1e-11)
    assert moved.history[0].value < energy.item()


@pytest.mark.parametrize("m", [1, 2, 3])
def test_blob_with_masses_sources_and_the_plain_form(m):
    x, s, h = cloud(9, 2), cloud(70, 2, 1), 0.6
    mass = torch.rand(70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def rho(points):
        k = torch.exp(-(points[:, None] - s).square().sum(-1) / (2 * h**2)) / (2 * math.pi * h**2)
        return k @ mass

    p = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(rho(p).sum(), p)
    plain = gwf.blob_velocity(x, h, m=m, sources=s, weights=mass, form="density")
    torch.testing.assert_close(plain, -m * rho(x)[:, None] ** (m - 2) * g)
    k = torch.exp(-(x[:, None] - s).square().sum(-1) / (2 * h**2)) / (2 * math.pi * h**2)
    pair = (rho(x)[:, None] ** (m - 2) + rho(s) ** (m - 2)) * k * mass
    want = (pair[..., None] * (x[:, None] - s)).sum(1) / h**2
    torch.testing.assert_close(gwf.blob_velocity(x, h, m=m, sources=s, weights=mass), want)


def test_the_blob_method_follows_the_heat_equation():
    """N(0, 1) in 1-D on equally likely quantiles spreads to variance 1 + 2t (m = 1)."""
    n, steps, a = 400, 40, 0.005
    normal = torch.distributions.Normal(0.0, 1.0)
    x = normal.icdf((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    for _ in range(steps):
        x = x + a * gwf.blob_velocity(x, 0.15)
    assert x.var().item() == pytest.approx(1 + 2 * steps * a, rel=0.02)


def test_blob_at_scale_agrees_with_direct_sums():
    x = cloud(30_000, 2, dtype=torch.float32)
    fast = gwf.blob_velocity(x, 0.3, method=gwf.NUFFT(1e-5))
    direct = gwf.blob_velocity(x[:2000].double(), 0.3, sources=x.double())
    assert (fast[:2000] - direct).norm() < 1e-4 * direct.norm()


@pytest.mark.parametrize("m", [1, 3])
def test_blob_steps_of_many_particles_are_summed_fast(m):
    """Velocities in a flow have the accuracy asked for."""
    x = cloud(30_000, 2, dtype=torch.float32)
    want = gwf.blob_velocity(x[:500].double(), 0.3, m=m, sources=x.double())
    got = gwf.GeneralizedEntropy(m, bandwidth=0.3, method=gwf.Auto(1e-5)).velocity(x, x, None, None)[:500]
    assert 0 < (got - want).norm() < 1e-5 * want.norm()
    with pytest.raises(ValueError, match=r"method must be one of exact, nufft, auto, .* got 'tree'"):
        gwf.GeneralizedEntropy(m, bandwidth=0.3, method="tree")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"m": 0.5}, ValueError, "m must be a number >= 1"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth must be a positive number"),
        ({"bandwidth": "1"}, TypeError, "bandwidth must be a positive number"),
        ({"form": "sph"}, ValueError, "form must be one of energy, density, got 'sph'"),
        ({"sources": torch.zeros(4, 3)}, ValueError, "sources must have the dimension of x"),
        ({"weights": torch.zeros(3)}, ValueError, "weights must have shape"),
    ],
)
def test_bad_blobs(options, kind, message):
    with pytest.raises(kind, match=message):
        gwf.blob_velocity(torch.zeros(5, 2), **{"bandwidth": 1.0, **options})


def test_a_blob_whose_density_leaves_the_range_is_refused():
    with pytest.raises(ValueError, match=r"bandwidth must leave \(2 pi bandwidth\^2\)\^\(-17/2\) in the range"):
        gwf.blob_velocity(torch.randn(3, 17), 4e-28)
