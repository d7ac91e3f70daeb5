"""Minibatches from counters: what is drawn in an iteration depends on (seed, iteration, which draw it is) alone."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor


@functools.cache
def _kernels() -> ModuleType:
    """The compiled generator, loaded on first use."""
    return importlib.import_module("gwf_fast.kernels.primal_dual_cpp")


class Draws:
    """Philox4x32-10 (Salmon et al., SC 2011). Every engine that asks in the same order sees the same numbers.

    Args:
        seed: Of all draws; 0 to 2^63 - 1.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.begin(0)

    @classmethod
    def from_torch(cls) -> Draws:
        """Seeded by torch's global generator."""
        return cls(int(torch.randint(2**62, ())))

    def begin(self, iteration: int) -> None:
        """Start an iteration: the next draw is its first."""
        self._iteration, self._stream = iteration, -1

    def _next(self) -> tuple[int, int, int]:
        self._stream += 1
        return self.seed, self._iteration, self._stream

    def skip(self) -> None:
        """Leave out a draw, so that those after it stay what they are."""
        self._stream += 1

    def indices(self, n: int, bound: int, device: torch.device) -> Tensor:
        """n integers in 0 .. bound - 1, with replacement, [n] int64."""
        return _kernels().philox_indices(*self._next(), n, bound).to(device)

    def uniforms(self, n: int, like: Tensor) -> Tensor:
        """Uniform in (0, 1), [n], of the dtype and on the device of ``like``."""
        return _kernels().philox_uniforms(*self._next(), n).to(like)

    def stream(self, number: int, n: int, like: Tensor) -> Tensor:
        """The uniforms of a stream of the iteration that has a number of its own, [n], float64."""
        return _kernels().philox_uniforms(self.seed, self._iteration, number, n).to(like.device)

    def normals(self, n: int, like: Tensor) -> Tensor:
        """Standard normals [n, D] for a vector ``like`` [D]."""
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        return _kernels().philox_normals(*self._next(), n, len(like), dtype).to(like)
