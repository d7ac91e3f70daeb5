"""Processes that run all cases on shards: one that imports PyTorch, and forks the others.

python -m tests.distributed.workers FOLDER SIZE
"""

from __future__ import annotations

import datetime
import functools
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

import gwf_fast as gwf
from tests.distributed.cases import AS_DTENSORS, CASES, FAST, OF, K, drawn, many, outcome, shard, squares
from tests.distributed.faults import FAULTS, told


def spread_out(value: torch.Tensor, name: str, mesh: Any, rank: int, is_whole: bool) -> torch.Tensor:
    """A DTensor in shards as it has them, of which the last are smaller, or whole."""
    if name not in OF:
        return value
    if is_whole:
        return DTensor.from_local(value, mesh, [Replicate()], run_check=False)
    rows = value.chunk(mesh.size())[rank]
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=value.shape, stride=value.stride())


def _with_method(call: Any, method: Any, space: Any, data: Any) -> torch.Tensor:
    out: torch.Tensor = call(space, data, method)
    return out


def of_dtensors(rank: int) -> dict[str, Any]:
    """The same calls of DTensors on two processes."""
    found: dict[str, Any] = {}
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    whole = drawn(torch.float64)
    for name in AS_DTENSORS:
        call, inputs, _ = CASES[name]
        for is_whole in (False, True):
            data = {
                key: spread_out(value, key, mesh, rank, is_whole and OF.get(key) == "y") for key, value in whole.items()
            }
            try:
                found[f"DTensors, {name}, {is_whole}"] = squares(call, gwf, data, inputs)
            except Exception:
                found[f"DTensors, {name}, {is_whole}"] = traceback.format_exc()
    data = {key: spread_out(value, key, mesh, rank, OF.get(key) == "x") for key, value in whole.items()}
    found["DTensors, whole targets"] = squares(CASES["sum"][0], gwf, data, "x y")
    return found


def work(rank: int, size: int, folder: Path) -> None:
    """One process of a group: its results go into a file."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{size}"), size)
    timeout = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    found: dict[str, Any] = {}
    for dtype, order in ((torch.float64, 2), (torch.float32, 1))[: 4 - size]:
        data = shard(drawn(dtype), rank, size)
        for name, (call, inputs, _) in CASES.items():
            try:
                found[f"{name}, {dtype}"] = outcome(call, gwf.distributed, data, inputs, order)
            except Exception:
                found[f"{name}, {dtype}"] = traceback.format_exc()
    transforms = many(shard(drawn(torch.float64), rank, size))
    for name, (fast, inputs, _) in FAST.items():
        try:
            by_transforms = functools.partial(_with_method, fast, gwf.NUFFT(1e-10))
            with gwf.distributed.Traffic() as sent:
                found[f"nufft, {name}"] = outcome(by_transforms, gwf.distributed, transforms, inputs, 1)
            found[f"nufft, {name}"]["bytes"] = torch.tensor(sent.bytes)
        except Exception:
            found[f"nufft, {name}"] = traceback.format_exc()
    if size == 2:
        found |= of_dtensors(rank)
    faulty = shard(drawn(torch.float64), rank, size)
    found["faults"] = {name: told(fault, faulty, rank) for name, (fault, *_) in FAULTS.items()}
    call, *_ = CASES["sum"]
    found["after faults"] = outcome(call, gwf.distributed, faulty, "", 0)
    options: dict[str, Any] = {"kernel": K, "group": dist.group.WORLD}
    found["group="] = gwf.kernel_sum(faulty["x"], faulty["y"], faulty["b"], **options)
    with gwf.distributed.Traffic() as sent:
        gwf.distributed.kernel_sum(faulty["x"], faulty["y"], faulty["b"], kernel=K)
    found["bytes"] = sent.bytes
    torch.save(found, folder / f"{size}-{rank}.pt")
    if rank == 1:  # the others find it gone
        os._exit(0)
    found["a rank is gone"] = told(lambda d, _: call(gwf.distributed, d), faulty, rank)
    torch.save(found, folder / f"{size}-{rank}.pt")


def main() -> None:
    """Forks a process a rank, and ends as the worst of them does."""
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            try:
                work(rank, size, folder)
            except BaseException:  # its own end, not the parent's code below
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)


if __name__ == "__main__":
    main()
