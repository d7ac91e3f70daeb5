"""PyTorch without an N x M matrix: a tile of rows at a time, eager or compiled.

Eager tiles hold at most 64 rows: larger ones leave the cache and cost page faults, which would make
PyTorch look far slower than it is. The best tile size is found by trying.
"""

from __future__ import annotations

import functools

import torch

from bench.measure import fastest, labelled
from bench.problem import Problem
from bench.registry import Contender

EAGER_TILES = (8, 16, 32, 64)
COMPILED_TILES = (50, 100, 500)


def _augmented(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """X [N, D+2] and Y [M, D+2] with (X Y^T)_ij = -g |x_i - y_j|^2: one product a tile, nothing else."""
    x, y, g = problem.x, problem.y, problem.g
    left = torch.cat([2 * g * x, torch.ones_like(x[:, :1]), -g * x.square().sum(1, keepdim=True)], 1)
    right = torch.cat([y, -g * y.square().sum(1, keepdim=True), torch.ones_like(y[:, :1])], 1)
    return left, right.contiguous()


def eager(reduction: str, problem: Problem) -> Contender:
    """A Gaussian reduction by tiles of an augmented product, with every operation in place."""
    x, y, w, g = problem.x, problem.y, problem.weights, problem.g

    def prepare() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        left, right = _augmented(problem)
        columns = torch.cat([w[:, None] * y, w[:, None]], 1) if reduction == "kernel_gradient" else w
        return left, right, columns

    def reduce(tile: torch.Tensor, rows: torch.Tensor, right: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        logits = tile @ right.T
        if reduction == "kernel_sum":
            return logits.exp_() @ columns
        if reduction == "kernel_logsumexp":
            return logits.logsumexp(1)
        if reduction == "kernel_average":
            return logits.softmax(1) @ y
        moments = logits.exp_() @ columns
        return 2 * g * (moments[:, :-1] - rows * moments[:, -1:])

    def with_tile(size: int) -> tuple[torch.Tensor]:
        left, right, columns = prepare()
        tiles = zip(left.split(size), x.split(size), strict=True)
        return (torch.cat([reduce(tile, rows, right, columns) for tile, rows in tiles]),)

    size, call = fastest({str(size): functools.partial(with_tile, size) for size in EAGER_TILES})
    return labelled(call, f"tile of {size} rows")


def compiled_sum(problem: Problem) -> Contender:
    """A Gaussian sum through torch.compile, which fuses a tile into one loop where D is small."""
    x, y, w, g = problem.x, problem.y, problem.weights, problem.g
    dim = x.shape[1]

    def by_differences(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        # Written out over the coordinates: a sum over them inside the sum over j is not fused.
        r2 = sum(((x[:, None, d] - y[None, :, d]).square() for d in range(dim)), start=x.new_zeros(()))
        return (torch.exp(-g * r2) * w).sum(1)

    def by_product(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x2, y2 = x.square().sum(1, keepdim=True), y.square().sum(1)
        return (torch.exp(g * (2 * (x @ y.T) - x2 - y2)) * w).sum(1)

    function = torch.compile(by_differences if dim <= 4 else by_product, dynamic=False)

    def with_tile(size: int) -> tuple[torch.Tensor]:
        return (torch.cat([function(rows, y, w) for rows in x.split(size)]),)

    # A whole pass is one tile where the loop is fused. Tiles divide N: a shorter last one would be compiled for itself.
    sizes = [size for size in COMPILED_TILES if len(x) % size == 0] + ([len(x)] if dim <= 4 else [])
    candidates: dict[str, Contender] = {str(size): functools.partial(with_tile, size) for size in sizes}
    size, call = fastest(candidates)
    return labelled(call, f"tile of {size} rows")
