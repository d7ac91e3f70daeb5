"""Functionals in the form that the compiled loop takes: at most one term with a critic, and the rest as a callback."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gwf_fast import potentials
from gwf_fast.errors import NonFiniteError
from gwf_fast.functionals.adversarial import IPM, DonskerVaradhan
from gwf_fast.functionals.base import KL, FDivergence, Functional, JensenShannon, SquaredMMD, Sum, terms_of
from gwf_fast.functionals.energies import GeneralizedEntropy
from gwf_fast.functionals.samples import draw_target, matched
from gwf_fast.nn.divergences import TAME
from gwf_fast.nn.functions import activation_of, conjugate_of
from gwf_fast.randomness.draws import Draws

FUSED_DENSITIES = (potentials.Gaussian, potentials.GaussianMixture, potentials.BayesianLogisticRegression)
WITH_CRITIC = (KL, FDivergence, JensenShannon, IPM, DonskerVaradhan, GeneralizedEntropy)


def refuses_functional(functional: Functional) -> str | None:
    """Why the loop can't take a functional; None where it can."""
    terms = [term for _, term in terms_of(functional)]
    critics = [term for term in terms if term.needs_critic]
    if len(critics) > 1:
        return "it trains one critic, the functional needs " + str(len(critics))
    if not critics:
        return None
    (term,) = critics
    if type(term) not in WITH_CRITIC:
        names = ", ".join(kind.__name__ for kind in WITH_CRITIC)
        return f"of functionals with a critic it takes {names}, not {type(term).__name__}"
    if isinstance(term, IPM) and term.constraint != "gradient_penalty":
        return f"of IPMs it takes those with a gradient penalty, not {term.constraint}"
    for other in terms:
        if len(terms) > 1 and _streams(other) is None:
            return f"it doesn't know what {type(other).__name__} draws"
    return None


def refuses_on_device(functional: Functional) -> str | None:
    """Why the loop of a CUDA device, which calls nothing back, can't take a functional that the CPU's takes."""
    terms = [term for _, term in terms_of(functional)]
    if len(terms) > 1 or not terms[0].needs_critic:
        return "on CUDA it takes functionals of one term, with a critic"
    (term,) = terms
    if isinstance(term, KL) and type(term.density) not in FUSED_DENSITIES:
        return "on CUDA the density of KL must be one of " + ", ".join(kind.__name__ for kind in FUSED_DENSITIES)
    if isinstance(term, GeneralizedEntropy):
        return f"on CUDA it does not take {type(term).__name__}"
    if not isinstance(getattr(term, "target", None), Tensor | None):
        return "on CUDA the target must be a tensor of samples"
    return None


def single_critic(functional: Functional, critic: nn.Module | None) -> nn.Module | None:
    """The critic itself: a sum has a list of them."""
    if isinstance(functional, Sum) and isinstance(critic, nn.ModuleList):
        return critic[0]
    return critic


def _streams(term: Functional) -> int | None:
    """How many counted draws a term makes an iteration, without its penalty's; None where that is not known."""
    if isinstance(term, KL):
        return 1
    if type(term) in WITH_CRITIC or isinstance(term, SquaredMMD):
        return int(isinstance(getattr(term, "target", None), Tensor))
    draws_nothing = type(term).draw is Functional.draw or (not term.needs_critic and hasattr(term, "bandwidth"))
    return 0 if draws_nothing else None


class FusedForm:
    """What the loop is told about a functional.

    Args:
        functional: One that is not refused.
        reference: What it returned for the anchors.
        anchors: Samples of P_k; their dtype is the loop's.
        size: M.
        seed: Of the draws.
    """

    def __init__(self, functional: Functional, reference: Any, anchors: Tensor, size: int, seed: int) -> None:
        references = reference if isinstance(functional, Sum) else (reference,)
        self._terms = [(c, term, r) for (c, term), r in zip(terms_of(functional), references, strict=True)]
        self._anchors, self._size, self._draws = anchors, size, Draws(seed)
        self._rest = [(c, term, r) for c, term, r in self._terms if not term.needs_critic]
        self._samples: list[Any] = [None] * len(self._rest)
        self._log_q: tuple[float, KL] | None = None

    def fields(self, density_type: Callable[..., Any]) -> dict[str, Any]:
        """Fields of ``kernels.primal_dual_cpp.Problem`` by name; ``density_type`` is its ``Density``."""
        nothing: dict[str, Any] = {"target": None, "whitening": None, "density": density_type()}
        numbers: dict[str, Any] = {"target_batch": 0, "penalty": 0.0, "target_stream": 1, "penalty_stream": 1}
        plain: dict[str, Any] = {"of_model": ("identity", 0.0), "of_target": ("identity", 0.0), "log_mean": False}
        fields = {"target_kind": "whole", "coefficient": 1.0, "map_coefficient": 1.0, **nothing, **numbers, **plain}
        for c, term, reference in self._terms:
            if term.needs_critic:
                fields |= {"coefficient": c, "map_coefficient": c}
                fields |= self._critic_fields(c, term, reference, density_type)
                fields["target_stream"] = fields["penalty_stream"]
            fields["penalty_stream"] += _streams(term) or 0
        draws = any(type(term).draw is not Functional.draw for _, term, _ in self._rest)
        fields["begin"] = self._begin if draws or fields["target_kind"] == "callback" else None
        fields["rest"] = self._evaluate if self._rest or self._log_q else None
        return fields

    def _critic_fields(
        self, c: float, term: Functional, reference: Any, density_type: Callable[..., Any]
    ) -> dict[str, Any]:
        if isinstance(term, KL):
            assert isinstance(reference, potentials.Gaussian)
            density = _density(term, self._anchors, density_type)
            if density is None:
                self._log_q = c, term
            return {
                "target_kind": "normal",
                "target_batch": self._size,
                "density": density or density_type(),
                "of_target": ("exp_tamed", TAME),
                "whitening": (*_tensors(self._anchors, reference.mean, reference._inverse), reference._log_norm),
            }
        if isinstance(term, GeneralizedEntropy):
            return self._entropy_fields(c, term, reference)
        fields = self._target_fields(term)
        if isinstance(term, FDivergence):
            fields["of_model"] = activation_of(term.name, term.parameter)
            fields["of_target"] = conjugate_of(term.name, term.parameter)
        if isinstance(term, DonskerVaradhan):
            fields["log_mean"] = True
        if isinstance(term, IPM):
            fields["penalty"] = term.penalty
        return fields

    def _entropy_fields(self, c: float, term: GeneralizedEntropy, reference: Any) -> dict[str, Any]:
        """The critic of an entropy sees whitened coordinates, in which Gamma is drawn by Python."""
        fields: dict[str, Any] = {"target_kind": "callback", "target_batch": self._size}
        gaussian = reference if term.m == 1 else reference.gaussian
        scale = 1.0 if term.m == 1 else math.sqrt(self._anchors.shape[1]) / reference.radius
        mean, matrix = _tensors(self._anchors, gaussian.mean, gaussian._inverse * scale)
        if term.m == 1:
            return {**fields, "of_target": ("exp_tamed", TAME), "whitening": (mean, matrix, gaussian._log_norm)}
        power = term.m / (term.m - 1)
        volume = math.exp((1 - term.m) * reference.log_volume)
        coefficients = {"coefficient": c * power, "map_coefficient": c * power * volume}
        return {**fields, **coefficients, "of_target": ("ramp_power", power), "whitening": (mean, matrix, None)}

    def _target_fields(self, term: Any) -> dict[str, Any]:
        """Where the samples of Q come from."""
        if not isinstance(term.target, Tensor):
            return {"target_kind": "callback", "target_batch": self._size}
        kind = "whole" if self._size >= len(term.target) else "samples"
        (samples,) = _tensors(self._anchors, matched(term.target, self._anchors))
        return {"target_kind": kind, "target": samples, "target_batch": min(self._size, len(samples))}

    def _begin(self, iteration: int) -> Tensor | None:
        """Draw what Python draws, in the order of the torch engine; returns samples of a target that is a callable."""
        self._draws.begin(iteration)
        self._draws.skip()  # the particles
        samples, drawn = None, []
        with torch.no_grad():
            for _, term, reference in self._terms:
                if not term.needs_critic:
                    drawn.append(term.draw(self._size, reference, self._draws))
                    continue
                for _ in range(_streams(term) or 0):
                    self._draws.skip()
                if isinstance(term, GeneralizedEntropy):
                    points = term.draw(self._size, reference, self._draws)
                    samples = reference.whiten(points) if term.m == 1 else reference.coordinates(points)
                target = getattr(term, "target", None)
                if target is not None and not isinstance(target, Tensor):
                    samples = matched(draw_target(target, self._size, self._draws), self._anchors)
        self._samples = drawn
        return samples

    def _evaluate(self, y: Tensor) -> tuple[float, Tensor]:
        """R(y) and its gradient. Called once a descent: each operation here costs as much as one of the user's."""
        with torch.enable_grad():
            y.requires_grad_()
            values = [
                _times(c, term.map_objective(None, y, z, reference))
                for (c, term, reference), z in zip(self._rest, self._samples, strict=True)
            ]
            log_q = None
            if self._log_q is not None:
                c, term = self._log_q
                log_q = term.log_q(y)
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


def _tensors(like: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().to(like).contiguous() for tensor in tensors]


def _density(functional: KL, particles: Tensor, make: Callable[..., Any]) -> Any:
    """log Q in its fused form; None where it has none."""
    given = functional.density
    if type(given) is potentials.Gaussian:
        mean, inverse = _tensors(particles, given.mean, given._inverse)
        return make("gaussian", points=mean, matrix=inverse, rate=given._log_norm)
    if type(given) is potentials.GaussianMixture:
        means, precision, log_weights = _tensors(particles, given.means, given._s**-2, given._log_w)
        return make("mixture", points=means, precision=precision, log_weights=log_weights)
    if type(given) is potentials.BayesianLogisticRegression:
        (signed,) = _tensors(particles, given._signed)
        return make("logistic", points=signed, rate=given.rate)
    return None
