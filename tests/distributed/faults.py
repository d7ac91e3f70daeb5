"""Calls in which something is wrong on one process, or on all: what each of them is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

import gwf_fast as gwf
from gwf_fast.ops import dispatch
from tests.distributed.cases import Data, K

of = gwf.distributed
Fault = Callable[[Data, int], Any]  # of a shard and a rank


def _no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError("no room for a block")


def _out_of_memory(d: Data, rank: int) -> Any:
    of.kernel_sum(d["x"], d["y"], kernel=K)
    found = dict(dispatch._FUNCTIONS) | ({("cpp", "pair_sum"): _no_memory} if rank == 1 else {})
    with mock.patch.object(dispatch, "_FUNCTIONS", found):
        return of.kernel_sum(d["x"], d["y"], kernel=K)


def _backward_without_memory(d: Data, rank: int) -> Any:
    x = d["x"].clone().requires_grad_()
    out = of.kernel_sum(x, d["y"], kernel=K).sum()
    found = dict(dispatch._FUNCTIONS) | ({("cpp", "pair_gradient"): _no_memory} if rank == 1 else {})
    with mock.patch.object(dispatch, "_FUNCTIONS", found):
        return out.backward()


# name: (call, the error and words of rank 1, the error and words of the others)
FAULTS: dict[str, tuple[Fault, tuple[str, str], tuple[str, str]]] = {
    "coordinates": (
        lambda d, r: of.kernel_sum(d["x"][:, : 3 - r], d["y"][:, : 3 - r], kernel=K),
        ("ValueError", "must make the same call, got kernel_sum(x=torch.float64 [rows, 3]"),
        ("ValueError", "x=torch.float64 [rows, 2]"),
    ),
    "dtypes": (
        lambda d, r: of.kernel_gradient(*(d[k].float() if r else d[k] for k in "xy"), kernel=K),
        ("ValueError", "must make the same call"),
        ("ValueError", "torch.float32"),
    ),
    "bandwidths": (
        lambda d, r: of.mmd2(d["x"], d["y"], kernel=gwf.Gaussian(1.0 + r)),
        ("ValueError", "kernel=Gaussian(1.0)"),
        ("ValueError", "kernel=Gaussian(2.0)"),
    ),
    "gradients": (
        lambda d, r: of.kernel_sum(d["x"].clone().requires_grad_(r == 1), d["y"], kernel=K),
        ("ValueError", "that requires grad"),
        ("ValueError", "must make the same call"),
    ),
    "functions": (
        lambda d, r: (of.kernel_sum if r else of.kernel_gradient)(d["x"], d["y"], kernel=K),
        ("ValueError", "kernel_gradient("),
        ("ValueError", "kernel_sum("),
    ),
    "weights": (
        lambda d, r: of.kernel_sum(d["x"], d["y"], d["b"][: len(d["b"]) - (r == 1)], kernel=K),
        ("ValueError", "weights must have shape"),
        ("PeerError", "rank 1: ValueError: weights must have shape"),
    ),
    "memory": (
        _out_of_memory,
        ("PeerError", "rank 1, which is this: MemoryError: no room"),
        ("PeerError", "rank 1: MemoryError: no room"),
    ),
    "memory, backward": (
        _backward_without_memory,
        ("PeerError", "rank 1, which is this: MemoryError: no room"),
        ("PeerError", "rank 1: MemoryError: no room"),
    ),
    "lengths": (
        lambda d, r: of.kernel_sum(d["x"], d["y"], kernel=K, x_lengths=torch.tensor(3)),
        ("ValueError", "x_lengths must be None with shards"),
        ("ValueError", "x_lengths must be None with shards"),
    ),
    "no sources": (
        lambda d, r: of.kernel_average(d["x"], d["y"][:0], kernel=K),
        ("ValueError", "an average needs something to average over"),
        ("ValueError", "an average needs something to average over"),
    ),
    "a kernel": (
        lambda d, r: of.kernel_sum(d["x"], d["y"], kernel=1.0 if r else K),
        ("ValueError", "must make the same call"),
        ("ValueError", "kernel=1.0"),
    ),
}


def told(fault: Fault, data: Data, rank: int) -> str:
    try:
        fault(data, rank)
    except Exception as error:
        kind = next(c for c in type(error).__mro__ if c in (ValueError, of.PeerError, Exception))
        return f"{kind.__name__}: {error}"
    return "nothing"
