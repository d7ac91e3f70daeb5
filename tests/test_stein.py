"""Stein's operators against dense autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gwf_fast as gwf

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


def test_svgd_direction_bad_input() -> None:
    x, score = particles(5, 2)
    for bad, match in ((score[:, :1], "score must have the shape"), (score[:4], "score must have shape")):
        with pytest.raises(ValueError, match=match):
            gwf.svgd_direction(x, bad, kernel=gwf.Gaussian(1.0))
    with pytest.raises(ValueError, match="at least one particle"):
        gwf.svgd_direction(x[:0], score[:0], kernel=gwf.Gaussian(1.0))
