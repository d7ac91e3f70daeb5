"""The launches that a call would make on a GPU, recorded where there is none, whatever kernels they are of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Launch(NamedTuple):
    """One launch: the kernel, its positional arguments, the keyword ones (constants and compiler options), its grid."""

    kernel: Any
    arguments: tuple
    constants: dict
    grid: tuple

    @property
    def programs(self) -> int:
        """How many there are."""
        total = 1
        for count in self.grid:
            total *= int(count)
        return total


def launches(call: Callable[[], object], is_amd: bool = False) -> list[Launch]:
    """Runs a call on small CPU tensors with every Triton kernel replaced by a recorder; what it returns is garbage."""
    from triton.runtime.jit import JITFunction

    from gwf_fast.kernels.triton import launch

    found: list[Launch] = []

    def record(self: Any, *arguments: Any, grid: Any, warmup: bool = False, **constants: Any) -> None:
        shape = grid(dict(zip(self.arg_names, arguments)) | constants) if callable(grid) else grid
        found.append(Launch(self, arguments, constants, tuple(shape)))

    run, check, hip = JITFunction.run, launch.check_device, torch.version.hip
    try:
        JITFunction.run = record
        launch.check_device = lambda x: None
        torch.version.hip = "as if" if is_amd else None
        call()
    finally:
        JITFunction.run, launch.check_device, torch.version.hip = run, check, hip
    return found
