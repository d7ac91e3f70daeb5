"""What training codes call at their own sizes, tens of points, beside the loops that their papers define.

Each peer is that definition in dense PyTorch (SVGD's in NumPy and SciPy, as it was published), which at these sizes
holds its matrices in cache too: what is compared is how much happens between two compiled calls.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

import gwf_fast as gwf
from bench.drifts import dense_drift, released_drift, true_drift
from bench.measure import detached
from bench.peers import jitted
from bench.registry import OURS, Case, Contender, Race, Result, register
from gwf_fast.compat.mmd_gan import mix_rbf_mmd2
from gwf_fast.compat.svgd import SVGD

EPSILON, SWEEPS = 0.2, 100


def points(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shift


def dense_sweeps(x: Tensor, y: Tensor, epsilon: float, sweeps: int) -> tuple[Tensor, Tensor]:
    """Sinkhorn in the log domain with equal weights, as everybody writes it."""
    cost = 0.5 * torch.cdist(x, y).square()
    log_n, log_m = math.log(x.shape[-2]), math.log(y.shape[-2])
    f, g = cost.new_zeros(cost.shape[:-1]), cost.new_zeros(*cost.shape[:-2], cost.shape[-1])
    for _ in range(sweeps):
        f = -epsilon * torch.logsumexp((g[..., None, :] - cost) / epsilon - log_m, -1)
        g = -epsilon * torch.logsumexp((f[..., :, None] - cost) / epsilon - log_n, -2)
    return f, g


def quietly(call: Callable[[], Result]) -> Contender:
    """Without the warning that a fixed number of sweeps earns."""

    def contender() -> Result:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()

    return contender


def sinkhorn_race(_: bool) -> Race:
    x, y = 0.3 * points(3, 10, 4), 0.3 * points(3, 10, 4, seed=1)

    def plan(f: Tensor, g: Tensor) -> Result:
        return (f[..., None] + g[..., None, :],)

    def ours() -> Result:
        found = gwf.sinkhorn(x, y, epsilon=EPSILON, max_iterations=SWEEPS, tolerance=0.0)
        return plan(found.f, found.g)

    makers = {OURS: lambda: quietly(ours), "torch dense": lambda: lambda: plan(*dense_sweeps(x, y, EPSILON, SWEEPS))}
    return Race(makers, truth=lambda: plan(*dense_sweeps(x.double(), y.double(), EPSILON, 5000)))


def dense_divergence(x: Tensor, y: Tensor, epsilon: float, sweeps: int) -> Tensor:
    """Differentiable by the envelope theorem: the dual at potentials that are held, updated once."""

    def transport(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            f, g = dense_sweeps(x, y, epsilon, sweeps)
        cost = 0.5 * (x[:, None] - y).square().sum(-1)
        f = -epsilon * torch.logsumexp((g - cost) / epsilon - math.log(len(y)), 1)
        return f.mean() + g.mean()

    return transport(x, y) - 0.5 * transport(x, x) - 0.5 * transport(y, y)


def divergence_race(n: int, _: bool) -> Race:
    x, y = 0.5 * points(n, 2), 0.5 * points(n, 2, seed=1, shift=0.5)

    def contender(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Contender:
        leaf = x.clone().requires_grad_()

        def run() -> Result:
            value = function(leaf, y)
            return detached(value, *torch.autograd.grad(value, leaf))

        return quietly(run)

    ours = functools.partial(gwf.sinkhorn_divergence, epsilon=EPSILON, max_iterations=SWEEPS, tolerance=1e-6)
    dense = functools.partial(dense_divergence, epsilon=EPSILON, sweeps=SWEEPS)
    converged = functools.partial(dense_divergence, epsilon=EPSILON, sweeps=10_000)
    makers = {
        OURS: lambda: contender(ours, x, y),
        "torch dense": lambda: contender(dense, x, y),
        "OTT": lambda: jitted.ott_divergence(x, y, EPSILON, 2000),
    }
    return Race(makers, truth=lambda: contender(converged, x.double(), y.double())())


def classes_race(_: bool) -> Race:
    """A drift for each of ten classes of 32 particles, in a loop, as conditional drifting trains."""
    x, y = points(10, 32, 64), points(10, 32, 64, seed=1)

    def contender(drift: Callable[[Tensor, Tensor], Tensor]) -> Contender:
        return lambda: (torch.stack([drift(x[c], y[c]) for c in range(len(x))]),)

    makers = {
        OURS: lambda: contender(lambda x, y: gwf.drift.gmd(x, y, temperature=2.0)),
        "torch dense": lambda: contender(lambda x, y: dense_drift(x, y, 2.0)),
    }
    return Race(makers, truth=lambda: (true_drift(x, y, 2.0),))


def released_race(_: bool) -> Race:
    x, y = points(1, 32, 64), points(1, 32, 64, seed=1)
    rates = (0.02, 0.05, 0.2)
    makers: dict[str, Callable[[], Contender]] = {
        OURS: lambda: lambda: (gwf.drift.gmd_multi(x, y, temperatures=rates).velocity,),
        "torch dense": lambda: lambda: (released_drift(x, y, rates),),
    }
    return Race(makers, truth=lambda: (released_drift(x.double(), y.double(), rates),))


def drift_loss_race(batch: int, n: int, m: int, dim: int, _: bool) -> Race:
    """The released variant as a training step takes it: the regression loss and its gradient at the samples."""
    x, y = points(batch, n, dim), points(batch, m, dim, seed=1)
    rates = (0.02, 0.05, 0.2)

    def contender(drift: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Contender:
        leaf = x.clone().requires_grad_()

        def run() -> Result:
            loss = gwf.drifting_loss(leaf, drift(leaf.detach(), y))
            return detached(loss, *torch.autograd.grad(loss, leaf))

        return run

    makers: dict[str, Callable[[], Contender]] = {
        OURS: lambda: contender(lambda x, y: gwf.drift.gmd_multi(x, y, temperatures=rates).velocity, x, y),
        "torch dense": lambda: contender(lambda x, y: released_drift(x, y, rates), x, y),
        "JAX jitted": lambda: jitted.drift_loss(x, y, rates),
    }
    return Race(makers, truth=lambda: contender(lambda x, y: released_drift(x, y, rates), x.double(), y.double())())


def dense_coupling(
    x: Tensor, y: Tensor, negatives: Tensor, log_w: Tensor, temperatures: tuple[float, ...], sweeps: int
) -> Tensor:
    """Sinkhorn couplings with both sides, their rows normalised, each temperature at unit mean square."""

    def mean(points: Tensor, logs: Tensor, temperature: float) -> Tensor:
        logits = -torch.cdist(x, points) / temperature
        log_b = logs.log_softmax(0)
        v = torch.zeros_like(logs)
        for _ in range(sweeps):
            u = -torch.logsumexp(logits + (log_b + v), 1)
            v = -torch.logsumexp(logits + u[:, None] - math.log(len(x)), 0)
        return (logits + (log_b + v)).softmax(1) @ points

    total = torch.zeros_like(x)
    for temperature in temperatures:
        force = mean(y, y.new_zeros(len(y)), temperature) - mean(negatives, log_w, temperature)
        total = total + force / force.square().mean().sqrt()
    return total


def coupling_race(_: bool) -> Race:
    """Guidance: negatives are the particles and samples of all classes, of weight 1/4."""
    x, y = points(32, 16), points(48, 16, seed=1, shift=0.3)
    negatives = torch.cat([x, points(16, 16, seed=2)])
    log_w = torch.cat([torch.zeros(32), torch.full((16,), 0.25).log()])
    temperatures = (1.0, 2.0, 4.0)

    def ours() -> Result:
        return (
            gwf.drift.coupling(
                x, y, temperature=temperatures, coupling="sinkhorn", n_sweeps=20, negatives=negatives,
                negatives_log_weights=log_w, normalization="problem",
            ),
        )  # fmt: skip

    makers = {
        OURS: lambda: ours,
        "torch dense": lambda: lambda: (dense_coupling(x, y, negatives, log_w, temperatures, 20),),
    }
    wide = (x.double(), y.double(), negatives.double(), log_w.double())
    return Race(makers, truth=lambda: (dense_coupling(*wide, temperatures, 20),))


SIGMAS = (1.0, 2.0, 4.0, 8.0, 16.0)


def dense_mixture_mmd2(x: Tensor, y: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """The biased squared MMD of MMD-GAN (Li et al. 2017): one Gram matrix of both sets, bandwidths one by one."""
    z = torch.cat([x, y])
    gram = z @ z.T
    norms = gram.diagonal()
    exponent = norms[:, None] - 2 * gram + norms
    kernel = sum((torch.exp(-exponent / (2 * sigma**2)) for sigma in sigmas), start=z.new_zeros(()))
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def mmd_race(n: int, _: bool) -> Race:
    x, y = points(n, 16), points(n, 16, seed=1, shift=0.3)

    def contender(function: Callable[..., Tensor], x: Tensor, y: Tensor) -> Contender:
        leaf = x.clone().requires_grad_()

        def run() -> Result:
            value = function(leaf, y, SIGMAS)
            return detached(value, *torch.autograd.grad(value, leaf))

        return run

    makers = {
        OURS: lambda: contender(mix_rbf_mmd2, x, y),
        "torch dense": lambda: contender(dense_mixture_mmd2, x, y),
    }
    return Race(makers, truth=lambda: contender(dense_mixture_mmd2, x.double(), y.double())())


def published_svgd(x0: np.ndarray, score: Callable[[np.ndarray], np.ndarray], n_iter: int, step: float) -> np.ndarray:
    """Liu & Wang (2016) as published: pairwise distances of SciPy, the median of all, AdaGrad with momentum."""
    theta, history = np.copy(x0), 0.0
    for iteration in range(n_iter):
        square = squareform(pdist(theta)) ** 2
        h = np.sqrt(0.5 * np.median(square) / np.log(len(theta) + 1))
        kernel = np.exp(-square / h**2 / 2)
        repulsion = (kernel.sum(1)[:, None] * theta - kernel @ theta) / h**2
        direction = (kernel @ score(theta) + repulsion) / len(theta)
        history = direction**2 if iteration == 0 else 0.9 * history + 0.1 * direction**2
        theta = theta + step * direction / (1e-6 + np.sqrt(history))
    return theta


def svgd_race(n: int, _: bool) -> Race:
    x0 = points(n, 2).double().numpy()

    def score(x: np.ndarray) -> np.ndarray:
        return 1.0 - x

    makers: dict[str, Callable[[], Contender]] = {
        OURS: lambda: lambda: (torch.from_numpy(SVGD().update(x0, score, n_iter=50, stepsize=0.05)),),
        "published": lambda: lambda: (torch.from_numpy(published_svgd(x0, score, 50, 0.05)),),
    }
    return Race(makers, truth=lambda: (torch.from_numpy(published_svgd(x0, score, 50, 0.05)),))


def case(name: str, prepare: Callable[[bool], Race], peer: str, target: float, what: str, **options: float) -> Case:
    facts = {"family": "small", "reduction": what}
    return Case(f"small/{name}", prepare, targets={peer: target}, facts=facts, **options)  # type: ignore[arg-type]


register(
    [
        case("sinkhorn", sinkhorn_race, "torch dense", 10.0, "Sinkhorn, 3 problems of 10 x 10, D = 4", tolerance=1e-4),
        case(
            "divergence", functools.partial(divergence_race, 13), "torch dense", 4.0,
            "Sinkhorn divergence and gradient, N = 13", tolerance=1e-3, peer_tolerance=1e-2,
        ),
        case("gmd", classes_race, "torch dense", 3.0, "gmd, 10 classes of 32, one by one", tolerance=1e-5),
        case(
            "gmd_multi", released_race, "torch dense", 1.5, "gmd_multi, N = 32, D = 64", tolerance=1e-4,
            peer_tolerance=1e-3,
        ),
        *(
            case(
                f"drift_loss/{name}", functools.partial(drift_loss_race, *sizes), "JAX jitted", 1.5,
                f"drifting loss and gradient, {what}", tolerance=1e-4, peer_tolerance=1e-2,
            )
            for name, sizes, what in (
                ("toy", (1, 64, 64, 2), "N = 64, D = 2"),
                ("D64", (1, 64, 160, 64), "N = 64, D = 64"),
                ("batch", (16, 64, 160, 64), "16 problems of 64, D = 64"),
            )
        ),
        case(
            "coupling", coupling_race, "torch dense", 1.5, "Sinkhorn drift with guidance, N = 32, 3 temperatures",
            tolerance=1e-4, peer_tolerance=1e-3,
        ),
        case(
            "mmd_gan", functools.partial(mmd_race, 64), "torch dense", 4.0, "mix_rbf_mmd2 and gradient, B = 64",
            tolerance=1e-5, peer_tolerance=1e-3,
        ),
        *(
            case(
                f"svgd/N{n}", functools.partial(svgd_race, n), "published", 1.5, f"SVGD.update, 50 steps, N = {n}",
                tolerance=1e-9,
            )
            for n in (10, 100)
        ),
    ]
)  # fmt: skip
