"""The generator parametrisation: exact steps on a Gaussian family, engines, checkpoints, errors."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

import gwf_fast as gwf
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import Functional
from gwf_fast.nn import MLP
from gwf_fast.potentials import Gaussian
from tests.flows.test_fused_engine import assert_same_path, densities, samples
from tests.flows.test_jko import Quadratic

TARGET = Gaussian(torch.tensor([2.0, -1.0]).double(), torch.tensor([[1.5, 0.6], [0.6, 0.7]], dtype=torch.float64))


def whitened_noise(n, dim, seed=0):
    """Mean 0 and covariance I exactly: an affine image of it has the moments that its matrix says."""
    z = torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z = z - z.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / n), z.T, upper=False).T


def gaussian_kl(mean, covariance):
    """KL(N(mean, covariance) | TARGET)."""
    inverse = torch.linalg.inv(TARGET.covariance)
    shift = mean - TARGET.mean
    return ((inverse @ covariance).trace() + shift @ inverse @ shift - len(mean)
            + torch.logdet(TARGET.covariance) - torch.logdet(covariance)) / 2  # fmt: skip


def moments(x):
    centred = x - x.mean(0)
    return x.mean(0), centred.T @ centred / len(x)


class ExactKL(Functional):
    """KL to TARGET within the Gaussian family, in closed form."""

    def map_objective(self, critic, x, z, reference):
        return gaussian_kl(*moments(x))

    value = map_objective


def affine(latent=3):
    """R^latent -> R^2."""
    torch.manual_seed(3)
    return nn.Linear(latent, 2).double()


def exact_value(state):
    layer: Any = state.maps[0][0] if isinstance(state.maps[0], nn.Sequential) else state.maps[0]
    weight = layer.weight.detach().double()
    return gaussian_kl(layer.bias.detach().double(), weight @ weight.T).item()


def test_the_functional_never_rises():
    """Steps solved to convergence: F falls by at least the proximity term, and goes to 0."""
    training = Training(batch_size=200, iterations=300, lr=0.03, lr_schedule="cosine")
    flow = JKOFlow(ExactKL(), 2, 0.5, parametrization="generator", map=affine(), training=training, latent_dim=3)
    state = flow.init(whitened_noise(200, 3))
    values = [exact_value(state)]
    for k in range(8):
        state = flow.step(state)
        values.append(exact_value(state))
        record = state.history[-1]
        assert record.value == pytest.approx(values[-1], abs=1e-9)
        # G_k itself is a candidate for G_(k+1): w2^2 / (2a) + F(P_(k+1)) <= F(P_k), for the same network
        assert record.w2**2 / (2 * 0.5) + values[-1] <= values[-2] + 1e-9, k
    assert values[0] > 3 and values[-1] < 0.02
    assert len(state.maps) == 1


def test_steps_against_the_closed_form():
    """Paired noise is an optimal coupling of translates: the spherical Gaussian's JKO steps, MATH 9."""

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, z):
            return z + self.bias

    class Spherical(Functional):
        def map_objective(self, critic, x, z, reference):
            return (x.mean(0) - TARGET.mean).square().sum() / 2

        value = map_objective

    a, training = 0.4, Training(batch_size=100, iterations=600, lr=0.05, lr_schedule="cosine")
    flow = JKOFlow(Spherical(), 2, a, parametrization="generator", map=Shift(), training=training)
    state = flow.init(whitened_noise(100, 2))
    for k in range(1, 5):
        state = flow.step(state)
        torch.testing.assert_close(state.maps[0].bias, TARGET.mean * (1 - (1 + a) ** -k), rtol=0, atol=1e-4)


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_a_critic_lowers_the_functional_too(engine):
    """The same with a trained critic instead of the closed form, on both engines."""
    fused = engine == "fused"
    flow = JKOFlow(
        gwf.FDivergence("kl", TARGET.colour(whitened_noise(1000, 2, seed=4))) if fused else gwf.KL(TARGET),
        2,
        0.5,
        parametrization="generator",
        map=MLP([3, 2]) if fused else affine(),
        critic=MLP([2, 32, 32, 1], "tanh") if fused else Quadratic(2).double(),
        training=Training(batch_size=500, iterations=500 if fused else 200, critic_steps=5, lr=3e-3, critic_lr=1e-2),
        latent_dim=3,
        engine=engine,
    )
    state = flow.init(whitened_noise(500, 3))
    values = [exact_value(state)]
    for _ in range(3):
        state = flow.step(state)
        values.append(exact_value(state))
    assert all(after < before for before, after in itertools.pairwise(values)), values
    assert values[-1] < 0.1 * values[0]


@pytest.mark.parametrize("pool", [500, 64])
@pytest.mark.parametrize("step_size", [0.5, math.inf])
@pytest.mark.parametrize("kind", ["js", "gaussian", "function"])
def test_fused_against_torch(kind, step_size, pool):
    functional = gwf.JensenShannon(samples()) if kind == "js" else gwf.KL(densities()[kind])
    assert_same_path(functional, latent=5, step_size=step_size, pool=pool)


def flow(**options):
    training = Training(batch_size=32, iterations=20, critic_steps=2, pool_size=128)
    given = {"parametrization": "generator", "step_size": 0.5, "training": training, "latent_dim": 4, "seed": 3}
    return JKOFlow(gwf.JensenShannon(samples(2, dtype=torch.float32)), 2, **{**given, **options})


def noise(n):
    return torch.randn(n, 4)


@pytest.mark.parametrize("engine", ["fused", "torch"])
@pytest.mark.parametrize("source", [noise, torch.linspace(-1, 1, 512).reshape(128, 4)])
def test_resumed_equals_uninterrupted(engine, source, tmp_path):
    whole = flow(engine=engine).run(source, 3, progress=False)
    flow(engine=engine).run(source, 2, progress=False, checkpoint=tmp_path)
    x0 = None if isinstance(source, torch.Tensor) else source
    resumed = JKOFlow.resume(tmp_path, n_steps=3, progress=False, x0=x0)
    assert torch.equal(resumed.particles, whole.particles)
    assert torch.equal(resumed.state.latents, whole.state.latents)
    for a, b in zip(resumed.maps[0].parameters(), whole.maps[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(list(tmp_path.glob("map-*"))) == 1  # the last network only


def test_one_evaluation_samples_it():
    result = flow().run(noise, 2, progress=False)
    assert len(result.maps) == 1
    assert torch.equal(result.push(result.state.latents), result.particles)
    z = noise(9)
    assert torch.equal(result.push(z), result.maps[0](z).detach())
    assert result.sample(70_000).shape == (70_000, 2)  # more than one chunk
    torch.manual_seed(0)
    drawn = result.sample(5)
    torch.manual_seed(0)
    assert torch.equal(drawn, result.maps[0](noise(5)).detach())
    with pytest.raises(ValueError, match="trajectory: a generator keeps its last network only"):
        result.trajectory(z)


def test_the_state_stays_and_the_generator_goes_on():
    g = flow()
    first = g.step(g.init(noise))
    before = [p.clone() for p in first.maps[0].parameters()]
    second = g.step(first)
    assert all(torch.equal(a, b) for a, b in zip(before, first.maps[0].parameters(), strict=True))
    assert second.map_optimizer["state"][0]["step"] == 2 * 20  # Adam goes on as well
    assert first.step == 1 and second.step == 2 and len(second.history) == 2


def test_without_proximity_it_goes_farther():
    near, far = (flow(step_size=a).run(noise, 1, progress=False).history[0] for a in (1e-3, math.inf))
    assert far.w2 > 3 * near.w2
    assert far.loss == far.value


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: flow(latent_dim=0), "latent_dim must be a positive integer"),
        (lambda: flow(parametrization="composition"), "latent_dim: got 4, but only parametrization='generator'"),
        (lambda: flow(scheme="explicit"), "scheme: 'explicit' moves the particles themselves"),
        (lambda: flow().init(torch.randn(64, 2)), r"x0 must be samples \[N, 4\], got \[64, 2\]"),
        (lambda: flow().init(torch.randn(31, 4)), "batch_size: 32 is larger than the pool of 31"),
        (lambda: flow(map=MLP([4, 3]), engine="fused"), "the critic takes 2 dimensions, the map gives 3"),
        (lambda: flow(map=nn.Linear(4, 1), engine="torch").run(noise, 1, progress=False), r"map must have an output"),
        (lambda: flow(map=MLP([3, 2])).run(noise, 1, progress=False), r"x must have shape \[\*B, 3\]"),
    ],
)
def test_bad_input(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_infinite_steps_are_for_jko_only():
    with pytest.raises(ValueError, match="scheme: 'crank_nicolson' moves the particles themselves; an infinite"):
        JKOFlow(gwf.Interaction(gwf.Riesz()), 2, math.inf, scheme="crank_nicolson")


def test_fresh_noise_each_step():
    g = flow()
    first = g.step(g.init(noise), x0=noise)
    second = g.step(first, x0=noise)
    assert not torch.equal(first.latents, second.latents)
    assert torch.equal(second.maps[0](second.latents), second.particles)
    still = dataclasses.replace(first)
    assert torch.equal(g.step(still).latents, first.latents)
