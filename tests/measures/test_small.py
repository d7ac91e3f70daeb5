"""The squared MMD and the step of SVGD in one compiled call: against dense float64, and without a pass beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gwf_fast as gwf
from gwf_fast import _cpu
from gwf_fast.compat.mmd_gan import mix_rbf_mmd2
from gwf_fast.compat.svgd import SVGD, median_rule
from gwf_fast.kernels.cpp import small as cpp

KERNELS = {
    "gaussian": gwf.Gaussian(1.3),
    "mixture": 0.5 * gwf.Gaussian(0.7) + gwf.IMQ(1.1) - 0.2 * gwf.Laplace(2.0),
    "riesz": gwf.Riesz(1.0),
}


def sets(*batch: int, n: int = 11, m: int = 8, dim: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n + m + dim)
    x, y = (torch.randn(*batch, k, dim, generator=generator, dtype=torch.float64) for k in (n, m))
    a, b = (torch.randn(*batch, k, generator=generator, dtype=torch.float64) + 0.4 for k in (n, m))
    return x, y, a, b


def dense_mmd2(x: Tensor, y: Tensor, a: Tensor, b: Tensor, *, kernel: gwf.Kernel, unbiased: bool) -> Tensor:
    def form(u: Tensor, v: Tensor, p: Tensor, q: Tensor, own: bool) -> Tensor:
        matrix = kernel(u, v)
        if not (own and unbiased):
            return torch.einsum("...i,...ij,...j->...", p, matrix, q)
        apart = matrix * (1 - torch.eye(u.shape[-2], dtype=u.dtype))
        total = p.sum(-1)
        left = torch.einsum("...i,...ij,...j->...", p, apart, p)
        return left * total**2 / (total**2 - p.square().sum(-1))

    return form(x, x, a, a, True) + form(y, y, b, b, True) - 2 * form(x, y, a, b, False)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("name", KERNELS)
def test_mmd2_is_the_dense_one(name: str, batch: tuple[int, ...], unbiased: bool) -> None:
    x, y, a, b = sets(*batch)
    results = []
    for ours in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, y, a, b)]
        if ours:
            options: dict[str, Any] = {"x_weights": leaves[2], "y_weights": leaves[3]}
            value = gwf.mmd2(*leaves[:2], kernel=KERNELS[name], unbiased=unbiased, **options)
        else:
            value = dense_mmd2(*leaves, kernel=KERNELS[name], unbiased=unbiased)
        u = torch.arange(1.0, 1 + math.prod(batch), dtype=torch.float64).view(batch)
        results.append([value.detach(), *torch.autograd.grad((u * value).sum(), leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("unbiased", [False, True])
def test_equal_weights_and_one_gradient_alone(unbiased: bool) -> None:
    x, y, _, _ = sets(2)
    equal = [torch.full(t.shape[:-1], 1 / t.shape[-2], dtype=t.dtype) for t in (x, y)]
    for at in range(2):
        results = []
        for ours in (True, False):
            leaves = [t.clone().requires_grad_(k == at) for k, t in enumerate((x, y))]
            if ours:
                value = gwf.mmd2(*leaves, kernel=KERNELS["gaussian"], unbiased=unbiased)
            else:
                value = dense_mmd2(*leaves, *equal, kernel=KERNELS["gaussian"], unbiased=unbiased)
            results.append([value.detach(), *torch.autograd.grad(value.sum(), leaves[at])])
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
def test_mmd2_differentiates_twice(unbiased: bool) -> None:
    leaves = [t.requires_grad_() for t in sets(2, n=4, m=3, dim=2)]

    def value(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return gwf.mmd2(x, y, kernel=KERNELS["gaussian"], unbiased=unbiased, x_weights=a, y_weights=b)

    assert torch.autograd.gradcheck(value, leaves)
    assert torch.autograd.gradgradcheck(value, leaves)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, the_long_way: None) -> list[str]:
    """Names of compiled functions that were called."""
    calls: list[str] = []
    for name in ("pairwise", "mmd", "svgd"):
        compiled = getattr(_cpu, name)
        monkeypatch.setattr(_cpu, name, lambda *a, _name=name, _call=compiled: calls.append(_name) or _call(*a))
    return calls


def test_one_call_does_all(counted: list[str]) -> None:
    x, y, _, _ = sets()
    leaf = x.clone().requires_grad_()
    mix_rbf_mmd2(leaf, y, [1, 2, 4]).backward()
    assert counted == ["mmd"]
    gwf.svgd_direction(x, -x, kernel=gwf.Gaussian(gwf.median_bandwidth(x)))
    assert counted == ["mmd", "svgd", "svgd"]
    SVGD().update(x.numpy(), lambda t: -t, n_iter=3)
    assert counted == ["mmd", *["svgd"] * 5]


def dense_direction(x: Tensor, score: Tensor, h: float | Tensor) -> Tensor:
    difference = x[..., :, None, :] - x[..., None, :, :]
    k = torch.exp(-difference.square().sum(-1) / (2 * h**2))
    return (k @ score + (k[..., None] * difference).sum(-2) / h**2) / x.shape[-2]


@pytest.mark.parametrize("isa", _cpu.instruction_sets())
@pytest.mark.parametrize("size", [(1, 2), (2, 1), (13, 3), (100, 2), (256, 17)])
def test_svgd_is_its_definition(size: tuple[int, int], isa: str) -> None:
    x, score, _, _ = sets(2, n=size[0], m=size[0], dim=size[1])
    x = x + 1e4  # far from the origin
    before = _cpu.instruction_set()
    try:
        _cpu.use_instruction_set(isa)
        got = gwf.svgd_direction(x, score, kernel=gwf.Gaussian(0.7))
        single = gwf.svgd_direction(x.float(), score.float(), kernel=gwf.Gaussian(0.7))
    finally:
        _cpu.use_instruction_set(before)
    torch.testing.assert_close(got, dense_direction(x, score, 0.7), rtol=1e-11, atol=1e-12)
    want = dense_direction(x.float().double(), score.float().double(), 0.7)
    torch.testing.assert_close(single.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [*range(2, 12), 33, 34, 100, 101, 255, 256])
def test_medians(n: int) -> None:
    x = sets(n=n, m=2, dim=2)[0]
    for points in (x, (x * 2).round(), torch.cat([x[:1], x[:-1]]), torch.exp(30 * x)):  # ties, and lengths of all sizes
        pairs = torch.pdist(points).square()
        lower = float(pairs.median())
        every = float(np.median(torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()))
        h = gwf.median_bandwidth(points)
        assert float(h) ** 2 * 2 * math.log(n + 1) == pytest.approx(lower, rel=1e-12)
        assert median_rule(points) ** 2 * 2 * math.log(n + 1) == pytest.approx(every, rel=1e-12)
        if every > 0:
            got, want = cpp.svgd(points, -x, "all"), dense_direction(points, -x, math.sqrt(every / 2 / math.log(n + 1)))
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_what_is_out_of_range_goes_the_general_way() -> None:
    x, score, _, _ = sets(n=8, m=8)
    assert cpp.svgd(torch.full_like(x, math.nan), score, 1.0) is None
    assert cpp.svgd(1e200 * x, score, 1.0) is None
    assert cpp.svgd(torch.zeros_like(x), score, "pairs") is None
    assert bool(torch.isnan(gwf.svgd_direction(torch.full_like(x, math.nan), score, kernel=gwf.Gaussian(1.0))).all())
    assert gwf.median_bandwidth(torch.zeros_like(x)) == 0


def test_threads_change_nothing() -> None:
    x, score, _, _ = sets(20, n=120, m=120, dim=4)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = x.clone().requires_grad_()
            value = gwf.mmd2(leaf, score, kernel=KERNELS["mixture"])
            gradient = torch.autograd.grad(value.sum(), leaf)[0]
            direction = gwf.svgd_direction(x, score, kernel=gwf.Gaussian(1.0))
            results.append([value.detach(), gradient, direction])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(got, want) for got, want in zip(other, results[0], strict=True))
