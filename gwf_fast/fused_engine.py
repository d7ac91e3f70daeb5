"""The engine "fused": the whole inner loop of a JKO step in compiled code, for the networks of this package on the CPU.

Minibatches are those of the engine "torch", and so are the results, to rounding: tiles and the order of sums are fixed,
so that they don't depend on the number of threads either.
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

from gwf_fast import potentials
from gwf_fast.draws import Draws
from gwf_fast.engine import ENGINES, Engine, StepProblem, Watch
from gwf_fast.errors import NonFiniteError
from gwf_fast.functional import KL, TAME, FDivergence, Functional, JensenShannon
from gwf_fast.nn import MLP
from gwf_fast.nn.functions import activation_of, conjugate_of
from gwf_fast.ops.mlp import WIDEST_FUSED
from gwf_fast.thread_choice import ThreadChoice
from gwf_fast.training import CHECK_EVERY

_DTYPES = (torch.float32, torch.float64)


@functools.cache
def _kernels() -> ModuleType:
    """The compiled loop, loaded on first use: importing this package must not need it."""
    return importlib.import_module("gwf_fast.kernels.primal_dual_cpp")


class FusedEngine(Engine):
    """Algorithm 1 of Fan et al. (2022) in one compiled loop."""

    name = "fused"

    @override
    def refuses(self, functional: Functional, map: nn.Module, critic: nn.Module | None) -> str | None:
        if type(functional) not in (KL, FDivergence, JensenShannon):
            return f"it takes KL and f-divergences, not {type(functional).__name__}"
        target = getattr(functional, "target", None)
        for name, module in (("map", map), ("critic", critic)):
            reason = _refuses_network(module)
            if reason is not None:
                return f"the {name} {reason}"
        assert isinstance(map, MLP)
        assert isinstance(critic, MLP)
        if critic.config["output"] is not None or critic.spec.residual or critic.spec.sizes[-1] != 1:
            return f"the critic must have one raw output, got {critic.config}"
        if map.spec.sizes[-1] != critic.spec.sizes[0]:
            return f"the critic takes {critic.spec.sizes[0]} dimensions, the map gives {map.spec.sizes[-1]}"
        if isinstance(target, Tensor) and target.device.type != "cpu":
            return f"the target is on {target.device}, not the CPU"
        return None

    @override
    def solve(self, problem: StepProblem) -> None:
        assert isinstance(problem.critic, MLP)
        assert problem.critic_optimizer is not None
        with torch.no_grad():
            loop = _kernels().PrimalDual(compiled_problem(problem))
        training, watch, threads = problem.training, Watch(problem), ThreadChoice()
        done = 0
        while done < training.iterations:
            count = min(CHECK_EVERY, training.iterations - done)
            report = threads.run(loop, done, count)
            losses = report["map_loss"], report["mean_map_loss"], report["critic_loss"]
            done += int(report["iterations"])
            if watch.stops(done, *losses):
                break
        loop.write_back()
        for module, optimizer in ((problem.map, problem.map_optimizer), (problem.critic, problem.critic_optimizer)):
            steps = done * (training.map_steps if module is problem.map else training.critic_steps)
            for parameter in module.parameters():
                optimizer.state[parameter]["step"] += steps


def _refuses_network(module: nn.Module | None) -> str | None:
    if type(module) is not MLP:
        return f"is a {type(module).__name__}, not a gwf_fast.nn.MLP"
    if parametrize.is_parametrized(module) or any(parametrize.is_parametrized(layer) for layer in module):
        return "has a parametrization"
    if max(module.spec.sizes) > WIDEST_FUSED:
        return f"is wider than {WIDEST_FUSED}: {list(module.spec.sizes)}"
    for parameter in module.parameters():
        if parameter.device.type != "cpu" or parameter.dtype not in _DTYPES:
            return f"is {parameter.dtype} on {parameter.device}, not float32 or float64 on the CPU"
        if not parameter.requires_grad or not parameter.is_contiguous():
            return "has frozen or non-contiguous parameters"
    return None


def compiled_problem(problem: StepProblem) -> Any:
    """The step as the compiled loop takes it. Creates the optimisers' states where there are none."""
    training, functional, particles = problem.training, problem.functional, problem.anchors
    assert isinstance(functional, (KL, FDivergence))
    assert problem.critic_optimizer is not None
    size, kernels = training.batch_size, _kernels()
    assert isinstance(problem.map, MLP)
    for verb, width, pool in (("takes", 0, problem.inputs), ("gives", -1, problem.anchors)):
        if problem.map.spec.sizes[width] != pool.shape[1]:
            owner = "particles have" if pool is problem.anchors else "noise has"
            raise ValueError(f"map: {verb} {problem.map.spec.sizes[width]} dimensions, the {owner} {pool.shape[1]}")
    fields: dict[str, Any] = {"whitening": None, "density": kernels.Density(), "target": None, "draw_target": None}
    if isinstance(functional, KL):
        mu = problem.reference
        assert isinstance(mu, potentials.Gaussian)
        fields |= {"target_kind": "normal", "target_batch": size, "density": _density(functional, particles)}
        fields |= {"of_model": ("identity", 0.0), "of_target": ("exp_tamed", TAME)}
        fields["whitening"] = (*_tensors(particles.dtype, mu.mean, mu._inverse), mu._log_norm)
    else:
        fields |= _samples(functional, particles, size)
        fields["of_model"] = activation_of(functional.name, functional.parameter)
        fields["of_target"] = conjugate_of(functional.name, functional.parameter)
    clip, average = training.gradient_clip or 0.0, training.ema or 0.0
    inputs = problem.inputs.contiguous()
    return kernels.Problem(
        inputs=inputs,
        anchors=inputs if problem.anchors is problem.inputs else particles.contiguous(),
        batch_size=size,
        map=_trained(problem.map, problem.map_optimizer),
        critic=_trained(problem.critic, problem.critic_optimizer),
        step_size=problem.step_size,
        critic_steps=training.critic_steps,
        map_steps=training.map_steps,
        schedule=torch.tensor([training.rate(j) for j in range(training.iterations)], dtype=torch.float64),
        adam=(*training.betas, 1e-8, training.weight_decay, clip, average),
        seed=Draws.from_torch().seed,
        **fields,
    )


def _tensors(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().to("cpu", dtype).contiguous() for tensor in tensors]


def _trained(module: nn.Module | None, optimizer: torch.optim.Optimizer) -> Any:
    assert isinstance(module, MLP)
    parameters = [parameter.detach() for parameter in module.parameter_list()]
    moments: list[list[Tensor]] = [[], []]
    steps = 0
    for parameter in module.parameter_list():
        state = optimizer.state[parameter]
        if not state:  # as torch.optim.AdamW(fused=True) begins
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        steps = int(state["step"])
        moments[0].append(state["exp_avg"])
        moments[1].append(state["exp_avg_sq"])
    return _kernels().Trained(module.spec, parameters, *moments, steps, _rate(optimizer))


def _rate(optimizer: torch.optim.Optimizer) -> float:
    group = optimizer.param_groups[0]
    return group.get("initial_lr", group["lr"])


def _samples(functional: FDivergence, particles: Tensor, size: int) -> dict[str, Any]:
    """Where the samples of Q come from."""
    target, shape = functional.target, (size, particles.shape[1])
    if isinstance(target, Tensor):
        if target.shape[1] != shape[1]:
            raise ValueError(f"target: expected samples [M, {shape[1]}], got {list(target.shape)}")
        kind = "whole" if size >= len(target) else "samples"
        (samples,) = _tensors(particles.dtype, target)
        return {"target_kind": kind, "target": samples, "target_batch": min(size, len(target))}

    def draw() -> Tensor:
        samples = functional.draw(size, None)
        if not isinstance(samples, Tensor) or samples.shape != shape:
            got = list(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
            raise ValueError(f"target: expected samples {list(shape)} for n = {size}, got {got}")
        return samples

    return {"target_kind": "callback", "target_batch": size, "draw_target": draw}


def _density(functional: KL, particles: Tensor) -> Any:
    """log Q in its fused form, or as a callback."""
    given, dtype = functional.log_density, particles.dtype
    if getattr(given, "__name__", "") == "log_density":
        given = getattr(given, "__self__", given)  # the method of a potential
    make = _kernels().Density
    if isinstance(given, potentials.BayesianLogisticRegression):
        dim = given.dim
    else:
        dim = getattr(given, "means", getattr(given, "mean", particles)).shape[-1]
    if dim != particles.shape[1]:
        raise ValueError(f"log_density: takes {dim} dimensions, the particles have {particles.shape[1]}")
    if type(given) is potentials.Gaussian:
        mean, inverse = _tensors(dtype, given.mean, given._inverse)
        return make("gaussian", points=mean, matrix=inverse, rate=given._log_norm)
    if type(given) is potentials.GaussianMixture:
        means, precision, log_weights = _tensors(dtype, given.means, given._s**-2, given._log_w)
        return make("mixture", points=means, precision=precision, log_weights=log_weights)
    if type(given) is potentials.BayesianLogisticRegression:
        (signed,) = _tensors(dtype, given._signed)
        return make("logistic", points=signed, rate=given.rate)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            value = functional.log_q(x.requires_grad_())
            (slope,) = torch.autograd.grad(value.sum(), x)
        bad = ~value.isfinite()
        if bad.any() and x.isfinite().all():
            raise NonFiniteError(f"log_density gave NaN or infinity at {int(bad.sum())} of {len(x)} points")
        return value.detach(), slope

    return make("callback", evaluate=evaluate)


ENGINES["fused"] = FusedEngine()
ENGINES["torch"] = ENGINES.pop("torch")  # the last resort
