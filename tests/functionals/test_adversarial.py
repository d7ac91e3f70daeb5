"""IPM, Donsker-Varadhan and unbalanced MMD: against plain PyTorch, closed forms, and in a flow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import gwf_fast as gwf
from gwf_fast.randomness.draws import Draws


def samples(n: int = 64, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator, dtype=dtype)
    return x, 0.5 * torch.randn(n, 3, generator=generator, dtype=dtype) + 1


def twins() -> tuple[nn.Module, nn.Sequential]:
    """A critic of this package and the same in torch.nn."""
    torch.manual_seed(1)
    ours = gwf.nn.MLP([3, 16, 16, 1], activation="leaky_relu").double()
    theirs = nn.Sequential(
        nn.Linear(3, 16), nn.LeakyReLU(0.2), nn.Linear(16, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)
    ).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_wgan_gp_critic_gradient_is_that_of_plain_pytorch() -> None:
    x, y = samples()
    ours, theirs = twins()
    functional = gwf.IPM(y, penalty=7.0)
    draws = Draws(3)
    z = functional.draw(64, None, draws)
    got = torch.autograd.grad(functional.critic_objective(ours, x, z, None), list(ours.parameters()))

    draws = Draws(3)
    draws.skip()  # the whole target is the batch
    e = draws.uniforms(64, x)[:, None]
    between = (e * x + (1 - e) * y).requires_grad_()
    slope = torch.autograd.grad(theirs(between).sum(), between, create_graph=True)[0]
    loss = theirs(x).mean() - theirs(y).mean() - 7.0 * ((slope.norm(2, dim=1) - 1) ** 2).mean()
    want = torch.autograd.grad(loss, list(theirs.parameters()), allow_unused=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-9, atol=1e-11)


def test_segments_differ_from_ascent_to_ascent() -> None:
    x, y = samples()
    critic, _ = twins()
    functional = gwf.IPM(y)
    z = functional.draw(64, None, Draws(3))
    first, second = (functional.critic_objective(critic, x, z, None) for _ in range(2))
    assert first != second


@pytest.mark.parametrize("make", [lambda: gwf.nn.MLP([3, 16, 16, 1], activation="relu"), lambda: twins()[1]])
def test_spectral_norm_bounds_the_slope(make) -> None:
    x, y = samples(dtype=torch.float32)
    critic = gwf.IPM(y, constraint="spectral_norm").build_critic(make).to(x)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.mul_(10)
    for _ in range(50):
        critic(x)  # the power iteration converges
    critic.eval()
    points = torch.cat((x, y)).requires_grad_()
    slope = torch.autograd.grad(critic(points).sum(), points)[0].norm(dim=1)
    assert float(slope.max()) <= 1 + 1e-3
    assert float(slope.max()) > 0.05


def test_donsker_varadhan_is_kl_at_the_optimal_critic() -> None:
    nodes = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, scale = 0.4, 0.8
    p = mean + scale * nodes

    class LogRatio(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -0.5 * ((x - mean) / scale) ** 2 + 0.5 * x**2 + 5.0  # any constant

    exact = -math.log(scale) + 0.5 * (scale**2 + mean**2) - 0.5
    value = gwf.DonskerVaradhan(nodes).value(LogRatio(), p, nodes, None)
    assert abs(float(value) - exact) < 3e-3
    worse = gwf.DonskerVaradhan(nodes).value(lambda x: 0.7 * LogRatio()(x), p, nodes, None)  # type: ignore[arg-type]
    assert worse < value


def test_unbalanced_mmd_is_a_multiple() -> None:
    x, y = samples()
    kernel = gwf.Gaussian(1.0)
    value = gwf.MMDUnbalanced(y, kernel, strength=6.0).value(None, x, y, None)
    torch.testing.assert_close(value, 3.0 * gwf.mmd2(x, y, kernel=kernel, unbiased=True))


FUNCTIONALS = [
    lambda y: gwf.IPM(y),
    lambda y: gwf.IPM(y, constraint="spectral_norm"),
    lambda y: gwf.DonskerVaradhan(y),
    lambda y: gwf.MMDUnbalanced(y, gwf.Riesz(), strength=4.0),
]


@pytest.mark.parametrize("functional", FUNCTIONALS, ids=["penalty", "spectral", "donsker-varadhan", "mmd"])
def test_flow_goes_to_the_target_and_resumes(functional, tmp_path) -> None:
    x, y = samples(512, torch.float32)
    flow = gwf.JKOFlow(
        functional(y),
        3,
        1.0,
        map=gwf.nn.MLP([3, 16, 16, 3], residual=True),
        critic=gwf.nn.MLP([3, 16, 16, 1], activation="leaky_relu"),
        training=gwf.Training(batch_size=128, iterations=150),
        seed=1,
    )
    result = flow.run(x, 3, progress=False, checkpoint=tmp_path / "run")
    before = (x.mean(0) - y.mean(0)).norm()
    assert float((result.particles.mean(0) - y.mean(0)).norm()) < 0.6 * float(before)
    again = flow.run(x, 2, progress=False, checkpoint=tmp_path / "other")
    resumed = gwf.JKOFlow.resume(tmp_path / "other", n_steps=3, progress=False)
    assert len(again.history) == 2
    assert torch.equal(resumed.particles, result.particles)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda y: gwf.IPM(y, constraint="clip"), "constraint"),  # type: ignore[arg-type]
        (lambda y: gwf.IPM(y, penalty=0.0), "penalty"),
        (lambda y: gwf.MMDUnbalanced(y, gwf.Riesz(), strength=-1.0), "strength"),
        (lambda y: gwf.DonskerVaradhan(y[:0]), "target"),
        (lambda y: gwf.IPM(y, constraint="spectral_norm").build_critic(nn.Identity), "spectral_norm"),
    ],
)
def test_bad_input(make, match) -> None:
    with pytest.raises(ValueError, match=match):
        make(samples()[1])
