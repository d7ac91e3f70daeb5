"""How one JKO step is solved: batch, iterations, rates."""

from __future__ import annotations

from dataclasses import dataclass

from gwf_fast.checkpoint.portable import portable
from gwf_fast.flows.optimization import OptimizerChoice, Schedule, check_optimization, factor, is_number
from gwf_fast.pairs.validation import as_integer

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
        check_optimization(
            lr=self.lr, lr_schedule=self.lr_schedule, betas=self.betas, ema=self.ema, optimizer=self.optimizer
        )
        for name in ("critic_lr", "gamma", "gradient_clip"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value > 0):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
        if not (is_number(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay: expected a number >= 0, got {self.weight_decay!r}")
        for name in ("dropout", "critic_dropout"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 <= value < 1):
                raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")
        if not isinstance(self.milestones, (tuple, list)):
            raise ValueError(f"milestones: expected a tuple, got {self.milestones!r}")
        if any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in self.milestones):
            raise ValueError(f"milestones: expected JKO steps, integers from 1, got {self.milestones!r}")
        for name in ("betas", "milestones"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON knows lists only

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
