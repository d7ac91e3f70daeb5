"""Every drift against minus the gradient of what it descends, by finite differences in float64, or its dense form.

``python -m bench.drift_errors`` prints the relative error of each in the 2-norm, then those of Sinkhorn: the value
against the closed form between Gaussians, and Hessian-vector products, ours and geomloss', against differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

import gwf_fast as gwf
from gwf_fast.nn.divergences import SmoothName

N, M, D = 24, 30, 3


class Accuracy(TypedDict):
    """When Sinkhorn's iterations end."""

    max_iterations: int
    tolerance: float


TIGHT: Accuracy = {"max_iterations": 20_000, "tolerance": 1e-13}
Function = Callable[[Tensor], Tensor]


def draw(*shape: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


def descent(energy: Function, x: Tensor, step: float = 1e-5) -> Tensor:
    """Minus the gradient by central differences."""
    out = torch.empty_like(x)
    for i in range(x.numel()):
        e = torch.zeros_like(x).view(-1)
        e[i] = step
        out.view(-1)[i] = -(energy(x + e.view_as(x)) - energy(x - e.view_as(x))) / (2 * step)
    return out


def mean_pairs(k: Function, x: Tensor, y: Tensor) -> Tensor:
    return k((x[:, None] - y).norm(dim=-1)).mean()


def half_mmd2(k: Function, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (mean_pairs(k, x, x) + mean_pairs(k, y, y)) - mean_pairs(k, x, y)


def parzen(z: Tensor, samples: Tensor, h: float) -> Tensor:
    return torch.exp(-(z[:, None] - samples).square().sum(-1) / (2 * h * h)).mean(1)


def sliced(x: Tensor, y: Tensor, theta: Tensor, exponent: float) -> Tensor:
    """Half the energy distance along directions, all pairs."""
    constant = math.sqrt(math.pi) * math.gamma((D + exponent) / 2) / math.gamma(D / 2) / math.gamma((exponent + 1) / 2)
    values = [half_mmd2(lambda r: -(r**exponent), x @ t[:, None], y @ t[:, None]) for t in theta]
    return constant * torch.stack(values).mean()


def sliced_w2(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """Half of SW_2^2 between copies: sets of sizes N and M repeated to their least common multiple."""
    count = math.lcm(len(x), len(y))
    a, b = (p.repeat_interleave(count // len(p), 0) @ theta.T for p in (x, y))
    return 0.5 * (a.sort(0).values - b.sort(0).values).square().mean()


def algorithm_2(x: Tensor, y: Tensor, temperature: float, clip: float) -> Tensor:
    own = (x[:, None] - x).norm(dim=-1) + 1e6 * torch.eye(len(x), dtype=x.dtype)
    logit = -torch.cat([(x[:, None] - y).norm(dim=-1), own], 1) / temperature
    a = (logit.softmax(1) * logit.softmax(0)).clamp(min=clip).sqrt()
    pos, neg = a[:, : len(y)], a[:, len(y) :]
    return (pos * neg.sum(1, keepdim=True)) @ y - (neg * pos.sum(1, keepdim=True)) @ x


F_PRIME: dict[SmoothName, Function] = {
    "kl": lambda r: 1 + r.log(),
    "reverse_kl": lambda r: -1 / r,
    "pearson": lambda r: 2 * (r - 1),
    "neyman": lambda r: 1 - r**-2,
    "js": lambda r: (2 * r / (1 + r)).log(),
    "jeffreys": lambda r: 1 + r.log() - 1 / r,
    "log_d": lambda r: (1 + r).log(),
    "squared_hellinger": lambda r: 1 - r**-0.5,
}


def drifts(x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """By name: the drift, and what it should be."""
    theta = torch.nn.functional.normalize(draw(16, D, seed=2), dim=1)
    rows: dict[str, tuple[Tensor, Tensor]] = {}

    def mmd_energy(k: Function) -> Function:
        return lambda z: N * half_mmd2(k, z, y)

    def reweighted(slope: Function) -> Function:
        return lambda z: slope(parzen(z, x, 0.8) / parzen(z, y, 0.8)).sum()

    def sliced_energy(exponent: float) -> Function:
        return lambda z: N * sliced(z, y, theta, exponent)

    kernels: dict[str, tuple[gwf.Kernel, Function]] = {
        "mmd, Gaussian": (gwf.Gaussian(0.9), lambda r: torch.exp(-(r**2) / 1.62)),
        "mmd, Laplace": (gwf.Laplace(1.1), lambda r: torch.exp(-r / 1.1)),
        "energy, e = 1": (gwf.Riesz(1.0), lambda r: -r),
        "energy, e = 1.5": (gwf.Riesz(1.5), lambda r: -(r**1.5)),
    }
    for name, (kernel, k) in kernels.items():
        rows[name] = gwf.drift.mmd(x, y, kernel=kernel), descent(mmd_energy(k), x)
    for name, slope in F_PRIME.items():
        want = descent(reweighted(slope), x)
        rows[f"f_divergence, {name}"] = gwf.drift.f_divergence(x, y, 0.8, divergence=name), want
    rows["parzen_kl"] = gwf.drift.parzen_kl(x, y, 0.8), rows["f_divergence, kl"][1]
    value = lambda z: N * gwf.sinkhorn_divergence(z, y, epsilon=0.2, **TIGHT)  # noqa: E731
    rows["sinkhorn"] = gwf.drift.sinkhorn(x, y, epsilon=0.2, **TIGHT), descent(value, x)
    w2 = gwf.drift.sliced_wasserstein(x, y, directions=theta)
    rows["sliced_wasserstein"] = w2, descent(lambda z: N * sliced_w2(z, y, theta), x)
    for exponent in (0.5, 1.0, 1.5):
        leaf = x.clone().requires_grad_()
        distance = gwf.sliced_energy_distance(leaf, y, exponent=exponent, directions=theta)
        velocity = -0.5 * N * torch.autograd.grad(distance, leaf)[0]
        want = descent(sliced_energy(exponent), x, 1e-7)
        rows[f"sliced energy, e = {exponent:g}"] = velocity, want
    for clip in (0.0, 1e-6, 1e-3):
        got = gwf.drift.gmd(x, y, temperature=0.3, clip=clip or None)
        rows[f"gmd, clip {clip:g}"] = got, algorithm_2(x, y, 0.3, clip)
    many = draw(500, D, seed=3), draw(700, D, seed=4, shift=0.5)
    for clip in (0.0, 1e-6):
        got = gwf.drift.gmd(*many, temperature=0.3, clip=clip or None)
        rows[f"gmd, 500 to 700, clip {clip:g}"] = got, algorithm_2(*many, 0.3, clip)
    return rows


def gaussians() -> tuple[float, float]:
    """The Sinkhorn divergence between two Gaussians on a quadrature, and in closed form (Janati et al. 2020)."""
    import numpy as np

    nodes, weights = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(40))
    mass = torch.outer(weights, weights).flatten() / weights.sum() ** 2
    points, epsilon = torch.cartesian_prod(nodes, nodes), 0.5
    c1, c2, mean = (torch.tensor(t, dtype=torch.float64) for t in ((0.5, 0.2), (0.3, 0.6), (0.7, -0.4)))

    def entropic(a: Tensor, b: Tensor) -> Tensor:
        d = torch.sqrt(4 * a * b + epsilon**2)
        terms = a + b - d + epsilon * torch.log(d + epsilon) - epsilon * math.log(2 * epsilon) + epsilon
        return 0.5 * terms.sum()

    want = 0.5 * mean.square().sum() + entropic(c1, c2) - 0.5 * (entropic(c1, c1) + entropic(c2, c2))
    clouds = points * c1.sqrt(), points * c2.sqrt() + mean
    got = gwf.sinkhorn_divergence(*clouds, epsilon=epsilon, x_weights=mass, y_weights=mass, **TIGHT)
    return float(got), float(want)


def hessian_error(loss: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> float:
    """Relative error of a Hessian-vector product against central differences of the loss' own gradient."""

    def gradient(points: Tensor) -> Tensor:
        leaf = points.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    leaf, h = x.clone().requires_grad_(), 1e-4
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (product,) = torch.autograd.grad((first * direction).sum(), leaf)
    want = (gradient(x + h * direction) - gradient(x - h * direction)) / (2 * h)
    return float((product - want).norm() / want.norm())


def main() -> None:
    x, y = draw(N, D, seed=0), draw(M, D, seed=1, shift=0.5)
    for name, (got, want) in drifts(x, y).items():
        print(f"{name:32} {float((got - want).norm() / want.norm()):.1e}", flush=True)
    value, closed_form = gaussians()
    print(f"{'Sinkhorn between Gaussians':32} {abs(value / closed_form - 1):.1e}")
    points, targets, direction = draw(200, 2, seed=5), draw(150, 2, seed=6, shift=0.3), draw(200, 2, seed=7)
    ours = lambda z: gwf.sinkhorn_divergence(z, targets, epsilon=0.1, **TIGHT)  # noqa: E731
    print(f"{'Hessian-vector product':32} {hessian_error(ours, points, direction):.1e}")
    try:
        from geomloss import SamplesLoss
    except ImportError:
        return
    theirs = SamplesLoss("sinkhorn", p=2, blur=math.sqrt(0.1), scaling=0.95, backend="tensorized")
    error = hessian_error(lambda z: theirs(z, targets), points, direction)
    print(f"{'the same, geomloss':32} {error:.1e}")


if __name__ == "__main__":
    main()
