"""The engine "torch": the inner loop of a JKO step in plain PyTorch, for any module and any functional."""

from __future__ import annotations

import warnings

from torch import nn
from typing_extensions import override

from gwf_fast.flows.engines.base import Engine, StepProblem, Watch
from gwf_fast.flows.engines.graph import Recorder, Repeated
from gwf_fast.flows.engines.inner_loop import InnerLoop
from gwf_fast.flows.training import CHECK_EVERY, Training
from gwf_fast.functionals.base import Functional
from gwf_fast.nn import MLP
from gwf_fast.randomness.draws import DeviceDraws, Draws


class TorchEngine(Engine):
    """Algorithm 1 of Fan et al. (2022) in plain PyTorch; on CUDA devices an iteration is a graph, where it can be."""

    name = "torch"

    @override
    def refuses(
        self, functional: Functional, map: nn.Module, critic: nn.Module | None, training: Training
    ) -> str | None:
        critics = critic.children() if isinstance(critic, nn.ModuleList) else () if critic is None else (critic,)
        of_map, of_critic = training.dropouts
        for name, rate, modules in (("map", of_map, (map,)), ("critic", of_critic, critics)):
            if rate and not all(isinstance(module, MLP) and module.matches_spec() for module in modules):
                return f"Training(dropout=) is for gwf_fast.nn.MLP as it was made; put nn.Dropout into the {name}"
        return None

    @override
    def solve(self, problem: StepProblem) -> None:
        self._solve(problem, problem.anchors.device.type == "cuda", None)

    def _solve(self, problem: StepProblem, on_device: bool, record: Recorder | None) -> None:
        """Solve a step.

        Args:
            problem: The step.
            on_device: Whether draws and rates are made where the particles are.
            record: See ``Repeated``.
        """
        training, device, watch = problem.training, problem.anchors.device, Watch(problem)
        draws = Draws.from_torch()
        loop = InnerLoop(problem, DeviceDraws(draws.seed, device) if on_device else draws)
        repeated = Repeated(
            loop.advance,
            loop.tensors,
            device,
            total=training.iterations,
            refusal=loop.refusal(),
            record=record,
            settings=loop.settings,
        )
        done = 0
        while done < training.iterations:
            count = min(CHECK_EVERY, training.iterations - done)
            repeated(count)
            done += count
            if watch.stops(done, *loop.look(count)):
                break
        loop.finish(done)
        if repeated.refusal is not None and record is None:
            warnings.warn(f"gwf_fast trains without a CUDA graph, slowly: {repeated.refusal}", stacklevel=2)
