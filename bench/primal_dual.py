"""The primal-dual loop: updates of a critic in one compiled call, and whole JKO steps, beside PyTorch.

A result is how far the parameters (the particles) have come, so that the first call of a contender can be checked
against the same loop in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

import gwf_fast as gwf
from bench.networks import (
    PENALTY,
    RATE,
    SIZES,
    Networks,
    Size,
    compiled_update,
    eager_update,
    facts,
    kl_objective,
    networks,
    plain,
    update_flops,
    updating,
)
from bench.registry import OURS, Case, Contender, Race, Result, register
from gwf_fast.flows.engines.base import StepProblem
from gwf_fast.flows.engines.fused import compiled_problem
from gwf_fast.kernels.cpp.primal_dual import PrimalDual, philox_uniforms

SEED = 7
UPDATES = {"S": 100, "M": 16, "L": 4}  # in one call: calling from Python costs as much as an update of the smallest


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def mixing(count: int, size: Size) -> list[Tensor]:
    """The loop's own draws of the points of the penalty, [N, 1] for each update of a call."""
    return [philox_uniforms(SEED, j, 2, size.batch).float()[:, None] for j in range(count)]


def repeated(count: int, update: Contender, parameters: Callable[[], Sequence[Tensor]]) -> Contender:
    """So many updates from the same parameters: left to go on, the critic of two fixed batches diverges."""
    start = [p.detach().clone() for p in parameters()]

    def contender() -> Result:
        with torch.no_grad():
            for p, s in zip(parameters(), start, strict=True):
                p.copy_(s)
        for _ in range(count):
            update()
        return (flat(parameters()) - flat(start),)

    return contender


def eager(count: int, penalised: bool, size: Size, nets: Networks | None = None) -> Contender:
    nets = nets or networks(size)
    update = penalised_update(size, nets, mixing(count, size)) if penalised else eager_update(size, nets)
    return repeated(count, update, lambda: list(nets.critic.parameters()))


def penalised_update(size: Size, nets: Networks, draws: Sequence[Tensor]) -> Contender:
    turns = itertools.cycle(draws)

    def objective(net: gwf.nn.MLP, x: Tensor, z: Tensor) -> Tensor:
        e = next(turns).to(x)
        between = (e * x + (1 - e) * z).requires_grad_()
        (gradient,) = torch.autograd.grad(plain(net, between).sum(), between, create_graph=True)
        return kl_objective(functools.partial(plain, net), x, z) - PENALTY * (gradient.norm(dim=1) - 1).square().mean()

    return updating(size, plain, objective, nets)


def compiled(count: int, penalised: bool, size: Size) -> Contender:
    state: list[list[Tensor]] = []
    update = compiled_update(size, state, mixing(count, size) if penalised else None)
    return repeated(count, update, lambda: state[0])


def exact(count: int, penalised: bool, size: Size) -> Result:
    nets = networks(size).double()
    return eager(count, penalised, size, nets)()


def fused(count: int, penalised: bool, size: Size) -> Contender:
    """The engine's loop without map descents, on the same fixed batches as the others.

    Later calls have a learning rate of zero: the same work, and the parameters stay where the first call left them.
    """
    nets = networks(size)
    problem = StepProblem(
        functional=gwf.FDivergence("kl", nets.z),
        step_size=1.0,
        inputs=nets.y,
        anchors=nets.y,
        reference=None,
        map=nets.map,
        critic=nets.critic,
        map_optimizer=torch.optim.AdamW(nets.map.parameters(), lr=RATE),
        critic_optimizer=torch.optim.AdamW(nets.critic.parameters(), lr=RATE),
        training=gwf.Training(batch_size=size.batch, iterations=count, critic_steps=1, gradient_clip=None),
    )
    penalty = PENALTY if penalised else 0.0
    schedule = torch.cat((torch.ones(count), torch.zeros(count))).double()
    made = compiled_problem(problem)
    numbers = {**made.numbers, "map_steps": 0, "penalty": penalty, "seed": SEED}
    loop = PrimalDual(dataclasses.replace(made, numbers=numbers, schedule=schedule))
    parameters = list(nets.critic.parameters())
    start = flat(parameters).clone()

    calls = itertools.count()

    def contender() -> Result:
        report = loop.run(min(next(calls), 1) * count, count, 1)
        if report["iterations"] != count:
            raise RuntimeError(f"bench: {report['iterations']} of {count} updates, then a loss that is not finite")
        loop.write_back()
        return (flat(parameters) - start,)

    return contender


def updates(label: str, penalised: bool, quick: bool) -> Race:
    size, count = SIZES[label], UPDATES[label]
    makers = {OURS: fused, "torch eager": eager, "torch.compile": compiled}
    if quick:
        del makers["torch.compile"]  # compiling takes most of a minute: not where a glance will do
    return Race(
        {name: functools.partial(make, count, penalised, size) for name, make in makers.items()},
        truth=functools.partial(exact, count, penalised, size),
        flops=None if penalised else count * update_flops(size),
    )


# ---------------------------------------------------------------------------------------------- a whole JKO step

STEP = gwf.Training(batch_size=100, iterations=500, critic_steps=3, map_steps=2, gradient_clip=None)
MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])


def log_density(x: Tensor) -> Tensor:
    """The mixture as a user might write it."""
    return (-(x.unsqueeze(-2) - MEANS.to(x)).square().sum(-1) / 2).logsumexp(-1)


FUNCTIONALS: dict[str, Callable[[], gwf.Functional]] = {
    "mixture": lambda: gwf.KL(gwf.potentials.GaussianMixture(MEANS)),
    "samples": lambda: gwf.JensenShannon(gwf.potentials.GaussianMixture(MEANS).sample(10_000)),
    "python": lambda: gwf.KL(log_density),
    "ipm": lambda: gwf.IPM(gwf.potentials.GaussianMixture(MEANS).sample(10_000)),
    "mmd": lambda: gwf.SquaredMMD(gwf.potentials.GaussianMixture(MEANS).sample(10_000), gwf.Riesz()),
}


def step(kind: str, engine: Literal["fused", "torch"], training: gwf.Training) -> Contender:
    torch.manual_seed(0)
    flow = gwf.JKOFlow(FUNCTIONALS[kind](), 2, 0.1, training=training, engine=engine)
    state = flow.init(4 * torch.randn(4096, 2))
    return lambda: (flow.step(state).particles - state.particles,)


def steps(kind: str, quick: bool) -> Race:
    """The default networks in two dimensions are the paper's: T 4 x 16, h 3 x 16."""
    training = dataclasses.replace(STEP, iterations=50) if quick else STEP
    engines: dict[str, Literal["fused", "torch"]] = {OURS: "fused", "engine torch": "torch"}
    return Race({name: functools.partial(step, kind, engine, training) for name, engine in engines.items()})


TARGETS = {"S": (60, 8), "M": (3.5, 1.6), "L": (2, 1.3)}
PENALISED_TARGETS = {"S": (60, 8), "M": (4, 1.6), "L": (2, 1.3)}
LIMITS = {"mixture": 0.08, "samples": 0.08, "python": 0.5}

register(
    Case(
        f"primal_dual/{name}/{label}",
        functools.partial(updates, label, penalised),
        tolerance=1e-3,
        peer_tolerance=1e-2,
        targets=dict(zip(("torch eager", "torch.compile"), targets[label], strict=True)),
        facts=facts("primal_dual", size),
    )
    for name, penalised, targets in (("critic_update", False, TARGETS), ("penalised_update", True, PENALISED_TARGETS))
    for label, size in SIZES.items()
)
register(
    Case(
        f"primal_dual/jko_step/{kind}",
        functools.partial(steps, kind),
        limit=LIMITS.get(kind),
        facts={"family": "primal_dual"},
    )
    for kind in FUNCTIONALS
)
