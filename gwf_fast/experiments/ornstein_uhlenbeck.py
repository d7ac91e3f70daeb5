"""The Ornstein-Uhlenbeck process, dP/dt = div(P grad log(P/Q)) with Q = N(b, A^-1) from N(0, I): exact at every step.

The set-up of Fan et al. (2022), section 5.2, and of their released code: eigenvalues of the covariance of Q uniform in
[1/2, 1], b normal, maps without activations, a = 0.05. P_k is compared with the process at time k a by the symmetric
KL of the Gaussian fitted to samples. Two errors are in it. The scheme's own is known: a JKO step takes a Gaussian
to a Gaussian. The sampling of the fit gives about D (D + 3) / (2 n) for n samples, one in each direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwf_fast.experiments import base, dimensions
from gwf_fast.experiments.computation import Flow
from gwf_fast.flows.jko import JKOFlow
from gwf_fast.flows.state import FlowResult, push
from gwf_fast.flows.training import Training
from gwf_fast.functionals.base import KL
from gwf_fast.nn import MLP
from gwf_fast.potentials import Gaussian

_SAMPLES = 500_000
_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class _Settings(base.FlowSettings):
    dim: str = base.option(dimensions.HELP, "2,8,32")


@dataclass(frozen=True)
class Process:
    """The process from N(0, I), and what JKO steps make of it; in float64.

    Attributes:
        axes: Eigenvectors of A, in columns, [D, D].
        rates: Its eigenvalues, [D].
        centre: b, [D].
    """

    axes: Tensor
    rates: Tensor
    centre: Tensor

    @classmethod
    def draw(cls, dim: int, seed: int) -> Process:
        """A random process, its covariance's eigenvalues uniform in [1/2, 1]."""
        generator = base.generator(seed)
        axes, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
        variances = 0.5 + 0.5 * torch.rand(dim, generator=generator, dtype=torch.float64)
        return cls(axes, 1 / variances, torch.randn(dim, generator=generator, dtype=torch.float64))

    def _gaussian(self, shrinkage: Tensor, variances: Tensor) -> Gaussian:
        """With mean (I - shrinkage) b and these variances, both along the axes."""
        covariance = (self.axes * variances) @ self.axes.T
        mean = self.centre - self.axes @ (shrinkage * (self.axes.T @ self.centre))
        return Gaussian(mean, (covariance + covariance.T) / 2)

    def target(self) -> Gaussian:
        """Q."""
        return self._gaussian(torch.zeros_like(self.rates), 1 / self.rates)

    def at(self, time: float) -> Gaussian:
        """P at a time: mean (I - e^(-A t)) b, covariance A^-1 (I - e^(-2 A t)) + e^(-2 A t)."""
        decay = (-self.rates * time).exp()
        return self._gaussian(decay, (1 - decay**2) / self.rates + decay**2)

    def scheme(self, steps: int, a: float) -> list[Gaussian]:
        """P_0, ..., P_steps of exact JKO steps.

        Along an axis, of rate r, the mean minimises (m - m_k)^2 / (2a) + r (m - b)^2 / 2 and the standard deviation
        (s - s_k)^2 / (2a) + r s^2 / 2 - log s.
        """
        shrinkage, deviation = torch.ones_like(self.rates), torch.ones_like(self.rates)
        found = []
        for k in range(steps + 1):
            if k:
                shrinkage = shrinkage / (1 + a * self.rates)
                lead = 1 + a * self.rates
                deviation = (deviation + (deviation**2 + 4 * a * lead).sqrt()) / (2 * lead)
            found.append(self._gaussian(shrinkage, deviation**2))
        return found


def symkl(p: Gaussian, q: Gaussian) -> float:
    """KL(p | q) + KL(q | p)."""
    return p.kl(q) + q.kl(p)


@dataclass(frozen=True)
class Comparison:
    """By step, from 0.

    Attributes:
        symkl: To the exact process.
        symkl_to_scheme: To exact JKO steps.
        symkl_of_scheme: Of exact JKO steps to the exact process.
        estimated: KL to Q as the critic estimates it, from 1.
        exact: Of the exact process.
        scheme: Of exact JKO steps.
    """

    symkl: list[float]
    symkl_to_scheme: list[float]
    symkl_of_scheme: list[float]
    estimated: list[float]
    exact: list[float]
    scheme: list[float]


def _case(settings: _Settings, dim: int) -> dimensions.Case:
    a = settings.step_size
    process = Process.draw(dim, settings.seed)
    target = process.target()
    flow = JKOFlow(
        KL(Gaussian(target.mean.float(), target.covariance.float())),
        dim,
        a,
        map=MLP([dim, _WIDTH, _WIDTH, dim], "identity", residual=True),
        critic=MLP([dim, _WIDTH, _WIDTH, 1]),
        training=Training(
            gradient_clip=None,  # as it was measured
            batch_size=settings.batch_size,
            iterations=settings.iterations,
            lr=5e-3,
            lr_schedule="cosine",
            pool_size=settings.particles,
        ),
        seed=settings.seed,
    )

    def source(n: int) -> Tensor:
        return torch.randn(n, dim)

    def compare(result: FlowResult) -> Comparison:
        steps = len(result.history)
        exact, scheme = [process.at(k * a) for k in range(steps + 1)], process.scheme(steps, a)
        to_exact, to_scheme = [0.0], [0.0]
        x = source(_SAMPLES)
        for k, transport in enumerate(result.maps, 1):
            x = push((transport,), x)
            fitted = Gaussian.fit(x.double())
            to_exact.append(symkl(fitted, exact[k]))
            to_scheme.append(symkl(fitted, scheme[k]))
        return Comparison(
            symkl=to_exact,
            symkl_to_scheme=to_scheme,
            symkl_of_scheme=[symkl(p, q) for p, q in zip(scheme, exact, strict=True)],
            estimated=[record.value for record in result.history],
            exact=[p.kl(target) for p in exact],
            scheme=[p.kl(target) for p in scheme],
        )

    def metrics(found: Comparison) -> dict[str, Any]:
        return {
            "symkl": found.symkl[-1],
            "log10_symkl": math.log10(found.symkl[-1]) if found.symkl[-1] > 0 else -math.inf,
            "symkl_of_exact_JKO_steps": found.symkl_of_scheme[-1],
            "symkl_to_exact_JKO_steps": found.symkl_to_scheme[-1],
            "sampling_error_of_symkl": sampling_error(dim),
            "KL_to_target_estimated": found.estimated[-1] if found.estimated else math.nan,
            "KL_to_target_of_exact_JKO_steps": found.scheme[-1],
            "KL_to_target_exact": found.exact[-1],
            "symkl_by_step": dimensions.rounded(found.symkl),
        }

    return dimensions.Case(Flow(flow, source, settings.steps), compare, metrics)


def sampling_error(dim: int) -> float:
    """Expected SymKL of a Gaussian fitted to samples of itself."""
    return dim * (dim + 3) / 2 / _SAMPLES


def build(settings: _Settings) -> base.Problem:
    """A flow a dimension."""
    return dimensions.problem({dim: _case(settings, dim) for dim in dimensions.parse(settings.dim)}, _draw)


def _draw(found: dict[int, Comparison], path: Path) -> None:
    """The error along the flow, and the two panels of their figure 4: the error by dimension, and the functional.

    The functional is that of the largest dimension.
    """
    several = len(found) > 1
    fig, axes = base.pyplot().subplots(1, 2 + several, figsize=(4.6 * (2 + several), 4), layout="constrained")
    _draw_errors(axes[0], found)
    if several:
        dims = list(found)
        axes[1].loglog(dims, [each.symkl[-1] for each in found.values()], "o-", color="#35618f", label="flow")
        axes[1].loglog(
            dims, [each.symkl_of_scheme[-1] for each in found.values()], "--", color="#d1495b", label="exact JKO steps"
        )
        axes[1].loglog(dims, [sampling_error(dim) for dim in dims], ":", color="grey", label="sampling error")
        axes[1].set_xticks(dims, [str(dim) for dim in dims])
        axes[1].minorticks_off()
        axes[1].set(xlabel="dimension D", ylabel="SymKL", title="after the last step")
        axes[1].legend(frameon=False, fontsize=8)
    dim, last = max(found.items())
    steps, right = range(len(last.exact)), axes[-1]
    right.plot(steps, last.exact, color="#d1495b", label="exact")
    right.plot(steps, last.scheme, "--", color="#d1495b", linewidth=1, label="exact JKO steps")
    right.plot(steps[1:], last.estimated, "o", color="#35618f", markersize=4, label="estimated by the critic")
    right.set(xlabel="JKO step", ylabel="KL(P | Q)", title=f"functional, D = {dim}")
    right.legend(frameon=False, fontsize=8)
    right.xaxis.get_major_locator().set_params(integer=True)
    base.save_figure(fig, path)


def _draw_errors(axis: Any, found: dict[int, Comparison]) -> None:
    colours = dimensions.colours(found)
    for dim, each in found.items():
        steps = range(len(each.symkl))
        axis.semilogy(steps[1:], each.symkl[1:], "o-", color=colours[dim], markersize=3, label=f"D = {dim}")
        axis.semilogy(steps[1:], each.symkl_of_scheme[1:], "--", color=colours[dim], linewidth=1)
        axis.semilogy(steps[1:], each.symkl_to_scheme[1:], ":", color=colours[dim], linewidth=1)
    for style, text in (("o-", "flow"), ("--", "exact JKO steps"), (":", "flow to exact JKO steps")):
        axis.plot([], [], style, color="grey", markersize=3, label=text)
    axis.set(xlabel="JKO step", ylabel="SymKL", title="to the exact Gaussian")
    axis.legend(frameon=False, fontsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)


# steps: to the time at which the paper reports
_DEFAULTS = _Settings(particles=50_000, steps=18, step_size=0.05, iterations=500, batch_size=1000)

EXPERIMENT = base.Experiment(
    "ornstein-uhlenbeck", "KL to a Gaussian, compared with the exact process at every step", _DEFAULTS, build
)
