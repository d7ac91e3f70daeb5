"""Each preset's first parameter update against a transcription of the model in plain PyTorch."""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

import gwf_fast as gwf
from gwf_fast import presets
from gwf_fast.randomness.draws import Draws
from gwf_fast.randomness.seeded import seeded

N = 64


def noise():
    return torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def data():
    return 0.5 * torch.randn(N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1


def updated(preset, critic_steps, engine, **training):
    """The networks before and after one iteration; whole sets, so that nothing but e is drawn."""
    torch.manual_seed(7)
    make_generator = gwf.nn.MLP([4, 16, 16, 2], "relu")
    make_critic = gwf.nn.MLP([2, 16, 16, 1], "leaky_relu")
    chosen = gwf.Training(batch_size=N, iterations=1, critic_steps=critic_steps, gradient_clip=None, **training)
    flow = preset(data(), 2, latent_dim=4, map=make_generator, critic=make_critic, training=chosen, engine=engine)
    before = flow.init(noise())
    return flow, before, flow.step(before)


def twin(module):
    return copy.deepcopy(nn.Sequential(*module)).requires_grad_(True)


def e_of(flow, ascent):
    """The points of the penalty on the segments, as the flow draws them."""
    with seeded(flow.seed, 1, torch.device("cpu")):
        draws = Draws.from_torch()
    draws.begin(0)
    for _ in range(2 + ascent):
        draws.skip()
    return draws.uniforms(N, torch.zeros(1, dtype=torch.float64))[:, None]


def assert_close(module, plain):
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_gan(engine):
    _, before, after = updated(presets.gan, 1, engine, lr=2e-4, betas=(0.5, 0.999))
    G, net = twin(before.maps[0]), twin(before.critic)

    def D(x):  # the discriminator: the probability of data
        return torch.sigmoid(-net(x))

    options: dict[str, Any] = {"lr": 2e-4, "betas": (0.5, 0.999)}
    optimizer_D, optimizer_G = (
        torch.optim.Adam(net.parameters(), **options),
        torch.optim.Adam(G.parameters(), **options),
    )
    loss_D = -(D(data()).log().mean() + (1 - D(G(noise()).detach())).log().mean())
    optimizer_D.zero_grad()
    loss_D.backward()
    optimizer_D.step()
    loss_G = (1 - D(G(noise()))).log().mean()
    optimizer_G.zero_grad()
    loss_G.backward()
    optimizer_G.step()
    assert_close(after.critic, net)
    assert_close(after.maps[0], G)
    assert not torch.equal(before.maps[0][0].weight, after.maps[0][0].weight)


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_wgan_gp(engine):
    flow, before, after = updated(presets.wgan_gp, 5, engine, lr=1e-4, betas=(0.0, 0.9))
    G, D = twin(before.maps[0]), twin(before.critic)
    options: dict[str, Any] = {"lr": 1e-4, "betas": (0.0, 0.9)}
    optimizer_D, optimizer_G = torch.optim.Adam(D.parameters(), **options), torch.optim.Adam(G.parameters(), **options)
    # The paper's D is large on data; ours is large on the model, and only the sign differs.
    for ascent in range(5):
        fake = G(noise()).detach()
        e = e_of(flow, ascent)
        between = (e * fake + (1 - e) * data()).requires_grad_()
        slope = torch.autograd.grad(D(between).sum(), between, create_graph=True)[0]
        loss = D(data()).mean() - D(fake).mean() + 10 * ((slope.norm(2, dim=1) - 1) ** 2).mean()
        optimizer_D.zero_grad()
        loss.backward()
        optimizer_D.step()
    loss = D(G(noise())).mean()
    optimizer_G.zero_grad()
    loss.backward()
    optimizer_G.step()
    assert_close(after.critic, D)
    assert_close(after.maps[0], G)


def test_gmmn():
    _, before, after = updated(presets.gmmn, 1, None, lr=1e-3)
    G = twin(before.maps[0])
    x, y = G(noise()), data()

    def k(a, b):
        r2 = torch.cdist(a, b) ** 2
        return sum(torch.exp(-r2 / (2 * h**2)) for h in (1, 2, 4, 8, 16))

    kxx, kyy = k(x, x), k(y, y)
    off = N * (N - 1)
    mmd2 = (kxx.sum() - kxx.trace()) / off + (kyy.sum() - kyy.trace()) / off - 2 * k(x, y).mean()
    optimizer = torch.optim.Adam(G.parameters(), lr=1e-3)
    (mmd2 / 2).backward()
    optimizer.step()
    assert_close(after.maps[0], G)


def test_wgan_sn():
    """Power iterations go on with every pass of the critic; each sees both batches in one go."""
    _, before, after = updated(presets.wgan_sn, 5, "torch", lr=2e-4, betas=(0.0, 0.9))
    G, D = twin(before.maps[0]), twin(before.critic).train()
    options: dict[str, Any] = {"lr": 2e-4, "betas": (0.0, 0.9)}
    optimizer_D, optimizer_G = torch.optim.Adam(D.parameters(), **options), torch.optim.Adam(G.parameters(), **options)
    for _ in range(5):
        model, real = D(torch.cat((G(noise()).detach(), data()))).chunk(2)
        optimizer_D.zero_grad()
        (real.mean() - model.mean()).backward()
        optimizer_D.step()
    optimizer_G.zero_grad()
    D(G(noise())).mean().backward()
    optimizer_G.step()
    assert_close(after.critic, D)
    assert_close(after.maps[0], G)
    assert not torch.equal(before.maps[0][0].weight, after.maps[0][0].weight)


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_f_gan(engine):
    """Our KL, their reverse KL: T_V(x) on the model, exp(T_V - 1) on data."""
    kl = functools.partial(presets.f_gan, "kl")
    _, before, after = updated(kl, 1, engine, lr=1e-4)
    G, V = twin(before.maps[0]), twin(before.critic)
    optimizer_V, optimizer_G = torch.optim.Adam(V.parameters(), lr=1e-4), torch.optim.Adam(G.parameters(), lr=1e-4)
    optimizer_V.zero_grad()
    ((V(data()) - 1).exp().mean() - V(G(noise()).detach()).mean()).backward()
    optimizer_V.step()
    optimizer_G.zero_grad()
    V(G(noise())).mean().backward()
    optimizer_G.step()
    assert_close(after.critic, V)
    assert_close(after.maps[0], G)


def test_options_are_the_flows():
    flow = presets.gmmn(data(), 2, kernel=gwf.Riesz(), seed=5, training=gwf.Training(batch_size=8))
    assert isinstance(flow.functional, gwf.SquaredMMD)
    assert flow.functional.kernel == gwf.Riesz() and flow.seed == 5 and flow.training.batch_size == 8
    with pytest.raises(TypeError, match="kernl"):
        presets.gan(data(), 2, kernl=3)
