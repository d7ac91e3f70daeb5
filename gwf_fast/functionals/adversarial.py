"""Functionals of generative adversarial training: integral probability metrics, Donsker-Varadhan, unbalanced MMD.

With a step size that goes to infinity, one JKO step of ``IPM`` is WGAN-GP (Gulrajani et al. 2017) or SN-GAN's critic
(Miyato et al. 2018) with the Wasserstein loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from typing_extensions import override

from gwf_fast.checkpoint.portable import portable
from gwf_fast.functionals.base import Functional, SquaredMMD
from gwf_fast.functionals.evaluation import Target, check_target, draw_target, matched, raw_output
from gwf_fast.functionals.forms import CriticForm, FusedForm
from gwf_fast.nn.divergences import objective
from gwf_fast.nn.objective import gradient_penalty
from gwf_fast.pairs.validation import as_positive
from gwf_fast.randomness.draws import Draws

Constraint = Literal["gradient_penalty", "spectral_norm"]
CONSTRAINTS: tuple[Constraint, ...] = get_args(Constraint)


class _Batch(NamedTuple):
    """Samples of Q, and where the points between them and those of P come from."""

    z: Tensor
    draws: Draws | None


@portable
@dataclass(frozen=True, eq=False)
class IPM(Functional):
    """Integral probability metric sup_phi E_P phi - E_Q phi over 1-Lipschitz phi: the Wasserstein-1 distance.

    Args:
        target: Samples of Q, [M, D] or a callable n -> [n, D].
        constraint: "gradient_penalty": penalty * E (|grad phi| - 1)^2 on random segments between samples of P and Q;
            or "spectral_norm": every linear or convolutional layer is divided by its largest singular value, which
            bounds the slope by 1 for activations whose own slope is at most 1.
        penalty: lambda of the gradient penalty.

    Raises:
        ValueError: If the constraint is unknown, or the penalty not positive.
    """

    target: Target
    constraint: Constraint = "gradient_penalty"
    penalty: float = 10.0
    needs_critic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_target(self.target)
        if self.constraint not in CONSTRAINTS:
            raise ValueError(f"constraint must be one of {', '.join(CONSTRAINTS)}, got {self.constraint!r}")
        object.__setattr__(self, "penalty", as_positive("penalty", self.penalty))

    @override
    def build_critic(self, make: Callable[[], nn.Module]) -> nn.Module | None:
        critic = make()
        if self.constraint == "spectral_norm":
            layers = [m for m in critic.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
            if not layers:
                raise ValueError("critic: spectral_norm needs linear or convolutional layers, got none")
            for layer in layers:
                spectral_norm(layer)
        return critic

    @override
    def draw(self, n: int, reference: Any, draws: Draws | None = None) -> _Batch:
        return _Batch(draw_target(self.target, n, draws), draws)

    @override
    def critic_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        assert critic is not None
        value = self.value(critic, x, z, reference)
        if self.constraint == "spectral_norm":
            return value
        n = min(len(x), len(z.z))
        mixing = None if z.draws is None else z.draws.uniforms(n, x)
        return value - self.penalty * gradient_penalty(critic, x.detach(), matched(z.z, x), mixing)

    @override
    def map_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        return raw_output(critic, x).mean()

    @override
    def value(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        v = raw_output(critic, torch.cat((x, matched(z.z, x))))
        return v[: len(x)].mean() - v[len(x) :].mean()

    @override
    def fused_form(self) -> FusedForm | str:
        if self.constraint != "gradient_penalty":
            return f"has no compiled form with constraint={self.constraint!r}"
        return CriticForm.of_target(objective("ipm"), self.target, self.penalty)


@portable
@dataclass(frozen=True, eq=False)
class DonskerVaradhan(Functional):
    """KL(P | Q) = sup_h E_P h - log E_Q e^h (Donsker & Varadhan 1983), Q given by samples.

    Tighter than the f-divergence form for the same critic; the logarithm makes its minibatch gradient biased (Belghazi
    et al. 2018).

    Args:
        target: Samples of Q, [M, D] or a callable n -> [n, D].
    """

    target: Target
    needs_critic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_target(self.target)

    @override
    def draw(self, n: int, reference: Any, draws: Draws | None = None) -> Tensor:
        return draw_target(self.target, n, draws)

    @override
    def critic_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        v = raw_output(critic, torch.cat((x, matched(z, x))))
        return v[: len(x)].mean() - v[len(x) :].logsumexp(0) + math.log(len(z))

    @override
    def map_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        return raw_output(critic, x).mean()

    value = critic_objective

    @override
    def fused_form(self) -> FusedForm | str:
        return CriticForm.of_target(objective("donsker_varadhan"), self.target)


@portable
@dataclass(frozen=True, eq=False)
class MMDUnbalanced(SquaredMMD):
    """F(P) = (strength / 2) MMD_k(P, Q)^2: a soft end constraint, in place of P = Q.

    With step_size = 1/2 one JKO step is inf_T E|x - T x|^2 + (strength / 2) MMD_k(T#mu, nu)^2, optimal transport whose
    second marginal is relaxed by the MMD.

    Args:
        target: Samples of Q, [M, D] or a callable n -> [n, D].
        kernel: A kernel of this package.
        strength: lambda, positive.

    Raises:
        ValueError: If the strength is not positive.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "strength", as_positive("strength", self.strength))

    @override
    def map_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        return self.strength * super().map_objective(critic, x, z, reference)

    value = map_objective

    @override
    def velocity(self, x: Tensor, particles: Tensor, critic: nn.Module | None, reference: Any) -> Tensor:
        return self.strength * super().velocity(x, particles, critic, reference)
