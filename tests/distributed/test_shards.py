"""Functions of shards give what one process gives, and so do their derivatives; of uneven and empty shards too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gwf_fast as gwf
from gwf_fast.distributed import drift as drifts_of_shards
from tests.distributed.cases import AS_DTENSORS, CASES, FAST, OF, SHARDS, drawn, many, outcome, shard, squares
from tests.distributed.faults import FAULTS

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
Outcomes = dict[str, dict[str, Tensor]]


def test_drifts_of_shards_are_those_of_the_same_names() -> None:
    for name in drifts_of_shards.__all__:
        assert getattr(drifts_of_shards, name).__name__ == getattr(gwf.drift, name).__name__ == name


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Outcomes]]:
    """What each process of each group found."""
    folder = tmp_path_factory.mktemp("shards")
    command = [sys.executable, "-m", "tests.distributed.workers", str(folder)]
    runs = [subprocess.Popen([*command, str(size)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for size in SHARDS]
    for run in runs:
        _, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
    return {size: [torch.load(folder / f"{size}-{rank}.pt") for rank in range(size)] for size in SHARDS}


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float64, 2), (torch.float64, 3), (torch.float32, 2)],
    ids=["double-2", "double-3", "float-2"],
)
@pytest.mark.parametrize("name", CASES)
def test_shards_give_what_one_process_gives(
    name: str, size: int, dtype: torch.dtype, shards: dict[int, list[Outcomes]]
) -> None:
    if name == "drift, noise" and dtype == torch.float32:
        pytest.skip("what is drawn in float32 are other numbers")
    call, inputs, rows = CASES[name]
    whole = outcome(call, gwf, drawn(torch.float64), inputs, 2 if dtype == torch.float64 else 1)
    found = [each[f"{name}, {dtype}"] for each in shards[size]]
    assert isinstance(found[0], dict), found[0]
    for key in whole:
        parts = [each[key] for each in found]
        is_rows = rows if key == "out" else key.partition("/d")[2] in OF
        if is_rows:
            got = torch.cat(parts)
        else:
            got = parts[0]
            assert all(torch.equal(part, got) for part in parts), key
        want = whole[key]
        assert got.shape == want.shape and got.dtype == dtype, key
        error = (got - want).norm() / want.norm()
        assert error <= TOLERANCE[dtype], (key, float(error))


@pytest.mark.parametrize("size", SHARDS)
@pytest.mark.parametrize("name", FAST)
def test_transforms_add_up_their_coefficients(name: str, size: int, shards: dict[int, list[Any]]) -> None:
    fast, inputs, rows = FAST[name]
    found = [each[f"nufft, {name}"] for each in shards[size]]
    assert isinstance(found[0], dict), found[0]
    parts = [many(data) for data in (shard(drawn(torch.float64), rank, size) for rank in range(size))]
    whole = {key: torch.cat([part[key] for part in parts]) if key in OF else parts[0][key] for key in parts[0]}
    want = outcome(lambda space, data: fast(space, data, "exact"), gwf, whole, inputs, 1)
    for key, value in want.items():
        of_rows = rows if key == "out" else key.partition("/d")[2] in OF
        got = torch.cat([each[key] for each in found]) if of_rows else found[0][key]
        assert (got - value).norm() <= 2e-9 * value.norm(), (key, float((got - value).norm() / value.norm()))


@pytest.mark.parametrize("whole_sources", [False, True])
@pytest.mark.parametrize("name", AS_DTENSORS)
def test_ordinary_calls_take_dtensors(name: str, whole_sources: bool, shards: dict[int, list[Any]]) -> None:
    call, inputs, rows = CASES[name]
    want = squares(call, gwf, drawn(torch.float64), inputs)
    found = [each[f"DTensors, {name}, {whole_sources}"] for each in shards[2]]
    for key, value in want.items():
        assert isinstance(found[0], dict), found[0]
        parts = [each[key] for each in found]
        of = OF.get(key.removeprefix("d/d"), "")
        is_rows = rows if key == "out" else of == "x" or (of == "y" and not whole_sources)
        for got in [torch.cat(parts)] if is_rows else parts:
            torch.testing.assert_close(got, value, rtol=1e-11, atol=1e-12, msg=key)


def test_targets_that_are_whole_give_a_whole_result(shards: dict[int, list[Any]]) -> None:
    want = squares(CASES["sum"][0], gwf, drawn(torch.float64), "x y")
    for each in shards[2]:
        found = each["DTensors, whole targets"]
        torch.testing.assert_close(found["out"], want["out"], rtol=1e-12, atol=0)
        torch.testing.assert_close(found["d/dx"], want["d/dx"], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("size", SHARDS)
def test_an_ordinary_call_with_a_group_is_that_of_shards(size: int, shards: dict[int, list[Any]]) -> None:
    for each in shards[size]:
        assert torch.equal(each["group="], each["sum, torch.float64"]["out"])


@pytest.mark.parametrize("size", SHARDS)
@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_on_one_process_is_told_on_all(name: str, size: int, shards: dict[int, list[Any]]) -> None:
    _, first, others = FAULTS[name]
    for rank in range(size):
        said = shards[size][rank]["faults"][name]
        kind, words = first if rank == 1 else others
        assert said.startswith(f"{kind}: ") and words in said, said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize("size", SHARDS)
def test_after_faults_processes_are_still_in_step(size: int, shards: dict[int, list[Any]]) -> None:
    got = torch.cat([each["after faults"]["out"] for each in shards[size]])
    assert torch.equal(got, torch.cat([each["sum, torch.float64"]["out"] for each in shards[size]]))


@pytest.mark.parametrize("size", SHARDS)
def test_a_rank_that_is_gone_is_missed(size: int, shards: dict[int, list[Any]]) -> None:
    for rank in range(size):
        if rank != 1:
            assert shards[size][rank]["a rank is gone"].startswith("PeerError: a process of the group is gone")


@pytest.mark.parametrize("size", SHARDS)
def test_bytes_are_those_of_the_ring(size: int, shards: dict[int, list[Any]]) -> None:
    """Every block but the one that it got last, and four exchanges of three words."""
    rows = SHARDS[size]["y"]
    for rank in range(size):
        passed = sum(rows) - rows[(rank + 1) % size]
        assert shards[size][rank]["bytes"] == 8 * passed * (3 + 1) + 4 * 24 * (size - 1)


def test_without_a_group() -> None:
    x = torch.randn(5, 2)
    with pytest.raises(
        ValueError, match=r"^group must be one of torch.distributed, which is not initialised"
    ) as caught:
        gwf.distributed.kernel_sum(x, x, kernel=gwf.Gaussian(1.0))
    assert len(str(caught.value).splitlines()) == 1
