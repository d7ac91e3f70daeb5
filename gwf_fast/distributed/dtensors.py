"""DTensors in the ordinary calls: their shards go to the call of shards, and results come back as DTensors.

Particles lie along the one dimension of a mesh. A set that is whole on every process (``Replicate()``) is dealt out in
even parts, and a result of its rows is put together again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from gwf_fast.distributed.calls import POINTS, WHOLE
from gwf_fast.distributed.collectives import Spread, Total
from gwf_fast.distributed.peers import Peers


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of shards whose tensors are DTensors.

    Raises:
        TypeError: Some are and some are not.
        ValueError: They do not lie on one mesh of one dimension, or are sharded along another than the particles.
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    tensors = {name: value for name, value in bound.arguments.items() if isinstance(value, Tensor)}
    first, mesh = _mesh_of(tensors)
    peers = Peers(mesh.get_group())
    rank = max(t.ndim for name, t in tensors.items() if name not in WHOLE)
    known: dict[int, Tensor] = {}  # one tensor stays one: a set meets itself
    for name, value in tensors.items():
        if id(value) not in known:
            known[id(value)] = _local(name, value, rank, peers)
        bound.arguments[name] = known[id(value)]
    out: Tensor = function(*bound.args, **bound.kwargs, group=mesh.get_group())
    if not function.gives_rows:  # type: ignore[attr-defined]
        return DTensor.from_local(out, mesh, [Replicate()], run_check=False)
    dim = rank - 2  # of the particles, behind the batch
    if isinstance(tensors[first].placements[0], Shard):  # type: ignore[attr-defined]
        counts = peers.exchange("rows of a result", out.shape[dim])
        shape = torch.Size((*out.shape[:dim], sum(counts), *out.shape[dim + 1 :]))
        strides = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(out, mesh, [Shard(dim)], run_check=False, shape=shape, stride=strides)
    return DTensor.from_local(_whole(out, dim, peers), mesh, [Replicate()], run_check=False)


def _mesh_of(tensors: dict[str, Tensor]) -> tuple[str, DeviceMesh]:
    """The first tensor's name, and the mesh of all."""
    first = next(name for name, t in tensors.items() if isinstance(t, DTensor))
    mesh: DeviceMesh = tensors[first].device_mesh  # type: ignore[attr-defined]
    if mesh.ndim != 1:
        raise ValueError(f"{first} must lie on a mesh of one dimension, got {mesh.ndim}")
    for name, t in tensors.items():
        if name in WHOLE and not isinstance(t, DTensor):
            continue
        if not isinstance(t, DTensor):
            raise TypeError(f"{name} must be a DTensor as {first} is, got {type(t).__name__}")
        if t.device_mesh != mesh:
            raise ValueError(f"{name} must lie on the mesh of {first}, {mesh}, got {t.device_mesh}")
    return next(iter(tensors)), mesh


def _local(name: str, value: Tensor, rank: int, peers: Peers) -> Tensor:
    """This process's rows, with a graph."""
    if not isinstance(value, DTensor):
        return value
    (placement,) = value.placements
    points = name in POINTS or value.ndim == rank
    dim = value.ndim - 2 if points else value.ndim - 1
    if name in WHOLE and not isinstance(placement, Replicate):
        raise ValueError(f"{name} must be the same on all processes, Replicate(), got {placement}")
    if isinstance(placement, Shard) and placement.dim % value.ndim == dim:
        local: Tensor = value.to_local()
        return local
    if not isinstance(placement, Replicate):
        raise ValueError(f"{name} must be sharded along its particles, Shard({dim}), or Replicate(), got {placement}")
    whole: Tensor = value.to_local(grad_placements=[Replicate()])
    if name in WHOLE:
        return whole
    first, last = (whole.shape[dim] * r // peers.size for r in (peers.rank, peers.rank + 1))
    spread: Tensor = Spread.apply(whole, peers)
    return spread.narrow(dim, first, last - first)


def _whole(rows: Tensor, dim: int, peers: Peers) -> Tensor:
    """The rows of all processes, on each."""
    counts = peers.exchange("putting rows together", rows.shape[dim])
    before, after = sum(counts[: peers.rank]), sum(counts[peers.rank + 1 :])
    padding = [0, 0] * (rows.ndim - dim - 1) + [before, after]
    whole: Tensor = Total.apply(torch.nn.functional.pad(rows, padding), peers)
    return whole
