"""Small networks: gradients, and a critic's update, beside PyTorch eager and compiled.

The sizes are those of the primal-dual loops in the literature: what is slow there is not arithmetic but its overhead.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import gwf_fast as gwf
from bench.measure import detached
from bench.registry import OURS, Case, Contender, Race, Result, register

RATE = 1e-3
BETAS = (0.9, 0.999)


class Size(NamedTuple):
    """Batch, dimension, width, hidden layers of map and critic."""

    batch: int
    dim: int
    width: int
    map_depth: int
    critic_depth: int

    @property
    def map_sizes(self) -> tuple[int, ...]:
        return (self.dim, *[self.width] * self.map_depth, self.dim)

    @property
    def critic_sizes(self) -> tuple[int, ...]:
        return (self.dim, *[self.width] * self.critic_depth, 1)


SIZES = {"S": Size(100, 2, 16, 4, 4), "M": Size(512, 32, 64, 4, 4), "L": Size(1024, 64, 128, 5, 4)}


class Networks(NamedTuple):
    """Map T, critic h, samples to be mapped, samples of the target, points."""

    map: gwf.nn.MLP
    critic: gwf.nn.MLP
    y: Tensor
    z: Tensor

    def double(self) -> Networks:
        """The same in float64; the networks themselves are converted."""
        return Networks(self.map.double(), self.critic.double(), self.y.double(), self.z.double())


def networks(size: Size) -> Networks:
    """The same ones at each call."""
    torch.manual_seed(0)
    moved, critic = gwf.nn.MLP(size.map_sizes, residual=True), gwf.nn.MLP(size.critic_sizes)
    with torch.no_grad():
        for p in (*moved.parameters(), *critic.parameters()):
            p.add_(0.05 * torch.randn_like(p))
    return Networks(moved, critic, torch.randn(size.batch, size.dim), 0.7 * torch.randn(size.batch, size.dim) + 0.5)


def multiplications(sizes: tuple[int, ...]) -> int:
    return sum(a * b for a, b in itertools.pairwise(sizes))


def forward_flops(size: Size) -> float:
    return 2.0 * size.batch * multiplications(size.critic_sizes)


def gradient_flops(size: Size) -> float:
    """Forward, gradients of the weights, and of all layers' inputs but the first's."""
    return 3 * forward_flops(size) - 2.0 * size.batch * size.dim * size.width


def update_flops(size: Size) -> float:
    """The map once, the critic with gradients on both batches; Adam is not counted."""
    return 2.0 * size.batch * multiplications(size.map_sizes) + 2 * gradient_flops(size)


def plain(net: gwf.nn.MLP, x: Tensor) -> Tensor:
    """The network as PyTorch runs it: module by module."""
    out = nn.Sequential.forward(net, x)
    return x + out if net.config["residual"] else out


# ---------------------------------------------------------------------------------------------- gradients


def ours_gradients(size: Size) -> Contender:
    _, critic, y, _ = networks(size)
    parameters = list(critic.parameters())
    return lambda: torch.autograd.grad(critic(y).sum(), parameters)


def eager_gradients(size: Size) -> Contender:
    _, critic, y, _ = networks(size)
    parameters = list(critic.parameters())
    return lambda: torch.autograd.grad(plain(critic, y).sum(), parameters)


def true_gradients(size: Size) -> Result:
    _, critic, y, _ = networks(size)
    critic.double()
    return torch.autograd.grad(plain(critic, y.double()).sum(), list(critic.parameters()))


def functional(parameters: list[Tensor], x: Tensor) -> Tensor:
    """A network of PReLUs as a function of weight, bias and slope of each layer, for torch.func.grad."""
    *hidden, weight, bias = parameters
    for i in range(0, len(hidden), 3):
        x = nn.functional.prelu(nn.functional.linear(x, hidden[i], hidden[i + 1]), hidden[i + 2])
    return nn.functional.linear(x, weight, bias)


def compiled_gradients(size: Size) -> Contender:
    _, critic, y, _ = networks(size)
    parameters = [p.detach() for p in critic.parameters()]
    gradients = torch.compile(torch.func.grad(lambda values: functional(values, y).sum()), fullgraph=True)
    return lambda: tuple(gradients(parameters))


# ---------------------------------------------------------------------------------------------- a critic's update


def kl_objective(critic: Callable[[Tensor], Tensor], x: Tensor, z: Tensor) -> Tensor:
    """E_P h - E_Q exp(h - 1), written out."""
    return critic(x).mean() - (critic(z) - 1).exp().mean()


PENALTY = 10.0


def gradient_penalty(critic: Callable[[Tensor], Tensor], x: Tensor, z: Tensor, e: Tensor) -> Tensor:
    """PENALTY E (|grad h| - 1)^2 at points e x + (1 - e) z between the batches; e [N, 1]."""
    between = e * x + (1 - e) * z
    gradient = torch.func.grad(lambda points: critic(points).sum())(between)
    return PENALTY * (gradient.norm(dim=1) - 1).square().mean()


def updating(size: Size, moved: Callable, objective: Callable, nets: Networks | None = None) -> Contender:
    """T forward, objective, gradients, Adam; the result is the gradients."""
    nets = nets or networks(size)
    parameters = list(nets.critic.parameters())
    optimizer = torch.optim.Adam(parameters, lr=RATE, betas=BETAS, fused=True)  # its fastest form on the CPU

    def contender() -> Result:
        with torch.no_grad():
            x = moved(nets.map, nets.y)
        gradients = torch.autograd.grad(-objective(nets.critic, x, nets.z), parameters)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        optimizer.step()
        return gradients

    return contender


def ours_update(size: Size) -> Contender:
    objective = functools.partial(gwf.nn.critic_objective, divergence="kl")
    return updating(size, lambda net, y: net(y), objective)


def eager_update(size: Size, nets: Networks | None = None) -> Contender:
    return updating(size, plain, lambda net, x, z: kl_objective(functools.partial(plain, net), x, z), nets)


def compiled_update(
    size: Size, state: list[list[Tensor]] | None = None, mixing: Sequence[Tensor] | None = None
) -> Contender:
    """The whole update as one functional graph: its best form.

    ``state`` receives parameters and moments; with ``mixing``, the e of each update in turn, the critic is penalised.
    """
    nets = networks(size)
    turns = itertools.cycle(mixing or [torch.zeros(())])

    def loss(values: list[Tensor], x: Tensor, e: Tensor) -> Tensor:
        critic = functools.partial(functional, values)
        value = -kl_objective(critic, x, nets.z)
        return value if mixing is None else value + gradient_penalty(critic, x, nets.z, e)

    @functools.partial(torch.compile, fullgraph=True)
    def step(values: list, first: list, second: list, count: Tensor, e: Tensor) -> tuple[list, list, list, list]:
        gradients = torch.func.grad(loss)(values, plain(nets.map, nets.y), e)
        first = [BETAS[0] * m + (1 - BETAS[0]) * g for m, g in zip(first, gradients)]
        second = [BETAS[1] * v + (1 - BETAS[1]) * g * g for v, g in zip(second, gradients)]
        a, b = RATE / (1 - BETAS[0] ** count), (1 - BETAS[1] ** count).sqrt()
        values = [p - a * m / (v.sqrt() / b + 1e-8) for p, m, v in zip(values, first, second)]
        return values, first, second, gradients

    values = [p.detach().clone() for p in nets.critic.parameters()]
    state = [] if state is None else state
    state[:] = [values, *([torch.zeros_like(p) for p in values] for _ in range(2))]
    count = torch.zeros(())

    def contender() -> Result:
        count.add_(1)
        with torch.no_grad():
            *state[:], gradients = step(*state, count, next(turns))
        return tuple(gradients)

    return contender


def true_update(size: Size) -> Result:
    nets = networks(size).double()
    value = kl_objective(functools.partial(plain, nets.critic), plain(nets.map, nets.y).detach(), nets.z)
    return torch.autograd.grad(-value, list(nets.critic.parameters()))


# ---------------------------------------------------------------------------------------------- cases


def together(result: Result) -> Result:
    """All gradients as one vector: a single one may be a small difference of large sums."""
    return (torch.cat([g.flatten() for g in detached(*result)]),)


def prepare(
    size: Size,
    makers: Mapping[str, Callable[[Size], Contender]],
    truth: Callable[[Size], Result],
    flops: float,
    quick: bool,
) -> Race:
    return Race(
        # compiling takes most of a minute: not where a glance will do
        {
            name: functools.partial(make, size)
            for name, make in makers.items()
            if not (quick and name == "torch.compile")
        },
        truth=lambda: together(truth(size)),
        checked=together,
        flops=flops,
    )


GRADIENTS = {OURS: ours_gradients, "torch eager": eager_gradients, "torch.compile": compiled_gradients}
UPDATES = {OURS: ours_update, "torch eager": eager_update, "torch.compile": compiled_update}


def facts(family: str, size: Size) -> dict[str, object]:
    return {"family": family, "batch": size.batch, "D": size.dim, "width": size.width}


register(
    Case(
        f"networks/gradients/{label}",
        functools.partial(prepare, size, GRADIENTS, true_gradients, gradient_flops(size)),
        facts=facts("networks", size),
    )
    for label, size in SIZES.items()
)
register(
    Case(
        f"networks/critic_update/{label}",
        functools.partial(prepare, size, UPDATES, true_update, update_flops(size)),
        facts=facts("networks", size),
    )
    for label, size in SIZES.items()
)
