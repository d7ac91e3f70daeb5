"""Algorithm 1 of Fan et al. (2022) in PyTorch, an iteration at a time, for any module and functional."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gwf_fast.flows.engines.graph import plain_attributes
from gwf_fast.flows.training import USERS_OPTIMIZER, Rates
from gwf_fast.functionals.base import terms_of
from gwf_fast.functionals.evaluation import ASKED, critic_objective, is_asked, map_objective
from gwf_fast.nn.descent import average_into, descend
from gwf_fast.nn.dropout import ASCENTS, DESCENTS, MAP_PASSES, Thinned, begin_pass
from gwf_fast.randomness.draws import DeviceDraws, Draws
from gwf_fast.randomness.seeded import Redirected

if TYPE_CHECKING:
    from gwf_fast.flows.engines.base import StepProblem


class InnerLoop:
    """The iterations of one JKO step.

    With :class:`DeviceDraws` an iteration asks nothing of the host: draws and rates come from a counter on the device,
    which it advances, and losses stay there until :meth:`look`. What one iteration hands to the next is in
    :meth:`tensors`. So a recorded one can be repeated.

    Args:
        problem: The step; its modules and optimisers are changed.
        draws: Where its minibatches come from.
    """

    def __init__(self, problem: StepProblem, draws: Draws) -> None:
        training = problem.training
        self._problem, self._draws = problem, draws
        self._map_parameters = [p for p in problem.map.parameters() if p.requires_grad]
        critic = problem.critic
        self._critic_parameters = [p for p in critic.parameters() if p.requires_grad] if critic is not None else []
        is_averaged = training.ema is not None
        self._average = [p.detach().clone() for p in self._map_parameters] if is_averaged else []
        of_map, of_critic = training.dropouts
        network = Redirected.where_needed(problem.map)
        self._net = Thinned.of(problem.map, of_map, draws) if of_map else network
        self._critic = critic
        if critic is not None:
            self._critic = Thinned.of(critic, of_critic, draws) if of_critic else Redirected.where_needed(critic)
        optimizers = [problem.map_optimizer, problem.critic_optimizer]
        counter = draws.iteration.view(1) if isinstance(draws, DeviceDraws) else None
        schedule = training.rate, training.iterations, training.lr_schedule != "constant", counter
        self._rates = [Rates(optimizer, *schedule) for optimizer in optimizers if optimizer is not None]
        # of the map: the sum of its losses since the last look, and the last; of the critic
        self._losses = problem.anchors.new_zeros(3)
        problem.map.train()
        if critic is not None:
            critic.train()

    def refusal(self) -> str | None:
        """Why an iteration can't be repeated as it was recorded, as far as that can be read off the problem."""
        if not isinstance(self._draws, DeviceDraws):
            return "minibatches are drawn on the host"
        if any(is_asked(getattr(term, "target", None)) for _, term in terms_of(self._problem.functional)):
            return ASKED
        if self._problem.training.optimizer is not None:
            return USERS_OPTIMIZER
        if any(not rate.is_exact for rate in self._rates):
            return "PyTorch takes a rate that changes on the device in float32 only, and this flow is in float64"
        return None

    def tensors(self) -> list[Tensor]:
        """What an iteration leaves to the next."""
        problem = self._problem
        found = [self._losses, *self._average]
        if isinstance(self._draws, DeviceDraws):
            found.append(self._draws.counter)
        for module in (problem.map, problem.critic):
            if module is not None:
                found += [*module.parameters(), *module.buffers()]
        for optimizer in (problem.map_optimizer, problem.critic_optimizer):
            if optimizer is not None:
                found += [value for state in optimizer.state.values() for value in state.values()]
        return found

    def settings(self) -> object:
        """What modules and functionals hold on the host."""
        problem = self._problem
        terms = (term for _, term in terms_of(problem.functional))
        return plain_attributes([problem.map, *([problem.critic] if problem.critic is not None else []), *terms])

    def advance(self, iteration: int) -> None:
        """One iteration.

        Args:
            iteration: Its number; where draws are the device's, they go by their own counter.
        """
        problem, draws = self._problem, self._draws
        training, functional, reference = problem.training, problem.functional, problem.reference
        draws.begin(iteration)
        for rate in self._rates:
            rate.set(iteration)
        inputs, x = problem.minibatch(draws)
        z = functional.draw(training.batch_size, reference, draws)
        begin_pass(self._net, MAP_PASSES, 0)
        tx = self._net(inputs)
        require_shape("map", tx, x.shape)
        if self._critic is not None:
            still = tx.detach()
            for i in range(training.critic_steps):
                begin_pass(self._critic, ASCENTS, i)
                critic_loss = -critic_objective(functional, self._critic, still, z, reference)
                self._descend(problem.critic_optimizer, critic_loss, self._critic_parameters)
            self._losses[2] = critic_loss.detach()
        for i in range(training.map_steps):
            if i:
                begin_pass(self._net, MAP_PASSES, i)
                tx = self._net(inputs)
            begin_pass(self._critic, DESCENTS, i)
            loss = (tx - x).square().sum() * (0.5 / problem.step_size / len(x))
            loss = loss + map_objective(functional, self._critic, tx, z, reference)
            self._descend(problem.map_optimizer, loss, self._map_parameters)
            if training.ema is not None:
                average_into(self._average, self._map_parameters, training.ema)
        self._losses[0] += loss.detach()  # a sum on the device: adding to it waits for nothing
        self._losses[1] = loss.detach()
        if isinstance(draws, DeviceDraws):
            draws.iteration += 1

    def look(self, count: int) -> tuple[float, float, float | None]:
        """Losses, in one read of the device: of the map the last, and the mean since the last look; of the critic."""
        total, loss, critic_loss = self._losses.tolist()
        self._losses[0] = 0.0
        return loss, total / count, None if self._problem.critic is None else critic_loss

    def finish(self, done: int) -> None:
        """Put the average of the map's parameters, where there is one, in their place; leave nothing on the device.

        Args:
            done: Iterations.
        """
        with torch.no_grad():
            for parameter, value in zip(self._map_parameters, self._average):
                parameter.copy_(value)
        for rate in self._rates:
            rate.put_back(done - 1)
        for parameter in (*self._map_parameters, *self._critic_parameters):
            parameter.grad = None  # it may lie in the memory of a graph

    def _descend(self, optimizer: torch.optim.Optimizer | None, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        assert optimizer is not None  # a critic comes with its optimiser
        descend(optimizer, loss, parameters, self._problem.training.gradient_clip)


def require_shape(name: str, out: object, shape: tuple[int, ...]) -> None:
    """Raise ValueError where a module's output has another shape, before it is broadcast."""
    if not isinstance(out, Tensor) or out.shape != shape:
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"{name} must have an output of shape {list(shape)}, got {got}")
