"""The four pairwise reductions beside KeOps and PyTorch."""

from __future__ import annotations

import functools

import torch

import gwf_fast as gwf
from bench.peers import keops, tiled
from bench.problem import Problem, clouds, truth
from bench.registry import OURS, Case, Contender, Race, Result, register

REDUCTIONS = ("kernel_sum", "kernel_gradient", "kernel_logsumexp", "kernel_average")
DIMS = (2, 3, 16, 64, 128)
SCALING = (1_000, 3_000, 10_000, 30_000, 100_000)
SLOWEST_PEER_N = 30_000  # peers are left out above: minutes a call


def floor_flops(dim: int) -> float:
    """Work of a pair at the floor of a Gaussian sum: D + 6 cycles for 16 pairs where a cycle is 32 flops."""
    return 2.0 * (dim + 6)


def ours(reduction: str, problem: Problem) -> Contender:
    """The call as a user writes it, without a gradient."""
    kernel = gwf.Riesz() if problem.kernel == "Riesz" else getattr(gwf, problem.kernel)(problem.bandwidth)
    function = getattr(gwf, reduction)
    weights = (problem.weights,) if reduction in ("kernel_sum", "kernel_gradient") else ()

    def contender() -> Result:
        with torch.no_grad():
            return (function(problem.x, problem.y, *weights, kernel=kernel),)

    return contender


def case(reduction: str, kernel: str, dim: int, n: int, peers: tuple[str, ...], family: str, targets: dict) -> Case:
    def prepare(quick: bool) -> Race:
        size = n // 10 if quick else n
        problem = clouds(size, size, dim, kernel)
        make = {
            OURS: functools.partial(ours, reduction, problem),
            "KeOps": functools.partial(keops.reduction, reduction, problem),
            "torch tiled": functools.partial(tiled.eager, reduction, problem),
            "torch.compile": functools.partial(tiled.compiled_sum, problem),
        }
        is_gaussian_sum = (reduction, kernel) == ("kernel_sum", "Gaussian")
        return Race(
            {name: make[name] for name in (OURS, *peers)},
            truth=lambda: (truth(problem, reduction),),
            checked=lambda result: (result[0][problem.rows],),
            pairs=float(size) ** 2,
            flops_per_pair=floor_flops(dim) if is_gaussian_sum else None,
        )

    name = f"{family}/{reduction}/{kernel}/D{dim}" + (f"/N{n}" if family == "scaling" else "")
    facts = {"family": family, "reduction": reduction, "kernel": kernel, "D": dim, "N": n}
    return Case(name, prepare, targets=targets, facts=facts)


def gaussian_cases() -> list[Case]:
    cases = []
    for reduction in REDUCTIONS:
        for dim in DIMS:
            peers: tuple[str, ...] = ("KeOps", "torch tiled")
            targets = {"KeOps": 25.0}
            if reduction == "kernel_sum" and dim in (2, 64):
                peers += ("torch.compile",)
                targets["torch.compile"] = 5.0 if dim == 2 else 3.0
            n = 20_000 if dim < 16 else 10_000
            cases.append(case(reduction, "Gaussian", dim, n, peers, "reductions", targets))
    return cases


register(gaussian_cases())
register(
    case("kernel_sum", kernel, dim, 20_000, ("KeOps",), "kernels", {"KeOps": target})
    for kernel, target in (("Laplace", 25.0), ("IMQ", 25.0), ("Riesz", 12.0))
    for dim in (2, 3)
)
register(
    case("kernel_sum", "Gaussian", 3, n, ("KeOps", "torch tiled") if n <= SLOWEST_PEER_N else (), "scaling", {})
    for n in SCALING
)
