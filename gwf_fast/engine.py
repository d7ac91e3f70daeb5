"""Engines: what solves the inner problem of one JKO step.

An engine turns a :class:`StepProblem` into trained modules, and says in ``refuses`` what it can't take. "torch" takes
any ``nn.Module`` and any functional; "fused" is in ``fused_engine.py``. They draw the same minibatches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from gwf_fast.draws import Draws
from gwf_fast.dropout import ASCENTS, DESCENTS, MAP_PASSES, Thinned, begin_pass
from gwf_fast.errors import NonFiniteError
from gwf_fast.functional import Functional
from gwf_fast.nn import MLP
from gwf_fast.samples import batch, batch_rows
from gwf_fast.training import CHECK_EVERY, Training


@dataclass
class StepProblem:
    """One JKO step: inf_T sup_h E |T(u) - x|^2 / (2a) + F(T#rho), over pairs of an input u ~ rho and an anchor x ~ P_k.

    In a composition the input is the anchor; a generator's inputs are its noise u, and its anchors are G_k(u).

    The engine updates map, critic and both optimisers in place. Minibatches come from ``Draws.from_torch()``, all other
    random draws from torch's global generator, which the caller has seeded for this step.

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


def require_shape(name: str, out: object, shape: tuple[int, ...]) -> None:
    """Raise ValueError where a module's output has another shape, before it is broadcast."""
    if not isinstance(out, Tensor) or out.shape != shape:
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"{name}: expected an output of shape {list(shape)}, got {got}")


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


class TorchEngine(Engine):
    """Algorithm 1 of Fan et al. (2022) in plain PyTorch."""

    name = "torch"

    @override
    def refuses(
        self, functional: Functional, map: nn.Module, critic: nn.Module | None, training: Training
    ) -> str | None:
        critics = critic.children() if isinstance(critic, nn.ModuleList) else () if critic is None else (critic,)
        of_map, of_critic = training.dropouts
        for name, rate, modules in (("map", of_map, (map,)), ("critic", of_critic, critics)):
            if rate and not all(isinstance(module, MLP) for module in modules):
                return f"Training(dropout=) is for gwf_fast.nn.MLP; put nn.Dropout into the {name}"
        return None

    @override
    def solve(self, problem: StepProblem) -> None:
        training, functional, reference = problem.training, problem.functional, problem.reference
        map_parameters = [p for p in problem.map.parameters() if p.requires_grad]
        critic_parameters = [p for p in problem.critic.parameters() if p.requires_grad] if problem.critic else []
        average = [p.detach().clone() for p in map_parameters] if training.ema is not None else []
        inverse_2a = 0.5 / problem.step_size
        draws, watch = Draws.from_torch(), Watch(problem)
        net, critic = problem.map, problem.critic
        of_map, of_critic = training.dropouts
        if of_map:
            net = Thinned.of(problem.map, of_map, draws)
        if of_critic and critic is not None:
            critic = Thinned.of(critic, of_critic, draws)
        critic_loss, last_look = None, 0
        total: Tensor | float = 0.0  # a sum on the device: adding to it waits for nothing
        problem.map.train()
        if problem.critic is not None:
            problem.critic.train()
        for j in range(training.iterations):
            draws.begin(j)
            rate = training.rate(j)
            inputs, x = problem.minibatch(draws)
            z = functional.draw(training.batch_size, reference, draws)
            begin_pass(net, MAP_PASSES, 0)
            tx = net(inputs)
            require_shape("map", tx, x.shape)
            if critic is not None:
                still = tx.detach()
                for i in range(training.critic_steps):
                    begin_pass(critic, ASCENTS, i)
                    critic_loss = -functional.critic_objective(critic, still, z, reference)
                    _descend(problem.critic_optimizer, critic_loss, critic_parameters, rate, training.gradient_clip)
            for i in range(training.map_steps):
                if i:
                    begin_pass(net, MAP_PASSES, i)
                    tx = net(inputs)
                begin_pass(critic, DESCENTS, i)
                loss = (tx - x).square().sum() * (inverse_2a / len(x))
                loss = loss + functional.map_objective(critic, tx, z, reference)
                _descend(problem.map_optimizer, loss, map_parameters, rate, training.gradient_clip)
                if training.ema is not None:
                    torch._foreach_lerp_(average, [p.detach() for p in map_parameters], 1 - training.ema)
            total = total + loss.detach()
            if (j + 1) % CHECK_EVERY == 0 or j + 1 == training.iterations:
                mean = float(total) / (j + 1 - last_look)
                if watch.stops(j + 1, loss.item(), mean, None if critic_loss is None else critic_loss.item()):
                    break
                total, last_look = 0.0, j + 1
        with torch.no_grad():
            for parameter, value in zip(map_parameters, average):
                parameter.copy_(value)


def _descend(
    optimizer: torch.optim.Optimizer | None, loss: Tensor, parameters: Sequence[Tensor], rate: float, clip: float | None
) -> None:
    assert optimizer is not None  # a critic comes with its optimiser
    # autograd.grad, not backward: the map's step must not pay for gradients of the critic's parameters
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate
    optimizer.step()


ENGINES: dict[str, Engine] = {"torch": TorchEngine()}
"""Engines by name, the preferred one first. ``fused_engine.py`` enters itself."""


def require_known(name: str | None) -> None:
    """Raise ValueError if there is no engine of this name."""
    if name is not None and name not in ENGINES:
        raise ValueError(f"engine: unknown {name!r}, available: {', '.join(ENGINES)}")


def resolve(
    name: str | None, functional: Functional, map: nn.Module, critic: nn.Module | None, training: Training
) -> Engine:
    """The engine called ``name``, or the first that takes the problem where it is None.

    Raises:
        ValueError: If there is no such engine, or it can't take the problem; with the reason.
    """
    require_known(name)
    reasons = []
    for engine in [ENGINES[name]] if name is not None else ENGINES.values():
        reason = engine.refuses(functional, map, critic, training)
        if reason is None:
            return engine
        reasons.append(f"{engine.name}: {reason}")
    raise ValueError("engine: none can take this flow (" + "; ".join(reasons) + ")")
