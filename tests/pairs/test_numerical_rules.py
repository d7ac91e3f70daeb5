"""Rules of accuracy that few inputs can tell: self terms of log-sums, products of far points, centres, plain tensors.

Each of these once could be changed without a test turning red.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

import gwf_fast as gwf
from gwf_fast.ops import dispatch
from gwf_fast.randomness.draws import Draws

CPU = torch.device("cpu")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squares(x, y):
    """Of distances, by differences: not as torch.cdist does it."""
    return (x.double()[:, None] - y.double()[None]).square().sum(-1)


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize("dim", [1, 2, 9])
@pytest.mark.parametrize("n", [40, 300])
def test_a_log_sum_without_itself_is_measured_from_its_neighbours(n, dim):
    """Where a row's own term is 2^200 times all others, it must not even set the reference."""
    steps = torch.randperm(n, generator=torch.Generator().manual_seed(1)).double() * 17.5
    x = normal(n, dim) * 0.1
    x[:, 0] += steps
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        points = x.to(dtype)
        exponents = (-0.5 * squares(points, points)).fill_diagonal_(-torch.inf)
        options: dict[str, Any] = {"kernel": gwf.Gaussian(1.0), "exclude_self": True}
        assert relative(gwf.kernel_logsumexp(points, points, **options), exponents.logsumexp(1)) < bound
        means = exponents.softmax(1) @ points.double()
        assert relative(gwf.kernel_average(points, points, **options), means) < 1e3 * bound


@pytest.mark.parametrize("radius", [2.0, 4.0, 7.0, 9.0, 12.0])
@pytest.mark.parametrize("dim", [8, 16, 70])
def test_near_pairs_far_from_the_centre(dim, radius):
    """Products of coordinates lose 3e-7 |x|^2 of a squared distance: too much, from some radius on."""
    x = torch.nn.functional.normalize(normal(400, dim), dim=1) * radius
    x, y = x.float(), (x + normal(400, dim, seed=1) * (0.5 / dim**0.5)).float()
    k = torch.exp(-0.5 * squares(x, y))
    assert relative(gwf.kernel_sum(x, y, kernel=gwf.Gaussian(1.0)), k.sum(1)) < 5e-6
    slope = k @ y.double() - k.sum(1, keepdim=True) * x.double()
    assert relative(gwf.kernel_gradient(x, y, kernel=gwf.Gaussian(1.0)), slope) < 2e-5


@pytest.mark.parametrize(
    "drift",
    [
        lambda x, y: gwf.drift.gmd(x, y, temperature=0.5),
        lambda x, y: gwf.drift.gmd(x, y, temperature=0.5, negatives=y[:9] + 0.5),
        lambda x, y: gwf.drift.gmd_multi(x, y).velocity,
        lambda x, y: gwf.drift.parzen_kl(x, y, 0.7),
    ],
    ids=["gmd", "negatives", "gmd_multi", "parzen_kl"],
)
@pytest.mark.parametrize("n", [20, 600])
def test_drifts_far_from_the_origin(drift, n):
    x, y = ((normal(n, 3, seed=s) + shift).float() for s, shift in ((0, 1e3), (1, 1e3 + 0.5)))
    assert relative(drift(x, y), drift(x.double(), y.double())) < 5e-6


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_means_of_ragged_sets_far_from_the_origin(backend, differentiable):
    """Each row has its own centre back; a row that is none is 0. With a graph, another path has the centre."""
    x, y = normal(3, 9, 2) + 1e3, normal(3, 11, 2, seed=1) + 1e3
    x_lengths, y_lengths = torch.tensor([9, 4, 1]), torch.tensor([11, 3, 5])
    options = {"kernel": gwf.Gaussian(1.0), "backend": backend}
    points = x.clone().requires_grad_(differentiable)
    got = gwf.kernel_average(points, y, x_lengths=x_lengths, y_lengths=y_lengths, **options).detach()
    for b in range(3):
        n, m = int(x_lengths[b]), int(y_lengths[b])
        want = (-0.5 * squares(x[b, :n], y[b, :m])).softmax(1) @ y[b, :m]
        torch.testing.assert_close(got[b, :n], want, rtol=1e-12, atol=1e-12)
        assert not got[b, n:].any()


@pytest.mark.parametrize("bound", [1 << 31, (1 << 62) + 12345])
def test_indices_are_made_of_all_words(bound):
    """Random123's known answer for zero counters and keys: 6627e8d5 e169c58d bc57ac4c 9b00dbd8."""
    words = 0x6627E8D5 << 32 | 0xE169C58D
    assert Draws(0).indices(1, bound, CPU).item() == words * bound >> 64


def test_the_slope_of_a_residual_network_has_that_of_its_input():
    net = gwf.nn.MLP([1, 12, 1], "tanh", residual=True).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(normal(*parameter.shape, seed=parameter.numel()))
    x = normal(50, 1).requires_grad_()
    value, slope = net.value_and_grad(x)
    (want,) = torch.autograd.grad((x + torch.nn.Sequential(*net)(x)).sum(), x)
    torch.testing.assert_close(slope, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(value.flatten(), (x + torch.nn.Sequential(*net)(x)).flatten())
    with torch.no_grad():  # in one pass, with ones for the cotangent
        torch.testing.assert_close(net.value_and_grad(x.detach())[1], want, rtol=1e-12, atol=1e-12)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    torch.testing.assert_close(net.value_and_grad(x.detach())[1], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_results_of_operators_are_no_views(backend):
    """A view of a batch would tell autograd, and whoever writes to it, of memory that is not there to be shared."""
    x, y, w, spec = normal(5, 2), normal(7, 2, seed=1), normal(7, seed=2), gwf.Gaussian(1.0).spec
    results = [
        dispatch.function(backend, "pair_sum")(x, y, w, spec),
        dispatch.function(backend, "pair_sum")(x, y, w[:, None], spec),
        dispatch.function(backend, "pair_gradient")(x, y, w, spec),
        dispatch.function(backend, "pair_logsumexp")(x, y, w, spec),
        *dispatch.function(backend, "pair_average")(x, y, None, w, spec),
        *dispatch.function(backend, "pair_sum_gradient")(x, y, w, spec),
    ]
    assert [tuple(out.shape) for out in results[:3]] == [(5,), (5, 1), (5, 2)]
    assert not any(out._is_view() for out in results)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("most", [1, 2, 9, 10, 11, 25, 40, 400])
def test_sinkhorn_ends_with_exact_rows(most, tolerance, recwarn):
    """Also after over-relaxed sweeps, and in no more sweeps than asked for."""
    recwarn.clear()
    x, y = normal(30, 2), normal(40, 2, seed=1) + 0.5
    with pytest.warns(RuntimeWarning) if most < 40 and tolerance < 1e-1 else contextlib.nullcontext():
        found = gwf.sinkhorn(x, y, epsilon=0.02, max_iterations=most, tolerance=tolerance)
    cost = 0.5 * squares(x, y)
    plan = torch.exp((found.f[:, None] + found.g[None] - cost) / 0.02) / (30 * 40)
    torch.testing.assert_close(plan.sum(1), torch.full((30,), 1 / 30, dtype=torch.float64), rtol=1e-10, atol=0)
    assert found.n_iterations <= most


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_averages_beyond_the_lengths_are_0_far_from_the_origin(backend):
    """Where means are taken from a centre, which is added to them, and to nothing else."""
    x, y = (torch.randn(2, n, 3, dtype=torch.float64) + 1e3 for n in (6, 5))
    lengths = torch.tensor([4, 6])
    out = gwf.kernel_average(x.requires_grad_(), y, kernel=gwf.Gaussian(1.0), x_lengths=lengths, backend=backend)
    assert torch.equal(out[0, 4:], torch.zeros(2, 3, dtype=torch.float64)) and (out[1] > 900).all()
