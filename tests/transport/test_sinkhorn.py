"""Entropic transport against closed forms, linear programming, geomloss' formulas and finite differences."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import gwf_fast as gwf
from gwf_fast.transport.problem import Entropic
from gwf_fast.transport.solve import alternate


def clouds(n: int, m: int, dim: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + 100 * m)
    x = 0.5 * torch.randn(n, dim, generator=generator, dtype=dtype)
    y = 0.4 * torch.randn(m, dim, generator=generator, dtype=dtype) + 0.3
    a = torch.rand(n, generator=generator, dtype=dtype) + 0.2
    b = torch.rand(m, generator=generator, dtype=dtype) + 0.2
    return x, y, a / a.sum(), b / b.sum()


def dense_plan(x: Tensor, y: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Tensor:
    cost = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1) / 2
    return a[..., None] * b[..., None, :] * torch.exp((f[..., None] + g[..., None, :] - cost) / epsilon)


TIGHT: dict[str, Any] = {"max_iterations": 5000, "tolerance": 1e-13}


@pytest.mark.parametrize("scaling", [None, 0.7])
def test_the_plan_has_the_marginals_asked_for(scaling: float | None) -> None:
    x, y, a, b = clouds(30, 25)
    result = gwf.sinkhorn(x, y, epsilon=0.02, x_weights=a, y_weights=b, scaling=scaling, **TIGHT)
    plan = dense_plan(x, y, a, b, result.f, result.g, 0.02)
    torch.testing.assert_close(plan.sum(1), a, rtol=1e-11, atol=0)
    assert float((plan.sum(0) - b).abs().sum()) <= 2e-13
    assert float(result.error) <= 1e-13


def test_error_is_that_of_the_plan_returned() -> None:
    x, y, a, b = clouds(30, 25)
    for sweeps in (1, 3, 40):
        with pytest.warns(RuntimeWarning, match="marginal error"):
            result = gwf.sinkhorn(x, y, epsilon=0.005, x_weights=a, y_weights=b, max_iterations=sweeps, tolerance=0)
        plan = dense_plan(x, y, a, b, result.f, result.g, 0.005)
        assert result.n_iterations in (sweeps, sweeps + 1)
        torch.testing.assert_close(plan.sum(1), a, rtol=1e-11, atol=0)
        torch.testing.assert_close(result.error, (plan.sum(0) - b).abs().sum(), rtol=1e-9, atol=1e-15)


def test_over_relaxation_reaches_the_same_potentials_in_fewer_sweeps() -> None:
    x, y, a, b = clouds(60, 50)
    problem = Entropic(x, y, a, b)
    options: dict[str, Any] = {"max_iterations": 20_000, "tolerance": 1e-10}
    plain = alternate(problem, 0.01, None, over_relaxation=False, **options)
    faster = alternate(problem, 0.01, None, **options)
    assert faster.n_iterations < 0.5 * plain.n_iterations
    shift = (faster.f - plain.f).mean()
    torch.testing.assert_close(faster.f - shift, plain.f, rtol=0, atol=1e-9)


def test_small_epsilon_is_optimal_transport() -> None:
    from scipy.optimize import linear_sum_assignment

    x, y, _, _ = clouds(20, 20)
    cost = (x[:, None] - y).square().sum(-1) / 2
    rows, columns = linear_sum_assignment(cost.numpy())
    exact = cost[rows, columns].mean()
    options: dict[str, Any] = {"scaling": 0.9, "debias": False, "max_iterations": 20_000, "tolerance": 1e-5}
    value = gwf.sinkhorn_divergence(x, y, epsilon=5e-3, **options)
    assert exact <= value + 1e-5
    assert value <= exact + 5e-3 * math.log(20)  # eps times the entropy of a permutation of 20


def gaussian_divergence(mean: Tensor, c1: Tensor, c2: Tensor, epsilon: float) -> Tensor:
    """The closed form between Gaussians (Janati et al. 2020, theorem 1), for the cost r^2 / 2."""

    def entropic(a: Tensor, b: Tensor) -> Tensor:  # per axis: diagonal covariances
        d = torch.sqrt(4 * a * b + epsilon**2)
        return 0.5 * (a + b - d + epsilon * torch.log(d + epsilon) - epsilon * math.log(2 * epsilon) + epsilon).sum()

    own = 0.5 * (entropic(c1, c1) + entropic(c2, c2))
    return 0.5 * mean.square().sum() + entropic(c1, c2) - own


def test_gaussians() -> None:
    # Gauss-Hermite points with their weights are Gaussians to all the accuracy that eps = 0.5 can see.
    import numpy as np

    nodes, weights = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(40))
    weights = weights / weights.sum()
    points = torch.cartesian_prod(nodes, nodes)
    mass = torch.outer(weights, weights).flatten()
    c1, c2, mean = torch.tensor([0.5, 0.2]).double(), torch.tensor([0.3, 0.6]).double(), torch.tensor([0.7, -0.4])
    value = gwf.sinkhorn_divergence(
        points * c1.sqrt(), points * c2.sqrt() + mean, epsilon=0.5, x_weights=mass, y_weights=mass, **TIGHT
    )
    torch.testing.assert_close(value, gaussian_divergence(mean.double(), c1, c2, 0.5), rtol=1e-8, atol=0)


@pytest.mark.parametrize("strength", [None, 0.7])
def test_first_and_second_derivatives(strength: float | None) -> None:
    x, y, a, b = clouds(6, 5)

    def value(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if strength is None:  # balanced: along weights of equal sum
            a, b = a / a.sum(), b / b.sum()
        options: dict[str, Any] = {"epsilon": 0.2, "marginal_strength": strength, **TIGHT}
        return gwf.sinkhorn_divergence(x, y, x_weights=a, y_weights=b, **options)

    inputs = [t.clone().requires_grad_() for t in (x, y, a, b)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 1e-13 is near the last bit
        assert torch.autograd.gradcheck(value, inputs, rtol=1e-5, atol=1e-8)
        assert torch.autograd.gradgradcheck(value, inputs, rtol=1e-4, atol=1e-7)


def test_hessian_vector_product_of_a_larger_problem() -> None:
    x, y, _, _ = clouds(200, 150)
    direction = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    options: dict[str, Any] = {"epsilon": 0.05, "max_iterations": 5000, "tolerance": 1e-13}

    def gradient(points: Tensor, create_graph: bool = False) -> Tensor:
        points = points if points.requires_grad else points.clone().requires_grad_()
        value = gwf.sinkhorn_divergence(points, y, **options)
        return torch.autograd.grad(value, points, create_graph=create_graph)[0]

    leaf = x.clone().requires_grad_()
    product = torch.autograd.grad((gradient(leaf, create_graph=True) * direction).sum(), leaf)[0]
    h = 1e-4
    difference = (gradient(x + h * direction) - gradient(x - h * direction)) / (2 * h)
    assert float((product - difference).norm() / difference.norm()) < 1e-5


@pytest.mark.parametrize("strength", [None, 0.4])
def test_gradient_is_minus_the_drift(strength: float | None) -> None:
    x, y, a, b = clouds(40, 30)
    leaf = x.clone().requires_grad_()
    options: dict[str, Any] = {"epsilon": 0.1, "x_weights": a, "y_weights": b, "marginal_strength": strength, **TIGHT}
    (gradient,) = torch.autograd.grad(gwf.sinkhorn_divergence(leaf, y, **options), leaf)
    torch.testing.assert_close(gwf.drift.sinkhorn(x, y, **options), -gradient / a[:, None], rtol=1e-9, atol=1e-10)


def test_batches_are_problems_side_by_side() -> None:
    x, y, _, _ = clouds(24, 20)
    xs, ys = x.view(2, 12, 2), y.view(2, 10, 2)
    both = gwf.sinkhorn_divergence(xs, ys, epsilon=0.1, **TIGHT)
    each = [gwf.sinkhorn_divergence(u, v, epsilon=0.1, **TIGHT) for u, v in zip(xs, ys, strict=True)]
    torch.testing.assert_close(both, torch.stack(each), rtol=1e-11, atol=1e-13)
    assert gwf.drift.sinkhorn(xs[None], ys[None], epsilon=0.1).shape == (1, 2, 12, 2)


def test_far_from_the_origin_in_float32() -> None:
    x, y, _, _ = clouds(50, 50, dtype=torch.float32)
    options: dict[str, Any] = {"epsilon": 0.1, "max_iterations": 200, "tolerance": 1e-5}
    near = gwf.sinkhorn_divergence(x, y, **options)
    far = gwf.sinkhorn_divergence(x + 1024, y + 1024, **options)
    torch.testing.assert_close(far, near, rtol=3e-3, atol=0)  # x + 1024 keeps 13 bits of x


def test_start_saves_sweeps() -> None:
    x, y, _, _ = clouds(50, 40)
    first = gwf.sinkhorn(x, y, epsilon=0.02, **TIGHT)
    again = gwf.sinkhorn(x, y, epsilon=0.02, start=first.g, max_iterations=5000, tolerance=1e-12)
    assert again.n_iterations <= 2 < first.n_iterations


def test_a_flow_starts_from_the_potentials_of_its_last_step() -> None:
    x, y, _, _ = clouds(50, 40)
    options: dict[str, Any] = {"epsilon": 0.02, "max_iterations": 5000, "tolerance": 1e-10, "return_potentials": True}
    v, potentials = gwf.drift.sinkhorn(x, y, **options)
    moved = x + 1e-3 * v
    cold, from_nothing = gwf.drift.sinkhorn(moved, y, **options)
    warm, from_last = gwf.drift.sinkhorn(moved, y, start=potentials, **options)
    torch.testing.assert_close(warm, cold, rtol=0, atol=1e-8)
    assert from_last.cross.n_iterations < 0.8 * from_nothing.cross.n_iterations
    assert from_last.x_own.n_iterations < from_nothing.x_own.n_iterations
    value, all_three = gwf.sinkhorn_divergence(moved, y, **options)
    again, once_more = gwf.sinkhorn_divergence(moved, y, start=all_three, **options)
    torch.testing.assert_close(again, value, rtol=0, atol=1e-9)
    parts = once_more.cross, once_more.x_own, once_more.y_own
    assert max(part.n_iterations for part in parts) <= 2
    assert float(once_more.error) == max(float(part.error) for part in parts) <= 1e-10


def test_the_result_carries_the_error_that_the_warning_tells_of() -> None:
    x, y, _, _ = clouds(30, 25)
    options: dict[str, Any] = {"epsilon": 0.003, "max_iterations": 3, "tolerance": 1e-9, "return_potentials": True}
    for function in (gwf.sinkhorn_divergence, gwf.drift.sinkhorn):
        with pytest.warns(RuntimeWarning, match="marginal error") as caught:
            _, potentials = function(x, y, **options)
        assert float(potentials.error) > 1e-9 and len(caught) == 1
        assert "below the tolerance of 1.0e-09" in str(caught[0].message) and caught[0].filename == __file__


def test_a_sample_with_itself_has_one_potential() -> None:
    x, _, a, _ = clouds(30, 25)
    result = gwf.sinkhorn(x, x, epsilon=0.05, x_weights=a, y_weights=a, **TIGHT)
    assert result.f is result.g
    plan = dense_plan(x, x, a, a, result.f, result.g, 0.05)
    torch.testing.assert_close(plan.sum(1), a, rtol=1e-11, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_ragged_sets_are_their_members(weighted: bool) -> None:
    x, y, _, _ = clouds(24, 30)
    x, y = x.view(2, 12, 2).clone(), y.view(2, 15, 2).clone()
    n, m = torch.tensor([12, 5]), torch.tensor([7, 15])
    for i in range(2):
        x[i, n[i] :], y[i, m[i] :] = float("nan"), float("nan")
    a, b = torch.rand(2, 12).double() + 0.1, torch.rand(2, 15).double() + 0.1
    for points, size in ((a, n), (b, m)):
        for i in range(2):
            points[i] /= points[i, : size[i]].sum()
    weights: dict[str, Any] = {"x_weights": a, "y_weights": b} if weighted else {}
    lengths: dict[str, Any] = {"x_lengths": n, "y_lengths": m}
    options: dict[str, Any] = {"epsilon": 0.1, **TIGHT}
    leaf = x.clone().requires_grad_()
    value = gwf.sinkhorn_divergence(leaf, y, **weights, **lengths, **options)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    drift = gwf.drift.sinkhorn(x, y, **weights, **lengths, **options)
    result = gwf.sinkhorn(x, y, **weights, **lengths, **options)
    mapped = gwf.barycentric_map(y.nan_to_num(), y, result.g, epsilon=0.1, y_weights=b, y_lengths=m)
    for i in range(2):
        u, v = x[i, : n[i]], y[i, : m[i]]
        some: dict[str, Any] = {"x_weights": a[i, : n[i]], "y_weights": b[i, : m[i]]} if weighted else {}
        inner = u.clone().requires_grad_()
        want = gwf.sinkhorn_divergence(inner, v, **some, **options)
        torch.testing.assert_close(value[i], want, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(gradient[i, : n[i]], torch.autograd.grad(want, inner)[0], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(drift[i, : n[i]], gwf.drift.sinkhorn(u, v, **some, **options), rtol=1e-8, atol=1e-10)
        alone = gwf.sinkhorn(u, v, **some, **options)
        torch.testing.assert_close(result.f[i, : n[i]] - result.f[i, 0], alone.f - alone.f[0], rtol=1e-9, atol=1e-10)
        want = gwf.barycentric_map(v, v, result.g[i, : m[i]], epsilon=0.1, y_weights=b[i, : m[i]])
        torch.testing.assert_close(mapped[i, : m[i]], want, rtol=1e-9, atol=1e-10)
        for beyond in (gradient[i, n[i] :], drift[i, n[i] :], result.f[i, n[i] :], result.g[i, m[i] :]):
            assert (beyond == 0).all()
    with pytest.raises(ValueError, match=r"y_lengths must lie in 0\.\.15"):
        gwf.sinkhorn(x, y, epsilon=0.1, y_lengths=torch.tensor([3, 16]))
    with pytest.raises(ValueError, match="x_lengths must be at least 1"):
        gwf.drift.sinkhorn(x, y, epsilon=0.1, x_lengths=torch.tensor([0, 3]))


def test_weightless_points_change_nothing() -> None:
    x, y, a, b = clouds(20, 15)
    padded = torch.cat((y, torch.randn(5, 2).double()))
    zeros = torch.cat((b, b.new_zeros(5)))
    value = gwf.sinkhorn_divergence(x, padded, epsilon=0.1, x_weights=a, y_weights=zeros, **TIGHT)
    torch.testing.assert_close(
        value, gwf.sinkhorn_divergence(x, y, epsilon=0.1, x_weights=a, y_weights=b, **TIGHT), rtol=1e-10, atol=1e-12
    )


def test_barycentric_map_of_the_samples() -> None:
    x, y, a, b = clouds(20, 15)
    result = gwf.sinkhorn(x, y, epsilon=0.1, x_weights=a, y_weights=b, **TIGHT)
    plan = dense_plan(x, y, a, b, result.f, result.g, 0.1)
    mapped = gwf.barycentric_map(x, y, result.g, epsilon=0.1, y_weights=b)
    torch.testing.assert_close(mapped, plan @ y / plan.sum(1, keepdim=True), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epsilon": 0.0}, "epsilon must be a positive number"),
        ({"epsilon": float("nan")}, "epsilon must be a positive number"),
        ({"x_weights": -torch.ones(6).double()}, "x_weights must be finite and not negative"),
        ({"y_weights": torch.zeros(5).double()}, "y_weights must be finite and not negative, with a positive sum"),
        ({"y_weights": torch.ones(5).double()}, "the same sum"),
        ({"x_weights": torch.ones(5).double()}, "x_weights must have shape"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"marginal_strength": -1.0}, "marginal_strength"),
        ({"scaling": 1.0}, "scaling"),
    ],
)
def test_bad_input(change: dict, match: str) -> None:
    x, y, _, _ = clouds(6, 5)
    with pytest.raises(ValueError, match=match):
        gwf.sinkhorn(x, y, **{"epsilon": 0.1, **change})


def test_no_points() -> None:
    x, y, _, _ = clouds(6, 5)
    with pytest.raises(ValueError, match="y must have at least one point"):
        gwf.sinkhorn_divergence(x, y[:0], epsilon=0.1)


def test_a_scaling_of_nearly_one_is_refused():
    """It built a list of 10^9 epsilons."""
    x, y = torch.randn(20, 2), torch.randn(30, 2)
    with pytest.raises(ValueError, match=r"scaling .* at most 10000 steps"):
        gwf.sinkhorn(x, y, epsilon=1e-3, scaling=1 - 1e-9)
    assert gwf.sinkhorn(x, y, epsilon=0.1, scaling=0.9, max_iterations=1000).error < 1e-5
    x[0, 0] = torch.inf
    with pytest.warns(RuntimeWarning, match="Sinkhorn stopped"):
        gwf.sinkhorn(x, y, epsilon=0.1, scaling=0.9)
