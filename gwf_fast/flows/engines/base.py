"""Engines: what solves the inner problem of one JKO step.

An engine turns a :class:`StepProblem` into trained modules, and says in ``refuses`` what it can't take. "torch" takes
any ``nn.Module`` and any functional, "fused" the networks of this package. They draw the same minibatches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gwf_fast.errors import NonFiniteError
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import Functional
from gwf_fast.functionals.evaluation import batch, batch_rows
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


Report = dict[str, float]


class Loop(Protocol):
    """A loop whose result does not depend on the number of threads."""

    def run(self, first: int, count: int, threads: int) -> Report:
        """``count`` iterations; see ``kernels.primal_dual_cpp.PrimalDual.run``."""


class ThreadChoice:
    """Runs a loop with one thread, and with more while each doubling saves a fifth of the time.

    Where threads share an iteration of 50 us, waking them costs more than it gains, and where another process keeps a
    core busy, threads that wait for each other are many times slower than one: so short loops are not tried at all, and
    the choice is made again every other second, or at once when an iteration takes half as long again as it did.

    Args:
        most: Threads at most; None for those of torch.
        clock: Seconds.
    """

    shortest = 3e-4
    """Seconds an iteration from which more threads are tried."""
    trial = 0.005
    """Seconds of a trial, of three iterations at least."""
    lasts = 2.0
    """Seconds until the choice is made again."""

    def __init__(self, most: int | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._most = torch.get_num_threads() if most is None else most
        self._clock = clock
        self.threads = 1
        self._pace: float | None = None  # seconds an iteration with the threads chosen; None: to be chosen
        self._expires = 0.0

    def run(self, loop: Loop, first: int, count: int) -> Report:
        """``count`` iterations, some of them as trials; fewer where the loop ends early."""
        work = _Work(loop, first, count, self._clock)
        while work.left:
            if self._most > 1 and (self._pace is None or self._clock() > self._expires):
                self._choose(work)
                continue
            pace = work.spend(work.left, self.threads)
            if self._pace is not None and self.threads > 1 and pace > 1.5 * self._pace:
                self._pace = None
        return work.report

    def _choose(self, work: _Work) -> None:
        """Spend some of the iterations on trials."""
        threads = 1
        while threads <= self._most and work.left:
            pace = work.spend(1, threads)  # wakes them
            if work.left:
                pace = work.spend(max(3, int(self.trial / max(pace, 1e-9))), threads)
            if threads > 1 and self._pace is not None and pace > 0.8 * self._pace:
                break
            self.threads, self._pace = threads, pace
            if pace < self.shortest:
                break
            threads *= 2
        self._expires = self._clock() + self.lasts


class _Work:
    """Iterations of a loop that are to be done, and the report of those that were."""

    def __init__(self, loop: Loop, first: int, count: int, clock: Callable[[], float]) -> None:
        self._loop, self._next, self._clock = loop, first, clock
        self.left = count
        self.report: Report = {"iterations": 0, "mean_map_loss": 0.0}

    def spend(self, count: int, threads: int) -> float:
        """``count`` iterations, or all that are left; seconds of one. None are left where the loop ended early."""
        count = min(count, self.left)
        start = self._clock()
        part = self._loop.run(self._next, count, threads)
        seconds = self._clock() - start
        before, done = self.report["iterations"], part["iterations"]
        mean = (before * self.report["mean_map_loss"] + done * part["mean_map_loss"]) / max(before + done, 1)
        self.report = {**part, "iterations": before + done, "mean_map_loss": mean}
        self._next += int(done)
        self.left = self.left - count if done == count else 0
        return seconds / count
