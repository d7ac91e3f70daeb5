"""The experiments with exact solutions: the solutions themselves, what is measured against them, and short runs."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, optimize, special

from gwf_fast.experiments import dimensions, ornstein_uhlenbeck, porous_medium, runner
from gwf_fast.experiments.finite_volume import Equation, Grid
from gwf_fast.experiments.ornstein_uhlenbeck import Process, symkl
from gwf_fast.experiments.porous_medium import Barenblatt, common_symkl, mass
from gwf_fast.potentials import Gaussian


def some_gaussian(dim: int, seed: int) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    mean = torch.randn(dim, generator=generator, dtype=torch.float64)
    return Gaussian(mean, root @ root.T + 0.1 * torch.eye(dim, dtype=torch.float64))


def normal(g: Gaussian) -> torch.distributions.MultivariateNormal:
    return torch.distributions.MultivariateNormal(g.mean, g.covariance)


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_kl_between_gaussians(dim):
    p, q = some_gaussian(dim, 0), some_gaussian(dim, 1)
    assert p.kl(q) == pytest.approx(float(torch.distributions.kl_divergence(normal(p), normal(q))), rel=1e-10)
    assert p.kl(p) == pytest.approx(0, abs=1e-12)
    assert symkl(p, q) == pytest.approx(symkl(q, p)) and symkl(p, q) > 0


# ---------------------------------------------------------------------------------- Ornstein-Uhlenbeck


def test_the_process_solves_its_equations():
    """dm/dt = -A (m - b), dS/dt = 2 I - A S - S A, integrated by SciPy."""
    process = Process.draw(3, 0)
    precision = (process.axes * process.rates) @ process.axes.T

    def slope(_, y):
        mean, covariance = torch.as_tensor(y[:3]), torch.as_tensor(y[3:]).view(3, 3)
        drift = 2 * torch.eye(3) - precision @ covariance - covariance @ precision
        return torch.cat((-precision @ (mean - process.centre), drift.flatten())).numpy()

    start = torch.cat((torch.zeros(3), torch.eye(3).flatten())).double().numpy()
    end = integrate.solve_ivp(slope, (0, 0.9), start, rtol=1e-10, atol=1e-12).y[:, -1]
    exact = process.at(0.9)
    torch.testing.assert_close(exact.mean, torch.as_tensor(end[:3].copy()), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(exact.covariance.flatten(), torch.as_tensor(end[3:].copy()), rtol=1e-7, atol=1e-8)
    assert process.at(50.0).kl(process.target()) < 1e-12


def test_a_jko_step_of_the_process_is_a_minimum():
    """Among Gaussians with the same axes, W2^2/(2a) + KL, minimised by SciPy."""
    process, a = Process.draw(2, 1), 0.3
    before, after = process.scheme(2, a)[1:]
    root = torch.linalg.eigvalsh(before.covariance).sqrt()
    assert root.min() > 0
    centre, axes = process.axes.T @ process.centre, process.axes
    old_mean, old_scale = axes.T @ before.mean, (axes.T @ before.covariance @ axes).diagonal().sqrt()

    def objective(y):
        mean, scale = torch.as_tensor(y[:2]), torch.as_tensor(y[2:])
        moved = ((mean - old_mean).square().sum() + (scale - old_scale).square().sum()) / (2 * a)
        energy = (process.rates * ((mean - centre).square() + scale.square())).sum() / 2 - scale.log().sum()
        return float(moved + energy)

    found = optimize.minimize(objective, [0.0, 0.0, 1.0, 1.0], method="BFGS", options={"gtol": 1e-9}).x
    torch.testing.assert_close(axes @ torch.as_tensor(found[:2].copy()), after.mean, rtol=0, atol=1e-6)
    scale = torch.as_tensor(found[2:].copy())
    torch.testing.assert_close((axes * scale**2) @ axes.T, after.covariance, rtol=0, atol=1e-6)


def test_exact_jko_steps_are_of_first_order():
    process = Process.draw(4, 2)
    errors = [symkl(process.scheme(n, 0.8 / n)[-1], process.at(0.8)) for n in (8, 16, 32)]
    assert [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)] == pytest.approx([2, 2], abs=0.2)  # it is squared


def test_a_short_run_follows_the_process(tmp_path):
    given = {"dim": "2,4", "steps": 4, "particles": 5000, "iterations": 300, "batch_size": 500}
    metrics = runner.run("ornstein-uhlenbeck", given, tmp_path / "out", resume=False, say=lambda line: None)
    for dim in (2, 4):
        start = symkl(Process.draw(dim, 0).at(0.0), Process.draw(dim, 0).at(0.2))
        assert 0 < metrics[f"D={dim}_symkl"] < min(3e-3, 0.05 * start)
        assert metrics[f"D={dim}_KL_to_target_estimated"] == pytest.approx(
            metrics[f"D={dim}_KL_to_target_exact"], abs=0.1
        )
        assert (tmp_path / "out" / f"D{dim}" / "samples.npy").exists()
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000


# ---------------------------------------------------------------------------------------- porous medium


@pytest.mark.parametrize("m", [2.0, 3.0])
@pytest.mark.parametrize("dim", [1, 3, 6])
def test_barenblatt(dim, m):
    profile = Barenblatt(dim, m)
    sphere = 2 * math.pi ** (dim / 2) / special.gamma(dim / 2)
    t = 0.02
    radius = profile.radius(t)

    def density(r, t=t):
        x = torch.zeros(1, dim, dtype=torch.float64)
        x[0, 0] = r
        return float(profile.log_density(x, profile.radius(t)).exp())

    def integral(f):
        return integrate.quad(lambda r: sphere * r ** (dim - 1) * f(density(r)), 0, radius)[0]

    assert integral(lambda p: p) == pytest.approx(1, rel=1e-6)
    assert integral(lambda p: p**m / (m - 1)) == pytest.approx(profile.entropy(radius), rel=1e-6)
    for r in (0.2 * radius, 0.7 * radius):  # dP/dt = lap P^m, by differences
        e = 1e-3 * radius
        slope = (density(r, t * (1 + 1e-4)) - density(r, t * (1 - 1e-4))) / (2e-4 * t)
        u = [density(s) ** m for s in (r - e, r, r + e)]
        laplacian = (u[0] - 2 * u[1] + u[2]) / e**2 + (dim - 1) / r * (u[2] - u[0]) / (2 * e)
        assert slope == pytest.approx(laplacian, rel=1e-4)
    torch.manual_seed(0)
    r = profile.sample(100_000, radius).norm(dim=1)
    second = integrate.quad(lambda r: sphere * r ** (dim + 1) * density(r), 0, radius)[0]
    assert r.max() <= radius and r.square().mean().item() == pytest.approx(second, rel=0.01)


@pytest.mark.parametrize(("dim", "m"), [(1, 2.0), (3, 2.0), (6, 2.0), (2, 3.0)])
def test_a_jko_step_of_the_profile_is_a_minimum(dim, m):
    """Over scalings of the profile, E |x - s x|^2 / (2a) + entropy, minimised by SciPy."""
    profile, a = Barenblatt(dim, m), 5e-4
    start = profile.radius(1e-3)
    torch.manual_seed(0)
    beta = dim / 2 / (dim / 2 + m / (m - 1))  # E |x|^2 / R^2

    def objective(s):
        return beta * start**2 * (s - 1) ** 2 / (2 * a) + profile.entropy(start * s)

    best = optimize.minimize_scalar(objective, bounds=(1, 3), method="bounded", options={"xatol": 1e-10}).x
    assert profile.jko_step(start, a) == pytest.approx(start * best, rel=1e-6)


def test_symkl_on_the_common_support():
    """By quadrature in 1-D, the support of P inside and outside of that of B."""
    profile = Barenblatt(1, 2.0)
    torch.manual_seed(0)

    def log_at(r, radius):
        return float(profile.log_density(torch.tensor([[r]], dtype=torch.float64), radius))

    for p, b in ((0.9, 1.0), (1.0, 0.9)):
        edge = min(p, b) - 1e-12
        both = integrate.quad(
            lambda r, p=p, b=b: (math.exp(log_at(r, p)) - math.exp(log_at(r, b))) * (log_at(r, p) - log_at(r, b)),
            -edge,
            edge,
            limit=200,
        )[0]
        x, log_u = profile.spread(20_000, p)
        log_p, log_b = (profile.log_density(x, radius) for radius in (p, b))
        assert common_symkl(log_p, log_b, log_u) == pytest.approx(both, rel=0.01)
        assert mass(log_p, log_u, log_b.isfinite() | log_b.isinf()) == pytest.approx(1, rel=1e-3)
    outside = 2 * integrate.quad(lambda r: math.exp(log_at(r, 1.0)), 0.9, 1)[0]  # p = 1, b = 0.9
    assert mass(log_p, log_u, log_b.isinf()) == pytest.approx(outside, rel=0.01)
    assert common_symkl(log_p, log_p, log_u) == 0


def test_a_short_run_stays_a_barenblatt_profile(tmp_path):
    given = {"dim": "2", "steps": 2, "particles": 5000, "iterations": 300, "batch_size": 512}
    metrics = runner.run("porous-medium", given, tmp_path / "out", resume=False, say=lambda line: None)
    moved = Barenblatt(2, 2.0)
    x, log_u = moved.spread(20_000, moved.radius(1e-3))
    before, after = (moved.log_density(x, moved.radius(t)) for t in (1e-3, 2e-3))
    still = common_symkl(before, after, log_u)
    assert 0 < metrics["symkl"] < 0.1 * still
    assert metrics["symkl_to_exact_JKO_steps"] < 2e-3 and metrics["mass_outside_of_the_exact_support"] < 1e-3
    assert metrics["entropy_estimated"] == pytest.approx(metrics["entropy_exact"], rel=0.15)
    assert (tmp_path / "out" / "samples.npy").exists() and (tmp_path / "out" / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("text", ["0", "2,x", "", "3,-1"])
def test_bad_dimensions(text):
    with pytest.raises(ValueError, match="dim must be positive integers such as 8 or 2,8,32, got"):
        dimensions.parse(text)


def test_dimensions_and_exponents():
    assert dimensions.parse("8, 2,8") == (2, 8)
    with pytest.raises(ValueError, match="exponent must be a number above 1, got 1"):
        runner.run("porous-medium", {"exponent": 1.0}, None, resume=False, say=print)
    assert ornstein_uhlenbeck.EXPERIMENT.name == "ornstein-uhlenbeck"
    assert porous_medium.EXPERIMENT.name == "porous-medium"


# ------------------------------------------------------------------------------ aggregation and diffusion


def test_finite_volumes_follow_a_barenblatt_profile():
    """Without interaction, in the plane; m = 3: the error falls with the size of the cells."""
    profile, start, end = Barenblatt(2, 3.0), 0.02, 0.1
    errors = []
    for cells in (32, 64):
        grid = Grid(half_width=1.2 * profile.radius(end), cells=cells)
        equation = Equation(grid, torch.zeros_like, 1.0, 3.0)

        def density(t, grid=grid):
            return profile.log_density(grid.points(), profile.radius(t)).exp().view(grid.cells, grid.cells)

        first = density(start)
        (found,) = equation.solve(first, [end - start])
        assert float(found.sum()) == pytest.approx(float(first.sum()), rel=1e-12) and found.min() >= 0
        assert equation.energy(found) < equation.energy(first)
        errors.append(float((found - density(end)).abs().sum()) * grid.size**2)
    assert errors[1] < 0.65 * errors[0] < 0.1


def test_finite_volumes_follow_an_attraction():
    """W = r^2/2 moves every point to the mean at rate 1: the second moment falls as e^(-2t), to first order in size."""
    ratios = []
    for cells in (48, 96):
        grid = Grid(half_width=1.5, cells=cells)
        start, r2 = grid.uniform(1.0), grid.points().square().sum(1)
        (found,) = Equation(grid, lambda r: r**2 / 2, 0.0, 2.0).solve(start, [0.5])
        ratios.append(float(found.flatten() @ r2) / float(start.flatten() @ r2))
    assert 2 * ratios[1] - ratios[0] == pytest.approx(math.exp(-1), rel=5e-3)
    assert abs(ratios[1] / math.exp(-1) - 1) < 0.06


def test_aggregation_diffusion_follows_the_reference(tmp_path):
    given = {"steps": 4, "particles": 2000, "iterations": 60, "batch_size": 500}
    out = tmp_path / "out"
    metrics = runner.run("aggregation-diffusion", given, out, resume=False, say=lambda line: None)
    for name in ("forward_backward", "non_splitting"):
        assert metrics[f"{name}_energy_distance_to_reference"] < 0.05
        assert metrics[f"{name}_mean_square_radius_over_that_of_reference"] == pytest.approx(1, abs=0.05)
        assert metrics[f"{name}_energy"] == pytest.approx(metrics["energy_of_reference"], abs=0.01)
    assert (out / "non-splitting" / "samples.npy").exists() and (out / "figure.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="mass must be a positive number, got -1"):
        runner.run("aggregation-diffusion", {"mass": -1.0}, tmp_path / "bad", resume=False, say=print)
