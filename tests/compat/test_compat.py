"""The adapters against the packages and published formulas whose names they carry."""

from __future__ import annotations

import math
from typing import Any

import geomloss
import numpy as np
import pytest
import torch
from torch import Tensor

from gwf_fast.compat.geomloss import SamplesLoss
from gwf_fast.compat.mmd_gan import mix_rbf_mmd2
from gwf_fast.compat.svgd import SVGD, median_rule, order_statistics


def samples(n: int = 60, m: int = 45, batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(*batch, n, 3, generator=generator, dtype=torch.float64)
    y = 0.7 * torch.rand(*batch, m, 3, generator=generator, dtype=torch.float64) + 0.2
    a = torch.rand(*batch, n, generator=generator, dtype=torch.float64) + 0.1
    b = torch.rand(*batch, m, generator=generator, dtype=torch.float64) + 0.1
    return a / a.sum(-1, keepdim=True), x, b / b.sum(-1, keepdim=True), y


OPTIONS = [
    {"loss": "gaussian", "blur": 0.3},
    {"loss": "laplacian", "blur": 0.3},
    {"loss": "energy"},
    {"loss": "sinkhorn"},
    {"loss": "sinkhorn", "p": 1, "blur": 0.1, "scaling": 0.8},
    {"loss": "sinkhorn", "blur": 0.1, "reach": 0.5, "scaling": 0.7},
    {"loss": "sinkhorn", "p": 1, "blur": 0.1, "reach": 0.4},
    {"loss": "sinkhorn", "debias": False, "diameter": 3.0},
    {"loss": "sinkhorn", "debias": False, "reach": 0.3},
]


def theirs(options: dict, **more: object) -> torch.nn.Module:
    """geomloss reads r as at least 1e-4; given the cost as a function, it doesn't."""
    cost = torch.cdist if options.get("p") == 1 else None
    return geomloss.SamplesLoss(**options, **more, cost=cost, backend="tensorized")


def tolerance(options: dict) -> dict[str, Any]:
    clamped = options["loss"] in ("laplacian", "energy")
    return {"rtol": 3e-4, "atol": 3e-6} if clamped else {"rtol": 1e-6, "atol": 1e-9}


def gradient_factor(options: dict) -> float:
    """With reach, geomloss means to scale the gradient by rho + eps, but nothing calls the method that would."""
    if "reach" not in options:
        return 1.0
    p = options.get("p", 2)
    rho, epsilon = options["reach"] ** p, options.get("blur", 0.05) ** p
    return (rho + epsilon / 2) / (rho + epsilon)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_samples_loss_is_geomloss(options: dict, batch: tuple[int, ...]) -> None:
    a, x, b, y = samples(batch=batch)
    results = []
    for loss in (theirs(options), SamplesLoss(**options)):
        inputs = [t.clone().requires_grad_() for t in (x, y)]
        value = loss(a, inputs[0], b, inputs[1])
        results.append((value.detach(), torch.autograd.grad(value.sum(), inputs)))
    (value, gradients), (our_value, our_gradients) = results
    torch.testing.assert_close(our_value, value, **tolerance(options))
    for got, want in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(gradient_factor(options) * got, want, **tolerance(options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_potentials_are_geomloss(options: dict) -> None:
    a, x, b, y = samples(batch=(1,))
    wanted = theirs(options, potentials=True)(a, x, b, y)
    for got, want in zip(SamplesLoss(**options, potentials=True)(a, x, b, y), wanted, strict=True):
        torch.testing.assert_close(got, want, **tolerance(options))


def test_unequal_masses() -> None:
    a, x, b, y = samples()
    for debias in (True, False):
        options: dict[str, Any] = {"blur": 0.1, "reach": 0.5, "debias": debias}
        want = geomloss.SamplesLoss("sinkhorn", **options, backend="tensorized")(1.5 * a, x, b, y)
        torch.testing.assert_close(SamplesLoss("sinkhorn", **options)(1.5 * a, x, b, y), want, rtol=1e-9, atol=0)


def test_documented_example_of_geomloss() -> None:
    """Its front page: points on unit spheres, sinkhorn with p = 2, blur 0.05; float32 and uniform weights."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 3, generator=generator), torch.randn(200, 3, generator=generator)
    x, y = x / (2 * x.norm(dim=1, keepdim=True)), y / (2 * y.norm(dim=1, keepdim=True))
    results = []
    for package in (geomloss.SamplesLoss, SamplesLoss):
        leaf = x.clone().requires_grad_()
        value = package(loss="sinkhorn", p=2, blur=0.05)(leaf, y)
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"loss": "w2"}, {"p": 3}, {"cost": "SqDist(X,Y)"}, {"kernel": "rbf"}, {"blur": 0.0}, {"backend": "cpp"}],
    ids=str,
)
def test_what_samples_loss_refuses(options: dict) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        SamplesLoss(**options)


def published_mix_rbf_mmd2(x: Tensor, y: Tensor, sigmas: list[float], biased: bool) -> Tensor:
    z = torch.cat((x, y))
    products = z @ z.T
    norms = products.diagonal()
    exponent = norms[:, None] + norms - 2 * products
    k = torch.stack([torch.exp(-exponent / (2 * sigma**2)) for sigma in sigmas]).sum(0)
    m = len(x)
    xx, xy, yy = k[:m, :m], k[:m, m:], k[m:, m:]
    if biased:
        return (xx.sum() + yy.sum() - 2 * xy.sum()) / m**2
    off = xx.sum() - xx.diagonal().sum() + yy.sum() - yy.diagonal().sum()
    return off / (m * (m - 1)) - 2 * xy.sum() / m**2


@pytest.mark.parametrize("biased", [True, False])
def test_mix_rbf_mmd2(biased: bool) -> None:
    _, x, _, y = samples(40, 40)
    want = published_mix_rbf_mmd2(x, y, [1, 2, 4, 8, 16], biased)
    torch.testing.assert_close(mix_rbf_mmd2(x, y, [1, 2, 4, 8, 16], biased), want, rtol=1e-8, atol=1e-12)
    with pytest.raises(ValueError, match="sigma_list"):
        mix_rbf_mmd2(x, y, [])


def published_svgd(theta: np.ndarray, lnprob: object, n_iter: int, stepsize: float, bandwidth: float) -> np.ndarray:
    history = 0.0
    for iteration in range(n_iter):
        square = ((theta[:, None] - theta) ** 2).sum(-1)
        h = bandwidth
        if h < 0:
            h = math.sqrt(0.5 * np.median(square) / math.log(len(theta) + 1))
        k = np.exp(-square / h**2 / 2)
        slope = (-k @ theta + theta * k.sum(1)[:, None]) / h**2
        gradient = (k @ lnprob(theta) + slope) / len(theta)  # type: ignore[operator]
        history = gradient**2 if iteration == 0 else 0.9 * history + 0.1 * gradient**2
        theta = theta + stepsize * gradient / (1e-6 + np.sqrt(history))
    return theta


@pytest.mark.parametrize("n", [2, 3, 4, 5, 20, 21])
def test_median_rule(n: int) -> None:
    x = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    squares = (x[:, None] - x).square().sum(-1).numpy()
    assert abs(median_rule(x) - math.sqrt(0.5 * np.median(squares) / math.log(n + 1))) < 1e-12


@pytest.mark.parametrize("kind", ["normal", "equal", "sorted"])
def test_order_statistics_of_many(kind: str) -> None:
    """Sorted, a sample by strides is perfect; of a few distinct values the bracket may hold all or the wrong ones."""
    n = 300_001
    values = np.random.default_rng(1).normal(size=n)
    if kind == "equal":
        values = np.round(values)
    ordered = np.sort(values)
    for ranks in ([n // 2], [n // 2 - 1, n // 2], [0], [n - 2, n - 1], []):
        assert order_statistics(ordered if kind == "sorted" else values, ranks) == list(ordered[ranks])
    values[:: n // 10_000] += 100  # a sample that tells nothing about the rest
    assert order_statistics(values, [n // 2]) == [np.sort(values)[n // 2]]


@pytest.mark.parametrize("bandwidth", [-1, 0.7])
def test_svgd(bandwidth: float) -> None:
    start = np.random.default_rng(0).normal(size=(50, 2))
    mean, precision = np.array([1.0, -2.0]), np.array([[2.0, 0.3], [0.3, 1.0]])

    def lnprob(theta: np.ndarray) -> np.ndarray:
        return -(theta - mean) @ precision

    options: dict[str, Any] = {"n_iter": 30, "stepsize": 0.05, "bandwidth": bandwidth}
    want = published_svgd(start, lnprob, **options)
    np.testing.assert_allclose(SVGD().update(start, lnprob, **options), want, rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="x0"):
        SVGD().update(None, lnprob)
