"""The torch engine with draws and rates on the device, and what decides whether an iteration may be replayed.

Here the device is the CPU, and a replay calls the iteration again, or repeats its operations (``tape.py``); graphs
themselves are in ``gpu/test_graph.py``.
"""

import math
import random
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import gwf_fast as gwf
from gwf_fast.errors import NonFiniteError
from gwf_fast.flows.engines import graph
from gwf_fast.flows.engines.base import StepProblem
from gwf_fast.flows.engines.graph import HostReads, Repeated
from gwf_fast.flows.engines.torch import TorchEngine
from tests.tape import taped

CPU = torch.device("cpu")
DTYPE = torch.float64


def samples(n: int = 300) -> torch.Tensor:
    return torch.randn(n, 2, dtype=DTYPE, generator=torch.Generator().manual_seed(5)) * 0.7 + 1


def step_problem(functional, map=None, device=CPU, dtype=DTYPE, **training) -> StepProblem:
    """A step from a normal cloud, its networks the same whenever it is made."""
    torch.manual_seed(0)
    x = torch.randn(500, 2, dtype=DTYPE).to(device, dtype)
    map = (gwf.nn.MLP([2, 16, 16, 2], "silu", residual=True) if map is None else map()).to(device, dtype)
    critic = functional.build_critic(lambda: gwf.nn.MLP([2, 16, 16, 1], "silu"))
    settings = gwf.Training(**{"batch_size": 32, "iterations": 30, "critic_steps": 2, **training})

    def adam(module: nn.Module) -> torch.optim.AdamW:
        parameters = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, lr=3e-3, betas=settings.betas, weight_decay=1e-3, fused=True)

    critic = None if critic is None else critic.to(device, dtype)
    optimizers = adam(map), None if critic is None else adam(critic)
    return StepProblem(functional, 0.1, x, x, functional.reference(x), map, critic, *optimizers, settings)


def solved(problem: StepProblem, on_device: bool, record=None) -> StepProblem:
    torch.manual_seed(3)
    TorchEngine()._solve(problem, on_device, record)
    return problem


def again(call, device):
    """A replay that runs the iteration's Python once more."""
    return call


@pytest.fixture
def repeated(monkeypatch):
    """The last ``Repeated`` of the engine."""
    made = []

    class Spy(Repeated):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr("gwf_fast.flows.engines.torch.Repeated", Spy)
    return made


def gap(a: StepProblem, b: StepProblem) -> float:
    """Largest difference between the parameters and moments of two problems."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for first, second in ((a.map, b.map), (a.critic, b.critic)):
        if first is not None:
            pairs += zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    for mine, theirs in ((a.map_optimizer, b.map_optimizer), (a.critic_optimizer, b.critic_optimizer)):
        if mine is not None:
            for one, other in zip(mine.state.values(), theirs.state.values(), strict=True):
                pairs += zip(one.values(), other.values(), strict=True)
    return max((x.cpu() - y.cpu()).abs().max().item() for x, y in pairs)


def mixture():
    means = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=DTYPE)
    return gwf.potentials.GaussianMixture(means, 0.5)


FUNCTIONALS = {
    "kl": lambda: gwf.KL(mixture()),
    "js": lambda: gwf.JensenShannon(samples()),
    "whole_target": lambda: gwf.FDivergence("pearson", samples(40)),
    "ipm": lambda: gwf.IPM(samples()),
    "spectral": lambda: gwf.IPM(samples(), "spectral_norm"),
    "donsker": lambda: gwf.DonskerVaradhan(samples()),
    "mmd": lambda: gwf.SquaredMMD(samples(), gwf.Gaussian(1.0)),
    "entropy": lambda: gwf.GeneralizedEntropy(2.0),
    "sum": lambda: gwf.Interaction(-gwf.Gaussian(0.7)) + 0.5 * gwf.KL(mixture()) + gwf.JensenShannon(samples()),
}
OPTIONS = {"lr_schedule": "cosine", "gradient_clip": 0.05, "ema": 0.9, "dropout": 0.1, "map_steps": 2}


@pytest.mark.parametrize(("name", "record"), [("kl", again), *((name, taped) for name in FUNCTIONALS)])
def test_counters_on_the_device_change_nothing(name, record, repeated):
    """Draws, rates and losses that live on the device: parameters and moments of the loop that has them on the host."""
    options = OPTIONS if name in ("kl", "ipm") else {}
    host, device = (step_problem(FUNCTIONALS[name](), **options) for _ in range(2))
    solved(host, on_device=False)
    solved(device, on_device=True, record=record)
    assert repeated[-1].is_replaying and repeated[-1].refusal is None
    assert not repeated[0].is_replaying
    assert gap(host, device) <= 1e-9
    groups = [p.map_optimizer.param_groups[0] for p in (host, device)]
    assert groups[0]["lr"] == groups[1]["lr"] and isinstance(groups[1]["lr"], float)
    maps: list[Any] = [p.map for p in (host, step_problem(FUNCTIONALS[name](), **options))]
    trained, new = (net[0].weight for net in maps)
    assert (trained - new).abs().max() > 1e-3


def test_a_loop_leaves_the_rate_of_its_last_iteration():
    """Of the map and of the critic, whether the host or the device counts; the next loop begins with its own."""
    for on_device in (False, True):
        problem = step_problem(gwf.JensenShannon(samples()), iterations=8, lr_schedule="cosine")
        solved(problem, on_device, again)
        last = 3e-3 * (1 + math.cos(math.pi * 7 / 8)) / 2
        for optimizer in (problem.map_optimizer, problem.critic_optimizer):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(last, rel=1e-12)


def test_two_hundred_iterations(repeated):
    host, device = (step_problem(gwf.KL(mixture()), iterations=200) for _ in range(2))
    solved(host, on_device=False)
    solved(device, on_device=True, record=again)
    assert repeated[-1].is_replaying
    assert gap(host, device) <= 1e-9


def test_a_generators_pairs(repeated):
    """Inputs and anchors are drawn with one set of rows."""
    problems = []
    for on_device in (False, True):
        problem = step_problem(gwf.JensenShannon(samples()))
        problem.anchors = problem.inputs + 1
        problems.append(solved(problem, on_device, again))
    assert gap(*problems) <= 1e-9


class Record(list[tuple[int, float]]):
    """What a loop says of its losses."""

    def __call__(self, iteration: int, loss: float) -> None:
        self.append((iteration, loss))


def test_losses_are_seen_as_before():
    seen: dict[bool, Record] = {}
    for on_device in (False, True):
        problem = step_problem(gwf.KL(mixture()), iterations=120)
        problem.on_iteration = seen.setdefault(on_device, Record())
        solved(problem, on_device, again)
    assert [i for i, _ in seen[True]] == [50, 100, 120]
    for (_, a), (_, b) in zip(seen[False], seen[True], strict=True):
        assert a == pytest.approx(b, rel=1e-9)


def test_patience_ends_a_step_where_it_did():
    ends: dict[bool, Record] = {}
    for on_device in (False, True):
        problem = step_problem(gwf.Potential(lambda x: x.square().sum(-1)), iterations=1000, patience=50)
        problem.on_iteration = ends.setdefault(on_device, Record())
        solved(problem, on_device, again)
    assert ends[True][-1][0] == ends[False][-1][0] < 1000


def test_a_loss_that_is_not_finite_is_told():
    problem = step_problem(gwf.Potential(lambda x: x.square().sum(-1) / 0), iterations=100)
    with pytest.raises(NonFiniteError, match="iteration 50: the loss of the map is"):
        solved(problem, True, again)


class Stateful(nn.Module):
    """A map that does something with the host in each call."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0
        self.net = gwf.nn.MLP([2, 16, 2], "silu", residual=True)
        self.shift: torch.Tensor
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, x):
        self.calls += 1
        out = self.net(x)
        if self.kind == "counts":
            return out * (1 + 0.1 * self.calls)
        if self.kind == "reads":
            return out / max(1.0, out.detach().abs().max().item())
        if self.kind == "mask":
            return out + 0.1 * out[out > 0].mean()
        if self.kind == "random":
            return out * (1 + 0.01 * random.choice([1, 1]))
        if self.kind == "replaces":
            self.shift = 0.9 * self.shift + 0.1 * out.detach().mean(0)
            return out - self.shift
        self.shift.lerp_(out.detach().mean(0), 0.1)
        return out - self.shift


REFUSALS = {
    "counts": "a replay differs from the iteration",
    "reads": "the host reads a result of the device",
    "mask": "the host reads a result of the device",
    "random": "draws random numbers on the host",
    "replaces": "puts new tensors in the place",
}


@pytest.mark.parametrize("kind", [*REFUSALS, "in place"])
def test_what_the_host_has_a_part_in_is_not_replayed(kind, repeated):
    host, device = (step_problem(gwf.JensenShannon(samples()), map=lambda: Stateful(kind)) for _ in range(2))
    solved(host, on_device=False)
    solved(device, on_device=True, record=again)
    assert repeated[-1].is_replaying == (kind == "in place")
    if kind == "in place":
        assert repeated[-1].refusal is None
    else:
        assert REFUSALS[kind] in repeated[-1].refusal
    if kind != "counts":  # whose counter the trial of a replay moved on
        assert gap(host, device) <= 1e-9


class Annealed(nn.Module):
    """A map with a number that the host may change."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 1.0
        self.net = gwf.nn.MLP([2, 16, 2], "silu", residual=True)

    def look(self, iteration: int, loss: float) -> None:
        self.factor = 0.5

    def forward(self, x):
        return self.factor * self.net(x)


def test_a_number_that_changes_between_two_looks_ends_the_replays(repeated):
    problems = []
    for on_device in (False, True):
        problem = step_problem(gwf.JensenShannon(samples()), map=Annealed, iterations=80)
        annealed: Any = problem.map
        problem.on_iteration = annealed.look
        problems.append(solved(problem, on_device, taped if on_device else None))
    assert "has changed since the capture" in repeated[-1].refusal
    assert gap(*problems) <= 1e-9


@pytest.mark.parametrize("target", ["function", "potential"])
def test_targets_that_are_callables(target, repeated):
    source = mixture().sample if target == "potential" else lambda n: samples(n)
    problem = solved(step_problem(gwf.JensenShannon(source)), True, again)
    if target == "function":
        assert "Python function" in repeated[-1].refusal
    assert repeated[-1].is_replaying is False or target == "potential"
    assert all(p.isfinite().all() for p in problem.map.parameters())


def test_another_optimiser_is_not_replayed(repeated):
    solved(step_problem(gwf.KL(mixture()), optimizer="SGD"), True, again)
    assert not repeated[-1].is_replaying and "not this package's Adam" in repeated[-1].refusal


def test_few_iterations_are_not_worth_it(repeated):
    solved(step_problem(gwf.KL(mixture()), iterations=graph.FEWEST - 1), True, again)
    assert not repeated[-1].is_replaying and repeated[-1].refusal is None


def test_what_waits_for_a_device_is_noticed_each_time(monkeypatch):
    """As torch says it, whatever the filters; what else is said meanwhile is passed on, and the mode is put back."""
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    said = ["Synchronization debug mode is a prototype feature", *["called a synchronizing CUDA operation"] * 2]
    waits: list[str] = []

    def waiting() -> None:
        nonlocal waits
        with graph._waits(torch.device("cuda")) as waits:
            assert modes == ["default", "warn"]
            for text in [*said, "another matter"]:
                warnings.warn(text, stacklevel=1)

    with pytest.raises(UserWarning, match="another matter"):  # an error, as the filters of the tests have it
        waiting()
    assert len(waits) == 2 and all(__file__ in line for line in waits)
    assert modes[-1] == "default"


def test_a_failed_capture_leaves_the_loop_going(repeated):
    def fails(call, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    host, device = (step_problem(gwf.KL(mixture())) for _ in range(2))
    solved(host, on_device=False)
    solved(device, on_device=True, record=fails)
    assert repeated[-1].refusal == "capture failed: operation not permitted when stream is capturing"
    assert gap(host, device) <= 1e-9


def test_a_wrong_replay_is_thrown_away(repeated):
    host, device = (step_problem(gwf.KL(mixture())) for _ in range(2))
    solved(host, on_device=False)
    solved(device, on_device=True, record=lambda call, where: lambda: None)
    assert "a replay differs" in repeated[-1].refusal
    assert gap(host, device) <= 1e-9


@pytest.mark.parametrize(
    ("action", "found"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index.Tensor"),
        (lambda x: bool((x > 0).all()), "_local_scalar_dense"),
        (lambda x: x[torch.tensor([0, 1])].sin() + 1, None),
        (lambda x: torch.autograd.grad(x.sin().sum(), x), None),
    ],
)
def test_reads_are_seen(action, found):
    x = torch.randn(5, requires_grad=True)
    with HostReads(CPU) as reads:
        action(x)
    assert (reads.found is None) if found is None else (found in reads.found)


def test_what_comes_from_another_device_is_seen():
    meta = torch.device("meta")
    x = torch.zeros(3, device=meta)
    with HostReads(meta) as reads:
        x * 2 + torch.tensor(3.0)  # a number goes with the launch
    assert reads.found is None
    with HostReads(meta) as reads:
        torch.zeros(3).to(meta)
    assert "from one device to another" in reads.found
