"""Functionals of a distribution alone: the interaction energy and the entropies, with the velocities they give.

:class:`Interaction` has a closed form in samples. :class:`GeneralizedEntropy` has not: it is a supremum over critics,
or, with a bandwidth, the regularised entropy of the blob method (Carrillo, Craig & Patacchini 2019), which has one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from gwf_fast.checkpoint.portable import portable
from gwf_fast.functionals.base import KL, Functional
from gwf_fast.functionals.evaluation import raw_output
from gwf_fast.functionals.forms import CalledBack, CriticForm, Frame, FusedForm, whitening
from gwf_fast.measures.interaction import interaction_velocity
from gwf_fast.nn.divergences import objective
from gwf_fast.pairs.kernels import Kernel
from gwf_fast.pairs.methods import Auto, check_steps_method, steps_tolerance
from gwf_fast.pairs.reductions import kernel_sum
from gwf_fast.pairs.validation import as_number, as_positive
from gwf_fast.potentials import Gaussian
from gwf_fast.randomness.draws import Draws
from gwf_fast.randomness.seeded import own_generator

STEPS = Auto(1e-5)
"""How explicit steps are summed."""

MARGIN = 1.15
"""Radius of the ellipsoid of the entropy's critic, in units of the farthest particle's: what a JKO step may use up."""


@portable
@steps_tolerance
@dataclass(frozen=True, eq=False)
class Interaction(Functional):
    """F(P) = (1/2) E E W(x - x'), x and x' independent.

    A minibatch uses the unbiased estimate, without the pairs of a sample with itself. Explicit steps move all particles
    by all particles (``gwf.forward_step``), in about O(N) where ``method`` allows.

    Args:
        kernel: W, such as ``-Gaussian(0.7) / math.pi`` or ``PowerLaw(2, 0)``.
        method: Of the sums of explicit steps: "exact", ``gwf.Auto``, ``gwf.NUFFT`` or their names.
    """

    kernel: Any
    method: Any = STEPS

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel):
            raise TypeError(f"kernel must be a kernel of gwf_fast, got {type(self.kernel).__name__}")
        check_steps_method(self.method)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that choose a method, for ``kernel_gradient``."""
        return {"method": self.method}

    @override
    def map_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        n = len(x)
        total = kernel_sum(x, x, kernel=self.kernel, exclude_self=True).sum()
        return total * (0.5 / (n * max(n - 1, 1)))

    value = map_objective

    @override
    def velocity(self, x: Tensor, particles: Tensor, critic: nn.Module | None, reference: Any) -> Tensor:
        sources = None if x is particles else particles
        return interaction_velocity(x, sources, kernel=self.kernel, **self.options)


@dataclass(frozen=True)
class Ellipsoid:
    """The set |w(x)| <= radius, with w the whitening of a Gaussian: where an entropy's critic is compared with 1.

    Attributes:
        gaussian: Gives the shape.
        radius: In standard deviations.
    """

    gaussian: Gaussian
    radius: float

    @classmethod
    def around(cls, particles: Tensor) -> Ellipsoid:
        """Holds the particles [N, D] with a margin to move in."""
        gaussian = Gaussian.fit(particles)
        return cls(gaussian, MARGIN * gaussian.whiten(particles).norm(dim=1).max().item())

    @functools.cached_property
    def log_volume(self) -> float:
        """Logarithm of the volume. Kept: it reads the device, and a map descent asks for it."""
        dim = len(self.gaussian.mean)
        ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1) + dim * math.log(self.radius)
        # N(mean) = (2 pi)^(-D/2) det^(-1/2)
        return ball - dim / 2 * math.log(2 * math.pi) - float(self.gaussian.log_density(self.gaussian.mean))

    def coordinates(self, x: Tensor) -> Tensor:
        """x in coordinates in which the ellipsoid is the ball of radius sqrt(D): of the size that networks like."""
        return self.gaussian.whiten(x) * (math.sqrt(x.shape[-1]) / self.radius)

    def sample(self, n: int) -> Tensor:
        """n points, uniform, from the generator of the run or torch's global one, [n, D]."""
        mean = self.gaussian.mean
        # The first D of D + 2 coordinates of a uniform point on a sphere are uniform in the ball.
        generator = own_generator(mean.device)
        w = torch.randn(n, len(mean) + 2, dtype=mean.dtype, device=mean.device, generator=generator)
        return self.gaussian.colour((w / w.norm(dim=1, keepdim=True))[:, :-2] * self.radius)


@portable
@steps_tolerance
@dataclass(frozen=True, eq=False)
class GeneralizedEntropy(Functional):
    """F(P) = int P^m / (m - 1) for m > 1, int P log P for m = 1: its flow is the porous medium (heat) equation.

    Without a bandwidth, by a critic (Fan et al., ICML 2022). For m > 1, U uniform on a set of volume V that holds the
    support, F = V^(1-m) sup_w m/(m-1) E_P w - E_U max(w, 0)^(m/(m-1)), attained at w = (dP/dU)^(m-1); the critic's raw
    output is w. The set is an ellipsoid around the particles, and the critic sees coordinates in which it is a ball.
    For m = 1 it is :class:`KL` against Q = 1.

    With a bandwidth, regularised: F = E f(rho)/rho with rho = phi * P, f the integrand above and phi the normal density
    of standard deviation ``bandwidth``; no critic. The gradient is the blob method's (``gwf.blob_velocity``).

    Args:
        m: The exponent, >= 1.
        bandwidth: Of the mollifier; None for none.
        method: Of the sums of explicit steps with a bandwidth: "exact", ``gwf.Auto``, ``gwf.NUFFT`` or their names.
    """

    m: float
    bandwidth: float | None = None
    method: Any = STEPS
    _kl: Any = field(init=False, repr=False, metadata={"derived": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "m", as_number("m", self.m, "a number >= 1", least=1))
        if self.bandwidth is not None:
            object.__setattr__(self, "bandwidth", as_positive("bandwidth", self.bandwidth))
        check_steps_method(self.method)
        object.__setattr__(self, "_kl", KL(_zero) if self.m == 1 else None)

    @property
    def needs_critic(self) -> bool:  # type: ignore[override]
        """Whether the variational form is used."""
        return self.bandwidth is None

    @property
    def _power(self) -> float:
        return self.m / (self.m - 1)

    @override
    def reference(self, particles: Tensor) -> Any:
        if self.bandwidth is not None:
            return None
        return self._kl.reference(particles) if self._kl else Ellipsoid.around(particles)

    @override
    def draw(self, n: int, reference: Any, draws: Any = None) -> Any:
        return None if self.bandwidth is not None else reference.sample(n)

    @override
    def critic_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        if self._kl:
            return self._kl.critic_objective(critic, x, z, reference)
        w = raw_output(critic, reference.coordinates(torch.cat((x, z))))
        return self._power * w[: len(x)].mean() - (w[len(x) :].clamp(min=0) ** self._power).mean()

    @override
    def map_objective(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        if self.bandwidth is not None:
            from gwf_fast.measures.blob import blob_energy

            return blob_energy(x, self.bandwidth, m=self.m)
        if self._kl:
            return self._kl.map_objective(critic, x, z, reference)
        scale = self._power * math.exp((1 - self.m) * reference.log_volume)
        return scale * raw_output(critic, reference.coordinates(x)).mean()

    @override
    def value(self, critic: nn.Module | None, x: Tensor, z: Any, reference: Any) -> Tensor:
        if self.bandwidth is not None:
            return self.map_objective(critic, x, z, reference)
        if self._kl:
            return self._kl.value(critic, x, z, reference)
        return math.exp((1 - self.m) * reference.log_volume) * self.critic_objective(critic, x, z, reference)

    @override
    def velocity(self, x: Tensor, particles: Tensor, critic: nn.Module | None, reference: Any) -> Tensor:
        if self.bandwidth is None:
            return super().velocity(x, particles, critic, reference)
        from gwf_fast.measures.blob import blob_velocity

        sources = None if x is particles else particles
        return blob_velocity(x, self.bandwidth, m=self.m, sources=sources, method=self.method)

    @override
    def fused_form(self) -> FusedForm | str:
        if self.bandwidth is not None:
            return CalledBack()
        if self._kl:
            return CriticForm(objective("kl_density"), _whitened, frame=whitening)
        return CriticForm(objective("entropy", self.m), _in_the_ball, frame=functools.partial(_ball, self.m))


def _whitened(n: int, mu: Gaussian, draws: Draws) -> Tensor:
    return mu.whiten(mu.sample(n))


def _in_the_ball(n: int, ellipsoid: Ellipsoid, draws: Draws) -> Tensor:
    return ellipsoid.coordinates(ellipsoid.sample(n))


def _ball(m: float, ellipsoid: Ellipsoid) -> Frame:
    mean, matrix = ellipsoid.gaussian.compiled().arrays
    scale = math.sqrt(len(mean)) / ellipsoid.radius
    return Frame(mean, matrix * scale, map_scale=math.exp((1 - m) * ellipsoid.log_volume))


def _zero(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[:-1])
