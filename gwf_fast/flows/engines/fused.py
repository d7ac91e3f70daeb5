"""The engine "fused": the whole inner loop of a JKO step in compiled code, for the networks of this package.

On the CPU that is a C++ loop, on CUDA devices one persistent kernel. Minibatches are those of the engine "torch", and
so are the results, to rounding: tiles and the order of sums are fixed, so that they don't depend on the number of
threads either.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import operator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from gwf_fast.errors import NonFiniteError
from gwf_fast.flows.engines.base import Engine, StepProblem, ThreadChoice, Watch
from gwf_fast.flows.training import CHECK_EVERY, USERS_OPTIMIZER, Training
from gwf_fast.functionals.base import Functional, Sum, terms_of
from gwf_fast.functionals.evaluation import map_objective, matched
from gwf_fast.functionals.forms import CriticForm, FusedForm, form_of
from gwf_fast.kernels.table.mlp import CompiledDensity
from gwf_fast.nn import MLP
from gwf_fast.ops.mlp import WIDEST_FUSED
from gwf_fast.ops.table import BACKENDS
from gwf_fast.randomness.draws import Draws
from gwf_fast.randomness.seeded import own_seed

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
        if training.optimizer is not None:
            return USERS_OPTIMIZER
        reason = _refuses_functional(functional)
        if reason is not None:
            return reason
        critic = _single_critic(functional, critic)
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
        if training.dropouts[1] and any(form.penalty > 0 for form in _critic_forms(functional)):
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


def _refuses_functional(functional: Functional) -> str | None:
    """Why the loop can't take a functional; None where it can."""
    terms = [term for _, term in terms_of(functional)]
    forms = [form_of(term) for term in terms]
    for term, form in zip(terms, forms, strict=True):
        if isinstance(form, str):
            return f"the functional {type(term).__name__} {form}"
    critics = len(_critic_forms(functional))
    if critics > 1:
        return f"it trains one critic, the functional needs {critics}"
    for term, form in zip(terms, forms, strict=True):
        if critics and len(terms) > 1 and not isinstance(form, str) and form.draws is None:
            return f"it doesn't know what {type(term).__name__} draws"
    return None


def _critic_forms(functional: Functional) -> list[CriticForm]:
    forms = [form_of(term) for _, term in terms_of(functional)]
    return [form for form in forms if isinstance(form, CriticForm)]


def _single_critic(functional: Functional, critic: nn.Module | None) -> nn.Module | None:
    """The critic itself: a sum has a list of them."""
    if isinstance(functional, Sum) and isinstance(critic, nn.ModuleList):
        return critic[0]
    return critic


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
    terms = terms_of(functional)
    form = form_of(terms[0][1])
    if len(terms) > 1 or not isinstance(form, CriticForm):
        return "on CUDA it takes functionals of one term, with a critic"
    name = type(terms[0][1]).__name__
    if form.log_q is not None or (form.density.kind != "none" and "cuda" not in form.density.devices):
        return f"on CUDA the density of {name} must have a compiled form for it, as those of gwf_fast.potentials"
    if callable(form.samples):
        return f"on CUDA the target must be a tensor of samples; {name} draws its own"
    assert isinstance(map, MLP)
    assert isinstance(critic, MLP)
    penalty = form.penalty > 0
    if penalty and set(critic.spec.functions[:-1]) - {"leaky"}:
        return "on CUDA the critic of a gradient penalty must have leaky units: prelu, leaky_relu or relu"
    if any(training.dropouts):
        return "on CUDA it has no dropout"
    like, sizes = next(map.parameters()), (map.spec.sizes, critic.spec.sizes)
    kind = form.density.kind
    reason = _kernels("cuda").refusal(like, training.batch_size, *sizes, penalty=penalty, density=kind)
    return None if reason is None else f"on CUDA {reason}"


def compiled_problem(problem: StepProblem) -> Any:
    """The step as the compiled loop takes it. Creates the optimisers' states where there are none."""
    training, anchors, kernels = problem.training, problem.anchors, _kernels()
    assert isinstance(problem.map, MLP)
    for verb, width, pool in (("takes", 0, problem.inputs), ("gives", -1, anchors)):
        if problem.map.spec.sizes[width] != pool.shape[1]:
            owner = "particles have" if pool is anchors else "noise has"
            raise ValueError(f"map: {verb} {problem.map.spec.sizes[width]} dimensions, the {owner} {pool.shape[1]}")
    seed, size, inputs = own_seed(), training.batch_size, problem.inputs.contiguous()
    terms = _Terms(problem.functional, problem.reference, anchors, min(size, len(anchors)), seed)
    critic = _single_critic(problem.functional, problem.critic)
    beta1, beta2 = training.betas
    map_dropout, critic_dropout = training.dropouts
    numbers: dict[str, Any] = {"batch": min(size, len(anchors)), "seed": seed, "step_size": problem.step_size}
    numbers |= {"critic_steps": 0 if critic is None else training.critic_steps, "map_steps": training.map_steps}
    numbers |= {"map_dropout": map_dropout, "critic_dropout": critic_dropout}
    numbers |= {"beta1": beta1, "beta2": beta2, "epsilon": 1e-8, "weight_decay": training.weight_decay}
    numbers |= {"clip": training.gradient_clip or 0.0, "average": training.ema or 0.0}
    return kernels.Problem(
        numbers=numbers | terms.numbers(),
        inputs=inputs,
        anchors=inputs if anchors is problem.inputs else anchors.contiguous(),
        map=_trained(problem.map, problem.map_optimizer),
        critic=None if critic is None else _trained(critic, problem.critic_optimizer),
        schedule=_schedule(training),
        **terms.parts(),
    )


def _schedule(training: Training) -> Tensor:  # [J1]
    if training.lr_schedule == "constant":
        return torch.ones(training.iterations, dtype=torch.float64)
    return torch.tensor([training.rate(j) for j in range(training.iterations)], dtype=torch.float64)


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


class _Terms:
    """What the loop is told about a functional: at most one term with a critic, and the rest as a callback.

    Args:
        functional: One that is not refused.
        reference: What it returned for the anchors.
        anchors: Samples of P_k; their dtype is the loop's.
        size: M.
        seed: Of the draws.
    """

    def __init__(self, functional: Functional, reference: Any, anchors: Tensor, size: int, seed: int) -> None:
        references = reference if isinstance(functional, Sum) else (reference,)
        self._terms: list[tuple[float, Functional, FusedForm, Any]] = []
        for (c, term), r in zip(terms_of(functional), references, strict=True):
            form = form_of(term)
            assert not isinstance(form, str)  # or it would have been refused
            self._terms.append((c, term, form, r))
        self._anchors, self._size, self._seed = anchors, size, seed
        self._rest = [(c, term, r) for c, term, form, r in self._terms if not isinstance(form, CriticForm)]
        self._log_q = [(c, f.log_q) for c, _, f, _ in self._terms if isinstance(f, CriticForm) and f.log_q]
        self._samples: list[Any] = [None] * len(self._rest)

    def numbers(self) -> dict[str, Any]:
        """Its share of ``kernels.cpp.primal_dual.Problem.numbers``."""
        told: dict[str, Any] = {"target_kind": "whole", "target_batch": 0, "coefficient": 1.0, "map_coefficient": 1.0}
        told |= {"penalty": 0.0, "log_mean": False, "with_log_mu": False, "log_norm": 0.0, "target_stream": 1}
        stream = 1
        for c, _, form, reference in self._terms:
            if isinstance(form, CriticForm):
                told |= self._critic_numbers(c, form, reference) | {"target_stream": stream}
            stream += form.draws or 0
        return told | {"penalty_stream": stream}

    def _critic_numbers(self, c: float, form: CriticForm, reference: Any) -> dict[str, Any]:
        frame = None if form.frame is None else form.frame(reference)
        log_norm = None if frame is None else frame.log_norm
        c *= form.objective.scale
        kind, count = "normal" if form.samples is None else "callback", self._size
        if isinstance(form.samples, Tensor):
            kind = "whole" if self._size >= len(form.samples) else "samples"
            count = min(self._size, len(form.samples))
        return {
            "target_kind": kind,
            "target_batch": count,
            "coefficient": c,
            "map_coefficient": c if frame is None else c * frame.map_scale,
            "penalty": form.penalty,
            "log_mean": form.objective.log_mean,
            "with_log_mu": log_norm is not None,
            "log_norm": log_norm or 0.0,
        }

    def parts(self) -> dict[str, Any]:
        """The other fields of ``Problem`` that it fills, by name."""
        told: dict[str, Any] = {"target": None, "whitening": None, "density": CompiledDensity()}
        told |= {"of_model": ("identity", 0.0), "of_target": ("identity", 0.0)}
        asks = any(type(term).draw is not Functional.draw for _, term, _ in self._rest)
        for _, _, form, reference in self._terms:
            if isinstance(form, CriticForm):
                told |= self._critic_parts(form, reference)
                asks = asks or callable(form.samples)
        if asks:
            self._draws = Draws(self._seed)
        told["begin"] = self._begin if asks else None
        told["rest"] = self._evaluate if self._rest or self._log_q else None
        return told

    def _critic_parts(self, form: CriticForm, reference: Any) -> dict[str, Any]:
        frame = None if form.frame is None else form.frame(reference)
        samples = form.samples
        of_model, of_target = form.objective.compiled
        return {
            "target": self._like(matched(samples, self._anchors))[0] if isinstance(samples, Tensor) else None,
            "whitening": None if frame is None else tuple(self._like(frame.mean, frame.matrix)),
            "density": dataclasses.replace(form.density, arrays=tuple(self._like(*form.density.arrays))),
            "of_model": of_model,
            "of_target": of_target,
        }

    def _like(self, *tensors: Tensor) -> list[Tensor]:
        return [tensor.detach().to(self._anchors).contiguous() for tensor in tensors]

    def _begin(self, iteration: int) -> Tensor | None:
        """Draw what Python draws, in the order of the torch engine; returns z where the loop asks for it."""
        draws = self._draws
        draws.begin(iteration)
        draws.skip()  # the particles
        z, drawn = None, []
        with torch.no_grad():
            for _, term, form, reference in self._terms:
                if not isinstance(form, CriticForm):
                    drawn.append(term.draw(self._size, reference, draws))
                    continue
                for _ in range(form.draws):
                    draws.skip()
                if callable(form.samples):
                    z = matched(form.samples(self._size, reference, draws), self._anchors)
        self._samples = drawn
        return z

    def _evaluate(self, y: Tensor) -> tuple[float, Tensor]:
        """R(y) and its gradient. Called once a descent: each operation here costs as much as one of the user's."""
        with torch.enable_grad():
            y.requires_grad_()
            values = [
                _times(c, map_objective(term, None, y, z, reference))
                for (c, term, reference), z in zip(self._rest, self._samples, strict=True)
            ]
            log_q = None
            for c, function in self._log_q:
                log_q = function(y)
                values.append(_times(-c, log_q.mean()))
            total = functools.reduce(operator.add, values)
            value = total.item()
            if log_q is not None and not math.isfinite(value):
                bad = ~log_q.isfinite()
                if bad.any() and y.isfinite().all():
                    raise NonFiniteError(f"log_density gave NaN or infinity at {int(bad.sum())} of {len(y)} points")
            if not total.requires_grad:  # a constant
                return value, torch.zeros_like(y)
            (gradient,) = torch.autograd.grad(total, y, allow_unused=True, materialize_grads=True)
        return value, gradient


def _times(factor: float, value: Tensor) -> Tensor:
    return value if factor == 1 else factor * value
