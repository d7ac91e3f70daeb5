"""The porous medium equation dP/dt = lap P^m from a Barenblatt profile, which stays one: exact at every step.

The set-up of Fan et al. (2022), section 5.4: m = 2, a = 5e-4, t_0 = 1e-3, maps that are gradients of convex
networks, so that the density of P_k is known along its samples: log P_k(T x) = log P_{k-1}(x) - log det DT(x).
P_0 is sampled exactly, in any dimension: |x|^2 / R^2 is Beta(D/2, m/(m-1)).

Their symmetric KL is infinite as soon as one support sticks out of the other; their code then adds 1e-45 to each
density, which charges a lost mass e with 104 e. Ours is the part on the common support, int (P - B) log(P/B), whose
integrand is nowhere negative, with the masses outside beside it. Samples of P are too few near the edge, where P
vanishes (they give up to 40 % too little); the integral is over the images of uniform points instead, whose density is
carried along in the same way.
The last step also has theirs, by the inverse maps at samples of the exact solution.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwf_fast.experiments import base, dimensions
from gwf_fast.experiments.computation import Flow
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.state import FlowResult
from gwf_fast.flows.training import Training
from gwf_fast.functionals.energies import GeneralizedEntropy
from gwf_fast.nn import MLP, ICNNGradient

START = 1e-3
"""t_0."""
_SAMPLES = 20_000
_INVERTED = 10_000  # theirs
_FLOOR = math.log(1e-45)


@dataclass(frozen=True, kw_only=True)
class _Settings(base.FlowSettings):
    dim: str = base.option(dimensions.HELP, "1,3,6")
    exponent: float = base.option("m, above 1", 2.0)


@dataclass(frozen=True)
class Barenblatt:
    """P(t, x) = t^-alpha (C - beta |x|^2 t^(-2 alpha/D))_+^(1/(m-1)), of mass 1 (t counts from the point source).

    Attributes:
        dim: D.
        m: The exponent, > 1.
    """

    dim: int
    m: float

    @property
    def alpha(self) -> float:
        """The decay of the peak."""
        return self.dim / (self.dim * (self.m - 1) + 2)

    def _ball(self, power: float) -> float:
        """The integral of (1 - |x|^2)_+^power."""
        half = self.dim / 2
        return math.exp(half * math.log(math.pi) + math.lgamma(power + 1) - math.lgamma(power + 1 + half))

    def radius(self, t: float) -> float:
        """Of the support."""
        p, half = 1 / (self.m - 1), self.dim / 2
        beta = (self.m - 1) * self.alpha / (2 * self.m * self.dim)
        c = (beta**half / self._ball(p)) ** (1 / (p + half))  # mass 1
        return math.sqrt(c / beta) * t ** (self.alpha / self.dim)

    def peak(self, radius: float) -> float:
        """The density at 0."""
        return 1 / (radius**self.dim * self._ball(1 / (self.m - 1)))

    def log_density(self, x: Tensor, radius: float) -> Tensor:
        """log P at x [N, D], -infinity outside of the support, [N]."""
        inside = (1 - x.square().sum(-1) / radius**2).clamp(min=0)
        return math.log(self.peak(radius)) + inside.log() / (self.m - 1)

    def entropy(self, radius: float) -> float:
        """The functional: int P^m / (m - 1)."""
        return self.peak(radius) ** self.m * radius**self.dim * self._ball(self.m / (self.m - 1)) / (self.m - 1)

    def sample(self, n: int, radius: float) -> Tensor:
        """n points [n, D], from torch's global generator."""
        beta = torch.distributions.Beta(torch.tensor(self.dim / 2), torch.tensor(self.m / (self.m - 1)))
        direction = torch.randn(n, self.dim)
        return radius * beta.sample((n, 1)).sqrt() * direction / direction.norm(dim=1, keepdim=True)

    def spread(self, n: int, radius: float) -> tuple[Tensor, float]:
        """n points uniform in the support, radii stratified, [n, D] float64, and the logarithm of their density."""
        share = (torch.arange(n, dtype=torch.float64) + torch.rand(n, dtype=torch.float64)) / n
        direction = torch.randn(n, self.dim, dtype=torch.float64)
        points = radius * share[:, None] ** (1 / self.dim) * direction / direction.norm(dim=1, keepdim=True)
        return points, -math.log(radius**self.dim * self._ball(0))

    def jko_step(self, radius: float, a: float) -> float:
        """What an exact JKO step makes of the radius: it takes a Barenblatt profile to another, by a scaling.

        There (x - x_k)/a = -grad (m/(m-1) P^(m-1)), and both sides are linear in x.
        """
        low, high = radius, 2 * radius

        def excess(r: float) -> float:
            return (1 - radius / r) / a - 2 * self.m / (self.m - 1) * self.peak(r) ** (self.m - 1) / r**2

        while excess(high) < 0:
            high *= 2
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) < 0 else (low, middle)
        return low


@dataclass(frozen=True)
class Comparison:
    """By step, from 0.

    Attributes:
        symkl: To the exact solution, on the common support.
        symkl_to_scheme: To exact JKO steps.
        symkl_of_scheme: Of exact JKO steps to the exact solution.
        outside: Mass of P outside of the support of the exact solution.
        missing: Mass of the exact solution outside of the support of P.
        estimated: The functional as the critic estimates it, from 1.
        exact: Of the exact solution.
        scheme: Of exact JKO steps.
        floored: Their symmetric KL after the last step.
    """

    symkl: list[float]
    symkl_to_scheme: list[float]
    symkl_of_scheme: list[float]
    outside: list[float]
    missing: list[float]
    estimated: list[float]
    exact: list[float]
    scheme: list[float]
    floored: float


def common_symkl(log_p: Tensor, log_b: Tensor, log_u: Tensor | float) -> float:
    """int (P - B) log(P/B) over the common support, from log densities at samples of U, which holds that of P, [N]."""
    inside = log_b.isfinite() & log_p.isfinite()
    difference = (log_p - log_u).exp() - (log_b - log_u).exp()
    return float((difference * (log_p - log_b))[inside].sum()) / len(log_p)


def mass(log_p: Tensor, log_u: Tensor | float, where: Tensor) -> float:
    """Of P, where the mask is true."""
    return float((log_p - log_u).exp()[where].sum()) / len(log_p)


def floored_symkl(profile: Barenblatt, radius: float, result: FlowResult) -> float:
    """The symmetric KL of the last step, with densities of at least 1e-45, as in the code of Fan et al.

    Args:
        profile: The exact solution.
        radius: Its radius.
        result: The flow.
    """
    start = profile.radius(START)
    maps = tuple(copy.deepcopy(transport).double() for transport in result.maps)
    double = FlowResult(state=dataclasses.replace(result.state, maps=maps), source=result.source)

    def log_ratio(log_p: Tensor, x: Tensor) -> float:
        return float((log_p.clamp(min=_FLOOR) - profile.log_density(x, radius).clamp(min=_FLOOR)).mean())

    x = profile.sample(_INVERTED, start).double()
    log_p = profile.log_density(x, start)
    with torch.no_grad():
        for transport in maps:
            log_p, x = log_p - transport.log_abs_det(x), transport(x)  # type: ignore[operator]
    z = profile.sample(_INVERTED, radius).double()
    return log_ratio(log_p, x) - log_ratio(double.log_density(z, lambda x0: profile.log_density(x0, start)), z)


def _case(settings: _Settings, dim: int) -> dimensions.Case:
    a, profile = settings.step_size, Barenblatt(dim, settings.exponent)
    start = profile.radius(START)
    flow = JKOFlow(
        GeneralizedEntropy(settings.exponent),
        dim,
        a,
        map=ICNNGradient(dim, (64, 64)),
        critic=MLP([dim, 32, 32, 32, 1], "celu"),
        training=Training(
            gradient_clip=None,  # as it was measured
            batch_size=settings.batch_size,
            iterations=settings.iterations,
            lr_schedule="cosine",
            pool_size=settings.particles,
        ),
        seed=settings.seed,
    )

    def compare(result: FlowResult) -> Comparison:
        x, uniform = profile.spread(_SAMPLES, start)
        log_u = torch.full((_SAMPLES,), uniform, dtype=torch.float64)
        ratio = profile.log_density(x, start) - log_u  # of P_k to U_k, the same in every step
        scheme, found = start, Comparison([0.0], [0.0], [0.0], [0.0], [0.0], [], [profile.entropy(start)], [], 0.0)
        found.scheme.append(profile.entropy(start))
        for k, (transport, record) in enumerate(zip(result.maps, result.history, strict=True), 1):
            transport = copy.deepcopy(transport).double()
            with torch.no_grad():
                log_u = log_u - transport.log_abs_det(x)  # type: ignore[operator]
                x = transport(x)
            exact, scheme = profile.radius(START + k * a), profile.jko_step(scheme, a)
            log_p, log_b = ratio + log_u, profile.log_density(x, exact)
            found.symkl.append(common_symkl(log_p, log_b, log_u))
            found.symkl_to_scheme.append(common_symkl(log_p, profile.log_density(x, scheme), log_u))
            z, flat = profile.spread(_SAMPLES, scheme)
            of_scheme = common_symkl(profile.log_density(z, scheme), profile.log_density(z, exact), flat)
            found.symkl_of_scheme.append(of_scheme)
            found.outside.append(mass(log_p, log_u, log_b.isinf()))
            found.missing.append(1 - mass(log_b, log_u, log_b.isfinite()))
            found.estimated.append(record.value)
            found.exact.append(profile.entropy(exact))
            found.scheme.append(profile.entropy(scheme))
        return dataclasses.replace(found, floored=floored_symkl(profile, exact, result)) if result.maps else found

    def metrics(found: Comparison) -> dict[str, Any]:
        return {
            "symkl": found.symkl[-1],
            "symkl_of_exact_JKO_steps": found.symkl_of_scheme[-1],
            "symkl_to_exact_JKO_steps": found.symkl_to_scheme[-1],
            "mass_outside_of_the_exact_support": found.outside[-1],
            "mass_of_the_exact_solution_outside": found.missing[-1],
            "symkl_with_densities_of_at_least_1e-45": found.floored,
            "largest_symkl_of_all_steps": max(found.symkl),
            "entropy_estimated": found.estimated[-1] if found.estimated else math.nan,
            "entropy_exact": found.exact[-1],
            "symkl_by_step": dimensions.rounded(found.symkl),
        }

    return dimensions.Case(Flow(flow, lambda n: profile.sample(n, start), settings.steps), compare, metrics)


def build(settings: _Settings) -> base.Problem:
    """A flow a dimension."""
    if not (math.isfinite(settings.exponent) and settings.exponent > 1):
        raise ValueError(f"exponent must be a number above 1, got {settings.exponent:g}")
    dims = dimensions.parse(settings.dim)
    return dimensions.problem({dim: _case(settings, dim) for dim in dims}, _draw)


def _draw(found: dict[int, Comparison], path: Path) -> None:
    """Their figures 5 and 6: the error along the flow, and the functional as the critic estimates it."""
    plt, colours = base.pyplot(), dimensions.colours(found)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.8, 4.1), layout="constrained")
    for dim, each in found.items():
        steps, colour = range(len(each.symkl)), colours[dim]
        left.semilogy(steps[1:], each.symkl[1:], "o-", color=colour, markersize=3, label=f"D = {dim}")
        left.semilogy(steps[1:], each.symkl_of_scheme[1:], "--", color=colour, linewidth=1)
        left.semilogy(steps[1:], each.symkl_to_scheme[1:], ":", color=colour, linewidth=1)
        right.semilogy(steps, each.exact, color=colour, label=f"D = {dim}")
        right.semilogy(steps, each.scheme, "--", color=colour, linewidth=1)
        right.semilogy(steps[1:], each.estimated, "o", color=colour, markersize=3)
    for style, text in (("o-", "flow"), ("--", "exact JKO steps"), (":", "flow to exact JKO steps")):
        left.plot([], [], style, color="grey", markersize=3, label=text)
    for style, text in (("-", "exact"), ("--", "exact JKO steps"), ("o", "estimated by the critic")):
        right.plot([], [], style, color="grey", markersize=3, label=text)
    left.set(xlabel="JKO step", ylabel="SymKL on the common support", title="to the Barenblatt profile")
    right.set(xlabel="JKO step", ylabel=r"$\int P^m / (m - 1)$", title="functional")
    left.set_ylim(bottom=left.get_ylim()[0] / 10)
    for axis, place in ((left, "lower left"), (right, "upper right")):
        axis.legend(frameon=False, fontsize=8, loc=place, ncols=2)
        axis.xaxis.get_major_locator().set_params(integer=True)
    base.save_figure(fig, path)


# their batch and time; they train each step 1000 iterations
_DEFAULTS = _Settings(particles=20_000, steps=50, step_size=5e-4, iterations=300, batch_size=1024)

EXPERIMENT = base.Experiment(
    "porous-medium", "the porous medium equation, compared with the Barenblatt profile at every step", _DEFAULTS, build
)
