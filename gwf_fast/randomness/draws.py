"""Minibatches from counters: what is drawn in an iteration depends on (seed, iteration, which draw it is) alone."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor
from typing_extensions import override

from gwf_fast.ops.dispatch import BACKENDS
from gwf_fast.randomness.seeded import own_seed


@functools.cache
def _kernels() -> ModuleType:
    """The compiled generator, loaded on first use."""
    return importlib.import_module("gwf_fast.kernels.cpp.primal_dual")


@functools.cache
def _device_kernels(device: str) -> ModuleType:
    """The generator of a type of device: where there are no kernels for it, PyTorch's integer arithmetic."""
    served = device == "cuda" and BACKENDS["triton"].absence() is None
    return importlib.import_module("gwf_fast.kernels." + ("triton.philox" if served else "reference.philox"))


class Draws:
    """Philox4x32-10 (Salmon et al., SC 2011). Every engine that asks in the same order sees the same numbers.

    An iteration's draws have streams 0, 1, 2, ... in the order in which they are asked for: the rows of the particles'
    minibatch, then what the terms of the functional draw, one after another. ``kernels/reference/philox.py`` says which
    bits of a stream become which numbers.

    Args:
        seed: Of all draws; 0 to 2^63 - 1.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.begin(0)

    @classmethod
    def from_torch(cls) -> Draws:
        """Seeded by the generator of the block, or torch's own."""
        return cls(own_seed())

    def begin(self, iteration: int) -> None:
        """Start an iteration: the next draw is its first."""
        self._iteration, self._stream = iteration, -1

    def _next(self) -> int:
        self._stream += 1
        return self._stream

    def skip(self) -> None:
        """Leave out a draw, so that those after it stay what they are."""
        self._stream += 1

    def indices(self, n: int, bound: int, device: torch.device) -> Tensor:
        """n integers in 0 .. bound - 1, with replacement, [n] int64."""
        return _kernels().philox_indices(self.seed, self._iteration, self._next(), n, bound).to(device)

    def rows(self, pool: Tensor, n: int) -> Tensor:
        """n rows of a pool [N, D], with replacement, [n, D]: those at :meth:`indices`."""
        return pool[self.indices(n, len(pool), pool.device)]

    def uniforms(self, n: int, like: Tensor) -> Tensor:
        """Uniform in (0, 1), [n], of the dtype and on the device of ``like``."""
        return _kernels().philox_uniforms(self.seed, self._iteration, self._next(), n).to(like)

    def kept(self, stream: int, first: int, n: int, rate: float, like: Tensor) -> Tensor:
        """1 where uniforms first, ..., first + n - 1 of a stream with a number of its own are not below a rate, else 0.

        Returns:
            [n], of the dtype and on the device of ``like``.
        """
        uniforms = _kernels().philox_uniforms(self.seed, self._iteration, stream, first + n)
        return (uniforms[first:] >= rate).to(like)

    def normals(self, n: int, like: Tensor) -> Tensor:
        """Standard normals [n, D] for a vector ``like`` [D]."""
        dtype = _normal_dtype(like)
        return _kernels().philox_normals(self.seed, self._iteration, self._next(), n, len(like), dtype).to(like)


class DeviceDraws(Draws):
    """The same numbers (normals to rounding), made where they are wanted, with the iteration in a tensor there.

    So a CUDA graph of an iteration draws anew whenever it is replayed. Draws for another device are the host's, which
    copies them, as ever.

    Args:
        seed: As of :class:`Draws`.
        device: Where the draws are wanted.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__(seed)
        self.counter = torch.tensor((seed, 0), dtype=torch.int64, device=device)  # what kernels read
        self.iteration = self.counter[1]
        self._on_device = _device_kernels(device.type)

    def _serves(self, device: torch.device) -> bool:
        mine = self.counter.device
        return device.type == mine.type and device.index in (None, mine.index)

    @override
    def indices(self, n: int, bound: int, device: torch.device) -> Tensor:
        if not self._serves(device):
            return super().indices(n, bound, device)
        return self._on_device.philox_indices(self.counter, self._next(), n, bound)

    @override
    def rows(self, pool: Tensor, n: int) -> Tensor:
        if not self._serves(pool.device):
            return super().rows(pool, n)
        return self._on_device.philox_rows(self.counter, self._next(), n, pool)

    @override
    def uniforms(self, n: int, like: Tensor) -> Tensor:
        if not self._serves(like.device):
            return super().uniforms(n, like)
        return self._on_device.philox_uniforms(self.counter, self._next(), n, like.dtype)

    @override
    def kept(self, stream: int, first: int, n: int, rate: float, like: Tensor) -> Tensor:
        if not self._serves(like.device):
            return super().kept(stream, first, n, rate, like)
        return self._on_device.philox_kept(self.counter, stream, first, n, rate, like.dtype)

    @override
    def normals(self, n: int, like: Tensor) -> Tensor:
        if not self._serves(like.device):
            return super().normals(n, like)
        dtype = _normal_dtype(like)
        return self._on_device.philox_normals(self.counter, self._next(), n, len(like), dtype).to(like)


def _normal_dtype(like: Tensor) -> torch.dtype:
    return like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
