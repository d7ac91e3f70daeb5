"""The JKO loop: exact solutions, order of convergence, the explicit state, errors."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from gwf_fast.errors import NonFiniteError
from gwf_fast.flows.engines.choice import ENGINES
from gwf_fast.flows.jko import JKOFlow, default_critic, default_map
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import KL, FDivergence, JensenShannon, Potential
from gwf_fast.nn import MLP
from gwf_fast.potentials import Gaussian

ETA = torch.tensor([4.0, -2.0])
QUICK = Training(batch_size=64, iterations=5, critic_steps=2)


class Affine(nn.Module):
    """T(x) = x + A x + b, from the identity: holds the exact map between Gaussians."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        return x + self.linear(x)


class Quadratic(nn.Module):
    """v(x) = c + b.x + x.A x: holds the exact log ratio of Gaussians."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)
        self.form = nn.Linear(dim, dim, bias=False)
        for p in self.parameters():
            nn.init.zeros_(p)

    def forward(self, x):
        return self.linear(x) + (self.form(x) * x).sum(-1, keepdim=True)


def standard_cloud(n: int = 4096) -> torch.Tensor:
    """A cloud with mean 0 and covariance I exactly, so that the moments of P_k carry no sampling error."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return Gaussian.fit(x).whiten(x)


def spherical_flow(functional, a: float, **training) -> JKOFlow:
    settings = Training(
        **{
            "batch_size": 4096,
            "iterations": 150,
            "critic_steps": 3,
            "lr": 0.03,
            "lr_schedule": "cosine",
            "warm_start": False,
            "gradient_clip": None,  # the inner problem is to be solved as exactly as it can be
            **training,
        }
    )
    return JKOFlow(functional, 2, a, map=Affine, critic=Quadratic, training=settings)


def exact_mean(a: float, k: int) -> torch.Tensor:
    """Mean of P_k for F = KL(. | N(eta, I)), P_0 = N(0, I): eta (1 - (1 + a)^-k)."""
    return ETA * (1 - (1 + a) ** -k)


def test_potential_flow_is_the_proximal_map():
    """F = E |x - eta|^2 / 2: every particle moves to (x + a eta) / (1 + a)."""
    a, x0 = 0.5, standard_cloud(512)
    flow = spherical_flow(
        Potential(lambda x: (x - ETA).square().sum(-1) / 2), a, iterations=400, lr=0.1, batch_size=512
    )
    result = flow.run(x0, 2, progress=False)
    exact = x0
    for _ in range(2):
        exact = (exact + a * ETA) / (1 + a)
    torch.testing.assert_close(result.particles, exact, rtol=0, atol=1e-3)
    moved = (x0 - (x0 + a * ETA) / (1 + a)).square().sum(-1).mean().sqrt().item()
    assert result.history[0].w2 == pytest.approx(moved, abs=1e-3)
    assert result.history[0].loss == pytest.approx(moved**2 / (2 * a) + result.history[0].value, abs=1e-6)


def test_kl_flow_to_a_spherical_gaussian():
    """Mean of each P_k against the closed form; the covariance stays the identity."""
    a, steps = 0.25, 3
    flow = spherical_flow(KL(Gaussian(ETA, torch.eye(2))), a)
    result = flow.run(standard_cloud(), steps, progress=False)
    trajectory = result.trajectory(standard_cloud())
    for k in range(1, steps + 1):
        torch.testing.assert_close(trajectory[k].mean(0), exact_mean(a, k), rtol=0, atol=0.05)
        torch.testing.assert_close(torch.cov(trajectory[k].T), torch.eye(2), rtol=0, atol=0.08)
        kl = (exact_mean(a, k) - ETA).square().sum().item() / 2
        assert result.history[k - 1].value == pytest.approx(kl, abs=0.1)


def test_error_in_the_step_size_is_of_first_order():
    """The implicit Euler scheme against the exact flow eta (1 - e^-t) at t = 0.8: slope 1 in a."""
    time, errors, sizes = 0.8, [], [0.4, 0.2, 0.1]
    for a in sizes:
        flow = spherical_flow(KL(Gaussian(ETA, torch.eye(2))), a, iterations=100)
        result = flow.run(standard_cloud(), round(time / a), progress=False)
        error = ETA * (1 - math.exp(-time)) - result.particles.mean(0)
        errors.append((error @ ETA / ETA.norm()).item())  # signed: implicit Euler lags behind
    assert min(errors) > 0
    order = math.log(errors[0] / errors[-1]) / math.log(sizes[0] / sizes[-1])
    assert order == pytest.approx(1, abs=0.2)


def test_jensen_shannon_moves_towards_the_target():
    target = Gaussian(torch.tensor([1.5, 0.0]), torch.eye(2))
    flow = JKOFlow(
        JensenShannon(target.sample),
        2,
        2.0,
        map=Affine,
        critic=Quadratic,
        training=Training(batch_size=512, iterations=100, lr=0.01, warm_start=False),
    )
    result = flow.run(lambda n: torch.randn(n, 2), 4, progress=False)
    values = [record.value for record in result.history]
    assert values[-1] < 0.5 * values[0]
    assert (result.particles.mean(0) - target.mean).norm() < 0.75


def test_a_step_leaves_its_input_and_the_global_generator_alone():
    flow = JKOFlow(JensenShannon(torch.randn(100, 2) + 1), 2, 0.5, training=QUICK)
    state = flow.step(flow.init(torch.randn(200, 2)))
    before = copy.deepcopy(state)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    following = flow.step(state)
    assert torch.equal(torch.rand(3), expected)
    assert following.step == 2 and len(following.maps) == 2 and len(following.history) == 2
    assert torch.equal(state.particles, before.particles)
    assert not torch.equal(following.particles, state.particles)
    for old, new in ((before.maps[0], state.maps[0]), (before.critic, state.critic)):
        for (name, a), b in zip(old.state_dict().items(), new.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    slot = state.map_optimizer["state"][0]
    assert torch.equal(slot["exp_avg"], before.map_optimizer["state"][0]["exp_avg"])
    again = flow.step(before)
    assert torch.equal(again.particles, following.particles)  # a step is a function of the state


def test_seeds():
    def run(seed):
        flow = JKOFlow(JensenShannon(torch.ones(50, 2)), 2, 0.5, training=QUICK, seed=seed)
        return flow.run(lambda n: torch.randn(n, 2), 1, progress=False).particles

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_push_trajectory_and_sample():
    flow = JKOFlow(Potential(lambda x: x.square().sum(-1)), 2, 0.5, training=QUICK)
    z = torch.randn(70_000, 2)  # more than one chunk
    result = flow.run(z, 2, progress=False)
    torch.testing.assert_close(result.push(z), result.particles)
    trajectory = result.trajectory(z[:9])
    assert trajectory.shape == (3, 9, 2)
    torch.testing.assert_close(trajectory[0], z[:9])
    torch.testing.assert_close(trajectory[2], result.particles[:9])
    with pytest.raises(ValueError, match="sample: x0 was a tensor"):
        result.sample(5)
    fresh = flow.run(lambda n: torch.randn(n, 2), 1, progress=False)
    assert fresh.sample(5).shape == (5, 2)
    assert len(fresh.particles) == flow.training.pool_size


def test_float64_and_template_modules():
    template = nn.Sequential(nn.Linear(2, 2))
    flow = JKOFlow(Potential(lambda x: x.square().sum(-1)), 2, 0.5, map=template, training=QUICK)
    result = flow.run(torch.randn(70, 2, dtype=torch.float64), 2, progress=False)
    assert result.particles.dtype == torch.float64
    moved: Any = result.maps[0]
    assert not torch.equal(moved[0].weight.float(), template[0].weight)  # type: ignore[arg-type]
    assert all(isinstance(m, nn.Sequential) for m in result.maps)


def test_sum_of_two_critics_trains_both():
    functional = JensenShannon(torch.randn(100, 2)) + FDivergence("pearson", torch.randn(100, 2) + 1)
    flow = JKOFlow(functional, 2, 0.5, training=QUICK)
    before = flow.init(torch.randn(64, 2))
    after = flow.step(before)
    critics: Any = before.critic, after.critic
    for old, new in zip(*critics, strict=True):
        assert not torch.equal(old[0].weight, new[0].weight)


@pytest.mark.parametrize("warm", [True, False])
def test_warm_start(warm):
    training = Training(batch_size=8, iterations=1, map_steps=1, lr=1e-6, warm_start=warm)
    flow = JKOFlow(Potential(lambda x: (x - 5).square().sum(-1)), 2, 0.5, map=Affine, training=training)
    state = flow.init(torch.randn(8, 2))
    state = flow.step(state)
    first: Any = state.maps[0]
    first.linear.bias.data += 1.0
    second: Any = flow.step(state).maps[1]
    bias = second.linear.bias.mean().item()
    assert bias == pytest.approx(1.0 if warm else 0.0, abs=1e-3)


@pytest.mark.parametrize("engine", ["torch", "fused"])
def test_milestones_change_the_rates_of_both_networks(engine):
    """Adam's first update is as long as its rate."""

    def zeros():
        net = MLP([2, 2])
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
        return net

    training = Training(
        batch_size=64, iterations=1, lr=1e-3, critic_lr=4e-3, warm_start=False, milestones=(2, 4), gamma=0.5
    )
    target = torch.randn(64, 2) + 3
    flow = JKOFlow(JensenShannon(target), 2, 0.5, map=zeros, critic=MLP([2, 1]), training=training, engine=engine)
    state = flow.init(torch.randn(64, 2))
    for factor in (1, 0.5, 0.5, 0.25):
        state = flow.step(state)
        last: Any = state.maps[-1]
        torch.testing.assert_close(last[0].bias.abs(), torch.full((2,), 1e-3 * factor), rtol=1e-4, atol=0)
        assert state.critic_optimizer["param_groups"][0]["initial_lr"] == 4e-3 * factor


def test_nan_names_the_step_and_keeps_the_state():
    calls = []

    def poisoned(x):
        calls.append(1)
        return x.square().sum(-1) * (math.nan if len(calls) > 12 else 1.0)

    flow = JKOFlow(Potential(poisoned), 2, 0.5, training=QUICK)
    state = flow.step(flow.init(torch.randn(64, 2)))
    calls += [1] * 20
    with pytest.raises(NonFiniteError, match=r"JKO step 2: .*the state after step 1 is kept"):
        flow.step(state)
    assert state.particles.isfinite().all()
    assert all(p.isfinite().all() for p in state.maps[0].parameters())


def test_default_networks():
    for dim in (1, 2, 5, 30, 100):
        x = torch.randn(3, dim)
        assert torch.equal(default_map(dim)(x), x)  # starts as the identity
        assert default_critic(dim)(x).shape == (3, 1)


def test_mlp_is_its_sequential_twin():
    torch.manual_seed(0)
    mlp = MLP([3, 8, 8, 2], "tanh", output="sigmoid")
    twin = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2), nn.Sigmoid())
    twin.load_state_dict(mlp.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(mlp(x), twin(x))


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda f: JKOFlow(f, 2, 0.5, scheme="euler"), ValueError, "scheme must be one of jko, .* got 'euler'"),  # type: ignore[arg-type]
        (
            lambda f: JKOFlow(f, 2, 0.5, parametrization="flow"),  # type: ignore[arg-type]
            ValueError,
            "parametrization must be one of composition, .* 'flow'",
        ),
        (
            lambda f: JKOFlow(f, 2, 0.5, engine="swift"),  # type: ignore[arg-type]
            ValueError,
            "engine must be None or one of .* got 'swift'",
        ),
        (lambda f: JKOFlow(f, 0, 0.5), ValueError, "dim must be "),
        (lambda f: JKOFlow(f, 2, -0.5), ValueError, "step_size must be "),
        (lambda f: JKOFlow(f, 2, math.nan), ValueError, "step_size must be "),
        (
            lambda f: JKOFlow(f, 2, 0.5).run(torch.randn(5, 3), 1),
            ValueError,
            r"x0 must be samples \[N, 2\], got .5, 3",
        ),
        (lambda f: JKOFlow(f, 2, 0.5).run(torch.zeros(0, 2), 1), ValueError, "x0 must be "),
        (lambda f: JKOFlow(f, 2, 0.5).run(torch.full((5, 2), math.inf), 1), ValueError, "x0: contains NaN"),
        (lambda f: JKOFlow(f, 2, 0.5).run(torch.zeros(5, 2), -1), ValueError, "n_steps must be "),
        (lambda f: Training(batch_size=0), ValueError, "batch_size must be "),
        (lambda f: Training(critic_steps=1.5), TypeError, "critic_steps must be "),  # type: ignore[arg-type]
        (lambda f: Training(lr=-1e-3), ValueError, "lr must be "),
        (lambda f: Training(lr_schedule="linear"), ValueError, "lr_schedule must be "),  # type: ignore[arg-type]
        (lambda f: Training(milestones=(0,)), ValueError, "milestones must be a positive integer, got 0"),
        (lambda f: Training(gamma=0.0), ValueError, "gamma must be "),
        (lambda f: Training(milestones=5), TypeError, "milestones must be "),  # type: ignore[arg-type]
        (lambda f: Training(lr="1e-3"), TypeError, "lr must be a positive number, got str '1e-3'"),  # type: ignore[arg-type]
        (lambda f: Training(betas=0.9), TypeError, "betas must be "),  # type: ignore[arg-type]
        (lambda f: Training(dropout="x"), TypeError, "dropout must be "),  # type: ignore[arg-type]
        (lambda f: JKOFlow(f, 2, "a"), TypeError, "step_size must be "),  # type: ignore[arg-type]
        (lambda f: Training(critic_dropout=1.0), ValueError, "critic_dropout must be "),
        (lambda f: MLP([3]), ValueError, "sizes must be "),
        (lambda f: MLP([3, 4], residual=True), ValueError, "residual: "),
        (lambda f: MLP([3, 4], "gelu"), ValueError, "activation must be "),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_named(make, kind, text):
    with pytest.raises(kind, match=text):
        make(Potential(lambda x: x.square().sum(-1)))


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="functional must be "):
        JKOFlow(lambda x: x, 2, 0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"map must be a torch\.nn\.Module"):
        JKOFlow(Potential(lambda x: x.sum(-1)), 2, 0.5, map=int)  # type: ignore[arg-type]


def test_an_engine_that_refuses_gives_its_reason(monkeypatch):
    class Picky:
        name = "picky"

        def refuses(self, functional, map, critic, training):
            return "takes no Potential"

        def solve(self, problem):
            raise AssertionError("was not asked to")

    monkeypatch.setitem(ENGINES, "picky", Picky())
    functional = Potential(lambda x: x.square().sum(-1))
    with pytest.raises(ValueError, match="picky: takes no Potential"):
        JKOFlow(functional, 2, 0.5, engine="picky")  # type: ignore[arg-type]
    JKOFlow(functional, 2, 0.5, engine="torch", training=QUICK).run(torch.randn(64, 2), 1, progress=False)
