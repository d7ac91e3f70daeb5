"""The Sinkhorn divergence with its gradient, beside geomloss with the same iterations."""

from __future__ import annotations

import functools

import torch

from bench.measure import detached
from bench.peers import keops
from bench.problem import clouds
from bench.registry import OURS, Case, Contender, Race, Result, register

BLUR, SCALING = 0.1, 0.8


def loss_of(package: str, x: torch.Tensor, y: torch.Tensor) -> Contender:
    """Value and gradient in x of SamplesLoss("sinkhorn", p=2): ours or geomloss' own, which never stores N x M."""
    options = {"p": 2, "blur": BLUR, "scaling": SCALING, "backend": "online"}
    if package == OURS:
        from gwf_fast.compat.geomloss import SamplesLoss
    else:
        keops.load()
        from geomloss import SamplesLoss
    loss = SamplesLoss("sinkhorn", **options)
    leaf = x.clone().requires_grad_()

    def contender() -> Result:
        value = loss(leaf, y)
        return detached(value, *torch.autograd.grad(value, leaf))

    return contender


def prepare(n: int, quick: bool) -> Race:
    size = 1_000 if quick else n
    problem = clouds(size, size, 2, shift=0.5)
    return Race(
        {name: functools.partial(loss_of, name, problem.x, problem.y) for name in (OURS, "geomloss online")},
        truth=lambda: loss_of(OURS, problem.x.double(), problem.y.double())(),
    )


register(
    [
        Case(
            "sinkhorn/value+gradient/D2",
            functools.partial(prepare, 10_000),
            tolerance=2e-5,
            targets={"geomloss online": 15.0},
            facts={"family": "transport", "reduction": "Sinkhorn divergence, gradient", "D": 2, "N": 10_000},
        )
    ]
)
