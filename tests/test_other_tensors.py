"""Tensors of other kinds, in the place of each tensor of each public function: a TypeError that says what to do."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

import gwf_fast as gwf
from tests.fuzz.calls import FUNCTIONS, Call, Choice, draw
from tests.fuzz.function import make


class Subclass(Tensor):
    """A tensor with behaviour of its own."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    """A mesh of this one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "csr": lambda t: t.to_sparse_csr(),
    "nested": lambda t: torch.nested.nested_tensor(list(t) if t.ndim > 1 else [t]),
    "jagged": lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
    "subclass": lambda t: t.as_subclass(Subclass),
}


@functools.cache
def usual(name: str) -> Call:
    """A call that goes well."""
    for number in range(10_000):
        call = draw(0, number, Choice(only=name.replace(".", r"\."), mode="plain"))
        kind = call["dtype"], call["place"], call["batch"], call["ragged"], call["scale"]
        if kind == ("float32", "plain", [], False, 1.0) and min(call["n"], call["m"]) > 3 and not call.get("backend"):
            return call | {"x_layout": "contiguous", "y_layout": "contiguous"}
    raise AssertionError(name)


def arguments(name: str) -> list[str]:
    """The tensors of a call, without parameters of networks, which are modules'."""
    return [a for a in usual(name)["tensors"] if a[0] not in "wbs" or not a[1:].isdigit()]


# A network is as its modules are, which is the last test's; features are multiplied before they are looked at.
CASES = [(name, argument) for name in FUNCTIONS if name != "nn.MLP" for argument in arguments(name)]


def refusal(name: str, argument: str, other: Callable[[Tensor], Tensor]) -> str:
    function, call = FUNCTIONS[name], usual(name)
    tensors, lengths = make(function, call)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # prototypes of PyTorch's
        try:
            replaced = other(tensors[argument])
        except (RuntimeError, ValueError, IndexError) as error:
            pytest.skip(f"there is no such tensor: {str(error)[:80]}")
        with pytest.raises(TypeError) as caught:
            function(tensors | {argument: replaced}, lengths, call)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "argument"), CASES)
def test_other_kinds_are_refused_by_name(name: str, argument: str, kind: str) -> None:
    said = refusal(name, argument, KINDS[kind])
    assert len(said.splitlines()) == 1, said
    assert argument in said or "tensor" in said, said


# All tensors of a call are DTensors or none, and who has one tensor takes it (tests/distributed).
MIXED = [(name, of) for name, of in CASES if not (len(arguments(name)) == 1 and hasattr(gwf.distributed, name))]


@pytest.mark.parametrize("placement", [Shard(0), Replicate()], ids=str)
@pytest.mark.parametrize(("name", "argument"), MIXED)
def test_distributed_tensors_are_refused_by_name(name: str, argument: str, placement: Any, mesh: Any) -> None:
    said = refusal(name, argument, lambda t: DTensor.from_local(t, mesh, [placement]))
    assert len(said.splitlines()) == 1, said
    assert argument in said or "DTensor" in said, said


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_takes_what_its_modules_take(kind: str) -> None:
    net = gwf.nn.MLP([3, 4, 2], "tanh")
    twin = torch.nn.Sequential(*net)
    x = KINDS[kind](torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    try:
        want = twin(x)
    except (RuntimeError, NotImplementedError, TypeError):
        with pytest.raises((RuntimeError, NotImplementedError, TypeError, ValueError)):
            net(x)
        return
    got = net(x)
    assert type(got) is type(want)
    assert got.layout == want.layout
