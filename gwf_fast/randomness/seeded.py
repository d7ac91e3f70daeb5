"""Randomness of a run as a function of (seed, step), from generators of its own: a state needs no generator bytes.

One mechanism for all draws. :func:`seeded` gives the code in a block generators of its own, in this thread (and this
``asyncio`` task) alone; what the package draws itself, it draws from :func:`own_generator`. What users hand over
(targets, initial samplers, modules with dropout, densities that subsample) calls PyTorch without a generator: under
:func:`redirected` such calls are given the block's. PyTorch's process-wide generator is neither read nor moved, so that
flows in several threads are those that they are one after another.

Not reached: draws from NumPy's or Python's generators, ``torch.manual_seed`` in a user's function, modules under
``torch.compile``, fused attention with dropout; and CUDA devices, of which PyTorch's own generator is seeded and put
back, for a CUDA graph records no other.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

_CURRENT: contextvars.ContextVar[torch.Generator | None] = contextvars.ContextVar("gwf_fast_generator", default=None)


@contextlib.contextmanager
def seeded(seed: int, step: int | str, device: torch.device) -> Iterator[None]:
    """Generators of the block's own, for one step of a run; a CUDA device's is PyTorch's, put back afterwards."""
    cuda = device.type == "cuda"
    with contextlib.ExitStack() as stack:
        if cuda:
            stack.enter_context(torch.random.fork_rng(devices=[device]))
        token = _CURRENT.set(torch.Generator())
        stack.callback(_CURRENT.reset, token)
        seed_step(seed, step, device)
        yield


def seed_step(seed: int, step: int | str, device: torch.device) -> None:
    """Seed the generators of the block that this is called in for another step."""
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=7).digest()
    number = int.from_bytes(digest, "little")
    generator = _CURRENT.get()
    assert generator is not None  # in a block of seeded()
    generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)


@contextlib.contextmanager
def reproducible(number: int) -> Iterator[None]:
    """All that PyTorch draws in the block on the CPU comes from a generator of its own, with this seed."""
    token = _CURRENT.set(torch.Generator().manual_seed(number))
    try:
        with redirected():
            yield
    finally:
        _CURRENT.reset(token)


def own_generator(device: torch.device) -> torch.Generator | None:
    """What to draw from on a device: the block's generator; None, which is PyTorch's own, elsewhere."""
    return _CURRENT.get() if device.type == "cpu" else None


def own_seed() -> int:
    """A seed for counters, drawn from the block's generator, or torch's own."""
    return int(torch.randint(2**62, (), generator=own_generator(torch.device("cpu"))))


def redirected() -> contextlib.AbstractContextManager[Any]:
    """A block in which draws without a generator, by whomever, come from that of :func:`seeded`; no-op outside one."""
    generator = _CURRENT.get()
    return contextlib.nullcontext() if generator is None else _Redirected(generator)


def asked(function: Callable[..., Any], *args: Any) -> Any:
    """What a user's function returns, its draws redirected."""
    with redirected():
        return function(*args)


class Redirected(nn.Module):
    """A user's module, its draws redirected. Parameters are the module's.

    Args:
        module: Is called.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @classmethod
    def where_needed(cls, module: nn.Module) -> nn.Module:
        """The module itself where its layers are known to draw nothing."""
        return cls(module) if may_draw(module) else module

    @override
    def forward(self, *args: Any) -> Any:
        return asked(self.module, *args)


_DRAW = ("Dropout", "RReLU", "Attention", "Transformer", "Fractional", "LSTM", "GRU", "RNN")


def may_draw(module: nn.Module) -> bool:
    """Whether a module may draw numbers: one of PyTorch's that does, or one whose code is a user's."""
    if isinstance(module, torch._dynamo.OptimizedModule):
        return False  # its graph is compiled without what redirects
    for part in module.modules():
        home = type(part).__module__.partition(".")[0]
        if home not in ("torch", "gwf_fast") or "forward" in part.__dict__ or part._forward_hooks:
            return True
        if home == "torch" and any(name in type(part).__name__ for name in _DRAW):
            return True
    return False


class _Redirected(TorchDispatchMode):
    """Gives operators that draw a generator, where they have none."""

    is_transparent = True
    """To ``gwf_fast.ops``: all else goes on as it would."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        draw = _drawing(func)
        if draw is None or kwargs.get("generator") is not None or _device(args, kwargs).type != "cpu":
            return func(*args, **kwargs)
        return draw(*args, **{**kwargs, "generator": self._generator})


def _device(args: Any, kwargs: Any) -> torch.device:
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return tensors[0].device if tensors else torch.device(kwargs.get("device") or "cpu")


@functools.cache
def _drawing(func: Any) -> Callable[..., Any] | None:
    """A call of an operator that takes a generator and draws what the operator draws; None where it draws nothing."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    if any(argument.name == "generator" for argument in func._schema.arguments):
        return lambda *args, generator, **kwargs: func(*args, **{**kwargs, "generator": generator})
    packet, name = func.overloadpacket, func._overloadname
    twin = "generator" if name == "default" else f"{name}_generator"
    if twin in packet.overloads():  # randn, rand, randint, randperm; newer: what is like a tensor
        return getattr(packet, twin)
    return _WITHOUT.get(packet)


def _like(fill: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def draw(like: Tensor, *args: Any, generator: torch.Generator, **kwargs: Any) -> Tensor:
        return fill(torch.empty_like(like, **kwargs), *args, generator=generator)

    return draw


def _integers(out: Tensor, *bounds: int, generator: torch.Generator) -> Tensor:
    low, high = bounds if len(bounds) == 2 else (0, bounds[0])
    return out.random_(low, high, generator=generator)


def _dropout(x: Tensor, rate: float, train: bool | None, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if train is False or rate == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = torch.empty_like(x).bernoulli_(1 - rate, generator=generator)
    return (x * kept / (1 - rate) if rate < 1 else torch.zeros_like(x)), kept.bool()


_WITHOUT: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.randn_like: _like(lambda out, generator: out.normal_(generator=generator)),
    torch.ops.aten.rand_like: _like(lambda out, generator: out.uniform_(generator=generator)),
    torch.ops.aten.randint_like: _like(_integers),
    torch.ops.aten.native_dropout: _dropout,
}
"""Operators that take no generator in any form."""
