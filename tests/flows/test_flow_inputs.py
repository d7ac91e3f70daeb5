"""What a flow is given: targets, densities, templates, states of another flow, folders. Both engines take it alike."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

import gwf_fast as gwf
from gwf_fast.checkpoint import run_folder
from gwf_fast.errors import NonFiniteError
from gwf_fast.flows import jko_checkpoint as checkpoint
from gwf_fast.flows.networks import make_module
from gwf_fast.flows.training import Training
from gwf_fast.functionals.adversarial import IPM
from gwf_fast.functionals.base import KL, JensenShannon, Potential, SquaredMMD
from gwf_fast.nn import MLP

both = pytest.mark.parametrize("engine", ["fused", "torch"])


def flow(functional, engine, step_size=0.5, map=None, critic=None, scheme="jko", **training):
    settings = Training(**{"batch_size": 64, "iterations": 5, **training})
    return gwf.JKOFlow(
        functional, 2, step_size, map=map, critic=critic, scheme=scheme, engine=engine, training=settings
    )


def points(n=100, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


@both
def test_bad_targets_and_densities_are_named(engine):
    def run(functional, n=100):
        flow(functional, engine).run(points(n), 1, progress=False)

    with pytest.raises(ValueError, match=r"log_density must give a tensor of shape \[64\]"):
        run(KL(lambda x: x))
    with pytest.raises(ValueError, match="log_density: takes 3 dimensions, the particles have 2"):
        run(KL(gwf.potentials.Gaussian(torch.zeros(3), torch.eye(3))))
    for target in (lambda n: torch.randn(n, 3), torch.randn(64, 3)):
        for functional in (JensenShannon(target), SquaredMMD(target, gwf.Riesz()), IPM(target)):
            with pytest.raises(ValueError, match=r"target must give samples \[64, 2\], got \[64, 3\]"):
                run(functional)
    with pytest.raises(ValueError, match=r"target must give samples \[64, D\] for n = 64, got \[32, 2\]"):
        run(JensenShannon(lambda n: torch.randn(n // 2, 2)))
    with pytest.raises(ValueError, match="batch_size: 64 is larger than the pool of 63 particles"):
        run(KL(lambda x: x.sum(-1)), 63)


def test_a_nan_of_the_density_and_the_map_are_named():
    with pytest.raises(NonFiniteError, match=r"JKO step 1: .*log_density gave NaN or infinity at 64 of 64 points"):
        flow(KL(lambda x: x.sum(-1) * math.nan), "fused").run(points(), 1, progress=False)
    wrong = flow(KL(lambda x: x.sum(-1)), "fused", map=MLP([3, 3]), critic=MLP([3, 1]))
    with pytest.raises(ValueError, match="map: takes 3 dimensions, the particles have 2"):
        wrong.run(points(), 1, progress=False)


class Own:
    """Attributes named as those of a potential, which mean something else."""

    mean, means = 0.0, torch.ones(3)

    def log_density(self, x):
        return -x.square().sum(-1) / 2


SCALE = torch.ones((), requires_grad=True)


@both
@pytest.mark.parametrize(
    "functional",
    [
        KL(Own()),
        KL(Own().log_density),
        KL(lambda x: x.new_zeros(len(x))),
        Potential(lambda x: x.new_ones(len(x))),
        Potential(lambda x: SCALE * x.new_ones(len(x))),
    ],
)
def test_densities_of_any_kind(functional, engine):
    assert flow(functional, engine).run(points(), 1, progress=False).particles.isfinite().all()


@both
@pytest.mark.parametrize("make", [JensenShannon, IPM, gwf.DonskerVaradhan, lambda q: SquaredMMD(q, gwf.Riesz())])
def test_targets_of_another_precision(make, engine):
    """NumPy's are float64."""
    samples = np.random.default_rng(0).normal(size=(70, 2))
    wide, narrow = torch.tensor(samples), torch.tensor(samples).float()
    results = [
        flow(make(target), engine).run(points(), 1, progress=False).particles
        for target in (wide, lambda n: wide[:n], narrow)  # fewer than n where the value is estimated
    ]
    assert all(result.dtype is torch.float32 for result in results)
    torch.testing.assert_close(results[0], results[2])


class Twice(MLP):
    def forward(self, x):
        return 2 * super().forward(x)


def test_templates():
    """Only a plain MLP is drawn anew."""

    def made(template: nn.Module, name: str) -> Any:
        return make_module(template, name)

    plain = MLP([2, 4, 2])
    nn.init.constant_(plain[0].bias, 7.0)  # type: ignore[arg-type]
    assert (made(plain, "map")[0].bias != 7).all()
    assert type(make_module(Twice([2, 2]), "map")) is Twice
    constrained = MLP([2, 4, 1])
    spectral_norm(constrained[0])
    assert parametrize.is_parametrized(made(constrained, "critic")[0])
    frozen = MLP([2, 4, 2])
    frozen[0].weight.requires_grad_(False)
    assert torch.equal(made(frozen, "map")[0].weight, frozen[0].weight)  # type: ignore[arg-type]


def test_a_map_with_frozen_layers_keeps_them():
    net = MLP([2, 4, 2], residual=True)
    net[0].requires_grad_(False)
    result = flow(JensenShannon(points() + 1), None, map=net).run(points(), 3, progress=False)
    for transport in result.maps:
        assert torch.equal(transport[0].weight, net[0].weight)  # type: ignore[arg-type]
        assert not torch.equal(transport[-1].weight, net[-1].weight)  # type: ignore[arg-type]


def test_a_state_goes_on_with_the_new_training():
    results = []
    for engine in ("fused", "torch"):
        state = flow(JensenShannon(points() + 1), engine, iterations=20).run(points(), 1, progress=False).state
        other = flow(JensenShannon(points() + 1), engine, iterations=20, weight_decay=5.0, betas=(0.1, 0.2))
        same = flow(JensenShannon(points() + 1), engine, iterations=20)
        results.append(other.step(state).particles)
        assert not torch.allclose(results[-1], same.step(state).particles, atol=1e-3)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_a_folder_of_a_run_that_was_killed_at_once(tmp_path):
    """Its files without checkpoint.json are no part of the run that comes next."""
    for shift in (1.0, -1.0):
        made = flow(JensenShannon(points() + shift), None)
        made.run(points(seed=int(shift) + 5), 1, progress=False, checkpoint=tmp_path)
        if shift > 0:
            (tmp_path / run_folder.MANIFEST).unlink()
    loaded, state, _, source = checkpoint.load(tmp_path, gwf.JKOFlow)
    assert isinstance(loaded.functional, JensenShannon) and isinstance(loaded.functional.target, torch.Tensor)
    assert torch.equal(loaded.functional.target, points() - 1)
    assert torch.equal(source, points(seed=4))  # type: ignore[arg-type]
    torch.testing.assert_close(state.maps[0](source), state.particles)


def test_explicit_schemes_check_what_they_do_not_use():
    with pytest.raises(ValueError, match="engine must be None or one of fused, torch, got 'swift'"):
        flow(JensenShannon(points()), "swift", scheme="explicit")
    with pytest.raises(ValueError, match=r"critic_dropout: scheme 'explicit' .* without dropout, got 0\.2"):
        flow(JensenShannon(points()), None, scheme="explicit", dropout=0.2)
    flow(JensenShannon(points()), None, scheme="explicit", dropout=0.2, critic_dropout=0.0)


@both
def test_a_dropout_of_nearly_all(engine):
    """What is left are the biases of the last layer: the map is a constant shift."""
    net = MLP([2, 8, 2], residual=True)
    made = flow(Potential(lambda x: (x - 5).square().sum(-1)), engine, map=net, dropout=1 - 1e-12, lr=0.01)
    state = made.init(points())
    torch.manual_seed(0)
    after = made.step(state)
    assert after.map_optimizer["state"][0]["exp_avg"].abs().max() == 0  # the first weight was never seen
    assert after.map_optimizer["state"][len(list(net.parameters())) - 1]["exp_avg"].abs().min() > 0


def test_python_sees_denormal_numbers():
    seen = []

    def V(x):
        seen.append((torch.full((1,), 1e-40) * 1).item())
        return x.square().sum(-1)

    flow(Potential(V), "fused").run(points(), 1, progress=False)
    assert len(seen) >= 5 and all(value > 0 for value in seen)
