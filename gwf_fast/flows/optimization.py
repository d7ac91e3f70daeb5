"""How parameters follow losses: optimisers, rates by a schedule, descents, moving averages.

``JKOFlow``, ``DriftingModel`` and the critics of explicit steps are made of these.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

OptimizerChoice = str | Callable[..., torch.optim.Optimizer] | None
"""None: Adam, as compiled loops have it; the name of a class of ``torch.optim``; or (parameters, lr=) -> optimiser."""

Schedule = str | Callable[[int, int], float]
"""A name of :data:`SCHEDULES`, or (iteration from 0, iterations) -> what the learning rate is multiplied by."""

SCHEDULES = ("constant", "cosine")
USERS_OPTIMIZER = "the optimiser is not this package's Adam"
"""Why a loop that is compiled, or recorded, can't take it."""


def is_number(value: object) -> bool:
    """Whether it is a finite number of Python's."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_optimization(*, lr: object, lr_schedule: object, betas: Any, ema: object, optimizer: object) -> None:
    """Raise ValueError, or TypeError, for what is no setting of an optimisation; the messages name the arguments."""
    if not (is_number(lr) and lr > 0):  # type: ignore[operator]
        raise ValueError(f"lr: expected a positive number, got {lr!r}")
    if not callable(lr_schedule) and lr_schedule not in SCHEDULES:
        raise ValueError(f"lr_schedule: expected one of {', '.join(SCHEDULES)}, got {lr_schedule!r}")
    if not isinstance(betas, (tuple, list)):
        raise ValueError(f"betas: expected a tuple, got {betas!r}")
    if len(betas) != 2 or not all(is_number(beta) and 0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas: expected two numbers in [0, 1), got {betas!r}")
    if ema is not None and not (is_number(ema) and 0 < ema < 1):  # type: ignore[operator]
        raise ValueError(f"ema: expected a number in (0, 1), got {ema!r}")
    known = isinstance(optimizer, str) and getattr(torch.optim, optimizer, None)
    if isinstance(optimizer, str) and not (isinstance(known, type) and issubclass(known, torch.optim.Optimizer)):
        raise ValueError(f"optimizer must be None, the name of a class of torch.optim, or callable, got {optimizer!r}")
    if not (optimizer is None or isinstance(optimizer, str) or callable(optimizer)):
        kind = type(optimizer).__name__
        raise TypeError(f"optimizer must be None, the name of a class of torch.optim, or callable, got {kind}")


def factor(schedule: Schedule, iteration: int, iterations: int) -> float:
    """What a learning rate is multiplied by at an iteration of a loop."""
    if callable(schedule):
        return float(schedule(iteration, iterations))
    return 0.5 * (1 + math.cos(math.pi * iteration / iterations)) if schedule == "cosine" else 1.0


def new_optimizer(
    choice: OptimizerChoice,
    parameters: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float = 0.0,
    carried: dict[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """An optimiser of some parameters.

    Args:
        choice: Which.
        parameters: What it changes.
        lr: Learning rate.
        betas: Decay rates of our Adam; another one has its own.
        weight_decay: Of our Adam, decoupled from the gradient (AdamW); another one has its own.
        carried: The ``state_dict`` of one that it goes on with: what is carried on are the moments, not the rates.
    """
    if choice is None:  # fused: one call for all parameters, CPUs included
        made: Any = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    else:
        make = getattr(torch.optim, choice) if isinstance(choice, str) else choice
        made = make(parameters, lr=lr)
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(f"optimizer must give a torch.optim.Optimizer, got {type(made).__name__}")
    if carried is not None:
        groups = made.state_dict()["param_groups"]
        made.load_state_dict({"state": copy.deepcopy(carried["state"]), "param_groups": groups})
    for group in made.param_groups:
        group |= {"initial_lr": lr, "lr": lr}
    return made


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[Tensor], clip: float | None = None
) -> None:
    """One step down a loss, by some of the parameters that it depends on.

    Args:
        optimizer: Takes the step.
        loss: A scalar.
        parameters: Those of the optimiser; no other gradient is computed.
        clip: Largest norm of their gradient; None for no clipping.
    """
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


@torch.no_grad()
def average_into(means: Sequence[Tensor], values: Sequence[Tensor], decay: float, failed: Tensor | None = None) -> None:
    """One step of moving averages of parameters.

    Args:
        means: Are changed.
        values: What they follow.
        decay: Of the averages.
        failed: Where it is 1, nothing changes; a scalar on the device.
    """
    if not means:
        return
    weight = 1 - decay
    if failed is None:
        torch._foreach_lerp_(list(means), [value.detach() for value in values], weight)
        return
    for mean, value in zip(means, values, strict=True):
        mean.lerp_(value, weight * (1 - failed.to(mean.dtype)))


@torch.no_grad()
def follow(kept: Sequence[Tensor], current: Sequence[Tensor], failed: Tensor) -> None:
    """Copies of buffers (statistics of batches, counters), which are not averaged; nothing where ``failed`` is 1."""
    for copy_, now in zip(kept, current, strict=True):
        copy_.copy_(torch.where(failed == 1, copy_, now))


class Rates:
    """The learning rates of an optimiser of one loop.

    Args:
        optimizer: Its groups are changed by :meth:`set`, until :meth:`put_back`.
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
            if is_captured or group.get("capturable"):
                group["capturable"] = is_captured  # or Adam refuses; outside a capture it would warn
            if not self._tables:
                group["lr"] = initial * self._factor(iteration)
        for group, table, current in zip(self._groups, self._tables, self._current):
            assert self._counter is not None
            group["lr"] = torch.index_select(table, 0, self._counter, out=current).view(())

    def put_back(self, iteration: int) -> None:
        """As the host has it at an iteration."""
        for group, initial in zip(self._groups, self._initial, strict=True):
            group["lr"] = initial * self._factor(iteration)
            if group.get("capturable"):
                group["capturable"] = False
