"""Time discretisations of a flow: which part of a functional a step takes explicitly, and which by a JKO step.

"jko" takes everything implicitly. "forward_backward" moves particles by the interaction energies first, and takes a
JKO step for the rest from there (Salim, Korba & Luise 2020; Fan et al., ICML 2022, section 4). "explicit" is Euler's
method. "crank_nicolson" is half a step explicit, half a step implicit: along the flow of particles dx/dt = v(x, t) the
trapezoidal rule, of second order. (Fan et al. put both halves into one JKO problem, |x - T x|^2 / (2a) + F(P)/2 +
(1/2) int dF/dP(P_k) dP. There the explicit force acts at T x rather than at x, which makes it of first order: for
F = E V it is the JKO step itself.)
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from gwf_fast.errors import NonFiniteError
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import Functional, Sum, terms_of
from gwf_fast.functionals.energies import Interaction
from gwf_fast.functionals.evaluation import batch, critic_objective
from gwf_fast.measures.interaction import forward_step
from gwf_fast.nn.descent import descend
from gwf_fast.randomness.seeded import Redirected

Scheme = Literal["jko", "forward_backward", "crank_nicolson", "explicit"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
Parametrization = Literal["composition", "generator"]
PARAMETRIZATIONS: tuple[Parametrization, ...] = get_args(Parametrization)

KEPT_SOURCES = 1 << 16
"""Particles that an explicit step keeps, for new samples to interact with when they are pushed through it."""


@dataclass(frozen=True)
class Split:
    """What a step does: an explicit step for one functional, then a JKO step for another.

    Attributes:
        explicit: Of the first; None for no such step.
        implicit: Of the second; None for no such step.
        fraction: Of the step size, for each of them.
    """

    explicit: Functional | None
    implicit: Functional | None
    fraction: float = 1.0


def split(scheme: str, functional: Functional) -> Split:
    """Divide a functional between the two parts of a step.

    Raises:
        ValueError: If there is no such scheme, or the functional does not suit it.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if scheme == "jko":
        return Split(None, functional)
    if scheme == "forward_backward":
        forward = tuple((c, t) for c, t in terms_of(functional) if isinstance(t, Interaction))
        backward = tuple((c, t) for c, t in terms_of(functional) if not isinstance(t, Interaction))
        if not forward or not backward:
            missing, other = ("no Interaction term", "jko") if not forward else ("Interaction terms only", "explicit")
            raise ValueError(f"scheme: 'forward_backward' splits off Interaction terms; got {missing}, use {other!r}")
        return Split(Sum(forward), Sum(backward))
    for _, term in terms_of(functional):
        if not term.needs_critic and type(term).velocity is Functional.velocity:
            raise ValueError(f"scheme: {scheme!r} needs velocities, which {type(term).__name__} does not have")
    return Split(functional, functional, 0.5) if scheme == "crank_nicolson" else Split(functional, None)


class ForwardStep(nn.Module):
    """x + step_size * v(x) with v = -grad dF/dP(P_k): an explicit step, as a map that new samples can go through.

    Args:
        functional: F.
        step_size: Of this step.
        particles: Samples of P_k [N, D], of which at most ``KEPT_SOURCES`` are kept.
        critic: Fitted to P_k, where F needs one.
    """

    sources: Tensor

    def __init__(self, functional: Functional, step_size: float, particles: Tensor, critic: nn.Module | None) -> None:
        super().__init__()
        self.functional = functional
        self.step_size = step_size
        stride = -(-len(particles) // KEPT_SOURCES)
        self.register_buffer("sources", particles[::stride].detach())
        self.critic = critic
        self.requires_grad_(False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.move(x, self.sources)

    def move(self, x: Tensor, particles: Tensor) -> Tensor:
        """The step of points x [N, D] under the influence of particles [M, D], which may be x itself; a new tensor."""
        if self.critic is not None:
            self.critic.eval()
        out = torch.empty_like(x)
        with torch.no_grad():
            interactions, others = _interactions(self.functional)
            if interactions:
                kernel = functools.reduce(operator.add, (c * t.kernel for c, t in interactions))
                first = interactions[0][1]
                sources = None if x is particles else particles
                forward_step(x, self.step_size, kernel=kernel, sources=sources, out=out, **first.options)
            else:
                out.copy_(x)
            if others is not None:
                reference = others.reference(particles)
                out.add_(others.velocity(x, particles, self.critic, reference), alpha=self.step_size)
        return out


def _interactions(functional: Functional) -> tuple[list[tuple[float, Any]], Functional | None]:
    """Interaction terms summed alike, in one pass over the pairs, and the rest."""
    terms = terms_of(functional)
    found = [(c, t) for c, t in terms if isinstance(t, Interaction)]
    alike = [(c, t) for c, t in found if t.options == found[0][1].options]
    if not alike:
        return [], functional
    taken = {id(t) for _, t in alike}
    rest = tuple((c, t) for c, t in terms if id(t) not in taken)
    return alike, Sum(rest) if rest else None


def fit_critic(
    functional: Functional,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    particles: Tensor,
    training: Training,
) -> None:
    """Train a critic for P_k itself: what an explicit step of a functional without a closed form needs.

    Raises:
        NonFiniteError: If its loss is NaN or infinite.
    """
    parameters = [p for p in critic.parameters() if p.requires_grad]
    reference = functional.reference(particles)
    critic.train()
    network = Redirected.where_needed(critic)
    for j in range(training.iterations):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * training.rate(j)
        x = batch(particles, training.batch_size)
        z = functional.draw(training.batch_size, reference)
        for _ in range(training.critic_steps):
            loss = -critic_objective(functional, network, x, z, reference)
            descend(optimizer, loss, parameters, training.gradient_clip)
    if not loss.isfinite():
        raise NonFiniteError(f"the loss of the critic of the explicit step is {loss.item()}")
