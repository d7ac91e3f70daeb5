"""The engine "fused": the whole inner loop of a JKO step in compiled code, for the networks of this package.

On the CPU that is a C++ loop, on CUDA devices one persistent kernel. Minibatches are those of the engine "torch", and
so are the results, to rounding: tiles and the order of sums are fixed, so that they don't depend on the number of
threads either.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from gwf_fast.flows.engines.base import Engine, StepProblem, Watch
from gwf_fast.flows.engines.forms import FusedForm, refuses_functional, refuses_on_device, single_critic
from gwf_fast.flows.engines.threads import ThreadChoice
from gwf_fast.flows.training import CHECK_EVERY, Training
from gwf_fast.functionals.adversarial import IPM
from gwf_fast.functionals.base import KL, Functional, terms_of
from gwf_fast.nn import MLP
from gwf_fast.ops.mlp import WIDEST_FUSED
from gwf_fast.ops.table import BACKENDS
from gwf_fast.potentials import BayesianLogisticRegression
from gwf_fast.randomness.draws import Draws

_DTYPES = (torch.float32, torch.float64)
_LOOPS = {"cpu": "cpp.primal_dual", "cuda": "cuda.primal_dual"}
"""Modules of the compiled loop by device."""


@functools.cache
def _kernels(device: str = "cpu") -> ModuleType:
    """The compiled loop, loaded on first use: importing this package must not need it."""
    return importlib.import_module(f"gwf_fast.kernels.{_LOOPS[device]}")


class FusedEngine(Engine):
    """Algorithm 1 of Fan et al. (2022) in one compiled loop."""

    name = "fused"

    @override
    def refuses(
        self, functional: Functional, map: nn.Module, critic: nn.Module | None, training: Training
    ) -> str | None:
        reason = refuses_functional(functional)
        if reason is not None:
            return reason
        critic = single_critic(functional, critic)
        for name, module in (("map", map), ("critic", critic)):
            reason = None if module is None else _refuses_network(module)
            if reason is not None:
                return f"the {name} {reason}"
        if next(map.parameters()).device.type == "cuda":
            reason = _refuses_on_device(functional, map, critic, training)
            if reason is not None:
                return reason
        if critic is None:
            return None
        assert isinstance(map, MLP)
        assert isinstance(critic, MLP)
        if critic.config["output"] is not None or critic.spec.residual or critic.spec.sizes[-1] != 1:
            return f"the critic must have one raw output, got {critic.config}"
        if map.spec.sizes[-1] != critic.spec.sizes[0]:
            return f"the critic takes {critic.spec.sizes[0]} dimensions, the map gives {map.spec.sizes[-1]}"
        if training.dropouts[1] and any(isinstance(term, IPM) for _, term in terms_of(functional)):
            return "it has no dropout of a critic where there is a gradient penalty"
        return None

    @override
    def solve(self, problem: StepProblem) -> None:
        with torch.no_grad():
            loop = _kernels(problem.anchors.device.type).PrimalDual(compiled_problem(problem))
        training, watch, threads = problem.training, Watch(problem), ThreadChoice()
        done = 0
        while done < training.iterations:
            count = min(CHECK_EVERY, training.iterations - done)
            report = threads.run(loop, done, count)
            critic_loss = None if problem.critic is None else report["critic_loss"]
            done += int(report["iterations"])
            if watch.stops(done, report["map_loss"], report["mean_map_loss"], critic_loss):
                break
        loop.write_back()
        _advance(problem.map_optimizer, done * training.map_steps)
        if problem.critic_optimizer is not None:
            _advance(problem.critic_optimizer, done * training.critic_steps)


def _advance(optimizer: torch.optim.Optimizer, steps: int) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["step"] += steps


def _refuses_network(module: nn.Module | None) -> str | None:
    if type(module) is not MLP:
        return f"is a {type(module).__name__}, not a gwf_fast.nn.MLP"
    if not module.matches_spec():
        return "has layers that were replaced, changed or hooked into"
    if parametrize.is_parametrized(module) or any(parametrize.is_parametrized(layer) for layer in module):
        return "has a parametrization"
    if max(module.spec.sizes) > WIDEST_FUSED:
        return f"is wider than {WIDEST_FUSED}: {list(module.spec.sizes)}"
    parameters = module.parameter_list()
    if [None if p is None else p.shape for p in parameters] != module.shapes:
        return "has parameters of other shapes than its spec"
    for parameter in parameters:
        if parameter.dtype != parameters[0].dtype:
            return f"has parameters of different types, {parameters[0].dtype} and {parameter.dtype}"
        if parameter.device.type not in _LOOPS or parameter.dtype not in _DTYPES:
            return f"is {parameter.dtype} on {parameter.device}, not float32 or float64 on the CPU or a CUDA device"
        if not parameter.requires_grad or not parameter.is_contiguous():
            return "has frozen or non-contiguous parameters"
    return None


def _refuses_on_device(
    functional: Functional, map: nn.Module, critic: nn.Module | None, training: Training
) -> str | None:
    missing = BACKENDS["cuda"].missing(next(map.parameters()).device)
    if missing is not None:
        return f"on CUDA it {missing}"
    reason = refuses_on_device(functional)
    if reason is not None:
        return reason
    assert isinstance(map, MLP)
    assert isinstance(critic, MLP)
    ((_, term),) = terms_of(functional)
    penalty = isinstance(term, IPM)
    if penalty and set(critic.spec.functions[:-1]) - {"leaky"}:
        return "on CUDA the critic of a gradient penalty must have leaky units: prelu, leaky_relu or relu"
    if any(training.dropouts):
        return "on CUDA it has no dropout"
    like, sizes = next(map.parameters()), (map.spec.sizes, critic.spec.sizes)
    logistic = isinstance(term, KL) and isinstance(term.density, BayesianLogisticRegression)
    reason = _kernels("cuda").refusal(like, training.batch_size, *sizes, penalty=penalty, logistic=logistic)
    return None if reason is None else f"on CUDA {reason}"


def compiled_problem(problem: StepProblem) -> Any:
    """The step as the compiled loop takes it. Creates the optimisers' states where there are none."""
    training, anchors, kernels = problem.training, problem.anchors, _kernels()
    assert isinstance(problem.map, MLP)
    for verb, width, pool in (("takes", 0, problem.inputs), ("gives", -1, anchors)):
        if problem.map.spec.sizes[width] != pool.shape[1]:
            owner = "particles have" if pool is anchors else "noise has"
            raise ValueError(f"map: {verb} {problem.map.spec.sizes[width]} dimensions, the {owner} {pool.shape[1]}")
    seed, size, inputs = Draws.from_torch().seed, training.batch_size, problem.inputs.contiguous()
    form = FusedForm(problem.functional, problem.reference, anchors, min(size, len(anchors)), seed)
    critic = single_critic(problem.functional, problem.critic)
    clip, average = training.gradient_clip or 0.0, training.ema or 0.0
    return kernels.Problem(
        inputs=inputs,
        anchors=inputs if anchors is problem.inputs else anchors.contiguous(),
        batch_size=min(size, len(anchors)),
        map=_trained(problem.map, problem.map_optimizer),
        critic=None if critic is None else _trained(critic, problem.critic_optimizer),
        dropout=training.dropouts,
        step_size=problem.step_size,
        critic_steps=0 if critic is None else training.critic_steps,
        map_steps=training.map_steps,
        schedule=torch.tensor([training.rate(j) for j in range(training.iterations)], dtype=torch.float64),
        adam=(*training.betas, 1e-8, training.weight_decay, clip, average),
        seed=seed,
        **form.fields(kernels.Density),
    )


def _trained(module: nn.Module, optimizer: torch.optim.Optimizer | None) -> Any:
    assert isinstance(module, MLP)
    assert optimizer is not None  # a critic comes with its optimiser
    parameters = [parameter.detach() for parameter in module.parameter_list()]
    moments: list[list[Tensor]] = [[], []]
    for parameter in module.parameter_list():
        state = optimizer.state[parameter]
        if not state:  # as torch.optim.AdamW(fused=True) begins
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        moments[0].append(state["exp_avg"])
        moments[1].append(state["exp_avg_sq"])
    steps = int(optimizer.state[module.parameter_list()[-1]]["step"])  # the same for all; one wait for a device
    return _kernels().Trained(module.spec, parameters, *moments, steps, _rate(optimizer))


def _rate(optimizer: torch.optim.Optimizer) -> float:
    group = optimizer.param_groups[0]
    return group.get("initial_lr", group["lr"])
