"""Engines: what solves the inner problem of one JKO step.

An engine turns a :class:`StepProblem` into trained modules. There is one, "torch", which takes any ``nn.Module`` and
any functional; another registers itself in ``ENGINES`` and says in ``refuses`` what it can't take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from gwf_fast.errors import NonFiniteError
from gwf_fast.functional import Functional, batch
from gwf_fast.training import Training

CHECK_EVERY = 50
"""Iterations between two looks at the loss: each look waits for the device."""


@dataclass
class StepProblem:
    """One JKO step: inf_T sup_h E_{P_k} |x - T x|^2 / (2a) + F(T#P_k).

    The engine updates map, critic and both optimisers in place. Random draws come from torch's global generator, which
    the caller has seeded for this step.

    Attributes:
        functional: F.
        step_size: a.
        particles: Samples of P_k, [N, D].
        reference: What ``functional.reference(particles)`` returned.
        map: The map to train, [M, D] -> [M, D].
        critic: The critic to train, or None.
        map_optimizer, critic_optimizer: Adam, bound to the parameters of the two.
        training: Hyperparameters.
        on_iteration: Called with (iteration, loss of the map) every ``CHECK_EVERY`` iterations.
    """

    functional: Functional
    step_size: float
    particles: Tensor
    reference: object
    map: nn.Module
    critic: nn.Module | None
    map_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None
    training: Training
    on_iteration: Callable[[int, float], None] | None = None


class Engine(Protocol):
    """What a JKOFlow needs from an engine."""

    name: str

    def refuses(self, functional: Functional, map: nn.Module, critic: nn.Module | None) -> str | None:
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
    def refuses(self, functional: Functional, map: nn.Module, critic: nn.Module | None) -> str | None:
        return None

    @override
    def solve(self, problem: StepProblem) -> None:
        training, functional, reference = problem.training, problem.functional, problem.reference
        map_parameters = [p for p in problem.map.parameters() if p.requires_grad]
        critic_parameters = [p for p in problem.critic.parameters() if p.requires_grad] if problem.critic else []
        inverse_2a = 0.5 / problem.step_size
        problem.map.train()
        if problem.critic is not None:
            problem.critic.train()
        for j in range(training.iterations):
            rate = training.rate(j)
            x = batch(problem.particles, training.batch_size)
            z = functional.draw(training.batch_size, reference)
            tx = problem.map(x)
            if problem.critic is not None:
                still = tx.detach()
                for _ in range(training.critic_steps):
                    loss = -functional.critic_objective(problem.critic, still, z, reference)
                    _descend(problem.critic_optimizer, loss, critic_parameters, rate, training.gradient_clip)
            for i in range(training.map_steps):
                if i:
                    tx = problem.map(x)
                loss = (tx - x).square().sum() * (inverse_2a / len(x))
                loss = loss + functional.map_objective(problem.critic, tx, z, reference)
                _descend(problem.map_optimizer, loss, map_parameters, rate, training.gradient_clip)
            if (j + 1) % CHECK_EVERY == 0 or j + 1 == training.iterations:
                value = loss.item()
                if not math.isfinite(value):
                    raise NonFiniteError(f"iteration {j + 1}: the loss of the map is {value}")
                if problem.on_iteration is not None:
                    problem.on_iteration(j + 1, value)


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
"""Engines by name, the preferred one first."""


def resolve(name: str | None, functional: Functional, map: nn.Module, critic: nn.Module | None) -> Engine:
    """The engine called ``name``, or the first that takes the problem where it is None.

    Raises:
        ValueError: If there is no such engine, or it can't take the problem; with the reason.
    """
    if name is not None and name not in ENGINES:
        raise ValueError(f"engine: unknown {name!r}, available: {', '.join(ENGINES)}")
    reasons = []
    for engine in [ENGINES[name]] if name is not None else ENGINES.values():
        reason = engine.refuses(functional, map, critic)
        if reason is None:
            return engine
        reasons.append(f"{engine.name}: {reason}")
    raise ValueError("engine: none can take this flow (" + "; ".join(reasons) + ")")
