"""DriftingModel: its update, resuming bit for bit, divergence, and what its arguments are told."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

import gwf_fast as gwf
from gwf_fast.flows.drifting import KINDS
from gwf_fast.flows.drifting_loop import DriftingLoop

TARGET = torch.tensor([[1.0, 0.0], [-1.0, 0.5]]).repeat(40, 1) + 0.05 * torch.arange(160).reshape(80, 2) / 160
OPTIONS = {
    "coupling": {"temperature": [0.1, 0.5], "normalization": "problem"},
    "gmd": {"temperature": 0.2},
    "gmd_multi": {},
    "parzen_kl": {"bandwidth": 0.3},
    "f_divergence": {"bandwidth": 0.3, "divergence": "js"},
    "mmd": {"kernel": 0.5 * gwf.Gaussian(0.3) + gwf.Laplace(1.0), "noise": 0.1},
    "energy": {},
    "sinkhorn": {"epsilon": 0.3, "tolerance": 1e-2},
    "sliced_wasserstein": {"n_projections": 4},
    "critic": {"steps": 2},
}
SMALL: dict[str, Any] = {"latent_dim": 3, "batch_size": 32, "record_every": 2}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks gain nothing from a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model(kind="energy", **arguments):
    return gwf.DriftingModel(kind, 2, options=OPTIONS.get(kind), **{**SMALL, **arguments})  # type: ignore[arg-type]


def towards_the_mean(x, y):
    return y.mean(0) - x


def everything(result):
    return [(r.step, r.drift, r.value) for r in result.history], {
        k: v.tolist() for k, v in result.generator.state_dict().items()
    }


def test_every_kind_has_its_case():
    assert set(OPTIONS) == set(KINDS), "a drift that gwf_fast.drift exports needs its options in OPTIONS above"


class Recording(nn.Linear):
    """A generator that remembers its noise."""

    noise: list[torch.Tensor] = []  # noqa: RUF012 - copies share it

    def forward(self, z):
        self.noise.append(z)
        return super().forward(z)


def test_updates_are_adam_on_the_gap_to_the_normalised_drift():
    """Against torch's Adam on |x - stopgrad(x + V / rms V)|^2, written out."""
    torch.manual_seed(0)
    Recording.noise.clear()
    generator, twin = Recording(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(generator.state_dict())
    flow = gwf.DriftingModel(towards_the_mean, 2, generator=generator, lr=0.1, ema=0.9, **SMALL)
    result = flow.run(TARGET[:32], 2, progress=False)
    first, second = Recording.noise
    assert not torch.equal(first, second)  # fresh noise
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.1)
    sizes, average = [], twin.weight.detach().clone()
    for z in (first, second):
        x = twin(z)
        v = (TARGET[:32].mean(0) - x).detach()
        sizes.append(v.square().sum(1).mean().item())
        optimizer.zero_grad()
        (x - (x + v / v.square().mean().sqrt()).detach()).square().sum(1).mean().backward()
        optimizer.step()
        average.lerp_(twin.weight.detach(), 0.1)
    torch.testing.assert_close(result.generator.weight, average)
    assert [r.step for r in result.history] == [2]
    assert result.history[0].drift == pytest.approx(sum(sizes) / 2, rel=1e-5)  # raw, not normalised


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_and_resumed_equals_uninterrupted(kind, tmp_path, monkeypatch):
    arguments = {"ema": 0.9, "lr_schedule": "cosine"} if kind == "gmd" else {}
    evaluate: dict[str, Any] = {"evaluate": lambda x: float(x.mean())} if kind == "critic" else {}
    flow = model(kind, **arguments)
    before = torch.random.get_rng_state()
    whole = flow.run(TARGET, 5, progress=False, **evaluate)
    assert torch.equal(torch.random.get_rng_state(), before)
    run = DriftingLoop.run

    def interrupted(self, count):
        is_third = self._state.step == 3
        run(self, count)
        if is_third:  # what an update that is under way has changed does not count
            raise KeyboardInterrupt

    monkeypatch.setattr(DriftingLoop, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        flow.run(TARGET, 5, progress=False, checkpoint=tmp_path, **evaluate)
    monkeypatch.undo()
    assert json.loads((tmp_path / "checkpoint.json").read_text())["step"] == 3
    assert len(list(tmp_path.iterdir())) == 4  # the lock, the problem, the state, the manifest
    resumed = gwf.DriftingModel.resume(tmp_path, progress=False, **evaluate)
    assert everything(resumed) == everything(whole)
    assert everything(gwf.DriftingModel.resume(tmp_path, progress=False)) == everything(whole)  # finished
    longer = gwf.DriftingModel.resume(tmp_path, n_steps=6, progress=False)
    assert longer.step == 6 and longer.history[: len(whole.history)] == resumed.history


@pytest.mark.parametrize(
    ("kind", "options", "steps", "lr", "share"),
    [
        ("gmd", OPTIONS["gmd"], 200, 1e-2, 0.04),
        ("energy", {}, 200, 1e-2, 0.04),
        ("sinkhorn", OPTIONS["sinkhorn"], 200, 1e-2, 0.04),
        ("sliced_wasserstein", OPTIONS["sliced_wasserstein"], 200, 1e-2, 0.04),
        ("critic", {"network": gwf.nn.MLP([2, 64, 64, 1], "silu"), "lr": 3e-3, "transform": "js"}, 400, 1e-3, 0.2),
    ],
)
def test_it_learns(kind, options, steps, lr, share):
    """Two blobs from noise: the squared energy distance left, as a share of that at the start; both are found."""
    torch.manual_seed(5)
    target = TARGET.repeat(5, 1) + 0.3 * torch.randn(400, 2)
    small = {"latent_dim": 3, "batch_size": 128, "lr": lr, "lr_schedule": "cosine", "ema": 0.9}
    generator = gwf.nn.MLP([3, 64, 64, 2], "silu")
    flow = gwf.DriftingModel(kind, 2, options=options, generator=generator, **small)
    clouds = [flow.run(target, n, progress=False).sample(400) for n in (0, steps)]
    start, end = (float(gwf.energy_distance(cloud, target)) for cloud in clouds)
    assert end < share * start
    assert 0.35 < (clouds[1][:, 0] > 0).float().mean() < 0.65


def test_a_tiny_drift_moves_as_far():
    """A drift from afar is e^(-r/T): the epsilon of Adam must not eat it, nor its square underflow."""
    small: dict[str, Any] = {"generator": nn.Linear(3, 2), **SMALL}
    plain = gwf.DriftingModel(towards_the_mean, 2, **small).run(TARGET, 5, progress=False)
    tiny = gwf.DriftingModel(lambda x, y: 1e-30 * towards_the_mean(x, y), 2, **small).run(TARGET, 5, progress=False)
    torch.testing.assert_close(tiny.generator.weight, plain.generator.weight)


def test_a_drift_of_ones_own_and_a_module_are_given_again(tmp_path):
    generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    flow = gwf.DriftingModel(towards_the_mean, 2, generator=generator, **SMALL)
    whole = flow.run(lambda n: TARGET[:n], 4, progress=False)
    flow.run(lambda n: TARGET[:n], 2, progress=False, checkpoint=tmp_path)
    missing: dict[str, Any] = {"drift": towards_the_mean, "generator": generator, "target": lambda n: TARGET[:n]}
    for name in missing:
        given: dict[str, Any] = {key: value for key, value in missing.items() if key != name}
        with pytest.raises(ValueError, match=f"give resume.. the argument {name}="):
            gwf.DriftingModel.resume(tmp_path, n_steps=4, progress=False, **given)
    assert everything(gwf.DriftingModel.resume(tmp_path, n_steps=4, progress=False, **missing)) == everything(whole)
    with pytest.raises(ValueError, match=r"does not fit the networks"):
        gwf.DriftingModel.resume(tmp_path, progress=False, **{**missing, "generator": nn.Linear(3, 2)})
    with pytest.raises(FileExistsError, match="holds another run"):
        flow.run(TARGET, 4, progress=False, checkpoint=tmp_path)


def test_divergence_names_the_update_and_keeps_the_state_before_it(tmp_path):
    calls = []

    def breaks(x, y):
        calls.append(1)
        return towards_the_mean(x, y) * (math.nan if len(calls) == 3 else 1.0)

    flow = gwf.DriftingModel(breaks, 2, **SMALL)
    with pytest.raises(gwf.NonFiniteError, match=r"update 3: .* the state after update 2 is kept"):
        flow.run(TARGET, 5, progress=False, checkpoint=tmp_path)
    resumed = gwf.DriftingModel.resume(tmp_path, progress=False, drift=towards_the_mean)
    whole = gwf.DriftingModel(towards_the_mean, 2, **SMALL).run(TARGET, 5, progress=False)
    assert everything(resumed) == everything(whole)


@pytest.mark.parametrize(
    ("arguments", "error", "part"),
    [
        ({"drift": "gdm"}, ValueError, "drift must be a callable or one of .*, gmd, "),
        ({"drift": 3}, TypeError, "drift must be a name or a callable, got int"),
        ({"options": {}}, ValueError, "options: do not fit the drift 'gmd': missing a required .*temperature"),
        ({"options": {"temperature": 1.0, "speed": 2}}, ValueError, "options: .*unexpected keyword argument 'speed'"),
        ({"drift": towards_the_mean}, ValueError, "options: go with a drift given by name"),
        ({"drift": "critic", "options": {"transform": "gan"}}, ValueError, "transform must be one of wgan, "),
        ({"drift": "critic", "options": {"steps": 0}}, ValueError, "steps must be a positive integer, got 0"),
        ({"dim": 0}, ValueError, "dim must be a positive integer, got 0"),
        ({"batch_size": True}, TypeError, "batch_size must be a positive integer, got bool True"),
        ({"n_targets": -1}, ValueError, "n_targets must be a positive integer, got -1"),
        ({"lr": 0.0}, ValueError, "lr must be a positive number, got 0.0"),
        (
            {"lr_schedule": "linear"},
            ValueError,
            "lr_schedule must be one of constant, cosine, or callable, got",
        ),
        ({"betas": (0.9, 1.0)}, ValueError, "betas must be two numbers in"),
        ({"ema": 1.0}, ValueError, "ema must be a number in"),
        ({"generator": "mlp"}, TypeError, "generator must be a torch.nn.Module, got str"),
        ({"generator": nn.Linear(3, 5)}, ValueError, r"generator must give samples \[32, 2\], got \[32, 5\]"),
    ],
)
def test_bad_arguments(arguments, error, part):
    arguments = {"drift": "gmd", "dim": 2, "options": {"temperature": 0.2}, **SMALL, **arguments}
    with pytest.raises(error, match=part):
        gwf.DriftingModel(**arguments).run(TARGET, 1, progress=False)


@pytest.mark.parametrize(
    ("target", "n_steps", "error", "part"),
    [
        (TARGET[:, :1], 1, ValueError, r"target must be samples \[M, 2\], got \[1, 1\]"),
        (TARGET[:0], 1, ValueError, "target must be floating-point samples"),
        (TARGET * math.nan, 1, ValueError, "target: contains NaN or infinity"),
        ("8gaussians", 1, TypeError, "target must be a tensor"),
        (lambda n: torch.zeros(n, 2, dtype=torch.int64), 1, TypeError, "target must be floating-point samples"),
        (TARGET, -1, ValueError, "n_steps must be an integer >= 0, got -1"),
    ],
)
def test_bad_targets(target, n_steps, error, part):
    with pytest.raises(error, match=part):
        model().run(target, n_steps, progress=False)


def test_a_broken_checkpoint_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint\.json"):
        gwf.DriftingModel.resume(tmp_path)
    (tmp_path / "checkpoint.json").write_text("{}")
    with pytest.raises(ValueError, match="is not that of a DriftingModel"):
        gwf.DriftingModel.resume(tmp_path)
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        gwf.DriftingModel.resume(tmp_path)


def test_the_wgan_penalty_is_that_of_any_module():
    """The compiled gradient of the critic and autograd's give the same critic after a call."""
    options: dict[str, Any] = {"steps": 3, "penalty": 10.0}
    torch.manual_seed(0)
    ours = gwf.nn.MLP([2, 16, 1], "silu")
    twin = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))
    twin.load_state_dict(ours.state_dict())
    drifts = []
    for network in (ours, twin):
        torch.manual_seed(1)
        drifts.append(gwf.drift.LearnedCritic(2, network=network, **options)(TARGET[:30], TARGET[30:70] + 0.5))
    torch.testing.assert_close(*drifts)


def test_the_average_keeps_up_with_buffers(tmp_path):
    """Statistics of batches, which are no parameters, are those of the last update; a resumed run has them too."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model = gwf.DriftingModel("energy", 2, generator=net, latent_dim=4, batch_size=32, ema=0.9, seed=2)
    state = model.init(TARGET)
    for _ in range(5):
        state = model.step(state, TARGET, 5)
    for mean, now, first in zip(state.average.buffers(), state.generator.buffers(), net.buffers(), strict=True):
        assert torch.equal(mean, now) and not torch.equal(now, first)
    for mean, now in zip(state.average.parameters(), state.generator.parameters(), strict=True):
        assert not torch.equal(mean, now)
    model.run(TARGET, 3, progress=False, checkpoint=tmp_path)
    resumed = gwf.DriftingModel.resume(tmp_path, n_steps=5, progress=False, generator=net)
    z = torch.randn(7, 4)
    assert torch.equal(resumed.generator(z), state.average.eval()(z))


def test_directions_of_a_run_are_those_of_former_versions():
    """Checkpoints of them go on bit for bit, though functions draw orthogonal ones by default now."""
    options: list[dict[str, Any]] = [{}, {"sampling": "normal"}, {"sampling": "orthogonal"}]
    runs = []
    for more in options:
        more["n_projections"] = 4
        model = gwf.DriftingModel("sliced_wasserstein", 2, options=more, batch_size=16, latent_dim=3)
        generator: Any = model.run(TARGET, 3, progress=False).generator
        runs.append(generator[-1].weight)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    gwf.DriftingModel("sliced_wasserstein", 2, options={"directions": torch.eye(2)})


def test_options_in_a_former_spelling_go_on():
    negatives, weights = torch.zeros(4, 2), torch.ones(4)
    options = {"negatives": negatives, "negative_weights": weights}
    with pytest.warns(DeprecationWarning, match="gmd_multi: negative_weights= is deprecated"):
        gwf.DriftingModel("gmd_multi", 2, options=options, batch_size=16).run(TARGET, 1, progress=False)
