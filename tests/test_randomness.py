"""Draws of a run come from generators of its own: threads do not disturb one another, nor a caller."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import gwf_fast as gwf
from gwf_fast.randomness import seeded as randomness

FEW: dict[str, Any] = {"batch_size": 32, "iterations": 6}
START = torch.linspace(-1, 1, 80).view(40, 2)


class Noisy(nn.Module):
    """A map of the user's own, with dropout and noise."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))

    def forward(self, x):
        return x + self.inner(x) + (0.01 * torch.randn_like(x) if self.training else 0.0)


def blurred(x):
    """A density that is estimated with draws, as by minibatches."""
    return -0.5 * (x + 0.01 * torch.randn(x.shape)).square().sum(1)


def fused_flow(seed):
    functional = gwf.SquaredMMD(lambda n: torch.randn(n, 2), gwf.Gaussian(1.0))
    flow = gwf.JKOFlow(functional, 2, 0.5, seed=seed, training=gwf.Training(**FEW))
    return flow.run(lambda n: torch.rand(n, 2), 2, progress=False).particles


def modules_flow(seed):
    flow = gwf.JKOFlow(gwf.KL(blurred), 2, 0.5, map=Noisy, seed=seed, training=gwf.Training(**FEW))
    return flow.run(START, 2, progress=False).particles


def dropping():
    return nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Dropout(0.2), nn.Linear(16, 1))


def adversarial_flow(seed):
    functional = gwf.IPM(gwf.potentials.GaussianMixture(torch.eye(2), 0.5).sample)
    flow = gwf.JKOFlow(functional, 2, 0.5, critic=dropping, seed=seed, training=gwf.Training(**FEW))
    return flow.run(START, 2, progress=False).particles


def thinned_flow(seed):
    training = gwf.Training(**FEW, dropout=0.2)
    flow = gwf.JKOFlow(
        gwf.KL(gwf.potentials.Gaussian(torch.zeros(2), torch.eye(2)).log_density), 2, 0.5, seed=seed, training=training
    )
    return flow.run(START, 2, progress=False).particles


def drifting(seed):
    with randomness.reproducible(0):
        generator = nn.Sequential(nn.Linear(2, 8), nn.RReLU(), nn.Linear(8, 2))
    options = {"n_projections": 4}
    model = gwf.DriftingModel(
        "sliced_wasserstein", 2, options=options, generator=generator, latent_dim=2, batch_size=16, seed=seed
    )
    result = model.run(lambda n: torch.randn(n, 2), 5, progress=False)
    return nn.utils.parameters_to_vector(result.generator.parameters()).detach()


def learned_drift(seed):
    model = gwf.DriftingModel("critic", 2, latent_dim=2, batch_size=16, record_every=1, seed=seed)
    result = model.run(
        lambda n: torch.randn(n, 2), 3, progress=False, evaluate=lambda x: (torch.rand(()) + x.sum()).item()
    )
    return torch.cat(
        (
            nn.utils.parameters_to_vector(result.generator.parameters()).detach(),
            torch.tensor([result.history[-1].value]),
        )
    )


RUNS = [fused_flow, modules_flow, adversarial_flow, thinned_flow, drifting, learned_drift]


@pytest.mark.parametrize("run", RUNS)
def test_the_callers_generator_is_neither_read_nor_moved(run):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(run(3), first)
    assert not torch.equal(run(4), first)


def test_threads_give_what_sequences_give():
    """Seeding went through the process-wide generator: flows in threads drew each other's numbers."""
    jobs = [(run, seed) for run in RUNS[:3] for seed in (0, 1)]
    want = [run(seed) for run, seed in jobs]
    torch.manual_seed(5)
    expected = torch.rand(1000)
    got: dict[int, torch.Tensor] = {}

    def work(k):
        run, seed = jobs[k]
        got[k] = run(seed)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(jobs))]
    torch.manual_seed(5)
    drawn = []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and len(drawn) < 1000:
        drawn.append(torch.rand(1))  # the caller goes on drawing meanwhile
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[k], want[k]) for k in range(len(jobs)))
    assert torch.equal(torch.cat(drawn), expected[: len(drawn)])


X = torch.linspace(-1, 1, 12).view(3, 4)
HEAD = X.view(1, 1, 3, 4)
DRAWS = {
    "randn": lambda: torch.randn(3),
    "rand": lambda: torch.rand(3, dtype=torch.float64),
    "randint": lambda: torch.randint(3, (3,)),
    "randint of two bounds": lambda: torch.randint(2, 9, (3,)),
    "randperm": lambda: torch.randperm(6),
    "randn_like": lambda: torch.randn_like(X),
    "rand_like": lambda: torch.rand_like(X),
    "randint_like": lambda: torch.randint_like(X, 9),
    "randint_like of two bounds": lambda: torch.randint_like(X, 2, 9),
    "multinomial": lambda: torch.multinomial(X.abs(), 2),
    "bernoulli": lambda: torch.bernoulli(X.abs()),
    "normal": lambda: torch.normal(X, X.abs()),
    "poisson": lambda: torch.poisson(X.abs()),
    "uniform_": lambda: X.clone().uniform_(),
    "exponential_": lambda: X.clone().exponential_(),
    "gamma": lambda: torch.distributions.Gamma(2.0, 1.0).sample((3,)),
    "dropout": lambda: functional.dropout(X, 0.5),
    "alpha_dropout": lambda: functional.alpha_dropout(X, 0.5, True),
    "rrelu": lambda: functional.rrelu(X, training=True),
    "gumbel": lambda: functional.gumbel_softmax(X),
    "attention": lambda: functional.scaled_dot_product_attention(HEAD, HEAD, HEAD, dropout_p=0.5),
    "linear": lambda: nn.Linear(2, 2).weight.detach(),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(3, 3)),
    "sobol": lambda: torch.quasirandom.SobolEngine(2, scramble=True).draw(2),
    "lstm": lambda: nn.LSTM(4, 4, 2, dropout=0.5)(X.view(3, 1, 4))[0].detach(),
}


@pytest.mark.filterwarnings("ignore:.*non-zero dropout")
@pytest.mark.parametrize("name", DRAWS)
def test_what_users_draw_is_what_the_global_generator_would_give(name):
    torch.manual_seed(7)
    want = DRAWS[name]()
    before = torch.get_rng_state()
    with randomness.reproducible(7):
        got = DRAWS[name]()
    assert torch.equal(got, want)
    assert torch.equal(torch.get_rng_state(), before)


def test_native_dropout_drops_at_its_rate():
    """What CUDA's dropout is, drawn as on the CPU."""
    x = torch.ones(4000)
    with randomness.reproducible(0):
        out, kept = torch.ops.aten.native_dropout(x, 0.25, True)
        still, all_kept = torch.ops.aten.native_dropout(x, 0.25, False)
    assert torch.equal(out, kept / 0.75)
    assert 0.7 < kept.double().mean() < 0.8
    assert torch.equal(still, x)
    assert all_kept.all()


def test_a_generator_that_is_given_is_used():
    own, twin = (torch.Generator().manual_seed(3) for _ in range(2))
    with randomness.reproducible(7):
        got = torch.randn(4, generator=own)
    assert torch.equal(got, torch.randn(4, generator=twin))


def test_compiled_functions_run_as_ever_where_draws_are_redirected():
    """A dispatch mode of another kind would send them elsewhere, with other roundings."""
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    net = gwf.nn.MLP([2, 8, 1])
    with randomness.reproducible(0):
        drift, value = gwf.drift.gmd(x, x + 1, temperature=0.5), net(x)
    assert torch.equal(drift, gwf.drift.gmd(x, x + 1, temperature=0.5))
    assert torch.equal(value, net(x))


def test_only_modules_that_may_draw_are_redirected():
    assert not randomness.may_draw(gwf.nn.MLP([2, 8, 2]))
    assert not randomness.may_draw(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU()))
    for module in (Noisy(), nn.Sequential(nn.Dropout1d(0.1)), nn.RReLU(), nn.MultiheadAttention(4, 1), nn.GRU(2, 2)):
        assert randomness.may_draw(module)
