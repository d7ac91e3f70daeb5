"""Nearest neighbours beside tiles of torch.cdist and topk, KeOps, and SciPy's tree where there are few dimensions."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import gwf_fast as gwf
from bench.measure import fastest, labelled
from bench.peers import keops
from bench.problem import clouds
from bench.registry import OURS, Case, Contender, Race, Result, register

CHECKED_ROWS = 512


def tiled(x: Tensor, y: Tensor, k: int) -> Contender:
    """Tiles of the dense distances, of the size that is fastest here."""

    def squares(tile: int) -> Result:
        parts = [torch.cdist(rows, y).topk(k, largest=False) for rows in x.split(tile)]
        values, indices = (torch.cat(each) for each in zip(*parts, strict=True))
        return values.square(), indices

    tile, found = fastest({str(tile): functools.partial(squares, tile) for tile in (32, 128, 512)})
    return labelled(found, f"tiles of {tile}")


def by_keops(x: Tensor, y: Tensor, k: int) -> Contender:
    keops.load()
    from pykeops.torch import LazyTensor

    def contender() -> Result:
        squares = ((LazyTensor(x[:, None]) - LazyTensor(y[None])) ** 2).sum(-1)
        return squares.Kmin_argKmin(k, dim=1)

    return contender


def by_tree(x: Tensor, y: Tensor, k: int) -> Contender:
    from scipy.spatial import cKDTree

    def contender() -> Result:
        distances, indices = cKDTree(y.numpy()).query(x.numpy(), k=k, workers=torch.get_num_threads())
        shape = (len(x), k)
        return torch.from_numpy(distances).reshape(shape).square(), torch.from_numpy(indices).reshape(shape)

    return contender


def case(dim: int, k: int, n: int) -> Case:
    def prepare(quick: bool) -> Race:
        problem = clouds(n // 10 if quick else n, n // 10 if quick else n, dim)
        x, y = problem.x, problem.y
        rows = slice(0, CHECKED_ROWS)

        def truth() -> Result:
            return (torch.cdist(x[rows].double(), y.double()).topk(k, largest=False).values.square(),)

        contenders = {
            OURS: lambda: lambda: tuple(gwf.kernel_min(x, y, k=k)),
            "torch tiled": lambda: tiled(x, y, k),
            "KeOps": lambda: by_keops(x, y, k),
        }
        if dim <= 3:
            contenders["SciPy's tree"] = lambda: by_tree(x, y, k)
        return Race(contenders, truth=truth, checked=lambda result: (result[0][rows],), pairs=float(len(x)) ** 2)

    facts = {"family": "nearest", "D": dim, "N": n, "k": k}
    return Case(f"nearest/D{dim}/k{k}", prepare, facts=facts)


register(case(dim, k, 20_000 if dim < 16 else 10_000) for dim in (2, 3, 16, 64) for k in (1, 10))
