"""Learning rates by a schedule: numbers of the host, or a table on the device where a counter there picks one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Rates:
    """The learning rates of an optimiser of one loop.

    Args:
        optimizer: Fused Adam or AdamW; its groups are changed by :meth:`set`, until :meth:`put_back`.
        factor: What rates are multiplied by at an iteration, from 0.
        iterations: Of the loop.
        changes: Whether the factor is not always 1.
        counter: The iteration, int64 [1] on the device of the parameters; None for the host's.

    Attributes:
        is_exact: Whether a counter may pick the rates: the fused kernels of CUDA devices read them in float32, which
            float64 parameters would notice. Where it may not, they are the host's.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        factor: Callable[[int], float],
        iterations: int,
        changes: bool,
        counter: Tensor | None,
    ) -> None:
        self._groups, self._factor, self._counter = optimizer.param_groups, factor, counter
        self._initial = [group.get("initial_lr", group["lr"]) for group in self._groups]
        self._tables: list[Tensor] = []
        self._current: list[Tensor] = []
        parameter = self._groups[0]["params"][0]
        self._is_cuda = parameter.device.type == "cuda"
        self.is_exact = not (changes and self._is_cuda and parameter.dtype == torch.float64)
        if changes and self.is_exact and counter is not None:
            dtype = torch.float32 if self._is_cuda else torch.float64
            factors = torch.tensor([factor(j) for j in range(iterations)], dtype=torch.float64)
            for initial in self._initial:
                self._tables.append((initial * factors).to(counter.device, dtype))
                self._current.append(torch.zeros(1, dtype=dtype, device=counter.device))

    def set(self, iteration: int) -> None:
        """For an iteration; that of the counter where there is one."""
        is_captured = self._is_cuda and torch.cuda.is_current_stream_capturing()
        for group, initial in zip(self._groups, self._initial, strict=True):
            group["capturable"] = is_captured  # or Adam refuses; outside a capture it would warn
            if not self._tables:
                group["lr"] = initial * self._factor(iteration)
        for group, table, current in zip(self._groups, self._tables, self._current):
            assert self._counter is not None
            group["lr"] = torch.index_select(table, 0, self._counter, out=current).view(())

    def put_back(self, iteration: int) -> None:
        """As the host has it at an iteration."""
        for group, initial in zip(self._groups, self._initial, strict=True):
            group["lr"], group["capturable"] = initial * self._factor(iteration), False
