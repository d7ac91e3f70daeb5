"""How the networks of flows are trained: settings, optimisers, rates by a schedule. Steps are ``nn/descent.py``."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gwf_fast.checkpoint.portable import portable
from gwf_fast.pairs.validation import as_integer, as_number, as_positive

OptimizerChoice = str | Callable[..., torch.optim.Optimizer] | None
"""None: Adam, as compiled loops have it; the name of a class of ``torch.optim``; or (parameters, lr=) -> optimiser."""

Schedule = Literal["constant", "cosine"] | Callable[[int, int], float]
"""A name, or (iteration from 0, iterations) -> what the learning rate is multiplied by."""

SCHEDULES = get_args(get_args(Schedule)[0])
USERS_OPTIMIZER = "the optimiser is not this package's Adam"
"""Why a loop that is compiled, or recorded, can't take it."""


def checked_optimization(
    lr: Any, lr_schedule: Any, betas: Any, ema: Any, optimizer: Any
) -> tuple[float, tuple[float, float], float | None]:
    """The rate, betas and decay of an optimisation's settings, as Python's numbers.

    Raises:
        ValueError, TypeError: One of them is no such setting; the messages name the arguments.
    """
    rate = as_positive("lr", lr)
    if not callable(lr_schedule) and lr_schedule not in SCHEDULES:
        raise ValueError(f"lr_schedule must be one of {', '.join(SCHEDULES)}, or callable, got {lr_schedule!r}")
    if not isinstance(betas, (tuple, list)):
        raise TypeError(f"betas must be a tuple, got {betas!r}")
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
    first, second = (as_number("betas", beta, "two numbers in [0, 1)", least=0, below=1) for beta in betas)
    decay = None if ema is None else as_number("ema", ema, "a number in (0, 1)", above=0, below=1)
    known = isinstance(optimizer, str) and getattr(torch.optim, optimizer, None)
    if isinstance(optimizer, str) and not (isinstance(known, type) and issubclass(known, torch.optim.Optimizer)):
        raise ValueError(f"optimizer must be None, the name of a class of torch.optim, or callable, got {optimizer!r}")
    if not (optimizer is None or isinstance(optimizer, str) or callable(optimizer)):
        kind = type(optimizer).__name__
        raise TypeError(f"optimizer must be None, the name of a class of torch.optim, or callable, got {kind}")
    return rate, (first, second), decay


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
    if carried is not None and choice is None:
        _carry_on(made, parameters, carried["state"])
    elif carried is not None:
        groups = made.state_dict()["param_groups"]
        made.load_state_dict({"state": copy.deepcopy(carried["state"]), "param_groups": groups})
    for group in made.param_groups:
        group |= {"initial_lr": lr, "lr": lr}
    return made


def _carry_on(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], state: dict[int, Any]) -> None:
    """As ``load_state_dict`` of a copy, which for Adam's three tensors a parameter takes as long as 50 iterations."""
    for number, values in state.items():
        parameter = parameters[number]
        kept = {name: value.to(parameter).clone() for name, value in values.items() if name != "step"}
        step = values["step"].to(parameter.device, torch.float32).clone()
        optimizer.state[parameter] = {"step": step, **kept}


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


CHECK_EVERY = 50
"""Iterations between two looks at the loss, which each wait for the device."""


@portable
@dataclass(frozen=True)
class Training:
    """Hyperparameters of the inner problem of a JKO step.

    The defaults are those of Fan et al. (2022), appendix F, but for ``gradient_clip``.

    Attributes:
        batch_size: M, samples of P_k and of Gamma an iteration; a set that is not larger is used whole.
        iterations: J1, outer iterations of a JKO step.
        critic_steps: J2, ascents of the critic an iteration, on the same batch.
        map_steps: J3, descents of the map an iteration, on the same batch.
        lr: Learning rate of Adam for the map.
        critic_lr: The same for the critic; None for ``lr``.
        lr_schedule: Within a JKO step, "constant" or "cosine" (down to zero at its end), or a function (iteration from
            0, iterations) -> factor on both rates.
        milestones: JKO steps, the first is 1, from which on both learning rates are ``gamma`` times what they were.
        gamma: See ``milestones``.
        optimizer: None for Adam; the name of a class of ``torch.optim``, or a function (parameters, lr=) -> optimiser,
            for map and critic each. One that is not Adam has its own ``betas`` and ``weight_decay``, and goes to the
            engine "torch".
        betas: Adam's decay rates, for both.
        gradient_clip: Largest norm of a gradient, for both; None for no clipping, as in the paper: a batch with a large
            e^v then spoils Adam's second moments, and flows to densities with steep tails explode.
        dropout: Rate at which hidden units of the map are dropped while it trains, a ``gwf_fast.nn.MLP``; other modules
            have their own ``nn.Dropout``. A step ends with the whole network.
        critic_dropout: The same for the critic; None for ``dropout``.
        weight_decay: Of AdamW (Loshchilov and Hutter, 2019), for both.
        ema: Decay of a moving average of the map's parameters over its descents, which becomes the map of the step;
            None for the parameters themselves.
        patience: A step ends early when the mean loss of the map over ``CHECK_EVERY`` iterations has not fallen for
            this many iterations; None for never.
        warm_start: Whether a map starts from the map of the step before (Fan), or from a new one, as a residual network
            the identity. The critic always goes on from the step before.
        pool_size: Particles that a flow keeps where ``x0`` is a callable.
    """

    batch_size: int = 100
    iterations: int = 600
    critic_steps: int = 3
    map_steps: int = 1
    lr: float = 1e-3
    critic_lr: float | None = None
    lr_schedule: Schedule = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float | None = 1.0
    dropout: float = 0.0
    critic_dropout: float | None = None
    weight_decay: float = 0.0
    ema: float | None = None
    patience: int | None = None
    warm_start: bool = True
    pool_size: int = 4096
    optimizer: OptimizerChoice = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "iterations", "critic_steps", "map_steps", "pool_size", "patience"):
            value = getattr(self, name)
            if value is None and name == "patience":
                continue
            object.__setattr__(self, name, as_integer(name, value))
        checked = checked_optimization(self.lr, self.lr_schedule, self.betas, self.ema, self.optimizer)
        for name, value in zip(("lr", "betas", "ema"), checked, strict=True):
            object.__setattr__(self, name, value)
        for name in ("critic_lr", "gamma", "gradient_clip"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_positive(name, value))
        decay = as_number("weight_decay", self.weight_decay, "a number >= 0", least=0)
        object.__setattr__(self, "weight_decay", decay)
        for name in ("dropout", "critic_dropout"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_number(name, value, "a number in [0, 1)", least=0, below=1))
        if not isinstance(self.milestones, (tuple, list)):
            raise TypeError(f"milestones must be a tuple, got {self.milestones!r}")
        object.__setattr__(self, "milestones", tuple(as_integer("milestones", k) for k in self.milestones))

    @property
    def dropouts(self) -> tuple[float, float]:
        """Of map and critic."""
        return self.dropout, self.dropout if self.critic_dropout is None else self.critic_dropout

    def rates(self, step: int) -> tuple[float, float]:
        """Learning rates of map and critic at the start of a JKO step."""
        factor = self.gamma ** sum(step >= k for k in self.milestones)
        return factor * self.lr, factor * (self.critic_lr or self.lr)

    def rate(self, iteration: int) -> float:
        """The factor on the learning rates at an iteration of a JKO step."""
        return factor(self.lr_schedule, iteration, self.iterations)
