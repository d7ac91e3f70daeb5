"""Stein's operators against dense autograd in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import gwf_fast as gwf
from gwf_fast import _cpu
from gwf_fast.kernels.cpp import pairs as cpp

KERNELS = [gwf.Gaussian(0.8), gwf.IMQ(0.9), gwf.Matern52(1.1), 0.5 * gwf.Gaussian(0.5) + gwf.IMQ(2.0)]


def particles(n: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(dim)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64) + 0.5
    return x, -1.3 * x + 0.1 * torch.randn(n, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 9])
def test_svgd_direction_is_its_definition(kernel: gwf.Kernel, dim: int) -> None:
    x, score = particles(30, dim)
    left = x.clone().requires_grad_()
    k = kernel(left, x)  # [j, i]; the gradient in the first argument
    slopes = torch.stack([torch.autograd.grad(k[:, i].sum(), left, retain_graph=True)[0].sum(0) for i in range(30)])
    want = (k.detach().T @ score + slopes) / 30
    torch.testing.assert_close(gwf.svgd_direction(x, score, kernel=kernel), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("radius", [1.0, 7.0, 30.0])
@pytest.mark.parametrize("dim", [2, 40])
def test_svgd_direction_in_float32_near_and_far(dim: int, radius: float) -> None:
    """Whether or not the points lie within the few bandwidths where one pass serves both terms; far from the origin."""
    x, score = particles(400, dim)
    x = x - x.mean(0)
    x = 64 + (radius / float(x.norm(dim=1).max())) * x
    kernel = gwf.Gaussian(1.0)
    k = torch.exp(-torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square() / 2)
    want = (k @ score + x * k.sum(1, keepdim=True) - k @ x) / 400
    torch.testing.assert_close(gwf.svgd_direction(x, score, kernel=kernel), want, rtol=1e-9, atol=1e-11)
    single = x.float()
    got = gwf.svgd_direction(single, score.float(), kernel=kernel)
    want = gwf.svgd_direction(single.double(), score, kernel=kernel)  # of the points as rounded
    assert float((got - want).norm() / want.norm()) < 1e-5


def test_svgd_direction_differentiates() -> None:
    x, score = particles(6, 2)
    f = lambda x, s: gwf.svgd_direction(x, s, kernel=gwf.Gaussian(0.9))  # noqa: E731
    assert torch.autograd.gradcheck(f, (x.requires_grad_(), score.requires_grad_()))
    assert torch.autograd.gradgradcheck(f, (x, score))


def test_svgd_direction_bad_input() -> None:
    x, score = particles(5, 2)
    for bad, match in ((score[:, :1], "score must have the shape"), (score[:4], "score must have shape")):
        with pytest.raises(ValueError, match=match):
            gwf.svgd_direction(x, bad, kernel=gwf.Gaussian(1.0))


def stein_matrix(x: Tensor, score: Tensor, kernel: gwf.Kernel) -> Tensor:
    """The Stein kernel of all pairs by autograd, from its definition; x, score [N, D]."""
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    n, dim = x.shape

    def one(u: Tensor, v: Tensor) -> Tensor:
        return kernel(u[None], v[None])[0, 0]

    out = torch.empty(n, n, dtype=x.dtype)
    for i in range(n):
        for j in range(n):
            u, v = left[i].detach().requires_grad_(), right[j].detach().requires_grad_()
            k = one(u, v)
            du, dv = torch.autograd.grad(k, (u, v), create_graph=True)
            trace = sum(torch.autograd.grad(du[c], v, retain_graph=True)[0][c] for c in range(dim))
            out[i, j] = (k * (score[i] @ score[j]) + score[i] @ dv + score[j] @ du + trace).detach()
    return out


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("dim", [1, 9])
def test_ksd2_is_its_definition(kernel: gwf.Kernel, dim: int) -> None:
    x, score = particles(13, dim)
    u = stein_matrix(x, score, kernel)
    biased = gwf.ksd2(x, score, kernel=kernel, unbiased=False)
    torch.testing.assert_close(biased, u.mean(), rtol=1e-10, atol=1e-12)
    want = (u.sum() - u.diagonal().sum()) / (13 * 12)
    torch.testing.assert_close(gwf.ksd2(x, score, kernel=kernel), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", [gwf.IMQ(0.9), 0.5 * gwf.Gaussian(0.5) + gwf.IMQ(2.0)], ids=str)
@pytest.mark.parametrize("dim", [2, 9, 70])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ksd2_over_many_tiles(kernel: gwf.Kernel, dim: int, dtype: torch.dtype) -> None:
    from gwf_fast.kernels.reference import stein as stein_reference

    x, score = particles(301, dim)
    x = x + 20  # no centre, no accuracy
    for unbiased in (True, False):
        want = stein_reference.stein_sum(x[None], score[None], kernel.spec, not unbiased)[0]
        scale = stein_reference.stein_sum(x[None], score[None], kernel.spec, True)[0].abs()
        count = 301 * 300 if unbiased else 301 * 301
        got = gwf.ksd2(x.to(dtype), score.to(dtype), kernel=kernel, unbiased=unbiased).double() * count
        assert float((got - want).abs() / scale) < (1e-11 if dtype == torch.float64 else 3e-5)


def test_ksd2_in_float32_beside_an_outlier() -> None:
    """Where distances come from differences, what a point's norm has rounded is in all of its pairs: 9e-7 of 8."""
    squares = 0.0
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        x, score = (torch.randn(33, 70, generator=generator) for _ in range(2))
        x[0] = 30.0
        kernel = gwf.Gaussian(17.22)
        error = gwf.ksd2(x, score, kernel=kernel) - gwf.ksd2(x.double(), score.double(), kernel=kernel)
        squares += float(error) ** 2
    assert math.sqrt(squares / 12) < 5e-7


@pytest.mark.parametrize("unbiased", [True, False])
def test_ksd2_gradient(unbiased: bool) -> None:
    kernel = 0.5 * gwf.Gaussian(0.9) + gwf.IMQ(2.0)
    for dim in (2, 9):
        inputs = [t.clone().requires_grad_() for t in particles(53, dim)]
        assert torch.autograd.gradcheck(
            lambda x, s: gwf.ksd2(x, s, kernel=kernel, unbiased=unbiased), inputs, rtol=1e-5, atol=1e-9
        )


def test_ksd2_batches_and_the_portable_path() -> None:
    from gwf_fast.kernels.cpp import pairs as cpp
    from gwf_fast.kernels.reference import stein as stein_reference

    x, score = particles(24, 3)
    xs, scores = x.view(2, 12, 3), score.view(2, 12, 3)
    both = gwf.ksd2(xs, scores, kernel=gwf.IMQ(1.0))
    each = torch.stack([gwf.ksd2(u, v, kernel=gwf.IMQ(1.0)) for u, v in zip(xs, scores, strict=True)])
    torch.testing.assert_close(both, each, rtol=1e-12, atol=0)
    for diagonal in (True, False):
        arguments = (xs, scores, gwf.IMQ(1.0).spec, diagonal)
        for name in ("stein_sum", "stein_sum_gradients"):
            torch.testing.assert_close(getattr(cpp, name)(*arguments), getattr(stein_reference, name)(*arguments))


def test_ksd2_falls_as_the_samples_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 4, generator=generator)
    good = gwf.ksd2(x, -x, kernel=gwf.IMQ(1.0))
    shifted = gwf.ksd2(x + 0.5, -(x + 0.5), kernel=gwf.IMQ(1.0))
    assert float(shifted) > 20 * abs(float(good))


def test_ksd2_does_not_depend_on_threads() -> None:
    x, score = (t.float() for t in particles(1500, 12))
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(gwf.ksd2(x, score, kernel=gwf.Gaussian(3.0)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_ksd2_bad_input() -> None:
    x, score = particles(5, 2)
    with pytest.raises(ValueError, match="at least two samples"):
        gwf.ksd2(x[:1], score[:1], kernel=gwf.IMQ(1.0))
    with pytest.raises(ValueError, match="score must have"):
        gwf.ksd2(x, score[:, :1], kernel=gwf.IMQ(1.0))
    with pytest.raises(ValueError, match="numbers as bandwidths"):
        gwf.ksd2(x, score, kernel=gwf.Gaussian(torch.tensor(1.0)))
    with pytest.raises(TypeError, match="kernel must be"):
        gwf.ksd2(x, score, kernel=1.0)  # type: ignore[arg-type]


def dense_gaussian_gradients(x: Tensor, score: Tensor, diagonal: bool) -> tuple[Tensor, ...]:
    """Of the sum of Stein's kernel from the Gaussian of bandwidth 1, in closed form and float64, by autograd."""
    x, score = (t.double().requires_grad_() for t in (x, score))
    d, ds = x[:, None] - x, score[:, None] - score
    square = d.square().sum(-1)
    u = (-square / 2).exp() * ((score[:, None] * score).sum(-1) + (d * ds).sum(-1) + x.shape[1] - square)
    return torch.autograd.grad(u.sum() if diagonal else u.sum() - u.diagonal().sum(), (x, score))


@pytest.mark.parametrize("isa", _cpu.instruction_sets())
@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize(
    ("dim", "spread", "pairs"), [(2, 6.0, False), (5, 7.0, False), (16, 8.0, False), (16, 3.0, True), (16, 1e3, True)]
)
def test_large_scores_of_float32(isa: str, diagonal: bool, dim: int, spread: float, pairs: bool) -> None:
    """|s_i|^2 phi' of a point with itself multiplies a difference of 0: of products, its rounding was up to 28 times
    what the other pairs add. Nor may the differences of close pairs lose digits far from the centre."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, dim, generator=generator) * (spread / dim**0.5)
    if pairs:
        x[20:] = x[:20] + 0.05 * torch.randn(20, dim, generator=generator)
    score = 1e4 * torch.nn.functional.normalize(torch.randn(40, dim, generator=generator), dim=1)
    before = _cpu.instruction_set()
    _cpu.use_instruction_set(isa)
    try:
        got = cpp.stein_sum_gradients(x[None], score[None], gwf.Gaussian(1.0).spec, diagonal)
    finally:
        _cpu.use_instruction_set(before)
    for a, b in zip(got, dense_gaussian_gradients(x, score, diagonal), strict=True):
        assert float((a[0] - b).norm() / b.norm()) < 1e-5
