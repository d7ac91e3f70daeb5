"""Every functional that the fused engine takes against the torch engine, which is plain PyTorch, on the same draws."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import gwf_fast as gwf
from gwf_fast.flows.engines.base import StepProblem
from gwf_fast.flows.engines.choice import ENGINES
from gwf_fast.flows.engines.fused import compiled_problem
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import terms_of
from gwf_fast.kernels.cpp.primal_dual import PrimalDual, philox_uniforms
from gwf_fast.nn import MLP
from gwf_fast.potentials import Density
from tests.flows.test_fused_engine import assert_close, assert_same_path, densities, samples, solved
from tests.gpu.loops import inner_problem

KERNEL = gwf.Gaussian(0.8) + gwf.Riesz()


def squares(x):
    return x.square().sum(-1)


def source(n):
    return torch.randn(n, 3, dtype=torch.float64) + 1


def mmd(target):
    return gwf.SquaredMMD(target, KERNEL)


FUNCTIONALS = {
    "ipm": lambda: gwf.IPM(samples()),
    "ipm, fewer samples than a batch": lambda: gwf.IPM(samples(n=40), penalty=3.0),
    "ipm, callable": lambda: gwf.IPM(source),
    "donsker-varadhan": lambda: gwf.DonskerVaradhan(samples()),
    "donsker-varadhan, callable": lambda: 0.3 * gwf.DonskerVaradhan(source),
    "mmd": lambda: gwf.SquaredMMD(samples(), KERNEL),
    "mmd, callable": lambda: gwf.SquaredMMD(source, KERNEL),
    "unbalanced mmd": lambda: gwf.MMDUnbalanced(samples(), KERNEL, strength=4.0),
    "interaction": lambda: gwf.Interaction(-gwf.Gaussian(0.7)),
    "potential": lambda: gwf.Potential(squares),
    "blob": lambda: gwf.GeneralizedEntropy(2, bandwidth=0.5) + gwf.Potential(squares),
    "entropy": lambda: gwf.GeneralizedEntropy(2) + gwf.Potential(squares),
    "entropy, m = 1": lambda: 0.5 * gwf.GeneralizedEntropy(1) + gwf.Potential(squares),
    "interaction + entropy": lambda: gwf.Interaction(KERNEL) + 0.1 * gwf.GeneralizedEntropy(3),
    "f-divergence": lambda: gwf.FDivergence("squared_hellinger", samples()),
    "js + mmd": lambda: gwf.JensenShannon(samples()) + 3.0 * gwf.SquaredMMD(samples(n=200), KERNEL),
    "mmd + ipm": lambda: gwf.SquaredMMD(samples(n=200), KERNEL) + 0.4 * gwf.IPM(samples()),
    "callables": lambda: mmd(source) + 0.5 * gwf.JensenShannon(source) + mmd(source),
    "kl of a function + interaction": lambda: 2.0 * gwf.KL(densities()["function"]) + gwf.Interaction(KERNEL),
    "interaction + kl of a mixture": lambda: gwf.Interaction(KERNEL) + 0.7 * gwf.KL(densities()["mixture"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_every_functional_against_the_torch_path(name):
    training = Training(batch_size=64, iterations=12, critic_steps=2, map_steps=2)
    # Riesz: our kernels' own rounding where two points are close, in both paths
    assert_same_path(FUNCTIONALS[name](), training=training)


def test_every_functional_and_compiled_density_has_a_row():
    """What is exported, and what the compiled loop knows: a new one without a row would never meet it."""
    exported = [getattr(gwf, name) for name in gwf.__all__]
    wanted = {c for c in exported if isinstance(c, type) and issubclass(c, gwf.Functional)} - {gwf.Functional}
    met = {type(term) for make in FUNCTIONALS.values() for _, term in terms_of(make())}
    assert {gwf.JensenShannon} <= wanted, "the list of what is exported is not what it was"
    assert wanted - met == set(), "a functional needs a row in FUNCTIONALS above"
    kinds = [getattr(gwf.potentials, name) for name in gwf.potentials.__all__]
    classes = {c for c in kinds if isinstance(c, type) and issubclass(c, Density)}
    compiled = {c for c in classes if c.compiled is not Density.compiled}
    assert len(compiled) >= 3 and Density not in compiled
    met = {type(density) for density in densities().values()}
    assert compiled - met == set(), "a potential with compiled() needs a row in densities() of test_fused_engine.py"


class Means(gwf.Functional):
    """One that forgot to take a mean, or gives no tensor at all."""

    def __init__(self, of_map):
        self.of_map = of_map

    def map_objective(self, critic, x, z, reference):
        return self.of_map(x)

    value = map_objective


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("beside", [None, gwf.Potential(squares)], ids=["alone", "in a sum"])
@pytest.mark.parametrize(
    ("of_map", "got"),
    [
        (squares, r"a tensor \[64\]"),
        (lambda x: x.mean(0, keepdim=True).mean(1), r"a tensor \[1\]"),
        (lambda x: x.mean().item(), "float"),
        (lambda x: None, "NoneType"),
    ],
)
def test_an_objective_that_is_no_scalar(engine, beside, of_map, got):
    functional = Means(of_map) if beside is None else Means(of_map) + beside
    with pytest.raises(ValueError, match=rf"Means\.map_objective must give a scalar, a tensor \[\], got {got}"):
        solved(engine, functional, torch.float64, training=Training(batch_size=64, iterations=2))


def test_a_critic_objective_that_is_no_scalar():
    class Critical(Means):
        needs_critic = True

        def critic_objective(self, critic, x, z, reference):
            return critic(x).squeeze(-1)

    with pytest.raises(ValueError, match=r"Critical\.critic_objective must give a scalar, a tensor \[\], got .*\[64\]"):
        solved("torch", Critical(squares), torch.float64, training=Training(batch_size=64, iterations=2))


def test_a_target_that_is_a_callable():
    assert_same_path(gwf.JensenShannon(lambda n: torch.randn(n, 3, dtype=torch.float64) + 1))


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_penalty_in_float32(activation):
    """Against PyTorch in float64: with kinks its own float32 path may stray."""
    training = Training(batch_size=100, iterations=50, critic_steps=3)
    options = {"training": training, "activation": activation}
    single = solved("fused", gwf.IPM(samples(dtype=torch.float32)), torch.float32, **options)
    assert_close(single, solved("torch", gwf.IPM(samples()), torch.float64, **options), 1e-5)


@pytest.mark.parametrize("functional", [gwf.JensenShannon, gwf.IPM])
@pytest.mark.parametrize("slope", [-0.3, 0.0, 1e-3, 1.0, 2.5])
def test_learned_slopes_of_either_sign_against_the_torch_path(slope, functional):
    """1e-3 is on its way through 0: the activation tells the sign of its input on one side only."""
    training = Training(batch_size=64, iterations=20, critic_steps=3, map_steps=2, lr=1e-3)
    assert_same_path(functional(samples()), slope=slope, training=training)


@pytest.mark.parametrize("activation", ["prelu", "tanh"])
@pytest.mark.parametrize("functional", ["js", "dv", "kl"])
def test_dropout_against_the_torch_path(functional, activation):
    training = Training(batch_size=150, iterations=10, critic_steps=2, map_steps=2, dropout=0.4)
    made = {
        "js": gwf.JensenShannon(samples()),
        "dv": gwf.DonskerVaradhan(samples()),
        "kl": gwf.KL(densities()["function"]),
    }
    assert_same_path(made[functional], training=training, activation=activation, widths=(20, 7))


@pytest.mark.parametrize(
    "rates",
    [
        {"dropout": 0.3},
        {"dropout": 0.3, "critic_dropout": 0.0},
        {"dropout": 0.0, "critic_dropout": 0.3},
        {"batch_size": 500},
    ],
)
def test_rates_of_dropout_against_the_torch_path(rates):
    training = Training(**{"batch_size": 64, "iterations": 20, "critic_steps": 2, "dropout": 0.6, **rates})
    assert_same_path(gwf.JensenShannon(samples()), training=training, widths=(20, 7))


def test_dropout_of_the_map_beside_a_penalty():
    training = Training(batch_size=64, iterations=10, critic_steps=2, map_steps=2, dropout=0.4, critic_dropout=0.0)
    assert_same_path(gwf.IPM(samples()), training=training, widths=(20, 7))


def test_dropout_drops_and_ends_with_the_whole_network():
    """A map without a critic whose hidden units are dropped, by hand: the share that is dropped, and the scale."""
    from gwf_fast.nn.dropout import MAP_PASSES, Thinned
    from gwf_fast.randomness.draws import Draws

    net: Any = MLP([2, 1000, 2], "relu").double()
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    thinned = Thinned(net, 0.25, Draws(3))
    thinned.begin(MAP_PASSES, 0)
    x = torch.ones(50, 2).double()
    kept = thinned(x)[:, 0] / 2 * 0.75  # how many of 1000 units are left
    assert abs(kept.mean() - 750) < 5 * (1000 * 0.25 * 0.75 / 50) ** 0.5
    assert 10 < kept.std() < 18
    assert torch.equal(net(x), torch.full((50, 2), 2000.0).double())
    thinned.begin(MAP_PASSES, 0)
    first, second = thinned(x), thinned(x)
    assert not torch.equal(first, second)  # the rows of a pass are counted on
    thinned.begin(MAP_PASSES, 0)
    assert torch.equal(thinned(torch.cat((x, x))), torch.cat((first, second)))
    flow = gwf.JKOFlow(
        gwf.JensenShannon(samples(2, dtype=torch.float32)), 2, 0.5, training=Training(dropout=0.5, iterations=3)
    )
    result = flow.run(torch.randn(100, 2), 1, progress=False)
    z = torch.randn(5, 2)
    assert torch.equal(result.push(z), result.push(z))


def test_dropout_of_other_modules_is_refused():
    changed = MLP([2, 8, 2])
    changed.append(nn.Linear(2, 2))
    for module in (nn.Linear(2, 2), changed):
        with pytest.raises(
            ValueError,
            match=r"torch: Training\(dropout=\) is for gwf_fast.nn.MLP as it was made; put nn.Dropout into the map",
        ):
            gwf.JKOFlow(gwf.Potential(squares), 2, 0.5, map=module, training=Training(dropout=0.1))
    with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\), got 1"):
        Training(dropout=1)


def test_a_functional_without_a_critic_runs_in_a_flow():
    y = samples(2, dtype=torch.float32)
    results = []
    for engine in ("fused", "torch"):
        training = Training(batch_size=64, iterations=20)
        flow = gwf.JKOFlow(gwf.SquaredMMD(y, gwf.Riesz()), 2, 5.0, training=training, engine=engine)
        x0 = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        results.append(flow.run(x0, 2, progress=False))
    assert results[0].state.critic is None
    torch.testing.assert_close(results[0].particles, results[1].particles, rtol=1e-3, atol=1e-4)


class Own(gwf.Functional):
    """A user's own, with draws of its own."""

    def draw(self, n, reference, draws=None):
        return torch.randn(n, 3, dtype=torch.float64)

    def map_objective(self, critic, x, z, reference):
        return (x - z).square().sum(1).mean()

    value = map_objective


def test_a_functional_of_the_users_own():
    assert_same_path(Own(), training=Training(batch_size=64, iterations=10))
    with pytest.raises(ValueError, match="fused: it doesn't know what Own draws"):
        gwf.JKOFlow(Own() + gwf.JensenShannon(samples()), 3, 0.5, engine="fused")


@pytest.mark.parametrize("activation", ["prelu", "relu", "silu", "tanh"])
def test_the_gradient_penalty_against_autograd(activation):
    """Three iterations of two ascents of E h(x) - E h(z) - 10 E (|grad h| - 1)^2 in plain PyTorch, float64."""
    torch.manual_seed(0)
    transport, critic = MLP([3, 3]).double(), MLP([3, 20, 7, 1], activation).double()
    twin = copy.deepcopy(critic)
    x, z = 2 * torch.randn(301, 3).double(), torch.randn(301, 3).double() + 1
    problem = StepProblem(
        functional=gwf.IPM(z),
        step_size=0.5,
        inputs=x,
        anchors=x,
        reference=None,
        map=transport,
        critic=critic,
        map_optimizer=torch.optim.AdamW(transport.parameters(), lr=1e-30),
        critic_optimizer=torch.optim.AdamW(critic.parameters()),
        training=Training(batch_size=301, iterations=3, critic_steps=2, gradient_clip=None),
    )
    compiled = compiled_problem(problem)
    loop = PrimalDual(compiled)
    loop.run(0, 3, 1)
    loop.write_back()

    y, modules = transport(x).detach(), nn.Sequential(*twin)
    optimizer = torch.optim.AdamW(twin.parameters(), weight_decay=0.0)
    for j in range(3):
        for i in range(2):
            e = philox_uniforms(compiled.numbers["seed"], j, 2 + i, 301)[:, None]
            between = (e * y + (1 - e) * z).requires_grad_()
            (g,) = torch.autograd.grad(modules(between).sum(), between, create_graph=True)
            loss = modules(z).mean() - modules(y).mean() + 10 * (g.norm(dim=1) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for ours, theirs in zip(critic.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("functional", ["ipm", "js + mmd"])
def test_threads_do_not_matter(functional, monkeypatch):
    from gwf_fast.flows.engines.base import ThreadChoice
    from tests.flows.test_fused_engine import solved

    results = []
    for threads in (1, 3):
        monkeypatch.setattr(ThreadChoice, "run", lambda self, loop, first, n, t=threads: loop.run(first, n, t))
        results.append(
            solved("fused", FUNCTIONALS[functional](), torch.float64, training=Training(batch_size=301, iterations=5))
        )
    for one, many in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


def test_engines():
    assert list(ENGINES) == ["fused", "torch"]  # the preferred one first


def test_numbers_of_the_loop_are_said_once():
    """The compiled module tells which it wants: one that is missing, misspelt or no number is named."""
    problem = compiled_problem(inner_problem(gwf.JensenShannon(samples(2, n=20)), 2, pool=30))
    assert problem.numbers["batch"] == 30 and problem.numbers["target_kind"] == "whole"
    for name in problem.numbers:
        fewer = {key: value for key, value in problem.numbers.items() if key != name}
        with pytest.raises(ValueError, match=f"numbers: {name} is missing"):
            PrimalDual(dataclasses.replace(problem, numbers=fewer))
    for numbers, message in (
        ({"step_sise": 1.0}, "numbers: some are not a loop's"),
        ({"target_kind": "hole"}, "numbers: there is no target_kind hole"),
        ({"batch": 31}, "batch: 1 to the size of the pool"),
    ):
        with pytest.raises(ValueError, match=message):
            PrimalDual(dataclasses.replace(problem, numbers={**problem.numbers, **numbers}))
