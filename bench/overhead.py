"""What a call costs when there is next to nothing to compute: N = M = 64, D = 2."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

import gwf_fast as gwf
from bench.measure import detached
from bench.problem import Problem, clouds, truth
from bench.registry import OURS, Case, Contender, Race, Result, register

Function = Callable[[torch.Tensor], torch.Tensor]


def ours_of(problem: Problem) -> Function:
    kernel = gwf.Gaussian(problem.bandwidth)
    return lambda x: gwf.kernel_sum(x, problem.y, problem.weights, kernel=kernel)


def eager_of(problem: Problem) -> Function:
    """The usual three lines; at this size the matrix is no burden."""
    y, w, g = problem.y, problem.weights, problem.g
    return lambda x: torch.exp(-g * (x[:, None] - y).square().sum(-1)) @ w


def calling(mode: str, make: Callable[[Problem], Function], problem: Problem) -> Contender:
    """A call without a graph, with a graph recorded, or with the gradient computed as well."""
    function = make(problem)
    x = problem.x.clone().requires_grad_(mode != "no grad")
    if mode == "no grad":

        def contender() -> Result:
            with torch.no_grad():
                return (function(x),)

    elif mode == "with grad":

        def contender() -> Result:
            return detached(function(x))

    else:

        def contender() -> Result:
            value = function(x)
            torch.autograd.grad(value.sum(), x)
            return detached(value)

    return contender


def prepare(mode: str, quick: bool) -> Race:
    problem = clouds(64, 64, 2)
    return Race(
        {
            OURS: functools.partial(calling, mode, ours_of, problem),
            "torch eager": functools.partial(calling, mode, eager_of, problem),
        },
        truth=lambda: (truth(problem, "kernel_sum"),),
    )


register(
    Case(
        f"overhead/{mode.replace(' ', '-')}",
        functools.partial(prepare, mode),
        limit=limit,
        facts={"family": "overhead", "reduction": f"kernel_sum, {mode}", "kernel": "Gaussian", "D": 2, "N": 64},
    )
    for mode, limit in (("no grad", 10e-6), ("with grad", 20e-6), ("with backward", None))
)
