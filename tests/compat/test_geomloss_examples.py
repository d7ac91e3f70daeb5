"""The examples of geomloss' own documentation, run through compat: the same numbers at every step."""

from __future__ import annotations

from typing import Any

import geomloss
import pytest
import torch
from torch import Tensor

from gwf_fast.compat.geomloss import SamplesLoss

F64 = torch.float64
PACKAGES = (geomloss.SamplesLoss, SamplesLoss)

# Gradient flows in 1D and 2D: the losses of the two galleries.
FLOWS = [
    {"loss": "gaussian", "blur": 0.5},
    {"loss": "gaussian", "blur": 0.1},
    {"loss": "laplacian", "blur": 0.1},
    {"loss": "energy"},
    {"loss": "sinkhorn", "p": 1, "blur": 1.0},
    {"loss": "sinkhorn", "p": 1, "blur": 0.01},
    {"loss": "sinkhorn", "p": 2, "blur": 1.0},
    {"loss": "sinkhorn", "p": 2, "blur": 0.01},
    {"loss": "sinkhorn", "p": 2, "blur": 0.01, "reach": 0.3},
]


def flow(loss: torch.nn.Module, x: Tensor, y: Tensor, step: float, count: int, factor: float) -> tuple[Tensor, Tensor]:
    """Explicit Euler steps of size lr N g, as in the examples; the points at the end and the values on the way."""
    x, values = x.clone().requires_grad_(), []
    for _ in range(count):
        value = loss(x, y)
        (gradient,) = torch.autograd.grad(value, x)
        values.append(value.detach())
        x.data -= step * factor * len(x) * gradient
    return x.detach(), torch.stack(values)


@pytest.mark.parametrize("options", FLOWS, ids=str)
@pytest.mark.parametrize("dim", [1, 2])
def test_gradient_flows(options: dict, dim: int) -> None:
    if dim == 1:
        t = torch.linspace(0, 1, 10, dtype=F64)[:, None]
        x, y, step = 0.2 * t, 0.4 * t + 0.6, 0.01
    else:
        generator = torch.Generator().manual_seed(0)
        x = 0.15 * torch.rand(10, 2, generator=generator, dtype=F64) + 0.1
        y = 0.3 * torch.rand(10, 2, generator=generator, dtype=F64) + 0.5
        step = 0.05
    # geomloss means to scale the gradient under reach, and does not (tests/compat/test_compat.py)
    factor = (0.09 + 0.5e-4) / (0.09 + 1e-4) if "reach" in options else 1.0
    # geomloss bounds r from below by 1e-4 in kernels and costs of r; given the cost as a function, it does not. The
    # flow of the energy distance is compared until particles meet, where the bound decides.
    clamped = options["loss"] in ("laplacian", "energy")
    count = 12 if clamped else 25
    theirs = geomloss.SamplesLoss(**options, cost=torch.cdist if options.get("p") == 1 else None, backend="tensorized")
    (want, values), (got, ours) = (
        flow(loss, x, y, step, count, f) for loss, f in ((theirs, 1.0), (SamplesLoss(**options), factor))
    )
    tolerance: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5} if clamped else {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(ours, values, **tolerance)
    torch.testing.assert_close(got, want, **tolerance)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("scaling", [0.5, 0.7])
def test_blur_parameter_and_scaling_strategy(scaling: float, debias: bool) -> None:
    """Weighted grids of the unit square; gradients in the weights are the potentials."""
    axis = (torch.arange(8, dtype=F64) + 0.5) / 8
    grid = torch.cartesian_prod(axis, axis)
    a, b = (torch.exp(-(grid - torch.tensor(c, dtype=F64)).square().sum(1) / 0.05) for c in ((0.3, 0.4), (0.7, 0.6)))
    a, b = a / a.sum(), b / b.sum()
    for i in range(5):
        options: dict[str, Any] = {"p": 2, "blur": scaling**i, "diameter": 1.0, "scaling": scaling, "debias": debias}
        results = []
        for package in PACKAGES:
            leaves = [t.clone().requires_grad_() for t in (a, grid, b)]
            value = package("sinkhorn", **options)(leaves[0], leaves[1], leaves[2], grid)
            results.append((value.detach(), *torch.autograd.grad(value, leaves)))
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("reach", [None, 0.2])
def test_label_transfer(reach: float | None) -> None:
    """Potentials, and the labels that their plan carries over."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(90, 2, generator=generator, dtype=F64), torch.rand(80, 2, generator=generator, dtype=F64)
    labels = torch.nn.functional.one_hot(torch.arange(80) % 3, 3).double()
    options: dict[str, Any] = {
        "p": 2,
        "blur": 0.05,
        "reach": reach,
        "scaling": 0.9,
        "debias": False,
        "potentials": True,
    }
    results = []
    for package in PACKAGES:
        f, g = (t.flatten() for t in package("sinkhorn", **options)(x, y))
        plan = torch.exp((f[:, None] + g - torch.cdist(x, y).square() / 2) / 0.05**2)
        results.append((f, g, plan @ labels / len(y)))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def test_batches_of_measures() -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = torch.rand(3, 40, 2, generator=generator, dtype=F64), torch.rand(3, 50, 2, generator=generator, dtype=F64)
    want, got = (package("sinkhorn", p=2, blur=0.05)(x, y) for package in PACKAGES)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=0)
