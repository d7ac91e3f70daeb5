"""The inner loops as CUDA graphs: a replayed loop is the loop, on the device and on the CPU."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import gwf_fast as gwf
from gwf_fast.flows.engines import graph
from tests.flows.test_inner_loop import (
    FUNCTIONALS,
    OPTIONS,
    Stateful,
    gap,
    mixture,
    repeated,
    samples,
    solved,
    step_problem,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

__all__ = ["repeated"]  # a fixture

CUDA = torch.device("cuda", 0)


def on_cuda(functional):
    """The same functional with its tensors on the device."""
    for name, value in list(vars(functional).items()):
        if isinstance(value, torch.Tensor):
            object.__setattr__(functional, name, value.to(CUDA))
        elif name == "log_density":
            object.__setattr__(functional, name, gwf.potentials.GaussianMixture(value.means.to(CUDA), 0.5))
        elif name == "terms":
            for _, term in value:
                on_cuda(term)
    return functional


def solved_on_cuda(functional, monkeypatch, captured, dtype=torch.float64, map=None, **options):
    """A step on the device, by a graph or call by call."""
    problem = step_problem(on_cuda(functional), map=map, device=CUDA, dtype=dtype, **options)
    with monkeypatch.context() as patch:
        if not captured:
            patch.setattr(graph, "FEWEST", 1 << 40)
        return solved(problem, on_device=True)


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_captured_is_eager_is_the_cpu(name, monkeypatch, repeated):
    options = {key: value for key, value in OPTIONS.items() if key != "lr_schedule"} if name in ("kl", "ipm") else {}
    captured = solved_on_cuda(FUNCTIONALS[name](), monkeypatch, True, **options)
    assert repeated[-1].refusal is None and repeated[-1].is_replaying
    eager = solved_on_cuda(FUNCTIONALS[name](), monkeypatch, False, **options)
    assert not repeated[-1].is_replaying
    assert gap(captured, eager) <= 1e-12
    if name != "entropy":  # whose Gamma comes from the device's own generator
        host = solved(step_problem(FUNCTIONALS[name](), **options), on_device=False)
        assert gap(captured, host) <= 1e-9
    new = step_problem(FUNCTIONALS[name](), **options)
    nets: list[Any] = [captured.map, new.map]
    assert (nets[0][0].weight.cpu() - nets[1][0].weight).abs().max() > 1e-3


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_single_precision_and_a_changing_rate(schedule, monkeypatch, repeated):
    options = {**OPTIONS, "lr_schedule": schedule, "iterations": 100}
    captured = solved_on_cuda(FUNCTIONALS["kl"](), monkeypatch, True, torch.float32, **options)
    assert repeated[-1].refusal is None and repeated[-1].is_replaying
    eager = solved_on_cuda(FUNCTIONALS["kl"](), monkeypatch, False, torch.float32, **options)
    assert gap(captured, eager) <= 1e-6
    host = solved(step_problem(FUNCTIONALS["kl"](), dtype=torch.float32, **options), on_device=False)
    assert gap(captured, host) <= 1e-3
    group = captured.map_optimizer.param_groups[0]
    assert isinstance(group["lr"], float) and group["capturable"] is False


def test_a_changing_rate_in_double_precision_says_why_not(monkeypatch):
    with pytest.warns(UserWarning, match=r"without a CUDA graph.*float32 only"):
        device = solved_on_cuda(FUNCTIONALS["kl"](), monkeypatch, True, lr_schedule="cosine")
    host = solved(step_problem(FUNCTIONALS["kl"](), lr_schedule="cosine"), on_device=False)
    assert gap(device, host) <= 1e-9


@pytest.mark.parametrize("kind", ["counts", "reads", "mask", "random", "replaces"])
def test_what_the_host_has_a_part_in_is_not_replayed(kind, monkeypatch, repeated):
    functional = gwf.JensenShannon(samples())
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        watched = solved_on_cuda(functional, monkeypatch, True, map=lambda: Stateful(kind))
    assert not repeated[-1].is_replaying
    eager = solved_on_cuda(functional, monkeypatch, False, map=lambda: Stateful(kind))
    if kind != "counts":  # whose counter the trial of a replay moved on
        assert gap(watched, eager) <= 1e-12
    assert torch.rand(3, device=CUDA).isfinite().all()  # the generator is usable


def test_a_target_on_the_host_is_seen():
    with pytest.warns(UserWarning, match="from one device to another"):
        device = solved(step_problem(gwf.JensenShannon(samples()), device=CUDA), on_device=True)
    host = solved(step_problem(gwf.JensenShannon(samples())), on_device=False)
    assert gap(device, host) <= 1e-9


class Sly(nn.Module):
    """Reads on the host in a capture only."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, x):
        if torch.cuda.is_current_stream_capturing():
            x.sum().item()
        return x + self.net(x)


def test_a_failed_capture_leaves_everything_usable(monkeypatch, repeated):
    functional = gwf.JensenShannon(samples())
    with pytest.warns(UserWarning, match="capture failed"):
        first = solved_on_cuda(functional, monkeypatch, True, map=Sly)
    assert gap(first, solved_on_cuda(functional, monkeypatch, False, map=Sly)) <= 1e-12
    assert torch.rand(3, device=CUDA).isfinite().all()
    torch.cuda.empty_cache()
    solved_on_cuda(FUNCTIONALS["kl"](), monkeypatch, True)  # and a new capture works
    assert repeated[-1].is_replaying


class WithDropout(nn.Module):
    """Draws from the device's generator."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 2))

    def forward(self, x):
        return x + self.net(x)


def test_the_devices_generator_goes_on_from_replay_to_replay(monkeypatch, repeated):
    kl = FUNCTIONALS["kl"]
    captured = solved_on_cuda(kl(), monkeypatch, True, map=WithDropout, iterations=80)
    assert repeated[-1].refusal is None and repeated[-1].is_replaying
    assert gap(captured, solved_on_cuda(kl(), monkeypatch, False, map=WithDropout, iterations=80)) <= 1e-12


def flow(device=CUDA, functional=None, **options):
    if functional is None:
        functional = gwf.KL(gwf.potentials.GaussianMixture(mixture().means.to(device), 0.5))
    map = gwf.nn.MLP([2, 16, 16, 2], "silu", residual=True)
    critic = gwf.nn.MLP([2, 16, 16, 1], "silu")
    training = gwf.Training(batch_size=64, iterations=120, critic_steps=2, milestones=(2,), **options)
    return gwf.JKOFlow(functional, 2, 0.1, map=map, critic=critic, training=training, engine="torch", seed=4)


def start(device=CUDA):
    return samples(1000).to(device)


def test_several_steps_are_those_of_the_cpu(repeated):
    result = flow().run(start(), 3, progress=False)
    assert len(repeated) == 3 and all(each.is_replaying for each in repeated)
    host = flow("cpu").run(start("cpu"), 3, progress=False)
    torch.testing.assert_close(result.particles.cpu(), host.particles, rtol=1e-6, atol=1e-6)


def test_another_optimiser_is_that_of_the_cpu_without_a_graph(repeated):
    def momentum(parameters, lr):
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)

    with pytest.warns(UserWarning, match="without a CUDA graph, slowly: the optimiser is not this package's Adam"):
        result = flow(optimizer=momentum, lr_schedule=lambda j, n: 1 - j / n).run(start(), 2, progress=False)
    assert not repeated[-1].is_replaying
    host = flow("cpu", optimizer=momentum, lr_schedule=lambda j, n: 1 - j / n).run(start("cpu"), 2, progress=False)
    torch.testing.assert_close(result.particles.cpu(), host.particles, rtol=1e-6, atol=1e-6)


def test_killed_in_the_middle_of_a_step_and_resumed(tmp_path):
    """The same bits as a run that was left alone."""
    whole = flow().run(start(), 3, progress=False)
    killed, calls = flow(), []

    def kill(iteration, loss):
        calls.append(iteration)
        raise KeyboardInterrupt

    state = killed.run(start(), 1, progress=False, checkpoint=tmp_path / "run").state
    with pytest.raises(KeyboardInterrupt):
        killed.step(state, on_iteration=kill)
    assert calls == [50]
    resumed = gwf.JKOFlow.resume(tmp_path / "run", n_steps=3, progress=False)
    assert torch.equal(resumed.particles.to(CUDA), whole.particles)
    for mine, theirs in zip(resumed.maps[-1].parameters(), whole.maps[-1].parameters(), strict=True):
        assert torch.equal(mine.to(CUDA), theirs)


def test_runs_repeat_themselves_and_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (flow(ema=0.9, gradient_clip=0.5).run(start(), 2, progress=False) for _ in range(2))
    assert torch.equal(first.particles, second.particles)


def test_memory_does_not_grow_with_steps():
    run, state, reserved = flow(), None, []
    for step in range(1, 7):
        state = run.run(start(), step, progress=False, state=state).state
        reserved.append(torch.cuda.memory_reserved(CUDA))
    assert reserved[-1] <= reserved[1] + (8 << 20)


def test_a_loss_that_is_not_finite_stops_the_step():
    broken = flow(functional=gwf.Potential(lambda x: x.square().sum(-1) / 0))
    with pytest.raises(gwf.NonFiniteError, match="JKO step 1: iteration 50"):
        broken.run(start(), 1, progress=False)
