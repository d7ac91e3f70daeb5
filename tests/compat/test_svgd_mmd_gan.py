"""The published codes of SVGD and MMD-GAN where they are at their limits, transcribed from their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gwf_fast.compat.mmd_gan import mix_rbf_mmd2, mix_rbf_mmd2_and_ratio
from gwf_fast.compat.svgd import SVGD

F64 = torch.float64
SIGMAS = [1.0, 2.0, 2.0, 4.0]


def published_kernel(theta: np.ndarray, h: float) -> tuple[np.ndarray, np.ndarray]:
    squares = ((theta[:, None] - theta) ** 2).sum(-1)
    if h < 0:
        h = np.sqrt(0.5 * np.median(squares) / np.log(len(theta) + 1))
    k = np.exp(-squares / h**2 / 2)
    return k, ((theta[:, None] - theta) * k[..., None]).sum(1) / h**2


@pytest.mark.parametrize("h", [-1, 0.8])
@pytest.mark.parametrize("n", [2, 3, 20])
def test_svgd_kernel(n: int, h: float) -> None:
    theta = np.random.default_rng(n).normal(size=(n, 3)) + 5
    for got, want in zip(SVGD().svgd_kernel(theta, h), published_kernel(theta, h), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def climb(theta: np.ndarray) -> np.ndarray:
    return -2 * theta


@pytest.mark.parametrize("n", [1, 2, 5, 300])
def test_particles_that_coincide(n: int) -> None:
    """The original divides 0 by 0; the limit of small bandwidths has each climb alone, of N times less."""
    place = np.full((n, 2), 1.5)
    k, repulsion = SVGD().svgd_kernel(place)
    assert (k == 1).all() and (repulsion == 0).all()
    moved = SVGD().update(place, climb, n_iter=1, stepsize=0.1)
    np.testing.assert_allclose(moved, 1.5 - 0.1 * 3 / (3 + 1e-6), rtol=1e-12)
    with np.errstate(all="ignore"):
        assert np.isnan(published_kernel(place, -1)[0]).all()


def test_no_particles() -> None:
    nothing = np.zeros((0, 2))
    assert SVGD().update(nothing, climb, n_iter=2).shape == (0, 2)
    assert [part.shape for part in SVGD().svgd_kernel(nothing)] == [(0, 0), (0, 2)]


@pytest.mark.parametrize("n", [8, 300])
def test_more_pairs_that_coincide_than_not(n: int) -> None:
    theta = np.zeros((n, 2))
    theta[0] = 3.0
    direction = climb(theta) / n  # of a group of n - 1, whose scores are 0, and of one
    moved = SVGD().update(theta, climb, n_iter=1, stepsize=0.1)
    np.testing.assert_allclose(moved, theta + 0.1 * direction / (1e-6 + np.abs(direction)), rtol=1e-12)
    k, repulsion = SVGD().svgd_kernel(theta)
    assert (k == (theta[:, :1] == theta[:, 0])).all() and (repulsion == 0).all()


def test_a_bandwidth_is_used() -> None:
    """The original takes one, and goes by the median all the same."""
    start = np.random.default_rng(0).normal(size=(10, 2))
    by_median, by_hand = (SVGD().update(start, climb, n_iter=3, bandwidth=h) for h in (-1, 0.1))
    assert not np.allclose(by_median, by_hand, rtol=1e-6)


@pytest.mark.parametrize("n", [3, 300])
def test_a_particle_that_is_lost(n: int) -> None:
    theta = np.random.default_rng(0).normal(size=(n, 2))
    theta[1] = np.nan
    assert np.isnan(SVGD().update(theta, climb, n_iter=1)[1]).all()


def published_ratio(x: Tensor, y: Tensor, sigmas: list[float], biased: bool) -> tuple[Tensor, Tensor, Tensor]:
    def matrix(u: Tensor, v: Tensor) -> Tensor:
        squares = (u[:, None] - v).square().sum(-1)
        return torch.stack([torch.exp(-squares / (2 * s**2)) for s in sigmas]).sum(0)

    xx, yy, xy = matrix(x, x), matrix(y, y), matrix(x, y)
    m = len(x)
    tx, ty = xx - xx.diagonal().diag(), yy - yy.diagonal().diag()
    if biased:
        value = (xx.sum() + yy.sum() - 2 * xy.sum()) / m**2
    else:
        value = (tx.sum() + ty.sum()) / (m * (m - 1)) - 2 * xy.sum() / m**2
    variance = (
        2 / (m**2 * (m - 1) ** 2)
        * (2 * tx.sum(1).square().sum() - tx.square().sum() + 2 * ty.sum(1).square().sum() - ty.square().sum())
        - (4 * m - 6) / (m**3 * (m - 1) ** 3) * (tx.sum() ** 2 + ty.sum() ** 2)
        + 4 * (m - 2) / (m**3 * (m - 1) ** 2) * (xy.sum(1).square().sum() + xy.sum(0).square().sum())
        - 4 * (m - 3) / (m**3 * (m - 1) ** 2) * xy.square().sum()
        - (8 * m - 12) / (m**5 * (m - 1)) * xy.sum() ** 2
        + 8 / (m**3 * (m - 1))
        * ((tx.sum() + ty.sum()) * xy.sum() / m - tx.sum(1) @ xy.sum(1) - ty.sum(1) @ xy.sum(0))
    )  # fmt: skip
    return value / variance.clamp(min=1e-8).sqrt(), value, variance


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("n", "apart"), [(2, 0.5), (3, 0.5), (40, 0.3), (40, 0.0)])
def test_mmd_and_ratio(n: int, apart: float, biased: bool) -> None:
    generator = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, 5, generator=generator, dtype=F64) for _ in "xy")
    leaves = [x.requires_grad_(), (y + apart).requires_grad_()]
    want = published_ratio(leaves[0], leaves[1], SIGMAS, biased)
    got = mix_rbf_mmd2_and_ratio(leaves[0], leaves[1], SIGMAS, biased)
    assert torch.equal(got[1], mix_rbf_mmd2(leaves[0], leaves[1], SIGMAS, biased))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-13)
        slopes = (torch.autograd.grad(value, leaves, retain_graph=True) for value in (mine, theirs))
        for a, b in zip(*slopes, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_the_variance_is_that_of_repeated_draws() -> None:
    """The estimate of the published code is one of the variance of the unbiased statistic."""
    generator = torch.Generator().manual_seed(0)
    draws = [
        mix_rbf_mmd2_and_ratio(
            torch.randn(50, 1, generator=generator, dtype=F64),
            torch.randn(50, 1, generator=generator, dtype=F64) + 1,
            [1.0],
            False,
        )
        for _ in range(300)
    ]
    values, variances = (torch.stack([draw[k] for draw in draws]) for k in (1, 2))
    assert abs(float(variances.mean() / values.var()) - 1) < 0.2


def test_float32_keeps_a_small_variance() -> None:
    """Terms of 1 / N cancel: the published code, in float32 throughout, has 4 digits fewer."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(200, 3, generator=generator) for _ in "xy")
    want = published_ratio(x.double(), y.double(), SIGMAS, False)
    got = mix_rbf_mmd2_and_ratio(x, y, SIGMAS, False)
    assert got[2].dtype == torch.float32
    torch.testing.assert_close(got[2].double(), want[2], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("x", "y", "sigmas", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(4, 2), [1.0], r"X and Y must have one shape \[N, D\] with N >= 2"),
        (torch.zeros(1, 2), torch.zeros(1, 2), [1.0], r"X and Y must have one shape \[N, D\] with N >= 2"),
        (torch.zeros(3, 2), torch.zeros(3, 2), [], "sigma_list must have at least one bandwidth"),
    ],
)
def test_bad_input(x: Tensor, y: Tensor, sigmas: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix_rbf_mmd2_and_ratio(x, y, sigmas)
