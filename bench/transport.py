"""The Sinkhorn divergence with its gradient, beside geomloss with the same iterations; its plan, beside POT."""

from __future__ import annotations

import functools
import importlib
import warnings

import torch

import gwf_fast as gwf
from bench.measure import detached
from bench.peers import keops
from bench.problem import clouds
from bench.registry import OURS, Case, Contender, Race, Result, register

BLUR, SCALING = 0.1, 0.8


def loss_of(package: str, x: torch.Tensor, y: torch.Tensor) -> Contender:
    """Value and gradient in x of SamplesLoss("sinkhorn", p=2): ours or geomloss' own, which never stores N x M."""
    if package != OURS:
        keops.load()
    module = importlib.import_module("gwf_fast.compat.geomloss" if package == OURS else "geomloss")
    loss = module.SamplesLoss("sinkhorn", p=2, blur=BLUR, scaling=SCALING, backend="online")
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


EPSILON, ITERATIONS = 0.1, 50


def potentials_by_pot(x: torch.Tensor, y: torch.Tensor) -> Contender:
    """POT's log-domain Sinkhorn on its cost matrix r^2 (so twice our epsilon), the same number of sweeps."""
    import ot

    a, b = (torch.full((len(points),), 1 / len(points), dtype=x.dtype) for points in (x, y))

    def contender() -> Result:
        cost = torch.cdist(x, y).square()
        options = {"method": "sinkhorn_log", "numItermax": ITERATIONS, "stopThr": 0.0, "warn": False, "log": True}
        plan, _ = ot.sinkhorn(a, b, cost, 2 * EPSILON, **options)
        return (plan @ y * len(x),)

    return contender


def plan_by_us(x: torch.Tensor, y: torch.Tensor) -> Contender:
    """The barycentric map of the plan: what both give."""

    def contender() -> Result:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            g = gwf.sinkhorn(x, y, epsilon=EPSILON, max_iterations=ITERATIONS, tolerance=1e-6).g
        return (gwf.barycentric_map(x, y, g, epsilon=EPSILON),)

    return contender


def pot_race(n: int, quick: bool) -> Race:
    problem = clouds(500 if quick else n, 500 if quick else n, 2, shift=0.5)
    x, y = problem.x, problem.y

    def truth() -> Result:
        a, b = x.double(), y.double()
        g = gwf.sinkhorn(a, b, epsilon=EPSILON, max_iterations=2_000, tolerance=1e-10).g
        return (gwf.barycentric_map(a, b, g, epsilon=EPSILON),)

    makers = {OURS: lambda: plan_by_us(x, y), "POT": lambda: potentials_by_pot(x, y)}
    return Race(makers, truth=truth)


register(
    [
        Case(
            "sinkhorn/map/D2",
            functools.partial(pot_race, 4_000),
            tolerance=1e-3,
            peer_tolerance=1e-2,
            facts={"family": "transport", "reduction": "Sinkhorn, barycentric map", "D": 2, "N": 4_000},
        ),
        Case(
            "sinkhorn/value+gradient/D2",
            functools.partial(prepare, 10_000),
            tolerance=2e-5,
            targets={"geomloss online": 15.0},
            facts={"family": "transport", "reduction": "Sinkhorn divergence, gradient", "D": 2, "N": 10_000},
        ),
    ]
)
