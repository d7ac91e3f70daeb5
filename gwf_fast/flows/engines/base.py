"""Engines: what solves the inner problem of one JKO step.

An engine turns a :class:`StepProblem` into trained modules, and says in ``refuses`` what it can't take. "torch" takes
any ``nn.Module`` and any functional, "fused" the networks of this package. They draw the same minibatches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gwf_fast.errors import NonFiniteError
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import Functional
from gwf_fast.functionals.samples import batch, batch_rows
from gwf_fast.randomness.draws import Draws


@dataclass
class StepProblem:
    """One JKO step: inf_T sup_h E |T(u) - x|^2 / (2a) + F(T#rho), over pairs of an input u ~ rho and an anchor x ~ P_k.

    In a composition the input is the anchor; a generator's inputs are its noise u, and its anchors are G_k(u).

    The engine updates map, critic and both optimisers in place. Minibatches come from ``Draws.from_torch()``, all other
    random draws from the generator that the caller has seeded for this step (``randomness/seeded.py``).

    Attributes:
        functional: F.
        step_size: a.
        inputs: What the map takes, [N, L].
        anchors: Samples of P_k, to which the images of the inputs stay close, [N, D]; the same tensor as ``inputs`` in
            a composition.
        reference: What ``functional.reference(anchors)`` returned.
        map: The map to train, [M, L] -> [M, D].
        critic: The critic to train, or None.
        map_optimizer, critic_optimizer: Adam, bound to the parameters of the two.
        training: Hyperparameters.
        on_iteration: Called with (iteration, loss of the map) every ``CHECK_EVERY`` iterations.
    """

    functional: Functional
    step_size: float
    inputs: Tensor
    anchors: Tensor
    reference: object
    map: nn.Module
    critic: nn.Module | None
    map_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None
    training: Training
    on_iteration: Callable[[int, float], None] | None = None

    def minibatch(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Pairs of inputs and anchors, [M, L] and [M, D]."""
        if self.anchors is self.inputs:
            x = batch(self.inputs, self.training.batch_size, draws)
            return x, x
        rows = batch_rows(self.inputs, self.training.batch_size, draws)
        return (self.inputs, self.anchors) if rows is None else (self.inputs[rows], self.anchors[rows])


class Watch:
    """What an engine does with the losses of each ``CHECK_EVERY`` iterations: checks them, shows them, may stop."""

    def __init__(self, problem: StepProblem) -> None:
        self._on_iteration = problem.on_iteration
        self._patience = problem.training.patience
        self._lowest, self._lowest_at = math.inf, 0

    def stops(self, iteration: int, loss: float, mean: float, critic_loss: float | None) -> bool:
        """Whether the step is to end.

        Args:
            iteration: Iterations done.
            loss: The map's last.
            mean: The map's mean since the look before.
            critic_loss: The critic's last; None without a critic.

        Raises:
            NonFiniteError: If a loss is NaN or infinite.
        """
        for name, value in (("critic", critic_loss), ("map", loss)):
            if value is not None and not math.isfinite(value):
                raise NonFiniteError(f"iteration {iteration}: the loss of the {name} is {value}")
        if self._on_iteration is not None:
            self._on_iteration(iteration, loss)
        if mean < self._lowest:
            self._lowest, self._lowest_at = mean, iteration
        return self._patience is not None and iteration - self._lowest_at >= self._patience


class Engine(Protocol):
    """What a JKOFlow needs from an engine."""

    name: str

    def refuses(
        self, functional: Functional, map: nn.Module, critic: nn.Module | None, training: Training
    ) -> str | None:
        """Why this engine can't solve such a problem; None where it can."""

    def solve(self, problem: StepProblem) -> None:
        """Train map and critic in place.

        Raises:
            NonFiniteError: If the loss is NaN or infinite.
        """
