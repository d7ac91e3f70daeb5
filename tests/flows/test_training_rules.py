"""What a training does in each iteration, in numbers: averages, rates, patience, clips, pools, penalties.

Each of these once could be changed without a test turning red.
"""

from __future__ import annotations

import math
import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import gwf_fast as gwf
from gwf_fast import presets
from gwf_fast.checkpoint import run_folder
from gwf_fast.flows import schemes
from gwf_fast.flows.engines import base as engines
from gwf_fast.flows.engines import fused as fused_engine
from gwf_fast.flows.engines import torch as torch_engine
from gwf_fast.functionals.energies import Ellipsoid

X = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def trained(engine="torch", **training):
    """Parameters of the map after one step that falls down a hill; its draws do not depend on the settings."""
    torch.manual_seed(1)
    map = gwf.nn.MLP([2, 8, 2], "silu", residual=True).double()
    settings = gwf.Training(**{"batch_size": 20, "iterations": 3, "lr": 0.01, **training})
    functional = gwf.KL(gwf.potentials.Gaussian(torch.ones(2).double(), torch.eye(2).double()))
    flow = gwf.JKOFlow(functional, 2, 0.5, map=map, critic=critic(), training=settings, engine=engine)
    return [p.detach() for p in flow.step(flow.init(X)).maps[0].parameters()]


def untrained(engine):
    """As ``trained`` begins."""
    return trained(engine, iterations=1, lr=1e-18)


def critic():
    torch.manual_seed(2)
    return gwf.nn.MLP([2, 8, 1], "silu").double()


@pytest.mark.parametrize("engine", ["torch", "fused"])
def test_the_average_decays_by_ema_in_each_descent(engine):
    average = untrained(engine)
    for iterations in (1, 2, 3):
        after = trained(engine, iterations=iterations)
        average = [0.9 * a + 0.1 * p for a, p in zip(average, after, strict=True)]
    torch.testing.assert_close(trained(engine, ema=0.9), average, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ["torch", "fused"])
def test_a_cosine_begins_at_the_rate_asked_for(engine):
    """Adam's first update has the size of the rate."""
    for iterations in (1, 2):
        training = gwf.Training(iterations=iterations, lr_schedule="cosine")
        assert [training.rate(j) for j in range(iterations)] == pytest.approx([1.0, 0.5][:iterations])
    after = trained(engine, iterations=1, lr_schedule="cosine", gradient_clip=None)
    moved = torch.cat([(b - a).flatten() for a, b in zip(untrained(engine), after, strict=True)]).abs()
    assert moved.max() == pytest.approx(0.01, rel=1e-4)


def test_a_drifting_model_begins_at_the_rate_asked_for():
    generator = nn.Linear(3, 2)
    flow = gwf.DriftingModel(
        "energy", 2, generator=generator, latent_dim=3, batch_size=32, lr=0.01, lr_schedule="cosine"
    )
    before = generator.weight.detach().clone()
    trained = flow.run(X.float(), 1, progress=False).generator
    assert isinstance(trained, nn.Linear)
    after = trained.weight.detach()
    assert (after - before).abs().max() == pytest.approx(0.01, rel=1e-3)


def test_patience_looks_at_means():
    """The last loss of a minibatch is noise."""

    def ends(losses, means):
        watch = engines.Watch(SimpleNamespace(on_iteration=None, training=gwf.Training(patience=100)))  # type: ignore[arg-type]
        looks = enumerate(zip(losses, means, strict=True), start=1)
        return [watch.stops(50 * k, loss, mean, None) for k, (loss, mean) in looks]

    assert ends([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]) == [False] * 4
    assert ends([4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]) == [False, False, True, True]


@pytest.mark.parametrize("engine", ["torch", "fused"])
def test_the_mean_is_that_of_the_iterations_since_the_look_before(engine, monkeypatch):
    seen = []

    def stops(self, iteration, loss, mean, critic_loss):
        seen.append((iteration, loss, mean))
        return False

    monkeypatch.setattr(engines.Watch, "stops", stops)
    for every in (1, 4):
        for module in (torch_engine, fused_engine):
            monkeypatch.setattr(module, "CHECK_EVERY", every)
        trained(engine, iterations=10)
    losses = [loss for _, loss, _ in seen[:10]]
    assert [mean for _, _, mean in seen[:10]] == pytest.approx(losses, rel=1e-12)
    ranges = (slice(0, 4), slice(4, 8), slice(8, 10))
    assert [mean for _, _, mean in seen[10:]] == pytest.approx([sum(losses[r]) / len(losses[r]) for r in ranges])


def test_a_critic_of_an_explicit_step_has_its_gradient_clipped():
    """So small a norm that Adam's epsilon shows in the size of its update."""
    for clip, least, most in ((1e-11, 0.0, 1e-4), (None, 9e-3, 1.1e-2)):
        net = critic()
        before = [p.detach().clone() for p in net.parameters()]
        optimizer = torch.optim.Adam([{"params": list(net.parameters()), "initial_lr": 0.01}], lr=0.01)
        training = gwf.Training(batch_size=20, iterations=1, critic_steps=1, gradient_clip=clip)
        schemes.fit_critic(gwf.JensenShannon(X + 1), net, optimizer, X, training)
        moved = max((a - b.detach()).abs().max().item() for a, b in zip(before, net.parameters(), strict=True))
        assert least < moved < most


def test_a_pool_has_the_size_asked_for_in_every_step():
    asked = []

    def source(n):
        asked.append(n)
        return X[:1].repeat(n, 1) + torch.randn(n, 2)

    training = gwf.Training(batch_size=7, iterations=2, critic_steps=1, pool_size=30)
    flow = gwf.JKOFlow(gwf.Potential(lambda x: x.square().sum(-1)), 2, 0.1, training=training)
    state = flow.step(flow.init(source), x0=source)
    state = flow.step(state, x0=source)
    assert asked == [30, 30] and len(state.particles) == 30


def test_the_penalty_draws_slopes_to_one():
    """Of a linear critic between equal sets, where nothing else has a say."""
    for start in (0.1, 3.0):
        net = nn.Linear(2, 1, bias=False).double()
        nn.init.constant_(net.weight, start)
        for steps, lr in ((300, 1e-2), (60, 1e-3)):
            gwf.drift.LearnedCritic(2, network=net, steps=steps, lr=lr)(X, X)
            # Two updates of Adam, of lr a weight: at the minimum the gradient is rounding, which goes by where X lies
            # in memory.
            assert net.weight.norm().item() == pytest.approx(1.0, abs=2 * math.sqrt(2) * lr)
    with torch.no_grad():
        net.weight.mul_(3)
    penalty = gwf.nn.objective.gradient_penalty(net, X, X)
    assert penalty.item() == pytest.approx((net.weight.norm().item() - 1) ** 2)


def test_an_entropy_has_room_to_move_in():
    shape = Ellipsoid.around(X)
    farthest = shape.gaussian.whiten(X).norm(dim=1).max().item()
    assert shape.radius == pytest.approx(1.15 * farthest)
    assert shape.coordinates(X).norm(dim=1).max().item() == pytest.approx(math.sqrt(2) / 1.15)


def test_interactions_are_summed_as_each_asks(monkeypatch):
    """Those with other options than the first take their own way."""
    one = gwf.Interaction(gwf.Gaussian(1.0), method="exact")
    two = gwf.Interaction(gwf.Gaussian(0.5), method=gwf.NUFFT(1e-4))
    three = gwf.Interaction(gwf.Gaussian(2.0), method="exact")
    calls = []
    run = schemes.forward_step

    def spy(x, step_size, *, kernel, **options):
        calls.append((kernel, options["method"]))
        return run(x, step_size, kernel=kernel, **options)

    monkeypatch.setattr(schemes, "forward_step", spy)
    moved = schemes.ForwardStep(one + 2 * two + three, 0.1, X, None).move(X, X)
    assert calls == [(one.kernel + three.kernel, "exact")]
    kernel = one.kernel + 2 * two.kernel + three.kernel
    torch.testing.assert_close(moved, gwf.forward_step(X, 0.1, kernel=kernel), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (presets.gan, {"critic_steps": 1, "lr": 2e-4, "betas": (0.5, 0.999)}),  # Radford et al. 2015
        (lambda y, dim: presets.f_gan("pearson", y, dim), {"critic_steps": 1, "lr": 1e-4}),
        (presets.wgan_gp, {"batch_size": 64, "critic_steps": 5, "lr": 1e-4, "betas": (0.0, 0.9)}),
        (presets.wgan_sn, {"batch_size": 64, "critic_steps": 5, "lr": 2e-4, "betas": (0.0, 0.9)}),
        (presets.gmmn, {"batch_size": 1000, "lr": 1e-3, "pool_size": 16384}),
    ],
    ids=["gan", "f_gan", "wgan_gp", "wgan_sn", "gmmn"],
)
def test_presets_are_those_of_their_papers(preset, expected):
    flow = preset(X, 2)
    assert flow.training == gwf.Training(**expected, gradient_clip=None)
    assert flow.step_size == math.inf and flow.parametrization == "generator"


def test_a_file_reaches_the_disk_before_its_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def record_sync(descriptor):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        return sync(descriptor)

    def record_replace(source, target):
        done.append("rename")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    run_folder.write_atomically(tmp_path / "state", b"content")
    assert done == ["file", "rename", "folder"]
    assert (tmp_path / "state").read_bytes() == b"content"
