"""Sums in one dimension that need no transform."""

from __future__ import annotations

import pytest
import torch

import gwf_fast as gwf


@pytest.mark.parametrize("method", ["nufft", "sliced"])
@pytest.mark.parametrize("reduction", [gwf.kernel_sum, gwf.kernel_gradient])
def test_distances_on_a_line_come_from_the_order_of_the_points(method, reduction):
    """Exact, with ties and an outlier, differentiable, and the same bits whatever the number of threads."""
    seed = torch.Generator().manual_seed(5)
    x = torch.randn(300, 1, generator=seed, dtype=torch.float64)
    y = torch.cat((x[:40], 100 * torch.randn(400, 1, generator=seed, dtype=torch.float64), torch.full((1, 1), 1e7)))
    weights = torch.randn(len(y), generator=seed, dtype=torch.float64)
    kernel = 0.7 * gwf.Riesz(1.0) + gwf.PowerLaw(2, 1)
    d = x - y.T
    dense = {gwf.kernel_sum: -1.7 * d.abs() + d.square() / 2, gwf.kernel_gradient: -1.7 * d.sign() + d}[reduction]
    inputs = [t.clone().requires_grad_() for t in (x, y, weights)]
    got = reduction(*inputs[:2], inputs[2], kernel=kernel, method=method)
    truth = dense @ weights
    assert float((got.detach().flatten() - truth).norm() / truth.norm()) < 1e-14
    exact = reduction(*inputs[:2], inputs[2], kernel=kernel)
    cotangent = torch.randn(got.shape, generator=seed, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad(out, inputs, cotangent) for out in (got, exact)), strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-12
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(reduction(x, y, weights, kernel=kernel, method=method), got)
    finally:
        torch.set_num_threads(before)
